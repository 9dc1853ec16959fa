"""Cells of a CSV file that a spreadsheet shows and does not compute."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins a formula or a command in spreadsheets (OWASP, CSV injection)


def cell(value: Any) -> Any:
    """A value as a cell: text that a spreadsheet would run gets an apostrophe before it; None is an empty cell."""
    if value is None:
        return ""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
