"""`alphapo inspect`: what training would see of the data, by the code that training prepares it with.

Everything here is read off the token ids of `ModelAndData.data`, the inputs of a training by the same configuration;
its key, a hash of all of them, is the one in that run's manifest.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPair, TokenPairs
from alphapo_cli.runtime.distributed import start_processes
from alphapo_cli.runtime.statistics.share import share_interval
from alphapo_cli.runtime.threads import threads
from alphapo_cli.stages.inspect_scores import PairScores, pair_scores
from alphapo_cli.stages.train import start_of
from alphapo_cli.stages.training.inputs import InputsBuilder

OPENING, OPENINGS = 4, 6  # tokens of an opening, and how many openings are listed
BINS = 12
OTHERS = "answer to another prompt"
_CONTEXT = 4  # tokens before one that decide how it is written
_UNKNOWN = "\ufffd"  # what decodes from a part of a character


@dataclass(frozen=True)
class Token:
    """One token of a pair: its id, its text, and whether its log-prob is trained on."""

    id: int
    text: str
    trained: bool


@dataclass(frozen=True)
class Shown:
    """One pair: its place among the training pairs, and its parts (prompt, chosen, rejected, ...) as tokens."""

    position: int
    parts: tuple[tuple[str, tuple[Token, ...]], ...]


@dataclass(frozen=True)
class Histogram:
    """Counts of lengths in tokens: `edges` [bins + 1], a bin holds its lower edge and not its upper one."""

    name: str
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LengthBias:
    """How often the chosen answer is the longer one. `interval`: Wilson's, of the share among pairs that differ."""

    pairs: int
    longer: int
    equal: int
    mean_gap: float  # chosen minus rejected, tokens
    share: float | None  # of the pairs whose answers differ in length; None without any
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Inspection:
    """What `alphapo inspect` shows. `table`: (label, value) rows of counts, as training prints them."""

    key: str
    table: tuple[tuple[str, str], ...]
    report: dict[str, Any]
    shown: tuple[Shown, ...]
    histograms: tuple[Histogram, ...]
    bias: LengthBias | None
    openings: dict[str, list[tuple[str, int]]]
    prompts: int  # different ones among the training pairs
    untrained: tuple[str, ...] = ()  # parts beside the prompt that no loss term trains on, and why
    scores: PairScores | None = None  # under the model that training starts from, where they are asked for


def inspect(cfg: TrainConfig, rows: int, *, scores: bool = False) -> Inspection:
    """Prepare the data of a training and describe it.

    Args:
        cfg: the resolved configuration of a training.
        rows: how many training pairs to show, at least 0.
        scores: whether to load the model and score pairs under it.

    Returns:
        The description.

    Raises:
        UsageError: as training refuses model or data; there are no scores of these pairs.
    """
    builder = InputsBuilder()
    start_processes(use_cpu=cfg.trainer.use_cpu)
    with threads(cfg.trainer.threads):
        objective, start = start_of(cfg, builder)
        of_pairs = pair_scores(cfg, start, builder) if scores else None
    train = start.data.train
    # The third answer of a row is then one to another prompt, whose log-prob has no gradient.
    mismatched = objective.needs_mismatched
    learns = 2 if mismatched else objective.sides(train.num_sides)
    names = [OTHERS if mismatched and n == 2 else _side(n) for n in range(len(train.answers))]
    answers = [(name, side.lengths) for name, side in zip(names, train.answers, strict=True)]
    lengths = [("prompt", train.prompt.lengths), *((name, of_side[of_side > 0]) for name, of_side in answers)]
    return Inspection(
        key=start.data.key,
        table=(*start.data.table, ("starts from", start.start)),
        report=start.data.report,
        shown=tuple(shown(train, n, start.tokenizer, names, learns) for n in range(min(rows, len(train)))),
        histograms=tuple(histogram(name, values) for name, values in lengths if len(values)),
        bias=length_bias(train),
        openings={_side(n): openings(side, start.tokenizer) for n, side in enumerate(train.answers[:2])},
        prompts=len(set(train.prompt_keys)),
        untrained=tuple(
            f"{name}: read without a gradient, for the divergence from the reference"
            if name == OTHERS else f"{name}: not read by objective '{objective.name}'"
            for name in names[learns:]
        ),
        scores=of_pairs,
    )  # fmt: skip


def shown(pairs: TokenPairs, position: int, tokenizer: Any, names: Sequence[str], learns: int) -> Shown:
    """A pair with its tokens.

    Args:
        pairs: the pairs.
        position: which of them.
        tokenizer: decodes the ids.
        names: of the answers.
        learns: how many of them, from the first, the objective trains on.

    Returns:
        Prompt (not trained) and every answer that the row has; tokens of other speakers in an answer are not trained.
    """
    pair: TokenPair = pairs[position]
    parts = [("prompt", _tokens(pair.prompt, [False] * len(pair.prompt), tokenizer))]
    for n, ids in enumerate(pair.answers):
        if len(ids):
            turns = pair.turns[n] if pair.turns and len(pair.turns[n]) else None
            own = [True] * len(ids) if turns is None else [turn >= 0 for turn in turns.tolist()]
            trained = own if n < learns else [False] * len(ids)
            parts.append((names[n], _tokens(ids, trained, tokenizer)))
    return Shown(position, tuple(parts))


def _side(n: int) -> str:
    return ("chosen", "rejected")[n] if n < 2 else f"answer {n + 1}"


def _tokens(ids: Any, trained: Sequence[bool], tokenizer: Any) -> tuple[Token, ...]:
    every = [int(i) for i in ids.tolist()]
    return tuple(
        Token(i, _text(every[max(0, n - _CONTEXT) : n], i, tokenizer), learns)
        for n, (i, learns) in enumerate(zip(every, trained, strict=True))
    )


def _text(before: list[int], token: int, tokenizer: Any) -> str:
    """What a token adds to the text of those before it: a tokenizer may write a space between two, or none."""
    start, whole = str(tokenizer.decode(before)), str(tokenizer.decode([*before, token]))
    added = whole.removeprefix(start) if whole.startswith(start) and _UNKNOWN not in whole else ""
    # A part of a character, or an id that decodes to nothing: its entry in the vocabulary.
    return added or str(tokenizer.convert_ids_to_tokens(token) or f"<{token}>")


def histogram(name: str, values: npt.NDArray[np.int64]) -> Histogram:
    """Count lengths in at most `BINS` bins of equal width, a whole number of tokens.

    Args:
        name: what has these lengths.
        values: [n] lengths, at least one.

    Returns:
        The counts; the last bin holds the longest.
    """
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // BINS))
    edges = list(range(low, high + width + 1, width))
    if edges[-1] <= high:
        edges.append(edges[-1] + width)
    counts, _ = np.histogram(values, bins=np.array(edges))
    return Histogram(name, tuple(edges), tuple(int(count) for count in counts))


def bin_words(low: int, high: int) -> str:
    """The lengths that a bin holds, of its lower edge and its upper one."""
    return f"{low:,} to {high - 1:,}" if high - low > 1 else f"{low:,}"


def length_bias(train: TokenPairs) -> LengthBias | None:
    """How often, and by how much, the chosen answer is longer; None for rows of single answers."""
    chosen, rejected = train.chosen.lengths, train.rejected.lengths
    both = (chosen > 0) & (rejected > 0)
    gap = (chosen - rejected)[both]
    if not len(gap):
        return None
    longer, equal = int((gap > 0).sum()), int((gap == 0).sum())
    differ = len(gap) - equal
    share = longer / differ if differ else None
    return LengthBias(
        len(gap), longer, equal, float(gap.mean()), share, None if share is None else share_interval(share, differ)
    )


def openings(side: Any, tokenizer: Any) -> list[tuple[str, int]]:
    """The most frequent openings of the answers of a side, with how many answers begin so."""
    found = Counter(tuple(side[n][:OPENING].tolist()) for n in range(len(side)) if len(side[n]))
    return [(str(tokenizer.decode(list(ids))), count) for ids, count in found.most_common(OPENINGS)]
