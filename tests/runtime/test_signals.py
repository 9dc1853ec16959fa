"""An interruption waits until what must stay whole is done, and is not lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from alphapo_cli.runtime.signals import deferred_signals


def interrupted_halfway(done: list[str], number: int) -> None:
    with deferred_signals():
        os.kill(os.getpid(), number)
        done.append("whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_after_the_block(number: signal.Signals) -> None:
    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, handler)
    done: list[str] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_halfway(done, number)
        assert done == ["whole"]
        assert signal.getsignal(number) is handler
        with deferred_signals():
            done.append("no signal, nothing happens")
    finally:
        signal.signal(number, before)


def test_an_error_in_the_block_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), deferred_signals():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_go_through() -> None:
    done = []

    def work() -> None:
        with deferred_signals():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
