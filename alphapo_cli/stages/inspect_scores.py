"""Scores of the training pairs under the model that training starts from (CHES and others), for `alphapo inspect`.

They are those of `data.select` and `alphapo measure` (`probe.pair_scores`), of the token ids that training uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import Index, TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.probe.displacement import QUANTILES
from alphapo_cli.probe.pair_scores import Numbers, token_scores, trained_ids
from alphapo_cli.probe.score_names import OF_LOG_PROBS, OF_MODEL, OF_STATES, OF_TOKENS, SOURCES
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.stages.training.selection import start_scores
from alphapo_cli.storage.hashing import digest
from alphapo_cli.tracking.metrics import MEASURE

_NAMES = (*OF_STATES, *OF_TOKENS, *OF_LOG_PROBS)  # in the order in which they are shown
SAMPLE = 256  # pairs at most, so that a large set takes no longer; their 10th percentile is that of some 26 pairs
HIGHEST = 5  # pairs that are named
LIKENESS = "ches_normalised"  # by which they are: the paper's form for answers of different lengths
PREFERS = "start_prefers_chosen"  # 0, 0.5 or 1: a share, which has no percentiles
BINS = 12
_BEGINNING = 24  # tokens of an answer


@dataclass(frozen=True)
class Spread:
    """How a score is spread over `pairs` pairs: 10th, 50th and 90th percentile, and a histogram of equal bins."""

    name: str
    pairs: int
    percentiles: tuple[float, float, float]
    edges: tuple[float, ...]  # [bins + 1]; a bin holds its lower edge, the last one its upper one too
    counts: tuple[int, ...]

    @property
    def meaning(self) -> str:
        """What the score is, in a sentence, and its paper."""
        metric = MEASURE[f"pairs/{self.name}"]
        unit = f", in {metric.unit}" if metric.unit else ""
        bad = f"; {metric.bad}" if metric.bad else ""
        return f"{metric.quantity[0].upper()}{metric.quantity[1:]}{unit}{bad} (arXiv {SOURCES[self.name]})."


@dataclass(frozen=True)
class Warned:
    """A pair of high CHES: its place among the training pairs, its row of the data, and how its answers begin."""

    position: int
    row: int
    source: str | None  # of a mixture
    value: float
    chosen: str
    rejected: str


@dataclass(frozen=True)
class PairScores:
    """Scores of a sample of training pairs.

    Attributes:
        start: the model under which they are.
        pairs: how many pairs have been scored.
        of: training pairs with two answers.
        single: training rows with one answer, which have no score.
        seed: of the sample, where `pairs` is less than `of`.
        spreads: by score.
        prefers: share (0 to 1) of the scored pairs whose chosen answer the model finds likelier, a tie counting half.
        highest: the pairs with the highest `LIKENESS`, highest first.
        rows: a row a pair, in the data's order: its row of the data and every score.
    """

    start: str
    pairs: int
    of: int
    single: int
    seed: int
    spreads: tuple[Spread, ...]
    prefers: float
    highest: tuple[Warned, ...]
    rows: tuple[dict[str, Any], ...]


def pair_scores(cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder) -> PairScores:
    """Score training pairs: all, or `SAMPLE` of them drawn by the run's seed.

    Args:
        cfg: the resolved configuration of a training.
        start: its model and data.
        builder: caches the scores on disk; those of all pairs are the ones that `data.select` reads.

    Returns:
        The scores.

    Raises:
        UsageError: no row has two answers, the weights cannot be read, or a score is no finite number.
    """
    whole = start.data.train
    paired = np.array([i for i in range(len(whole)) if all(len(trained_ids(whole, side, i)) for side in (0, 1))])
    if not len(paired):
        raise UsageError("--scores: no training row has two answers to compare; leave --scores out")
    chosen = paired
    if len(paired) > SAMPLE:
        chosen = np.sort(np.random.default_rng(cfg.seed).choice(paired, SAMPLE, replace=False))
    if len(chosen) < len(whole):
        key = digest([start.data.key, "scored", chosen.tolist()])
        start = replace(start, data=replace(start.data, train=whole.select(chosen), key=key))
    found = {**token_scores(start.data.train), **start_scores(cfg, start, builder)}
    _check_finite(cfg, start, found)
    rows = tuple(
        {"position": int(place), "row": int(whole.index[place]) + 1, **{name: float(found[name][n]) for name in _NAMES}}
        for n, place in enumerate(chosen.tolist())
    )
    return PairScores(
        start=start.start, pairs=len(chosen), of=len(paired), single=len(whole) - len(paired), seed=cfg.seed,
        spreads=tuple(spread(name, found[name]) for name in _NAMES if name != PREFERS),
        prefers=float(np.mean(found[PREFERS])), highest=_highest(whole, chosen, found[LIKENESS], start.tokenizer),
        rows=rows,
    )  # fmt: skip


def _check_finite(cfg: TrainConfig, start: ModelAndData, found: Mapping[str, Numbers]) -> None:
    wrong = np.flatnonzero(~np.isfinite([found[name] for name in OF_MODEL]).all(axis=0))
    if wrong.size:
        train = start.data.train
        raise UsageError(
            f"{cfg.model.path or start.start}: the model gives {wrong.size:,} of {len(train):,} pairs scores that are no "
            f"finite number, first row {train.index[wrong[0]] + 1}; its weights are damaged, or the model needs another "
            "model.dtype"
        )


def spread(name: str, values: Numbers) -> Spread:
    """Percentiles and histogram of a score.

    Args:
        name: of the score.
        values: [n] finite numbers, at least one.

    Returns:
        Its spread; of equal numbers one bin.
    """
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, bins=BINS if low < high else 1, range=(low, high))
    if low == high:
        edges = np.array([low, high])  # numpy widens a range without width
    p10, p50, p90 = (float(np.percentile(values, q)) for q in QUANTILES)
    return Spread(name, len(values), (p10, p50, p90), tuple(map(float, edges)), tuple(map(int, counts)))


def bin_labels(found: Spread) -> list[str]:
    """The range of each bin, with as many decimals as tell its ends apart."""
    width = found.edges[1] - found.edges[0]
    decimals = max(0, 1 - int(np.floor(np.log10(width)))) if width > 0 else 4
    ends = [f"{edge:,.{decimals}f}" for edge in found.edges]
    return [f"{low} to {high}" if low != high else low for low, high in pairwise(ends)]


def _highest(whole: TokenPairs, places: Index, likeness: Numbers, tokenizer: Any) -> tuple[Warned, ...]:
    first = np.argsort(-likeness, kind="stable")[:HIGHEST]
    named = []
    for n in first.tolist():
        place = int(places[n])
        texts = (str(tokenizer.decode(side[place][:_BEGINNING].tolist())) for side in (whole.chosen, whole.rejected))
        source = None if whole.source is None else whole.source_names[int(whole.source[place])]
        named.append(Warned(place, int(whole.index[place]) + 1, source, float(likeness[n]), *texts))
    return tuple(named)


def figure(value: float) -> str:
    """A score with four digits."""
    return f"{value:,.4g}"


def row_words(one: Warned) -> str:
    """A pair's row of the data, and which source it is of in a mixture."""
    return f"{one.row:,}" + (f" of {one.source}" if one.source else "")
