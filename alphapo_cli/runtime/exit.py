"""The end of a process that belongs to a process group."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn


def exit_with_threads(code: int) -> NoReturn:
    """Exit without taking the interpreter down, for one of several processes of torchrun.

    The threads of a process group live as long as torch's caches name it, and may still hold tensors of the last
    operation. One that lets them go while the interpreter is taken down aborts the process, which then counts as failed
    (pytorch/pytorch#190489).

    Args:
        code: the exit code.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
