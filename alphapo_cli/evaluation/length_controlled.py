"""The length-controlled win rate `length_controlled_v1` of AlpacaEval 2 (Dubois et al., arXiv 2404.04475).

    logit P(model wins) = a t + w difficulty + b,   t = tanh(delta / std(delta)),  delta = len(output_1) - len(output_2)

fitted on the model's rows (weight 1) and on the rows of two length-gamed references (weight 0.2 over their number, 0 in
the column of b), which identify the effect of length alone. The rate is the mean prediction at t = 0. Penalty, folds
and the choice of C follow alpaca_eval 0.6.6 with scikit-learn's stable GroupKFold; liblinear's fit is replaced by an
exact one, and difficulty is looked up by instruction unless the published behaviour (by row position) is requested.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.formats import ModelOutputs, short
from alphapo_cli.evaluation.json_rows import read_text
from alphapo_cli.evaluation.l1_logistic import Array, log_loss, sigmoid, solve

NAME = "length_controlled_v1"
CHOICES_OF_C = np.logspace(-4, 4, 10)
FOLDS = 5
GAMED_WEIGHT = 0.2


class UnavailableError(Exception):
    """The estimate is not defined for these data; the message says why."""


@dataclass(frozen=True)
class Gamed:
    """G rows of the length-gamed references: t, difficulty and p, each [G]; `weight`: of each row."""

    t: Array
    difficulty: Array
    p: Array
    weight: float


@dataclass(frozen=True)
class Problem:
    """One model's n rows in the order of its annotations, and the gamed rows.

    Attributes:
        delta: [n] characters of output_1 minus those of output_2.
        difficulty: [n] instruction difficulty.
        p: [n] the model's share of the win; NaN without a judgement (such rows are predicted, not fitted).
        gamed: rows of the length-gamed references.
    """

    delta: Array
    difficulty: Array
    p: Array
    gamed: Gamed

    @property
    def judged(self) -> np.ndarray:
        """[n] mask of rows with a judgement."""
        return ~np.isnan(self.p)


@dataclass(frozen=True)
class LengthControlled:
    """The estimate: rate and error in percent, coefficients of (length, difficulty, model)."""

    win_rate: float
    standard_error: float | None
    c: float
    coefficients: tuple[float, float, float]


def fit(problem: Problem, c: float | None = None) -> LengthControlled:
    """Estimate the length-controlled win rate.

    Args:
        problem: the rows.
        c: inverse penalty strength C; None: the one with the least cross-validated loss.

    Returns:
        Rate, standard error and coefficients.

    Raises:
        UnavailableError: all outputs differ from the reference's by the same length, or no row has a judgement.
    """
    x, weight, p = design(problem)
    chosen = choose_c(x, weight, p) if c is None else c
    theta = solve(x[None], weight[None], p[None], chosen)[0]
    predicted = sigmoid(theta[1] * problem.difficulty + theta[2])
    n = len(predicted)
    error = 100.0 * float(np.std(predicted, ddof=1)) / math.sqrt(n) if n > 1 else None
    a, w, b = (float(value) for value in theta)
    return LengthControlled(100.0 * float(np.mean(predicted)), error, float(chosen), (a, w, b))


def design(problem: Problem) -> tuple[Array, Array, Array]:
    """Design matrix [N, 3] (t, difficulty, model), weights [N] and targets [N] of the gamed rows, then the judged."""
    judged, gamed = problem.judged, problem.gamed
    if not judged.any():
        raise UnavailableError("no row has a judgement")
    spread = float(np.std(problem.delta, ddof=1)) if len(problem.delta) > 1 else 0.0
    if spread == 0.0:
        raise UnavailableError("every output differs from the reference's by the same length")
    model_rows = np.stack(
        [np.tanh(problem.delta / spread), problem.difficulty, np.ones(len(problem.delta))], axis=1
    )[judged]  # fmt: skip
    gamed_rows = np.stack([gamed.t, gamed.difficulty, np.zeros(len(gamed.t))], axis=1)
    weight = np.concatenate([np.full(len(gamed_rows), gamed.weight), np.ones(len(model_rows))])
    return np.concatenate([gamed_rows, model_rows]), weight, np.concatenate([gamed.p, problem.p[judged]])


def folds(n: int) -> np.ndarray:
    """[n] fold of each row, (n - 1 - i) mod 5: scikit-learn's GroupKFold where each row is its own group."""
    return (n - 1 - np.arange(n)) % FOLDS


def choose_c(x: Array, weight: Array, p: Array) -> float:
    """The first C of `CHOICES_OF_C` with the least mean weighted loss in five-fold cross-validation (see `folds`)."""
    fold = folds(len(x))
    losses = np.zeros(len(CHOICES_OF_C))
    for held_out in (fold == k for k in range(FOLDS)):
        theta = None
        for at, c in enumerate(CHOICES_OF_C):
            theta = solve(x[None, ~held_out], weight[None, ~held_out], p[None, ~held_out], float(c), theta)
            losses[at] += np.mean(weight[held_out] * log_loss(x[held_out] @ theta[0], p[held_out])) / FOLDS
    return float(CHOICES_OF_C[int(np.argmin(losses))])


def replicates(problem: Problem, c: float, start: Sequence[float], counts: Array, chunk: int = 64) -> Array:
    """Bootstrap replicates of the length-controlled win rate.

    The gamed rows are part of the estimator and are not resampled; std(delta) is recomputed in every resample.

    Args:
        problem: n rows.
        c: inverse penalty strength C of every fit.
        start: [3] initial coefficients.
        counts: [R, n] how often each row is drawn.
        chunk: resamples fitted at once.

    Returns:
        [R] win rates in percent, NaN where a resample defines none.
    """
    judged, gamed = problem.judged, problem.gamed
    p = np.concatenate([gamed.p, problem.p[judged]])
    first = np.asarray(start, dtype=np.float64)
    rates = []
    for k in range(0, len(counts), chunk):
        drawn = counts[k : k + chunk].astype(np.float64)
        n = drawn.sum(axis=1)
        mean = drawn @ problem.delta / n
        variance = np.sum(drawn * (problem.delta - mean[:, None]) ** 2, axis=1) / np.maximum(n - 1, 1)
        usable = (variance > 0) & (drawn[:, judged].sum(axis=1) > 0)
        spread = np.sqrt(np.where(usable, variance, 1.0))
        x = np.zeros((len(drawn), len(p), 3))
        g = len(gamed.t)
        x[:, :g, 0], x[:, :g, 1] = gamed.t, gamed.difficulty
        x[:, g:, 0] = np.tanh(problem.delta[judged] / spread[:, None])
        x[:, g:, 1], x[:, g:, 2] = problem.difficulty[judged], 1.0
        weight = np.concatenate([np.full((len(drawn), g), gamed.weight), drawn[:, judged]], axis=1)
        theta = solve(x, weight, np.broadcast_to(p, weight.shape), c, first)
        predicted = sigmoid(theta[:, 1:2] * problem.difficulty + theta[:, 2:3])
        rates.append(np.where(usable, 100.0 * np.sum(drawn * predicted, axis=1) / n, np.nan))
    return np.concatenate(rates)


def read_difficulty(path: Path, reference: ModelOutputs) -> dict[str, float]:
    """Read a CSV file of difficulties.

    Args:
        path: file with the columns `index` (row of the reference, from 0) or `instruction`, and
            `instruction_difficulty`.
        reference: the reference outputs.

    Returns:
        Difficulty by instruction.

    Raises:
        UsageError: a column is missing, a value is not a number, an index does not fit the reference, or an instruction
            of the reference has no difficulty.
    """
    rows = _csv(path)
    by_name = "instruction" in rows[0]
    if not by_name and len(rows) != len(reference.rows):
        raise UsageError(
            f"{path} has {len(rows)} difficulties and the reference {reference.path} {len(reference.rows)} rows: "
            "'index' counts rows of the reference, so they must be the same set (or add a column 'instruction')"
        )
    difficulty: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        value = _number(row, "instruction_difficulty", where)
        if by_name:
            difficulty[row["instruction"]] = value
            continue
        index = _number(row, "index", where)
        if not (index.is_integer() and 0 <= index < len(reference.rows)):
            raise UsageError(f"{where}: index {row['index']} is not a row of the reference (0 to {len(rows) - 1})")
        difficulty[reference.rows[int(index)].instruction] = value
    missing = [r.instruction for r in reference.rows if r.instruction not in difficulty]
    if missing:
        raise UsageError(f"{path}: no difficulty for {len(missing)} instructions, first {short(missing[0])}")
    return difficulty


def by_name(difficulty: Mapping[str, float], instructions: Sequence[str]) -> Array:
    """[n] difficulty of each instruction."""
    return np.array([difficulty[text] for text in instructions])


def by_row(difficulty: Mapping[str, float], reference: ModelOutputs, n: int) -> Array:
    """[n] difficulty by row position in the annotations, as in published figures of files with missing rows."""
    return np.array([difficulty[row.instruction] for row in reference.rows[:n]])


def read_gamed(path: Path) -> Gamed:
    """Read AlpacaEval's df_gamed.

    Args:
        path: CSV file with the columns preference (the model's share of the win, 0 to 1), std_delta_len,
            instruction_difficulty and model.

    Returns:
        The rows, with t = tanh(std_delta_len).

    Raises:
        UsageError: a column is missing or a value is out of range.
    """
    rows = _csv(path)
    values: dict[str, list[float]] = {k: [] for k in ("std_delta_len", "instruction_difficulty", "preference")}
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        for name, column in values.items():
            column.append(_number(row, name, where))
        if not 0 <= values["preference"][-1] <= 1:
            raise UsageError(
                f"{where}: preference {row['preference']} is outside [0, 1] (the model's share of the win)"
            )
        if row.get("not_gamed_baseline", "False").strip().lower() not in ("false", "0", "0.0", ""):
            raise UsageError(f"{where}: not_gamed_baseline is {row['not_gamed_baseline']}; only gamed rows belong here")
        if not row.get("model"):
            raise UsageError(f"{where}: no 'model'")
    models = {row["model"] for row in rows}
    return Gamed(
        t=np.tanh(np.array(values["std_delta_len"])),
        difficulty=np.array(values["instruction_difficulty"]),
        p=np.array(values["preference"]),
        weight=GAMED_WEIGHT / len(models),
    )


def _csv(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    if not rows:
        raise UsageError(f"{path}: a header and no rows")
    return rows


def _number(row: Mapping[str, str | None], column: str, where: str) -> float:
    text = row.get(column)
    if text is None:
        raise UsageError(f"{where}: no '{column}' (its columns: {', '.join(map(str, row))})")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: '{column}' is {text[:40]!r}, not a finite number")
    return value
