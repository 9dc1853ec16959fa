"""Where the YAML of the package is."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> Path:
    """The directory conf/ or sweeps/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.is_dir() else Path(__file__).parents[2] / name
