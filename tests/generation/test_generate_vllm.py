"""`alphapo generate` by the real vLLM: the same answers as transformers, as a merged model, and after an interruption."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alphapo_cli.data.glassbox import world
from tests.conftest import Ran, engines_of, run_here
from tests.fork_server import Server
from tests.generation.generate_world import load, merge, outputs, train_lora

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
GREEDY = "generation.temperature=0"


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, vllm_server: Server) -> dict[str, Path]:
    """Greedy generations to the world's 256 prompts by "backend model": model lora, merged or base."""
    folder = tmp_path_factory.mktemp("greedy")
    lora = train_lora(folder, shared_cache)
    merged = [str(merge(lora, folder / "merged")), "data=glassbox"]
    models = {"lora": [str(lora)], "merged": merged, "base": []}
    wanted = ["vllm lora", "vllm merged", "transformers lora", "transformers merged", "transformers base"]
    made = {}
    for name in wanted:
        backend, model = name.split()
        line = ("generate", *models[model], f"generation={backend}", GREEDY, "--out", str(folder / name))
        with engines_of(vllm_server):
            ran = run_here(line, folder, shared_cache)
        assert ran.code == 0, ran.err
        made[name] = ran.path
    return made


def agreement(a: Path, b: Path) -> float:
    """Share of equal answers."""
    one, two = load(a / "model_outputs.json"), load(b / "model_outputs.json")
    assert [row["instruction"] for row in one] == [row["instruction"] for row in two] == world.instructions(256)
    return sum(x["output"] == y["output"] for x, y in zip(one, two, strict=True)) / len(one)


@pytest.mark.parametrize("model", ["lora", "merged"])
def test_both_backends_are_given_the_same_ids_and_answer_alike(greedy: dict[str, Path], model: str) -> None:
    ours, theirs = greedy[f"vllm {model}"], greedy[f"transformers {model}"]
    assert load(ours / "summary.json")["backend"] == "vllm"
    prompts = [load(path / "manifest.json")["identity"]["prompts"] for path in (ours, theirs)]
    assert prompts[0] == prompts[1]  # a hash of every prompt's ids, which the engine reported back unchanged
    # float32 on both sides: only where two tokens are tied to round-off may the answers part.
    assert agreement(ours, theirs) >= 0.95
    assert load(ours / "summary.json")["metrics"]["mean_length"] == pytest.approx(
        load(theirs / "summary.json")["metrics"]["mean_length"], rel=0.02
    )


def test_both_backends_record_the_same_log_probs(greedy: dict[str, Path]) -> None:
    """Of the model itself: a temperature of 0 makes no log-prob 0."""
    ours, theirs = (
        [json.loads(line) for line in (greedy[f"{backend} merged"] / "answers.jsonl").read_text().splitlines()]
        for backend in ("vllm", "transformers")
    )
    alike = [(a["logprob"], b["logprob"]) for a, b in zip(ours, theirs, strict=True) if a["ids"] == b["ids"]]
    assert len(alike) >= 0.95 * len(ours)
    # Some twelve float32 log-probs each, from logits that batching moves by a few units in the last place.
    assert [a for a, _ in alike] == pytest.approx([b for _, b in alike], abs=1e-3)
    assert max(b for _, b in alike) < -1e-3


@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_an_adapter_answers_as_its_merged_model(greedy: dict[str, Path], backend: str) -> None:
    # x W + x A B against x (W + A B): equal up to float32 round-off, so up to ties as above.
    assert agreement(greedy[f"{backend} lora"], greedy[f"{backend} merged"]) >= 0.99
    assert agreement(greedy[f"{backend} lora"], greedy["transformers base"]) < 0.9, "the adapter must matter"


@pytest.mark.usefixtures("warm_engines")
def test_seeded_answers_depend_neither_on_the_batch_nor_on_an_interruption(
    alphapo: Callable[..., Ran], interrupt: Callable[..., None], tmp_path: Path
) -> None:
    """1,024 seeded answers at once (more prompt tokens than one step takes in), against 8 at once and a second start."""
    line = ("generate", "generation=vllm", "generation.samples=4", "generation.top_p=0.9", "seed=3", "--out")
    at_once = "generation.vllm.max_num_seqs={}"
    whole = alphapo(*line, str(tmp_path / "whole"), at_once.format(1024))
    assert whole.code == 0, whole.err
    out = tmp_path / "stopped"
    partial = out / "partial.jsonl"
    interrupt(lambda: partial.is_file() and partial.read_bytes().count(b"\n") >= 20)
    stopped = alphapo(*line, str(out), at_once.format(8))
    assert stopped.code == 130, stopped.err
    kept = partial.read_bytes().count(b"\n")
    assert 20 <= kept < 1024
    again = alphapo(*line, str(out))
    assert again.code == 0, again.err
    assert load(out / "summary.json")["cost"]["answers_from_earlier_starts"] == kept
    names = ["model_outputs.json", *(f"model_outputs-{k}.json" for k in (1, 2, 3))]
    parts = [(outputs(tmp_path / "whole", name), outputs(out, name)) for name in names]
    differing = sum(a != b for one, two in parts for a, b in zip(one, two, strict=True))
    # Batches differ in round-off, which can turn a draw only where it is tied to about 1e-6: 10 tokens x 1,024 answers
    # x 1e-6 is a hundredth of an answer.
    assert differing <= 1
    assert parts[0][0] != parts[1][0], "samples are different draws"
