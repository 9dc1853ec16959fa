"""A causal language model as a function from a micro-batch of pairs to completion log-probs, and its output layer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.attention import UNREAD_MASK
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.layout.patching import is_prepared, keep_activations, prepare
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.lm_head import CHUNK_BYTES, Head, kl_from, log_probs_and_statistics
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs, TokenStatistics, token_rounding
from alphapo_cli.modeling.sharding import (
    ShardingPlan,
    at_rest,
    fill,
    fill_from_shards,
    is_sharded,
    shard,
    shared_copy,
    whole_copy,
    within,
    without_weights,
)

T = TypeVar("T")


class TokenValues(NamedTuple):
    """Output of a forward pass for each completion token; a tuple, in which DDP and FSDP find the tensors."""

    logps: Tensor  # [N] float32 or wider
    entropy: Tensor | None = None  # [N] nats, without gradient
    sum_p2: Tensor | None = None  # [N] sum over the vocabulary of p^2, without gradient
    kl: Tensor | None = None  # [N] nats, KL(reference || policy)


@dataclass(frozen=True)
class Wanted:
    """What a forward pass computes beside log-probs."""

    statistics: bool = False  # entropy and sum p^2 of each token's distribution
    kl_from: PolicyModel | None = None  # a frozen model of the same vocabulary (see `compatibility.check_vocabulary`)


LOG_PROBS = Wanted()


def bare(model: Any) -> Any:
    """The transformers model inside a peft wrapper (its layers keep their adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> Head:
    """The model's output layer, with the scaling and soft-capping that its own forward applies."""
    return _head(bare(model), bare(model).get_output_embeddings())


def _head(inner: Any, linear: nn.Module) -> Head:
    config = inner.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divide = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None) or None
    return Head(linear, scale / divide, cap, wide_gradient=is_sharded(inner))


def frozen_head(model: Any) -> Callable[[], Head]:
    """The output layer as it is now: a copy of the weights if training may change them, else the same weights.

    Collective.

    Returns:
        A function that gives it; of a sharded model each process keeps its shard, and the function gathers them.
    """
    inner = bare(model)
    at_rest(inner)
    linear = inner.get_output_embeddings()
    if not any(p.requires_grad for p in linear.parameters()):
        return lambda: head_of(model)
    kept = _head(inner, copy.deepcopy(linear).requires_grad_(False))
    return (lambda: replace(kept, linear=whole_copy(kept.linear))) if is_sharded(inner) else lambda: kept


@torch.no_grad()
def check_head(model: Any) -> None:
    """Check on a few tokens that our output layer on the last hidden states gives the model's own logits.

    Raises:
        UsageError: the logits are NaN or differ (an architecture whose head does more than `Head`), or the model has no part that
            computes hidden states.
    """
    kind = f"{type(model).__name__} (model_type '{model.config.model_type}')"
    if model.base_model is model or model.get_output_embeddings() is None:
        raise UsageError(
            f"{kind}: has no inner model that gives hidden states to an output layer; this architecture is not supported"
        )
    config = model.config.get_text_config()
    ids = torch.arange(4, device=model.device).unsqueeze(0) % config.vocab_size
    training = model.training
    model.eval()
    ours = head_of(model)(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    own = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    if own.isnan().any():
        raise UsageError(f"{kind}: its logits are nan: its weights are damaged, or need model.dtype=float32")
    if not torch.allclose(ours.float(), own.float(), rtol=1e-2, atol=1e-2):
        raise UsageError(
            f"{kind}: its logits are not its output layer applied to its last hidden state; this architecture is not supported"
        )


class PolicyModel(nn.Module):
    """A causal language model seen as a function from a micro-batch to completion log-probs.

    Its forward is what DDP and FSDP wrap, so that gradients are reduced although the model's own forward, which would
    make logits for every position, is never called.
    """

    def __init__(
        self, lm: Any, *, layout: str = "padded", attention: str = "auto", chunk_bytes: int = CHUNK_BYTES,
        bf16: bool = False, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        """Wrap `lm`, which stays on its device.

        Args:
            lm: a causal language model of transformers, bare or in a peft wrapper.
            layout: name of the layout of micro-batches, see `LAYOUTS`.
            attention: attention of the packed layout: "sdpa", "flex" or "auto".
            chunk_bytes: memory that logits may take at a time, see `lm_head`.
            bf16: whether matrix products run under bfloat16 autocast.
            device: where it is going to run; None: where it is.

        Raises:
            UsageError: the architecture or attention does not go with the layout.
        """
        super().__init__()
        self.lm = lm
        self.bf16 = bf16
        self.layout = LAYOUTS[layout]
        self.chunk_bytes = chunk_bytes
        # How it is sharded, and itself without weights, from which other models like it are made; None: it is not.
        self.sharded: tuple[ShardingPlan, PolicyModel] | None = None
        if layout == "packed":
            prepare(lm, attention, device)
        self.config = bare(lm).config  # transformers.Trainer looks for it
        text = self.config.get_text_config()
        dtype = torch.bfloat16 if bf16 else next(lm.parameters()).dtype
        self.token_rounding = token_rounding(text.num_hidden_layers, text.hidden_size, dtype)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the precision of matrix products: bfloat16 autocast if `bf16`, else the weights' own.

        The same in training, probe and reference. Log-softmax and all that follows stay in float32 (see `logprobs`).
        """
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @property
    def device(self) -> torch.device:
        """The device on which it runs. Shards may be kept on another one."""
        return next(self.parameters()).device if self.sharded is None else self.sharded[0].device

    @property
    def is_distributed_loading_by_transformers(self) -> bool:
        """Whether it reduces gradients itself: transformers.Trainer asks, and then wraps it in neither DDP nor FSDP."""
        return self.sharded is not None

    def shard(self, plan: ShardingPlan) -> PolicyModel:
        """Return the same model with its weights spread over the processes. Collective.

        This one has its weights on rank 0, in memory or in files, from where they are taken; elsewhere it need not have any.
        """
        made = without_weights(self)._spread(plan)
        fill(made, self if torch.distributed.get_rank() == 0 else None)
        return made

    def copy(self) -> PolicyModel:
        """Copy the model as it is now, sharded as this one is; what is frozen is shared, of one that is not sharded."""
        if self.sharded is None:
            return shared_copy(self)
        plan, blank = self.sharded
        made = copy.deepcopy(blank)._spread(plan)
        fill_from_shards(made, self)
        return made

    def _spread(self, plan: ShardingPlan) -> PolicyModel:
        """Shard this model, which has no weights; its shards have no content yet."""
        # A copy without weights is kept in a tuple, in which torch does not look for modules.
        self.sharded = (plan, copy.deepcopy(self))
        shard(bare(self.lm), plan)
        return self

    def within(self, run: Callable[[], T]) -> T:
        """Call `run`, which uses `hidden` or the output layer, with the weights that it needs at hand."""
        return within(bare(self.lm), run)

    def hidden(self, batch: PairBatch) -> Tensor:
        """Hidden states that predict the completion tokens, [N, H]."""
        inputs: dict[str, Any] = {"attention_mask": None}  # causal attention needs no other mask
        if batch.packing is not None:
            if not is_prepared(bare(self.lm)):
                prepare(self.lm)
            inputs = {"attention_mask": UNREAD_MASK, "packing": batch.packing}
        output = bare(self.lm).base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **inputs
        )
        states: Tensor = output.last_hidden_state
        return states.flatten(0, 1).index_select(0, batch.predict)

    def forward(self, batch: PairBatch, wanted: Wanted = LOG_PROBS) -> TokenValues:
        """Log-probs of the completion tokens, and the other values that `wanted` asks for."""
        return self.within(lambda: self._forward(batch, wanted))

    def _forward(self, batch: PairBatch, wanted: Wanted) -> TokenValues:
        with self.precision():
            hidden, head = self.hidden(batch), head_of(self.lm)
            kl = None if wanted.kl_from is None else self.kl(batch, wanted.kl_from, hidden, head)
            logps, statistics = log_probs_and_statistics(
                hidden, batch.tokens.ids, head, chunk_bytes=self.chunk_bytes, statistics=wanted.statistics
            )
        return (
            TokenValues(logps, kl=kl)
            if statistics is None
            else TokenValues(logps, statistics.entropy, statistics.sum_p2, kl)
        )

    def kl(self, batch: PairBatch, reference: PolicyModel, hidden: Tensor, head: Head) -> Tensor:
        """KL(reference || policy) at each completion token, [N] nats; `hidden` [N, H] and `head` are the policy's."""
        with torch.no_grad():
            before = reference.within(lambda: reference.hidden(batch))
        return kl_from(before, head_of(reference.lm), hidden, head, chunk_bytes=self.chunk_bytes)

    def score(self, batch: PairBatch, wanted: Wanted = LOG_PROBS) -> TokenLogProbs:
        """Run `forward` and attach the record of the tokens."""
        return attach_tokens(self(batch, wanted), batch)

    def answers(self, batch: PairBatch, wanted: Wanted = LOG_PROBS) -> AnswerLogProbs:
        """Log-probs of a batch's answers, with the indices of its pairs in their data set."""
        return replace(self.score(batch, wanted).answers(), index=batch.index)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Turn gradient checkpointing on, which then does what the MLPs' own recomputation did."""
        self.lm.gradient_checkpointing_enable(**settings)
        keep_activations(self.lm)
        bare(self.lm).enable_input_require_grads()


def attach_tokens(values: TokenValues, batch: PairBatch) -> TokenLogProbs:
    """Combine per-token values with the record of their tokens."""
    known = values.entropy is not None and values.sum_p2 is not None
    return TokenLogProbs(
        values.logps,
        batch.tokens,
        TokenStatistics(values.entropy, values.sum_p2) if known else None,  # type: ignore[arg-type]
        values.kl,
    )


@contextlib.contextmanager
def inference(policy: PolicyModel) -> Iterator[None]:
    """Evaluation mode, no gradients, the policy's precision; afterwards mode and shards are what they were before."""
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), policy.precision():
            yield
    finally:
        policy.train(training)
        at_rest(policy)


def policy_of(lm: Any, cfg: TrainConfig, key: str = "model.path", device: torch.device | None = None) -> PolicyModel:
    """Return `lm`, which stays on its device and is going to run on `device`, with what `cfg` says of how it runs.

    Raises:
        UsageError: layout or attention cannot run the model on its device; `key` is the setting that named the model.
    """
    device = device or lm.device
    if cfg.model.attention == "flex" and device.type != "cuda":
        raise UsageError("model.attention=flex: needs a CUDA device; leave it auto")
    chunk_bytes = int(cfg.trainer.logit_chunk_mb * 2**20)
    try:
        return PolicyModel(
            lm, layout=cfg.layout, attention=cfg.model.attention, chunk_bytes=chunk_bytes, bf16=cfg.trainer.bf16,
            device=device,
        )  # fmt: skip
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
