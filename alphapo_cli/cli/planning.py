"""Plans as tables on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from alphapo_cli.cli.common import print_list
from alphapo_cli.errors import say
from alphapo_cli.launch.estimate import GridEstimate
from alphapo_cli.runtime.wording import duration, size
from alphapo_cli.stages.estimate.inputs import NO_WEIGHTS
from alphapo_cli.stages.estimate.training import Estimate

_TORCHRUN = re.compile(r"\(torchrun (?:--nnodes (?P<nodes>\d+) )?--nproc-per-node (?P<each>\d+)\)")
_MEMORY, _PROCESSES = r"--memory \S+", r"--processes \S+"  # options of a plan
_OVER = {"complete": "this run is complete: the same line would train nothing", "stopped": "this run was stopped by a guard: the same line would train nothing"}  # fmt: skip


def show(found: Estimate, state: str, cost: Mapping[str, float | None] | None) -> None:
    """Print the plan of a training.

    Args:
        found: the plan.
        state: the state of the run that the same line would go on with.
        cost: what the judge costs, None without one that is paid.
    """
    if state in _OVER:
        say(_OVER[state])
    work, answers = found.work, found.work.answers
    sampled = f"{answers.times} times {answers.many:,}, of at most {answers.tokens:,} tokens each"
    _table("steps", [
        ("optimizer steps", f"{work.steps:,}", f"of {work.pairs_per_step:,} pairs"),
        ("tokens trained on", f"{work.trained:,}", "positions of all micro-batches"),
        ("measurements of the probe", f"{work.readings:,}", f"{work.probed:,} positions"),
        *([("reference log-probs", f"{work.reference:,}", "positions, once; cached")] if work.reference else []),
        *([("sampled answers", f"{answers.many * answers.times:,}", sampled)] if answers else []),
    ])  # fmt: skip
    _memory(found)
    _table("disk", [(name, size(count), words) for name, count, words in found.disk.parts])
    say(
        f"disk: at most {size(found.disk.peak)} at a time, {size(found.disk.left)} left; {size(found.disk.free)} free there"
    )
    _time(found)
    if cost is not None:
        say(_judge(cost, 1))
    _say(found)


def _memory(found: Estimate) -> None:
    memory = found.memory
    _table("memory, of one process", [(name, size(count), words) for name, count, words in memory.parts])
    rows = []
    for phase in memory.phases:
        parts = ", ".join(f"{name} {size(count)}" for name, count in phase.parts.items())
        left_out = " (in part left out where memory is short)" if phase.optional else ""
        rows.append((phase.name, size(phase.bytes), parts + left_out))
    _table("memory by phase", rows)
    process = f" beside {size(found.process)} of Python, libraries and data" if found.process else ""
    say(f"peak: {size(memory.highest.bytes)} ({memory.highest.name}){process}, predicted")
    each = f" by {found.together} processes" if found.together > 1 else ""
    verdict = "it fits" if found.fits else "it does NOT fit"
    say(f"{verdict}: {size(found.needed)} are needed{each}, {size(found.limit)} are there ({found.where})")
    print()
    if found.fits:
        return
    if not found.changes:
        say("no setting of this model makes it need less: a smaller model, or shorter pairs (data.max_length)")
        print()
        return
    print_list(
        ["what helps, the most first", "peak", ""],
        [[c.settings, size(c.bytes + found.process), "fits" if c.fits else "not enough alone"] for c in found.changes],
        right=("peak",),
    )
    print()


def _time(found: Estimate) -> None:
    if found.speed is None or found.seconds is None:
        say("time: not known; --measure times a few steps here, or give --tokens-per-second N")
        return
    total = sum(found.seconds.values())
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.seconds.items())
    say(
        f"time: {duration(total)} ({parts}) at {found.speed.tokens_per_second:,.0f} tokens a second, {found.speed.source}"
    )


def _judge(cost: Mapping[str, float | None], runs: int) -> str:
    requests, tokens, usd = cost["requests"] or 0, cost["tokens"] or 0, cost["usd"]
    price = "price unknown (judge.price_input, judge.price_output)" if usd is None else f"at most {runs * usd:,.2f} USD"
    limit = cost.get("max_cost")
    if limit is not None and usd is not None:
        enough = "is enough" if usd <= limit else "may end it before the last"
        price += f"; --max-cost {limit:,.2f} USD {enough}"
    return f"judge: {runs * requests:,.0f} requests, at most {runs * tokens:,.0f} tokens, {price}"


def _say(found: Estimate) -> None:
    for text in found.warnings:
        say(f"settings: {text}")
    for text in found.notes:
        say(f"note: {text}")


def show_grid(found: GridEstimate, cost: Mapping[str, float | None] | None) -> None:
    """Print the plan of a sweep; `cost` is the judge's of one cell."""
    rows = []
    for count, one in found.kinds:
        seconds = one.seconds
        rows.append([
            f"{count:,}", f"{one.work.steps:,}", size(one.memory.highest.bytes + one.process),
            size(one.disk.left), "not known" if seconds is None else duration(sum(seconds.values())),
        ])  # fmt: skip
    columns = ["cells", "steps", "peak memory", "disk left", "time of a cell"]
    print_list(columns, rows, right=columns)
    print()
    first = found.kinds[0][1]
    at_a_time = (
        "as many at a time as the scheduler starts" if found.at_a_time is None else f"{found.abreast:,} at a time"
    )
    each = f", each in {found.processes} processes" if found.processes > 1 else ""
    say(f"{found.cells:,} cells on launcher={found.launcher}, {at_a_time}{each}")
    if found.launcher == "local" or first.where == "--memory":
        fits = "it fits" if found.needed <= first.limit else "it does NOT fit: fewer cells at a time (--max-parallel N)"
        say(f"memory: {size(found.needed)} by the cells that run together, {size(first.limit)} {first.where}; {fits}")
    say(f"disk: about {size(found.disk)}, {size(first.disk.free)} free there")
    if found.seconds is None or found.serial is None:
        say("time: not known; --measure times a few steps here, or give --tokens-per-second N")
    else:
        say(f"time: {duration(found.seconds)} of {duration(found.serial)} one after another")
    if cost is not None:
        say(_judge(cost, found.cells))
    if not first.fits and first.changes:
        print_list(
            ["what helps a cell, the most first", "peak", ""],
            [
                [c.settings, size(c.bytes + first.process), "fits" if c.fits else "not enough alone"]
                for c in first.changes
            ],
            right=("peak",),
        )
    if found.smaller is not None:
        saved = found.cells - found.smaller.cells
        spared = "" if found.serial is None else f", {duration(found.serial * saved / found.cells)} of training"
        say(
            f"try first: {' '.join(found.smaller.overrides)} has {found.smaller.cells:,} of these cells and saves "
            f"{saved:,}{spared}; their results count for the whole grid"
        )
    for text in dict.fromkeys(text for _, one in found.kinds for text in one.warnings):
        say(f"settings: {text}")
    for text in dict.fromkeys(text for _, one in found.kinds for text in one.notes):
        say(f"note: {text}")


def _table(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    print_list([title, "", " "], [list(row) for row in rows], right=("",))
    print()


def following(line: str, found: Estimate, given: str = "") -> tuple[str, str]:
    """What to type after a plan.

    Args:
        line: what was planned, without `alphapo plan`.
        found: the plan.
        given: options of the plan that are no settings.

    Returns:
        The line and why.
    """
    if found.fits:
        # The line would refuse to start: a plan needs no weights, a training does.
        lacking = any(NO_WEIGHTS in note for note in found.notes)
        return f"alphapo {line}", "once the weights are there" if lacking else ""
    change = next((change for change in found.changes if change.fits), None)
    if change is not None:
        return f"alphapo plan {line}{_typed(change.settings, given)}", "the first change that fits"
    settings, needed = found.least
    memory = f"--memory {math.ceil(needed / found.together / 1e9)}GB"
    kept = " ".join(word for word in [re.sub(_MEMORY, "", given).strip(), memory] if word)
    missing = f"the least that is known needs {size(needed)}, {size(needed - found.limit)} more than there is"
    what = "a GPU" if found.memory.device == "cuda" else "a machine or a GPU"
    return f"alphapo plan {line}{_typed(settings, kept)}", f"{missing}: plan for {what} of that size"


def _typed(settings: str, given: str) -> str:
    """Settings and options as they are typed; processes of torchrun become `--processes`."""
    started = _TORCHRUN.search(settings)
    if started is not None:
        settings = _TORCHRUN.sub("", settings)
        count = int(started["nodes"] or 1) * int(started["each"])
        given = f"{re.sub(_PROCESSES, '', given)} --processes {count}"
    return "".join(f" {word}" for word in [*settings.split(), *given.split()])
