"""A judge some of whose answers are odd: what is good is kept and paid for once, what is odd is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.eval_world import Case, alphapo, load
from tests.evaluation.judge_server import Answer, judged, serve

N = 200


def body(**changes: Any) -> dict[str, Any]:
    """A good answer's body, with parts of its choice or of itself replaced."""
    made = json.loads(json.dumps(judged().body))
    for key, value in changes.items():
        if key in made:
            made[key] = value
        else:
            made["choices"][0][key] = value
    return made


def top(*entries: Any) -> Answer:
    return Answer(body=body(logprobs={"content": [{"token": "m", "logprob": -0.1, "top_logprobs": list(entries)}]}))


def raw(text: str, **headers: str) -> Answer:
    return Answer(text=text, headers=headers)


GOOD = {"token": "M", "logprob": -1.8, "bytes": None}
DIGITS = "9" * 400
TEXT = json.dumps(judged().body)
# What was seen of servers and proxies, and what a hostile one may send; each is one answer of HTTP 200.
ODD: tuple[Callable[[], Answer], ...] = (
    lambda: top({"token": "\ud800", "logprob": -0.1}),  # half a character, as an emoji begins
    lambda: raw(TEXT.replace("-0.2", f"-1{'0' * 400}")),
    lambda: raw(TEXT.replace("-0.2", "NaN")),
    lambda: top({"token": "m", "logprob": 0.7, "bytes": None}, GOOD),
    lambda: top({"token": "m", "logprob": "-0.2", "bytes": None}, GOOD),
    lambda: top({"token": "m", "logprob": None, "bytes": None}),
    lambda: top({"token": 7, "logprob": -0.2}),
    lambda: top("m"),
    lambda: top(),
    lambda: Answer(body=body(logprobs=None)),
    lambda: Answer(body=body(logprobs={"content": None})),
    lambda: Answer(body=body(logprobs=[1, 2])),
    lambda: Answer(body=body(choices=[])),
    lambda: Answer(body=body(choices={"0": 1})),
    lambda: Answer(body=[1, 2, 3]),
    lambda: raw("null"),
    lambda: raw(""),
    lambda: raw("<html>busy</html>"),
    lambda: raw("[" * 100_000),
    lambda: raw(TEXT[: len(TEXT) // 2]),
)
# Odd, and none of the verdict's business: such an answer may count as good or fail, and ends nothing.
HARMLESS: tuple[Callable[[], Answer], ...] = (
    lambda: raw(TEXT.replace('"total_tokens": 101', f'"total_tokens": {DIGITS}')),
    lambda: Answer(body=body(usage="much")),
    lambda: Answer(body=body(usage=None)),
    lambda: Answer(body=judged().body, headers={"Content-Type": "application/json; charset=klingon"}),
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge(case: Case, url: str) -> int:
    return alphapo(
        "eval", case.outputs, "--reference", case.reference, "--judge", "openai", f"judge.base_url={url}",
        "judge.model=a-judge", "judge.wait=0.01", "judge.timeout=5", "judge.concurrency=8",
        "statistics.bootstrap=20", "--out", case.out,
    )  # fmt: skip


def number_of(request: dict[str, Any]) -> int:
    found = re.search(r"Question (\d+): why\?", request["messages"][-1]["content"])
    assert found
    return int(found[1])


def kept(case: Case) -> set[int]:
    """Rows of the journal that have a verdict."""
    rows = [json.loads(line) for line in (case.out / "judgements.jsonl").read_text().splitlines()]
    return {row["row"] for row in rows if "top_logprobs" in row}


@pytest.mark.slow
def test_two_hundred_answers_of_which_every_tenth_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path, n=N)
    odd = {i for i in range(N) if i % 10 == 3}
    assert len(odd) == len(ODD)

    recovered: list[bool] = []

    def answer(number: int, request: dict[str, Any]) -> Answer:
        i = number_of(request)
        return ODD[i // 10]() if i in odd and not recovered else judged()

    with serve(answer) as server:
        assert judge(case, server.url) == 1
        said = capsys.readouterr().err
        good = len(kept(case))
        assert N - len(odd) <= good < N
        assert "Traceback" not in said
        last = said.splitlines()[-1]
        assert f"{N - good} of {N}" in last or str(N - good) in last
        assert "same" in last or "again" in last
        recovered.append(True)
        before = len(server.seen)
        assert judge(case, server.url) == 0
        asked = {number_of(request) for _, _, request in server.seen[before:]}
    assert len(asked) == N - good
    assert asked <= odd
    assert load(case.out / "results.json")["n_total"] == N


@pytest.mark.slow
@pytest.mark.parametrize("form", range(len(HARMLESS)))
def test_what_is_odd_beside_the_verdict_ends_nothing(form: int, tmp_path: Path) -> None:
    case = Case(tmp_path, n=10)

    def answer(number: int, request: dict[str, Any]) -> Answer:
        return HARMLESS[form]() if number_of(request) == 3 else judged()

    with serve(answer) as server:
        assert judge(case, server.url) in (0, 1)
    assert len(kept(case)) >= 9
