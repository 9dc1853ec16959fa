"""A limit of time for code that somebody else wrote, such as a chat template, which may never end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any


class OutOfTime(Exception):
    """The block took longer than its limit."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime within the block once it has computed for `seconds`.

    In the main thread, which every process has, by a timer of the processor time that this process uses, so that a
    machine that is busy with other work refuses nothing; it costs some microseconds. In other threads, which get no
    signals, by a look at the clock before each line, which is slow, and exact where it matters. Neither ends one
    operation that is a single call of C code.

    Args:
        seconds: the limit.

    Yields:
        Nothing.

    Raises:
        OutOfTime: the limit is exceeded.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _by_signal(seconds):
            yield
    else:
        with _by_tracing(seconds):
            yield


@contextlib.contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again and again: code that catches every exception would swallow a single one.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _by_tracing(seconds: float) -> Iterator[None]:
    end = time.thread_time() + seconds

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise OutOfTime
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
