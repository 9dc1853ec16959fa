"""Scorers of a line: made and checked before any model loads, then asked one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.config.validate import fault
from alphapo_cli.errors import ConfigError, UsageError, first_line, nearest
from alphapo_cli.pairs.candidates import Candidates
from alphapo_cli.pairs.scoring.registry import build, column_of
from alphapo_cli.pairs.scoring.schema import ScorerConfig, ScorerJudgeConfig
from alphapo_cli.pairs.scoring.scorer import Scorer
from alphapo_cli.pairs.scoring.store import scored
from alphapo_cli.runtime.progress import Progress


def scorer_configs(first: ScorerConfig | None, more: Mapping[str, Any]) -> list[ScorerConfig]:
    """The settings of all scorers.

    Args:
        first: of `scorer`; None where there is none.
        more: column -> settings, of `scorers`.

    Returns:
        One configuration each, with its column.

    Raises:
        ConfigError: a setting of `more` is unknown or wrong.
        UsageError: two scorers make one column.
    """
    found = [] if first is None else [first]
    for column, settings in more.items():
        where = f"scorers.{column}"
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{where}={settings!r}: must be settings of a scorer, such as {{name: length}}")
        known = [f.name for f in fields(ScorerConfig)]
        for key in settings:
            if key not in known:
                raise ConfigError(
                    f"{where}.{key}: no such setting{nearest(str(key), known)} (keys: {', '.join(known)})"
                )
        if settings.get("rule") is not None:
            raise ConfigError(f"{where}.rule: a rule is typed on the line, as scorer=rule scorer.rule=...")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(ScorerConfig), dict(settings), {"column": str(column)})
            typed: Any = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {first_line(error)}") from error
        faults = [
            text
            for f in fields(ScorerConfig)
            for text in fault(f"{where}.{f.name}", getattr(typed, f.name), f.metadata)
        ]
        if faults:
            raise ConfigError("; ".join(faults))
        found.append(typed)
    columns = [column_of(cfg) for cfg in found]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UsageError(f"two scorers make the column '{twice}'; name one scorer.column=NAME")
    return found


def make_scorers(
    configs: Sequence[ScorerConfig],
    judge: ScorerJudgeConfig,
    data: DataConfig,
    cache: Path,
    prompts: Sequence[Candidates],
) -> list[Scorer]:
    """Make the scorers and check that they can score such prompts; loads no weights.

    Args:
        configs: their settings.
        judge: of scorer=judge.
        data: how prompts are rendered.
        cache: the cache directory.
        prompts: the prompts, with those answers that exist already.

    Returns:
        The scorers, those that read columns of others last.

    Raises:
        UsageError: one of them cannot.
    """
    made: list[str] = []
    scorers = []
    for cfg in sorted(configs, key=lambda cfg: cfg.name in ("mean", "column")):
        scorer = build(cfg, judge, data, cache, made)
        scorer.check(prompts)
        made.append(scorer.column)
        scorers.append(scorer)
    return scorers


def score_all(prompts: Sequence[Candidates], scorers: Sequence[Scorer], cache: Path) -> tuple[list[Candidates], int]:
    """Ask every scorer; raises what scorers raise.

    Args:
        prompts: prompts with answers.
        scorers: the scorers; later ones see the columns of earlier ones.
        cache: the cache directory.

    Returns:
        The prompts with all columns, and the number of scores that a model, judge or rule was asked for.
    """
    found, asked = list(prompts), 0
    for scorer in scorers:
        total = sum(len(prompt.answers) for prompt in found)
        with Progress(total, "answers", scorer.column, leave=False) as bar:
            found, new = scored(found, scorer, cache, bar.update)
        asked += 0 if scorer.free else new
    return found, asked
