"""How long a training takes, from the tokens that it reads and how many a second this machine or another one trains on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Trainer

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.adapters import add_lora, check_lora
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.loading import DTYPES, load_config, random_model
from alphapo_cli.modeling.locations import base_source, locate
from alphapo_cli.modeling.policy import PolicyModel, policy_of
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.modeling.sampling import sample
from alphapo_cli.probe.scoring import measured_sides
from alphapo_cli.runtime.threads import threads
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.passes import LOOKED_AT, positions_of
from alphapo_cli.stages.training.before_after import PROMPTS, TOKENS, wanted
from alphapo_cli.stages.training.measurements import SAMPLES
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder, probe_every

_FORWARD = 3  # a forward pass is a third of forward and backward pass
TIMED = 3  # micro-batches that are timed, after one that is not
_SAMPLED = 8  # tokens of answers that are timed
_TOGETHER = 256  # answers that are sampled at a time
_LONG = 60.0  # seconds after which no further micro-batch is timed


@dataclass(frozen=True)
class Speed:
    """How fast a training is.

    Attributes:
        tokens_per_second: tokens (positions of the layout) that all processes train on.
        update: seconds of an optimizer's update.
        source: where the figures are from.
        answer_token: seconds of a token of a sampled answer, of several at a time; None where that is not known.
    """

    tokens_per_second: float
    update: float = 0.0
    source: str = "as given"
    answer_token: float | None = None


@dataclass(frozen=True)
class AnswerCount:
    """Answers that a training samples: `times` it does so, each time `many` of at most `tokens`."""

    many: int
    times: int
    tokens: int

    def __bool__(self) -> bool:
        return self.many * self.times > 0

    @property
    def most_tokens(self) -> int:
        """Tokens of all of them, if none ends before its limit."""
        return self.many * self.times * self.tokens


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
        answers: those that are sampled.
    """

    steps: int
    pairs_per_step: int
    trained: int
    reference: int
    probed: int
    readings: int
    answers: AnswerCount

    def seconds(self, speed: Speed) -> dict[str, float]:
        """Seconds of each part at a speed."""
        parts = {
            "training": self.trained / speed.tokens_per_second + self.steps * speed.update,
            "probe": self.probed / (_FORWARD * speed.tokens_per_second),
            "reference log-probs": self.reference / (_FORWARD * speed.tokens_per_second),
        }
        if self.answers and speed.answer_token is not None:
            parts["answers, at most"] = self.answers.most_tokens * speed.answer_token
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
    of_probe = _tokens(probe, layout, measured_sides(case.objective, probe))
    reference = of_probe + _tokens(case.pairs, layout, case.sides) if case.objective.needs_reference else 0
    return Work(
        order.total_steps, order.pairs_per_step, int(seen * order.total_steps / len(steps)), reference,
        of_probe * readings, readings, answers_of(case, cfg, order.total_steps, every),
    )  # fmt: skip


def answers_of(case: Case, cfg: TrainConfig, steps: int, every: int) -> AnswerCount:
    """Count the answers that a training samples.

    Args:
        case: data and objective.
        cfg: the configuration.
        steps: optimizer steps.
        every: steps between measurements of the probe.

    Returns:
        The count; of the answers before and after, which a model of one's own gives to be read, two times.
    """
    probe = len(case.start.data.probe)
    often = cfg.probe.sample_every or every
    measured = 2 + len({*range(often, steps + 1, often), steps})  # twice before the first step, once as the reference
    many, times, tokens = min(cfg.probe.samples or 0, probe), measured, cfg.probe.max_new_tokens
    if cfg.data.source == "glassbox":
        many = SAMPLES if cfg.probe.samples is None else cfg.probe.samples
    elif wanted(cfg):
        many, times, tokens = min(PROMPTS, probe), 2, TOKENS
    return AnswerCount(many, times, tokens)


def at_a_time(cfg: TrainConfig, item: int, many: int) -> int:
    """How many of `many` answers are sampled at a time by a model whose weights have `item` bytes each."""
    one_batch = wanted(cfg) and cfg.sharding.mode == "fsdp"  # see `BeforeAndAfter`
    exact = cfg.probe.exact if cfg.probe.exact is not None else item < 4 and not one_batch
    return 1 if exact else min(many, _TOGETHER)


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
    device = torch.device(case.here)
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
        answers = work_of(case, cfg).answers
        answer_token = _answer_token(case, cfg, policy, answers.many) if answers else None
    rate = case.world * tokens / seconds
    source = f"{TIMED} micro-batches and one update timed on this machine, random weights"
    return Speed(rate, update, source, answer_token)


def _answer_token(case: Case, cfg: TrainConfig, policy: PolicyModel, many: int) -> float:
    """Seconds of a token of an answer where `many` are sampled, reading the prompts not counted."""
    probe = case.start.data.probe
    together = at_a_time(cfg, policy.lm.dtype.itemsize, many)
    prompts = [probe.prompt[i % len(probe)].tolist() for i in range(together)]

    def timed(tokens: int) -> float:
        began = _now(policy.device)
        sample(
            policy.lm, prompts, [*range(len(prompts))], max_new_tokens=tokens, temperature=1.0, eos_ids=(),
            pad_id=case.start.pad_id,
        )  # fmt: skip
        return _now(policy.device) - began

    timed(1)
    first = timed(1)
    return max(timed(1 + _SAMPLED) - first, 0.0) / (_SAMPLED * together)


def _micro_batches(case: Case, cfg: TrainConfig) -> Iterator[np.ndarray]:
    """Pairs of micro-batches from the first step on, without end."""
    layout = LAYOUTS[cfg.layout]
    order: DataOrder = case.order(cfg).sized(layout.positions(case.pairs, case.sides), layout.as_widest)
    while True:
        for step in range(order.total_steps):
            for indices, _ in order.micro_batches(step, 0):
                yield indices


def _random(case: Case, cfg: TrainConfig) -> Any:
    """The model with random weights: those of its files say nothing about its speed."""
    model = cfg.model
    if model.path is None and model.source == "from_scratch":
        return random_model(model.scratch, case.start.tokenizer, cfg.seed)
    source = locate(model.path or str(case.base), model.revision, weightless=True)
    config = load_config(base_source(source), model.trust_remote_code)
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
