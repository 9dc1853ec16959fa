"""Arena-Hard's labels, style counts and scores against arithmetic done by hand and against scikit-learn."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import numpy as np
import pytest

from alphapo_cli.evaluation.arena_hard import scores
from alphapo_cli.evaluation.arena_hard.logistic import solve
from alphapo_cli.evaluation.arena_hard.style import Style, count_style, differences
from alphapo_cli.evaluation.arena_hard.verdicts import LABELS, grades, read_label
from alphapo_cli.evaluation.bootstrap import resample_counts
from tests.evaluation.arena_world import labels, text

linear_model: Any = pytest.importorskip("sklearn.linear_model")

# (winner, weight) of each label, from the public tool's two tables; a tie is half a win.
PUBLIC = {"A>>B": ("A", 3), "A>B": ("A", 1), "A=B": ("tie", 1), "B>A": ("B", 1), "B>>A": ("B", 3)}


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("said", "v2", "v1"),
    [
        ("my verdict: [[A>>B]]", "A>>B", "A>>B"),
        ("[[A>B]] first, but then [[B>A]]", "B>A", None),
        ("[[A=B]] and again [[A=B]].", "A=B", "A=B"),
        ("**[A>B]**", "A>B", None),
        ("[[a>>b]]", "A>>B", None),
        ("[[B<<A]]", "B<<A", "B<<A"),
        ("[[A>>>B]]", None, None),
        ("[[AB]] [A>B]", None, None),
        ("I prefer A.", None, None),
        ("", None, None),
    ],
)
def test_labels_are_read_as_the_public_tool_reads_them(said: str, v2: str | None, v1: str | None) -> None:
    assert read_label(said) == v2
    assert read_label(said, "v0.1") == v1


def test_a_label_means_the_same_from_either_side() -> None:
    for label, (share, strong) in LABELS.items():
        flipped = label[-1] + label[1:-1].translate(str.maketrans("<>", "><")) + label[0]
        assert LABELS[flipped] == (share, strong)


def test_the_baseline_is_a_in_the_first_game_and_b_in_the_second() -> None:
    found = grades("A>>B", "A>B")
    assert (found.first, found.second, found.first_strong, found.second_strong) == (0.0, 1.0, True, False)
    lone = grades(None, "B>>A")
    assert math.isnan(lone.first)
    assert (lone.second, lone.second_strong) == (0.0, True)


# -------------------------------------------------------------------------------------------------------------- style


def test_markdown_is_counted_outside_code() -> None:
    answer = (
        "# One\n## Two\n###### Six\n#no header\n 1. first\n- a\n* b\n+ c\n**bold** and __also__ and **two\nlines**\n"
        "```python\n# comment\n- x\n**y**\n```\n"
    )
    found = count_style(answer, 7)
    assert found.headers == (1, 1, 0, 0, 0, 1)
    assert (found.ordered, found.unordered, found.bold) == (1, 3, (1, 1))
    assert found.totals() == (7, 3, 4, 2)
    assert found.metadata()["list_count"] == {"ordered": 1, "unordered": 3}


def test_differences_by_hand() -> None:
    m, b = Style(30, (2, 0, 0, 0, 0, 0), 1, 2, (0, 1)), Style(10, (0,) * 6, 0, 1, (0, 0))
    old = differences([m], [b], "v0.1")[0]
    assert old.tolist() == [20 / 41, 2 / 3, 2 / 5, 1 / 2]
    new = differences([m], [b], "v2.0")[0]
    dense = [(2 / 31, 0.0), (3 / 31, 1 / 11), (1 / 31, 0.0)]
    assert new.tolist() == pytest.approx([20 / 40, *((x - y) / (x + y + 1) for x, y in dense)], abs=1e-15)
    empty = Style(0, (0,) * 6, 0, 0, (0, 0))
    assert differences([empty], [empty], "v2.0")[0].tolist() == [0, 0, 0, 0]


# ------------------------------------------------------------------------------------------------------------- scores


def made(n: int, missing: tuple[int, ...] = ()) -> list[tuple[str | None, str | None]]:
    return [(None if i in missing else labels(i)[0], labels(i)[1]) for i in range(n)]


def verdicts(pairs: list[Any], version: str, weight: float) -> list[tuple[int, float, float]]:
    """(pair, y, w) of every verdict that counts, from the public tool's tables."""
    found = []
    for i, pair in enumerate(pairs):
        if version == "v2.0" and None in pair:
            continue
        for game, label in enumerate(pair):
            if label is not None:
                winner, times = PUBLIC[label]
                own = "B" if game == 0 else "A"
                found.append((i, 0.5 if winner == "tie" else float(winner == own), weight if times == 3 else 1.0))
    return found


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_score_is_the_weighted_mean_and_the_bradley_terry_win_rate(version: str, weight: float) -> None:
    pairs = made(60, missing=(3, 17))
    found = scores.battles([grades(*pair) for pair in pairs], version, weight)
    rows = verdicts(pairs, version, weight)
    mean = math.fsum(y * w for _, y, w in rows) / math.fsum(w for _, _, w in rows)
    assert scores.score(found) == pytest.approx(100 * mean, abs=1e-12)
    assert np.isnan(found.share).tolist() == [version == "v2.0" and i in (3, 17) for i in range(60)]
    # The likelihood's derivative at logit(mean) is zero: it is the maximum.
    theta = math.log(mean / (1 - mean))
    assert math.fsum(w * (y - 1 / (1 + math.exp(-theta))) for _, y, w in rows) == pytest.approx(0, abs=1e-12)
    by_newton, finite = solve(np.ones((60, 1)), found.weight[None], np.nan_to_num(found.target), np.zeros(1))
    assert finite.all()
    assert by_newton[0, 0] == pytest.approx(theta, abs=1e-12)


def test_the_old_tools_logistic_regression_gives_the_same_score() -> None:
    """v0.1: two columns of +-ln 10, every battle twice, a tie once won and once lost, no penalty."""
    rows = verdicts(made(60), "v0.1", 3.0)
    x, y = [], []
    for _, share, weight in rows:
        for half in (0, 1):
            x += [[-math.log(10), math.log(10)]] * int(weight)  # baseline, model
            y += [1 - half if share == 0.5 else share] * int(weight)
    c = linear_model.LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-12, max_iter=1000).fit(x, y).coef_[0]
    rate = 100 / (1 + 10 ** (c[0] - c[1]))
    assert scores.score(scores.battles([grades(*pair) for pair in made(60)], "v0.1", 3.0)) == pytest.approx(
        rate, abs=1e-6
    )


def styled(n: int = 60) -> tuple[list[Style], list[Style]]:
    own, base = ([count_style(text(model, i), len(text(model, i).split())) for i in range(n)] for model in ("m", "b"))
    return own, base


def standardised(rows: list[tuple[int, float, float]], d: np.ndarray, ddof: int) -> np.ndarray:
    """[battles, K], by plain floats: each verdict repeated as often as it weighs."""
    repeated = [d[i].tolist() for i, _, w in rows for _ in range(int(w))]
    columns = list(zip(*repeated, strict=True))
    means = [statistics.fmean(column) for column in columns]
    spreads = [
        math.sqrt(math.fsum((v - m) ** 2 for v in c) / (len(c) - ddof)) for c, m in zip(columns, means, strict=True)
    ]
    return np.array([[(v - m) / s for v, m, s in zip(row, means, spreads, strict=True)] for row in repeated])


def zero(rows: list[tuple[int, float, float]], d: np.ndarray, ddof: int) -> np.ndarray:
    """[K] a difference of 0 after standardising."""
    repeated = np.array([d[i] for i, _, w in rows for _ in range(int(w))])
    return -repeated.mean(axis=0) / repeated.std(axis=0, ddof=ddof)


def test_style_control_of_v2_is_an_unpenalised_logistic_regression() -> None:
    own, base = styled()
    pairs, d = made(60, missing=(5,)), differences(*styled(), "v2.0")
    rows = verdicts(pairs, "v2.0", 3.0)
    z = standardised(rows, d, 1)
    x, y, w = [], [], []
    at = 0
    for _, share, weight in rows:
        for _ in range(int(weight)):
            x += [[1.0, *z[at]]] * 2
            y += [1, 0]
            w += [share, 1 - share]  # a tie is half a win and half a loss
            at += 1
    theta = linear_model.LogisticRegression(
        fit_intercept=False, C=np.inf, tol=1e-12, max_iter=5000, solver="newton-cholesky"
    ).fit(x, y, sample_weight=w)
    found = scores.fit_style(scores.battles([grades(*pair) for pair in pairs], "v2.0", 3.0), d, "v2.0", None)
    strength, beta = theta.coef_[0][0], theta.coef_[0][1:]
    assert found.coefficients == pytest.approx(beta.tolist(), abs=1e-7)
    assert found.at_mean == pytest.approx(100 / (1 + math.exp(-strength)), abs=1e-6)
    equal = strength + float(zero(rows, d, 1) @ beta)
    assert found.at_equal == pytest.approx(100 / (1 + math.exp(-equal)), abs=1e-6)
    assert (own[0].length, base[0].length) != (0, 0)


def test_style_control_of_v01_is_sklearns_default_logistic_regression() -> None:
    """Columns of +-ln 10 for baseline and model, every battle twice, ridge with C = 1; the style signs are the baseline's."""
    pairs, d = made(60), differences(*styled(), "v0.1")
    rows = verdicts(pairs, "v0.1", 3.0)
    z = standardised(rows, -d, 0)
    x, y, at = [], [], 0
    for _, share, weight in rows:
        for _ in range(int(weight)):
            for half in (0, 1):
                x.append([math.log(10), -math.log(10), *z[at]])  # the baseline is model_a
                y.append(half if share == 0.5 else 1 - share)
            at += 1
    c = linear_model.LogisticRegression(fit_intercept=False, tol=1e-12, max_iter=5000).fit(x, y).coef_[0]
    found = scores.fit_style(scores.battles([grades(*pair) for pair in pairs], "v0.1", 3.0), d, "v0.1", None)
    assert found.at_mean == pytest.approx(100 / (1 + 10 ** (c[0] - c[1])), abs=1e-6)
    # The sign of a standardised column follows the sign of the difference, and so does its coefficient.
    assert found.coefficients == pytest.approx(c[2:].tolist(), abs=1e-7)


def test_style_control_finds_a_judge_that_counts_length_alone() -> None:
    """The model is longer and wins by it; at equal length neither is better."""
    rng = random.Random(4)
    own = [Style(rng.randrange(300, 900), (0,) * 6, 0, 0, (0, 0)) for _ in range(800)]
    base = [Style(rng.randrange(200, 600), (0,) * 6, 0, 0, (0, 0)) for _ in range(800)]
    d = differences(own, base, "v2.0")[:, :1]
    pairs = []
    for (gap,) in d:
        first, second = (rng.random() < 1 / (1 + math.exp(-4 * gap)) for _ in range(2))
        pairs.append(grades("B>A" if first else "A>B", "A>B" if second else "B>A"))
    found = scores.battles(pairs, "v2.0", 3.0)
    fit = scores.fit_style(found, d, "v2.0", resample_counts(800, 400, 0))
    assert scores.score(found) > 64
    low, high = np.percentile(fit.equal_replicates, [2.5, 97.5])
    assert low < 50 < high
    assert high - low < 8
    assert fit.at_mean > 64  # at the model's own style, which controls nothing


def test_resampling_weights_is_repeating_rows() -> None:
    pairs, d = [grades(*pair) for pair in made(40)], differences(*styled(40), "v2.0")
    counts = resample_counts(40, 3, 1)
    whole = scores.battles(pairs, "v2.0", 3.0)
    replicates = scores.score_replicates(whole, counts)
    fit = scores.fit_style(whole, d, "v2.0", counts)
    mean, deviation = scores.standardise(d, whole.weight, "v2.0")
    for r in range(3):
        drawn = [i for i in range(40) for _ in range(int(counts[r, i]))]
        again = scores.battles([pairs[i] for i in drawn], "v2.0", 3.0)
        assert replicates[r] == pytest.approx(scores.score(again), abs=1e-10)
        x = np.column_stack([np.ones(40), (d[drawn] - mean) / deviation])
        theta, _ = solve(x, again.weight[None], again.target, np.zeros(5))
        assert fit.mean_replicates[r] == pytest.approx(100 / (1 + math.exp(-theta[0, 0])), abs=1e-7)


def test_what_no_fit_exists_for_is_said() -> None:
    d = np.linspace(-1, 1, 20)[:, None]
    won = scores.battles([grades("B>A", "A>B")] * 20, "v2.0", 3.0)
    with pytest.raises(scores.UnavailableError, match="separate"):
        scores.fit_style(won, d, "v2.0", None)
    by_style = [grades("B>A", "A>B") if x > 0 else grades("A>B", "B>A") for x in d[:, 0]]
    with pytest.raises(scores.UnavailableError, match="separate"):
        scores.fit_style(scores.battles(by_style, "v2.0", 3.0), d, "v2.0", None)
    assert 50 < scores.fit_style(won, d, "v0.1", None).at_mean < 100  # its penalty holds the fit
    with pytest.raises(scores.UnavailableError, match="apart"):
        scores.fit_style(won, np.column_stack([d, d]), "v2.0", None)


def test_a_resample_without_a_fit_is_not_a_number() -> None:
    pairs = [grades("B>A", "A>B")] * 5 + [grades("A>B", "B>A")] + [grades("A=B", "A>B")] * 4
    d = np.array([[0.1], [0.5], [-0.3], [0.2], [0.4], [0.35], [0.0], [-0.2], [0.3], [-0.1]])
    counts = np.zeros((2, 10))
    counts[0], counts[1, 0] = 1.0, 10.0  # the second has one pair alone
    fit = scores.fit_style(scores.battles(pairs, "v2.0", 3.0), d, "v2.0", counts)
    assert fit.equal_replicates[0] == pytest.approx(fit.at_equal, abs=1e-9)
    assert math.isnan(fit.equal_replicates[1])


def test_a_resample_without_the_one_answer_that_has_headers_is_fitted_without_them() -> None:
    """The header's column is constant there, so that its coefficient is not determined; that of least norm is 0."""
    n = 40
    pairs = [grades(*pair) for pair in made(n)]
    d = differences(*styled(n), "v2.0")[:, [0, 3]]
    rare = np.zeros((n, 1))
    rare[5] = 0.4
    counts = np.ones((2, n))
    counts[1, 5], counts[1, 6] = 0.0, 2.0
    whole = scores.battles(pairs, "v2.0", 3.0)
    fit = scores.fit_style(whole, np.column_stack([d, rare]), "v2.0", counts)
    assert (fit.held, fit.held_replicates) == (False, 1)
    assert fit.equal_replicates[0] == pytest.approx(fit.at_equal, abs=1e-9)
    drawn = [i for i in range(n) if i != 5] + [6]
    again = scores.battles([pairs[i] for i in drawn], "v2.0", 3.0)
    mean, deviation = scores.standardise(d, whole.weight, "v2.0")
    theta, _ = solve(
        np.column_stack([np.ones(n), (d[drawn] - mean) / deviation]), again.weight[None], again.target, np.zeros(3)
    )
    equal = theta[0, 0] + theta[0, 1:] @ (-mean / deviation)
    assert fit.equal_replicates[1] == pytest.approx(100 / (1 + math.exp(-equal)), abs=1e-3)  # the ridge is 1e-6


def test_markdown_that_only_winners_have_decides_nothing_at_equal_style() -> None:
    """Its coefficient grows without end and explains those answers; the others give the score at equal style."""
    n = 40
    pairs = [grades("B>>A", "A>>B") if i in (3, 8) else grades(*pair) for i, pair in enumerate(made(n))]
    d = differences(*styled(n), "v2.0")[:, [0, 3]]
    rare = np.zeros((n, 1))
    rare[[3, 8]] = 0.2
    whole = scores.battles(pairs, "v2.0", 3.0)
    fit = scores.fit_style(whole, np.column_stack([d, rare]), "v2.0", None)
    assert fit.held
    rest = [i for i in range(n) if i not in (3, 8)]
    alone = scores.fit_style(scores.battles([pairs[i] for i in rest], "v2.0", 3.0), d[rest], "v2.0", None)
    assert fit.at_equal == pytest.approx(
        alone.at_equal, abs=1e-2
    )  # the ridge is 1e-6, its remaining pull about as large
