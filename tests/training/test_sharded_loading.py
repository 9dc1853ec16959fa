"""A model that processes share is loaded without being whole in any of them, and is the one that is loaded whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alphapo_cli.modeling.adapters import handled_by_us
from tests import tiny
from tests.training.test_sharded import run_script

FORMS: dict[str, Callable[[Any, Path], None]] = {
    "one file": lambda lm, folder: lm.save_pretrained(folder),
    "several files": lambda lm, folder: lm.save_pretrained(folder, max_shard_size="20KB"),
    "bfloat16": lambda lm, folder: lm.to(torch.bfloat16).save_pretrained(folder),
    "pytorch_model.bin": lambda lm, folder: _as_bin(lm, folder),
    "an adapter": lambda lm, folder: _as_adapter(lm, folder),
}
FAMILIES = ("llama", "llama tied", "gemma2, soft-capped", "qwen3", "qwen3 moe")


def _as_bin(lm: Any, folder: Path) -> None:
    """As before safetensors: tied weights are in the file twice."""
    lm.config.save_pretrained(folder)
    lm.generation_config.save_pretrained(folder)
    torch.save(lm.state_dict(), folder / "pytorch_model.bin")


def _as_adapter(lm: Any, folder: Path) -> None:
    """An adapter of every linear layer and of the embeddings, which merging unties."""
    from peft import LoraConfig, get_peft_model

    base = folder.with_name(f"{folder.name}-base")
    lm.save_pretrained(base)
    with handled_by_us():
        adapted = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj", "o_proj", "embed_tokens"]))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    adapted.save_pretrained(folder, save_embedding_layers=False)


def shared(folder: Path, *names: str) -> list[dict[str, Any]]:
    """What each of two processes reports of loading models together."""
    run_script("sharded_loading.py", str(folder), *names, folder=folder, seconds=1200)
    return [json.loads((folder / f"loaded-{rank}.json").read_text()) for rank in (0, 1)]


def named(family: str, form: str) -> str:
    return f"{family}-{form}".replace(" ", "_").replace(",", "")


CHOSEN = [
    ("llama", "several files"),
    ("llama tied", "pytorch_model.bin"),
    ("gemma2, soft-capped", "bfloat16"),
    ("qwen3", "an adapter"),
    ("qwen3 moe", "one file"),
]


def assert_same(ranks: list[dict[str, Any]], cases: list[tuple[str, str]]) -> None:
    for rank in ranks:
        for name in (named(family, form) for family, form in cases):
            found = rank[name]
            assert found["others"] == found["buffers"] == found["in memory"] == [], (name, found)
            assert found["settings"] == [True, True], name
            assert found["finite"], name
            assert found["hashes"][0] == found["hashes"][1], name


def saved(folder: Path, cases: list[tuple[str, str]]) -> list[str]:
    for family, form in cases:
        FORMS[form](tiny.model(family), folder / named(family, form))
    return [named(family, form) for family, form in cases]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A directory of models, and what two processes report of them: as they were chosen, and two with broken files."""
    folder = tmp_path_factory.mktemp("models")
    names = saved(folder, CHOSEN)
    for name in ("damaged", "short"):
        tiny.model().save_pretrained(folder / name)
    (folder / "BREAK-damaged").write_text(str(folder / "damaged" / "model.safetensors"))
    short = folder / "short" / "model.safetensors"
    short.write_bytes(short.read_bytes()[:5000])
    return folder, shared(folder, *names, "damaged", "short")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_shards_are_those_of_the_model_loaded_whole(together: tuple[Path, list[dict[str, Any]]]) -> None:
    assert_same(together[1], CHOSEN)


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_every_family_in_every_form(tmp_path: Path) -> None:
    cases = [(family, form) for family in FAMILIES for form in FORMS]
    assert_same(shared(tmp_path, *saved(tmp_path, cases)), cases)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_file_that_breaks_while_it_is_read_ends_both_in_one_line(
    together: tuple[Path, list[dict[str, Any]]],
) -> None:
    """It was whole when it was opened; the processes have shards by then, and wait for one another."""
    folder, ranks = together
    for rank in ranks:
        damaged, short = rank["damaged"]["error"], rank["short"]["error"]
        assert f"{folder / 'damaged' / 'model.safetensors'}: the weight " in damaged
        assert "cannot be read" in damaged
        assert "copy the model's directory whole" in damaged
        assert f"model.path={folder / 'short'}" in short
        assert "copy its directory whole" in short
        assert "\n" not in damaged + short


@pytest.mark.nightly
def test_no_process_holds_the_whole_model(tmp_path: Path) -> None:
    """Tensor bytes, of a model whose largest tensor is below a tenth: shards, and one tensor; also of bfloat16."""
    names = ("float32", "bfloat16")
    for name in names:
        lm = tiny.model(num_hidden_layers=12, hidden_size=64, intermediate_size=160)
        sizes = [p.numel() * p.element_size() for p in lm.parameters()]
        lm.to(getattr(torch, name)).save_pretrained(tmp_path / name)
    assert max(sizes) < sum(sizes) / 10
    first, second = shared(tmp_path, *names)
    for name in names:
        for rank in (first[name], second[name]):
            assert sum(sizes) / 2 <= rank["most"] <= 0.6 * sum(sizes), (name, first, second)
            assert rank["held"] <= 0.51 * sum(sizes)
        assert first[name]["hashes"] == second[name]["hashes"]
