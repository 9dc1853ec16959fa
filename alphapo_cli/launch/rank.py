"""One of the processes that train a cell: `python -m alphapo_cli.launch.rank FOLDER PARENT`, started by `torchrun`.

It reads the job from FOLDER and leaves there how it ended, but for one that lost another process: then it is for that one
to say. When PARENT, the process that started it, is gone, it exits at once; the same command resumes the run from its last
checkpoint.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

JOB, STOP = "job.pickle", "stop"  # files of the folder: the job, and what is there when the ranks are asked to stop
LOOK = 0.5  # seconds between two looks at whether the parent is still there


def main(folder: Path, parent: int) -> NoReturn:
    """Train the cell of the job in `folder` together with the other ranks, and exit.

    The exit code is 0 if all ranks come to the same end, else 1: torch then ends the others.

    Args:
        folder: of the job.
        parent: id of the process that started this one.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a scheduler may send them to every process; see `torchrun`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a worker, which its children inherit
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    job = pickle.loads((folder / JOB).read_bytes())
    if job.cfg.trainer.threads is None:
        os.environ["OMP_NUM_THREADS"] = str(job.processes.threads)
    from torch.distributed import is_initialized

    from alphapo_cli.launch.cell import train
    from alphapo_cli.launch.launchers.launcher import Ended
    from alphapo_cli.runs.state import OVER
    from alphapo_cli.runtime.distributed import PeerLost, leave_processes
    from alphapo_cli.runtime.exit import exit_with_threads
    from alphapo_cli.runtime.quiet import quiet_libraries

    quiet_libraries()
    rank = int(os.environ["RANK"])
    together, stopped = False, Ended(job, "interrupted", "stopped by the user")
    try:
        if (folder / STOP).exists():  # since before this process listened
            ended = stopped
        else:
            ended = train(job, main=rank == 0, divided=True)
            together = is_initialized()  # not where the cell was over before the ranks had met
    except KeyboardInterrupt:
        ended = stopped
    except PeerLost:
        exit_with_threads(1)
    beside = folder / f".ended-{rank}"
    beside.write_bytes(pickle.dumps(ended))
    beside.rename(folder / f"ended-{rank}.pickle")
    if together and ended.state in OVER:
        leave_processes()
    exit_with_threads(0 if together and ended.state in (*OVER, "interrupted") else 1)


def _exit_with_parent(parent: int) -> None:
    """Wait until the parent is gone, then exit without cleanup."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
