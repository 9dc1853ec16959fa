"""A win rate is made of verdicts: what a judge or its server says instead is no verdict, and is called what it is."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.http import client_settings, connection_hint
from alphapo_cli.evaluation.judges.openai_response import smaller_limit
from alphapo_cli.evaluation.judges.protocol import is_verdict, preference, verdict_mass
from alphapo_cli.evaluation.judges.verdict_mass import mass_figures
from tests.evaluation.eval_world import Case, alphapo, load, one_line, write
from tests.evaluation.judge_server import Answer, Server, error, judged, serve

SPACED = 'judge.verdict_tokens=[" m"," M"]'


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("SSL_CERT")]:
        monkeypatch.delenv(name)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, n=6)


def judge(case: Case, server: Server | str, *more: str) -> int:
    url = server if isinstance(server, str) else server.url
    return alphapo(
        "eval", case.outputs, "--reference", case.reference, "--judge", "openai", f"judge.base_url={url}",
        "judge.model=a-judge", "judge.api_key_env=null", "judge.wait=0.01", "judge.attempts=2", "judge.timeout=5",
        "statistics.bootstrap=0", "--out", str(case.out), *more
    )  # fmt: skip


def says(*tops: tuple[str, float], **more: Any) -> Answer:
    """An answer whose first token has these alternatives, as (token, probability)."""
    answer = judged()
    choice = answer.body["choices"][0]
    rows = [{"token": token, "logprob": math.log(p)} for token, p in tops]
    choice["logprobs"]["content"][0]["top_logprobs"] = rows
    choice |= more
    return answer


class TestMass:
    def test_it_is_the_probability_of_both_names(self) -> None:
        top = [("m", math.log(0.6)), ("M", math.log(0.3)), ("x", math.log(0.1))]
        assert verdict_mass(top) == pytest.approx(0.9)
        assert verdict_mass(top, ("x", "M")) == pytest.approx(0.4)
        assert verdict_mass([("x", -0.1)]) == 0.0
        assert preference(top, False) == pytest.approx(2 - 0.6 / 0.9)

    @pytest.mark.parametrize(
        ("tops", "named", "remedy"),
        [
            (
                [("<think>", 0.999), ("M", 8e-7), ("m", 3e-7)],
                "'<think>' (6 times)",
                "chat_template_kwargs.enable_thinking=false",
            ),
            ([("Okay", 0.9), ("M", 0.02)], "'Okay' (6 times)", "thinks before it answers"),
            ([(" m", 0.95), (" M", 0.04), ("M", 0.005)], "' m' (6 times)", 'judge.verdict_tokens=[" m", " M"]'),
            ([("\u2581m", 0.95), ("M", 0.04)], "'\u2581m' (6 times)", 'judge.verdict_tokens=["\u2581m", "\u2581M"]'),
            ([("The", 0.99), ("m", 2e-5), ("M", 1e-5)], "'The' (6 times)", "does not begin with the letter"),
            ([("**", 0.97), ("M", 0.02), ("m", 0.01)], "'**' (6 times)", "does not begin with the letter"),
            ([("x", 0.9)], "'x' (6 times)", "does not begin with the letter"),
        ],
    )
    def test_a_judge_without_a_verdict_makes_no_win_rate(
        self, tops: list[tuple[str, float]], named: str, remedy: str, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with serve(lambda number, body: says(*tops)) as server:
            assert judge(case, server) == 1
            said = capsys.readouterr().err.splitlines()[-1]
            for part in ("6 of 6 answers of the judge a-judge are no verdict", named, remedy, "all answers are kept"):
                assert part in said
            assert "max_failed" not in said  # with all left out there would be nothing to count
            assert not (case.out / "results.json").exists()
            assert len(server.seen) == 6
            # Another limit asks nothing again; a judge that never names either is none at any limit.
            code = judge(case, server, "judge.min_mass=0")
            assert code == (1 if tops == [("x", 0.9)] else 0)
            assert len(server.seen) == 6

    def test_the_spelling_of_the_verdicts_asks_nothing_again(self, case: Case) -> None:
        with serve(lambda number, body: says((" m", 0.7), (" M", 0.29), ("M", 0.005))) as server:
            assert judge(case, server) == 1
            assert judge(case, server, SPACED) == 0
            assert len(server.seen) == 6
        results = case.results()
        mass = results["judging"]["verdict_mass"]
        assert mass == {"median": pytest.approx(0.99), "lowest": pytest.approx(0.99), "share_below_half": 0.0}
        for row in load(case.out / "annotations.json"):
            assert row["preference_mass"] == pytest.approx(0.99)
            shown = row["preference"] if row["preference"] < 1.5 else 3 - row["preference"]
            assert shown == pytest.approx(2 - 0.7 / 0.99)

    def test_some_may_be_left_out(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        def some(number: int, body: dict[str, Any]) -> Answer:
            return says(("The", 0.99), ("m", 0.01)) if number < 2 else says(("m", 0.6), ("M", 0.4))

        with serve(some) as server:
            assert judge(case, server, "judge.concurrency=1") == 1
            assert "judge.max_failed=2 leaves them out" in capsys.readouterr().err
            assert judge(case, server, "judge.concurrency=1", "judge.max_failed=2") == 0
        results = case.results()
        assert (results["judging"]["failed"], results["judging"]["without_verdict"]) == (2, 2)
        assert (results["n_null"], results["n_total"]) == (2, 4)
        told = capsys.readouterr()
        assert "66.7" not in told.out
        assert "2 of 6 answers of the judge a-judge are no verdict" in told.err
        assert "'The' (2 times)); they are left out" in told.err

    @pytest.mark.parametrize("share", [0.03, 0.15, 0.16, 0.17, 0.25, 0.35])
    def test_a_mass_at_the_limit_is_a_verdict_whatever_the_rounding(self, share: float) -> None:
        shares = (share, 0.5 - share)
        for rounded in (lambda x: x, lambda x: round(x, 7), lambda x: struct.unpack("f", struct.pack("f", x))[0]):
            mass = verdict_mass([(name, rounded(math.log(p))) for name, p in zip("mM", shares, strict=True)])
            assert is_verdict(mass, 0.5)
            assert mass_figures([mass])["share_below_half"] == 0.0
        assert not is_verdict(0.49999, 0.5)
        assert not is_verdict(0.0, 0.0)

    def test_where_all_failed_the_cause_is_told_though_all_may_fail(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with serve(lambda number, body: says(("The", 0.99))) as server:
            assert judge(case, server, "judge.max_failed=6", "judge.min_mass=0") == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "neither 'm' nor 'M' is among the likeliest first tokens (likeliest: 'The' (6 times))" in said
        assert "min_mass=0" not in said  # which would not help
        with serve(lambda number, body: error(400, "no such field")) as server:
            assert judge(case, server, "judge.max_failed=6", "--replace") == 1
        assert "6 x HTTP 400: no such field" in capsys.readouterr().err

    def test_one_order_alone_leaves_nothing_to_count_and_the_cause_is_told(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen: set[str] = set()

        def first_order_only(number: int, body: dict[str, Any]) -> Answer:
            row = re.findall(r"Question \d+", body["messages"][-1]["content"])[0]
            first = row not in seen
            seen.add(row)
            return judged() if first else says(("The", 0.99))

        with serve(first_order_only) as server:
            assert judge(case, server, "judge.max_failed=12", "judge.both_orders=true", "judge.concurrency=1") == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "6 of 12 answers of the judge a-judge are no verdict" in said
        assert "max_failed" not in said

    def test_the_number_to_leave_out_counts_the_unanswered_too(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def some(number: int, body: dict[str, Any]) -> Answer:
            return error(400, "filtered") if number < 2 else says(("The", 0.99)) if number < 3 else judged()

        with serve(some) as server:
            assert judge(case, server, "judge.max_failed=2", "judge.concurrency=1") == 1
        assert "judge.max_failed=3 leaves them out" in capsys.readouterr().err

    def test_an_evaluation_on_disk_can_be_looked_at_again(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        with serve(lambda number, body: says(("m", 0.3), ("M", 0.1), ("The", 0.6))) as server:
            assert judge(case, server, "judge.min_mass=0") == 0
        before = {p.name: p.read_bytes() for p in case.out.iterdir()}
        capsys.readouterr()
        assert alphapo("eval", "--recheck", case.out) == 1
        assert "6 of 6 answers are no verdict" in capsys.readouterr().err
        found = json.loads((case.out / "mass.json").read_text())
        assert found["median"] == pytest.approx(0.4)
        assert len(found["below"]) == 6
        assert alphapo("eval", "--recheck", case.out, "judge.min_mass=0.3") == 0
        after = {p.name: p.read_bytes() for p in case.out.iterdir() if p.name != "mass.json"}
        assert after == before

    def test_where_no_judge_was_asked_there_is_nothing_to_look_at(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert alphapo("eval", "--recheck", case.folder) == 2
        assert "no judgements.jsonl" in one_line(capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("line", "code", "said"),
        [
            ("", 2, "no answer with log-probs is in judgements.jsonl"),
            ('{"key": "a", "row": 0, "switched": true, "unusable": "refused"}', 2, "no answer with log-probs"),
            ('{"a": 1}', 1, 'a line is no judgement of this command ({"a": 1}'),
            ('{"key": "a", "row": 0, "switched": true, "top_logprobs": 5}', 1, "a line is no judgement"),
            ('{"key": "a", "row": 0, "switched": true, "top_logprobs": [["m", "x"]]}', 1, "a line is no judgement"),
            ('{"key": "a", "switched": true, "top_logprobs": [["m", -0.1]]}', 1, "a line is no judgement"),
            ('{"key": "a", "row": 0, "switched": true, "top_logprobs": [], "price": "1"}', 1, "a line is no judgement"),
        ],
    )
    def test_a_file_that_holds_no_verdicts_is_not_called_good(
        self, line: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "judgements.jsonl").write_text(line + "\n")
        assert alphapo("eval", "--recheck", tmp_path) == code
        assert said in one_line(capsys.readouterr().err)
        assert not (tmp_path / "mass.json").exists()

    def test_what_means_nothing_beside_it_is_refused(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        for given in (["--reference", case.reference], ["--replace"], ["--max-cost", "1"], ["--out", case.out]):
            assert alphapo("eval", "--recheck", case.folder, *given) == 2
            assert f"leave out {given[0]}" in one_line(capsys.readouterr().err)
        assert alphapo("eval", case.outputs, "--recheck", case.folder) == 2
        assert f"leave out {case.outputs}" in one_line(capsys.readouterr().err)

    def test_starting_over_leaves_no_figures_of_the_old_answers(self, case: Case) -> None:
        with serve(lambda number, body: judged()) as server:
            assert judge(case, server) == 0
            assert alphapo("eval", "--recheck", case.out) == 0
            assert judge(case, server, "--replace") == 0
        assert not (case.out / "mass.json").exists()


def body_of(answer: Answer, **choice: Any) -> Answer:
    answer.body["choices"][0] |= choice
    return answer


def with_logprobs(*rows: tuple[str, Any]) -> Answer:
    answer = judged()
    listed = [{"token": token, "logprob": lp} for token, lp in rows]
    answer.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = listed
    return answer


# answer -> what is said of it, requests per judgement, whether it is paid for
ODD: dict[str, tuple[Answer, str, int, bool]] = {
    "probabilities": (with_logprobs(("M", 0.7), ("m", 0.3)), "log-probs are above 0", 1, True),
    "not a number": (with_logprobs(("M", math.nan)), "broken log-probs", 2, True),
    "a text": (with_logprobs(("M", "-0.1")), "broken log-probs", 2, True),
    "only impossible tokens": (with_logprobs(("M", None), ("m", -math.inf)), "broken log-probs", 2, True),
    "no log-probs": (body_of(judged(), logprobs=None), "without log-probs", 2, True),
    "an empty list": (body_of(judged(), logprobs={"content": []}), "without log-probs", 2, True),
    "a refusal": (
        body_of(judged(), message={"role": "assistant", "content": None, "refusal": "I can't help."}, logprobs=None),
        "the judge refused (I can't help.)", 1, True,
    ),
    "a content filter": (body_of(judged(), finish_reason="content_filter", logprobs=None), "content filter", 1, True),
    "thoughts alone": (
        body_of(judged(), message={"content": None, "reasoning_content": "Okay"}, logprobs=None), "began to think", 1, True,
    ),
    "other thoughts": (
        body_of(judged(), message={"content": None, "reasoning": "Okay"}, logprobs=None), "began to think", 1, True,
    ),
    "an error with its code": (Answer(body={"error": {"message": "upstream overloaded", "code": 502}}), "HTTP 502: upstream overloaded", 2, False),
    "an error as text": (Answer(body={"error": "model not loaded"}), "model not loaded", 2, False),
    "an error of the request": (Answer(body={"error": {"message": "prompt too long", "code": 400}}), "HTTP 400: prompt too long", 1, False),
    "an error of vLLM": (Answer(body={"object": "error", "message": "no such thing", "code": 404}), "HTTP 404: no such thing", 1, False),
    "a detail": (Answer(body={"detail": "busy"}), "busy", 2, False),
    "no choices": (Answer(body={"choices": [], "usage": {"prompt_tokens": 9}}), "without choices", 2, False),
    "nothing": (Answer(body={}), "without choices", 2, False),
    "a list": (Answer(body=[]), "without choices", 2, False),
    "a page": (Answer(text="<html>log in</html>"), "not JSON", 2, False),
    "another parameter": (error(400, "Use 'max_completion_tokens' instead."), "judge.token_limit_key=max_completion_tokens", 1, False),
    "no temperature": (error(400, "'temperature' does not support 1"), "judge.temperature=null", 1, False),
    "too many": (error(429, "slow down"), "HTTP 429: slow down", 2, False),
    "broken": (error(500, "oops"), "HTTP 500: oops", 2, False),
    "flagged": (error(403, "flagged"), "HTTP 403: flagged", 1, False),
    "too long": (error(413, "too large"), "HTTP 413: too large", 1, False),
    "half of an answer": (Answer(text='{"choices": [{"index": 0, "logprobs"'), "not JSON", 2, False),
    "a stream": (Answer(text='data: {"choices": []}\n\ndata: [DONE]\n'), "not JSON", 2, False),
    "a number": (Answer(body=7), "without choices", 2, False),
    "choices of nothing": (Answer(body={"choices": [None], "usage": {"prompt_tokens": 9}}), "without choices", 2, False),
    "a call of a tool": (
        body_of(judged(), finish_reason="tool_calls", logprobs=None, message={"content": None, "tool_calls": [{}]}),
        "without log-probs", 2, True,
    ),
    "a gateway": (error(504, "upstream timed out"), "HTTP 504: upstream timed out", 2, False),
    "no money": (error(402, "insufficient credits"), "HTTP 402: insufficient credits", 1, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_verdict_is_called_what_it_is(kind: str, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    answer, words, requests, paid = ODD[kind]
    prices = ("judge.price_input=10", "judge.price_output=30", "judge.concurrency=1")
    with serve(lambda number, body: answer) as server:
        assert judge(case, server, *prices, "judge.wait=0.01") == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert words in said
        assert "max_failed" not in said
        asked = len(server.seen)
    assert asked in (requests, 6 * requests)  # one where no request can succeed
    journal = case.out / "judgements.jsonl"
    rows = [json.loads(text) for text in journal.read_text().splitlines()] if journal.is_file() else []
    assert sum(row["price"] or 0 for row in rows) == pytest.approx((len(rows) if paid else 0) * (100 * 10 + 30) / 1e6)
    assert len(rows) == (asked if paid else 0)


@pytest.mark.slow
def test_nothing_that_the_server_owes_is_billed(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> Answer:
        return judged() if number % 2 else Answer(body={"error": {"message": "overloaded", "code": 503}})

    limits = ("judge.price_input=10", "judge.price_output=30", "--max-cost", "0.05", "judge.concurrency=1")
    with serve(behaviour) as server:
        assert judge(case, server, *limits, "judge.attempts=3") == 0, capsys.readouterr().err
        assert len(server.seen) == 12
    assert case.results()["judging"]["cost_usd"] == pytest.approx(6 * (100 * 10 + 30) / 1e6)


@pytest.mark.parametrize("impossible", [-math.inf, None, -9999.0])
def test_an_impossible_alternative_has_probability_0(impossible: Any, case: Case) -> None:
    with serve(lambda number, body: with_logprobs(("M", 0.0), ("m", impossible), ("x", impossible))) as server:
        assert judge(case, server) == 0
    assert {row["preference"] for row in load(case.out / "annotations.json")} <= {1.0, 2.0}


def test_a_servers_limit_on_alternatives_is_kept_to(case: Case) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> Answer:
        return error(422, "top_logprobs: ensure this value is at most 5") if body["top_logprobs"] > 5 else judged()

    with serve(behaviour) as server:
        assert judge(case, server, "judge.top_logprobs=20", "judge.concurrency=6") == 0
        assert sum(body["top_logprobs"] == 5 for _, _, body in server.seen) == 6
    assert smaller_limit("top_logprobs must be between 0 and 5", 20) == 5
    assert smaller_limit("Requested sample logprobs of 20, which is greater than max allowed: 5", 20) == 5  # vLLM
    assert smaller_limit("logprobs are not supported with gpt-5", 20) is None
    assert smaller_limit("something else, 5", 20) is None


def test_the_request_is_what_was_asked_for(case: Case) -> None:
    with serve(lambda number, body: judged()) as server:
        assert judge(
            case, server, "judge.token_limit_key=max_completion_tokens", "judge.temperature=null",
            "judge.chat_template_kwargs={enable_thinking:false}", "judge.extra_body={reasoning_effort:none}",
        ) == 0  # fmt: skip
        body = server.seen[0][2]
    assert body["max_completion_tokens"] == 1
    assert "max_tokens" not in body
    assert "temperature" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["reasoning_effort"] == "none"


@pytest.mark.parametrize(
    ("field", "instead"), [("messages:[]", "prompt_file"), ("model:x", "judge.model"), ("top_logprobs:2", "")]
)
def test_what_settings_say_is_no_extra_field(
    field: str, instead: str, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(case, "http://127.0.0.1:9/v1", f"judge.extra_body={{{field}}}") == 2
    said = one_line(capsys.readouterr().err)
    assert f"judge.extra_body.{field.partition(':')[0]}: " in said
    assert instead in said


def test_what_the_error_says_to_change_can_be_changed_on_the_same_line(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> Answer:
        return error(400, "temperature is not supported with this model") if "temperature" in body else judged()

    with serve(behaviour) as server:
        assert judge(case, server) == 1
        assert "(add judge.temperature=null)" in capsys.readouterr().err
        assert judge(case, server, "judge.temperature=null") == 0
        assert judge(case, server) == 2  # which holds answers now
    assert "holds another evaluation (differs in: judge.temperature)" in capsys.readouterr().err


class TestTheWayThere:
    def test_a_proxy_is_not_used_for_this_machine(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with serve(lambda number, body: judged()) as server:
            assert judge(case, server) == 0

    def test_certificates_do_not_matter_without_tls(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", "/gone/ca.pem")
        with serve(lambda number, body: judged()) as server:
            assert judge(case, server) == 0
        with pytest.raises(UsageError, match=r"^SSL_CERT_FILE=/gone/ca\.pem: no such file"):
            client_settings("https://example.org/v1")

    def test_a_socks_proxy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks5://someone:secret@proxy:1080")
        with pytest.raises(UsageError, match=r"ALL_PROXY=socks5://\.\.\.@proxy:1080: a SOCKS proxy needs") as found:
            client_settings("http://example.org/v1")
        assert "secret" not in str(found.value)

    def test_what_failed_on_the_way_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        url = "https://example.org/v1"
        assert "write http://" in connection_hint(url, OSError("[SSL: WRONG_VERSION_NUMBER] wrong version"))
        assert "SSL_CERT_FILE" in connection_hint(url, OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))
        assert connection_hint(url, OSError("refused")) == ""
        monkeypatch.setenv("HTTPS_PROXY", "http://u:p@proxy:3128")
        assert connection_hint(url, OSError("refused")).endswith("the proxy HTTPS_PROXY=http://...@proxy:3128")

    def test_https_to_a_server_that_speaks_http(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        with serve(lambda number, body: judged()) as server:
            assert judge(case, server.url.replace("http://", "https://")) == 2
        assert "write http://" in capsys.readouterr().err


class TestAnnotations:
    def refused(self, case: Case, capsys: pytest.CaptureFixture[str], preferences: list[Any]) -> str:
        write(case.annotations, [{**r, "preference": p} for r, p in zip(case.judged, preferences, strict=True)])
        assert case.replay() == 2
        assert not case.out.exists()
        return one_line(capsys.readouterr().err)

    def test_without_any_preference_there_is_nothing_to_count(
        self, case: Case, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "annotations.json: no row has a preference" in self.refused(case, capsys, [None] * 6)

    def test_a_text_is_called_a_text(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        assert "row 3: preference '2' is text" in self.refused(case, capsys, [1, 2, "2", 1, 2, 1])

    @pytest.mark.slow
    def test_zeros_and_ones_are_asked_about(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        said = self.refused(case, capsys, [0, 1, 0, 1, 1, 1])
        assert "--preferences=01" in said
        assert "--preferences=alpaca_eval" in said
        assert "--preferences=01" in self.refused(case, capsys, [0, 1, math.nan, None, 1, 1])
        assert "--preferences" not in self.refused(case, capsys, [2, 1, 3, 1, 1, 1])  # 01 would not read it either
        self.refused(case, capsys, [0, 1, 0, 1, 1, 1])
        assert case.replay("--preferences=01") == 0
        assert case.results()["win_rate"] == pytest.approx(100 * 4 / 6)
        assert case.replay("--preferences=alpaca_eval", "--replace") == 0
        assert (case.results()["n_draws"], case.results()["n_wins"]) == (2, 0)

    def test_rows_one_a_line_are_read(self, case: Case) -> None:
        write(case.annotations, "".join(json.dumps(row) + "\n" for row in case.judged))
        assert case.replay() == 0
        case.annotations = write(case.folder / "one.jsonl", json.dumps(case.judged[0]) + "\n")
        assert case.replay(out=case.folder / "one") == 0

    def test_rows_of_several_models_or_judges_are_told(self, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
        for column, what in (("generator_2", "2 models"), ("annotator", "2 judges")):
            write(case.annotations, case.judged + [{**row, column: "another"} for row in case.judged])
            assert case.replay() == 2
            said = one_line(capsys.readouterr().err)
            assert f"it has rows of {what} (" in said
            assert "'another'" in said


STRANGE = {
    "half of a character": lambda: with_logprobs(("M", -0.1), ("\ud83d", -3.0)),
    "a count of 400 digits": lambda: judged(usage={"prompt_tokens": 10**400, "completion_tokens": 1}),
    "no count but text": lambda: judged(usage={"prompt_tokens": "many"}),
    "an unknown charset": lambda: replace(judged(), headers={"Content-Type": "application/json; charset=klingon"}),
    "beyond a float": lambda: with_logprobs(("M", -0.1), ("x", -1e308 * 10)),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_one_strange_answer_leaves_the_others_alone(kind: str, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is read or fails: what the other requests brought is kept, and the same line gets past it."""
    with serve(lambda number, body: STRANGE[kind]() if number == 2 else judged()) as server:
        first = judge(case, server, "judge.wait=0.01", "judge.attempts=2", "judge.concurrency=3")
        said = capsys.readouterr().err
        assert "--debug" not in said
        rows = (case.out / "judgements.jsonl").read_text().splitlines()
        assert len(rows) >= 6
        assert first == 0 or judge(case, server, "judge.wait=0.01") == 0
        assert len(server.seen) <= 8


def test_an_answer_of_no_known_form_fails_alone(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alphapo_cli.evaluation.judges.openai_response import first_token as whole

    calls = iter(range(100))

    def breaks(body: Any) -> Any:
        if next(calls) == 1:
            raise AttributeError("nobody thought of it")
        return whole(body)

    monkeypatch.setattr("alphapo_cli.evaluation.judges.openai_session.first_token", breaks)
    with serve(lambda number, body: judged()) as server:
        assert judge(case, server) == 1
        assert "an answer of no known form (AttributeError: nobody thought of it)" in capsys.readouterr().err
        assert judge(case, server) == 0
        assert len(server.seen) == 7
