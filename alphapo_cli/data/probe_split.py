"""The held-out set of the displacement probe: chosen by prompt hash, never by a seed or by file order.

The same data give the same probe set in every run, whatever its seed, sampler or file order; added pairs change few of
its members. All pairs of one prompt go to one side, so that no probe prompt is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alphapo_cli.errors import UsageError

DEFAULT_PROBE_PAIRS = 256


def probe_size(wanted: int | None, available: int) -> int:
    """Number of `available` pairs to hold out: `wanted` but at most half; by default 256 but at most a tenth."""
    if wanted is None:
        return min(DEFAULT_PROBE_PAIRS, max(1, available // 10))
    return min(wanted, max(1, available // 2))


def hold_out(
    prompt_keys: Sequence[str],
    content_keys: Sequence[str],
    wanted: int | None,
    sources: Sequence[int] | npt.NDArray[np.int64] | None = None,
) -> tuple[list[int], list[int]]:
    """Split pairs into training and probe set.

    Prompts are held out in order of their hash, each with all of its pairs, skipping those that no longer fit. Of a
    mixture every source has its part of the probe set, the same whatever the weights.

    Args:
        prompt_keys: [n] prompt hashes.
        content_keys: [n] hashes of all of a pair's content, which order the pairs of one prompt.
        wanted: size of the probe set, see `probe_size`.
        sources: [n] the source of each pair; None: they are one.

    Returns:
        Indices of the training pairs (in source order) and of the probe pairs (in order of prompt hash).

    Raises:
        UsageError: no pair would be left to train on.
    """
    of = [0] * len(prompt_keys) if sources is None else [int(source) for source in sources]
    left = _parts(probe_size(wanted, len(prompt_keys)), of, wanted is None)
    groups: dict[str, list[int]] = {}
    for position in ordered(prompt_keys, content_keys):
        groups.setdefault(prompt_keys[position], []).append(position)
    probe: list[int] = []
    for group in groups.values():
        if len(group) <= left[of[group[0]]]:
            left[of[group[0]]] -= len(group)
            probe += group
    if not probe:  # every prompt has more pairs than the probe set may hold
        probe = min(groups.values(), key=len)
    held_out = set(probe)
    train = [position for position in range(len(prompt_keys)) if position not in held_out]
    if not train:
        raise UsageError(
            f"no pair is left to train on: the {len(probe)} usable pairs share one prompt, which the probe needs; add "
            "pairs with other prompts or set data.eval_path (hub: data.eval_split)"
        )
    return train, probe


def _parts(size: int, sources: Sequence[int], at_least_one: bool) -> list[int]:
    """The number of probe pairs of each source: by its number of pairs, at most half of them."""
    counts = [sources.count(source) for source in range(max(sources) + 1)]
    if len(counts) == 1:
        return [size]
    parts = [size * count // len(sources) for count in counts]
    if at_least_one:
        parts = [max(1, part) for part in parts]
    return [min(part, count // 2) for part, count in zip(parts, counts, strict=True)]


def ordered(prompt_keys: Sequence[str], content_keys: Sequence[str]) -> list[int]:
    """Indices in order of prompt hash, then of content hash."""
    return sorted(
        range(len(prompt_keys)), key=lambda position: (prompt_keys[position], content_keys[position], position)
    )
