"""`alphapo eval --protocol arena_hard`: replayed and asked judgements, the public tool's files, faults, and bad input."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.evaluation.arena_hard.prompt import fill, load_template
from tests.evaluation.arena_world import Arena, by_labels, labels, lines, rows_of, said, text, which
from tests.evaluation.eval_world import ROOT, alphapo, load, one_line, write
from tests.evaluation.judge_server import Answer, Server, error, serve

KEY = "sk-secret-9a8b7c"
FAST = "statistics.bootstrap=50"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return Arena(tmp_path)


def journal(arena: Arena) -> list[dict[str, Any]]:
    return rows_of(arena.out / "judgements.jsonl")


def asked(server: Server) -> list[tuple[int, bool]]:
    return sorted(which(body) for _, _, body in server.seen)


BOTH = [(i, order) for i in range(8) for order in (False, True)]


# ------------------------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_judgements_of_the_public_tool_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    arena = Arena(tmp_path, n=30, version=version)
    assert arena.replay(FAST, "--json", "-") == 0
    printed = capsys.readouterr()
    first, *_, last = printed.out.splitlines()
    assert first == str(arena.out.resolve())
    found = arena.results()
    assert json.loads(last) == {"path": first, **found}
    wins = weights = plain = 0.0
    for i in range(30):
        for label, own in zip(labels(i), ("B", "A"), strict=True):
            share = 0.5 if label == "A=B" else float(label[0] == own)
            weight = 3.0 if len(label) == 4 else 1.0
            wins, weights, plain = wins + weight * share, weights + weight, plain + share / 60
    assert found["arena_hard/score"] == pytest.approx(100 * wins / weights, abs=1e-12)
    assert found["win_rate"] == pytest.approx(100 * plain, abs=1e-12)
    low, high = found["arena_hard/ci"]
    assert low < found["arena_hard/score"] < high
    assert found["arena_hard/style_controlled_ci"][0] < found["arena_hard/style_controlled_score"]
    assert found["arena_hard/style"]["length_in"] == "tokens"
    assert sum(found["arena_hard/verdicts"].values()) == 60
    assert found["arena_hard/verdicts"]["missing"] == found["n_null"] == 0
    assert (found["generator"], found["reference"], found["annotator"]) == ("tuned", "base", "a-judge")
    assert set(found["arena_hard/by_category"]) == {"creative_writing", "hard_prompt"}
    assert sum(row["n"] for row in found["arena_hard/by_category"].values()) == found["n_total"] == 30
    assert f"{found['arena_hard/score']:.2f} %" in printed.err
    assert (arena.out / "winrate.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    board = (arena.out / "leaderboard.csv").read_text().splitlines()
    assert board[0] == "model,score,rating_q025,rating_q975,CI,avg_tokens,date"
    assert board[1].startswith(f"tuned,{found['arena_hard/score']:.2f},{low:.2f},{high:.2f},")


def test_both_versions_forms_give_the_same_figures_and_what_is_written_is_read(tmp_path: Path) -> None:
    old, new = Arena(tmp_path / "old", version="v0.1"), Arena(tmp_path / "new")
    assert old.replay(FAST) == new.replay(FAST) == 0
    assert old.results() == new.results()
    public = old.out / "arena_hard"
    question = rows_of(public / "question.jsonl")[0]
    assert question == {"uid": "uid0000", "category": "creative_writing", "prompt": old.prompt(0)}
    answer = rows_of(public / "model_answer" / "tuned.jsonl")[3]
    assert answer["messages"][-1] == {"role": "assistant", "content": {"answer": text("tuned", 3)}}
    assert answer["metadata"]["token_len"] == len(text("tuned", 3).split())
    assert set(answer["metadata"]) == {"token_len", "header_count", "list_count", "bold_count"}
    judged = rows_of(public / "model_judgment" / "a-judge" / "tuned.jsonl")[3]
    assert (judged["uid"], judged["model"], judged["baseline"], judged["judge"]) == (
        "uid0003",
        "tuned",
        "base",
        "a-judge",
    )
    assert [game["score"] for game in judged["games"]] == list(labels(3))
    again = Arena(tmp_path / "again")
    again.outputs, again.reference = (public / "model_answer" / f"{name}.jsonl" for name in ("tuned", "base"))
    again.judgments = public / "model_judgment" / "a-judge" / "tuned.jsonl"
    assert again.replay(FAST) == 0
    assert again.results() == old.results()


def test_the_same_line_again_changes_nothing_and_other_statistics_are_computed_anew(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arena.replay(FAST) == 0
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in arena.out.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert arena.replay(FAST) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "complete"
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in arena.out.rglob("*") if p.is_file()} == before
    assert arena.replay(FAST, "statistics.weight=1", "statistics.style=[length]") == 0
    assert "computed anew" in capsys.readouterr().err
    found = arena.results()
    assert found["arena_hard/score"] == pytest.approx(found["win_rate"], abs=1e-12)
    assert list(found["arena_hard/style"]["coefficients"]) == ["length"]
    assert found["arena_hard/style_controlled_score"] == found["arena_hard/style"]["score_at_equal_style"]
    assert arena.replay(FAST, "statistics.weight=1", "statistics.style=[length]", "statistics.style_at=mean") == 0
    style = found["arena_hard/style"]
    found = arena.results()
    assert found["arena_hard/style_controlled_score"] == style["score_at_mean_style"]
    assert found["arena_hard/style_controlled_ci"] == style["ci_at_mean_style"]
    assert arena.replay("statistics.bootstrap=0", "statistics.style=[]") == 0
    found = arena.results()
    assert found["arena_hard/ci"] is found["arena_hard/style_controlled_score"] is None


def test_the_two_versions_treat_half_a_pair_differently(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(arena.judgments)
    rows[2]["games"][0]["score"] = None
    rows[4]["games"][1] = None
    lines(arena.judgments, rows[:7])
    assert arena.replay(FAST) == 0
    found = arena.results()
    assert (found["n_total"], found["n_null"], found["n_not_judged"]) == (5, 2, 1)
    assert found["arena_hard/verdicts"]["missing"] == 2
    printed = capsys.readouterr().err
    assert "2 pairs lack at least one of their verdicts" in printed
    assert "1 answers are not in the judgements" in printed
    assert arena.replay(FAST, "statistics.version=v0.1") == 0
    found = arena.results()
    assert (found["n_total"], found["n_null"]) == (7, 0)


def test_the_order_of_the_answers_is_reported(arena: Arena) -> None:
    rows = rows_of(arena.judgments)
    told = [("A>B", "A>>B"), ("A=B", "A>B"), ("B>A", "A>B"), ("A=B", "A=B")]
    for row, pair in zip(rows, told * 2, strict=True):
        for game, label in zip(row["games"], pair, strict=True):
            game["score"] = label
    lines(arena.judgments, rows)
    assert arena.replay(FAST) == 0
    found = arena.results()
    assert (found["arena_hard/inconsistent"], found["arena_hard/reversed"]) == (0.5, 0.25)
    # The first shown wins 1 and 1, 1/2 and 1, 0 and 1, 1/2 and 1/2.
    assert found["arena_hard/first_shown_share"] == pytest.approx(5.5 / 8)


def test_alpaca_evals_files_go_with_the_public_judgements(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    assert arena.replay(FAST) == 0
    public = arena.results()
    arena.outputs, arena.out = arena.alpaca_eval("tuned"), arena.folder / "mixed"
    assert arena.replay(FAST) == 0  # the baseline's file has the uids
    mixed = arena.results()
    assert mixed["arena_hard/score"] == public["arena_hard/score"]
    assert mixed["arena_hard/style"]["length_in"] == "characters"
    arena.reference, arena.out = arena.alpaca_eval("base"), arena.folder / "both"
    assert arena.replay(FAST) == 2
    assert "none of the questions" in one_line(capsys.readouterr().err.splitlines()[-1] + "\n")
    assert arena.replay(FAST, "--questions", arena.questions) == 0
    assert arena.results()["arena_hard/ci"] == public["arena_hard/ci"]


def test_two_evaluations_are_compared(arena: Arena, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert arena.replay(FAST) == 0
    rows = rows_of(arena.judgments)
    for row in rows:
        for game, label in zip(row["games"], ("B>>A", "A>>B"), strict=True):
            game["score"] = label
    other = lines(tmp_path / "won.jsonl", rows)
    assert arena.run("--annotations", other, FAST, out=tmp_path / "won") == 0
    capsys.readouterr()
    assert alphapo("compare", tmp_path / "won", arena.out, "--resamples", "200", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["win_rate_a"] == 100
    assert found["win_rate_b"] == pytest.approx(arena.results()["win_rate"])


# ----------------------------------------------------------------------------------------------------------- endpoint


def test_every_pair_is_asked_in_both_orders(arena: Arena) -> None:
    with serve(by_labels) as server:
        assert arena.ask(server.url, "judge.price_input=10", "judge.price_output=30") == 0
    assert asked(server) == BOTH
    body = server.seen[0][2]
    assert {k: v for k, v in body.items() if k != "messages"} == {
        "model": "a-judge",
        "max_tokens": 4096,
        "temperature": 0.0,
    }
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    found = arena.results()
    assert found["judging"] == {"requests": 16, "failed": 0, "without_verdict": 0, "same_answers": 0, "tokens": 16 * 140,
                                "cost_usd": pytest.approx(16 * (100 * 10 + 40 * 30) / 1e6)}  # fmt: skip
    judged = rows_of(arena.out / "arena_hard" / "model_judgment" / "a-judge" / "tuned.jsonl")
    assert [[g["score"] for g in row["games"]] for row in judged] == [list(labels(i)) for i in range(8)]
    assert all(f"[[{labels(0)[k]}]]" in judged[0]["games"][k]["judgment"]["answer"] for k in (0, 1))
    shown = judged[0]["games"][1]["prompt"][0]["content"]
    assert shown.index(text("tuned", 0)) < shown.index(text("base", 0))
    replayed = Arena(arena.folder / "replayed")
    assert (
        replayed.run("--annotations", arena.out / "arena_hard" / "model_judgment" / "a-judge" / "tuned.jsonl", FAST)
        == 0
    )
    for name in ("arena_hard/score", "arena_hard/ci", "arena_hard/style_controlled_ci", "n_wins", "win_rate"):
        assert replayed.results()[name] == found[name]


def test_misfortunes_are_retried_and_what_the_server_owes_is_not_billed(arena: Arena) -> None:
    faults = {
        0: error(429, "slow down"),
        1: error(500, "internal"),
        2: Answer(text='{"choices": [{'),
        3: Answer(drop=True),
        4: Answer(body={"error": {"message": "overloaded", "code": 503}, "usage": {"prompt_tokens": 999}}),
    }
    with serve(lambda n, body: faults.get(n) or by_labels(n, body)) as server:
        assert arena.ask(server.url, "judge.price_input=10", "judge.price_output=30") == 0
    assert len(server.seen) == 16 + 5
    assert len(journal(arena)) == 16
    assert arena.results()["judging"]["cost_usd"] == pytest.approx(16 * (100 * 10 + 40 * 30) / 1e6)


def test_equal_answers_are_a_tie_without_a_question(arena: Arena) -> None:
    rows = rows_of(arena.outputs)
    rows[5]["messages"][-1]["content"]["answer"] = text("base", 5)
    lines(arena.outputs, rows)
    with serve(by_labels) as server:
        assert arena.ask(server.url) == 0
    assert asked(server) == [pair for pair in BOTH if pair[0] != 5]
    assert arena.results()["judging"]["same_answers"] == 1
    assert load(arena.out / "annotations.json")[5]["preference"] == 1.5


@pytest.mark.slow
def test_an_answer_without_a_label_is_said_counted_and_never_paid_for_twice(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    def vague(number: int, body: dict[str, Any]) -> Answer:
        pair = which(body)
        if pair == (3, True):
            return said(None)
        return said("A>B", finish="length") if pair == (6, False) else by_labels(number, body)

    with serve(vague) as server:
        assert arena.ask(server.url) == 1
        printed = capsys.readouterr().err.splitlines()[-1]
        for part in (
            "2 of 16 answers",
            "1 x no label",
            "1 x cut at judge.max_tokens",
            "judge.max_failed=2",
            "judgements.jsonl",
        ):
            assert part in printed
        assert not (arena.out / "results.json").exists()
        assert arena.ask(server.url, "judge.max_failed=1") == 1
        assert arena.ask(server.url, "judge.max_failed=2") == 0
        assert len(server.seen) == 16
        found = arena.results()
        assert (found["n_total"], found["n_null"], found["judging"]["without_verdict"]) == (6, 2, 2)
        assert found["arena_hard/verdicts"]["missing"] == 2
        assert arena.ask(server.url, "judge.max_failed=2", "statistics.confidence=0.5") == 0
        assert arena.ask(server.url, "judge.max_failed=2", "statistics.version=v0.1") == 0
        assert len(server.seen) == 16
    assert arena.results()["n_null"] == 0


def test_a_judge_that_never_gives_a_label_is_not_paid_for_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arena = Arena(tmp_path, n=30)
    with serve(lambda number, body: said(None)) as server:
        for _ in range(2):  # nor is the same line
            assert arena.ask(server.url) == 1
            printed = capsys.readouterr().err.splitlines()[-1]
            assert "12 of 60 answers of the judge a-judge are no verdict (12 x no label" in printed
            assert "the other 48 were not asked for" in printed
            assert len(server.seen) == 12


@pytest.mark.slow
def test_a_larger_limit_asks_again_only_for_what_was_cut(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    def cut(number: int, body: dict[str, Any]) -> Answer:
        short = body["max_tokens"] < 200 and which(body)[0] in (1, 4)
        return said(None, finish="length") if short else by_labels(number, body)

    with serve(cut) as server:
        assert arena.ask(server.url, "judge.max_tokens=100") == 1
        assert "4 x cut at judge.max_tokens" in capsys.readouterr().err
        assert arena.ask(server.url, "judge.max_tokens=100") == 1
        assert len(server.seen) == 16
        assert arena.ask(server.url, "judge.max_tokens=200") == 0
        assert sorted(which(body) for _, _, body in server.seen[16:]) == [(1, False), (1, True), (4, False), (4, True)]
        assert arena.ask(server.url, "judge.max_tokens=300", "statistics.confidence=0.5") == 0
        assert len(server.seen) == 20
    assert (arena.results()["n_total"], arena.results()["judging"]["failed"]) == (8, 0)
    capsys.readouterr()
    assert alphapo("eval", "--recheck", arena.out) == 2
    assert "another protocol" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("written", "version"),
    [
        (lambda switched: None if switched else "A>B", "v2.0"),  # a pair needs both of its games
        (lambda switched: None, "v0.1"),
    ],
)
def test_where_nothing_is_left_to_count_the_cause_is_told(
    written: Callable[[bool], str | None], version: str, arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(lambda number, body: said(written(which(body)[1]))) as server:
        assert arena.ask(server.url, "judge.max_failed=16", f"statistics.version={version}") == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert "of 16 answers of the judge a-judge are no verdict" in printed
    assert "no label" in printed
    assert "max_failed" not in printed


def test_a_thought_that_does_not_end_is_no_verdict(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    def thinking(number: int, body: dict[str, Any]) -> Answer:
        answer = said("A>B")
        message = answer.body["choices"][0]["message"]
        message["content"] = f"<think>{message['content']} or not"
        return answer

    with serve(thinking) as server:
        assert arena.ask(server.url) == 1
    assert "no label" in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_that_thinks_aloud_is_read_after_its_thoughts(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    def thinking(number: int, body: dict[str, Any]) -> Answer:
        answer = by_labels(number, body)
        message = answer.body["choices"][0]["message"]
        message["content"] = f"<think>[[A>>B]] or [[B>>A]]?</think>{message['content']}"
        return answer

    with serve(thinking) as server:
        assert arena.ask(server.url, "statistics.version=v0.1") == 0
    assert "<think>" in journal(arena)[0]["text"]

    silent = said(None, finish="length")
    silent.body["choices"][0]["message"] = {"content": None, "reasoning_content": "hm"}
    with serve(lambda n, body: silent) as server:
        assert arena.ask(server.url, "judge.concurrency=1", out=arena.folder / "silent") == 1
    assert "thought and wrote no answer" in capsys.readouterr().err


def test_odd_texts_are_read_or_fail_alone(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    """Each question has its own oddity; what is readable is kept, what the server owes is not billed."""
    half = said("A>B")
    half.body["choices"][0]["message"]["content"] = "Half a character: \ud83d [[A>B]]"
    behind = Answer(text=json.dumps(said("A=B").body) + "\n\0{}")
    thought = said(None)
    thought.body["choices"][0]["message"]["content"] = "<think>[[B>>A]]</think>\n[[A>B]]"
    lost = said(None)
    lost.body["choices"][0] |= {"finish_reason": "error", "error": {"code": 502, "message": "lost it"}}
    odd = {
        0: half,
        1: behind,
        2: thought,
        3: lost,
        4: Answer(body={"error": {"type": "overloaded_error", "message": "busy"}}),
    }

    def behaviour(number: int, body: dict[str, Any]) -> Answer:
        i, switched = which(body)
        return odd[i] if switched and i in odd else by_labels(number, body)

    prices = ("judge.price_input=10", "judge.price_output=30", "judge.attempts=2")
    with serve(behaviour) as server:
        assert arena.ask(server.url, *prices) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1 x HTTP 502: lost it" in last
    assert "1 x HTTP 200: busy" in last
    rows = journal(arena)
    assert len(rows) == 14
    assert math.fsum(row["price"] for row in rows) == pytest.approx(14 * (100 * 10 + 40 * 30) / 1e6)


def test_refusals_fail_alone_and_the_same_line_asks_for_the_rest(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    def filtered(number: int, body: dict[str, Any]) -> Answer:
        return error(400, "filtered") if which(body) == (4, False) else by_labels(number, body)

    with serve(filtered) as server:
        assert arena.ask(server.url) == 1
    assert "15 of 16 judgements are kept" in capsys.readouterr().err
    port = int(server.url.split(":")[2].split("/")[0])
    with serve(by_labels, port=port) as healed:
        assert arena.ask(healed.url) == 0
    assert asked(healed) == [(4, False)]


@pytest.mark.slow
def test_killed_in_the_middle_the_same_line_asks_only_for_the_rest(arena: Arena) -> None:
    def slow(number: int, body: dict[str, Any]) -> Answer:
        answer = by_labels(number, body)
        answer.wait = 1.0 if number >= 6 else 0.0
        return answer

    with serve(slow) as server:
        line = ["eval", arena.outputs, "--protocol", "arena_hard", "--reference", arena.reference, "--judge", "openai",
                f"judge.base_url={server.url}", "judge.model=a-judge", "judge.concurrency=3", "--out", arena.out]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "alphapo_cli", *map(str, line)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=arena.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        until = time.monotonic() + 60
        while not (arena.out / "judgements.jsonl").exists() or len(journal(arena)) < 6:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
        process.communicate()
        kept = journal(arena)
        with open(arena.out / "judgements.jsonl", "a") as torn:
            torn.write('{"key": "half a li')
        before = len(server.seen)
        assert arena.ask(server.url) == 0
        assert len(server.seen) == before + 16 - len(kept)
    assert len({row["key"] for row in journal(arena)}) == 16
    assert arena.results()["n_total"] == 8


@pytest.mark.slow
def test_the_cost_limit_is_kept_whatever_the_judge_writes(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ["judge.price_input=0", "judge.price_output=1000", "judge.max_tokens=1000"]  # at most 1 USD each
    with serve(lambda n, body: said(labels(0)[0], tokens=1000)) as server:
        assert arena.ask(server.url, *prices, "--max-cost", "9") == 2  # 600 tokens each are expected
        assert "16 requests to a-judge cost about 9.60 USD" in one_line(capsys.readouterr().err)
        assert not server.seen
        assert arena.ask(server.url, *prices, "--max-cost", "10.5") == 1
        assert "--max-cost 10.5 is reached" in capsys.readouterr().err
        assert len(server.seen) == 10
        assert sum(row["price"] for row in journal(arena)) == pytest.approx(10.0)
        assert arena.ask(server.url, *prices, "--max-cost", "20") == 0
        assert len(server.seen) == 16
    short = Arena(arena.folder / "short")
    with serve(lambda n, body: said(labels(0)[0], tokens=500)) as server:
        assert short.ask(server.url, *prices, "--max-cost", "9.7") == 0  # what is under way is waited for
        assert len(server.seen) == 16


def test_the_keys_own_text_reaches_no_file(arena: Arena) -> None:
    with serve(by_labels) as server:
        assert arena.ask(server.url) == 0
        assert {header for _, header, _ in server.seen} == {f"Bearer {KEY}"}
    for path in arena.out.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


# ------------------------------------------------------------------------------------------------------------- prompt


THEIRS = {
    "judge_config.yaml": "system_prompt: judge well\nprompt_template: ['Q {question_1} 1 {answer_1} 2 {answer_2}']\n",
    "arena-hard-v2.0.yaml": "system_prompt: judge well\nprompt_template: 'Q {QUESTION} 1 {ANSWER_A} 2 {ANSWER_B}'\n",
    "prompt.txt": "<|im_start|>system\njudge well<|im_end|>\n<|im_start|>user\nQ {instruction} 1 {output_1} 2 {output_2}<|im_end|>\n",
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_prompts_of_the_public_tool_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    template = load_template(str(write(tmp_path / name, THEIRS[name])))
    # A place's name in an answer is no place.
    filled = fill(template, "why {ANSWER_A}?", "one {output_2} {ANSWER_B}", " two\n")
    assert [(message.role, message.content) for message in filled] == [
        ("system", "judge well"),
        ("user", "Q why {ANSWER_A}? 1 one {output_2} {ANSWER_B} 2  two\n"),
    ]


def test_the_judge_gets_the_file_that_is_named(arena: Arena) -> None:
    file = write(arena.folder / "judge_config.yaml", THEIRS["judge_config.yaml"])
    with serve(by_labels) as server:
        assert arena.ask(server.url, f"judge.prompt_file={file}") == 0
    content = next(body["messages"] for _, _, body in server.seen if which(body) == (0, False))
    assert content[0] == {"role": "system", "content": "judge well"}
    assert content[1]["content"] == f"Q {arena.prompt(0)} 1 {text('base', 0)} 2 {text('tuned', 0)}"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", "{instruction} {output_1}", "{output_2} or {answer_2} or {ANSWER_B}"),
        ("v2.yaml", "prompt_template: '{QUESTION}{ANSWER_A}{ANSWER_B}'", "no 'system_prompt'"),
        ("two.yaml", "system_prompt: s\nprompt_template: [a, b]", "'prompt_template' must be one text"),
        ("bad.yaml", "a: [", "not YAML"),
    ],
)
def test_a_prompt_that_lacks_something_is_refused(
    arena: Arena, capsys: pytest.CaptureFixture[str], name: str, content: str, expected: str
) -> None:
    assert arena.ask("http://127.0.0.1:9/v1", f"judge.prompt_file={write(arena.folder / name, content)}") == 2
    assert expected in one_line(capsys.readouterr().err)
    assert not arena.out.exists()


# ---------------------------------------------------------------------------------------------------------- bad input


def test_options_that_do_not_go_together(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*line: Any) -> str:
        assert alphapo("eval", *line, "--out", arena.out) == 2
        return one_line(capsys.readouterr().err)

    base = [arena.outputs, "--reference", arena.reference]
    arena_hard = [*base, "--protocol", "arena_hard"]
    assert "choose among alpaca_eval, arena_hard" in refused(*base, "--protocol", "mt_bench")
    assert "--questions goes with" in refused(*base, "--questions", arena.questions)
    assert "needs a judge" in refused(*arena_hard)
    assert "--reference" in refused(arena.outputs, "--protocol", "arena_hard")
    assert "OUTPUTS.json is missing" in refused("--protocol", "arena_hard", "--reference", arena.reference)
    assert "--difficulty belongs to AlpacaEval's" in refused(*arena_hard, "--difficulty", "d.csv")
    assert "judge.both_orders is about AlpacaEval's" in refused(
        *arena_hard, "--judge", "openai", "judge.both_orders=true"
    )
    assert "five grades" in refused(*arena_hard, "--judge", "glassbox")
    assert "goes with --judge replay" in refused(*arena_hard, "--judge", "openai", "--annotations", arena.judgments)
    assert "needs --annotations" in refused(*arena_hard, "--judge", "replay")
    assert "no 'width'" in refused(*arena_hard, "--annotations", arena.judgments, "statistics.style=[width]")
    assert "statistics.weight" in refused(*arena_hard, "--annotations", arena.judgments, "statistics.weight=0")
    board = write(arena.folder / "board.csv", ",win_rate\nx,1\n")
    assert "no leaderboard of Arena-Hard" in refused(
        *arena_hard, "--annotations", arena.judgments, "--leaderboard", board
    )
    assert not arena.out.exists()


ROWS: dict[str, tuple[str, Any, str]] = {
    "no uid": ("outputs", lambda r: r[0].pop("uid"), "row 1: no 'uid' or 'question_id'"),
    "no answer": ("outputs", lambda r: r[2]["messages"].pop(), "row 3: 'messages' must hold one user message"),
    "answer null": ("outputs", lambda r: r[1]["messages"][-1].update(content={"answer": None}), "row 2: the answer is NoneType"),
    "twice": ("outputs", lambda r: r.append(r[3]), "duplicate question 'uid0003' (rows 4 and 9)"),
    "two models": ("outputs", lambda r: r[1].update(model="x"), "answers of 2 models"),
    "not in the reference": ("reference", lambda r: r.pop(5), "1 of 8 questions are not in the reference"),
    "not a question": ("questions", lambda r: r.pop(5), "question uid0005 is not in"),
    "two turns": ("questions", lambda r: r[0].update(prompt=None, turns=[{"content": "a"}, {"content": "b"}]), "has 2 turns"),
    "no games": ("judgments", lambda r: r[4].pop("games"), "row 5: no 'games'"),
    "three games": ("judgments", lambda r: r[4]["games"].extend(r[3]["games"]), "row 5: 'games' must be a list of two"),
    "no score": ("judgments", lambda r: r[4]["games"][0].pop("score"), "row 5: a game has no 'score'"),
    "another model": ("judgments", lambda r: [x.update(model="other") for x in r], "judges the model 'other'"),
    "another baseline": ("judgments", lambda r: [x.update(baseline="other") for x in r], "judges the baseline 'other'"),
    "two judges": ("judgments", lambda r: r[1].update(judge="other"), "'a-judge' and 'other' in one file"),
    "judged twice": ("judgments", lambda r: r.append(r[0]), "question uid0000 is judged twice (rows 1 and 9)"),
    "other answers": (
        "judgments",
        lambda r: r[2]["games"][0]["prompt"][0].update(content="Q"),
        "judges other answers than",
    ),
    "no verdict at all": (
        "judgments",
        lambda r: [game.update(score=None) for x in r for game in x["games"]],
        "there is nothing to count",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_broken_row_is_named(arena: Arena, capsys: pytest.CaptureFixture[str], name: str) -> None:
    which_file, spoil, expected = ROWS[name]
    path = getattr(arena, which_file)
    rows = rows_of(path)
    spoil(rows)
    lines(path, rows)
    assert arena.replay(FAST) == (1 if "nothing to count" in expected else 2)
    assert expected in one_line(capsys.readouterr().err)


def test_annotations_of_alpaca_eval_are_told_apart(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    assert arena.replay(FAST) == 0
    capsys.readouterr()
    assert arena.run("--annotations", arena.out / "annotations.json", out=arena.folder / "x") == 2
    assert "go without --protocol arena_hard" in one_line(capsys.readouterr().err)


def test_without_the_protocol_its_files_are_told_what_they_are(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--reference", arena.alpaca_eval("base"), "--out", arena.out]
    assert alphapo("eval", arena.outputs, *base) == 2
    assert "Arena-Hard's answers go with --protocol arena_hard" in one_line(capsys.readouterr().err)
    assert alphapo("eval", arena.alpaca_eval("tuned"), *base, "--annotations", arena.judgments) == 2
    assert "is this Arena-Hard's (--protocol arena_hard)?" in one_line(capsys.readouterr().err)


def test_judgements_of_answers_with_or_without_thoughts_say_which(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    """One answer begins with a thought. The judge saw it, or what is left of it; what is left is a part of the whole."""
    thought = "<think>long and longer</think>\n\n"
    answers, judged = rows_of(arena.outputs), rows_of(arena.judgments)
    whole = answers[1]["messages"][-1]["content"]["answer"]
    answers[1]["messages"][-1]["content"]["answer"] = thought + whole
    lines(arena.outputs, answers)
    assert arena.replay() == 2
    assert "add --strip-think" in one_line(capsys.readouterr().err)
    assert arena.replay("--strip-think") == 0
    capsys.readouterr()
    for game in judged[1]["games"]:
        game["prompt"][0]["content"] = game["prompt"][0]["content"].replace(whole.strip(), (thought + whole).strip())
    lines(arena.judgments, judged)
    assert arena.replay("--strip-think", out=arena.folder / "other") == 2
    assert "leave --strip-think out" in one_line(capsys.readouterr().err)
    assert arena.replay(out=arena.folder / "other") == 0


def test_the_old_form_needs_the_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arena = Arena(tmp_path, version="v0.1")
    kept = arena.questions.rename(tmp_path / "elsewhere.jsonl")
    assert arena.replay(FAST) == 2
    assert "--questions FILE" in one_line(capsys.readouterr().err)
    assert arena.replay(FAST, "--questions", kept) == 0


def test_print_config_shows_its_own_settings(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    assert alphapo("eval", "--protocol", "arena_hard", "--print-config") == 0
    shown = capsys.readouterr().out
    assert "max_tokens: 4096" in shown
    assert "version: v2.0" in shown
