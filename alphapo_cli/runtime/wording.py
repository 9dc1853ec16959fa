"""Figures as a reader meets them: rates with interval and n, sizes, ages. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.runtime.statistics.share import share_interval

USUAL = 0.95  # the confidence of intervals that name none
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def rate(share: float, n: float | None, interval: tuple[float, float] | None = None, confidence: float = USUAL) -> str:
    """A rate as `31 % [25, 37], n = 256`, or `31 % [26, 36], n = 256 (90 % interval)`.

    Args:
        share: 0 to 1.
        n: how many outcomes it is the mean of; None where that is not known.
        interval: its interval, 0 to 1; None: that of wins and losses at 95 %, where n is known.
        confidence: of the interval that is given; another than 95 % is said.

    Returns:
        The text.
    """
    level = "" if interval is None or confidence == USUAL else f" ({per_cent(confidence)} interval)"
    if interval is None and n:
        interval = share_interval(share, n)
    ends = f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else ""
    return f"{100 * share:.0f} %{ends}" + (f", n = {n:,.0f}" if n else "") + level


def per_cent(confidence: float) -> str:
    """A confidence as `95 %` or `99.9 %`: with all its digits, so that it is never rounded up to certainty."""
    return f"{100 * confidence:.10g} %"


def level(outcomes: Iterable[Mapping[str, Any]]) -> str:
    """Confidence of the intervals of evaluations and what they are over, as `95 % over instructions`.

    Args:
        outcomes: objects with `confidence` and `intervals_over`; those of earlier versions have neither.

    Returns:
        The text, with every confidence that occurs.
    """
    found = list(outcomes) or [{}]
    levels = sorted({per_cent(one.get("confidence", USUAL)) for one in found})
    over = dict.fromkeys(str(one.get("intervals_over", "instructions")) for one in found)
    return f"{' or '.join(levels)} over {' or '.join(over)}"


def counted(n: int, noun: str) -> str:
    """A number with its noun, `1 instruction` or `1,024 instructions`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def correlation(rho: float, interval: tuple[float, float]) -> str:
    """A correlation as `-0.41 [-0.50, -0.31]`."""
    return f"{rho:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def who_falls(rho: float, interval: tuple[float, float], pairs: int) -> str:
    """Whether CHES has foretold which chosen answers fall, in a sentence.

    Args:
        rho: rank correlation of CHES with the displacement of the chosen answers; below 0: those that it warns of fell.
        interval: its 95 % interval.
        pairs: number of pairs.

    Returns:
        `CHES predicts who falls: rho = ...`, or that it does not.
    """
    if interval[1] < 0:
        said = "CHES predicts who falls"
    elif interval[0] > 0:
        said = "CHES predicts who falls the wrong way round (pairs that it warns of fell less)"
    else:
        said = "CHES does not predict who falls"
    return f"{said}: rho = {correlation(rho, interval)}, n = {pairs:,}"


def size(count: float) -> str:
    """A number of bytes as `1.4 GiB`."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """A time span in its largest unit but one, as `3 min`, `5 h` or `12 days`."""
    for length, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{max(0, int(seconds))} s"


def parse_size(text: str, option: str) -> int:
    """Parse a size such as `80GB`, `24GiB` or `512M`: GB is 10^9, GiB 2^30; without a unit, bytes.

    Args:
        text: the size.
        option: where it was typed, for the message.

    Returns:
        Bytes.

    Raises:
        UsageError: it is none.
    """
    units = {"": 1, "B": 1}
    for power, letter in enumerate("KMGT", 1):
        units |= {letter: 1000**power, f"{letter}B": 1000**power, f"{letter}IB": 1024**power}
    digits = text.strip().rstrip("BIKMGTbikmgt ").strip()
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        count = float(digits) * units[unit]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{option} {text}: not a size; write 80GB, 24GiB or a number of bytes") from error
    if not 0 < count < 2**63:
        raise UsageError(f"{option} {text}: must be above 0 bytes")
    return int(count)
