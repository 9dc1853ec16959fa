"""A warm worker of `launcher=local`, as its parent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

from alphapo_cli.launch.launchers.launcher import CellJob

SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}


class Worker:
    """One process and what it is doing."""

    def __init__(self, number: int, log: Path, gpu: str | None) -> None:
        self.number = number
        self.job: CellJob | None = None
        self.ready = False
        self.connection, theirs = Pipe()
        lifeline, self.lifeline = os.pipe()
        environment = {**os.environ, "TQDM_DISABLE": "1"}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alphapo_cli.launch.worker", str(theirs.fileno()), str(lifeline)],
                pass_fds=(theirs.fileno(), lifeline), env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        theirs.close()
        os.close(lifeline)

    def receive(self) -> object:
        """The next message. Raises EOFError when the process is gone."""
        try:
            return self.connection.recv()
        except OSError as error:
            raise EOFError from error

    def how_it_died(self) -> str:
        code = self.process.wait()
        return f"killed by {SIGNAL_NAMES.get(-code, -code)}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        with contextlib.suppress(OSError):
            os.close(self.lifeline)
