"""The same function over many chunks, in this process or in several, with the results in order.

Processes are spawned, not forked: torch and the tokenizers may have started threads, which a fork would lose halfway.
That costs each about three seconds of imports, so small work stays here.
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

# Characters for which another process is worth its start (three seconds): they keep one busy for about 30.
SMALL = 20_000_000
_shared: Any = None  # in a worker: what every chunk is computed with


def automatic(characters: int) -> int:
    """How many processes are worth starting for so much text: one, or as many as this process may use cores."""
    if characters < SMALL:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 1 + characters // SMALL)


def in_order(function: Callable[[Any, C], R], shared: Any, chunks: Sequence[C], workers: int) -> Iterator[R]:
    """`function(shared, chunk)` of every chunk, in order; whatever `workers` is, the results are the same.

    `function` is a module's own. What a chunk raises is raised here when its turn comes.
    """
    workers = min(workers, len(chunks))
    packed = _packed(function, shared) if workers > 1 else None
    if packed is None:
        yield from (function(shared, chunk) for chunk in chunks)
        return
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(packed,))
    try:
        yield from pool.map(_run, chunks)
    except BrokenProcessPool as error:
        raise AlphapoError(
            "a tokenising process was killed, perhaps for its memory; data.workers=1 does without them"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():  # nobody wants what they are still at
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _packed(function: Any, shared: Any) -> bytes | None:
    """None for what cannot be sent to another process, such as a tokenizer of a class from its own repository."""
    with contextlib.suppress(Exception):
        packed = pickle.dumps((function, shared))
        pickle.loads(packed)
        return packed
    return None


def _begin(packed: bytes) -> None:
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _shared = pickle.loads(packed)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(chunk: Any) -> Any:
    function, shared = _shared
    return function(shared, chunk)
