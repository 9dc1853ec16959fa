"""What alphapo has written below a folder: runs, sweeps, generations, evaluations, read in milliseconds from their files.

A directory is known by the files that its command writes first: a run by `made_by` in its manifest.json, a sweep by
sweep.json, a generation and an evaluation by the identity in manifest.json. A saved model is known by its config.json.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from alphapo_cli.cli.housekeeping.sizes import bytes_of
from alphapo_cli.runs.state import OVER, RunState
from alphapo_cli.runs.verdict import sampled_answers
from alphapo_cli.runtime.wording import USUAL, rate
from alphapo_cli.storage import checksums
from alphapo_cli.storage.jsonl import InUse, check_free
from alphapo_cli.storage.strict_json import read_object
from alphapo_cli.sweep.record import JUDGED, WIN_RATE, read
from alphapo_cli.sweep.status import judged_rate

RUN, SWEEP, GENERATION, EVALUATION, MODEL = "run", "sweep", "generation", "evaluation", "model"
# What reading values of other types than alphapo writes ends in.
MALFORMED = (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError)
DEPTH = 3  # levels of folders below the given one that are searched
# Kind -> the log to which the command that is at work appends.
LOGS = {GENERATION: "partial.jsonl", EVALUATION: "judgements.jsonl"}


@dataclass(frozen=True)
class Entry:
    """One directory.

    Attributes:
        path: the directory.
        kind: run, sweep, generation or evaluation.
        state: complete, running, interrupted, stopped, failed or pending; of a sweep, the states of its cells in words.
        outcome: the result in words; empty where there is none yet.
        value: the result as a share from 0 to 1, by which lists are sorted; None without one.
        size: bytes of its files.
        changed: when it was last written to, in seconds since 1970.
    """

    path: Path
    kind: str
    state: str
    outcome: str
    value: float | None
    size: int
    changed: float


def kind_of(path: Path) -> str | None:
    """What a directory is; None for anything that no command of alphapo has written, and that is no saved model."""
    if (path / "sweep.json").is_file():
        return SWEEP
    manifest = read_object(path / "manifest.json") or {}
    identity = manifest.get("identity")
    if isinstance(identity, dict):
        return EVALUATION if "judge" in identity else GENERATION if "prompts" in identity else None
    if manifest.get("made_by") == "alphapo":
        return RUN
    return MODEL if any((path / name).is_file() for name in ("config.json", "adapter_config.json")) else None


def find(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, str | None]]:
    """Directories below `folder` that a command has written, with their kinds; `folder` itself where it is one.

    Args:
        folder: where to look; links are not followed.
        depth: levels of folders that are searched.

    Yields:
        (directory, kind), in the order of their names; the kind is None where the directory cannot be read. Directories
        inside a run or a sweep are parts of it.
    """
    try:
        kind = kind_of(folder)
        names = sorted(os.listdir(folder)) if kind is None and depth else []
    except OSError:  # not the user's to read: it hides no other
        yield folder, None
        return
    if kind not in (None, MODEL):
        yield folder, kind
    for name in names:
        place = folder / name
        if not name.startswith(".") and place.is_dir() and not place.is_symlink():
            yield from find(place, depth - 1)


def is_ours(path: Path, kind: str) -> bool:
    """Whether a directory is certainly what `kind_of` says: sweep.json is a name that other programs give, too.

    Args:
        path: the directory.
        kind: as `kind_of` has it.

    Returns:
        True for all but a folder whose sweep.json is not by alphapo, and that has no cells either.
    """
    if kind != SWEEP:
        return True
    record = read_object(path / "sweep.json") or {}  # as it is: a damaged one of ours may be removed
    return {"cells", "keys"} <= record.keys() or any(RunState(cell).config.is_file() for cell in begun(path))


def begun(path: Path) -> list[Path]:
    """The directories of a sweep's cells, whether sweep.json lists them or not."""
    try:
        return sorted(place for place in (path / "cells").iterdir() if place.is_dir())
    except OSError:
        return []


def describe(path: Path, kind: str) -> Entry:
    """Read the state and the result of a directory.

    Args:
        path: the directory.
        kind: as `kind_of` has it.

    Returns:
        The entry.
    """
    made = {RUN: _run, SWEEP: _sweep, GENERATION: _generation, EVALUATION: _evaluation}[kind]
    try:
        state, outcome, value = made(path)
    except MALFORMED:  # one directory of somebody else's must not hide all others
        state, outcome, value = "damaged", "its files hold other things than alphapo writes", None
    return Entry(path, kind, state, outcome, value, bytes_of(path), _changed(path))


def cells(path: Path) -> list[tuple[Path, str]]:
    """The directories of a sweep's cells that have been begun, with the overrides of each."""
    recorded = (read(path) or {}).get("cells", [])
    places = [(path / "cells" / cell["id"], " ".join(cell["overrides"])) for cell in recorded]
    return [(place, overrides) for place, overrides in places if place.is_dir()]


def _run(path: Path) -> tuple[str, str, float | None]:
    run = RunState(path)
    ended = run.summary()
    state, summary = run.state_of(ended), ended or {}
    if state not in OVER:
        reason = summary.get("reason")
        return state, str(reason) if reason else "", None
    pairs = (summary.get("data") or {}).get("probe_pairs")
    outcome, value = result_of(path, summary.get("metrics") or {}, run.outcome(), pairs)
    return state, outcome if state == "complete" else str(summary.get("reason") or outcome), value


def result_of(
    path: Path, metrics: Mapping[str, Any], judged: Mapping[str, Any], pairs: int | None
) -> tuple[str, float | None]:
    """The result of a run in words, and as a share.

    Args:
        path: the run directory.
        metrics: of its last probe.
        judged: the content of outcome.json; empty without one.
        pairs: pairs of the probe; None where that is not known.

    Returns:
        The best result that there is: the judged win rate, the true one, else the share of chosen answers that became
        less likely, which is no win rate (value None).
    """
    if (found := judged_rate(judged)) is not None:
        return found
    if _is_number(metrics.get(WIN_RATE)):
        ends = metrics.get(f"{WIN_RATE}/low"), metrics.get(f"{WIN_RATE}/high")
        interval = (ends[0], ends[1]) if _is_number(ends[0]) and _is_number(ends[1]) else None
        return f"true win rate {rate(metrics[WIN_RATE], sampled_answers(path), interval)}", float(metrics[WIN_RATE])
    down = metrics.get("displacement/share_chosen_down")
    return ("" if not _is_number(down) else f"chosen answers less likely {rate(float(down), pairs)}"), None


def _sweep(path: Path) -> tuple[str, str, float | None]:
    record = read(path)
    if record is None:
        return "damaged", "sweep.json cannot be read", None
    states: dict[str, int] = {}
    for cell in record["cells"]:
        state = RunState(path / "cells" / cell["id"]).state
        states[state] = states.get(state, 0) + 1
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no cells"
    best = (checksums.intact(read_object(path / "summary.json")) or {}).get("best")
    if not isinstance(best, dict) or not _is_number(best.get("value")):
        return words, "", None
    name = {JUDGED: "win rate", WIN_RATE: "true win rate"}.get(str(best.get("metric")), "accuracy")
    # Three verdicts; none where there is no alpha = 0 to compare with, or the best is that itself.
    verdict = best.get("verdict") if best.get("interval_over") else None
    told = {
        "not distinguishable": ", not distinguishable from alpha = 0", "undecided": ", undecided against alpha = 0",
    }.get(str(verdict), "")  # fmt: skip
    over, interval = best.get("value_over"), best.get("value_interval")
    seeds = over is not None and "seeds" in over
    shown = [text for text in best.get("overrides") or [] if not (seeds and text.startswith("seed="))]
    where = " ".join(_last_part(text) for text in shown)  # as the sweep's own table names its points
    n = sampled_answers(path / "cells" / str(best.get("id")))
    ends = (float(interval[0]), float(interval[1])) if isinstance(interval, list) and len(interval) == 2 else None
    value = f"{rate(best['value'], n, ends)}{f', over {over}' if over else ''}"
    return words, f"best {where}: {name} {value}{told}", float(best["value"])


def _last_part(override: str) -> str:
    """An override without the groups of its key: `alpha=-1`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"


def _generation(path: Path) -> tuple[str, str, float | None]:
    summary = checksums.intact(read_object(path / "summary.json")) or {}
    state = _keyed_state(path, GENERATION, summary.get("state"))
    metrics = summary.get("metrics") or {}
    if state != "complete" or not metrics.get("answers"):
        return state, "", None
    answers = metrics["answers"]
    cut = rate(metrics.get("share_cut") or 0.0, answers)
    return state, f"cut by the token limit {cut} answers", None


def _evaluation(path: Path) -> tuple[str, str, float | None]:
    results = checksums.intact(read_object(path / "results.json")) or {}
    state = _keyed_state(path, EVALUATION, results.get("state"))
    value = results.get("win_rate")
    if state != "complete" or not _is_number(value):
        return state, "", None
    ends = results.get("win_rate_interval")
    interval = (ends[0] / 100, ends[1] / 100) if isinstance(ends, list) else None
    words = rate(float(value) / 100, results.get("n_total"), interval, results.get("confidence", USUAL))
    return state, f"win rate {words} against {results.get('reference', 'the reference')}", float(value) / 100


def _keyed_state(path: Path, kind: str, recorded: Any) -> str:
    if recorded == "complete":
        return "complete"
    return "running" if in_use(path / LOGS[kind]) else "interrupted"


def in_use(log: Path) -> bool:
    """Whether a process appends to the log of a generation or an evaluation at this moment."""
    try:
        check_free(log, "")
    except InUse:
        return True
    except OSError:
        return False
    return False


def _changed(path: Path) -> float:
    """The latest modification of the directory or a file right in it."""
    times = []
    for place in (path, *(path / name for name in _names(path))):
        with contextlib.suppress(OSError):
            times.append(place.stat().st_mtime)
    return max(times, default=time.time())


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
