"""A worker process: `python -m alphapo_cli.launch.worker CONNECTION LIFELINE`, two inherited file descriptors.

It answers ("prepare", cells) and ("run", job) over the connection until there is no more. SIGTERM asks the run under
way to save a checkpoint and end; Ctrl-C is the parent's to hear. When the parent is gone, however it went, the other
end of the lifeline closes and the worker ends at once: the run goes on from its checkpoint when the line is typed again.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection


def main(connection: int, lifeline: int) -> None:
    """Serve until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    from alphapo_cli.runtime.quiet import quiet_libraries

    quiet_libraries()
    from alphapo_cli.errors import AlphapoError, in_words
    from alphapo_cli.launch.cell import prepare, run_job

    parent: Connection = Connection(connection)
    # What takes seconds to import is imported before the first request.
    import alphapo_cli.stages.train  # noqa: F401

    gc.freeze()  # accelerate collects garbage after every run: not again through everything that was imported
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


def _die_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
