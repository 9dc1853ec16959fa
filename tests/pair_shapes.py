"""Pairs and models for the tests that packed is padded: every architecture that can be packed, every shape of a pair."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from alphapo_cli.data.token_pairs import TokenPair
from tests import tiny

LIMIT = 64  # positions of the models
# Windows shorter than most sequences; caps low enough that scores feel them.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama tied", {}),
    "llama, all heads": ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral, window 8", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, window 5": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen3": ("qwen3", {}),
    "gemma2": (
        "gemma2, soft-capped",
        {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4, "attn_implementation": "eager"},
    ),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 4}),
    "gemma3, last layer sliding": (
        "gemma3",
        {"layer_types": ["full_attention", "sliding_attention"], "final_logit_softcapping": 2.0},
    ),
}
# Packed because of what they do with a packed row, not by their names.
DETECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3, window 8", {}),
    "granite": (
        "granite, divided",
        {"residual_multiplier": 0.5, "attention_multiplier": 0.3, "embedding_multiplier": 2.0},
    ),
    "smollm3": ("smollm3", {}),
    "qwen3 moe": ("qwen3 moe", {"experts_implementation": "eager"}),  # the others have no float64
    "cohere": ("cohere, scaled", {}),
}


def model(name: str, **settings: Any) -> Any:
    family, more = {**ARCHITECTURES, **DETECTED}[name]
    return tiny.model(family, max_position_embeddings=LIMIT, **more, **settings)


MODELS = {name: model(name).double() for name in (*ARCHITECTURES, *DETECTED)}


def pair_of(prompt: list[int], chosen: list[int], rejected: list[int], index: int = 0) -> TokenPair:
    own, first, second = (np.asarray(x, np.int32) for x in (prompt, chosen, rejected))
    return TokenPair(own, first, second, columns={}, index=index)


def ids(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(tiny.FIRST, 12), min_size=low, max_size=high)  # few ids, so that beginnings agree


@st.composite
def any_pair(draw: st.DrawFn) -> TokenPair:
    """A prompt, what both answers begin with (a boundary split differently, or a common opening), then each its own."""
    prompt, opening = draw(ids(1, 14)), draw(ids(0, 3))
    chosen, rejected = draw(ids(0, 5)), draw(st.one_of(ids(0, 5), ids(20, 30)))
    if draw(st.booleans()):
        chosen, rejected = rejected, chosen
    return pair_of(prompt, [*opening, *chosen] or [tiny.EOS], [*opening, *rejected] or [tiny.EOS])


pair_lists = st.lists(any_pair(), min_size=1, max_size=4)
# The shapes that go wrong first, whatever Hypothesis draws.
CORNERS = [
    pair_of([tiny.BOS], [5, 6], [7, 8, 9]),  # nothing in common but the BOS
    pair_of([5, 6, 7], [8], [9]),  # answers of one token: no position of their own
    pair_of([5, 6], [7, 8, 9, tiny.EOS], [7, 8, 10, tiny.EOS]),  # the same beginning behind the prompt
    pair_of([5, 6], [7, 8], [7, 8, 9, 10]),  # one answer begins the other
    pair_of([5], [6], list(range(20, 60))),  # one side much longer
    pair_of(list(range(10, 10 + LIMIT - 1)), [8], [9]),  # the prompt fills the model
    pair_of(list(range(10, 10 + LIMIT - 4)), [8, 9, 10, 11], [12, 13, 14, 15]),
]


def drawn_pairs(seed: str) -> list[TokenPair]:
    """Four pairs as `any_pair` draws them, always the same for a seed."""
    rng = Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [rng.randint(tiny.FIRST, 12) for _ in range(rng.randint(low, high))]

    pairs = []
    for _ in range(4):
        opening, own = some(0, 3), [some(0, 5), some(*rng.choice([(0, 5), (20, 30)]))]
        rng.shuffle(own)
        pairs.append(pair_of(some(1, 14), *([*opening, *answer] or [tiny.EOS] for answer in own)))
    return pairs
