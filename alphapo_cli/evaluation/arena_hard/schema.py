"""The typed schema of `alphapo eval --protocol arena_hard`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from alphapo_cli.config.schema import RunConfig, _choice, _number
from alphapo_cli.evaluation.schema import JudgeConfig

STYLE = ("length", "headers", "lists", "bold")
# Settings of the judge that belong to AlpacaEval's protocol alone: one token, whose log-probs are read.
NOT_HERE = ("preferences", "top_logprobs", "seed", "both_orders", "min_mass", "verdict_tokens")


@dataclass
class ArenaHardJudgeConfig(JudgeConfig):
    """A judge that writes its reasons and ends with a label. Settings of one-token verdicts have no meaning here."""

    name: str = _choice("openai", "replay", "openai", "vllm")
    temperature: float | None = _number(0.0, ge=0)  # of the judge's text; null: not sent
    timeout: float = _number(300.0, gt=0)  # seconds for one attempt, in which a whole text is written
    max_tokens: int = _number(4096, ge=1)  # of one judgement; a text that is cut there holds no verdict


@dataclass
class ArenaHardStatistics:
    """Statistics of the verdicts. Changing them never queries the judge again."""

    # The public tool's rules for labels, incomplete pairs and style features, by its benchmark's version.
    version: str = _choice("v2.0", "v0.1", "v2.0")
    weight: float = _number(3.0, ge=1)  # of a verdict >> or <<; others count once
    style: list[str] = field(default_factory=lambda: list(STYLE))  # what is controlled for; []: nothing
    # Where the style-controlled score is taken: at a difference of 0, or at the mean difference, as the public tool does.
    style_at: str = _choice("equal", "equal", "mean")
    bootstrap: int = _number(2000, ge=0)  # resamples of the prompts; 0: no intervals
    confidence: float = _number(0.95, gt=0, lt=1)
    seed: int = _number(0, ge=0)
    length_bins: int = _number(5, ge=1)


@dataclass
class ArenaHardConfig:
    """The resolved configuration of `alphapo eval --protocol arena_hard`."""

    judge: ArenaHardJudgeConfig = field(default_factory=ArenaHardJudgeConfig)
    statistics: ArenaHardStatistics = field(default_factory=ArenaHardStatistics)
    strip_think: bool = False  # remove the thoughts in answers, on both sides, before anything else
    run: RunConfig = field(default_factory=RunConfig)
