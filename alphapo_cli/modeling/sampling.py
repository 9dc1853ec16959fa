"""Seeded sampling: each answer has random numbers of its own, whatever else is in its batch.

transformers' `generate` decodes, with noise of our own. Each prompt has its own generator, whose noise is added to the
logits before a plain argmax (the Gumbel-max trick: argmax(logits / T + G) is a draw from softmax(logits / T)). So
neither batch size nor the order of prompts nor a longer limit changes what is drawn from the same logits, and torch's
global random state is neither read nor written.

The logits themselves depend on the batch by round-off. In float32 that turns the choice between two tokens only where
they are tied to about 1e-6; in bfloat16 and float16 logits have two or three digits, ties are common, and most answers
change somewhere. With batches of one (`batch_size=1`) an answer depends on the model, its prompt and its seed alone, in
any dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from alphapo_cli.config.schema import LOWEST_TEMPERATURE
from alphapo_cli.modeling.layout.padded import fill_id
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.sharding import at_rest, is_sharded


class Sample(NamedTuple):
    """Token ids of one answer, without prompt and end token; `cut` if the limit came before an end token.

    `logprob`: summed log-prob in nats of the ids, and of the end token unless cut, under the model itself (temperature 1,
    all tokens); None where it was not asked for.
    """

    ids: list[int]
    cut: bool
    logprob: float | None = None


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int | None,
    top_p: float = 1.0,
    top_k: int | None = None,
    batch_size: int = 256,
    with_logprobs: bool = False,
) -> list[Sample]:
    """Sample one answer to each prompt.

    The model's own generation settings (top_k, repetition_penalty, ...) are set aside: what is drawn is the policy's
    distribution. The model is in evaluation mode while this runs and afterwards as it was.

    Args:
        model: any causal language model of transformers or peft.
        prompts: token ids of each prompt.
        seeds: one per prompt.
        max_new_tokens: limit on the answer's tokens.
        temperature: 0, or below LOWEST_TEMPERATURE, takes the likeliest token and uses no seed.
        eos_ids: token ids that end an answer.
        pad_id: fills prompts up on the left; see `fill_id`.
        top_p: below 1, draws from the fewest tokens that hold this share of the probability at that temperature
            (nucleus sampling, arXiv:1904.09751).
        top_k: draws from this many of the likeliest tokens, of which `top_p` takes its share; None: from all.
        batch_size: prompts decoded together; with 1 the answers depend on nothing else.
        with_logprobs: whether to compute `Sample.logprob`.

    Returns:
        One sample per prompt, in the order of `prompts`.

    Raises:
        ValueError: a prompt is empty, the numbers of prompts and seeds differ, the limit is below 1, the temperature is
            negative, `top_p` is outside (0, 1], or `top_k` is below 1.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("an empty prompt has nothing to continue")
    if max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1 and temperature={temperature} at least 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    fill = fill_id(pad_id, model.get_input_embeddings().weight.shape[0])
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=fill,
        eos_token_id=list(eos_ids) or None,
    )
    # Neighbours in length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Sample] = {}
    with torch.no_grad(), _ready_to_sample(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = _left_padded([prompts[i] for i in rows], fill, model.device)
            recorder = LogProbs() if with_logprobs else None
            processors: list[LogitsProcessor] = [] if recorder is None else [recorder]
            if temperature >= LOWEST_TEMPERATURE:
                processors.append(GumbelNoise([seeds[i] for i in rows], temperature, top_p, top_k))
            _reset_rope(model)
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList(processors),
                synced_gpus=is_sharded(bare(model)),  # until all processes have their answers
            )
            drawn = out[:, ids.shape[1] :].tolist()
            logps = [None] * len(rows) if recorder is None else recorder.of(out[:, ids.shape[1] :])
            for i, new, steps in zip(rows, drawn, logps, strict=True):
                answer = until_end(new, eos_ids)
                if steps is not None:
                    answer = answer._replace(logprob=sum(steps[: len(answer.ids) + (not answer.cut)]))
                answers[i] = answer
    return [answers[i] for i in range(len(prompts))]


class GumbelNoise(LogitsProcessor):
    """Adds row i's own Gumbel noise to row i's logits / temperature; one instance serves one batch.

    Tokens outside the nucleus of `top_p` get -inf; the noise of the others does not depend on it.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float = 1.0, top_k: int | None = None) -> None:
        # The generators stay on the CPU: the same seed draws the same noise whatever the model runs on.
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # float64: with 24 bits a large vocabulary meets 0 or 1 every few hundred steps, and noise of 0 or infinity.
        """Noisy logits [B, V] float32 from logits `scores` [B, V]; their argmax is the draw."""
        noise = torch.empty(scores.shape, dtype=torch.float64)  # [B, V]
        for row, generator in zip(noise, self.generators, strict=True):
            torch.rand(row.shape, generator=generator, dtype=torch.float64, out=row)
        gumbel = noise.log_().neg_().log_().neg_()  # -log(-log u); u = 0 gives -inf, which argmax never takes
        logits = scores.float() / self.temperature
        if self.top_k is not None:
            logits = logits.masked_fill(outside_likeliest(logits, self.top_k), -torch.inf)
        if self.top_p < 1:
            logits = logits.masked_fill(outside_nucleus(logits, self.top_p), -torch.inf)
        return logits + gumbel.to(scores.device, torch.float32)


class LogProbs(LogitsProcessor):
    """Records log-softmax of the logits of every step of one batch and changes nothing; it must come first."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []  # [B] each: of the token that followed
        self._pending: Tensor | None = None  # [B, V] of the step whose token is not known yet

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] as they came."""
        self._take(input_ids[:, -1])
        self._pending = scores.float().log_softmax(-1)
        return scores

    def of(self, drawn: Tensor) -> list[list[float]]:
        """The log-probs in nats of `drawn` ids [B, T], row by row, once generation has ended."""
        self._take(drawn[:, -1])
        return [list(row) for row in torch.stack(self.steps, dim=1).double().tolist()]

    def _take(self, tokens: Tensor) -> None:
        if self._pending is not None:
            self.steps.append(self._pending.gather(1, tokens[:, None].to(self._pending.device))[:, 0])
            self._pending = None


def outside_likeliest(logits: Tensor, top_k: int) -> Tensor:
    """Find the tokens outside the `top_k` likeliest, of equal ones the first.

    Args:
        logits: [B, V].
        top_k: tokens that stay, at least 1.

    Returns:
        [B, V] bool, true outside.
    """
    order = logits.sort(dim=-1, descending=True, stable=True)[1]
    return torch.ones_like(logits, dtype=torch.bool).scatter(-1, order[:, :top_k], False)


def outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Find the tokens outside the nucleus: the likeliest ones whose probabilities first add up to `top_p`.

    Args:
        logits: [B, V].
        top_p: probability that the nucleus holds at least, in (0, 1].

    Returns:
        [B, V] bool, true outside. The likeliest token is never outside.
    """
    ordered, places = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # probability of the likelier tokens together
    outside = before >= top_p
    outside[..., 0] = False
    return torch.zeros_like(outside).scatter(-1, places, outside)


@contextmanager
def _ready_to_sample(model: Any) -> Iterator[None]:
    """Evaluation mode and no generation settings but ours; both are restored, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    # generate() fills every unset field from the model's own settings, so these are emptied rather than overridden.
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    settings = [(owner, owner.generation_config) for owner in owners]
    try:
        model.eval()
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        at_rest(model)
        for owner, config in settings:
            owner.generation_config = config
        for module, training in modes:
            module.training = training


def _reset_rope(model: Any) -> None:
    """Undo what an earlier batch has left of dynamic rope scaling, which grows with the longest sequence seen so far."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for prefix, kind in kinds.items() if isinstance(kinds, dict) else [("", kinds)]:
            stem = f"{prefix}_" if prefix else ""
            first = getattr(module, f"{stem}original_inv_freq", None)
            if isinstance(kind, str) and "dynamic" in kind and first is not None:
                module.register_buffer(f"{stem}inv_freq", first.to(getattr(module, f"{stem}inv_freq").device), False)
                setattr(module, f"{stem}max_seq_len_cached", module.original_max_seq_len)


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Build (ids, mask) [B, T]: every prompt ends in the last column, after which generation continues."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def until_end(ids: list[int], eos_ids: Sequence[int]) -> Sample:
    """Cut drawn `ids` at the first end token and leave it out; `cut` is true if none was drawn."""
    end = next((i for i, token in enumerate(ids) if token in eos_ids), None)
    return Sample(ids, cut=True) if end is None else Sample(ids[:end], cut=False)
