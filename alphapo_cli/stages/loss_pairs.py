"""`alphapo loss`: an objective and its gradients, evaluated on rows of summed log-probs in float64."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.data_requirements import broken_rules, check_sides, lacking
from alphapo_cli.objective.objective import Objective
from alphapo_cli.stages import loss_lists
from alphapo_cli.storage import strict_json

LOGPS = ("chosen_logp", "rejected_logp")
TOKENS = ("chosen_tokens", "rejected_tokens")
REFERENCE = ("ref_chosen_logp", "ref_rejected_logp")
KL = ("kl_chosen", "kl_rejected")


def parse(stream: Iterable[bytes], where: str) -> list[tuple[int, dict[str, Any]]]:
    """Parse JSON Lines.

    Args:
        stream: the lines, as bytes.
        where: the file, for messages.

    Returns:
        (line number from 1, row) of every line that is not blank.

    Raises:
        UsageError: a line is not a JSON object in UTF-8, or all lines are blank.
    """
    rows = []
    for number, line in strict_json.lines(stream, where):
        row = strict_json.parse(line, f"{where}: line {number}")
        if not isinstance(row, dict):
            raise UsageError(f'{where}: line {number}: a row is a JSON object like {{"chosen_logp": -12.5, ...}}')
        rows.append((number, row))
    if not rows:
        raise UsageError(f"{where}: no rows; one JSON object a line with {', '.join((*LOGPS, *TOKENS))}")
    return rows


def evaluate(objective: Objective, rows: list[tuple[int, dict[str, Any]]], where: str) -> Sequence[Mapping[str, Any]]:
    """Evaluate an objective on every row: all are pairs (see `pairs`), or all are lists (see `loss_lists.evaluate`).

    Args:
        objective: the objective.
        rows: (line number, row).
        where: the file, for messages.

    Returns:
        One result per row, in order.

    Raises:
        UsageError: pairs and lists are mixed, a value is missing or not a finite number, or a result is not finite.
    """
    lists = [number for number, row in rows if "logps" in row]
    if not lists:
        return pairs(objective, rows, where)
    if len(lists) < len(rows):
        other = next(number for number, row in rows if "logps" not in row)
        raise UsageError(f"{where}: line {other}: no 'logps', which line {lists[0]} has; give pairs or lists, not both")
    named = [(row, f"{where}: line {number}") for number, row in rows]
    chosen = sum(loss_lists.chosen_tokens(*one) for one in named) / len(named)
    return [loss_lists.evaluate(objective, row, name, chosen) for row, name in named]


def pairs(objective: Objective, rows: list[tuple[int, dict[str, Any]]], where: str) -> list[dict[str, float | None]]:
    """Evaluate an objective on pairs, in float64.

    Args:
        objective: the objective.
        rows: (line number, row) with summed log-probs in nats, numbers of tokens, and columns that the objective needs.
        where: the file, for messages.

    Returns:
        Per pair, in order: the loss, both rewards, the margin (chosen minus rejected reward, before gamma), and the
        gradients with respect to the summed log-probs. Values of an absent answer are None: the rejected one under an
        objective without a preference term, either one under an objective that reads each answer by itself.

    Raises:
        UsageError: a column that the objective needs is missing or not a finite number, or a result is not finite in
            float64; the message has the line.
    """
    check_sides(objective, 2, False, where)
    two = objective.needs_rejected or all(row.get(n) is not None for _, row in rows for n in (LOGPS[1], TOKENS[1]))
    sides = 2 if two else 1
    needed = [*LOGPS[:sides], *TOKENS[:sides], *(REFERENCE[:sides] if objective.needs_reference else ())]
    needed += KL[:sides] if objective.needs_kl else ()
    needed += [name for name in objective.columns if name not in needed]
    present = torch.tensor([[not _absent(objective, row, side) for _, row in rows] for side in range(sides)])

    def read(name: str, number: int, row: dict[str, Any], i: int) -> float:
        side = next((names.index(name) for names in (LOGPS, TOKENS, REFERENCE, KL) if name in names), None)
        is_present = side is None or bool(present[side, i])
        return _number(row, name, number, where, objective) if is_present else 0.0

    values = {name: [read(name, number, row, i) for i, (number, row) in enumerate(rows)] for name in needed}

    def stack(names: tuple[str, ...]) -> torch.Tensor:
        return torch.tensor([values[name] for name in names[:sides]], dtype=torch.float64)

    sums = stack(LOGPS).requires_grad_(True)
    reference = stack(REFERENCE) if objective.needs_reference else None
    columns = {n: torch.tensor(values[n], dtype=torch.float64) for n in objective.columns}
    for i, rule in broken_rules(objective, columns)[:1]:
        shown = ", ".join(f"{n}={values[n][i]:g}" for n in columns)
        raise UsageError(f"{where}: line {rows[i][0]} ({shown}): {rule}, as objective '{objective.name}' needs it")
    some = None if bool(present.all()) else present
    kl = stack(KL) if objective.needs_kl else None
    result = objective(AnswerLogProbs(sums, stack(TOKENS), reference, columns=columns, present=some, kl=kl))
    (gradient,) = torch.autograd.grad(result.loss.sum(), sums)
    margins = result.margins.tolist() if result.margins is not None else [None] * len(rows)
    results = []
    for i, (number, row) in enumerate(rows):
        chosen, rejected = bool(present[0, i]), two and bool(present[1, i])
        row_result: dict[str, float | None] = {
            "loss": result.loss[i].item(),
            "chosen_reward": result.rewards[0, i].item() if chosen else None,
            "rejected_reward": result.rewards[1, i].item() if rejected else None,
            "margin": margins[i] if chosen and rejected else None,
            "d_loss_d_chosen_logp": gradient[0, i].item() if chosen else None,
            "d_loss_d_rejected_logp": gradient[1, i].item() if rejected else None,
        }
        for name, value in row_result.items():
            if value is not None and not math.isfinite(value):
                given = ", ".join(f"{n}={row.get(n)}" for n in needed if n not in TOKENS)
                raise UsageError(
                    f"{where}: line {number}: {name} of objective '{objective.name}' is beyond float64 at {given}; "
                    "correct the row"
                )
        results.append(row_result)
    return results


def _absent(objective: Objective, row: Mapping[str, Any], side: int) -> bool:
    """Whether a row lacks the answer of a side, and the objective allows that; a row without any answer is an error."""
    has_side = [
        row.get(logp) is not None or row.get(tokens) is not None for logp, tokens in zip(LOGPS, TOKENS, strict=True)
    ]
    return objective.pairing is None and not has_side[side] and has_side[1 - side]


def _number(row: Mapping[str, Any], name: str, number: int, where: str, objective: Objective) -> float:
    if name not in row and name in objective.columns:
        raise UsageError(
            f"{where}: line {number}: {lacking(objective, name)} (the row has: {', '.join(row) or 'nothing'})"
        )
    if name not in row:
        raise UsageError(
            f"{where}: line {number}: no '{name}', which objective '{objective.name}' needs (the row has: {', '.join(row) or 'nothing'})"
        )
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{where}: line {number}: {name}={_shown(value)} must be a finite number")
    if name in TOKENS and (value < 1 or value != int(value)):
        raise UsageError(f"{where}: line {number}: {name}={value!r} must be a whole number of at least 1")
    return float(value)


def _shown(value: Any) -> str:
    # Shortened, because the value may be very long or deeply nested.
    return "null" if value is None else reprlib.repr(value)
