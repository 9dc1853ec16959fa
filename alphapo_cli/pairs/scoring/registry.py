"""Scorers by name; only the modules of the one that is asked for are imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.pairs.scoring.schema import ScorerConfig, ScorerJudgeConfig
from alphapo_cli.pairs.scoring.scorer import Scorer


def build(
    cfg: ScorerConfig, judge: ScorerJudgeConfig, data: DataConfig, cache: Path, made: Sequence[str] = ()
) -> Scorer:
    """Make a scorer; no weights are loaded.

    Args:
        cfg: its settings.
        judge: the settings of scorer=judge.
        data: how prompts are rendered, for language models.
        cache: the cache directory.
        made: columns that scorers before it make.

    Returns:
        The scorer.

    Raises:
        UsageError: a setting is missing or wrong.
    """
    column = column_of(cfg)
    if cfg.name in ("column", "mean", "length", "source", "glassbox"):
        from alphapo_cli.pairs.scoring.simple import Columns, Glassbox, Length, Source

        if cfg.name == "source":
            return Source(column, cfg)
        if cfg.name == "glassbox":
            return Glassbox(column, cfg)
        return Length(column, cfg) if cfg.name == "length" else Columns(column, cfg, made)
    if cfg.name == "rule":
        from alphapo_cli.pairs.scoring.rule import Rule

        return Rule(column, cfg)
    if cfg.name in ("logprob", "implicit"):
        return _language_model(column, cfg, data, cache)
    if cfg.name == "reward_model":
        from alphapo_cli.pairs.scoring.reward_model import RewardModel

        return RewardModel(column, cfg, cache)
    from alphapo_cli.pairs.scoring.pairwise import Judged, PairModel

    if cfg.name == "pair_model":
        return PairModel(column, cfg, cache)
    from alphapo_cli.evaluation.formats import ModelOutputs
    from alphapo_cli.evaluation.judges import registry

    if judge.name == "replay":
        raise UsageError(
            "scorer=judge judge=replay: judgements of other answers say nothing of these; take another judge"
        )
    if cfg.aggregate == "rubric":
        from alphapo_cli.pairs.scoring.rubric import build_rubric

        return build_rubric(column, cfg, judge, cache / "scores" / "rubric")
    built = registry.build(judge, ModelOutputs("answers", "answers", ()), None)
    return Judged(column, cfg, built, cache / "scores" / "judge")


def column_of(cfg: ScorerConfig) -> str:
    """The name of a scorer's column; of scorer=column the one that it reads."""
    if cfg.column is not None:
        return cfg.column
    return cfg.of[0] if cfg.name == "column" and cfg.of else "score" if cfg.name == "column" else cfg.name


def _language_model(column: str, cfg: ScorerConfig, data: DataConfig, cache: Path) -> Scorer:
    for key, value in (("model", cfg.model), *((("reference", cfg.reference),) if cfg.name == "implicit" else ())):
        if value is None:
            raise UsageError(f"scorer={cfg.name}: scorer.{key} is missing: a run, a model directory or a hub name")
    from alphapo_cli.pairs.scoring.log_probs import Implicit, LogProbs

    if cfg.name == "implicit":
        return Implicit(column, cfg, data, cache)
    return LogProbs(column, cfg, data, cache, str(cfg.model), "scorer.model")
