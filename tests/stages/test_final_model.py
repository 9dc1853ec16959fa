"""The saved model is the trained one; what could not be saved is found out before training, and nothing trained is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alphapo_cli.modeling.saving import save_model
from alphapo_cli.stages.training import final_model
from alphapo_cli.stages.training.session import TrainingSession
from tests import tiny
from tests.conftest import BARE, Ran, plain_rows, write_rows

# peft's, where a test itself reads or saves an adapter of tied layers; the commands' own are checked below.
TIED = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`"
)
Alphapo = Callable[..., Ran]
IDS = torch.arange(3, 60).reshape(3, 19)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", plain_rows(16))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Path]:
    """A model of its own kind on disk, with a tokenizer."""

    def make(**settings: Any) -> Path:
        folder = tmp_path / "start"
        tokenizer, _ = tiny.encoded(tiny.dialogues(16, seed=1), vocab=320, max_length=64)
        lm = tiny.model(vocab=len(tokenizer), spread=0.2, **settings)
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def line(start: Path, pairs: Path, *more: str) -> tuple[str, ...]:
    return (
        "train", "objective=simpo", f"model.path={start}", "data=jsonl", f"data.path={pairs}", "trainer=small", "probe.samples=0",
        "trainer.max_steps=2", "trainer.per_device_train_batch_size=4", "trainer.learning_rate=0.01", "probe.pairs=4",
        "run.name=it", *BARE, *more,
    )  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=IDS).logits
    return out.log_softmax(-1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Log-probs of the policies that were trained, by the models' own forward."""
    found = []
    save = final_model.FinalModel.save

    def spy(self: final_model.FinalModel, policy: Any, lock: Any) -> None:
        policy.lm.config._attn_implementation, packed = "sdpa", policy.lm.config._attn_implementation
        found.append(logits(policy.lm))
        policy.lm.config._attn_implementation = packed
        save(self, policy, lock)

    monkeypatch.setattr(final_model.FinalModel, "save", spy)
    return found


LORA = ("model.lora.r=4", "trainer.learning_rate=0.05")


@pytest.mark.slow
@TIED
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize(
    ("targets", "tied"),
    [
        ("[lm_head]", True),
        ("[embed_tokens,q_proj]", True),
        *(pytest.param(targets, True, marks=pytest.mark.slow) for targets in ("null", "[lm_head,embed_tokens]")),
        *(pytest.param(t, False, marks=pytest.mark.slow) for t in ("null", "[lm_head]", "[embed_tokens,q_proj]")),
    ],
)
def test_plain_peft_and_transformers_read_the_trained_model(
    merge: bool, targets: str, tied: bool, alphapo: Alphapo, start: Callable[..., Path], pairs: Path,
    trained: list[torch.Tensor],
) -> None:  # fmt: skip
    folder = start(tie_word_embeddings=tied)
    ran = alphapo(*line(folder, pairs, *LORA, f"model.lora.target_modules={targets}", f"model.merge={merge}"))
    assert ran.code == 0, ran.err
    assert "tie_word_embeddings" not in ran.err
    saved = ran.path / "model"
    if merge:
        read = AutoModelForCausalLM.from_pretrained(saved)
    else:
        from peft import PeftModel

        read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), saved)
    (expected,) = trained
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(folder))).abs().max() > 0.1
    assert torch.allclose(logits(read), expected, atol=1e-4)  # float32, some nats
    # And so do commands that take a run for a model: its adapter is merged when it is read.
    again = alphapo(*line(ran.path, pairs, "run.name=again", "trainer.learning_rate=1e-12"))
    assert again.code == 0, again.err
    assert torch.allclose(trained[1], expected, atol=1e-4)


@pytest.mark.parametrize("how", [(), LORA, (*LORA, "model.merge=true")], ids=["whole", "adapter", "merged"])
def test_a_model_in_bfloat16_is_read_as_it_was_trained(
    how: tuple[str, ...], alphapo: Alphapo, start: Callable[..., Path], pairs: Path, trained: list[torch.Tensor]
) -> None:
    tiny.needs_bf16()
    folder = start(tie_word_embeddings=True)
    ran = alphapo(*line(folder, pairs, "model.dtype=bfloat16", *how))
    assert ran.code == 0, ran.err
    from peft import AutoPeftModelForCausalLM

    reads = AutoPeftModelForCausalLM if (ran.path / "model" / "adapter_config.json").is_file() else AutoModelForCausalLM
    read = reads.from_pretrained(ran.path / "model", dtype=torch.bfloat16)
    # Log-probs of a few nats in numbers of eight bits, and merging rounds every weight to eight bits once more.
    assert torch.allclose(logits(read).float(), trained[0].float(), atol=0.0 if "model.merge=true" not in how else 0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 0.8},
        {"pad_token_id": -1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_generation_settings_that_contradict_one_another_are_left_out_and_named(
    settings: dict[str, Any], alphapo: Alphapo, start: Callable[..., Path], pairs: Path
) -> None:
    folder = start()
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "repetition_penalty": 1.1, **settings})
    )
    ran = alphapo(*line(folder, pairs))
    assert ran.code == 0, ran.err
    (note,) = (text for text in ran.err.splitlines() if "contradict" in text)
    assert any(name in note for name in settings)
    saved = GenerationConfig.from_pretrained(ran.path / "model")
    assert 2 in saved.eos_token_id
    assert saved.repetition_penalty == 1.1  # what contradicts nothing stays


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "num_return_sequences": 3},
        {"num_beams": 2, "num_return_sequences": 3},
        {"max_new_tokens": 0},
        {"cache_implementation": "no such cache"},
        {"forced_eos_token_id": 5, "suppress_tokens": [5, 6]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_generation_settings_that_transformers_does_not_load_are_refused_by_name(
    settings: dict[str, Any], alphapo: Alphapo, start: Callable[..., Path], pairs: Path
) -> None:
    folder = start()
    (folder / "generation_config.json").write_text(json.dumps(settings))
    ran = alphapo(*line(folder, pairs))
    assert ran.code == 2
    assert any(name in ran.err.splitlines()[-1] for name in settings)


def test_generation_settings_in_the_models_config_move_to_their_file(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path
) -> None:
    folder = start()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "repetition_penalty": 1.3, "do_sample": True}))
    (folder / "generation_config.json").unlink()
    ran = alphapo(*line(folder, pairs))
    assert ran.code == 0, ran.err
    assert GenerationConfig.from_pretrained(ran.path / "model").repetition_penalty == 1.3


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerBase

    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("Object of type AddedToken is not JSON serializable")

    folder = start()
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", refuse)
    ran = alphapo(*line(folder, pairs))
    assert ran.code == 2
    assert "cannot be saved" in ran.err
    assert "AddedToken" in ran.err
    assert not (ran.path / "config.yaml").exists()


def test_no_room_for_the_model_is_found_out_before_it_is_trained(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    ran = alphapo(*line(start(), pairs))
    assert ran.code == 2
    assert "no room for the trained model" in ran.err
    assert not (ran.path / "metrics.jsonl").exists()


@pytest.mark.parametrize("how", [None, 95, 22], ids=["no such call", "not supported", "refused as invalid"])
@pytest.mark.parametrize("free", [0, 1 << 30])
def test_where_room_cannot_be_held_it_must_at_least_be_there(
    how: int | None,
    free: int,
    alphapo: Alphapo,
    start: Callable[..., Path],
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil
    from types import SimpleNamespace

    def unsupported(*_: Any) -> None:
        raise OSError(how, os.strerror(how or 0))

    folder = start()
    if how is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    ran = alphapo(*line(folder, pairs))
    assert ran.code == (0 if free else 2), ran.err
    assert free or "no room for the trained model" in ran.err
    assert not list(ran.path.glob(".alphapo-*"))


def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that are trained from now on."""
    taken: list[int] = []
    measure = TrainingSession.measure

    def spy(self: TrainingSession, step: int) -> dict[str, Any]:
        taken.append(step)
        return measure(self, step)

    monkeypatch.setattr(TrainingSession, "measure", spy)
    return taken


@pytest.mark.slow
def test_what_was_trained_outlives_a_model_that_cannot_be_saved(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = start()
    whole = alphapo(*line(folder, pairs, "run.name=whole"))
    assert whole.code == 0
    measure = TrainingSession.measure

    def planted(self: TrainingSession, step: int) -> dict[str, Any]:
        if step == 1:
            self.directory.model.write_text("somebody's notes")
        return measure(self, step)

    with monkeypatch.context() as during:
        during.setattr(TrainingSession, "measure", planted)
        ran = alphapo(*line(folder, pairs))
    assert ran.code == 1
    assert "could not be saved" in ran.err
    assert "without training again" in ran.err
    obstacle = ran.path / "model"
    assert obstacle.read_text() == "somebody's notes"
    obstacle.unlink()
    taken = steps(monkeypatch)
    again = alphapo(*line(folder, pairs))
    assert again.code == 0, again.err
    assert taken == []
    assert "was trained already" in again.err
    assert not (ran.path / "checkpoints").exists()
    for name in ("model.safetensors", "generation_config.json", "config.json"):
        assert (ran.path / "model" / name).read_bytes() == (whole.path / "model" / name).read_bytes()
    assert (ran.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    summaries = [json.loads((r.path / "summary.json").read_text()) for r in (ran, whole)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["step"] == summaries[1]["step"]


@pytest.mark.slow
def test_a_model_read_back_as_another_one_does_not_count_as_saved(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    folder, save = folder, save = start(), save_model

    def flip(lm: Any, tokenizer: Any, where: Path, **settings: Any) -> Any:
        saved = save(lm, tokenizer, where, **settings)
        if where.name.startswith(".model."):
            weights = load_file(where / "model.safetensors")
            weights["model.norm.weight"][3] += 1e-3
            save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
        return saved

    with monkeypatch.context() as during:
        during.setattr(final_model, "save_model", flip)
        ran = alphapo(*line(folder, pairs))
    assert ran.code == 1
    assert "not the one that was trained" in ran.err
    assert "model.norm.weight" in ran.err
    assert not (ran.path / "model").exists()
    taken = steps(monkeypatch)
    assert alphapo(*line(folder, pairs)).code == 0
    assert taken == []


def test_a_rope_setting_lost_on_the_way_shows_in_the_log_probs(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = save_model

    def lose(lm: Any, tokenizer: Any, where: Path, **settings: Any) -> Any:
        saved = save(lm, tokenizer, where, **settings)
        config = json.loads((where / "config.json").read_text())
        config["rope_parameters"] = {"rope_theta": 7.0, "rope_type": "default"}
        (where / "config.json").write_text(json.dumps(config))
        return saved

    monkeypatch.setattr(final_model, "save_model", lose)
    ran = alphapo(*line(start(), pairs))
    assert ran.code == 1
    assert "tensors differ" in ran.err or "other log-probs" in ran.err


@pytest.mark.parametrize("lora", [(), LORA], ids=["whole", "adapter"])
def test_without_memory_for_a_second_copy_the_tensors_are_compared_all_the_same(
    lora: tuple[str, ...], alphapo: Alphapo, start: Callable[..., Path], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    ran = alphapo(*line(start(tie_word_embeddings=True), pairs, *lora))
    assert ran.code == 0, ran.err
    assert "log-probs were not compared: no second copy fits into memory" in ran.err


@pytest.mark.slow
def test_an_adapter_in_pefts_own_form_uses_its_bases_tokenizer(
    alphapo: Alphapo, start: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    folder = start()
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, task_type="CAUSAL_LM")
    ).save_pretrained(tmp_path / "adapter")
    assert alphapo(*line(tmp_path / "adapter", pairs)).code == 0
    newer, older = (tmp_path / "adapter" / f"adapter_model.{suffix}" for suffix in ("safetensors", "bin"))
    torch.save(load_file(newer), older)  # as peft wrote it before version 0.7
    newer.unlink()
    assert alphapo(*line(tmp_path / "adapter", pairs, "run.name=older")).code == 0
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    ran = alphapo(*line(tmp_path / "adapter", pairs, "run.name=other"))
    assert ran.code == 2
    assert "base_model_name_or_path in adapter_config.json is null" in ran.err


@pytest.mark.slow
@TIED
@pytest.mark.parametrize(
    "adapts",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head"]},
    ],
    ids=["whole", "embeddings", "head"],
)
def test_an_adapter_of_an_enlarged_vocabulary_enlarges_its_base(
    adapts: dict[str, Any], alphapo: Alphapo, start: Callable[..., Path], pairs: Path, tmp_path: Path,
    trained: list[torch.Tensor],
) -> None:  # fmt: skip
    from peft import LoraConfig, PeftModel, get_peft_model

    folder, adapter = start(tie_word_embeddings=True), tmp_path / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])

    def enlarged() -> Any:
        lm = AutoModelForCausalLM.from_pretrained(folder)
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return lm

    lm = get_peft_model(enlarged(), LoraConfig(r=2, task_type="CAUSAL_LM", **adapts))
    torch.manual_seed(0)
    for p in lm.parameters():
        p.data += 0.1 * torch.randn_like(p) * p.requires_grad
    lm.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    expected = logits(PeftModel.from_pretrained(enlarged(), adapter))
    ran = alphapo(*line(adapter, pairs, "trainer.learning_rate=1e-12"))
    assert ran.code == 0, ran.err
    assert torch.allclose(trained[0], expected, atol=1e-4)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(ran.path / "model")), expected, atol=1e-4)
    if "target_modules" in adapts:
        lm.save_pretrained(adapter, save_embedding_layers=False)
        ran = alphapo(*line(adapter, pairs, "run.name=bare"))
        sizes = f"was trained on a vocabulary of {len(tokenizer)} tokens and its base has {len(tokenizer) - 2}"
        assert (ran.code, sizes in ran.err.splitlines()[-1]) == (2, True)


@pytest.mark.parametrize("what", ["tensor", "head", "adapter"])
def test_weights_that_are_in_no_file_are_refused(
    what: str, alphapo: Alphapo, start: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    """transformers draws them at random, and peft leaves its change out: both would be another model."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    model = folder = start(tie_word_embeddings=True)
    if what == "adapter":
        lm, folder = AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapter"
        get_peft_model(lm, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(folder)
    if what == "head":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    else:
        (file,) = folder.glob("*model.safetensors")
        tensors = load_file(file)
        save_file(
            {name: t for name, t in tensors.items() if "layers.0.self_attn.q_proj" not in name}, file, {"format": "pt"}
        )
    ran = alphapo(*line(folder, pairs))
    assert ran.code == 2, ran.err
    lost = "lm_head.weight" if what == "head" else "layers.0.self_attn.q_proj"
    said = "lacks tensors" if what == "adapter" else "weights are in none of its files"
    assert all(text in ran.err.splitlines()[-1] for text in (str(folder), said, lost))


CODE = """import pathlib
from transformers import LlamaForCausalLM
pathlib.Path({mark!r}).touch()
class Own(LlamaForCausalLM):
    pass
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_a_configuration_names_runs_where_that_was_allowed_alone(
    trusted: bool, alphapo: Alphapo, start: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    """Many models of the hub name their first code (auto_map), though transformers has had the architecture since."""
    folder, mark = start(), tmp_path / "mark"
    config = json.loads((folder / "config.json").read_text())
    named = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps({**config, **named}))
    if trusted:
        (folder / "modeling_own.py").write_text(CODE.format(mark=str(mark)))
    more = ("model.trust_remote_code=true", "layout=padded") if trusted else ()
    ran = alphapo(*line(folder, pairs, *more))
    assert ran.code == 0, ran.err
    assert mark.exists() == trusted


def test_damaged_weights_are_called_so(alphapo: Alphapo, start: Callable[..., Path], pairs: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = start()
    tensors = {name: t * float("nan") for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    ran = alphapo(*line(folder, pairs))
    assert ran.code == 2
    assert "its logits are nan: its weights are damaged" in ran.err.splitlines()[-1]
