"""Names for two models that are compared: their own, or their files where both are called the same."""

from __future__ import annotations

from pathlib import Path


def told_apart(names: tuple[str, str], paths: tuple[str, str], roles: tuple[str, str] = ("A", "B")) -> tuple[str, str]:
    """Name two models so that a reader can tell which is which.

    Answers of one model with two settings have the same generator name, and so have runs copied from one another.

    Args:
        names: the models' own names.
        paths: the files that they come from.
        roles: what the two are to each other, used for one file that is given twice.

    Returns:
        `names` where they differ; else the shortest tails of `paths` that differ; else the name with its role.
    """
    if names[0] != names[1]:
        return names
    first, second = (Path(path).parts for path in paths)
    for count in range(1, max(len(first), len(second)) + 1):
        tails = str(Path(*first[-count:])), str(Path(*second[-count:]))
        if tails[0] != tails[1]:
            return tails
    return f"{names[0]} ({roles[0]})", f"{names[1]} ({roles[1]})"
