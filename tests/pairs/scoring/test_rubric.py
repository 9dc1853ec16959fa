"""scorer=rubric: a judge's text as one number, against a real OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.pairs.scoring.rubric import read_number
from tests.conftest import Ran, write_rows
from tests.evaluation.judge_server import Answer, Server, serve

Alphapo = Callable[..., Ran]
# What the judge says of each answer, why its text ended, and the number that is in it.
SAID: dict[str, tuple[str, str, float | None]] = {
    "alone": ("7\n", "stop", 7.0),
    "brackets": ("It does what was asked.\n\n[[8.5]]", "stop", 8.5),
    "thoughts": ("<think>a 3, no</think>6", "stop", 6.0),
    "words": ("I would say 7 of 10", "stop", None),
    "two": ("[[3]] or [[4]]", "stop", None),
    "outside": ("11", "stop", None),
    "cut": ("9", "length", None),
}
ROWS = [{"prompt": "Say {output}.", "responses": list(SAID)}]


def said(text: str, finish: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Answer(body={"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 5}})


def judge(server: Server) -> tuple[str, ...]:
    return (
        "scorer=rubric",
        "judge=openai",
        "judge.model=a-judge",
        f"judge.base_url={server.url}",
        "judge.api_key_env=null",
    )


def of_answer(number: int, body: dict[str, Any]) -> Answer:
    shown = body["messages"][-1]["content"].partition("<answer>\n")[2].partition("\n</answer>")[0]
    text, finish, _ = SAID[shown]
    return said(text, finish if body["max_tokens"] < 600 else "stop")


def scores(folder: Path) -> dict[str, float | None]:
    return {row["output"]: row["rubric"] for row in map(json.loads, (folder / "scores.jsonl").read_text().splitlines())}


def test_answers_get_the_number_that_the_judge_writes_and_those_without_one_are_counted(
    alphapo: Alphapo, tmp_path: Path
) -> None:
    file = str(write_rows(tmp_path / "rows.jsonl", ROWS))
    with serve(of_answer) as server:
        ran = alphapo("score", file, *judge(server))
        assert ran.code == 0, ran.err
        assert scores(ran.path) == {name: value for name, (_, _, value) in SAID.items()}
        for words in ("4 of 7 texts", "1 x no number", "1 x several numbers", "1 x outside 1 to 10", "1 x cut at"):
            assert words in ran.err
        assert json.loads((ran.path / "summary.json").read_text())["metrics"]["not_scored"] == 4
        assert len(server.seen) == 7
        _, _, body = server.seen[0]
        assert (body["temperature"], body["max_tokens"], "logprobs" in body) == (0.0, 512, False)
        assert all("Say {output}." in question for question in server.questions()), "a place in a prompt is text"
        # Nothing is asked twice; a larger limit asks again for what was cut.
        assert alphapo("score", file, *judge(server), "--out", "again").code == 0
        assert len(server.seen) == 7
        longer = alphapo("score", file, *judge(server), "judge.max_tokens=600")
        assert scores(longer.path)["cut"] == 9.0
        assert len(server.seen) == 8
        paired = alphapo("pairs", "--answers", file, *judge(server))
        assert [row["chosen"] for row in map(json.loads, (paired.path / "pairs.jsonl").read_text().splitlines())] == [
            "brackets"
        ]


def test_a_judge_that_writes_no_number_is_not_paid_for_the_rest(alphapo: Alphapo, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}.", "responses": ["a", "b"]} for n in range(20)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    with serve(lambda number, body: said("fine")) as server:
        ran = alphapo("score", file, *judge(server))
        assert ran.code == 1
        assert (
            "12 of 40 texts of the judge a-judge hold no number (12 x no number; the first ends with 'fine')" in ran.err
        )
        assert "the other 28 were not asked for" in ran.err
        assert len(server.seen) == 12


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scorer=rubric", "judge=glassbox: writes no text; type judge=openai or judge=vllm"),
        ("scorer=rubric judge=openai scorer.scale=[3,1]", "scorer.scale=[3.0, 1.0]: give the lowest"),
        ("scorer=rubric judge=openai judge.prompt_file=p.txt", "the template of a rubric lacks {output}"),
        ("scorer=judge scorer.aggregate=tournament", "type win_probability or rubric"),
    ],
)
def test_a_rubric_that_makes_no_sense_is_refused(line: str, words: str, alphapo: Alphapo, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Grade {instruction} from 1 to 10.")
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    ran = alphapo("score", str(file), *line.split())
    assert ran.code == 2
    assert words in ran.fault


def test_numbers_are_read_strictly() -> None:
    read = [
        read_number(text, (0.0, 6.0))
        for text in ("5", " 5.50 ", "-0", "+3", "5/6", "5.", "five", "[[ 5 ]]", "[[5]] [[5]]", "")
    ]
    assert read == [5.0, 5.5, 0.0, 3.0, *["no number"] * 3, 5.0, 5.0, "no number"]
