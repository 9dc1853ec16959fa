"""How long a training takes, from the tokens that it reads and how many a second this machine or another one trains on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Trainer

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.adapters import add_lora, check_lora
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.loading import DTYPES, base_source, load_config, random_model
from alphapo_cli.modeling.locations import locate
from alphapo_cli.modeling.policy import policy_of
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.probe.scoring import measured_sides
from alphapo_cli.runtime.threads import threads
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.passes import LOOKED_AT, positions_of
from alphapo_cli.stages.training.measurements import SAMPLES
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder, probe_every

_FORWARD = 3  # a forward pass is a third of forward and backward pass
TIMED = 3  # micro-batches that are timed, after one that is not
_LONG = 60.0  # seconds after which no further micro-batch is timed


@dataclass(frozen=True)
class Speed:
    """Tokens (positions of the layout) that all processes train on in a second, and seconds of an optimizer's update."""

    tokens_per_second: float
    update: float = 0.0
    source: str = "as given"


@dataclass(frozen=True)
class Work:
    """Tokens that a training reads, over all processes.

    Attributes:
        steps: optimizer steps.
        pairs_per_step: pairs of a full one.
        trained: tokens of all micro-batches, padding included.
        reference: tokens of the reference's log-probs, before the first step.
        probed: tokens of all measurements of the probe.
        readings: number of these measurements.
        sampled: answers that are sampled, over all measurements; their time is not known.
    """

    steps: int
    pairs_per_step: int
    trained: int
    reference: int
    probed: int
    readings: int
    sampled: int

    def seconds(self, speed: Speed) -> dict[str, float]:
        """Seconds of each part at a speed."""
        parts = {
            "training": self.trained / speed.tokens_per_second + self.steps * speed.update,
            "probe": self.probed / (_FORWARD * speed.tokens_per_second),
            "reference log-probs": self.reference / (_FORWARD * speed.tokens_per_second),
        }
        return {name: seconds for name, seconds in parts.items() if seconds}


def work_of(case: Case, cfg: TrainConfig) -> Work:
    """Count the tokens of a training.

    Args:
        case: data and objective.
        cfg: the configuration.

    Returns:
        The counts; of a long run from steps spread over all of it.
    """
    layout = LAYOUTS[cfg.layout]
    order = case.order(cfg).sized(layout.positions(case.pairs, case.sides), layout.as_widest)
    steps = np.unique(np.linspace(0, order.total_steps - 1, min(order.total_steps, LOOKED_AT)).astype(int))
    seen = sum(
        positions_of(order, indices)
        for step in steps.tolist()
        for rank in range(case.world)
        for indices, weights in order.micro_batches(step, rank)
        if any(weights)
    )
    probe = case.start.data.probe
    every = probe_every(cfg.probe.every, len(probe), order.pairs_per_step)
    readings = 1 + len({*range(every, order.total_steps + 1, every), order.total_steps})
    answers = (SAMPLES if cfg.probe.samples is None else cfg.probe.samples) if cfg.data.source == "glassbox" else 0
    answers = answers or min(cfg.probe.samples or 0, len(probe))
    often = cfg.probe.sample_every or every
    sampled = answers * (2 + len({*range(often, order.total_steps + 1, often), order.total_steps}))
    of_probe = _tokens(probe, layout, measured_sides(case.objective, probe))
    reference = of_probe + _tokens(case.pairs, layout, case.sides) if case.objective.needs_reference else 0
    return Work(
        order.total_steps, order.pairs_per_step, int(seen * order.total_steps / len(steps)), reference,
        of_probe * readings, readings, sampled,
    )  # fmt: skip


def _tokens(pairs: TokenPairs, layout: Any, sides: int) -> int:
    return int(layout.positions(pairs, sides).sum())


def measure(case: Case, cfg: TrainConfig) -> Speed:
    """Time a few micro-batches and an update of the optimizer on this machine, with random weights.

    Args:
        case: data and objective.
        cfg: the configuration.

    Returns:
        The speed of one process times the number of processes.

    Raises:
        UsageError: the base is to be quantised.
    """
    check_lora(cfg.model.lora)
    if cfg.model.quantization != NONE:
        raise UsageError(
            f"--measure: times random weights, which are not quantised (model.quantization={cfg.model.quantization}); give "
            "--tokens-per-second N instead"
        )
    device = torch.device(case.device)
    with threads(cfg.trainer.threads):
        lm = _random(case, cfg).to(device)
        policy = policy_of(lm, cfg)
        policy.train()
        if cfg.trainer.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        args = training_arguments(cfg.trainer, case.order(cfg), "unused", cfg.seed)
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind([p for p in policy.parameters() if p.requires_grad], **settings)
        tokens, seconds = 0, 0.0
        for n, indices in enumerate(_micro_batches(case, cfg)):
            batch = policy.layout.collate(
                [case.pairs[int(i)] for i in indices], pad_id=case.start.pad_id, sides=case.sides
            ).to(device)
            began = _now(device)
            policy(batch).logps.sum().backward()
            if n:  # the first one is slower
                seconds += _now(device) - began
                tokens += batch.input_ids.numel()
            if n == TIMED or seconds > _LONG:
                break
        optimizer.step()
        began = _now(device)
        optimizer.step()
        update = _now(device) - began
    rate = case.world * tokens / seconds
    return Speed(rate, update, f"{TIMED} micro-batches and one update timed on this machine, random weights")


def _micro_batches(case: Case, cfg: TrainConfig) -> Iterator[np.ndarray]:
    """Pairs of micro-batches from the first step on, without end."""
    layout = LAYOUTS[cfg.layout]
    order: DataOrder = replace(case.order(cfg), world=case.world).sized(
        layout.positions(case.pairs, case.sides), layout.as_widest
    )
    while True:
        for step in range(order.total_steps):
            for indices, _ in order.micro_batches(step, 0):
                yield indices


def _random(case: Case, cfg: TrainConfig) -> Any:
    """The model with random weights: those of its files say nothing about its speed."""
    model = cfg.model
    if model.path is None and model.source == "from_scratch":
        return random_model(model.scratch, case.start.tokenizer, cfg.seed)
    config = load_config(base_source(locate(model.path or str(case.base), model.revision)), model.trust_remote_code)
    dtype = DTYPES[model.dtype]
    lm = AutoModelForCausalLM.from_config(
        config,
        dtype=(getattr(config, "dtype", None) or torch.float32) if dtype == "auto" else dtype,
        attn_implementation=None if model.attention in ("auto", "flex") else model.attention,
        trust_remote_code=model.trust_remote_code,
    )
    return add_lora(lm, model, cfg.seed) if model.lora.r is not None else lm


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
