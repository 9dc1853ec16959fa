"""Lines that can be typed next, for runs on any data."""

from __future__ import annotations

import pytest
import yaml

from alphapo_cli.cli.next_lines import generate_line
from alphapo_cli.cli.train import places


@pytest.mark.parametrize(
    ("data", "typed"),
    [
        ({"source": "glassbox"}, ""),
        ({"source": "files", "path": "a.jsonl", "split": "train"}, " data=jsonl data.path=a.jsonl data.limit=16"),
        (
            {"source": "files", "path": "a.jsonl", "eval_path": "held out.jsonl"},
            " data=jsonl 'data.path=held out.jsonl' data.limit=16",
        ),
        ({"source": "files", "path": ["a", "b"]}, " data=jsonl 'data.path=[a,b]' data.limit=16"),
        (
            {"source": "hub", "name": "me/pairs", "split": "train", "eval_split": "test"},
            " data=hub data.name=me/pairs data.split=test data.limit=16",
        ),
        ({"source": "hub", "name": "me/pairs", "path": "copy"}, " data=jsonl data.path=copy data.limit=16"),
    ],
)
def test_the_prompts_are_named_wherever_they_would_be_asked_for(data, typed, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    (tmp_path / "summary.json").write_text("{}")
    assert generate_line(tmp_path) == f"alphapo generate {tmp_path}{typed}"


def test_of_a_model_they_are_the_users(tmp_path):
    assert generate_line(None) == "alphapo generate"
    assert generate_line("my-model") == "alphapo generate my-model data=jsonl data.path=PROMPTS.jsonl"


@pytest.mark.parametrize(("source", "judge"), [("glassbox", False), ("files", True)])
def test_a_training_names_a_judge_where_the_embedded_worlds_cannot_judge(source, judge, tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    for name in ("step-4.json", "reference.json"):
        (tmp_path / "samples" / name).write_text("[]")
    (tmp_path / "config.yaml").write_text(f"data: {{source: {source}, path: pairs.jsonl}}\n")
    places(tmp_path, {"step": 4})
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("next: alphapo eval "))
    assert (" --judge vllm judge.model=JUDGE  # " in line) is judge
