"""Progress of a loop: a bar on a terminal, elsewhere a line every half minute, for whoever reads the log of a job."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from alphapo_cli.errors import say
from alphapo_cli.runtime.heartbeat import SILENCE, at_work
from alphapo_cli.runtime.wording import duration


class Progress:
    """Counts what is done of a number of things, on stderr.

    Args:
        total: how many there are.
        unit: what they are, in the plural.
        title: what is done with them; empty where the unit says it.
        initial: how many are done already.
        leave: whether the bar stays on the terminal at the end.
        quiet: whether nothing is shown, as by all but the first of several processes.
    """

    def __init__(
        self, total: int, unit: str, title: str = "", *, initial: int = 0, leave: bool = True, quiet: bool = False
    ) -> None:
        self.bar = tqdm(
            total=total, initial=initial, desc=title or None, unit=f" {unit}", file=sys.stderr, leave=leave,
            disable=True if quiet else None, dynamic_ncols=True,
        )  # fmt: skip
        self.words = f"{title}: " if title else ""
        self.total, self.unit, self.done = total, unit, initial
        self.lines = bool(self.bar.disable) and not quiet
        self.said = time.monotonic()
        # Of the first count: what came before it, as loading a model, says nothing of the time that each takes.
        self.first: tuple[int, float] | None = None
        if not quiet:
            at_work(f"{self.words}{initial:,} of {total:,} {unit}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def update(self, count: int = 1) -> None:
        """Count so many more as done, and print a line where half a minute has passed since the last one."""
        self.bar.update(count)
        self.done += count
        if self.lines:
            at_work(f"{self.words}{self.done:,} of {self.total:,} {self.unit}")
        now = time.monotonic()
        self.first = self.first or (self.done, now)
        if not self.lines or now - self.said < SILENCE or not count:
            return
        self.said = now
        done, began = self.first
        left = (now - began) / (self.done - done) * (self.total - self.done) if self.done > done else None
        rest = f", {duration(left)} left" if left is not None and self.done < self.total else ""
        say(f"{self.words}{self.done:,} of {self.total:,} {self.unit}{rest}", file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stderr)
