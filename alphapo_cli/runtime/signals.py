"""Ctrl-C, SIGTERM and SIGHUP: a request to stop at the next safe point, and signals deferred during a critical section.

The first signal requests a stop at the next safe point, such as the end of an optimizer step; the second one raises
KeyboardInterrupt at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from alphapo_cli.errors import say

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether a signal has requested a stop (`asked`)."""

    def __init__(self) -> None:
        self.asked = False
        self._patient = True

    def ask(self, number: int, frame: FrameType | None) -> Any:
        """Signal handler: note the first signal.

        Raises:
            KeyboardInterrupt: a stop has been requested before, or the process is within `at_once`.
        """
        if self.asked or not self._patient:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping after this step (once more: at once)", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises KeyboardInterrupt at once, because there is no step to finish.

        Raises:
            KeyboardInterrupt: a stop has been requested before the block.
        """
        if self.asked:
            raise KeyboardInterrupt
        self._patient = False
        try:
            yield
        finally:
            self._patient = True


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn signals into a `StopRequest` within the block; outside the main thread none arrive."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # One that is ignored stays so: nohup's SIGHUP, and the Ctrl-C that a terminal sends to a sweep's workers too.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, request.ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_interrupt(number: int, frame: FrameType | None) -> Any:
    """Signal handler outside `stop_requests`: a scheduler's SIGTERM and a closed terminal interrupt like Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer signals within the block; after it each is passed to the handler that was set before.

    Outside the main thread, which gets no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    before: dict[int, Any] = {}

    def collect(number: int, frame: FrameType | None) -> None:
        arrived.append((number, frame))

    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, collect)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in arrived:
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.raise_signal(number)
