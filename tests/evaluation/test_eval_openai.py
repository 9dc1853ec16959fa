"""An endpoint as a judge, against a real HTTP server: what is paid for is kept, what fails is said, nothing leaks."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.eval_world import ROOT, Case, alphapo, load, one_line, write
from tests.evaluation.judge_server import Answer, Server, error, judged, serve

KEY = "sk-secret-4f0d9c"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, n=12)


def judge(case: Case, url: str, *more: str) -> int:
    return alphapo(
        "eval", case.outputs, "--reference", case.reference, "--judge", "openai", f"judge.base_url={url}",
        "judge.model=a-judge", "judge.wait=0.01", "judge.timeout=5", "judge.concurrency=3", "statistics.bootstrap=50",
        "--out", case.out, *more
    )  # fmt: skip


def journal(case: Case) -> list[dict[str, Any]]:
    lines = (case.out / "judgements.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def asked_about(server: Server) -> list[int]:
    """The number of the instruction of each request."""
    found = [re.search(r"Question (\d+): why\?", text) for text in server.questions()]
    return [int(match.group(1)) for match in found if match]


def test_judges_every_pair_by_the_protocol(case: Case) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        return judged(-0.1, -2.5)

    with serve(answer) as server:
        assert judge(case, server.url) == 0
    assert sorted(asked_about(server)) == list(range(12))
    mass = pytest.approx(math.exp(-0.1) + math.exp(-2.5))
    assert case.results()["judging"] == {
        "requests": 12, "failed": 0, "without_verdict": 0, "tokens": 12 * 101, "cost_usd": None,
        "verdict_mass": {"median": mass, "lowest": mass, "share_below_half": 0.0},
    }  # fmt: skip
    body = server.seen[0][2]
    assert {k: body[k] for k in ("model", "max_tokens", "logprobs", "top_logprobs", "temperature", "top_p")} == {
        "model": "a-judge", "max_tokens": 1, "logprobs": True, "top_logprobs": 5, "temperature": 1.0, "top_p": 1
    }  # fmt: skip
    p = math.exp(-0.1) / (math.exp(-0.1) + math.exp(-2.5))
    for row in load(case.out / "annotations.json"):
        # AlpacaEval's coin; the judge always likes the first one shown.
        coin = random.Random("is_switched_outputs" + row["instruction"] + "0").choices([False, True], k=1)[0]
        assert row["preference"] == pytest.approx(1 + p if coin else 2 - p, abs=1e-12)
        text = next(q for q in server.questions() if row["instruction"] in q)
        assert (text.index(row["output_2"]) < text.index(row["output_1"])) == coin


@pytest.mark.slow
def test_both_orders_cancel_a_judge_that_likes_the_first(case: Case) -> None:
    with serve(lambda number, body: judged(-0.1, -2.5)) as server:
        assert judge(case, server.url, "judge.both_orders=true") == 0
    assert len(server.seen) == 24
    assert all(row["preference"] == pytest.approx(1.5, abs=1e-12) for row in load(case.out / "annotations.json"))


def test_identical_outputs_are_a_draw_without_a_request(case: Case) -> None:
    rows = [dict(row) for row in case.rows]
    for k in (2, 7):
        rows[k]["output"] = case.reference_rows[k]["output"]
    write(case.outputs, rows)
    with serve(lambda number, body: judged()) as server:
        assert judge(case, server.url) == 0
    assert sorted(asked_about(server)) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    found = load(case.out / "annotations.json")
    assert [found[k]["preference"] for k in (2, 7)] == [1.5, 1.5]


def trouble(number: int, body: dict[str, Any]) -> Answer:
    """Each of the first requests meets another misfortune; every question succeeds in the end."""
    misfortunes = {
        0: error(429, "slow down"),
        1: error(500, "internal"),
        2: Answer(text='{"choices": [{"message"'),
        3: Answer(body={"choices": [{"message": {"content": "m"}}], "usage": {"prompt_tokens": 9}}),
        4: Answer(drop=True),
        5: error(503, "overloaded"),
        6: Answer(body={"choices": []}),
        7: Answer(text="<html>bad gateway</html>", status=502),
    }
    return misfortunes.get(number, judged())


@pytest.mark.slow
def test_every_misfortune_is_retried_until_it_succeeds(case: Case) -> None:
    with serve(trouble) as server:
        assert judge(case, server.url) == 0
    assert case.results()["n_total"] == 12
    assert len(server.seen) == 12 + 8
    assert sum("top_logprobs" in row for row in journal(case)) == 12


@pytest.mark.slow
def test_a_hang_is_given_up_and_asked_again(case: Case) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        good = judged()
        good.wait = 30.0 if number == 1 else 0.0
        return good

    began = time.monotonic()
    with serve(answer) as server:
        assert judge(case, server.url, "judge.timeout=0.5") == 0
    assert len(server.seen) == 13
    assert time.monotonic() - began < 15


@pytest.mark.slow
def test_retry_after_is_honoured_by_all_workers(case: Case) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        good = judged()
        good.wait = 0.4 if number in (1, 2) else 0.0  # under way when the refusal arrives
        return error(429, "slow down", {"Retry-After": "1"}) if number == 0 else good

    with serve(answer) as server:
        assert judge(case, server.url) == 0
    assert len(server.seen) == 13
    assert all(at - server.seen[0][0] >= 1.0 for at, _, _ in server.seen[3:])


def test_a_wait_longer_than_the_limit_fails_and_says_so(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        return error(429, "come back tomorrow", {"Retry-After": "86400"}) if number == 3 else judged()

    with serve(answer) as server:
        assert judge(case, server.url) == 1
    assert "asks to wait 86400 s" in capsys.readouterr().err
    assert len(journal(case)) == 11


@pytest.mark.slow
def test_failures_are_reported_and_the_same_line_asks_for_them_alone(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad_for_two(number: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        return error(500, "cannot think about that") if "Question 3:" in text or "Question 8:" in text else judged()

    with serve(bad_for_two) as server:
        assert judge(case, server.url, "judge.attempts=3") == 1
        first = capsys.readouterr()
        assert sorted(asked_about(server)) == sorted([*range(12), 3, 3, 8, 8])
    last = first.err.splitlines()[-1]
    assert "2 of 12 judgements failed (2 x HTTP 500: cannot think about that)" in last
    assert "10 of 12 judgements are kept" in last
    assert "same line" in last
    assert not (case.out / "results.json").exists()

    port = int(server.url.split(":")[2].split("/")[0])
    with serve(lambda number, body: judged(), port=port) as healed:
        assert judge(case, healed.url, "judge.attempts=3") == 0
    assert sorted(asked_about(healed)) == [3, 8]
    assert case.results()["n_total"] == 12
    assert case.results()["n_draws"] == 0


@pytest.mark.slow
def test_a_server_that_dies_half_way_loses_nothing_that_was_paid_for(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    servers: list[Server] = []

    def mortal(number: int, body: dict[str, Any]) -> Answer:
        if number >= 5:
            servers[0].httpd.socket.close()
            return Answer(drop=True)
        return judged()

    with serve(mortal) as server:
        servers.append(server)
        assert judge(case, server.url, "judge.attempts=2", "judge.concurrency=1") == 1
    assert "5 of 12 judgements are kept" in capsys.readouterr().err
    assert len(journal(case)) == 5
    port = int(server.url.split(":")[2].split("/")[0])
    with serve(lambda number, body: judged(), port=port) as again:
        assert judge(case, again.url, "judge.attempts=2", "judge.concurrency=1") == 0
    assert len(again.seen) == 7
    assert len({row["key"] for row in journal(case)}) == 12


def test_gives_up_on_a_server_that_only_fails(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = Case(tmp_path / "many", n=100)
    with serve(lambda number, body: error(500, "no")) as server:
        assert judge(many, server.url, "judge.attempts=1") == 1
    assert len(server.seen) < 30
    assert re.search(r"\d+ were not asked for: \d+ judgements in a row had failed", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (error(401, "who are you"), "HTTP 401: who are you"),
        (error(404, "the model `a-judge` does not exist"), "HTTP 404: the model `a-judge` does not exist"),
        (error(429, "buy more", type="insufficient_quota"), "HTTP 429: buy more"),
    ],
)
def test_what_no_request_can_survive_stops_at_once(
    case: Case, capsys: pytest.CaptureFixture[str], answer: Answer, reason: str
) -> None:
    with serve(lambda number, body: answer) as server:
        assert judge(case, server.url, "judge.concurrency=1") == 1
    assert len(server.seen) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_request_fails_alone_and_may_be_left_out(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    def too_long(number: int, body: dict[str, Any]) -> Answer:
        return error(400, "maximum context length") if "Question 4:" in body["messages"][-1]["content"] else judged()

    with serve(too_long) as server:
        assert judge(case, server.url) == 1
        assert len(server.seen) == 12  # not asked again
        assert "1 x HTTP 400: maximum context length" in capsys.readouterr().err
        assert judge(case, server.url, "judge.max_failed=1") == 0
    results = case.results()
    assert (results["n_total"], results["n_null"], results["n_draws"]) == (11, 1, 0)
    assert load(case.out / "annotations.json")[4]["preference"] is None


def test_answers_without_log_probs_are_not_paid_for_over_and_over(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = Answer(body={"choices": [{"message": {"content": "m"}}], "usage": {"prompt_tokens": 50}})
    with serve(lambda number, body: blind) as server:
        assert judge(case, server.url, "judge.price_input=10", "judge.price_output=10") == 1
    asked = asked_about(server)
    assert max(asked.count(k) for k in asked) == 3  # not judge.attempts=7
    assert len(set(asked)) < 12  # and it stops when nothing ever succeeds
    assert "without log-probs" in capsys.readouterr().err
    assert sum(row["price"] for row in journal(case)) == pytest.approx(len(asked) * 50 * 10 / 1e6)


def test_a_judge_that_names_neither_is_null_not_a_draw(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    def vague(number: int, body: dict[str, Any]) -> Answer:
        good = judged()
        if "Question 5:" in body["messages"][-1]["content"]:
            top = [{"token": "Both", "logprob": -0.1}]
            good.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = top
        return good

    with serve(vague) as server:
        assert judge(case, server.url) == 1
        assert "1 of 12 answers of the judge a-judge are no verdict" in capsys.readouterr().err
        assert judge(case, server.url, "judge.max_failed=1") == 0
        assert len(server.seen) == 12
    results = case.results()
    assert (results["n_total"], results["n_null"], results["n_draws"]) == (11, 1, 0)


def test_a_judge_that_never_names_either_is_an_error(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    wordy = judged()
    wordy.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [{"token": "The", "logprob": -0.1}]
    with serve(lambda number, body: wordy) as server:
        assert judge(case, server.url) == 1
    assert "'The' (12 times)" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_allowed_to_fail_is_asked_again_when_it_is_not_any_more(case: Case) -> None:
    refusal = error(400, "filtered")
    with serve(lambda n, body: refusal if "Question 4:" in body["messages"][-1]["content"] else judged()) as server:
        assert judge(case, server.url, "judge.max_failed=1") == 0
        assert judge(case, server.url, "judge.max_failed=1") == 0  # complete
        assert len(server.seen) == 12
    port = int(server.url.split(":")[2].split("/")[0])
    with serve(lambda number, body: judged(), port=port) as healed:
        assert judge(case, healed.url) == 0
    assert asked_about(healed) == [4]
    assert (case.results()["n_total"], case.results()["n_null"]) == (12, 0)


def test_max_cost_refuses_before_the_first_request(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda number, body: judged()) as server:
        assert judge(case, server.url, "--max-cost", "0.0001", "judge.price_input=10", "judge.price_output=30") == 2
        assert "cost about" in one_line(capsys.readouterr().err)
        assert judge(case, server.url, "--max-cost", "5") == 2
        assert "no price is known for a-judge" in one_line(capsys.readouterr().err)
        assert not server.seen
    assert not case.out.exists()


def test_max_cost_counts_what_was_really_paid_over_all_starts(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    dear = judged()
    dear.body["usage"] = {"prompt_tokens": 100_000, "completion_tokens": 1}  # 1 USD each; the estimate is far lower
    limit = ["--max-cost", "3.5", "judge.price_input=10", "judge.price_output=10", "judge.concurrency=1"]
    with serve(lambda number, body: dear) as server:
        assert judge(case, server.url, *limit) == 1
        assert "--max-cost 3.5 is reached" in capsys.readouterr().err
        assert len(server.seen) == 4  # the fourth was expected to fit
        assert judge(case, server.url, *limit) == 2
        assert "--max-cost 3.5: 4.00 USD spent already, 0.00 USD left; 8 requests" in capsys.readouterr().err
        assert len(server.seen) == 4


def test_says_the_expected_cost_before_asking(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda number, body: judged()) as server:
        assert judge(case, server.url, "judge.price_input=10", "judge.price_output=30") == 0
    said = capsys.readouterr().err
    match = re.search(r"12 requests to a-judge: about ([\d,]+) tokens, about ([\d.]+) USD", said)
    assert match
    characters = sum(len(m["content"]) for _, _, body in server.seen for m in body["messages"])
    assert int(match.group(1).replace(",", "")) == pytest.approx(characters / 4, rel=0.1)
    assert case.results()["judging"]["cost_usd"] == pytest.approx(12 * (100 * 10 + 30) / 1e6)


def test_the_key_comes_from_the_environment_and_stays_there(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    def echo(number: int, body: dict[str, Any]) -> Answer:
        if "Question 3:" in body["messages"][-1]["content"]:
            return error(500, f"your header was Bearer {KEY}")
        return judged()

    with serve(echo) as server:
        assert judge(case, server.url, "judge.attempts=2") == 1
        assert {header for _, header, _ in server.seen} == {f"Bearer {KEY}"}
        said = capsys.readouterr()
        assert judge(case, server.url, "judge.attempts=2", "judge.max_failed=1") == 0
        more = capsys.readouterr()
    texts = [path.read_bytes().decode("utf-8", "replace") for path in case.out.rglob("*") if path.is_file()]
    assert len(texts) >= 5
    for text in [*texts, said.out, said.err, more.out, more.err]:
        assert KEY not in text
        assert "authorization" not in text.lower()
    assert "Bearer [key]" in said.err


def test_no_key_is_wrong_usage(case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serve(lambda number, body: judged()) as server:
        assert judge(case, server.url) == 2
        assert "OPENAI_API_KEY" in one_line(capsys.readouterr().err)
        assert judge(case, server.url, "judge.api_key_env=null") == 0
        assert {header for _, header, _ in server.seen} == {None}


def test_an_unreachable_base_url_is_wrong_usage(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert judge(case, f"http://127.0.0.1:{port}/v1") == 2
    assert f"http://127.0.0.1:{port}/v1: cannot be reached" in one_line(capsys.readouterr().err)
    assert not case.out.exists()


@pytest.mark.parametrize(
    "url",
    [
        "not-a-url",
        "ftp://host/v1",
        "http://user:hidden@127.0.0.1/v1",
        "http://user:hidden@127.0.0.1:x/v1",
        "http://h/v1?k=hidden",
    ],
)
def test_a_broken_base_url_is_wrong_usage(case: Case, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert judge(case, f"'{url}'") == 2
    said = one_line(capsys.readouterr().err)
    assert "judge.base_url" in said
    assert "hidden" not in said


def start(case: Case, server: Server, *more: str) -> subprocess.Popen[str]:
    line = ["eval", case.outputs, "--reference", case.reference, "--judge", "openai", f"judge.base_url={server.url}",
            "judge.model=a-judge", "judge.concurrency=3", "statistics.bootstrap=0", "--out", case.out, *more]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "alphapo_cli", *map(str, line)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=case.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def slow_after_six(number: int, body: dict[str, Any]) -> Answer:
    good = judged()
    good.wait = 1.0 if number >= 6 else 0.0
    return good


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_ctrl_c_waits_for_what_is_paid_for_and_the_same_line_continues(case: Case, number: signal.Signals) -> None:
    with serve(slow_after_six) as server:
        process = start(case, server)
        wait_for(lambda: len(server.seen) >= 9)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert len(server.seen) == 9
        assert len(journal(case)) == 9  # the three under way were waited for
        assert "9 of 12 judgements are kept" in said.splitlines()[-1]
        assert judge(case, server.url) == 0
        assert len(server.seen) == 12


@pytest.mark.slow
def test_kill_keeps_what_arrived_and_a_torn_line_is_asked_again(case: Case) -> None:
    with serve(slow_after_six) as server:
        process = start(case, server)
        wait_for(lambda: (case.out / "judgements.jsonl").exists() and len(journal(case)) >= 6)
        process.kill()
        process.communicate()
        kept = len(journal(case))
        assert kept >= 6
        with open(case.out / "judgements.jsonl", "a") as torn:
            torn.write('{"key": "half a li')
        before = len(server.seen)
        assert judge(case, server.url) == 0
        assert len(server.seen) == before + 12 - kept
    assert case.results()["n_total"] == 12


@pytest.mark.slow
def test_two_at_once_in_one_directory_are_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(slow_after_six) as server:
        process = start(case, server)
        wait_for(lambda: len(server.seen) >= 7)
        assert judge(case, server.url) == 2
        assert "another alphapo eval is writing here" in capsys.readouterr().err
        assert judge(case, server.url, "--replace") == 2  # nor may its judgements be taken away
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.slow
def test_what_may_fail_never_keeps_the_same_line_from_finishing(case: Case, tmp_path: Path) -> None:
    """The second start asks only for what failed before: more failures in a row than a dead server would give."""
    many = Case(tmp_path / "many", n=30)

    def third(number: int, body: dict[str, Any]) -> Answer:
        match = re.search(r"Question (\d+): why\?", body["messages"][-1]["content"])
        assert match
        return error(400, "filtered") if int(match.group(1)) % 3 == 0 else judged()

    with serve(third) as server:
        assert judge(many, server.url) == 1
        assert judge(many, server.url, "judge.max_failed=10") == 0
    assert (many.results()["n_total"], many.results()["n_null"]) == (20, 10)


def test_a_failure_for_good_says_how_to_go_on_without(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda n, b: error(400, "no") if "Question 4:" in b["messages"][-1]["content"] else judged()) as server:
        assert judge(case, server.url) == 1
    assert "judge.max_failed=1 leaves them out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_prompt_that_is_moderated_away_fails_alone(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenRouter answers 403 to a flagged input (openrouter.ai/docs/errors)."""
    flagged = error(403, "your input was flagged")
    with serve(lambda n, b: flagged if "Question 0:" in b["messages"][-1]["content"] else judged()) as server:
        assert judge(case, server.url, "judge.concurrency=1", "judge.max_failed=1") == 0
    assert (case.results()["n_total"], case.results()["n_null"]) == (11, 1)


@pytest.mark.slow
def test_a_stop_that_nobody_waits_for_keeps_what_is_under_way(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from alphapo_cli.evaluation.judges import openai_session

    monkeypatch.setattr(openai_session, "GRACE", 0.2)  # of an interruption

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if number == 2:
            return error(401, "expired")
        good = judged()
        good.wait = 1.0
        return good

    with serve(answer) as server:
        assert judge(case, server.url) == 1
    assert len(journal(case)) == len(server.seen) - 1 == 2


def test_half_a_key_is_never_shown(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    page = "<html>" + " " * 380 + f"Bearer {KEY}</html>"
    with serve(lambda n, b: Answer(text=page, status=400)) as server:
        assert judge(case, server.url) == 1
    said = capsys.readouterr().err
    assert "Bearer" in said
    assert KEY[:6] not in said


@pytest.mark.slow
def test_a_home_directory_is_looked_into_before_asking(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(case.folder))
    case.out = case.folder / "out"
    with serve(lambda n, b: judged()) as server:
        assert judge(case, server.url) == 0
        (case.out / "results.json").unlink()
        monkeypatch.delenv("OPENAI_API_KEY")  # nothing is left to be asked
        case.out = Path("~/out")
        assert judge(case, server.url) == 0, capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://exa mple/v1", "http://[::1]x/v1", "http://h\u00ff..h/v1", "http://xn--/v1"])
def test_an_address_that_no_client_takes_is_wrong_usage(
    case: Case, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert judge(case, f"'{url}'") == 2
    assert "judge.base_url" in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_other_statistics_never_ask_again_for_what_was_allowed_to_fail(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = error(400, "filtered")
    with serve(lambda n, body: refusal if "Question 4:" in body["messages"][-1]["content"] else judged()) as server:
        assert judge(case, server.url, "judge.max_failed=1") == 0
    monkeypatch.delenv("OPENAI_API_KEY")  # and nobody listens any more
    capsys.readouterr()
    assert judge(case, server.url, "judge.max_failed=1", "statistics.confidence=0.5") == 0, capsys.readouterr().err
    assert (case.results()["confidence"], case.results()["n_total"], case.results()["n_null"]) == (0.5, 11, 1)
    assert judge(case, server.url, "statistics.confidence=0.6") == 2  # now it may not
    (case.out / "judgements.jsonl").unlink()
    assert judge(case, server.url, "judge.max_failed=1", "statistics.confidence=0.6") == 2  # all is to be asked


@pytest.mark.slow
def test_a_server_that_asks_for_no_wait_is_not_asked_seven_times_in_a_blink(case: Case) -> None:
    """Waits of 0.1, 0.2, 0.4 and 0.8 s, each halved at most: the fifth attempt comes after 0.75 s at the earliest."""
    began: list[float] = []

    def busy(number: int, body: dict[str, Any]) -> Answer:
        began.append(time.monotonic())
        return error(429, "slow down", {"Retry-After": "0"}) if began[-1] - began[0] < 0.6 else judged()

    with serve(busy) as server:
        assert judge(case, server.url, "judge.wait=0.1", "judge.attempts=5") == 0
