"""`rows` for lists of answers: {"logps": [...], "tokens": [...], "ref_logps": [...], "scores": [...]} a line.

With scores the answers take their sides as in training (best, worst, then the next best); without, the list's order is
chosen, rejected, third. Results stand in the list's order.
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
    """Tokens of the answer that is chosen.

    Raises:
        UsageError: as `evaluate`, of the lists that say so.
    """
    tokens = _tokens(row, len(_numbers(row, "logps", None, where)), where)
    return tokens[_sides(row, len(tokens), where)[0][0]]


def evaluate(objective: Objective, row: Mapping[str, Any], where: str, chosen: float) -> Result:
    """Loss, rewards, margin of best against worst, and gradients of one row, in float64.

    `chosen`: mean tokens of the chosen answers of all rows, which an NLL per token of the batch is divided by.

    Raises:
        UsageError: a list is missing, of another length, or holds what is no finite number; a column is missing; a
            result is not finite.
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
        value = scores.get(name, row.get(name))
        if value is None:
            raise UsageError(f"{where}: {lacking(objective, name, count)}; give the list 'scores' or that column")
        columns[name] = torch.tensor([_number(value, name, where)], dtype=torch.float64)
    for _, words in broken_rules(objective, columns)[:1]:
        raise UsageError(f"{where}: {words}, as objective '{objective.name}' needs it")
    sums = sides(logps).requires_grad_(True)
    given = None if reference is None else sides(reference)
    result = objective(AnswerLogProbs(sums, sides(tokens), given, columns=columns, chosen_tokens=chosen))
    (gradient,) = torch.autograd.grad(result.loss.sum(), sums)
    back = sorted(range(count), key=lambda side: order[side])
    found: Result = {
        "loss": result.loss.item(),
        "rewards": result.rewards[back, 0].tolist(),
        "margin": None if result.margins is None else result.margins.item(),
        "d_loss_d_logps": gradient[back, 0].tolist(),
    }
    for name, values in found.items():
        if not all(math.isfinite(x) for x in (values if isinstance(values, list) else [values or 0.0])):
            raise UsageError(
                f"{where}: {name} of objective '{objective.name}' is beyond float64 at logps={row['logps']}; correct the row"
            )
    return found


def _tokens(row: Mapping[str, Any], count: int, where: str) -> list[float]:
    tokens = _numbers(row, "tokens", count, where)
    if any(n < 1 or n != int(n) for n in tokens):
        raise UsageError(f"{where}: tokens={row['tokens']} must be whole numbers of at least 1")
    return tokens


def _sides(row: Mapping[str, Any], count: int, where: str) -> tuple[list[int], dict[str, float]]:
    """The answers' places in the order of their sides, and their scores as columns where there are any."""
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
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        good = False
    if not good:
        raise UsageError(f"{where}: {name}={'null' if value is None else reprlib.repr(value)} must be a finite number")
    return float(value)
