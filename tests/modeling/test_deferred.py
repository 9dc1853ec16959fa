"""A model whose weights stay in their files is the one that transformers loads, however they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from alphapo_cli.config.schema import ModelConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.adapters import handled_by_us
from alphapo_cli.modeling.deferred import (
    CannotDefer,
    Deferred,
    held_whole,
    is_deferred,
    numbers,
    read_once,
    weights_left_in_files,
)
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.locations import locate
from tests import tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def both(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """The model loaded whole, and with its weights left in files."""
    source, cfg = locate(str(folder)), ModelConfig(**settings)
    return load_model(source, cfg), load_model(source, cfg, in_files=True)


def assert_the_same(whole: Any, ours: Any) -> None:
    assert is_deferred(ours)
    assert held_whole(ours) == []
    a, b = dict(whole.named_parameters()), dict(ours.named_parameters())
    assert list(a) == list(b)  # tied weights once
    for name, p in a.items():
        assert torch.equal(numbers(b[name]), p), name
        assert torch.equal(read_once(b[name]).to(p.dtype), p), name
        assert (b[name].dtype, b[name].shape, b[name].requires_grad) == (p.dtype, p.shape, p.requires_grad)
    buffers = dict(ours.named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert not isinstance(buffers[name], Deferred)
        assert torch.equal(buffers[name], buffer), name
    assert ours.config.to_dict() == whole.config.to_dict()
    assert ours.generation_config.to_dict() == whole.generation_config.to_dict()
    assert ours.training is whole.training


@pytest.mark.parametrize("family", ["llama tied", "gemma2, soft-capped", "qwen3 moe"])
def test_weights_are_those_of_the_model_loaded_whole(family: str, tmp_path: Path) -> None:
    tiny.model(family).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_the_same(*both(tmp_path))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_in_every_dtype(family: str, dtype: str, tmp_path: Path) -> None:
    tiny.model(family).to(torch.float16).save_pretrained(tmp_path)
    assert_the_same(*both(tmp_path, dtype=dtype))


def test_files_of_torch_hold_tied_weights_twice(tmp_path: Path) -> None:
    lm = tiny.model("llama tied")
    lm.config.save_pretrained(tmp_path)
    torch.save(lm.state_dict(), tmp_path / "pytorch_model.bin")
    assert_the_same(*both(tmp_path))
    untied = {**lm.state_dict(), "lm_head.weight": lm.lm_head.weight.detach() + 1}
    torch.save(untied, tmp_path / "pytorch_model.bin")
    whole, ours = both(tmp_path)
    assert ours.lm_head.weight is not ours.model.embed_tokens.weight  # the files say otherwise than config.json
    assert_the_same(whole, ours)


def test_names_of_the_model_without_its_head(tmp_path: Path) -> None:
    """transformers adds the prefix of the inner model to what it reads."""
    tiny.model("llama tied").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({name.removeprefix("model."): p for name, p in state.items()}, file, metadata={"format": "pt"})
    assert_the_same(*both(tmp_path))


def test_adapters_are_merged_when_their_layer_is_read(tmp_path: Path) -> None:
    base = tiny.model("llama tied")
    base.save_pretrained(tmp_path / "base")
    base.resize_token_embeddings(101, mean_resizing=False)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["embed_tokens"], use_dora=True)
    with handled_by_us():
        adapted = get_peft_model(base, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    tiny_noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=tiny_noise))
    with handled_by_us():
        adapted.save_pretrained(tmp_path / "adapter")
    assert_the_same(*both(tmp_path / "adapter"))


def test_code_of_the_model_runs_where_that_was_typed(tmp_path: Path) -> None:
    lm = tiny.model("llama tied")
    lm.save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\nclass OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n\n\nclass OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    named = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": named}))
    with pytest.raises(UsageError, match=r"type model\.trust_remote_code=true"):
        load_model(locate(str(tmp_path)), ModelConfig(), in_files=True)
    whole, ours = both(tmp_path, trust_remote_code=True)
    assert type(ours).__name__ == "OwnForCausalLM"
    assert_the_same(whole, ours)


def test_a_weight_that_is_in_no_file_is_refused(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"in none of its files \(first model\.layers\.0\.mlp\.up_proj\.weight\)"):
        load_model(locate(str(tmp_path)), ModelConfig(), in_files=True)


def test_nan_in_a_file_is_seen_before_anything_starts(tmp_path: Path) -> None:
    lm = tiny.model()
    with torch.no_grad():
        lm.lm_head.weight[0, 0] = torch.nan
    lm.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its logits are nan"):
        load_model(locate(str(tmp_path)), ModelConfig(), in_files=True)


def test_what_is_made_in_memory_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untied output layer with more rows is made anew before the adapter brings its own."""
    base = tiny.model()
    base.save_pretrained(tmp_path / "base")
    base.resize_token_embeddings(101, mean_resizing=False)
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    )
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    with handled_by_us():
        adapted.save_pretrained(tmp_path / "adapter")
    whole, ours = both(tmp_path / "adapter")
    assert "1 of its 21 weights are not read one by one (first lm_head.weight)" in capsys.readouterr().err
    for (name, p), (_, q) in zip(whole.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(numbers(q), p), name


def test_changes_of_a_weight_in_its_file_are_not_lost_unseen(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny.model().save_pretrained(tmp_path)
    with weights_left_in_files():
        lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    weight = lm.lm_head.weight
    with torch.no_grad(), pytest.raises(CannotDefer):
        weight.add_(1)
    with torch.no_grad(), pytest.raises(CannotDefer):
        weight[0] = 1
    weight.data = torch.zeros(2, 3)
    with pytest.raises(CannotDefer):
        numbers(weight)
