"""`alphapo loss` on lists of answers, {"logps": [...], "tokens": [...], "ref_logps": [...], "scores": [...]} per line.

With scores the answers are ordered as in training (best, worst, then the next best); without, the list's order is
chosen, rejected, third. Results are in the list's order.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.data.scored_answers import ranked
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.data_requirements import broken_rules, check_sides, lacking
from alphapo_cli.objective.objective import Objective

LISTS = ("logps", "tokens", "ref_logps", "scores")
Result = dict[str, float | list[float] | None]


def chosen_tokens(row: Mapping[str, Any], where: str) -> float:
    """The number of tokens of the chosen answer.

    Args:
        row: the row.
        where: file and line, for messages.

    Returns:
        The number of tokens.

    Raises:
        UsageError: logps, tokens or scores is missing, of another length, or has a value that is not a finite number.
    """
    tokens = _tokens(row, len(_numbers(row, "logps", None, where)), where)
    return tokens[_sides(row, len(tokens), where)[0][0]]


def evaluate(objective: Objective, row: Mapping[str, Any], where: str, chosen: float) -> Result:
    """Evaluate an objective on one row, in float64.

    Args:
        objective: the objective.
        row: K summed log-probs in nats, numbers of tokens and, where needed, reference log-probs, scores and columns.
        where: file and line, for messages.
        chosen: mean number of tokens of the chosen answers of all rows, by which nll_scope=tokens divides.

    Returns:
        Loss, rewards [K], margin of best against worst (None for objectives without), and d_loss_d_logps [K].

    Raises:
        UsageError: a list or column is missing, a list is of another length or has a value that is not a finite number,
            or a result is not finite.
    """
    logps = _numbers(row, "logps", None, where)
    count = len(logps)
    tokens = _tokens(row, count, where)
    reference = _numbers(row, "ref_logps", count, where) if objective.needs_reference else None
    order, scores = _sides(row, count, where)
    check_sides(objective, count, False, where, scores)

    def sides(values: list[float]) -> Tensor:
        return torch.tensor([[values[i]] for i in order], dtype=torch.float64)

    columns = {}
    for name in objective.columns_of(objective.sides(count)):
        column = scores.get(name, row.get(name))
        if column is None:
            raise UsageError(f"{where}: {lacking(objective, name, count)}; give the list 'scores' or that column")
        columns[name] = torch.tensor([_number(column, name, where)], dtype=torch.float64)
    for _, rule in broken_rules(objective, columns)[:1]:
        raise UsageError(f"{where}: {rule}, as objective '{objective.name}' needs it")
    sums = sides(logps).requires_grad_(True)
    ref_sums = None if reference is None else sides(reference)
    result = objective(AnswerLogProbs(sums, sides(tokens), ref_sums, columns=columns, chosen_tokens=chosen))
    (gradient,) = torch.autograd.grad(result.loss.sum(), sums)
    back = sorted(range(count), key=lambda side: order[side])
    values: Result = {
        "loss": result.loss.item(),
        "rewards": result.rewards[back, 0].tolist(),
        "margin": None if result.margins is None else result.margins.item(),
        "d_loss_d_logps": gradient[back, 0].tolist(),
    }
    for name, value in values.items():
        if not all(math.isfinite(x) for x in (value if isinstance(value, list) else [value or 0.0])):
            raise UsageError(
                f"{where}: {name} of objective '{objective.name}' is beyond float64 at logps={row['logps']}; correct the row"
            )
    return values


def _tokens(row: Mapping[str, Any], count: int, where: str) -> list[float]:
    tokens = _numbers(row, "tokens", count, where)
    if any(n < 1 or n != int(n) for n in tokens):
        raise UsageError(f"{where}: tokens={row['tokens']} must be whole numbers of at least 1")
    return tokens


def _sides(row: Mapping[str, Any], count: int, where: str) -> tuple[list[int], dict[str, float]]:
    """The indices of the answers in the order chosen, rejected, third ..., and their scores as columns, if any."""
    if row.get("scores") is None:
        return list(range(count)), {}
    return ranked(list(enumerate(_numbers(row, "scores", count, where))), None)


def _numbers(row: Mapping[str, Any], name: str, count: int | None, where: str) -> list[float]:
    values = row.get(name)
    if values is None:
        raise UsageError(f"{where}: no '{name}' (the row has: {', '.join(row) or 'nothing'})")
    if not isinstance(values, list) or (len(values) < 2 if count is None else len(values) != count):
        wanted = "a list of two numbers or more" if count is None else f"a list of {count} numbers, as many as logps"
        raise UsageError(f"{where}: {name}={reprlib.repr(values)} must be {wanted}")
    return [_number(value, f"{name}[{i}]", where) for i, value in enumerate(values)]


def _number(value: Any, name: str, where: str) -> float:
    try:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        valid = False
    if not valid:
        raise UsageError(f"{where}: {name}={'null' if value is None else reprlib.repr(value)} must be a finite number")
    return float(value)
