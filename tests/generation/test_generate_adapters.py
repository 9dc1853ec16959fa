"""Adapters that vLLM cannot serve are known from their files, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alphapo_cli.generation.adapter_support import adapter_obstacles
from alphapo_cli.modeling.adapters import handled_by_us
from tests.conftest import Ran, write_rows
from tests.generation.generate_world import chat_model, load

Alphapo = Callable[..., Ran]
FAKE = Path(__file__).parent / "fake"
LAYERS = ["q_proj", "v_proj"]
# What peft's LoraConfig gets, and what is said of it; None: vLLM can.
ADAPTERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "plain": ({}, None),
    "rank and alpha patterns": ({"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 5}}, None),
    "rslora": ({"use_rslora": True}, None),
    "gaussian": ({"init_lora_weights": "gaussian"}, None),
    "dora": ({"use_dora": True}, "use_dora"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    "pissa, quick": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
    "bias": ({"bias": "lora_only"}, "bias=lora_only"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "modules_to_save": ({"modules_to_save": ["input_layernorm"]}, "modules_to_save: input_layernorm"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "embeddings by a pattern": ({"target_modules": r".*(q_proj|embed_\w+)"}, "embed_"),
    "parameters": ({"target_parameters": ["mlp.up_proj.weight"]}, "target_parameters"),
    "alora": ({"alora_invocation_tokens": [5, 6]}, "aLoRA"),
    "rank": ({"r": 600}, "rank 600"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("base") / "model", num_hidden_layers=1)


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(devices=[]), handled_by_us():
        torch.manual_seed(0)
        config = peft.LoraConfig(**{"r": 2, "target_modules": LAYERS, "task_type": "CAUSAL_LM", **settings})
        peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter 'default'")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_vllm_cannot_apply_is_named(kind: str, base: Path, tmp_path: Path) -> None:
    settings, said = ADAPTERS[kind]
    found = adapter_obstacles(adapter(base, tmp_path / "adapter", **settings), "adapter")
    assert bool(found) == (said is not None), found
    if said is not None:
        assert said in found[0]


def test_another_kind_of_adapter_is_named(base: Path, tmp_path: Path) -> None:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.IA3Config(target_modules=LAYERS, feedforward_modules=[], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    assert adapter_obstacles(tmp_path / "adapter", "adapter") == ["is of peft's type IA3, not LoRA"]


def test_auto_takes_transformers_and_says_so_and_vllm_is_refused(
    base: Path, tmp_path: Path, alphapo: Alphapo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FAKE)  # also where no vLLM is installed
    stored = adapter(base, tmp_path / "adapter", use_dora=True)
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "Name three fruits"}])
    line = ("generate", str(stored), "data=jsonl", f"data.path={file}", "generation.max_new_tokens=2")
    refused = alphapo(*line, "generation=vllm")
    assert (refused.code, refused.out) == (2, "")
    assert "use_dora" in refused.fault
    assert "generation=transformers" in refused.fault
    assert "the same line" not in refused.fault
    assert not (tmp_path / "runs").exists()
    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    assert load(ran.path / "summary.json")["backend"] == "transformers"
    assert "note: vLLM cannot apply its adapter: it has DoRA's magnitudes (use_dora); transformers answers" in ran.err
    assert "with the adapter merged in memory" in ran.err
    assert f"alphapo export {stored} --merge --to DIR" in refused.fault
    merged = tmp_path / "merged"
    assert alphapo("export", str(stored), "--merge", "--to", str(merged)).code == 0
    fake = {"PYTHONPATH": str(FAKE)}
    answered = alphapo("generate", str(merged), *line[2:], "generation=vllm", env=fake)
    assert answered.code == 0, answered.err


def test_weights_that_vllm_does_not_have_are_not_called_an_adapter(
    tmp_path: Path, alphapo: Alphapo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FAKE)
    model = chat_model(tmp_path / "model", dtype="float64")
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "Name three fruits"}])
    line = ("generate", str(model), "data=jsonl", f"data.path={file}", "generation.max_new_tokens=2")
    refused, ran = alphapo(*line, "generation=vllm"), alphapo(*line)
    assert refused.code == 2
    assert "model.dtype=float32" in refused.fault
    assert "merge" not in refused.fault
    assert ran.code == 0, ran.err
    assert "note: its weights are float64" in ran.err
    assert "adapter" not in ran.err


@pytest.mark.parametrize(
    ("typed", "said"), [("model.lora.target_modules=[q_proj,lm_head]", "lm_head"), ("model.lora.r=600", "rank 600")]
)
def test_run_refuses_before_training_an_adapter_that_vllm_could_not_apply_after(
    typed: str, said: str, alphapo: Alphapo, tmp_path: Path
) -> None:
    line = ("run", "model.lora.r=2", typed, "generation.backend=vllm")
    ran = alphapo(*line)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.fault
    assert "model.merge=true" in ran.fault
    assert not (tmp_path / "runs").exists()


def test_an_engine_that_gave_no_answer_does_not_promise_that_the_same_line_will(
    alphapo: Alphapo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FAKE)

    def go(fault: str) -> str:
        env = {"PYTHONPATH": str(FAKE), "FAKE_VLLM": fault}
        return alphapo("generate", "generation=vllm", "data.limit=4", env=env).fault

    assert "generation=transformers does without vLLM" in go("start")
    assert "the same line" not in go("start")
    assert "2 of 4 answers are kept" in (fault := go("die-2"))
    assert "the same line generates the rest" in fault


@pytest.mark.parametrize("kind", ["aLoRA", "PROMPT_TUNING", "PREFIX_TUNING"])
def test_an_adapter_that_neither_backend_serves_is_refused_before_anything_is_written(
    kind: str, base: Path, tmp_path: Path, alphapo: Alphapo
) -> None:
    import peft
    import transformers

    stored = tmp_path / "adapter"
    if kind == "aLoRA":
        adapter(base, stored, alora_invocation_tokens=[5, 6])
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        config = peft.get_peft_config({"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 3})
        peft.get_peft_model(model, config).save_pretrained(stored)
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "Name three fruits"}])
    for backend in ("auto", "transformers"):
        ran = alphapo("generate", str(stored), "data=jsonl", f"data.path={file}", f"generation={backend}")
        assert (ran.code, ran.out) == (2, "")
        assert kind in ran.fault
        assert "neither backend serves it" in ran.fault
    assert not (tmp_path / "runs").exists()
