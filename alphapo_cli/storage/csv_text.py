"""Cells of a CSV file that a spreadsheet shows and does not compute."""

from __future__ import annotations

from typing import Any

from alphapo_cli.errors import visible

# What begins a formula in spreadsheets (OWASP, CSV injection), but for tab and carriage return, which are made visible.
_FORMULA = ("=", "+", "-", "@")


def cell(value: Any) -> Any:
    """A value as a cell: text that a spreadsheet would run gets an apostrophe before it, control characters are escaped; None is an empty cell."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value)
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
