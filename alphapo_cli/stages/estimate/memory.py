"""Memory of a training before it starts: what is alive in each of its phases, and the highest sum.

Weights, gradients and moments are counted; what a micro-batch takes is followed on a model without weights, see
`passes`. The phases are those of `stages/training/session.py`, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.modeling.layout.numbers import StandIns
from alphapo_cli.modeling.policy import PolicyModel, Wanted, bare
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.probe.scoring import measured_sides
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.optimizer import bytes_per_parameter
from alphapo_cli.stages.estimate.passes import (
    Largest,
    Pass,
    batch_of,
    largest,
    measuring_pass,
    positions_of,
    training_pass,
)
from alphapo_cli.stages.estimate.phases import Alive, Phase, phases_of
from alphapo_cli.stages.estimate.skeleton import Skeleton, frozen_skeleton, gathered_skeleton, policy_skeleton, size_of
from alphapo_cli.training.data_order import DataOrder


@dataclass(frozen=True)
class Memory:
    """Bytes of one process of a training.

    Attributes:
        device: "cpu" or "cuda", where the model runs.
        parts: (what, bytes, words), each at its own largest.
        phases: of the device; of a GPU's training without those that take the host's memory alone.
        alive: what is alive for long.
        parameters: number of parameters.
        trained: of those that train.
        micro_batch: (pairs, positions) of the largest micro-batch.
        notes: what is a formula's result, or was left out.
    """

    device: str
    parts: tuple[tuple[str, int, str], ...]
    phases: tuple[Phase, ...]
    alive: Alive
    parameters: int
    trained: int
    micro_batch: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def highest(self) -> Phase:
        """The phase with the most bytes."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def needed(self) -> Phase:
        """The same among the phases that are never left out."""
        return max((phase for phase in self.phases if not phase.optional), key=lambda phase: phase.bytes)


def memory_of(case: Case, cfg: TrainConfig) -> Memory:
    """Predict the memory of a training.

    Args:
        case: data and objective.
        cfg: the configuration; may differ from the case's in what changes neither data nor objective.

    Returns:
        The prediction.

    Raises:
        UsageError: the model cannot be made with these settings.
    """
    skeleton = _skeleton(case, cfg)
    shards = (cfg.sharding.shard_size or case.world) if cfg.sharding.mode == "fsdp" else 1
    ratio, note = bytes_per_parameter(cfg)
    trained = sum(p.numel() for p in skeleton.policy.parameters() if p.requires_grad)
    frozen, kl_from, scoring = _beside(case, cfg, skeleton)
    layout = skeleton.policy.layout
    order = case.order(cfg).sized(layout.positions(case.pairs, case.sides), layout.as_widest)
    found = case.once(("largest", order, cfg.layout, case.world), lambda: largest(order, case.world))
    runs = _Runs(case, cfg, skeleton, Wanted(case.objective.needs_statistics, kl_from), shards > 1)
    first = runs.training(found.first, full=shards > 1)
    later = None if found.later is None else runs.training(found.later, full=True)
    alive = Alive(
        weights=skeleton.weights // shards,
        whole=skeleton.weights,
        adapters=skeleton.adapters // shards,
        merged=skeleton.merged,
        trained=skeleton.trained // shards,
        moments=int(ratio * trained) // shards,
        frozen={name: count // shards for name, count in frozen.items()},
        probe=_probe_kept(case, skeleton, shards),
        buckets=skeleton.trained if case.world > 1 and shards == 1 else 0,
        gathered=_gathered(skeleton, cfg) if shards > 1 else 0,
    )
    phases = phases_of(case, cfg, skeleton, alive, (first, later), runs.measured(), scoring)
    notes = [note] if note else []
    if first.coarse:
        notes.append(
            f"the pass of this architecture cannot be followed without numbers ({first.coarse}): activations are coarse"
        )
    return Memory(
        case.device, _parts(case, cfg, skeleton, alive, (first, later), (order, found)), tuple(phases), alive,
        skeleton.parameters, trained, (len(found.first), positions_of(order, found.first)), tuple(notes),
    )  # fmt: skip


def _parts(
    case: Case, cfg: TrainConfig, skeleton: Skeleton, alive: Alive, passes: tuple[Pass, Pass | None],
    batches: tuple[DataOrder, Largest],
) -> tuple[tuple[str, int, str], ...]:  # fmt: skip
    """What takes memory, by name, with words on it."""
    first, later = passes
    order, found = batches
    taken = max(first.kept, first.peak - alive.trained, 0 if later is None else later.peak)
    logits = _logits(case, cfg, skeleton, found.first)
    dtype = str(next(skeleton.policy.parameters()).dtype).removeprefix("torch.")
    batch = f"layout {cfg.layout}, {len(found.first):,} pairs, {positions_of(order, found.first):,} positions"
    if cfg.trainer.tokens_per_batch:
        batch += f", trainer.tokens_per_batch={cfg.trainer.tokens_per_batch}"
    if cfg.trainer.gradient_checkpointing:
        batch += ", gradient checkpointing"
    if cfg.trainer.bf16 and not alive.gathered:
        batch += "; bfloat16 copies of weights that train included"
    held = dtype if cfg.model.quantization == NONE else f"{cfg.model.quantization} and {dtype}"
    parts = (
        ("weights", alive.weights - alive.adapters, f"{skeleton.parameters / 1e6:,.1f} M parameters, {held}"),
        ("adapters", alive.adapters, f"LoRA, rank {cfg.model.lora.r}"),
        ("gradients", alive.trained, ""),
        ("gradient buckets", alive.buckets, f"of {case.world} processes"),
        ("optimizer", alive.moments, cfg.trainer.optim),
        ("gathered layers", alive.gathered, "whole for as long as they run"),
        ("activations", max(0, taken - logits), batch),
        ("logits chunk", logits, f"trainer.logit_chunk_mb={cfg.trainer.logit_chunk_mb:g}"),
        *((name, count, "") for name, count in alive.frozen.items()),
        ("probe at step 0", alive.probe, "output layer and hidden states, kept to the end"),
    )
    return tuple(part for part in parts if part[1])


def _skeleton(case: Case, cfg: TrainConfig) -> Skeleton:
    """The policy without weights, made once for all that is planned of a case."""
    key = ("skeleton", repr([cfg.model, cfg.layout, cfg.seed, *_of_passes(cfg)]))
    return case.once(key, lambda: policy_skeleton(cfg, case.start.tokenizer, case.base, StandIns(case.device)))


def _of_passes(cfg: TrainConfig) -> list[object]:
    """The settings of the trainer that decide what a pass takes."""
    return [cfg.trainer.bf16, cfg.trainer.gradient_checkpointing, cfg.trainer.logit_chunk_mb]


@dataclass(frozen=True)
class _Runs:
    """Passes of a policy, each run once for all that is planned of a case: what shards differ in is added up."""

    case: Case
    cfg: TrainConfig
    skeleton: Skeleton
    wanted: Wanted
    sharded: bool

    def training(self, indices: np.ndarray, *, full: bool) -> Pass:
        """Forward and backward pass of a micro-batch."""

        def run() -> Pass:
            batch = batch_of(self._model, self.case.pairs, indices, self.case.sides, self.case.start.pad_id)
            return training_pass(self._model, batch, self.wanted, full_gradients=full)

        return self.case.once(("pass", self._key, indices.tobytes(), full), run)

    def measured(self) -> int:
        """Bytes of measuring the batch of the probe's longest pairs."""
        probe = self.case.start.data.probe
        sides = measured_sides(self.case.objective, probe)
        widths = probe.prompt.lengths + probe.longest(sides)
        indices = np.argsort(widths, kind="stable")[-self.cfg.probe.batch_size :]

        def run() -> int:
            batch = batch_of(self._model, probe, indices, sides, self.case.start.pad_id)
            return measuring_pass(self._model, self._model.policy, batch)

        return self.case.once(("measured", self._key, indices.tobytes()), run)

    @property
    def _key(self) -> str:
        gathered = self.sharded and self.cfg.trainer.bf16
        return repr([self.cfg.model, self.cfg.layout, self.cfg.seed, *_of_passes(self.cfg), gathered])

    @property
    def _model(self) -> Skeleton:
        """The policy as a process computes with it."""
        if not (self.sharded and self.cfg.trainer.bf16):
            return self.skeleton
        case, mode = self.case, self.skeleton.mode
        key = ("gathered", self._key)
        return case.once(key, lambda: gathered_skeleton(self.cfg, case.start.tokenizer, case.base, mode))


def _beside(
    case: Case, cfg: TrainConfig, skeleton: Skeleton
) -> tuple[dict[str, int], PolicyModel | None, tuple[int, int]]:
    """The models beside the policy: (name -> bytes of those kept; that of the KL; bytes of `model.reference` and guide)."""
    objective = case.objective
    named, guide = None, 0
    if cfg.model.reference is not None and objective.needs_reference:
        named = frozen_skeleton(cfg.model.reference, cfg, "model.reference", skeleton.mode)
    if cfg.model.guide is not None and case.reads_guide:
        model = frozen_skeleton(cfg.model.guide, cfg, "model.guide", skeleton.mode)
        guide = size_of([*model.parameters(), *model.buffers()])
    if named is not None:
        reference = size_of([*named.parameters(), *named.buffers()])
    else:  # a copy of the policy, which shares a base under adapters
        reference = skeleton.adapters if skeleton.adapters and cfg.sharding.mode == "none" else skeleton.weights
    frozen: dict[str, int] = {}
    if objective.reference_every is not None:
        frozen["moving reference"] = reference
    elif objective.needs_kl:
        frozen["reference of the KL"] = reference
    kl_from = named if objective.needs_kl else None
    if objective.needs_kl and kl_from is None:
        plain = replace(cfg, trainer=replace(cfg.trainer, gradient_checkpointing=False))
        other = policy_skeleton(plain, case.start.tokenizer, case.base, skeleton.mode)
        kl_from = other.policy.requires_grad_(False).eval()
    return frozen, kl_from, (0 if named is None else reference, guide)


def _probe_kept(case: Case, skeleton: Skeleton, shards: int) -> int:
    """Bytes that the probe keeps from step 0: the output layer, and hidden states of the chosen answers."""
    tokens = -(-int(case.start.data.probe.trained_lengths(0).sum()) // case.world)
    config = bare(skeleton.policy.lm).config.get_text_config()
    item = next(skeleton.policy.parameters()).element_size()
    return skeleton.head // shards + int(tokens * config.hidden_size * item)


def _gathered(skeleton: Skeleton, cfg: TrainConfig) -> int:
    """Bytes of the units that FSDP holds whole at a time: two layers, and the root with its gradient."""
    inner = bare(skeleton.policy.lm)
    item = 2 if cfg.trainer.bf16 else next(inner.parameters()).element_size()
    layers = inner.base_model.layers
    layer = max(sum(p.numel() for p in module.parameters()) for module in layers)
    within = {id(p) for module in layers for p in module.parameters()}
    root = sum(p.numel() for p in inner.parameters() if id(p) not in within)
    return int(item * (2 * layer + 2 * root))


def _logits(case: Case, cfg: TrainConfig, skeleton: Skeleton, indices: np.ndarray) -> int:
    """Bytes of the chunk of logits of a micro-batch."""
    tokens = int(sum(case.pairs.trained_lengths(side)[indices].sum() for side in range(case.sides)))
    width = int(bare(skeleton.policy.lm).config.get_text_config().vocab_size)
    return min(tokens, max(1, int(cfg.trainer.logit_chunk_mb * 2**20) // (4 * width))) * width * 4
