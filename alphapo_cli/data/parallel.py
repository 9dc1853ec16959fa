"""An ordered parallel map over chunks, in this process or in a pool of processes.

Processes are spawned, not forked: torch and the tokenizers may have started threads, which do not survive a fork. Each
process then needs about three seconds of imports, so small inputs stay in this process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from alphapo_cli.errors import AlphapoError

C = TypeVar("C")
R = TypeVar("R")

# Characters that pay for the start of another process (3 s): about 30 s of tokenising.
SMALL = 20_000_000
_shared: Any = None  # in a worker process: (function, shared) for every chunk


def automatic(characters: int) -> int:
    """Number of processes for so many characters of text: one up to `SMALL`, at most the cores of this process."""
    if characters < SMALL:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 1 + characters // SMALL)


def in_order(function: Callable[[Any, C], R], shared: Any, chunks: Sequence[C], workers: int) -> Iterator[R]:
    """Map `function(shared, chunk)` over chunks in order; the results do not depend on `workers`.

    Args:
        function: defined at module level, so that it can be pickled. What it raises is raised at its chunk's turn.
        shared: its first argument, sent to each worker once.
        chunks: its second arguments.
        workers: processes at most; 1, or arguments that cannot be pickled: this process alone.

    Yields:
        The result of each chunk.

    Raises:
        AlphapoError: a worker process was killed.
    """
    workers = min(workers, len(chunks))
    pickled = _pickled(function, shared) if workers > 1 else None
    if pickled is None:
        yield from (function(shared, chunk) for chunk in chunks)
        return
    unrelated = multiprocessing.active_children()
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(pickled,)
    )
    try:
        yield from pool.map(_run, chunks)
    except BrokenProcessPool as error:
        raise AlphapoError(
            "a tokenising process was killed, perhaps for its memory; data.workers=1 does without them"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():  # their results are no longer needed
            if process not in unrelated:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _pickled(function: Any, shared: Any) -> bytes | None:
    """The pickled arguments; None where they cannot be pickled, as a tokenizer class from a hub repository."""
    with contextlib.suppress(Exception):
        pickled = pickle.dumps((function, shared))
        pickle.loads(pickled)
        return pickled
    return None


def _start_worker(pickled: bytes) -> None:
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which terminates its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _shared = pickle.loads(pickled)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(chunk: Any) -> Any:
    function, shared = _shared
    return function(shared, chunk)
