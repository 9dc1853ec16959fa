"""A worker process: `python -m alphapo_cli.launch.worker CONNECTION LIFELINE`, two inherited file descriptors.

It serves requests ("prepare", (cells, plan)) and ("run", job) over the connection until the parent closes it. SIGTERM
makes the current run save a checkpoint and end; SIGINT is ignored, because the parent handles Ctrl-C. When the parent
dies, the other end of the lifeline closes and the worker exits at once; the same command resumes the run from its last
checkpoint.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection


def main(connection: int, lifeline: int) -> None:
    """Serve requests until the parent closes the connection.

    Args:
        connection: file descriptor of the connection to the parent.
        lifeline: file descriptor of a pipe that the parent holds open while it lives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()
    from alphapo_cli.runtime.quiet import quiet_libraries

    quiet_libraries()
    from alphapo_cli.errors import AlphapoError, in_words
    from alphapo_cli.launch.cell import prepare, run_job

    parent: Connection = Connection(connection)
    # Imported before the first request, because it takes seconds.
    import alphapo_cli.stages.train  # noqa: F401

    gc.freeze()  # accelerate collects garbage after every run: skip the imported modules
    parent.send("ready")
    while True:
        try:
            what, content = parent.recv()
        except (EOFError, OSError):
            return
        if what == "run":
            parent.send(run_job(content))
            continue
        try:
            prepare(*content)
        except (AlphapoError, KeyboardInterrupt) as error:
            parent.send(error if isinstance(error, AlphapoError) else AlphapoError("interrupted"))
        except Exception as error:
            parent.send(AlphapoError(in_words(error)))
        else:
            parent.send(None)


def _exit_with_parent(lifeline: int) -> None:
    """Block until the parent is gone, then exit without cleanup."""
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
