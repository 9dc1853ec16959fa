"""The code of a model's directory runs only where the line says so, whatever a stored configuration says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alphapo_cli.config.compose import compose, to_yaml
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import TrainConfig
from tests import tiny as small
from tests.conftest import Ran

ANSWERS = ("generation.backend=transformers", "data.limit=2", "generation.max_new_tokens=2")
TYPED = "model.trust_remote_code=true"
DATA = ("measure", "inspect")
# Every setting and argument that takes a run directory; "{run}" is the run, "{model}" another model.
LINES = {
    "generate": ("generate", "{run}", "data=jsonl", "data.path={prompts}", *ANSWERS),
    "train": ("train", "model.path={run}"),
    "run": ("run", "model.path={run}", "prompts=glassbox", "generation=transformers"),
    "sweep": ("sweep", "model.path={run}", "seed=0,1", "launcher.workers=0"),
    "reference": ("train", "model.path={model}", "objective=dpo", "model.reference={run}"),
    "guide": ("train", "model.path={model}", "objective=tgdpo", "model.guide={run}"),
}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A folder with a small model and data."""
    return small.saved_start(tmp_path / "start", 12, 4)


@pytest.fixture
def hostile(start: Path, tmp_path: Path) -> Path:
    """A run as somebody may have made it: its settings consent, its model needs code of its own."""
    run, sources = tmp_path / "hostile", Sources()
    cfg = compose("train", TrainConfig, [read_line([*small.line_from(start), TYPED], sources)], sources)
    assert cfg.model.trust_remote_code
    shutil.copytree(start / "model", run / "model")
    (run / "config.yaml").write_text(to_yaml(cfg))
    (run / "manifest.json").write_text(json.dumps({"made_by": "alphapo"}))
    (run / "prompts.json").write_text(json.dumps([{"prompt": "a", "ids": [1]}]))
    (run / "summary.json").write_text(json.dumps({"state": "complete", "step": 1}))
    settings = json.loads((run / "model" / "config.json").read_text())
    settings |= {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"}
    (run / "model" / "config.json").write_text(json.dumps(settings))
    (run / "model" / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    return run


@pytest.fixture
def line(start: Path, hostile: Path) -> Callable[[str], list[str]]:
    """The words of one of LINES."""
    common = [word for word in small.line_from(start) if not word.startswith("model.path=")]
    names = {"run": hostile, "model": start / "model", "prompts": start / "eval.jsonl"}

    def words(command: str) -> list[str]:
        own = [word.format(**names) for word in LINES[command]]
        return own if command == "generate" else [*own, *common]

    return words


@pytest.mark.parametrize("command", LINES)
def test_stored_consent_counts_for_nothing(
    command: str, line: Callable[[str], list[str]], alphapo: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = alphapo(*line(command))
    assert ran.code in (1, 2), ran.err
    assert not (tmp_path / "ran").exists()
    assert f"type {TYPED}" in ran.err, ran.err


def test_typed_consent_does(line: Callable[[str], list[str]], alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    """So that what the others show is not another fault of the directory."""
    alphapo(*line("generate"), TYPED)
    assert (tmp_path / "ran").exists()


def test_a_judge_that_is_a_run(hostile: Path, alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    """Without vLLM it is refused before that; with it, its code is not run either."""
    rows = [{"instruction": "a", "output": "b", "generator": "g"}]
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    line = ("eval", "one.json", "--reference", "two.json", "--judge", "vllm", f"judge.model={hostile}")
    assert alphapo(*line).code in (1, 2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("measure", "{run}"), TYPED),
        (("measure", "{model}", "--start", "{run}"), TYPED),
        (("inspect", "model.path={run}"), TYPED),
        (("chat", "{run}"), TYPED),
        (("export", "{run}", "--to", "out"), "--trust-remote-code"),
        (("export", "{run}", "--to", "out", "--dtype", "bfloat16"), "--trust-remote-code"),
        (("score", "answers.jsonl", "scorer=reward_model", "scorer.model={run}"), "scorer.trust_remote_code=true"),
        (("score", "answers.jsonl", "scorer=logprob", "scorer.model={run}"), "scorer.trust_remote_code=true"),
    ],
)
def test_stored_consent_counts_for_no_other_command(
    words: tuple[str, ...], said: str, start: Path, hostile: Path, alphapo: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["b"]}) + "\n")
    data = [word for word in small.line_from(start) if word.startswith("data")] if words[0] in DATA else []
    ran = alphapo(*(word.format(run=hostile, model=start / "model") for word in words), *data)
    assert ran.code == 2, ran.err
    assert not (tmp_path / "ran").exists()
    assert f"type {said}" in ran.err, ran.err


def test_a_recipe_consents_to_nothing(alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "own" / "pairs").mkdir(parents=True)
    (tmp_path / "own" / "pairs" / "mine.yaml").write_text(
        "# @package _global_\nrecipe: mine\nscorers: {x: {name: reward_model, model: /m, trust_remote_code: true}}\n"
    )
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "a", "responses": ["b", "c"]}) + "\n")
    line = ("pairs", "--answers", "answers.jsonl", "recipe=mine", "--config-dir", "own")
    assert "scorers.x.trust_remote_code: code that runs is named on the command line" in alphapo(*line).fault
    assert "no such directory" in alphapo(*line, "scorers.x.trust_remote_code=true").fault
