"""The untokenised pairs of a run, from files, the hub or the embedded world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.load import has_evaluation, load_pairs
from alphapo_cli.data.messages import answer_text
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs

GLASSBOX_PROBE = 256  # probe pairs by default


def load_text(cfg: DataConfig, probe: ProbeConfig) -> tuple[LoadedPairs, LoadedPairs | None]:
    """Load (training pairs, pairs of an evaluation split or None) from the configured source."""
    if cfg.source == "glassbox":
        pairs = world.make_pairs(cfg.glassbox)[: cfg.limit]
        held_out = world.probe_pairs(probe.pairs or GLASSBOX_PROBE, cfg.glassbox)
        return _glassbox(pairs), _glassbox(held_out)
    train = load_pairs(cfg)
    if not has_evaluation(cfg):
        return train, None
    # The value of a listwise objective depends on the number of answers, so the probe has as many as training.
    return train, load_pairs(replace(cfg, answers=train.num_sides) if "answers" in train.form else cfg, evaluation=True)


def _glassbox(pairs: list[Any]) -> LoadedPairs:
    return LoadedPairs(pairs, LoadCounts(read=len(pairs)), "embedded world", "messages")


def texts_of(pairs: LoadedPairs) -> list[str]:
    """All prompts and answers as plain texts, to train a tokenizer on."""
    texts = []
    for pair in pairs:
        prompt = pair.prompt if isinstance(pair.prompt, str) else "\n".join(m["content"] for m in pair.prompt)
        texts += [prompt, *map(answer_text, pair.answers)]
    return texts
