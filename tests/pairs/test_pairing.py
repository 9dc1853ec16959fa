"""Pairs from scored answers: what holds for every rule, and rules against plain Python."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.data.text_pairs import canonical
from alphapo_cli.errors import UsageError
from alphapo_cli.pairs import measures
from alphapo_cli.pairs.augment import augment
from alphapo_cli.pairs.build import build, check_settings
from alphapo_cli.pairs.candidates import Answer, Candidates, mean_and_sd
from alphapo_cli.pairs.length_balance import balance
from alphapo_cli.pairs.read import joined
from alphapo_cli.pairs.rows import pair_row
from alphapo_cli.pairs.rules import Pair
from alphapo_cli.pairs.schema import AugmentConfig, OrderConfig, PairConfig, PairingConfig, ThinConfig
from alphapo_cli.pairs.thin import rejection_sample, repetition, thin

RULES = [
    ("best", "worst"), ("best", "random"), ("best", "rank:2"), ("best", "at:-2"), ("best", "each"), ("all", "all"),
    ("random", "worst"), ("rank:1", "rank:3"), ("neighbours", "neighbours"), ("source:a", "source:b"),
]  # fmt: skip


def prompt(number, scores, texts=None, sources=None):
    """Prompt `number` with answers of those scores; a text is its number unless `texts` says otherwise."""
    answers = tuple(
        Answer(
            texts[i] if texts else f"answer {i}", i, sources[i] if sources else "self",
            scores={} if score is None else {"score": score},
        )
        for i, score in enumerate(scores)
    )  # fmt: skip
    return Candidates(f"prompt {number}", answers)


def pairs(prompts, seed=0, **settings):
    built = build(prompts, PairingConfig(**settings), ["score"], seed)
    return built, [(p.candidates.content, p.chosen.text, p.rejected.text) for p in built.pairs]


def one(scores, texts=None, seed=0, **rule):
    """(chosen, rejected) positions of the pairs of a single prompt."""
    built, _ = pairs([prompt(0, scores, texts)], seed, pair=PairConfig(**rule))
    return [(p.chosen.number, p.rejected.number) for p in built.pairs]


some_prompts = st.lists(
    st.lists(
        st.tuples(
            st.none() | st.integers(-3, 3).map(float), st.sampled_from(["x", "yy", "zzz", "w w"]), st.sampled_from("ab")
        ),
        min_size=0, max_size=6,
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(some_prompts, st.sampled_from(RULES), st.integers(0, 3), st.randoms(use_true_random=False))
def test_whatever_the_rule(rows, sides, seed, rng):
    """Different texts, a margin above 0, every prompt counted once, and no part for the order of rows or files."""
    prompts = [prompt(n, *zip(*row, strict=True)) if row else prompt(n, []) for n, row in enumerate(rows)]
    settings = {
        "pair": PairConfig(chosen=sides[0], rejected=sides[1]),
        "select": [{"by": "margin", "keep": "highest", "share": 0.5}],
    }
    built, found = pairs(joined(prompts), seed, **settings)
    for p in built.pairs:
        assert p.chosen.text != p.rejected.text
        assert p.margin > 0
        assert p.margin == p.chosen.scores["score"] - p.rejected.scores["score"]
        assert p.chosen in p.candidates.answers
    with_pairs = {p.candidates.content for p in built.pairs}
    without = [p.content for p, _ in built.dropped]
    assert len(without) == len(set(without))
    assert with_pairs | set(without) == {p.content for p in prompts}
    assert not with_pairs & set(without)
    assert sum(built.reasons.values()) + len(with_pairs) == len(prompts)
    # The same answers, one a row, in another order of rows and of answers.
    split = [replace(p, answers=(a,)) for p in prompts for a in p.answers] + [p for p in prompts if not p.answers]
    rng.shuffle(split)
    again, shuffled = pairs(joined(split), seed, **settings)
    assert shuffled == found
    assert [canonical(pair_row(m, ["score"])) for m in again.made] == [
        canonical(pair_row(m, ["score"])) for m in built.made
    ]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_best_against_worst_is_argmax_and_argmin(scores):
    found = one(scores)
    if max(scores) == min(scores):
        assert found == []
        built, _ = pairs([prompt(0, scores)])
        assert built.reasons == {"tied: all scores are equal": 1}
    else:
        assert found == [(scores.index(max(scores)), scores.index(min(scores)))]


def test_rules_on_four_answers():
    scores = [1.0, 4.0, 3.0, 2.0]
    assert one(scores, rejected="rank:2") == [(1, 2)]  # best against second best
    assert one(scores, chosen="rank:2", rejected="rank:4") == [(2, 0)]
    assert sorted(one(scores, rejected="each")) == [(1, 0), (1, 2), (1, 3)]
    assert sorted(one(scores, chosen="all", rejected="all")) == sorted(
        (i, j) for i, j in itertools.permutations(range(4), 2) if scores[i] > scores[j]
    )
    assert one(scores, min_margin=3.0) == [(1, 0)]
    assert one(scores, min_margin=3.1) == []
    assert one(scores, min_chosen=4.1) == []
    assert {one(scores, rejected="random", seed=seed)[0][1] for seed in range(30)} == {0, 2, 3}
    drawn = [one(scores, chosen="neighbours", rejected="neighbours", seed=seed) for seed in range(30)]
    assert all(sorted(i for pair in one for i in pair) == [0, 1, 2, 3] for one in drawn), "each answer once"
    assert len({tuple(sorted(map(tuple, one))) for one in drawn}) == 3, "every pairing of four comes up"


def test_ties_go_by_their_rule():
    scores, texts = [1.0, 1.0, 0.0, 0.0], ["aa", "a", "bbb", "bb"]
    assert one(scores, texts) == [(0, 2)]
    assert one(scores, texts, chosen_ties="shortest", rejected_ties="shortest") == [(1, 3)]
    assert one(scores, texts, chosen_ties="longest", rejected_ties="longest") == [(0, 2)]
    assert {one(scores, texts, rejected_ties="random", seed=s)[0] for s in range(20)} == {(0, 2), (0, 3)}


def test_a_position_in_standard_deviations_is_the_nearest_answer():
    rng = random.Random(0)
    for size in (5, 60):
        agree = 0
        for _ in range(200):
            scores = [rng.gauss(0, 1) for _ in range(size)]
            mean, sd = np.mean(scores), np.std(scores)
            (pair,) = one(scores, rejected="at:-2")
            target = mean - 2 * sd
            assert pair[1] == min(range(size), key=lambda i: abs(scores[i] - target))
            agree += pair[1] == int(np.argmin(scores))
        # With 5 answers none is 2 s.d. below the mean: it is simply the worst one; with 60 it is another most times.
        assert agree == 200 if size == 5 else 20 < agree < 100


def test_own_answers_may_have_a_margin_of_their_own():
    candidates = prompt(0, [5.0, 4.0, 2.0], sources=["self", "gold", "self"])
    _, found = pairs([candidates], pair=PairConfig(chosen="all", rejected="all", min_margin=2, own_margin=1))
    assert sorted(found) == [
        ("prompt 0", "answer 0", "answer 1"), ("prompt 0", "answer 0", "answer 2"), ("prompt 0", "answer 1", "answer 2")
    ]  # fmt: skip
    candidates = replace(candidates, answers=tuple(replace(a, source="gold") for a in candidates.answers))
    _, found = pairs([candidates], pair=PairConfig(chosen="all", rejected="all", min_margin=2, own_margin=1))
    assert ("prompt 0", "answer 0", "answer 1") not in found


# ------------------------------------------------------------------------------------------------------------- thin


def test_rejection_sampling_draws_from_softmax():
    """The first answer taken is a draw from softmax(r / beta), within four standard errors."""
    rewards, beta, n = [0.0, 0.3, 0.9, 1.0], 0.5, 20_000
    rng = random.Random(0)
    counts = Counter(rejection_sample(rewards, beta, 1, rng)[0] for _ in range(n))
    weights = [math.exp(r / beta) for r in rewards]
    for i, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs(counts[i] / n - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert rejection_sample(rewards, 1e-3, 2, rng) == [3, 2]  # beta to 0: the best ones
    assert len(rejection_sample(rewards, 1e9, 9, rng)) == 4
    even = Counter(rejection_sample(rewards, 1e9, 1, rng)[0] for _ in range(n))  # beta to infinity: any
    assert all(abs(even[i] / n - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n) for i in range(4))


def test_answers_are_left_out_for_a_reason():
    def left(cfg, *answers):
        found, reason = thin(Candidates("p", answers), cfg, lambda a: a.scores.get("score"), 0)
        return [a.text for a in found], reason

    a, b, c = (Answer(text, n, scores={"score": 1.0 * n}) for n, text in enumerate(("aa", "bbbb", "bbbb")))
    assert left(ThinConfig(), a, b, c) == (["aa", "bbbb"], None)
    assert left(ThinConfig(), b, a, c) == (["bbbb", "aa"], None)  # the first of equal ones stays, where it was
    assert left(ThinConfig(duplicates="keep"), a, b, c) == (["aa", "bbbb", "bbbb"], None)
    assert left(ThinConfig(min_answers=3), a, b, c)[1] == "fewer than 3 answers: equal texts"
    assert left(ThinConfig(), a, replace(b, cut=True))[1] == "fewer than 2 answers: cut by the token limit"
    assert left(ThinConfig(cut="keep"), a, replace(b, cut=True))[1] is None
    assert left(ThinConfig(min_chars=3), a, b)[1] == "fewer than 2 answers: outside the length bounds"
    assert left(ThinConfig(), a, replace(b, scores={}))[1] == "fewer than 2 answers: not scored"
    assert left(ThinConfig(), a)[1] == "fewer than 2 answers"
    assert repetition("a b c d a b c d") == 1 - 4 / 5
    assert left(ThinConfig(max_repetition=0.1), a, replace(b, text="a b c d a b c d"))[1] == (
        "fewer than 2 answers: repetitive"
    )


# ----------------------------------------------------------------------------------------------------------- length


def test_the_weight_of_length_balances_it():
    """The gap falls with the weight, and bisection leaves at most the step at which it passes zero."""
    rng = random.Random(1)

    def world(scale):
        rows = []
        for n in range(60):
            lengths = [rng.randint(5, 60) for _ in range(6)]
            # The scorer likes length: `scale` per character.
            scores = [rng.gauss(0, 3) + scale * length for length in lengths]
            rows.append(prompt(n, scores, [f"{i}".ljust(length, "x") for i, length in enumerate(lengths)]))
        return rows

    for scale in (0.2, 3.0):  # with the second one the weight is above the published grid, which ends at 1
        rows = world(scale)

        def gap(weight, rows=rows):
            total = 0
            for row in rows:
                values = [a.scores["score"] - weight * len(a.text) for a in row.answers]
                best, worst = values.index(max(values)), values.index(min(values))
                total += len(row.answers[best].text) - len(row.answers[worst].text)
            return total / len(rows)

        weights = np.linspace(0, 4, 81)
        gaps = [gap(w) for w in weights]
        assert all(a >= b for a, b in itertools.pairwise(gaps))
        built, _ = pairs(rows, pair=PairConfig(length_weight="balance"))
        found = np.mean([len(p.chosen.text) - len(p.rejected.text) for p in built.pairs])
        assert abs(found) <= min(map(abs, gaps)) + 1e-9, "no weight of a fine grid does better"
        assert (built.length_weight > 1) == (scale > 1)
        assert built.length_weight == pytest.approx(scale, rel=0.5)
    assert balance(lambda weight: -1.0) == 0.0


# ------------------------------------------------------------------------------------------------------ select, order


def of(chosen, rejected, text="p", **more):
    answers = Answer("c", 0, scores={"score": chosen}), Answer("r", 1, scores={"score": rejected})
    first, second = (replace(a, **{k: v[i] for k, v in more.items()}) for i, a in enumerate(answers))
    return Pair(Candidates(text, (first, second)), first, second, chosen, rejected)


def test_two_margins_are_one_probability():
    """BeeS's formula by hand."""
    cfg = {"by": "bayes", "margins": ["a", "b"], "low": [-2, -1], "high": [2, 3]}
    (found,) = measures.measure([of(1.0, 0.0)], cfg, {"a": [1.0], "b": [5.0]})
    assert found == pytest.approx(0.75 * 1 / (0.75 * 1 + 0.25 * 0))
    (found,) = measures.measure([of(1.0, 0.0)], cfg, {"a": [1.0], "b": [0.0]})
    assert found == pytest.approx(0.75 * 0.25 / (0.75 * 0.25 + 0.25 * 0.75))
    assert measures.measure([of(1.0, 0.0)], cfg, {"a": [2.0], "b": [-1.0]}) == [0.5]


def test_d_optimal_is_greedy_in_the_log_determinant():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=12)
    vectors = rng.normal(size=(12, 2, 3))
    rows = [
        of(1.0, 0.0, f"p{i}", features=(tuple(map(float, v[0])), tuple(map(float, v[1]))))
        for i, v in enumerate(vectors)
    ]
    cfg = {"by": "d_optimal", "margin": "margin", "gamma": 0.7, "beta": 2.0, "count": 8}
    found = measures.measure(rows, cfg, {"margin": margins.tolist()})
    mu = 1 / (1 + np.exp(-margins))
    v = 2.0 * np.sqrt(mu * (1 - mu))[:, None] * (vectors[:, 0] - vectors[:, 1])
    taken: list[int] = []
    h = 0.7 * np.eye(3)
    for _ in range(8):  # by brute force: the determinant of every candidate
        best = max(set(range(12)) - set(taken), key=lambda i: np.linalg.slogdet(h + np.outer(v[i], v[i]))[1])
        taken.append(best)
        h = h + np.outer(v[best], v[best])
    assert [found.index(float(n)) for n in range(8)] == taken
    assert sum(map(math.isnan, found)) == 4


def test_near_duplicates_and_contamination(tmp_path):
    texts = [
        "one two three four five six", "one two three four five seven", "something else altogether is asked for here",
        "One, two three FOUR five six!",
    ]  # fmt: skip
    rows = [of(1.0, 0.0, text) for text in texts]
    found = dict(zip(texts, measures.measure(rows, {"by": "near_duplicate", "words": 2}, {}), strict=True))
    assert found[texts[2]] == 0.0
    group = sorted(found[text] for text in texts if text != texts[2])
    # Of six bigrams five; the two that differ in case alone are the same, and one of the three is the first of all.
    assert group[0] == 0.0
    assert max(group) in (1.0, pytest.approx(4 / 6))
    file = tmp_path / "eval.json"
    file.write_text('[{"instruction": "please: one two three four five six"}]')
    counts = measures.measure(rows, {"by": "ngrams", "path": str(file), "words": 5}, {})
    assert counts == [2.0, 1.0, 0.0, 2.0]


def test_select_in_order_and_orders_by_numbers_in_stages():
    prompts = [prompt(n, [float(n + 1), 0.0]) for n in range(8)]
    select = {"wide": {"by": "margin", "min": 3.0}, "few": {"by": "margin", "keep": "lowest", "count": 4}}
    order = OrderConfig(by="margin", descending=True, stages=2)
    built, _ = pairs(prompts, select=select, order=order)
    assert [(p.margin, p.stage) for p in built.pairs] == [(6.0, 1), (5.0, 1), (4.0, 2), (3.0, 2)]
    assert sum(built.reasons.values()) == 4
    assert set(built.reasons) == {"not selected: 3 <= margin", "not selected: the lowest 4 by margin"}


def test_a_curriculum_has_a_prompts_pairs_in_stages():
    """Curry-DPO: (R1, R4), (R1, R3), (R1, R2), one stage each, of every prompt."""
    prompts = [prompt(n, [4.0, 3.0, 2.0, 1.0 - n]) for n in range(5)]
    order = OrderConfig(by="margin", descending=True, stages=3, per_prompt=True)
    built, _ = pairs(prompts, pair=PairConfig(rejected="each"), order=order)
    assert [p.stage for p in built.pairs] == [1] * 5 + [2] * 5 + [3] * 5
    for stage, rejected in ((1, "answer 3"), (2, "answer 2"), (3, "answer 1")):
        assert {p.rejected.text for p in built.pairs if p.stage == stage} == {rejected}


# ---------------------------------------------------------------------------------------------------------- augment


def test_a_goal_asks_for_either_score():
    (first, second) = augment([of(8.0, 3.0)], AugmentConfig(by="goal"), 0)
    assert (first.pair.chosen.text, first.pair.rejected.text) == ("c", "r")
    assert (second.pair.chosen.text, second.pair.rejected.text) == ("r", "c")
    assert first.system.endswith("Overall score: 8.")
    assert second.system.endswith("Overall score: 3.")
    assert first.pair.margin == second.pair.margin == 25.0
    with pytest.raises(UsageError, match="no scores to ask for"):
        augment([replace(of(8.0, 3.0), score_chosen=None)], AugmentConfig(by="goal"), 0)


def test_answers_of_other_prompts_are_rejected_and_neutral():
    rows = []
    for n in range(6):
        answers = Answer(f"good {n}", 0), Answer(f"bad {n}", 1)
        rows.append(Pair(Candidates(f"p{n}", answers), *answers, None, None))
    made = augment(rows, AugmentConfig(by="other_prompts"), 0)
    assert len(made) == 6 * (1 + 8 + 6)
    for row in made[6:]:
        own = {a.text for a in row.pair.candidates.answers}
        assert row.p_chosen == (1.0 if row.pair.chosen.text in own else 0.5)
        assert row.pair.rejected.text not in own
    assert Counter(row.p_chosen for row in made) == {1.0: 6 * 9, 0.5: 6 * 6}


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pair": PairConfig(chosen="bets")}, "pair.chosen=bets: no such rule; did you mean 'best'?"),
        ({"pair": PairConfig(rejected="rank")}, "write it as pair.rejected=rank:2"),
        ({"pair": PairConfig(rejected="rank:9")}, "there are only 4 answers to a prompt"),
        ({"pair": PairConfig(chosen="given")}, "given is for both sides"),
        ({"pair": PairConfig(rank_by="scor")}, "did you mean 'score'?"),
        ({"pair": PairConfig(length_weight="balanced")}, "must be a number from 0, or balance"),
        ({"thin": ThinConfig(rejection_beta=0.5)}, "go together"),
        ({"thin": ThinConfig(rejection_beta=0.5, rejection_keep=8)}, "only 4 answers"),
        ({"select": [{"by": "margn", "min": 0}]}, "did you mean 'margin'?"),
        ({"select": [{"by": "margin", "shre": 0.5}]}, "did you mean 'share'?"),
        ({"select": ["margin"]}, "no condition"),
        ({"order": OrderConfig(by="score")}, "order.by=score"),
        ({"measures": {"m": {"by": "bayes", "margins": ["margin"], "low": [0]}}}, "measures.m.high is missing"),
        ({"measures": {"m": {"by": "ngrams", "path": "nowhere.json"}}}, "no such file"),
        ({"augment": AugmentConfig(by="goal", text="be good")}, "holds no {score}"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UsageError) as caught:
        check_settings(PairingConfig(**settings), ["score"], [], answers=4)
    assert words in str(caught.value)


def test_mean_and_sd():
    assert mean_and_sd([1.0, 3.0]) == (2.0, 1.0)
