"""answers.jsonl: what was sampled, and that more answers to a prompt are added to those that exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ran
from tests.generation.generate_world import load, outputs

HERE = ("generate", "generation=transformers", "data.limit=4", "generation.max_new_tokens=12")
Alphapo = Callable[..., Ran]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_kept_as_they_were_sampled(alphapo: Alphapo) -> None:
    """The oracle of log-probs: one plain forward pass of transformers per answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ran = alphapo(*HERE, "generation.samples=2", "generation.temperature=0.7", "generation.top_k=5")
    assert ran.code == 0, ran.err
    folder = load(ran.path / "manifest.json")["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    prompts = {row["prompt"]: row for row in lines(ran.path / "prompts.jsonl")}
    answers = lines(ran.path / "answers.jsonl")
    assert [row["instruction"] for row in prompts.values()] == [
        row["instruction"] for row in load(ran.path / "model_outputs.json")
    ]
    assert [row["number"] for row in answers] == [0, 1] * 4
    assert len({row["seed"] for row in answers}) == 8
    for number, name in enumerate(("model_outputs.json", "model_outputs-1.json")):
        own = [row for row in answers if row["number"] == number]
        assert [row["output"] for row in own] == outputs(ran.path, name)
        assert [tokenizer.decode(row["ids"], skip_special_tokens=True) for row in own] == outputs(ran.path, name)
    for row in answers:
        start = prompts[row["prompt"]]["ids"]
        ids = row["ids"] + ([] if row["cut"] else [tokenizer.eos_token_id])
        with torch.no_grad():
            logits = model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].double()
        token = torch.tensor(ids)[:, None]
        # Twelve float32 log-probs of size 10 at most, from logits that batching moves by a few units in the last place.
        assert row["logprob"] == pytest.approx(float(logits.log_softmax(-1).gather(1, token).sum()), abs=1e-3)
        kept = logits.topk(5).indices
        assert bool((kept == token).any(1).all()), "every token is one of the five likeliest"


@pytest.mark.parametrize("place", ["by its name", "in the same --out"])
def test_more_answers_are_added_to_those_that_exist(place: str, alphapo: Alphapo, tmp_path: Path) -> None:
    fresh = alphapo(*HERE, "generation.samples=3", "run.dir=elsewhere").path
    out = () if place == "by its name" else ("--out", str(tmp_path / "out"))
    two = alphapo(*HERE, "generation.samples=2", *out)
    assert two.code == 0, two.err
    three = alphapo(*HERE, "generation.samples=3", *out)
    assert three.code == 0, three.err
    assert (three.path == two.path) == (place != "by its name")
    summary = load(three.path / "summary.json")
    assert (summary["metrics"]["answers"], summary["cost"]["answers_from_earlier_starts"]) == (12, 8)
    for name in ("model_outputs.json", "model_outputs-1.json", "model_outputs-2.json"):
        assert outputs(three.path, name) == outputs(fresh, name)
    assert "complete" in alphapo(*HERE, "generation.samples=3", *out).out
    if place != "by its name":
        fewer = alphapo(*HERE, "generation.samples=2", *out)
        assert fewer.code == 2
        assert "differs in: generation.samples" in fewer.fault


def test_the_likeliest_token_alone_is_the_greedy_answer(alphapo: Alphapo) -> None:
    greedy = alphapo(*HERE, "generation.temperature=0").path
    assert outputs(alphapo(*HERE, "generation.top_k=1").path) == outputs(greedy)


def test_answers_that_have_changed_are_not_added_to(alphapo: Alphapo, tmp_path: Path) -> None:
    fresh = alphapo(*HERE, "generation.samples=3", "run.dir=elsewhere").path
    out = ("--out", str(tmp_path / "out"))
    two = alphapo(*HERE, "generation.samples=2", *out)
    assert two.code == 0, two.err
    rows = lines(two.path / "answers.jsonl")
    rows[0]["ids"][0] ^= 1
    (two.path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    three = alphapo(*HERE, "generation.samples=3", *out)
    assert three.code == 0, three.err
    assert "answers.jsonl" in three.err
    assert "its answers are generated again" in three.err
    for name in ("model_outputs.json", "model_outputs-1.json", "model_outputs-2.json"):
        assert outputs(three.path, name) == outputs(fresh, name)
