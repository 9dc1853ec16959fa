"""Which pairs the displacement probe measures: chosen by the content of their prompts, never by a seed or by order.

The same data give the same probe in every run, whatever its seed, sampler, or the order of the file; adding pairs
moves few of them. All pairs of one prompt go to one side, so that no probe prompt is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

from alphapo_cli.errors import UsageError

DEFAULT_PROBE_PAIRS = 256


def probe_size(wanted: int | None, available: int) -> int:
    """How many of `available` pairs are held out: `wanted` but at most half; by default 256 but at most a tenth."""
    if wanted is None:
        return min(DEFAULT_PROBE_PAIRS, max(1, available // 10))
    return min(wanted, max(1, available // 2))


def hold_out(
    prompt_keys: Sequence[str], content_keys: Sequence[str], wanted: int | None
) -> tuple[list[int], list[int]]:
    """Places of the training pairs (in source order) and of the probe pairs (in order of prompt hash).

    Prompts are taken in order of their hash, each with all of its pairs, passing over those that no longer fit. Raises
    UsageError when nothing would be left to train on.
    """
    size = probe_size(wanted, len(prompt_keys))
    groups: dict[str, list[int]] = {}
    for place in ordered(prompt_keys, content_keys):
        groups.setdefault(prompt_keys[place], []).append(place)
    probe: list[int] = []
    for group in groups.values():
        if len(probe) + len(group) <= size:
            probe += group
    if not probe:  # every prompt has more pairs than the probe should hold
        probe = min(groups.values(), key=len)
    taken = set(probe)
    train = [place for place in range(len(prompt_keys)) if place not in taken]
    if not train:
        raise UsageError(
            f"no pair is left to train on: the {len(probe)} usable pairs share one prompt, which the probe needs; add "
            "pairs with other prompts or set data.eval_path (hub: data.eval_split)"
        )
    return train, probe


def ordered(prompt_keys: Sequence[str], content_keys: Sequence[str]) -> list[int]:
    """Places in order of prompt hash, then of content."""
    return sorted(range(len(prompt_keys)), key=lambda place: (prompt_keys[place], content_keys[place], place))
