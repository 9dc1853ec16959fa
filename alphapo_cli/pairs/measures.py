"""Numbers of pairs with settings of their own, which a recipe defines under a name for `select` and `order`.

    by              settings                      the number
    bayes           margins, low, high            two or more margins as one probability (BeeS)
    d_optimal       margin, beta, gamma, count    position in a greedy D-optimal order, from 0 (ADPO)
    near_duplicate  words (5)                     largest Jaccard similarity of the prompt to an earlier one
    ngrams          path, words (13)              word n-grams that the prompt shares with a file of prompts

"Earlier" is by the hash of the prompt, so that no number depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.data.select import RANDOM
from alphapo_cli.data.sources import read_files
from alphapo_cli.errors import UsageError, nearest
from alphapo_cli.pairs.rules import Pair

Numbers = Mapping[str, Sequence[float]]
Measure = Callable[[Sequence[Pair], Mapping[str, Any], Numbers], list[float]]
# Settings of each measure: the required ones, and the others with their defaults.
SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "bayes": (("margins", "low", "high"), {}),
    "d_optimal": (("margin", "gamma"), {"beta": 0.1, "count": None}),
    "near_duplicate": ((), {"words": 5}),
    "ngrams": (("path",), {"words": 13}),
}
_PROMPTS = ("instruction", "prompt", "question", "text")


def check(measures: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check the settings of measures.

    Args:
        measures: name -> settings, `by` among them.
        known: names of the numbers that there are without measures.

    Raises:
        UsageError: a measure is unknown, lacks a setting or has one too many, or names a number or file that is not there.
    """
    for name, cfg in measures.items():
        where = f"measures.{name}"
        kind = cfg.get("by") if isinstance(cfg, Mapping) else None
        if kind not in SETTINGS:
            raise UsageError(
                f"{where}.by={kind}: no such measure{nearest(str(kind), SETTINGS)} ({', '.join(SETTINGS)})"
            )
        required, optional = SETTINGS[kind]
        if name in known or name == RANDOM:
            raise UsageError(f"{where}: there is a number {name} already; give the measure another name")
        missing = [key for key in required if cfg.get(key) is None]
        if missing:
            raise UsageError(f"{where} ({kind}): {where}.{missing[0]} is missing; set it")
        extra = [key for key in cfg if key not in ("by", *required, *optional)]
        if extra:
            raise UsageError(f"{where}.{extra[0]}: {kind} has {', '.join((*required, *optional))}")
        _check_types(cfg, where)
        for number in [*(cfg.get("margins") or []), *([cfg["margin"]] if "margin" in cfg else [])]:
            if number not in known:
                raise UsageError(
                    f"{where}: no number {number}{nearest(str(number), known)} (there are: {', '.join(known)})"
                )
        if kind == "bayes" and not len(cfg["margins"]) == len(cfg["low"]) == len(cfg["high"]):
            raise UsageError(f"{where}: margins, low and high need as many entries as one another")
        if kind == "bayes" and not all(a < b for a, b in zip(cfg["low"], cfg["high"], strict=True)):
            raise UsageError(f"{where}: every entry of low must be below that of high")
        if kind == "ngrams" and not Path(cfg["path"]).expanduser().is_file():
            raise UsageError(f"{where}.path={cfg['path']}: no such file")


# Key -> whether it is a list, the type of its values, and what they are above (None: any).
_KINDS: dict[str, tuple[bool, type | tuple[type, ...], int | None]] = {
    "margins": (True, str, None), "low": (True, (int, float), None), "high": (True, (int, float), None),
    "margin": (False, str, None), "beta": (False, (int, float), 0), "gamma": (False, (int, float), 0),
    "count": (False, int, 0), "words": (False, int, 0), "path": (False, str, None),
}  # fmt: skip


def _check_types(cfg: Mapping[str, Any], where: str) -> None:
    for key, value in cfg.items():
        if key == "by" or value is None:
            continue
        many, kind, above = _KINDS[key]
        values = value if many and isinstance(value, list | tuple) else [value]
        what = {str: "text", int: "whole number"}.get(kind, "finite number")  # type: ignore[arg-type]
        right = all(
            isinstance(one, kind) and not isinstance(one, bool) and (not isinstance(one, float) or math.isfinite(one))
            for one in values
        )
        if not right or (many and not isinstance(value, list | tuple)):
            raise UsageError(f"{where}.{key}={value}: must be {f'a list of {what}s' if many else f'a {what}'}")
        if above is not None and not value > above:
            raise UsageError(f"{where}.{key}={value}: must be above {above}")


def needed(cfg: Mapping[str, Any]) -> list[str]:
    """Names of the numbers that a measure reads."""
    return [*(cfg.get("margins") or []), *([cfg["margin"]] if "margin" in cfg else [])]


def measure(pairs: Sequence[Pair], cfg: Mapping[str, Any], numbers: Numbers) -> list[float]:
    """The number of every pair, for checked settings."""
    settings = {**SETTINGS[cfg["by"]][1], **{key: value for key, value in cfg.items() if value is not None}}
    return _MEASURES[cfg["by"]](pairs, settings, numbers)


def bayes(pairs: Sequence[Pair], cfg: Mapping[str, Any], numbers: Numbers) -> list[float]:
    """P = prod p_i / (prod p_i + prod (1 - p_i)), p_i = (clip(m_i, L_i, U_i) - L_i) / (U_i - L_i)."""

    def one(margins: Sequence[float]) -> float:
        if any(map(math.isnan, margins)):
            return math.nan
        shares = [
            (min(max(m, low), high) - low) / (high - low)
            for m, low, high in zip(margins, cfg["low"], cfg["high"], strict=True)
        ]
        yes, no = math.prod(shares), math.prod(1 - share for share in shares)
        return yes / (yes + no) if yes + no > 0 else 0.5  # one margin says certainly yes, another certainly no

    return [one(margins) for margins in zip(*(numbers[name] for name in cfg["margins"]), strict=True)]


def d_optimal(pairs: Sequence[Pair], cfg: Mapping[str, Any], numbers: Numbers) -> list[float]:
    """Positions in the greedy order argmax v' H^-1 v (ADPO: arXiv 2503.01076).

    v = beta sqrt(mu (1 - mu)) (phi_chosen - phi_rejected) with mu = sigmoid(margin); H begins as gamma I and gains v v' for
    every pair taken, its inverse by Sherman and Morrison.

    Returns:
        [n] positions, NaN for pairs that are not taken or have no features.
    """
    margins = np.asarray(numbers[cfg["margin"]], dtype=np.float64)
    with_features = [p.chosen.features is not None and p.rejected.features is not None for p in pairs]
    usable = [i for i in range(len(pairs)) if with_features[i] and math.isfinite(margins[i])]
    found = [math.nan] * len(pairs)
    if not usable:
        return found
    sides = [[pairs[i].chosen.features, pairs[i].rejected.features] for i in usable]
    phi = np.asarray([chosen for chosen, _ in sides], np.float64) - np.asarray(
        [other for _, other in sides], np.float64
    )
    mu = 1 / (1 + np.exp(-margins[usable]))
    vectors = cfg["beta"] * np.sqrt(mu * (1 - mu))[:, None] * phi
    inverse = np.eye(vectors.shape[1]) / cfg["gamma"]
    left = sorted(range(len(usable)), key=lambda i: pairs[usable[i]].key)
    for position in range(min(cfg["count"] or len(left), len(left))):
        rows = vectors[left]
        gains = np.einsum("nd,de,ne->n", rows, inverse, rows)
        best = left.pop(int(np.argmax(gains)))
        found[usable[best]] = float(position)
        v = inverse @ vectors[best]
        inverse -= np.outer(v, v) / (1 + float(vectors[best] @ v))
    return found


def near_duplicate(pairs: Sequence[Pair], cfg: Mapping[str, Any], numbers: Numbers) -> list[float]:
    """The largest Jaccard similarity of the word n-grams of a prompt to those of an earlier prompt, 0 for the first."""
    prompts = {pair.candidates.key: grams(pair.candidates.text, cfg["words"]) for pair in pairs}
    where: dict[tuple[str, ...], list[str]] = {}
    similarity: dict[str, float] = {}
    for key in sorted(prompts):
        shared: dict[str, int] = {}
        for gram in prompts[key]:
            for other in where.setdefault(gram, []):
                shared[other] = shared.get(other, 0) + 1
            where[gram].append(key)
        sizes = {other: len(prompts[key]) + len(prompts[other]) - n for other, n in shared.items()}
        similarity[key] = max((n / sizes[other] for other, n in shared.items()), default=0.0)
    return [similarity[pair.candidates.key] for pair in pairs]


def ngrams(pairs: Sequence[Pair], cfg: Mapping[str, Any], numbers: Numbers) -> list[float]:
    """Number of word n-grams that a prompt shares with the prompts of a file, such as AlpacaEval's."""
    theirs: set[tuple[str, ...]] = set()
    for row in read_files([Path(cfg["path"]).expanduser()], None):
        texts = [row.values[name] for name in _PROMPTS if isinstance(row.values.get(name), str)]
        theirs |= {gram for text in texts for gram in grams(text, cfg["words"])}
    own = {pair.candidates.key: pair.candidates.messages for pair in pairs}
    counts = {
        key: len({gram for message in messages for gram in grams(str(message["content"]), cfg["words"])} & theirs)
        for key, messages in own.items()
    }
    return [float(counts[pair.candidates.key]) for pair in pairs]


def grams(text: str, words: int) -> set[tuple[str, ...]]:
    """The word n-grams of a text, letters and digits alone; a shorter text is one n-gram."""
    found = "".join(char if char.isalnum() else " " for char in text.lower()).split()
    if not found:
        return set()
    return {tuple(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


_MEASURES: dict[str, Measure] = {
    "bayes": bayes, "d_optimal": d_optimal, "near_duplicate": near_duplicate, "ngrams": ngrams
}  # fmt: skip
