"""Kills a sweep at random moments until enough is killed; every cell must end as if nothing had happened.

    python tests/launch/kill_at_random.py                  # 20 kills: about ten minutes on two cores
    python tests/launch/kill_at_random.py --kills 100 --seed 7
    python tests/launch/kill_at_random.py --nproc 2        # cells of two processes, one of which may be killed

A sweep of four cells of the embedded world on two workers is started, and after a random time SIGKILL goes to the sweep
process, to one of its workers, to the sweep process and all of its workers, or to one of the processes of a cell. Then the same line is typed again (a lost
worker is the sweep's own to replace), until the sweep is complete; the next kills go to the next sweep. Each is compared
with one that nobody disturbed: every cell complete and committed once; metrics, readings of every pair and weights equal,
bit by bit. Exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.launch.test_engine import ALPHA, commits, results

LINE = (
    "sweep", "alpha", f"{ALPHA}=-1,0,1,2", "launcher.workers=2", "trainer.max_steps=32", "trainer.save_steps=4",
    "probe.every=8", "probe.samples=32", "tracking.mode=disabled",
)  # fmt: skip
PAIR = ("launcher.workers=1", "trainer.max_steps=16", "trainer.save_steps=2", "probe.samples=0")  # with --nproc
VICTIMS = ("sweep", "worker", "both", "rank")


@dataclass
class Tally:
    """What was killed, and what was found wrong afterwards."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    faults: list[str] = field(default_factory=list)


def start(folder: Path, log: Path, more: tuple[str, ...]) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "alphapo_cli", *LINE, *more, "--out", "sweep"]
    with log.open("ab") as stream:
        return subprocess.Popen(line, cwd=folder, stdout=stream, stderr=stream)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def strike(process: subprocess.Popen[bytes], victim: str, rng: random.Random) -> bool:
    """Whether there was something to kill."""
    found = children(process.pid)
    ranks = [rank for worker in found for rank in children(worker)]
    targets = {
        "sweep": [process.pid],
        "worker": [rng.choice(found)] if found else [],
        "both": [process.pid, *found],
        "rank": [rng.choice(ranks)] if ranks else [],
    }
    struck = False
    for pid in targets[victim]:
        try:
            os.kill(pid, signal.SIGKILL)
            struck = True
        except ProcessLookupError:  # it ended by itself
            pass
    return struck


def disturb(folder: Path, kills: int, span: float, rng: random.Random, tally: Tally, more: tuple[str, ...]) -> None:
    """Bring one sweep to its end, disturbing it until `tally` has `kills`. `span`: seconds that it takes undisturbed."""
    folder.mkdir()
    log = folder / "output.log"
    process = start(folder, log, more)
    victims = VICTIMS if more else VICTIMS[:3]
    while True:
        wanted = tally.kills.total() < kills
        try:
            code = process.wait(rng.uniform(0, span / 2) if wanted else None)
        except subprocess.TimeoutExpired:
            victim = rng.choice(victims)
            if strike(process, victim, rng):
                tally.kills[victim] += 1
                print(f"{tally.kills.total()} of {kills}: killed {victim} of sweep {tally.sweeps}", flush=True)
            if victim in ("sweep", "both"):
                process.wait()
                process = start(folder, log, more)
            continue
        if code == 0:
            return
        if code == 1:  # a worker was lost twice over the same cell: failed, which the same line tries again
            process = start(folder, log, more)
            continue
        tally.faults.append(f"sweep {tally.sweeps}: exit code {code}: {log.read_text().splitlines()[-1]}")
        return


def check(path: Path, wanted: dict[str, tuple], tally: Tally) -> None:
    found = results(path)
    name = f"sweep {tally.sweeps}"
    tally.faults += [f"{name}, {cell}: {made[0]}" for cell, made in found.items() if made[0] != "complete"]
    tally.faults += [
        f"{name}, {cell}: other results than undisturbed" for cell in wanted if found[cell] != wanted[cell]
    ]
    if commits(path) != [1] * len(wanted):
        tally.faults.append(f"{name}: committed {commits(path)} times")


def undisturbed(folder: Path, more: tuple[str, ...]) -> tuple[dict[str, tuple], float, bool]:
    """A sweep's results, the seconds it took, and whether the embedded world's base was trained within them."""
    folder.mkdir()
    log = folder / "output.log"
    began = time.monotonic()
    code = start(folder, log, more).wait()
    span = time.monotonic() - began
    if code != 0:
        raise SystemExit(log.read_text())
    return results(folder / "sweep"), span, "training the embedded world's base" in log.read_text()


def run(folder: Path, kills: int, seed: int, nproc: int = 1) -> Tally:
    rng, tally = random.Random(seed), Tally()
    more = (f"launcher.nproc_per_node={nproc}", *PAIR) if nproc > 1 else ()
    wanted, span, cold = undisturbed(folder / "undisturbed", more)
    if cold:  # the next sweeps have the base from the cache
        again, span, _ = undisturbed(folder / "timed", more)
        tally.faults += ["undisturbed: two sweeps differ"] * (again != wanted)
    print(f"undisturbed: {span:.0f} s", flush=True)
    while tally.kills.total() < kills and not tally.faults:
        tally.sweeps += 1
        disturb(folder / f"disturbed-{tally.sweeps}", kills, span, rng, tally, more)
        if not tally.faults:
            check(folder / f"disturbed-{tally.sweeps}" / "sweep", wanted, tally)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nproc", type=int, default=1)
    chosen = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory(prefix="alphapo-kill-") as scratch:
        tally = run(Path(scratch), chosen.kills, chosen.seed, chosen.nproc)
    kinds = ", ".join(f"{victim} {tally.kills[victim]}" for victim in VICTIMS)
    print(f"{tally.kills.total()} kills ({kinds}) over {tally.sweeps} sweeps: {len(tally.faults)} faults")
    for fault in tally.faults:
        print(fault)
    raise SystemExit(bool(tally.faults))


if __name__ == "__main__":
    main()
