"""A worker process of `launcher=local`, on the parent's side; `launch.worker` is what runs in it."""

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
    """One worker process and its job.

    Args:
        number: the worker's number, from 0.
        log: the file that its stdout and stderr are appended to.
        gpus: its CUDA_VISIBLE_DEVICES; None leaves the environment as it is.
    """

    def __init__(self, number: int, log: Path, gpus: str | None) -> None:
        self.number = number
        self.job: CellJob | None = None
        self.ready = False
        self.connection, theirs = Pipe()
        lifeline, self.lifeline = os.pipe()
        environment = {**os.environ, "TQDM_DISABLE": "1"}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
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
        """The next message of the worker; raises EOFError where the process has ended."""
        try:
            return self.connection.recv()
        except OSError as error:
            raise EOFError from error

    def how_it_died(self) -> str:
        """Signal or exit code of the process, after waiting for its end; for messages."""
        code = self.process.wait()
        return f"killed by {SIGNAL_NAMES.get(-code, -code)}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Kill the process and close its connection."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        with contextlib.suppress(OSError):
            os.close(self.lifeline)
