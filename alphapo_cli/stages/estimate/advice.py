"""What makes a training fit into memory: each change with the memory that is predicted for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.config.sharding import OPTIMIZERS
from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.memory import Memory, memory_of
from alphapo_cli.stages.estimate.phases import FIRST_PROBE

_RANK = 16
_PROCESSES = (2, 4, 8, 16, 24, 32, 48, 64)
_NODE = 8  # GPUs of a node
_WORTH = 0.98  # of the memory without them, that further processes have to save


@dataclass(frozen=True)
class Change:
    """Settings to add, and the bytes that a process then needs at most."""

    settings: str
    bytes: int
    fits: bool


@dataclass(frozen=True)
class _Tried:
    settings: str
    case: Case
    cfg: TrainConfig
    memory: Memory


def advise(case: Case, cfg: TrainConfig, memory: Memory, limit: int, *, sharding: bool) -> list[Change]:
    """Predict the memory of each change that needs less.

    Args:
        case: data and objective.
        cfg: the configuration.
        memory: what is predicted for it.
        limit: bytes that a process may take.
        sharding: whether more processes have more memory; those of one machine share the host's.

    Returns:
        The changes, what saves most first; last several of them together where none suffices alone.
    """
    possible = (_lora, _quantised, *([_sharding] if sharding else []), _checkpointing, _tokens, _probe)
    tried: list[tuple[Callable[..., Iterator[_Tried]], _Tried]] = []
    for change in possible:
        found = _smallest_step(change, case, cfg, memory, limit)
        if found is not None and found.memory.needed.bytes < memory.needed.bytes:
            tried.append((change, found))
    tried.sort(key=lambda one: one[1].memory.needed.bytes)
    changes = [_change(one, limit) for _, one in tried]
    if changes and not any(change.fits for change in changes):
        alone = [change for change, _ in tried]
        # What helps nothing alone may help beside the others, which lower another phase.
        every = [*alone, *(change for change in possible if change not in alone)]
        start = _Tried("", case, cfg, memory)
        # A quantised base is not sharded: where the one is not enough, the other may be.
        orders = [every, sorted(every, key=lambda change: change is not _sharding)]
        for order in orders[: 1 + sharding]:
            together = _together(start, order, limit)
            if together.settings not in [change.settings for change in changes]:
                changes.append(_change(together, limit))
            if changes[-1].fits:
                break
    return changes


def _together(start: _Tried, order: Sequence[Callable[..., Iterator[_Tried]]], limit: int) -> _Tried:
    """Changes one after another, until they fit."""
    together = start
    for change in order:
        found = _smallest_step(change, together.case, together.cfg, together.memory, limit)
        if found is not None and found.memory.needed.bytes < together.memory.needed.bytes:
            together = replace(found, settings=f"{together.settings} {found.settings}".strip())
        if together.memory.needed.bytes <= limit:
            break
    return together


def _change(tried: _Tried, limit: int) -> Change:
    needed = tried.memory.needed.bytes
    return Change(tried.settings, needed, needed <= limit)


def _smallest_step(
    change: Callable[..., Iterator[_Tried]], case: Case, cfg: TrainConfig, memory: Memory, limit: int
) -> _Tried | None:
    """The first of a change's degrees that fits, else its last one; None where the change does not apply."""
    last = None
    try:
        for last in change(case, cfg, memory):
            if last.memory.needed.bytes <= limit:
                break
    except AlphapoError:  # the model does not take it
        pass
    return last


def _made(settings: str, case: Case, cfg: TrainConfig) -> _Tried:
    return _Tried(settings, case, cfg, memory_of(case, cfg))


def _lora(case: Case, cfg: TrainConfig, memory: Memory) -> Iterator[_Tried]:
    scratch = cfg.model.path is None and cfg.model.source == "from_scratch"
    if cfg.model.lora.r is None and not scratch:
        lora = replace(cfg.model.lora, r=_RANK)
        yield _made(f"model.lora.r={_RANK}", case, replace(cfg, model=replace(cfg.model, lora=lora)))


def _quantised(case: Case, cfg: TrainConfig, memory: Memory) -> Iterator[_Tried]:
    scratch = cfg.model.path is None and cfg.model.source == "from_scratch"
    if cfg.model.quantization != NONE or cfg.sharding.mode != "none" or scratch:
        return
    lora = replace(cfg.model.lora, r=cfg.model.lora.r or _RANK)
    more = "" if cfg.model.lora.r else f"model.lora.r={_RANK} "
    quantised = replace(cfg.model, lora=lora, quantization="nf4")
    yield _made(f"{more}model.quantization=nf4", case, replace(cfg, model=quantised))


def _sharding(case: Case, cfg: TrainConfig, memory: Memory) -> Iterator[_Tried]:
    unsharded = cfg.model.merge or cfg.model.quantization != NONE or cfg.sharding.shard_size is not None
    if cfg.trainer.optim not in OPTIMIZERS or unsharded:
        return
    before = memory.needed.bytes
    sharded = replace(cfg, sharding=replace(cfg.sharding, mode="fsdp"))
    mode = "" if cfg.sharding.mode == "fsdp" else "sharding.mode=fsdp "
    for count in _PROCESSES:
        if count > case.world:
            made = _made(f"{mode}{_processes(count, case)}", replace(case, world=count), sharded)
            yield made
            if count > _NODE and made.memory.needed.bytes > _WORTH * before:  # the rest is not spread
                return
            before = made.memory.needed.bytes


def _processes(count: int, case: Case) -> str:
    """How so many processes are asked for."""
    nodes, each = max(1, count // _NODE), min(count, _NODE)
    if case.divided:
        return f"launcher.nproc_per_node={each}" + (f" launcher.nodes={nodes}" if nodes > 1 else "")
    return "(torchrun " + (f"--nnodes {nodes} " if nodes > 1 else "") + f"--nproc-per-node {each})"


def _checkpointing(case: Case, cfg: TrainConfig, memory: Memory) -> Iterator[_Tried]:
    if not cfg.trainer.gradient_checkpointing:
        trainer = replace(cfg.trainer, gradient_checkpointing=True)
        yield _made("trainer.gradient_checkpointing=true", case, replace(cfg, trainer=trainer))


def _tokens(case: Case, cfg: TrainConfig, memory: Memory) -> Iterator[_Tried]:
    pairs, positions = memory.micro_batch
    while pairs > 1:
        positions //= 2
        trainer = replace(cfg.trainer, tokens_per_batch=max(1, positions))
        made = _made(f"trainer.tokens_per_batch={positions}", case, replace(cfg, trainer=trainer))
        yield made
        pairs = made.memory.micro_batch[0]


def _probe(case: Case, cfg: TrainConfig, memory: Memory) -> Iterator[_Tried]:
    if memory.needed.name != FIRST_PROBE:  # another phase is the highest, whatever the probe takes
        return
    size = cfg.probe.batch_size
    while size > 1:
        size //= 2
        yield _made(f"probe.batch_size={size}", case, replace(cfg, probe=replace(cfg.probe, batch_size=size)))
