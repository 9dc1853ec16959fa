"""Rows of probe.jsonl by step; of a long run those of some steps, so that they are read in a fraction of a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.storage import checksums
from alphapo_cli.storage.strict_json import parsed_object, read_file

Rows = list[dict[str, Any]]

_MOST_ROWS = 20_000  # rows that are parsed, but never fewer than two steps
_LARGEST = 4 << 30  # bytes of the file
_FIRST = re.compile(rb'^\{"step": (\d{1,18}), "pair": 0,', re.MULTILINE)  # as `append_jsonl` writes a row


def probe_rows(file: Path) -> dict[int, Rows]:
    """Read the rows of each step.

    Args:
        file: a run's probe.jsonl.

    Returns:
        Step -> its rows in order of the pairs, ascending: the first and the last step that have all pairs, and of those
        between as many, evenly spaced, as are read quickly. Empty where there is no such file, or it has no such rows.

    Raises:
        OSError: the file cannot be read.
        UsageError: the run is over, and the file is not as it was written.
    """
    if not file.is_file():
        return {}
    checksums.check_beside(file)
    data = read_file(file, _LARGEST)
    data = data[: data.rfind(b"\n") + 1]  # without a line that is being written
    found = [(int(match[1]), match.start()) for match in _FIRST.finditer(data)]
    if not found:
        return {}
    ends = [start for _, start in found[1:]] + [len(data)]
    blocks = {step: (start, end) for (step, start), end in zip(found, ends, strict=True)}
    first = _parsed(data, blocks[min(blocks)])
    pairs = len(first)
    whole = sorted(step for step, (start, end) in blocks.items() if data.count(b"\n", start, end) == pairs)
    if not pairs or min(blocks) not in whole:
        return {}
    many = min(max(_MOST_ROWS // pairs, 2), len(whole))
    kept = [whole[i] for i in np.linspace(0, len(whole) - 1, many).round().astype(int)]
    rows = {step: _parsed(data, blocks[step]) for step in kept}
    return {step: block for step, block in rows.items() if len(block) == pairs}


def _parsed(data: bytes, place: tuple[int, int]) -> Rows:
    """The JSON objects of some lines; a line that is none is left out, so that its step has too few."""
    lines = data[slice(*place)].splitlines()
    return [row for line in lines if (row := parsed_object(line)) is not None]
