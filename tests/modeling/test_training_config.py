"""Dropout is off in training unless it is asked for, wherever a model keeps it, and the saved config says what it said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from alphapo_cli.modeling.layout.padded import fill_id
from alphapo_cli.modeling.training_config import as_loaded, drop_router_loss, set_dropout
from tests import tiny
from tests.conftest import BARE, Ran, plain_rows, write_rows

# name -> the settings of a tiny one; what is called dropout or jitter is set below.
SMALL: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "GPTBigCode": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "GPTNeo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
    "GPTNeoX": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
    "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "XGLM": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "Phi": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "StableLm": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    "Llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "Mixtral": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 64, "num_local_experts": 2,
    },
}  # fmt: skip


def noisy(kind: str) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=320, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SMALL[kind]
    )
    names = [n for n, v in config.to_dict().items() if ("drop" in n or "jitter" in n) and isinstance(v, float | int)]
    for name in names:
        setattr(config, name, 0.3)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


IDS = torch.arange(3, 63).reshape(3, 20)


def two_passes(lm: Any) -> bool:
    """Whether two passes in training mode agree bit by bit."""
    lm.train()
    with torch.no_grad():
        first, second = (lm(input_ids=IDS).logits for _ in range(2))
    return torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # in transformers' GPT-BigCode
@pytest.mark.parametrize("kind", SMALL)
def test_no_noise_is_left_and_the_config_is_saved_as_it_was(kind: str, tmp_path: Path) -> None:
    lm = noisy(kind)
    before = lm.config.to_dict()
    assert not two_passes(lm)
    changed = set_dropout(lm, 0.0)
    assert two_passes(lm)
    with torch.no_grad():
        trained = lm(input_ids=IDS).logits
        assert torch.equal(lm.eval()(input_ids=IDS).logits, trained)
    with as_loaded(lm, changed):
        lm.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    names = [name for _, name in changed]
    assert {n: saved[n] for n in names} == {n: before[n] for n in names}
    read = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {n: v for n, v in read.items() if v != before.get(n)}.keys() <= {"_name_or_path", "transformers_version"}
    assert two_passes(lm)  # as it was before saving


def test_a_number_is_the_probability_everywhere() -> None:
    lm = noisy("GPT2")
    set_dropout(lm, 0.75)
    assert not two_passes(lm)
    assert {m.p for m in lm.modules() if isinstance(m, torch.nn.Dropout)} == {0.75}


def test_adapters_keep_their_own() -> None:
    from peft import LoraConfig, get_peft_model

    lm = noisy("GPT2")
    set_dropout(lm, 0.0)
    adapted = get_peft_model(lm, LoraConfig(r=2, lora_dropout=0.5, fan_in_fan_out=True, task_type="CAUSAL_LM"))
    assert {m.p for m in adapted.modules() if isinstance(m, torch.nn.Dropout)} == {0.0, 0.5}


def test_a_mixture_of_experts_keeps_no_router_logits() -> None:
    lm = noisy("Mixtral")
    lm.config.output_router_logits = True
    changed = drop_router_loss(lm)
    assert lm.eval()(input_ids=IDS).router_logits is None
    with as_loaded(lm, changed):
        assert lm.config.output_router_logits is True
    assert drop_router_loss(lm) == {}


def test_every_configuration_of_a_model_gets_its_own_settings_back() -> None:
    small = SMALL["Llama"]
    text = transformers.Gemma3TextConfig(
        vocab_size=320, head_dim=8, num_key_value_heads=1, attention_dropout=0.2, **small
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    config.attention_dropout, config.output_router_logits, config.text_config.output_router_logits = 0.7, False, True
    lm = transformers.Gemma3ForConditionalGeneration(config)
    before = config.to_dict()
    changed = {**set_dropout(lm, 0.0), **drop_router_loss(lm)}
    assert (config.attention_dropout, config.text_config.attention_dropout) == (0, 0)
    with as_loaded(lm, changed):
        assert config.to_dict() == before
    assert not config.text_config.output_router_logits


@pytest.fixture
def line(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """`alphapo train` of one DPO step from a model of its own."""

    def make(lm: Any, *more: str, **tokens: Any) -> tuple[str, ...]:
        tokenizer, _ = tiny.encoded(tiny.dialogues(16, seed=1), vocab=320, max_length=64)
        for name, value in tokens.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path / "start")
        lm.save_pretrained(tmp_path / "start")
        pairs = write_rows(tmp_path / "pairs.jsonl", plain_rows(8))
        return (
            "train", "objective=dpo", "probe.samples=0", f"model.path={tmp_path / 'start'}", "data=jsonl", f"data.path={pairs}",
            "trainer=small", "trainer.max_steps=1", "trainer.per_device_train_batch_size=4", "probe.pairs=4",
            "layout=padded", "run.name=it", *BARE, *more,
        )  # fmt: skip

    return make


def first_loss(ran: Ran) -> float:
    assert ran.code == 0, ran.err
    rows = [json.loads(text) for text in (ran.path / "metrics.jsonl").read_text().splitlines()]
    return next(float(row["train/loss"]) for row in rows if "train/loss" in row)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GPT2", "OPT"])
def test_dpo_starts_at_log_2_unless_dropout_is_asked_for(
    kind: str, alphapo: Callable[..., Ran], line: Callable[..., tuple[str, ...]]
) -> None:
    said = line(noisy(kind))
    ran = alphapo(*said)
    assert first_loss(ran) == pytest.approx(math.log(2), abs=1e-6)
    saved = json.loads((ran.path / "model" / "config.json").read_text())
    assert saved[{"GPT2": "resid_pdrop", "OPT": "dropout"}[kind]] == 0.3
    assert abs(first_loss(alphapo(*said, "model.dropout=null", "run.name=as-configured")) - math.log(2)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("pad", [500, None], ids=["beyond the embeddings", "none"])
def test_padding_is_never_read(
    pad: int | None, alphapo: Callable[..., Ran], line: Callable[..., tuple[str, ...]]
) -> None:
    losses = {}
    for name, tokens in (("usual", {}), ("odd", {"pad_token_id": pad})):
        ran = alphapo(*line(tiny.model(vocab=320), f"run.name={name}", "probe.samples=2", **tokens))
        losses[name] = first_loss(ran)
        samples = sorted((ran.path / "samples").iterdir())
        losses[f"{name} samples"] = [[r["output"] for r in json.loads(p.read_text())] for p in samples]  # type: ignore[assignment]
    assert losses["odd"] == losses["usual"]
    assert losses["odd samples"] == losses["usual samples"]


def test_the_fill_is_an_id_that_the_model_has() -> None:
    assert [fill_id(pad, 10) for pad in (3, 0, 9, 10, -1, None)] == [3, 0, 9, 0, 0, 0]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_model_without_an_inner_one_is_refused_in_one_line(
    layout: str, alphapo: Callable[..., Ran], line: Callable[..., tuple[str, ...]]
) -> None:
    config = transformers.Llama4TextConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        intermediate_size=48, intermediate_size_mlp=48, num_local_experts=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    ran = alphapo(*line(transformers.Llama4ForCausalLM(config), f"layout={layout}"))
    assert ran.code == 2
    assert "llama4_text" in ran.err.splitlines()[-1]
    assert "not supported" in ran.err.splitlines()[-1]
