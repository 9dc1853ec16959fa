"""What files and settings may hold that nobody means: rows in any order and form, wrong types, numbers that are none."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.cli.score import check_consent
from alphapo_cli.config.overrides import Line
from alphapo_cli.config.schema import DataConfig
from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.pairs import read
from alphapo_cli.pairs.augment import Made
from alphapo_cli.pairs.build import build, check_settings
from alphapo_cli.pairs.candidates import Answer, Candidates
from alphapo_cli.pairs.rows import pair_row, summary_of
from alphapo_cli.pairs.schema import OrderConfig, PairConfig, PairingConfig, ThinConfig
from alphapo_cli.pairs.scoring.pairwise import tournament
from alphapo_cli.pairs.scoring.rule import Rule
from alphapo_cli.pairs.scoring.schema import ScorerConfig, ScorerJudgeConfig
from alphapo_cli.pairs.scoring.scorer import Plain, Scores
from alphapo_cli.pairs.scoring.store import scored
from alphapo_cli.stages.scored_answers import make_scorers, score_all, scorer_configs
from tests.conftest import run_here, write_rows

GIVEN = {"pair": PairConfig(chosen="given", rejected="given")}


def pairs_in(folder: Path, rows: Sequence[dict[str, Any]], cfg: PairingConfig) -> list[str]:
    """The rows of pairs.jsonl, and whether each prompt is there with or without a pair."""
    prompts = read.read([write_rows(folder / "answers.jsonl", rows)])
    built = build(prompts, cfg, read.columns_of(prompts), 0)
    dropped = [json.dumps([prompt.content, reason]) for prompt, reason in built.dropped]
    return [json.dumps(pair_row(Made(pair), ["score"])) for pair in built.pairs] + dropped


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ([{"responses": ["a", "b"], "scores": [1, 2]}, {"responses": ["a", "c"], "scores": [3, 0]}], {}),
        (
            [
                {"chosen": "a", "rejected": "b", "score_chosen": 5, "score_rejected": 1},
                {"chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 2},
            ],
            GIVEN,
        ),
        (
            [
                {"responses": ["a", "b"], "scores": [1, 2]},
                {"prompt": [{"role": "user", "content": "p"}], "responses": ["d", "c"], "scores": [3, 0]},
            ],
            {},
        ),
        (
            [
                {"topic": 1, "responses": ["a", "b"], "scores": [1, 2]},
                {"topic": 5, "other": 2, "responses": ["d", "c"], "scores": [3, 0]},
                {"prompt": "q", "topic": 1, "other": 1, "responses": ["d", "c"], "scores": [3, 0]},
            ],
            {"select": [{"by": "topic", "max": 3}, {"by": "other", "max": 2}]},
        ),
    ],
)
def test_rows_of_one_prompt_make_the_same_pairs_in_any_order(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    rows = [{"prompt": "p", **row} for row in rows]
    found = [pairs_in(tmp_path, order, PairingConfig(**settings)) for order in itertools.permutations(rows)]
    assert len(found[0]) > 0
    assert all(one == found[0] for one in found)


def test_given_pairs_that_come_twice_count_once_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert len(read.read([write_rows(tmp_path / "a.jsonl", [row, row, {**row, "chosen": "c"}])])) == 2
    assert "1 given pairs are there already" in capsys.readouterr().err


def test_csv_scores_and_columns_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt,chosen,rejected,score_chosen,score_rejected,topic\np,a,b,2.5,1,4\nq,a,b,,1,5\n")
    first, second = read.read([file])
    assert [answer.scores for answer in first.answers] == [{"score": 2.5}, {"score": 1.0}]
    assert [answer.scores for answer in second.answers] == [{}, {"score": 1.0}]
    assert (first.columns, second.columns) == ({"topic": 4.0}, {"topic": 5.0})
    file.write_text("prompt,chosen,rejected,score_chosen\np,a,b,high\n")
    with pytest.raises(UsageError, match="the score 'score_chosen' is 'high', not a number"):
        read.read([file])


@pytest.mark.parametrize("role", [{}, {"role": "robot"}])
def test_a_prompt_of_no_messages_is_refused(tmp_path: Path, role: dict[str, str]) -> None:
    row = {"prompt": [{**role, "content": "x"}], "responses": ["a", "b"], "scores": [1, 2]}
    with pytest.raises(UsageError, match=r"a.jsonl: line 1: 'prompt\[0\]'"):
        read.read([write_rows(tmp_path / "a.jsonl", [row])])


@pytest.mark.parametrize("second", [[[1, 2], [3]], [[1], [3]]])
def test_features_of_different_lengths_are_refused(tmp_path: Path, second: list[list[int]]) -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "features": [[1, 2], [3, 4]]}
    file = write_rows(tmp_path / "a.jsonl", [row, {**row, "prompt": "q", "features": second}])
    with pytest.raises(UsageError, match="line 2: its features are 1 numbers, others 2"):
        read.read([file])


SCORE_MEASURE = {"by": "d_optimal", "margin": "margin", "gamma": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"select": 5}, "select=5: must be a list of conditions"),
        ({"select": [{"by": "margin", "keep": "highest", "share": "half"}]}, "share=half: must be a number"),
        ({"select": [{"by": "margin", "keep": "highest", "count": 1.5}]}, "count=1.5: must be a whole number"),
        ({"select": [{"by": "margin", "min": True}]}, "min=True: must be a number"),
        ({"select": [{"by": ["margin"], "min": 1}]}, "must be a text"),
        ({"measures": {"margin": {"by": "near_duplicate"}}}, "there is a number margin already"),
        ({"measures": {"m": {"by": "near_duplicate", "words": 0}}}, "measures.m.words=0: must be above 0"),
        ({"measures": {"m": {"by": "ngrams", "path": 5}}}, "measures.m.path=5: must be a text"),
        ({"measures": {"m": {**SCORE_MEASURE, "gamma": 0}}}, "measures.m.gamma=0: must be above 0"),
        ({"measures": {"m": {**SCORE_MEASURE, "count": -1}}}, "measures.m.count=-1: must be above 0"),
        ({"measures": {"m": {"by": "bayes", "margins": ["margin"], "low": -1, "high": 1}}}, "must be a list of finite"),
        ({"measures": {"m": {"by": "bayes", "margins": ["margin"], "low": ["a"], "high": ["b"]}}}, "list of finite"),
        ({"pair": PairConfig(rejected="at:nan")}, "write a number of standard deviations"),
        ({"pair": PairConfig(rejected="rank:²")}, "a whole number from 1"),
        ({"pair": PairConfig(length_weight=1e308)}, "must be at most 1e+100"),
        ({"pair": PairConfig(chosen="given", rejected="given", min_margin=1)}, "pair.min_margin=1: has no effect on given"),
        ({**GIVEN, "thin": ThinConfig(min_chars=3)}, "thin.min_chars=3: has no effect on given"),
    ],
)  # fmt: skip
def test_settings_of_a_wrong_kind(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_settings(PairingConfig(**settings), ["score"], [], answers=4)
    assert words in str(caught.value)


def test_a_single_condition_needs_no_list() -> None:
    prompts = [Candidates(f"p{i}", (Answer("a", 0, scores={"s": float(i)}), Answer("b", 1, scores={"s": -1.0}))) for i in range(4)]  # fmt: skip
    built = build(prompts, PairingConfig(select={"by": "margin", "min": 3}), ["s"], 0)
    assert sorted(pair.margin for pair in built.pairs if pair.margin) == [3, 4]


def test_answers_that_take_no_part_are_counted() -> None:
    texts = [("a", 1.0), ("a", 2.0), ("b", 3.0), (" ", 4.0), ("c", None)]
    answers = tuple(Answer(text, i, scores={} if s is None else {"s": s}) for i, (text, s) in enumerate(texts))
    built = build([Candidates("p", (*answers, Answer("d", 9, cut=True, scores={"s": 9.0})))], PairingConfig(), ["s"], 0)
    assert [(pair.chosen.text, pair.rejected.text) for pair in built.pairs] == [("b", "a")]
    assert summary_of(built, 1)["answers_left_out"] == {
        "not scored": 1, "empty": 1, "cut by the token limit": 1, "equal texts": 1
    }  # fmt: skip


def test_more_stages_than_pairs_leave_none_empty() -> None:
    prompts = [Candidates(f"p{i}", (Answer("a", 0, scores={"s": 1.0}), Answer("b", 1, scores={"s": 0.0}))) for i in range(3)]  # fmt: skip
    built = build(prompts, PairingConfig(order=OrderConfig(stages=9)), ["s"], 0)
    assert [pair.stage for pair in built.pairs] == [1, 2, 3]


@pytest.mark.parametrize("answers", range(2, 9))
def test_a_tournament_finds_best_and_worst_of_any_number(answers: int) -> None:
    for order in itertools.islice(itertools.permutations(range(answers)), 0, None, 1 if answers < 6 else 7):
        found = tournament(answers, lambda duels, order=order: [float(order[i] > order[j]) for i, j in duels])  # type: ignore[misc]
        assert (found.index(1.0), found.index(-1.0)) == (order.index(answers - 1), order.index(0))


def test_a_tournament_without_an_order_has_no_winner_that_is_also_the_loser() -> None:
    # 2 beats the winner of 0 and 1, and loses to their loser.
    wins = {(0, 1): 1.0, (0, 2): 0.0, (1, 2): 1.0}
    assert tournament(3, lambda duels: [wins[i, j] for i, j in duels]) == [0.0, 0.0, 0.0]


def test_a_function_that_was_edited_is_another_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    for name, module in (("one.py", "one"), ("package/__init__.py", "package"), ("package/two.py", "package.two")):
        (tmp_path / name).write_text("def f(rows): return [1 for row in rows]\n")
        rule = Rule("rule", ScorerConfig(name="rule", rule=f"{module}:f"))
        before = rule.identity()
        assert rule.identity() == before
        (tmp_path / name).write_text("def f(rows): return [2 for row in rows]\n")
        assert rule.identity() != before, module


def test_a_rule_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    script = tmp_path / "rule.sh"
    script.write_text("echo 1\n")  # no first line that names an interpreter
    os.chmod(script, 0o755)
    with pytest.raises(UsageError, match=r"rule.sh: cannot be run \(Exec format error\)"):
        Rule("rule", ScorerConfig(name="rule", rule=str(script))).score([Candidates("p", (Answer("a"),))])


class Overflowed(Plain):
    """A model whose numbers are not all finite."""

    free = False

    def identity(self) -> dict[str, Any]:
        return {"scorer": "overflowed"}

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        numbers = {"a": math.nan, "b": math.inf, "c": 1.0, "d": 2.0}
        return [[numbers[answer.text] for answer in prompt.answers] for prompt in prompts]


def test_numbers_that_are_not_finite_are_no_scores_then_and_later(tmp_path: Path) -> None:
    """Also where the answer came with a number of that name: no column mixes two sources."""
    answers = tuple(Answer(text, i, scores={"x": 7.0}) for i, text in enumerate("abcd"))
    for _ in range(2):
        found, _new = scored([Candidates("p", answers)], Overflowed("x"), tmp_path)
        assert [answer.scores for answer in found[0].answers] == [{}, {}, {"x": 1.0}, {"x": 2.0}]


def test_an_ensemble_is_typed_in_any_order(tmp_path: Path) -> None:
    configs = scorer_configs(ScorerConfig(name="mean", of=["a", "b"]), {"a": {"name": "length"}, "b": {"name": "length", "unit": "words"}})  # fmt: skip
    prompts = [Candidates("p", (Answer("x y"), Answer("xyz", 1)))]
    scorers = make_scorers(configs, ScorerJudgeConfig(), DataConfig(), tmp_path, prompts)
    found, _ = score_all(prompts, scorers, tmp_path)
    assert [answer.scores["mean"] for answer in found[0].answers] == [2.5, 2.0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"scorers.x.trust_remote_code": True}, True),
        ({"scorers.x": {"name": "reward_model", "trust_remote_code": True}}, True),
        ({"scorers": {"x": {"trust_remote_code": True}}}, True),
        ({"scorers": {"y": {"name": "length"}}}, False),
        ({"scorers": {"y": {"trust_remote_code": True}}}, False),
        ({"scorers.x": {"name": "reward_model"}}, False),
        ({}, False),
    ],
)
def test_code_runs_only_where_the_line_says_so_of_that_scorer(values: dict[str, Any], says: bool) -> None:
    """`scorers={y: ...}` on the line does not consent to what a YAML says of x, with which it is merged."""
    more = {"x": {"name": "reward_model", "trust_remote_code": True}, "y": {"name": "length"}}
    if says:
        check_consent(ScorerConfig(), Line(values=values), more)
        return
    with pytest.raises(ConfigError, match=r"scorers.x.trust_remote_code: code that runs is named on the command line"):
        check_consent(ScorerConfig(), Line(values=values), more)


@pytest.mark.slow
def test_commands_say_what_has_no_effect_and_scores_keep_their_form(tmp_path: Path, shared_cache: Path) -> None:
    rows = [
        {"prompt": "p", "topic": 3, "responses": ["a", "bb", "ccc"], "scores": {"rm": [1, 2, 3]}, "cut": [False, False, True]},
        {"prompt": "q", "topic": 4, "responses": ["a", "bb"]},
    ]  # fmt: skip
    answers = str(write_rows(tmp_path / "a.jsonl", rows))
    ran = run_here(("score", answers, "scorer=length", "--out", "s"), tmp_path, shared_cache)
    assert ran.code == 0, ran.err
    text = (tmp_path / "s/scored.jsonl").read_text()
    made = {row["prompt"]: row for row in map(json.loads, text.splitlines())}
    assert made["q"]["scores"] == {"length": [1.0, 2.0], "rm": [None, None]}
    assert (made["p"]["cut"], made["p"]["topic"]) == ([False, False, True], 3)
    # Other scores of the same texts are other scores.
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("[1, 2, 3]", "[9, 8, 7]"))
    assert (
        run_here(("score", "b.jsonl", "scorer=column", "scorer.of=[rm]", "--out", "t"), tmp_path, shared_cache).code
        == 0
    )
    changed = run_here(("score", answers, "scorer=column", "scorer.of=[rm]", "--out", "t"), tmp_path, shared_cache)
    assert changed.code == 2, changed.out
    # Before anything is scored: the rule would fail.
    rule = ("scorer=rule", "scorer.rule=false")
    write_rows(tmp_path / "system.jsonl", [{**rows[1], "system": "be kind"}])
    for line, words in (
        (("--answers", "s"), "give s/scored.jsonl"),
        (("--answers", "s/scored.jsonl"), "type pair.rank_by=length"),
        (("--answers", answers, "scorer.rule=cat"), "scorer.rule: of which scorer?"),
        (("--answers", answers, *rule, "thin.min_tokens=2"), "length in tokens"),
        (("--answers", answers, *rule, "pair.chosen_ties=longest", "pair.length_unit=tokens"), "length in tokens"),
        (("--answers", "system.jsonl", *rule, "augment.by=goal"), "system.jsonl: line 1 has a system text already"),
    ):
        refused = run_here(("pairs", *line), tmp_path, shared_cache)
        assert (refused.code, words in refused.fault) == (2, True), refused.err
    ran = run_here(
        ("pairs", "--answers", "s/scored.jsonl", "pair.rank_by=length", "data.limit=1", "--out", "p"),
        tmp_path, shared_cache,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "note: data.limit had no effect" in ran.err
    pairs = [json.loads(line) for line in (tmp_path / "p/pairs.jsonl").read_text().splitlines()]
    assert {(row["prompt"], row["chosen"], row["rejected"]) for row in pairs} == {("p", "bb", "a"), ("q", "bb", "a")}
