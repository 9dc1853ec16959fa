"""Compatibility checks of data, tokenizers and models, before training."""

from __future__ import annotations

from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.prepare import PreparedData
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.loading import ModelLimits
from alphapo_cli.modeling.policy import PolicyModel, bare


def check_limits(data: PreparedData, limits: ModelLimits, who: str) -> None:
    """Check that the model has an embedding for every token id, and positions for the longest pair.

    Args:
        data: the tokenised pairs.
        limits: the model's number of embeddings and positions.
        who: the setting that names the model, for messages.

    Raises:
        UsageError: a token id has no embedding, or a pair has more tokens than the model has positions.
    """
    sets = [s for s in (data.train, data.probe) if len(s)]
    sides = [side for s in sets for side in (s.prompt, *s.answers)]
    top = max(int(side.ids.max()) for side in sides if len(side.ids))
    if top >= limits.tokens:
        raise UsageError(
            f"{who}: the tokenizer gives id {top}, but the model has embeddings for {limits.tokens} tokens; "
            "save model and tokenizer that belong together (model.resize_token_embeddings)"
        )
    longest = max(int((s.prompt.lengths + s.longest()).max()) for s in sets)
    if limits.positions is not None and longest > limits.positions:
        raise UsageError(
            f"{who}: the longest pair has {longest} tokens, but the model has {limits.positions} positions; "
            f"give data.max_length={limits.positions} to cut longer pairs"
        )


def check_same_tokens(policy: Any, reference: Any, key: str, name: str, whose: str = "policy") -> None:
    """Check that a reference or guide has the policy's vocabulary.

    Args:
        policy: the policy's tokenizer.
        reference: the other model's tokenizer.
        key: the setting that names the other model.
        name: that setting's value.
        whose: what messages call the first model.

    Raises:
        UsageError: a token of the policy's vocabulary is missing or has another id.
    """
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    differing = next((t for t, i in sorted(ours.items(), key=lambda x: x[1]) if theirs.get(t) != i), None)
    if differing is not None:
        raise UsageError(
            f"{key}={name}: its tokenizer differs from the {whose}'s (token {differing!r} is {ours[differing]} "
            f"in the {whose}'s, {theirs.get(differing, 'absent')} in it); take one with the {whose}'s tokenizer"
        )


def check_prompts(cfg: TrainConfig) -> None:
    """Check that the embedded world has as many held-out prompts as probe.pairs and probe.samples ask for.

    Raises:
        UsageError: the embedded world has fewer held-out prompts.
    """
    if cfg.data.source == "glassbox":
        for setting, wanted in (("probe.pairs", cfg.probe.pairs), ("probe.samples", cfg.probe.samples)):
            if wanted is not None and wanted > world.held_out():
                raise UsageError(
                    f"{setting}={wanted}: the embedded world has {world.held_out()} held-out prompts; ask for fewer"
                )


def check_vocabulary(policy: PolicyModel, reference: PolicyModel) -> None:
    """Check that both models give logits for the same number of tokens, so that a KL between them is defined.

    Raises:
        UsageError: the numbers of logits differ.
    """
    ours, theirs = (m.get_output_embeddings().weight.shape[0] for m in (bare(policy.lm), bare(reference.lm)))
    if ours != theirs:
        raise UsageError(
            f"model.reference: it gives {theirs} logits and the policy {ours}, so that there is no KL between them; take "
            "a reference of the policy's vocabulary"
        )
