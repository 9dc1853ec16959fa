"""The plan of one training: steps, memory, disk, time, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.runtime.wording import size
from alphapo_cli.stages.estimate.advice import Change, advise
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.disk import Disk, disk_of
from alphapo_cli.stages.estimate.duration import Speed, Work, measure, work_of
from alphapo_cli.stages.estimate.memory import Memory, memory_of
from alphapo_cli.stages.estimate.published import warnings

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for beside the configuration.

    Attributes:
        memory: bytes of the machine or GPU that is planned for; None: this one's.
        tokens_per_second: tokens that all processes train on in a second; None: not known.
        measure: whether a few steps are timed on this machine.
    """

    memory: int | None = None
    tokens_per_second: float | None = None
    measure: bool = False


@dataclass(frozen=True)
class Estimate:
    """The plan of a training.

    Attributes:
        work: steps and tokens.
        memory: memory of a process.
        process: bytes that Python, libraries and data take beside it, measured in this process; 0 on a GPU.
        limit: bytes that the processes of a machine may take together.
        where: whose memory that is.
        together: processes that share it.
        disk: what is written.
        speed: None where it is not known.
        changes: what to change, where it does not fit.
        warnings: settings outside published ranges.
        notes: what is coarse or left out.
    """

    work: Work
    memory: Memory
    process: int
    limit: int
    where: str
    together: int
    disk: Disk
    speed: Speed | None
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def needed(self) -> int:
        """Bytes of all processes that share the memory, what may be left out not counted."""
        return self.together * (self.memory.needed.bytes + self.process)

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.needed <= self.limit

    @property
    def least(self) -> tuple[str, int]:
        """(the settings that need the least of all that were tried, "" for those of the plan; bytes that they need)."""
        tried = [(change.settings, self.together * (change.bytes + self.process)) for change in self.changes]
        return min([("", self.needed), *tried], key=lambda one: one[1])

    @property
    def seconds(self) -> Mapping[str, float] | None:
        """Seconds of each part; None where the speed is not known."""
        return None if self.speed is None else self.work.seconds(self.speed)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON types, sizes in bytes."""
        memory, disk = self.memory, self.disk
        return {
            "steps": self.work.steps,
            "pairs_per_step": self.work.pairs_per_step,
            "work": asdict(self.work),
            "memory": {
                "device": memory.device,
                "parameters": memory.parameters,
                "trained_parameters": memory.trained,
                "largest_micro_batch": {"pairs": memory.micro_batch[0], "positions": memory.micro_batch[1]},
                "parts": {name: count for name, count, _ in memory.parts},
                "phases": [
                    {"name": p.name, "bytes": p.bytes, "optional": p.optional, "parts": dict(p.parts)}
                    for p in memory.phases
                ],
                "peak": memory.highest.bytes,
                "needed": memory.needed.bytes,
                "process": self.process,
                "limit": self.limit,
                "fits": self.fits,
            },
            "disk": {
                "parts": {name: count for name, count, _ in disk.parts},
                "peak": disk.peak, "left": disk.left, "cache": disk.cache, "free": disk.free,
            },
            "seconds": None if self.seconds is None else dict(self.seconds),
            "speed": None if self.speed is None else asdict(self.speed),
            "changes": [asdict(change) for change in self.changes],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }  # fmt: skip


def estimate(case: Case, asked: Asked) -> Estimate:
    """Plan a training.

    Args:
        case: its data and objective.
        asked: what is asked for beside.

    Returns:
        The plan.

    Raises:
        UsageError: the model cannot be made with these settings, or `asked.measure` would need more memory than there is.
    """
    cfg = case.cfg
    on_gpu = case.device == "cuda"
    process = 0 if on_gpu else psutil.Process().memory_info().rss
    memory = memory_of(case, cfg)
    limit, where = (asked.memory, "--memory") if asked.memory is not None else _of_machine(on_gpu)
    # Processes on the CPU share the host's memory; a given limit is that of each.
    together = case.world if asked.memory is None and not on_gpu else 1
    changes: list[Change] = []
    if together * (memory.needed.bytes + process) > limit:
        changes = advise(case, cfg, memory, limit // together - process, sharding=together == 1)
    work, speed = work_of(case, cfg), None
    if asked.tokens_per_second is not None:
        speed = Speed(asked.tokens_per_second)
    elif asked.measure:
        here = _of_machine(case.here == "cuda")[0]
        if memory.needed.bytes > here:
            raise UsageError(
                f"--measure: a training step needs {size(memory.needed.bytes)} and there are {size(here)} here; give "
                "--tokens-per-second N instead"
            )
        speed = measure(case, cfg)
    return Estimate(
        work, memory, process, limit, where, together, disk_of(case, cfg, memory.alive), speed, tuple(changes),
        tuple(warnings(cfg, memory.parameters)), _notes(case, memory, asked, untimed=_untimed(work, speed)),
    )  # fmt: skip


def _untimed(work: Work, speed: Speed | None) -> bool:
    """Whether there are answers whose time is not known although that of the steps is."""
    return bool(work.answers) and speed is not None and speed.answer_token is None


def _notes(case: Case, memory: Memory, asked: Asked, *, untimed: bool) -> tuple[str, ...]:
    notes = [*case.notes, *memory.notes]
    if memory.device != case.here:
        notes.append("--memory is taken for that of a GPU, for each process; trainer.use_cpu=true plans for the CPU")
    if memory.alive.gathered and memory.device == "cuda":
        notes.append(
            f"process 0 reads the weights whole: {size(memory.alive.whole)} of the host's memory, while it starts"
        )
    if memory.device == "cuda":
        notes.append(
            "activations are those of the CPU's kernels; on a GPU its context and the allocator's fragmentation come on top, "
            "and nobody has compared the figure with one"
        )
    if untimed:
        notes.append("the time of the sampled answers is not in this; --measure times it here")
    return tuple(notes)


def _of_machine(on_gpu: bool) -> tuple[int, str]:
    """(bytes, whose): the GPU's, or what the host has free now, within the limit of a container."""
    if on_gpu:
        return torch.cuda.mem_get_info()[1], torch.cuda.get_device_name()
    available = psutil.virtual_memory().available
    for file in _LIMITS:
        text = Path(file).read_text().strip() if Path(file).is_file() else ""
        if text.isdigit():
            available = min(available, int(text))
    return available + psutil.Process().memory_info().rss, "free on this machine"
