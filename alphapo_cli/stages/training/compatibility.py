"""Whether data, tokenizer and models go together: found out before any of them is used."""

from __future__ import annotations

from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.prepare import PreparedData
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.loading import ModelLimits


def check_room(data: PreparedData, space: ModelLimits, who: str) -> None:
    """Every id must have an embedding and every token a position.

    Raises:
        UsageError: some do not.
    """
    sets = [s for s in (data.train, data.probe) if len(s)]
    sides = [side for s in sets for side in (s.prompt, *s.answers)]
    top = max(int(side.ids.max()) for side in sides if len(side.ids))
    if top >= space.tokens:
        raise UsageError(
            f"{who}: the tokenizer gives id {top}, but the model has embeddings for {space.tokens} tokens; "
            "save model and tokenizer that belong together (model.resize_token_embeddings)"
        )
    longest = max(int((s.prompt.lengths + s.longest()).max()) for s in sets)
    if space.positions is not None and longest > space.positions:
        raise UsageError(
            f"{who}: the longest pair has {longest} tokens, but the model has {space.positions} positions; "
            f"give data.max_length={space.positions} to cut longer pairs"
        )


def check_same_tokens(policy: Any, reference: Any, key: str, name: str) -> None:
    """A reference or guide, which the setting `key` names, must read the policy's token ids as the policy does.

    Raises:
        UsageError: their vocabularies differ.
    """
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    differing = next((t for t, i in sorted(ours.items(), key=lambda x: x[1]) if theirs.get(t) != i), None)
    if differing is not None:
        raise UsageError(
            f"{key}={name}: its tokenizer differs from the policy's (token {differing!r} is {ours[differing]} "
            f"in the policy's, {theirs.get(differing, 'absent')} in it); take one with the policy's tokenizer"
        )


def check_prompts(cfg: TrainConfig) -> None:
    """The embedded world must have as many held-out prompts as the probe asks for.

    Raises:
        UsageError: it has fewer.
    """
    if cfg.data.source == "glassbox":
        for setting, wanted in (("probe.pairs", cfg.probe.pairs), ("probe.samples", cfg.probe.samples)):
            if wanted is not None and wanted > world.held_out():
                raise UsageError(
                    f"{setting}={wanted}: the embedded world has {world.held_out()} held-out prompts; ask for fewer"
                )
