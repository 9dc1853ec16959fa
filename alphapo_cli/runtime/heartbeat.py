"""A sign of life for whoever reads the log of a job: without a terminal, no half minute passes without a line."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType

from alphapo_cli.errors import last_said, say
from alphapo_cli.runtime.wording import duration

SILENCE = 30.0  # seconds without a line


class _Work:
    """What this process does, and since when."""

    def __init__(self) -> None:
        self.what = ""
        self.began = time.monotonic()

    def begin(self, what: str) -> None:
        self.what, self.began = what, time.monotonic()

    def in_words(self) -> str:
        what = f"{self.what}: " if self.what else ""
        return f"{what}still at work, {duration(time.monotonic() - self.began)} by now"


_work = _Work()


def at_work(what: str) -> None:
    """Name what begins now, as the line of a `Heartbeat` will say it.

    Args:
        what: a noun phrase: "loading the model".
    """
    _work.begin(what)


class Heartbeat:
    """While it is open, every `silence` seconds without a line on stderr give one that says what is going on.

    A model that is loaded, a step of many pairs and a batch on a slow machine take minutes in which no loop comes round
    to count anything. On a terminal a bar shows as much; of several processes the first one speaks.

    Args:
        silence: seconds.
    """

    def __init__(self, silence: float = SILENCE) -> None:
        self.silence = silence
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        if not sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
            _work.begin("")
            self._thread = threading.Thread(target=self._beat, args=(time.monotonic(),), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self, opened: float) -> None:
        wait = self.silence
        while not self._over.wait(wait):
            silent = time.monotonic() - max(opened, last_said())
            wait = self.silence - silent
            if wait <= 0:
                say(_work.in_words(), file=sys.stderr, flush=True)
                wait = self.silence


__all__ = ["SILENCE", "Heartbeat", "at_work"]
