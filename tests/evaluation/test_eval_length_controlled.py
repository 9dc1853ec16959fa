"""The length-controlled fit against scikit-learn's liblinear, against the conditions of an optimum, and on known data."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphapo_cli.evaluation import length_controlled as lc
from alphapo_cli.evaluation.bootstrap import resample_counts
from alphapo_cli.evaluation.l1_logistic import solve, violation
from tests.evaluation.eval_world import Case, load, write


def problem(n: int = 120, seed: int = 0, nulls: int = 0) -> lc.Problem:
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    delta = rng.normal(50, 300, size=n).round()
    z = -1.0 * np.tanh(delta / delta.std(ddof=1)) + 0.6 * difficulty - 0.5
    p = 1 / (1 + np.exp(-(z + rng.normal(size=n))))
    p[:nulls] = math.nan
    g = np.concatenate([difficulty, difficulty])
    t = np.tanh(np.concatenate([rng.normal(-1.5, 0.7, n), rng.normal(1.5, 0.7, n)]))
    return lc.Problem(delta, difficulty, p, lc.Gamed(t, g, 1 / (1 + np.exp(1.2 * t - 0.3 * g)), 0.1))


def liblinear(x: Any, weight: Any, p: Any, c: float) -> Any:
    """The oracle: each row twice, y = 1 with weight w p and y = 0 with weight w (1 - p)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.LogisticRegression(
        solver="liblinear", penalty="l1", C=c, fit_intercept=False, tol=1e-10, max_iter=100_000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(
            np.concatenate([x, x]),
            np.concatenate([np.ones(len(x)), np.zeros(len(x))]),
            sample_weight=np.concatenate([weight * p, weight * (1 - p)]),
        )
    return model.coef_[0]


@pytest.mark.parametrize("c", [1e-4, 0.0008, 0.0464, 0.36, 2.78, 21.5, 1e4])
def test_agrees_with_liblinear(c: float) -> None:
    x, weight, p = lc.design(problem())
    found = solve(x[None], weight[None], p[None], c)[0]
    # liblinear stops at a tolerance of its own; what it stops at is this far from the optimum here.
    np.testing.assert_allclose(found, liblinear(x, weight, p, c), atol=2e-5)


def objective(theta: Any, x: Any, weight: Any, p: Any, c: float) -> float:
    """In plain floats: |theta|_1 + C sum w (log(1 + e^z) - p z)."""
    total = sum(abs(float(v)) for v in theta)
    for row, w, q in zip(x, weight, p, strict=True):
        z = math.fsum(float(a) * float(b) for a, b in zip(row, theta, strict=True))
        total += c * float(w) * (max(z, 0.0) + math.log1p(math.exp(-abs(z))) - float(q) * z)
    return total


@given(seed=st.integers(0, 10_000), log_c=st.floats(-4, 4), scale=st.sampled_from([0.0, 0.01, 1.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_no_neighbour_is_better(seed: int, log_c: float, scale: float) -> None:
    rng, c = np.random.default_rng(seed), 10.0**log_c
    x = rng.normal(size=(25, 3)) * np.array([1.0, scale, 1.0])
    weight, p = rng.random(25) + 0.01, rng.random(25)
    theta = solve(x[None], weight[None], p[None], c)
    assert violation(x[None], weight[None], p[None], c, theta)[0] <= 1e-9 * (1 + c * weight.sum())
    here = objective(theta[0], x, weight, p, c)
    for step in (1e-2, 1e-4):
        for direction in rng.normal(size=(6, 3)):
            assert objective(theta[0] + step * direction, x, weight, p, c) >= here - 1e-12 * (1 + abs(here))


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(3)
    x, p = rng.normal(size=(7, 40, 3)), rng.random((7, 40))
    weight = rng.integers(0, 3, size=(7, 40)).astype(float)
    together = solve(x, weight, p, 0.7)
    for k in range(7):
        np.testing.assert_allclose(together[k], solve(x[k : k + 1], weight[k : k + 1], p[k : k + 1], 0.7)[0], atol=1e-9)


def test_a_strong_penalty_gives_zero() -> None:
    x, weight, p = lc.design(problem())
    assert solve(x[None], weight[None], p[None], 1e-6)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("n", [5, 23, 2415])
def test_the_folds_are_scikit_learns(n: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    found = lc.folds(n)
    for k, (_, test) in enumerate(selection.GroupKFold(n_splits=5).split(np.zeros(n), groups=np.arange(n))):
        assert np.flatnonzero(found == k).tolist() == sorted(test.tolist())


def test_the_chosen_c_is_scikit_learns() -> None:
    """GroupKFold over rows that are groups of their own, and liblinear in every fold."""
    selection = pytest.importorskip("sklearn.model_selection")
    x, weight, p = lc.design(problem(n=83, nulls=4))
    losses = []
    for c in np.logspace(-4, 4, 10):
        folds = []
        for train, test in selection.GroupKFold(n_splits=5).split(x, groups=np.arange(len(x))):
            z = x[test] @ liblinear(x[train], weight[train], p[train], c)
            q = 1 / (1 + np.exp(-z))
            folds.append(np.mean(-weight[test] * (p[test] * np.log(q) + (1 - p[test]) * np.log(1 - q))))
        losses.append(np.mean(folds))
    assert lc.choose_c(x, weight, p) == pytest.approx(np.logspace(-4, 4, 10)[int(np.argmin(losses))])


def test_rate_and_error_follow_from_the_coefficients() -> None:
    data = problem(nulls=6)
    found = lc.fit(data, 2.0)
    _, w, b = found.coefficients
    predicted = [1 / (1 + math.exp(-(w * d + b))) for d in data.difficulty.tolist()]  # null rows are predicted, too
    mean = sum(predicted) / len(predicted)
    spread = math.sqrt(sum((q - mean) ** 2 for q in predicted) / (len(predicted) - 1))
    assert found.win_rate == pytest.approx(100 * mean, abs=1e-10)
    assert found.standard_error == pytest.approx(100 * spread / math.sqrt(len(predicted)), abs=1e-10)


def test_null_rows_do_not_enter_the_fit_but_their_length_enters_the_scale() -> None:
    data = problem(nulls=6)
    x, weight, p = lc.design(data)
    assert len(x) == 2 * 120 + 114
    assert not np.isnan(p).any()
    assert set(weight.tolist()) == {0.1, 1.0}
    assert x[240, 0] == pytest.approx(math.tanh(data.delta[6] / np.std(data.delta, ddof=1)))


def test_a_replicate_is_the_fit_of_the_resampled_rows() -> None:
    data = problem(n=60, nulls=3)
    found = lc.fit(data, 2.78)
    counts = resample_counts(60, 5, 1)
    rates = lc.replicates(data, 2.78, found.coefficients, counts, chunk=2)
    for row, rate in zip(counts, rates, strict=True):
        drawn = np.repeat(np.arange(60), row.astype(int))
        again = lc.Problem(data.delta[drawn], data.difficulty[drawn], data.p[drawn], data.gamed)
        assert rate == pytest.approx(lc.fit(again, 2.78).win_rate, abs=1e-7)


def test_removes_what_length_alone_does() -> None:
    """Two judges of one model, one fond of length: the raw rates differ, the controlled ones hardly do."""
    rng = np.random.default_rng(2)
    n, raw, controlled = 4000, [], []
    difficulty, delta = rng.normal(size=n), rng.normal(-300, 300, size=n)  # the model writes more than the reference
    t = np.tanh(delta / delta.std(ddof=1))
    gamed_t = np.tanh(rng.normal(0, 1.5, 2000))
    for fondness in (0.0, -2.0):
        p = 1 / (1 + np.exp(-(fondness * t + 0.5 * difficulty - 0.4)))
        gamed = lc.Gamed(gamed_t, np.zeros(2000), 1 / (1 + np.exp(-fondness * gamed_t)), 0.1)
        raw.append(100 * p.mean())
        controlled.append(lc.fit(lc.Problem(delta, difficulty, p, gamed), 1e4).win_rate)
    assert raw[1] - raw[0] > 20
    assert abs(controlled[1] - controlled[0]) < 0.5


# ----------------------------------------------------------------------------------------------------- through eval


@pytest.mark.slow
def test_unavailable_without_its_files_and_never_another_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(tmp_path)
    assert case.replay("--difficulty", case.difficulty) == 0
    found = case.results()
    assert found["length_controlled_winrate"] is None
    assert found["lc_standard_error"] is None
    assert found["length_controlled_winrate_interval"] is None
    assert "unavailable (needs --gamed)" in capsys.readouterr().err
    assert case.replay("--replace") == 0
    assert "unavailable (needs --difficulty and --gamed)" in capsys.readouterr().err


def test_equal_lengths_are_unavailable_with_the_reason(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for rows, key in ((case.rows, "output"), (case.judged, "output_2")):
        for row, base in zip(rows, case.reference_rows, strict=True):
            row[key] = "y" * (len(base["output"]) + 3)
    write(case.outputs, case.rows)
    write(case.annotations, case.judged)
    assert case.replay(*case.length_controlled()) == 0
    assert case.results()["length_controlled_winrate"] is None
    assert "same length" in case.results()["length_controlled"]["reason"]


def test_the_reference_against_itself_is_50(tmp_path: Path) -> None:
    case = Case(tmp_path)
    rows = [
        {**row, "output_2": row["output_1"], "generator_2": row["generator_1"], "preference": 1.5}
        for row in case.judged
    ]
    case.outputs, case.annotations = case.reference, write(case.annotations, rows)
    assert case.replay(*case.length_controlled()) == 0
    found = case.results()
    assert (found["length_controlled_winrate"], found["lc_standard_error"], found["win_rate"]) == (50.0, 0.0, 50.0)


@pytest.mark.slow
def test_difficulty_goes_by_instruction_unless_the_published_behaviour_is_asked_for(tmp_path: Path) -> None:
    case = Case(tmp_path, n=60)
    gone = 7  # every row after it gets its neighbour's difficulty in the published figures
    hard = [float(line.split(",")[1]) for line in case.difficulty.read_text().splitlines()[1:]]
    for row, d in zip(case.judged, hard, strict=True):
        row["preference"] = 1 + 1 / (1 + math.exp(-2 * d))
    write(case.outputs, [row for i, row in enumerate(case.rows) if i != gone])
    write(case.annotations, [row for i, row in enumerate(case.judged) if i != gone])
    assert case.replay(*case.length_controlled(), "statistics.c=2") == 0
    by_instruction = case.results()["length_controlled_winrate"]
    assert case.replay(*case.length_controlled(), "statistics.c=2", "--official-row-index") == 0
    by_row = case.results()["length_controlled_winrate"]

    gamed, rows = lc.read_gamed(case.gamed), [r for i, r in enumerate(case.judged) if i != gone]
    delta = np.array([len(r["output_1"]) - len(r["output_2"]) for r in rows], dtype=float)
    p = np.array([r["preference"] - 1 for r in rows])
    right = np.array([d for i, d in enumerate(hard) if i != gone])
    assert by_instruction == pytest.approx(lc.fit(lc.Problem(delta, right, p, gamed), 2.0).win_rate, abs=1e-9)
    shifted = np.array(hard[:-1])
    assert by_row == pytest.approx(lc.fit(lc.Problem(delta, shifted, p, gamed), 2.0).win_rate, abs=1e-9)
    assert abs(by_row - by_instruction) > 0.1


@pytest.mark.slow
def test_a_difficulty_file_by_instruction_serves_any_reference(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert case.replay(*case.length_controlled()) == 0
    before = load(case.out / "results.json")["length_controlled_winrate"]
    hard = [line.split(",")[1] for line in case.difficulty.read_text().splitlines()[1:]]
    rows = [f'"{r["instruction"]}",{d}' for r, d in zip(case.reference_rows, hard, strict=True)]
    extra = ["instruction,instruction_difficulty", '"Unasked?",3.0', *reversed(rows)]
    write(case.difficulty, "\n".join(extra) + "\n")
    assert case.replay(*case.length_controlled(), "--replace") == 0
    assert case.results()["length_controlled_winrate"] == before
