"""`alphapo run` and `sweep` on data of one's own: their held-out prompts, a judge for them, and the notes of generation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BARE, SCRATCH, Ran
from tests.evaluation.judge_server import judged, serve
from tests.generation.generate_world import chat_model, load

Alphapo = Callable[..., Ran]
OPENAI = ("judge=openai", "judge.model=a-judge", "judge.api_key_env=null", "judge.attempts=1", "judge.wait=0")
CUT = re.compile(r"(\d+) of \1 answers are cut by the limit of 2 tokens")


@pytest.fixture
def line(tmp_path: Path, pairs: dict[str, Path]) -> tuple[str, ...]:
    # An answer of two tokens is cut; weights large enough that its end token never comes by chance.
    model = chat_model(tmp_path / "model", num_hidden_layers=1, max_position_embeddings=512)
    return (
        *SCRATCH, *BARE, "model=glassbox", f"model.path={model}", "data=jsonl", f"data.path={pairs['plain']}",
        "data.max_unknown=1", "probe.samples=0", "generation=transformers", "generation.max_new_tokens=2",
        "statistics.bootstrap=10",
    )  # fmt: skip


def instructions(folder: str) -> list[str]:
    return [row["instruction"] for row in load(Path(folder) / "model_outputs.json")]


@pytest.mark.slow
def test_a_run_answers_its_held_out_prompts_and_says_what_generate_says(
    line: tuple[str, ...], alphapo: Alphapo, pairs: dict[str, Path]
) -> None:
    with serve(lambda number, body: judged()) as server:
        ran = alphapo("run", *line, *OPENAI, f"judge.base_url={server.url}")
    assert ran.code == 0, ran.err
    outcome = load(ran.path / "outcome.json")
    assert "eval/true_win_rate" not in outcome["metrics"]
    asked = instructions(outcome["generate"])
    rows = [json.loads(row) for row in pairs["plain"].read_text().splitlines()]
    report = load(ran.path / "summary.json")["data"]
    assert 0 < len(asked) <= report["probe_pairs"] == len(rows) - report["train_pairs"]
    assert set(asked) <= {row["prompt"] for row in rows}
    first = {json.dumps(row["prompt"]) for row in load(ran.path / "prompts.json")}
    assert not first & {json.dumps(text) for text in asked}  # prompts.json has the first that were trained on
    assert "held-out prompts of" in load(Path(outcome["generate"]) / "summary.json")["source"]
    assert (
        len(re.findall(f"alphapo: warning: {CUT.pattern}", ran.err)) == 2
    )  # of the run, and of the model that it started from
    assert any(CUT.match(note) for note in outcome["notes"])


def test_a_true_reward_is_known_in_the_embedded_world_only(
    line: tuple[str, ...], alphapo: Alphapo, tmp_path: Path
) -> None:
    ran = alphapo("run", *line)
    assert (ran.code, ran.out) == (2, "")
    assert "a true reward (judge=glassbox) is known for the embedded world's prompts only" in ran.fault
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_says_it_once(line: tuple[str, ...], alphapo: Alphapo) -> None:
    with serve(lambda number, body: judged()) as server:
        ran = alphapo("sweep", "seed=0,1", *line, "launcher.workers=0", *OPENAI, f"judge.base_url={server.url}")
    assert ran.code == 0, ran.err
    lines = ran.err.splitlines()
    assert sum(text.startswith("note: ") and CUT.search(text) is not None for text in lines) == 1
    outcomes = [load(path) for path in ran.path.glob("cells/*/outcome.json")]
    assert len({tuple(instructions(outcome["generate"])) for outcome in outcomes}) == 1
