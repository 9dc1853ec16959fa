"""The typed schema of pairing: thin, pair, select, augment and order. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alphapo_cli.config.schema import _choice, _number

UNITS = ("chars", "words", "tokens")  # tokens: of answers whose token ids are known


@dataclass
class ThinConfig:
    """Which answers take part; all of them are scored."""

    cut: str = _choice("drop", "drop", "keep")  # answers that the token limit cut
    duplicates: str = _choice("drop", "drop", "keep")  # of equal texts to a prompt the first stays
    min_chars: int | None = _number(None, ge=0)
    max_chars: int | None = _number(None, ge=0)
    min_tokens: int | None = _number(None, ge=0)
    max_tokens: int | None = _number(None, ge=0)
    max_repetition: float | None = _number(None, ge=0, le=1)  # share of repeated 4-grams of words
    min_answers: int = _number(2, ge=2)  # a prompt with fewer left gives no pair
    # Statistical rejection sampling (RSO, arXiv 2309.06657): an answer is taken with probability exp((r - r_max) / beta),
    # r_max over those not yet taken, until rejection_keep are; null: off.
    rejection_beta: float | None = _number(None, gt=0)
    rejection_keep: int | None = _number(None, ge=2)


@dataclass
class PairConfig:
    """Which answers to a prompt become chosen and rejected; see `pairs.rules`."""

    rank_by: str | None = None  # column of scores; null: the only one
    chosen: str = "best"
    rejected: str = "worst"
    chosen_ties: str = _choice("first", "first", "longest", "shortest", "random")
    rejected_ties: str = _choice("first", "first", "longest", "shortest", "random")
    min_margin: float = _number(0.0, ge=0)  # a margin of 0 is never a pair
    own_margin: float | None = _number(None, ge=0)  # in place of min_margin where the chosen answer is the model's own
    min_chosen: float | None = _number(None)
    # Taken off a score for each unit of length; balance: as much as makes chosen and rejected equally long on average.
    length_weight: Any = 0.0
    length_unit: str = _choice("chars", *UNITS)


@dataclass
class AugmentConfig:
    """Rows made from pairs: see `pairs.augment`."""

    by: str = _choice("none", "none", "goal", "other_prompts")
    text: str | None = None  # of goal: the system text, with {score}
    permutations: int = _number(2, ge=1)  # of other_prompts
    neutral: bool = True  # of other_prompts: pairs of two answers to other prompts, with p_chosen 0.5


@dataclass
class OrderConfig:
    """The order of pairs.jsonl, and the stage of each pair."""

    by: str = "shuffle"  # shuffle, or a number of pairs such as margin; see `pairs.numbers`
    descending: bool = False
    stages: int | None = _number(None, ge=1)  # as many stages of equal size, in that order; null: one
    per_prompt: bool = False  # a prompt's n-th pair is in stage n


@dataclass
class PairingConfig:
    """Everything that makes pairs from scored answers without a model."""

    thin: ThinConfig = field(default_factory=ThinConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    # Numbers with settings of their own, by the name under which `select` and `order` find them; see `pairs.measures`.
    measures: dict[str, Any] = field(default_factory=dict)
    select: Any = None  # conditions in order, a list or by names of their own; see `data.select`
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    order: OrderConfig = field(default_factory=OrderConfig)
