"""Reward shapes of runs that have none yet: of an earlier version, or still going on. Loads torch only where one is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alphapo_cli.plots import shape_data
from alphapo_cli.runs.directory import RunDirectory


def refresh(runs: Sequence[RunDirectory], log: Callable[[str], None], *, pictures: bool) -> None:
    """Write reward_shape.json, and reward_shape.png, where they are missing or older than the rows of probe.jsonl.

    Args:
        runs: directories of runs; others are passed over.
        log: takes a note to the user on what could not be made.
        pictures: whether to draw reward_shape.png, too.
    """
    missing = [run for run in runs if run.is_run and (run.path / "probe.jsonl").is_file() and _missing(run, pictures)]
    if not missing:
        return
    from alphapo_cli.stages import reward_shape

    notes: list[str] = []
    for run in missing:
        reward_shape.refresh(run, notes.append, picture=pictures)
    for note in notes[:1]:
        log(note if len(notes) == 1 else f"{note}; and {len(notes) - 1} more runs likewise")


def _missing(run: RunDirectory, pictures: bool) -> bool:
    found = shape_data.read(run.path)
    return found is None or (pictures and not isinstance(found, str) and not (run.path / shape_data.PICTURE).is_file())
