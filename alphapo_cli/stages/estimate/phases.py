"""The phases of a training and what is alive in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.duration import answers_of, at_a_time
from alphapo_cli.stages.estimate.passes import Pass
from alphapo_cli.stages.estimate.skeleton import Skeleton

FIRST_PROBE = "first probe"
_COMPARED = 2  # pairs whose log-probs are compared when the saved model has been read
_FILE = 5 * 10**9  # bytes of a file of weights that processes write together, at most


@dataclass(frozen=True)
class Phase:
    """A part of a training and what is alive in it: name -> bytes. `optional`: it is left out where memory is short."""

    name: str
    parts: Mapping[str, int]
    optional: bool = False

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Alive:
    """What is alive for long, in bytes of one process.

    Attributes:
        weights: parameters and buffers, adapters included.
        whole: the same of all processes that share a model.
        adapters: LoRA adapters.
        merged: weights as they are written whole: adapters merged, quantised layers dequantised.
        trained: what trains, and so a gradient of each.
        moments: the optimizer's state.
        frozen: models that are evaluated at every step, by name.
        probe: what the probe keeps of step 0.
        buckets: where gradients of several processes are added up.
        gathered: units that are whole while they run, of a sharded model.
    """

    weights: int
    whole: int
    adapters: int
    merged: int
    trained: int
    moments: int
    frozen: Mapping[str, int]
    probe: int
    buckets: int
    gathered: int


def phases_of(
    case: Case, cfg: TrainConfig, skeleton: Skeleton, alive: Alive, passes: tuple[Pass, Pass | None], measured: int,
    scoring: tuple[int, int],
) -> list[Phase]:  # fmt: skip
    """The phases of a training on its device, in their order.

    Args:
        case: data and objective.
        cfg: the configuration.
        skeleton: the policy.
        alive: what is alive for long.
        passes: of the largest micro-batch at the head of a step, and of the largest later one.
        measured: bytes of measuring a batch of the probe.
        scoring: bytes of `model.reference` and of `model.guide`, which score all pairs before the first step.

    Returns:
        The phases.
    """
    reference, guide = scoring
    weights = {"weights": alive.weights}
    on_cpu = case.device == "cpu"
    phases = []
    if on_cpu:
        converted = skeleton.on_disk if skeleton.converted else 0
        loading = {"weights": alive.whole, "file being converted": converted}
        if cfg.sharding.mode != "none" and (cfg.model.path is not None or cfg.model.source != "from_scratch"):
            loading = {"weights": alive.weights, "largest tensor": skeleton.largest}
        phases.append(Phase("load", loading))
    if case.objective.needs_reference:
        # A tensor at a time is copied for the hash by which log-probs are cached.
        batch = max(measured, skeleton.largest if on_cpu else 0)
        phases.append(Phase("reference log-probs", {**weights, "reference": reference, "batch": batch}))
    if guide:
        batch = max(measured, skeleton.largest if on_cpu else 0)
        phases.append(Phase("guide log-probs", {**weights, "guide": guide, "reference": reference, "batch": batch}))
    kept = {**weights, **alive.frozen, "probe at step 0": alive.probe}
    phases.append(Phase(FIRST_PROBE, {**kept, "batch": measured + alive.gathered}))
    training = {**kept, "optimizer": alive.moments, "gradient buckets": alive.buckets}
    phases.append(Phase("optimizer step", {**training, "gathered layers": alive.gathered, **_step(alive, passes)}))
    answers = _sampling(case, cfg, skeleton)
    if answers:
        phases.append(Phase("sampled answers", {**training, "keys, values and logits": answers + alive.gathered}))
    if on_cpu:
        moving = alive.frozen.get("moving reference", 0)
        if case.order(cfg).total_steps > cfg.trainer.save_steps or cfg.trainer.load_best_model_at_end:
            phases.append(Phase("checkpoint", {**training, "copy of what trains": alive.trained + moving}))
        if alive.gathered:  # rank 0 holds a file at a time
            phases.append(Phase("save", {**training, "file being written": min(alive.whole, _FILE)}))
            return _without_nothing(phases)
        merged = skeleton.merged if skeleton.adapters and cfg.model.merge else 0
        # A quantised base is dequantised layer by layer; another one is copied with its adapters before these are merged.
        copies = 1 if cfg.model.quantization != NONE else 2
        again = {"merged copy": copies * merged, "saved model, read back": merged or alive.whole}
        few = measured * min(_COMPARED, cfg.probe.batch_size) // cfg.probe.batch_size
        phases.append(Phase("save and read back", {**training, **again, "batch": few}, optional=True))
    return _without_nothing(phases)


def _without_nothing(phases: list[Phase]) -> list[Phase]:
    return [replace(phase, parts={name: count for name, count in phase.parts.items() if count}) for phase in phases]


def _step(alive: Alive, passes: tuple[Pass, Pass | None]) -> dict[str, int]:
    """The highest of an optimizer step's micro-batches: gradients grow in the first one and are there in later ones."""
    first, later = passes
    if alive.gathered:  # the first one was run with its gradients, since those of a layer become shards at once
        most = max(first.peak, 0 if later is None else later.peak)
        return {"gradients": alive.trained, "activations": most}
    beside = 0 if later is None else later.peak
    if first.peak > alive.trained + beside:
        return {"gradients as they grow, and activations": first.peak}
    return {"gradients": alive.trained, "activations": beside}


def _sampling(case: Case, cfg: TrainConfig, skeleton: Skeleton) -> int:
    """Bytes of keys, values and logits while answers are sampled, by arithmetic."""
    answers = answers_of(case, cfg, 1, 1)
    if not answers:
        return 0
    config: Any = bare(skeleton.policy.lm).config.get_text_config()
    item = next(skeleton.policy.parameters()).element_size()
    rows = at_a_time(cfg, item, answers.many)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = int(case.start.data.probe.prompt.lengths.max()) + answers.tokens
    cache = 2 * config.num_hidden_layers * heads * width * longest * item
    return int(rows * (cache + 3 * 4 * config.vocab_size))
