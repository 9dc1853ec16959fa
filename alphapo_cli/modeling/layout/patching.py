"""Patches a transformers model for packed rows: attention, a last layer on fewer rows, MLPs that keep less memory.

Only the rows that predict a completion token are read from the last layer. Its keys and values are needed at every
position, its queries, output projection, MLP and norms at those rows alone; so prompts cost nearly one layer less.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout import attention as packed_attention
from alphapo_cli.modeling.layout.detection import disagrees
from alphapo_cli.modeling.layout.mlp_recompute import is_gated, lean, restore
from alphapo_cli.modeling.layout.packing import Packing


@dataclass(frozen=True)
class Family:
    """Properties of an architecture's attention that its modules do not show."""

    window_in_config: bool = False  # every layer has the sliding window of the config
    caps_scores: bool = False  # attention scores are soft-capped


# config.model_type -> family, whose last layer is computed for few rows. The tests compare each with layout=padded; add a
# new one there first. Others run whole layers, if they do what a packed row needs, see `detection`.
FAMILIES = {
    "llama": Family(),
    "mistral": Family(window_in_config=True),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma2": Family(caps_scores=True),
    "gemma3_text": Family(),
}
ATTENTIONS = ("auto", "sdpa", "flex")
FLEX_HEAD = 16  # dimensions of a head that FlexAttention's CUDA kernel multiplies at least


def prepare(lm: Any, attention: str = "auto", device: torch.device | None = None) -> None:
    """Patch `lm` so that its forward takes `packing`. A second call changes nothing.

    Args:
        lm: a causal language model, bare or in a peft wrapper.
        attention: "sdpa", "flex", or "auto": flex if the model runs on a CUDA device, has no dropout and heads of 16 or
            more, else sdpa.
        device: where it is going to run; None: where it is.

    Raises:
        UsageError: this architecture or attention cannot be packed.
    """
    model = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    kind = model.config.model_type
    instead = "add layout=padded"
    known = kind in FAMILIES
    if not known and not hasattr(model.base_model, "layers"):
        raise UsageError(f"layout=packed cannot run architecture '{kind}': it has no list of decoder layers; {instead}")
    if getattr(model.config, "use_bidirectional_attention", None):
        raise UsageError(f"layout=packed cannot run bidirectional attention ('{kind}'); {instead}")
    if attention not in ATTENTIONS:
        raise UsageError(
            f"layout=packed has no model.attention={attention} (choices: {', '.join(ATTENTIONS)}); choose one or {instead}"
        )
    drops = bool(getattr(model.config, "attention_dropout", None))
    if attention == "auto":
        on_cuda = (device or model.device).type == "cuda"
        attention = "flex" if on_cuda and not drops and head_size(model.config) >= FLEX_HEAD else "sdpa"
    if attention == "flex" and head_size(model.config) < FLEX_HEAD:
        raise UsageError(
            f"model.attention=flex: the heads of this model have {head_size(model.config)} dimensions, and FlexAttention's "
            f"kernel needs {FLEX_HEAD}; leave it auto, or {instead}"
        )
    if attention == "flex" and drops:
        raise UsageError(
            f"model.attention=flex: FlexAttention has no dropout, and this model's config.json sets attention_dropout; "
            f"leave it auto, or {instead}"
        )
    name = packed_attention.FLEX if attention == "flex" else packed_attention.SDPA
    if model.config._attn_implementation == name:
        return
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    last = model.base_model.layers[model.config.num_hidden_layers - 1]
    last.forward = types.MethodType(_last_layer if known else _whole_last_layer, last)
    fault = None if known else disagrees(model, before)
    if fault is not None:
        model.config._attn_implementation = before
        del last.forward
        raise UsageError(f"layout=packed cannot run architecture '{kind}': {fault}; {instead}")
    for layer in model.base_model.layers:
        if known or is_gated(layer.mlp):
            lean(layer.mlp)


def head_size(config: Any) -> int:
    """Dimensions of an attention head of a decoder's config."""
    text = config.get_text_config()
    return getattr(text, "head_dim", None) or int(text.hidden_size // text.num_attention_heads)


def keep_activations(lm: Any) -> None:
    """Let the MLPs of a prepared model keep all activations, for gradient checkpointing."""
    model = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    if is_prepared(model):
        for layer in model.base_model.layers:
            restore(layer.mlp)


def is_prepared(lm: Any) -> bool:
    """Whether `prepare` has patched the model."""
    return lm.config._attn_implementation in (packed_attention.SDPA, packed_attention.FLEX)


def _whole_last_layer(
    layer: Any, hidden_states: Tensor, *args: Any, packing: Packing | None = None, **kwargs: Any
) -> Tensor:
    """The forward of any decoder layer, of which `packing.rows` are kept: [1, T, H] -> [1, K, H]."""
    if packing is None:
        return type(layer).forward(layer, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    out = type(layer).forward(layer, hidden_states, *args, packing=packing, **kwargs)
    states: Tensor = out[0] if isinstance(out, tuple) else out
    return states.index_select(1, packing.rows)


def _last_layer(layer: Any, hidden_states: Tensor, *args: Any, packing: Packing | None = None, **kwargs: Any) -> Tensor:
    """The forward of a decoder layer of transformers, for `packing.rows` only: [1, T, H] -> [1, K, H]."""
    if packing is None:
        out: Tensor = type(layer).forward(layer, hidden_states, *args, **kwargs)
        return out
    rows = packing.rows
    normed = layer.input_layernorm(hidden_states)
    kept = hidden_states.index_select(1, rows)
    attended = _attend(layer.self_attn, normed, rows, kwargs["position_embeddings"], packing)
    if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma 2 and 3 normalise what a block adds as well
        kept = kept + layer.post_attention_layernorm(attended)
        return kept + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(kept)))  # type: ignore[no-any-return]
    kept = kept + attended
    return kept + layer.mlp(layer.post_attention_layernorm(kept))  # type: ignore[no-any-return]


def _attend(module: Any, normed: Tensor, rows: Tensor, angles: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
    """Compute self-attention with queries at `rows` only: normed [1, T, H] -> [1, K, H]."""
    config = module.config
    family = FAMILIES[config.model_type]

    def heads(projection: nn.Module, states: Tensor, norm: str | None = None) -> Tensor:
        split = projection(states).view(1, states.shape[1], -1, module.head_dim)
        return (getattr(module, norm)(split) if norm and hasattr(module, norm) else split).transpose(1, 2)  # type: ignore[no-any-return]

    cos, sin = angles
    query = rotate(heads(module.q_proj, normed.index_select(1, rows), "q_norm"), cos[:, rows], sin[:, rows])
    key = rotate(heads(module.k_proj, normed, "k_norm"), cos, sin)
    function = packed_attention.FUNCTIONS[config._attn_implementation]
    out, _ = function(
        module,
        query,
        key,
        heads(module.v_proj, normed),
        None,
        packing=packing,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=config.sliding_window if family.window_in_config else getattr(module, "sliding_window", None),
        softcap=config.attn_logit_softcapping if family.caps_scores else None,
    )
    return module.o_proj(out.reshape(1, len(rows), -1))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding (arXiv 2104.09864): x [1, heads, T, D] by angles [1, T, D], halves are paired."""
    low, high = x.chunk(2, -1)
    return x * cos.unsqueeze(1) + torch.cat((-high, low), -1) * sin.unsqueeze(1)
