"""`data.select`: training pairs left out by scores and columns, counted, listed, and part of the data's key."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alphapo_cli.config.schema import SelectConfig
from alphapo_cli.data.data_report import TRAINING_PAIRS, rows_by_source
from alphapo_cli.data.mean_lengths import mean_lengths, rows_of_means
from alphapo_cli.data.prepare import PreparedData
from alphapo_cli.data.select import Condition, Dropped, select, typed
from alphapo_cli.data.text_pairs import digest
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import UsageError, nearest

SETTING = "data.select"


def conditions_of(cfg: SelectConfig) -> list[Condition]:
    """The conditions of `data.select`, in order.

    Args:
        cfg: the settings.

    Returns:
        The conditions; none where nothing is selected.

    Raises:
        UsageError: `then` is no list of conditions, or something is set beside a `by` that is null.
    """
    names = [f.name for f in fields(Condition)]
    first = {name: getattr(cfg, name) for name in names}
    if cfg.by is None:
        given = next((name for name, value in first.items() if value is not None), None)
        if given is not None or cfg.then:
            raise UsageError(f"{SETTING}.{given or 'then'}: by which score or column? give {SETTING}.by too")
        return []
    found = [Condition(**first)]
    rest = cfg.then if cfg.then is not None else []
    if not isinstance(rest, list) or not all(isinstance(one, Mapping) for one in rest):
        raise UsageError(f"{SETTING}.then={rest}: must be a list of conditions, such as [{{by: margin, min: 0.5}}]")
    for one in rest:
        unknown = next((str(key) for key in one if key not in names), None)
        if unknown is not None or "by" not in one:
            wrong = f"no key '{unknown}'{nearest(unknown, names)}" if unknown else "a condition without 'by'"
            raise UsageError(f"{SETTING}.then: {wrong} (keys: {', '.join(names)})")
        found.append(typed(one, f"{SETTING}.then"))
    return found


def selected(
    data: PreparedData, conditions: Sequence[Condition], numbers: Mapping[str, npt.NDArray[np.float64]], seed: int
) -> PreparedData:
    """Leave out the training pairs that do not satisfy the conditions.

    Args:
        data: the data.
        conditions: checked conditions.
        numbers: name -> [n] numbers of the training pairs, NaN for none.
        seed: of conditions by `random`.

    Returns:
        The data with fewer training pairs, and all counts changed accordingly.

    Raises:
        UsageError: no pair is left.
    """
    train = data.train
    columns = {one.by: numbers[one.by].tolist() for one in conditions if one.by in numbers}
    found = select(columns, conditions, _keys(train), seed=seed)
    counts = found.counts(conditions)
    if not found.kept:
        said = "; ".join(f"{rows:,} not {text}" for text, rows in counts.items() if rows)
        raise UsageError(f"{SETTING}: no pair is left of {len(train):,} to train on ({said})")
    kept = train.select(found.kept)
    rows = tuple(_row(train, conditions, one) for one in found.dropped)
    report, table = _reported(data, kept, counts)
    key = digest([data.key, {"select": [asdict(one) for one in conditions], "kept": list(found.kept)}])
    return replace(data, train=kept, report=report, table=table, key=key, dropped=rows)


def _keys(pairs: TokenPairs) -> list[str]:
    """A text for each pair that is made of its content alone."""
    found = []
    for i in range(len(pairs)):
        answers = hashlib.sha256(b"/".join(side[i].tobytes() for side in pairs.answers)).hexdigest()
        found.append(f"{pairs.prompt_keys[i]}/{answers}")
    return found


def _row(pairs: TokenPairs, conditions: Sequence[Condition], one: Dropped) -> dict[str, Any]:
    """A row of dropped.jsonl."""
    condition = conditions[one.condition]
    missing = math.isnan(one.value)
    source = {} if pairs.source is None else {"source": pairs.source_names[int(pairs.source[one.row])]}
    return {
        "row": int(pairs.index[one.row]) + 1,
        **source,
        "prompt": pairs.prompt_keys[one.row],
        "by": condition.by,
        "value": None if missing else one.value,
        "reason": f"{condition.by}: no value" if missing else f"not {condition.text}",
    }


def _reported(
    data: PreparedData, kept: TokenPairs, counts: Mapping[str, int]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Report and table of the data with the pairs that are kept."""
    dropped = len(data.train) - len(kept)
    means = mean_lengths(kept)
    report = {**data.report, "train_pairs": len(kept), **means, "left_out_by_select": dropped, "select": dict(counts)}
    if kept.source is not None:
        own = [int((kept.source == number).sum()) for number in range(len(kept.source_names))]
        report["sources"] = [{**one, "train_pairs": n} for one, n in zip(report["sources"], own, strict=True)]
    texts = {TRAINING_PAIRS: f"{len(kept):,}", **dict(rows_of_means(report)), **dict(rows_by_source(report))}
    table: list[tuple[str, str]] = []
    for label, value in data.table:
        if label == TRAINING_PAIRS:
            table += [
                (f"not {text}" if ": no value" not in text else text, f"{rows:,}") for text, rows in counts.items()
            ]
        table.append((label, texts.get(label, value)))
    return report, table
