"""Runs with few bits: QLoRA from training to what others read, 8-bit optimizers, and what is refused in a line."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from alphapo_cli.modeling import loading
from alphapo_cli.modeling.quantisation import quantisation_of
from alphapo_cli.stages.measuring import run as measuring
from tests import tiny as tiny_models
from tests.conftest import BARE, TINY, Ran, run_here

WITH = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra quant)"
)
Alphapo = Callable[..., Ran]
QLORA = ("model.quantization=nf4", "model.lora.r=4", "trainer.learning_rate=0.02")
IDS = torch.arange(3, 60).reshape(3, 19)
# Logits of some nats are sums over 64 or fewer terms through four layers, each rounded by 2^-24 of them, in another order.
ROUNDED = 1e-4


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm(input_ids=IDS).logits.float().log_softmax(-1)
    return found


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Ran, torch.Tensor]:
    """A QLoRA run of DPO, and the log-probs of its policy when it was saved."""
    from alphapo_cli.stages.training.final_model import FinalModel

    found = []
    save = FinalModel.save

    def spy(self: FinalModel, policy: Any, lock: Any) -> None:
        policy.lm.config._attn_implementation, packed = "sdpa", policy.lm.config._attn_implementation
        found.append(logits(policy.lm.eval()))
        policy.lm.config._attn_implementation = packed
        save(self, policy, lock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinalModel, "save", spy)
        folder = tmp_path_factory.mktemp("quantised")
        ran = run_here(("train", "objective=dpo", *TINY, *BARE, *QLORA), folder, shared_cache)
    assert ran.code == 0, ran.err
    return ran, found[0]


def base_of(run: Path) -> str:
    return str(json.loads((run / "model" / "adapter_config.json").read_text())["base_model_name_or_path"])


@WITH
class TestAQuantisedRun:
    def test_its_adapter_loads_through_plain_peft(self, quantised: tuple[Ran, torch.Tensor]) -> None:
        """Over the base quantised as a user would type it, and (another model, by what quantising costs) as it was."""
        from peft import PeftModel

        ran, trained = quantised
        kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        base = AutoModelForCausalLM.from_pretrained(base_of(ran.path), quantization_config=kind)
        start = logits(
            base.train()
        )  # in evaluation bitsandbytes rounds to bfloat16 on some CPUs, and there is no dropout
        read = logits(PeftModel.from_pretrained(base, ran.path / "model").train())
        assert (read - trained).abs().max() < ROUNDED
        assert (start - trained).abs().max() > 100 * ROUNDED
        over = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_of(ran.path)), ran.path / "model")
        assert ROUNDED < (logits(over.eval()) - trained).abs().mean() < 0.5

    def test_its_name_and_its_hash_are_its_own(
        self, quantised: tuple[Ran, torch.Tensor], alphapo: Alphapo, tmp_path: Path
    ) -> None:
        line = ("train", "objective=dpo", *TINY, *BARE)
        other = alphapo(*line, "model.quantization=int8", *QLORA[1:])
        assert other.code == 0, other.err
        assert other.path.name != quantised[0].path.name
        assert "bitsandbytes" in json.loads((other.path / "manifest.json").read_text())["versions"]
        # The reference of the one is not taken for that of the other.
        first = [(p / "metrics.jsonl").read_text().splitlines()[0] for p in (other.path, quantised[0].path)]
        assert json.loads(first[0])["displacement/chosen"] == json.loads(first[1])["displacement/chosen"] == 0
        assert json.loads(first[0])["logps/chosen"] != json.loads(first[1])["logps/chosen"]

    def test_export_merges_into_whole_weights(
        self, quantised: tuple[Ran, torch.Tensor], alphapo: Alphapo, tmp_path: Path
    ) -> None:
        ran, trained = quantised
        done = alphapo("export", str(ran.path), "--to", "whole", "--merge")
        assert done.code == 0, done.err
        assert "model in float32: the base dequantised from nf4, the adapter added" in done.out
        assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        assert {p.dtype for p in read.parameters()} == {torch.float32}
        assert (logits(read) - trained).abs().max() < ROUNDED
        kept = alphapo("export", str(ran.path), "--to", "adapter")
        assert "trained over its base quantised to nf4" in kept.out
        # As the start of another training it is taken once it is merged.
        again = alphapo("train", "data=glassbox", *TINY, *BARE, f"model.path={ran.path}")
        assert again.code == 2
        assert "alphapo export" in again.fault
        assert "--merge --to DIR" in again.fault

    def test_it_answers_over_its_base_as_in_training(
        self, quantised: tuple[Ran, torch.Tensor], alphapo: Alphapo, tmp_path: Path
    ) -> None:
        greedy = ("generation=transformers", "generation.temperature=0", "generation.max_new_tokens=12", "data.limit=4")

        def answers(model: str, *more: str) -> tuple[Ran, list[str]]:
            ran = alphapo("generate", model, *greedy, *more)
            assert ran.code == 0, ran.err
            return ran, [row["output"] for row in json.loads((ran.path / "model_outputs.json").read_text())]

        run = quantised[0].path
        ran, own = answers(str(run))
        assert "quantised to nf4, as in training" in ran.err
        assert answers(str(run / "model"))[0].path == ran.path  # the adapter's folder alone is the same model
        other, _ = answers(str(run), "model.quantization=none")
        assert other.path != ran.path
        assert alphapo("export", str(run), "--to", "whole", "--merge").code == 0
        _, merged = answers("whole", "data=glassbox", "data.limit=4")
        assert merged == own

    def test_it_is_measured_against_its_start(self, quantised: tuple[Ran, torch.Tensor], alphapo: Alphapo) -> None:
        """Measured again it has the displacement that its training recorded."""
        run = quantised[0].path
        ran = alphapo("measure", str(run))
        assert ran.code == 0, ran.err
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        found = json.loads((ran.path / "metrics.json").read_text())["metrics"]
        for key in ("displacement/chosen", "displacement/rejected", "rewards/margins"):
            assert found[key] == pytest.approx(last[key], abs=ROUNDED), key

    def test_chat(self, quantised: tuple[Ran, torch.Tensor], alphapo: Alphapo, monkeypatch: pytest.MonkeyPatch) -> None:
        import io

        monkeypatch.setattr("sys.stdin", io.StringIO("hello , write five tools .\n"))
        ran = alphapo("chat", str(quantised[0].path))
        assert ran.code == 0, ran.err
        assert ran.out.strip()


@WITH
@pytest.mark.slow
def test_a_run_may_write_whole_weights(alphapo: Alphapo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back is compared with what was trained by the run itself, its log-probs too."""
    line = ("train", *TINY, *BARE, *QLORA, "model.quantization=int8", "model.merge=true", "model.dtype=bfloat16")
    tiny_models.needs_bf16()
    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    assert "model/ holds whole weights in bfloat16: the base dequantised from int8, the adapter added" in ran.err
    read = AutoModelForCausalLM.from_pretrained(ran.path / "model", dtype="auto")
    assert {p.dtype for p in read.parameters()} == {torch.bfloat16}
    answered = alphapo(
        "generate", str(ran.path), "data.limit=1", "generation=transformers", "generation.max_new_tokens=4"
    )
    assert answered.code == 0, answered.err
    assert "quantised" not in answered.err
    # Neither is it quantised once more to be measured, against a start that is.
    loaded = []
    real = loading.load_model

    def noted(source: Any, cfg: Any, device: Any) -> Any:
        lm = real(source, cfg, device)
        loaded.append(quantisation_of(lm))
        return lm

    monkeypatch.setattr(measuring, "load_model", noted)
    measured = alphapo("measure", str(ran.path))
    assert measured.code == 0, measured.err
    assert loaded == ["none"]


@WITH
def test_eight_bits_of_moments(alphapo: Alphapo) -> None:
    """Close to AdamW with moments of 32 bits, and not the same; the moments in a checkpoint are bytes."""
    line = ("train", *TINY, *BARE, "trainer.save_steps=1", "trainer.save_total_limit=null")
    from tests.stages.test_resume import killed_at

    ends = {}
    for optim in ("adamw_8bit", "adamw_torch"):
        with killed_at(3):
            ran = alphapo(*line, f"trainer.optim={optim}", f"run.name={optim}")
        (file,) = (ran.path / "checkpoints" / "step-3").glob("*.pt")
        ends[optim] = torch.load(file, weights_only=False)
    moments = ends["adamw_8bit"]["optimizer"]["state"].values()
    bits = [v.dtype for state in moments for v in _tensors(state) if v.numel() >= 4096]
    assert bits.count(torch.uint8) >= 2
    ours, theirs = (ends[name]["weights"] for name in ends)
    moved = [tiny_models.relative_error(ours[name], theirs[name]) for name in theirs]
    assert 0 < max(moved) < 0.05


def _tensors(state: Any) -> list[torch.Tensor]:
    values = list(state.values()) if isinstance(state, dict) else []
    return [t for v in values for t in ([v] if isinstance(v, torch.Tensor) else _tensors(v))]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model that is there, and that is not read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    (folder / "model.safetensors").write_bytes(b"-")
    (tmp_path / "none.jsonl").touch()
    return folder


FULL = "model.dtype=bfloat16"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.quantization=fp4",), "choices: none, nf4, int8"),
        (("model.quantization=nf4",), "add model.lora.r=16 (QLoRA)"),
        (("model.quantization=nf4", "model.lora.r=4", "sharding.mode=fsdp"), "cannot be sharded"),
        pytest.param(("trainer.optim=paged_adamw_8bit",), "take trainer.optim=adamw_8bit", marks=WITH),
        ((FULL, "trainer.learning_rate=7e-7"), "3e-05 of a typical weight of 0.02"),
        ((FULL, "trainer.learning_rate=7e-7"), "trainer.accept_lost_updates=true"),
        (("model.dtype=auto", "trainer.learning_rate=7e-7"), "loses what is below 2^-9 = 0.002"),
        # What follows is taken, and the tokenizer, which is missing, is read next.
        ((FULL, "trainer.learning_rate=7e-7", "trainer.accept_lost_updates=true"), "no usable tokenizer"),
        ((FULL, "trainer.learning_rate=7e-7", "model.lora.r=4"), "no usable tokenizer"),
        ((FULL, "trainer.learning_rate=1e-4"), "no usable tokenizer"),
        (("trainer.learning_rate=7e-7",), "no usable tokenizer"),
    ],
)
def test_what_is_refused(overrides: tuple[str, ...], words: str, alphapo: Alphapo, saved: Path, tmp_path: Path) -> None:
    line = ("trainer.use_cpu=true", "model.path=./model", "data=jsonl", "data.path=none.jsonl", *overrides)
    ran = alphapo("train", *line)
    assert ran.code == 2
    assert words in ran.fault
    assert not (tmp_path / "runs").exists()
    if "tokenizer" not in words and "paged" not in line[-1]:  # which another machine may take
        assert words in alphapo("validate", *line).fault


def test_weights_that_are_quantised_already_are_refused(alphapo: Alphapo, saved: Path, tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (saved / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    line = ("model.path=./model", "data=jsonl", "data.path=none.jsonl", "model.lora.r=4", "model.quantization=nf4")
    ran = alphapo("validate", *line)
    assert ran.code == 2
    assert "its weights are quantised already" in ran.fault


def test_an_update_below_two_to_the_minus_nine_is_lost() -> None:
    """The arithmetic of the refusal, by torch itself."""
    weight = torch.linspace(0.01, 0.04, 1000).bfloat16()
    assert torch.equal(weight - 2**-9 * 0.999 * weight, weight)
    assert torch.equal(weight - 7e-7, weight)
    assert not torch.equal(weight - 2**-8 * weight, weight)


@pytest.mark.gpu
@WITH
@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adamw_8bit", "adamw_torch_fused"])
def test_on_a_gpu(optim: str, alphapo: Alphapo) -> None:
    """NF4 under bfloat16 autocast, and optimizers that page; the run compares its saved model with the trained one."""
    line = [word for word in (*TINY, *BARE) if not word.startswith("trainer.use_cpu")]
    how = ("trainer.use_cpu=false", "trainer.bf16=true", "model.dtype=bfloat16", f"trainer.optim={optim}", *QLORA)
    ran = alphapo("train", "objective=dpo", *line, *how)
    assert ran.code == 0, ran.err
    shutil.rmtree(ran.path)
