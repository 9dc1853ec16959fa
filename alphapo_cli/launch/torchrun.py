"""A cell in several processes: torch's elastic agent, which torchrun runs, in this process; `rank` is what it starts.

The ranks of a node are started together and end together. What each comes to it leaves in a folder that the agent
removes; rank 0 owns the lock of the run and its record, so that what it says counts. A signal that asks this process to
stop is passed on to the ranks as SIGINT, after which they save a checkpoint; they ignore all others, because a scheduler
may send them to every process of a job.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from alphapo_cli.errors import first_line
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.launch.rank import JOB, STOP
from alphapo_cli.runs.state import OVER
from alphapo_cli.runtime.signals import SIGNALS

RANK = ("-m", "alphapo_cli.launch.rank")  # what Python runs in each process
GRACE = 30  # seconds that torch gives the other ranks of a node to end when one has failed, before it kills them
JOINING = 600  # seconds within which the nodes of a cell must have met


@dataclass(frozen=True)
class Node:
    """A node among those of a cell."""

    number: int = 0
    endpoint: str = (
        "localhost:0"  # where node 0 keeps the store in which nodes and ranks meet; port 0: any that is free
    )
    meeting: str = ""  # a name that no other cell's meeting has; one node alone needs none


class _Agent(LocalElasticAgent):
    """An agent that closes its ranks as a request to stop does, when something interrupts it."""

    def _shutdown(self, death_sig: signal.Signals = signal.SIGINT, timeout: int = GRACE) -> None:
        super()._shutdown(signal.SIGINT, timeout)


def train_in_processes(job: CellJob, node: Node) -> Ended:
    """Train one cell in the processes that its job asks for, those of this node started here.

    Args:
        job: the cell.
        node: this node, where the cell has several.

    Returns:
        How it ended; `lost` where a rank died. What node 0 returns counts.
    """
    with tempfile.TemporaryDirectory(prefix="alphapo-cell-") as scratch:
        folder = Path(scratch)
        (folder / JOB).write_bytes(pickle.dumps(job))
        spec = _spec(job, node, folder)
        # torch's handlers for the signals that a user or a scheduler sends would end the ranks after thirty seconds.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
        agent = _Agent(spec, DefaultLogsSpecs(str(folder / "torchrun")), exit_barrier_timeout=JOINING)
        result = None
        try:
            with _passing_signals_on(agent, folder):
                result = agent.run()
        except KeyboardInterrupt:
            return Ended(job, "interrupted", "stopped by the user")
        except (RendezvousError, RuntimeError, OSError) as error:  # of the stores of torch, which have many
            return Ended(job, "lost", f"the {job.processes.description} of the cell did not meet ({first_line(error)})")
        finally:
            spec.rdzv_handler.shutdown()
        return _ended(job, folder, result)


def _spec(job: CellJob, node: Node, folder: Path) -> WorkerSpec:
    processes = job.processes
    alone = processes.nodes == 1
    rendezvous = RendezvousParameters(
        "c10d", node.endpoint, node.meeting or uuid.uuid4().hex, processes.nodes, processes.nodes,
        "localhost" if alone else None, is_host=node.number == 0, join_timeout=JOINING, read_timeout=JOINING,
    )  # fmt: skip
    return WorkerSpec(
        role="cell", local_world_size=processes.nproc_per_node, rdzv_handler=get_rendezvous_handler(rendezvous),
        entrypoint=sys.executable, args=(*RANK, str(folder), str(os.getpid())),
        max_restarts=0, monitor_interval=0.1, local_addr="localhost" if alone else None,
    )  # fmt: skip


@contextlib.contextmanager
def _passing_signals_on(agent: LocalElasticAgent, folder: Path) -> Iterator[None]:
    """Within the block a signal that asks to stop goes to the ranks; one before they are there interrupts the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        ranks = [worker.id for worker in agent.get_worker_group().workers if isinstance(worker.id, int)]
        if not ranks:
            raise KeyboardInterrupt
        (folder / STOP).touch()  # for one that does not listen yet
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)

    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGQUIT)}
    try:
        for number in heard:
            signal.signal(number, pass_on)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(job: CellJob, folder: Path, result: RunResult | None) -> Ended:
    """How the cell ended, of what the ranks of this node left, and of how those died that left nothing."""
    left: dict[int, Ended] = {}
    first = time.time()
    for file in folder.glob("ended-*.pickle"):
        left[int(file.stem.partition("-")[2])] = pickle.loads(file.read_bytes())
        first = min(first, file.stat().st_mtime)
    failures = {} if result is None else result.failures
    died = {rank: failure.exitcode for rank, failure in failures.items() if rank not in left}
    own = left.get(0)
    if own is not None and (own.state in (*OVER, "busy") or (own.state == "interrupted" and not died)):
        return own
    # What torch ends because another one has failed: with SIGTERM before it listens, else with SIGKILL after a while.
    ended_by_torch = [-signal.SIGTERM, *([-signal.SIGKILL] if time.time() - first >= GRACE else [])]
    died = {rank: code for rank, code in died.items() if code not in ended_by_torch}
    killed = {rank: code for rank, code in died.items() if code < 0}
    failed = [ended for _, ended in sorted(left.items()) if ended.state == "failed"]
    if failed and not killed:  # else they failed because of that one
        return failed[0]
    if died:
        rank, code = min((killed or died).items())
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Ended(job, "lost", f"process {rank} of the {job.processes.world} of the cell died ({how})")
    return Ended(job, "lost", "another process of the cell is gone")
