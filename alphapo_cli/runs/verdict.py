"""What a training did, in words: better or worse than its start and by which reading, and what its curves say.

Read off metrics.jsonl alone, so that a resumed run says what an uninterrupted one says. Without a win rate nothing is
called better: a margin or an accuracy that grows is no quality (docs/findings.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.runtime.statistics.share import share_interval
from alphapo_cli.runtime.wording import counted, rate, who_falls
from alphapo_cli.storage.strict_json import read_file

WIN_RATE = "glassbox/true_win_rate"
BETTER, WORSE, UNCLEAR, NOT_MEASURED = "better", "worse", "no evidence either way", "not measured"
UNMEASURED = "quality not measured: no win rate was taken, and neither margin nor accuracy stands in for one"
FEW = 100  # answers below which an interval is wider than 20 points
FEW_PAIRS = 10  # below which even a share of 0 or 1 leaves a quarter of all pairs open
# Where the table "which curves to watch" calls a curve bad.
NEARLY_ALL, MOST, REPEATED, CLIPPED = 0.9, 0.5, 0.2, 0.5


@dataclass(frozen=True)
class Verdict:
    """The judgement on a run.

    Attributes:
        outcome: better, worse, no evidence either way, or not measured.
        sentences: what to tell the user, in order of weight.
        win_rate: of the last reading, 0 to 1; None without one.
        interval: its 95 % interval.
        n: answers that it is the mean of.
        best_step: the step of the highest reading; None without a win rate.
        clipped: share of the logged steps whose gradient was clipped; None where none was logged.
    """

    outcome: str
    sentences: tuple[str, ...]
    win_rate: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    best_step: int | None = None
    clipped: float | None = None

    @property
    def as_json(self) -> dict[str, Any]:
        """The verdict for summary.json."""
        return asdict(self)


def sampled_answers(run: Path) -> int | None:
    """How many answers the probe of a run samples, from its samples/reference.json; None without that."""
    try:
        found = json.loads(read_file(run / "samples" / "reference.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return len(found) if isinstance(found, list) else None


def verdict(
    rows: Sequence[Mapping[str, Any]], *, answers: int | None, pairs: int | None, max_grad_norm: float
) -> Verdict:
    """Judge a run that is over.

    Args:
        rows: of metrics.jsonl.
        answers: how many answers a win rate is the mean of; None without samples.
        pairs: pairs of the probe.
        max_grad_norm: the norm to which gradients were clipped; 0: not at all.

    Returns:
        The verdict.
    """
    readings = [row for row in rows if _number(row, WIN_RATE) is not None and row.get("step")]
    probes = [row for row in rows if _number(row, "displacement/share_chosen_down") is not None]
    clipped = _clipped(rows, max_grad_norm)
    sentences: list[str] = []
    outcome, fell = NOT_MEASURED, False
    win, interval, best = None, None, None
    if readings and answers:
        win = float(readings[-1][WIN_RATE])
        interval = _interval(readings[-1], answers)
        outcome = BETTER if interval[0] > 0.5 else WORSE if interval[1] < 0.5 else UNCLEAR
        sentences.append(_against_start(outcome, win, answers, interval))
        top = max(readings, key=lambda row: float(row[WIN_RATE]))
        best, highest = int(top["step"]), float(top[WIN_RATE])
        above = _interval(top, answers)
        fell = above[0] > interval[1]
        if fell:
            sentences.append(
                f"step {best} was better than the last: true win rate {rate(highest, answers, above)} there"
                + (", while the reward margin went on growing: over-optimisation" if _grew(probes, best) else "")
            )
    else:
        sentences.append(UNMEASURED)
    if probes:
        sentences.append(_curves(probes, pairs, answers))
        sentences += _foretold(probes[-1])
    if clipped is not None and clipped > CLIPPED:
        logged = sum(_number(row, "train/grad_norm") is not None for row in rows)
        sentences.append(
            f"the gradient was clipped at {rate(clipped, None)} of {counted(logged, 'logged step')}: "
            "only its direction counts there, and what alpha and beta do to its size is lost (trainer.max_grad_norm)"
        )
    return Verdict(outcome, tuple(sentences), win, interval, answers if readings else None, best, clipped)


def beside_evaluation(sentences: Sequence[str]) -> list[str]:
    """What is still to be said of a training once an evaluation has a win rate of its model.

    Args:
        sentences: of the training's verdict.

    Returns:
        The same without the one that no win rate was taken.
    """
    return [sentence for sentence in sentences if sentence != UNMEASURED]


def _interval(row: Mapping[str, Any], answers: int) -> tuple[float, float]:
    """The interval that was recorded with a win rate; that of as many wins and losses where none was."""
    low, high = _number(row, f"{WIN_RATE}/low"), _number(row, f"{WIN_RATE}/high")
    return share_interval(float(row[WIN_RATE]), answers) if low is None or high is None else (low, high)


def _against_start(outcome: str, win: float, answers: int, interval: tuple[float, float]) -> str:
    words = f"true win rate {rate(win, answers, interval)}, against the model before training"
    if outcome == UNCLEAR:
        why = f"too few answers to tell (n = {answers})" if answers < FEW else "no evidence either way"
        return f"{why}: {words}"
    return f"{outcome} than the start: {words}"


def _curves(probes: Sequence[Mapping[str, Any]], pairs: int | None, answers: int | None) -> str:
    """One sentence of the table "which curves to watch", the worst sign first."""
    first, last = probes[0], probes[-1]
    down = float(last["displacement/share_chosen_down"])
    both = _number(last, "displacement/quadrant/down_down") or 0.0
    moved = _number(last, "displacement/chosen")
    mean = "" if moved is None else f", mean change {moved:+.2g} nats per token"
    repeated = _number(last, "samples/repetition")
    was, now = _number(first, "entropy/chosen"), _number(last, "entropy/chosen")
    if repeated is not None and repeated > REPEATED:
        of = "" if answers is None else f" in {answers:,} answers"
        return f"the sampled answers repeat themselves: {rate(repeated, None)} of their 4-grams{of}"
    if pairs is not None and pairs < FEW_PAIRS:
        of = f"{rate(down, pairs)} pair{'' if pairs == 1 else 's'}"
        return f"too few pairs to read the curves by: chosen answers became less likely in {of}{mean}"
    if down >= NEARLY_ALL:
        return f"nearly every chosen answer became less likely, {rate(down, pairs)} pairs{mean}"
    if both > MOST:
        return f"both answers became less likely in {rate(both, pairs)} pairs: the model forgets both"
    if was and now is not None and now < 0.25 * was:
        return f"the distributions became sharp: entropy on chosen answers {was:.2f} before, {now:.2f} nats now"
    return f"chosen answers became less likely in {rate(down, pairs)} pairs{mean}: no curve warns"


def _foretold(last: Mapping[str, Any]) -> list[str]:
    """What CHES foretold, where the pairs were scored before training."""
    rho, low, high, n = (_number(last, f"foretold/{key}") for key in ("ches", "ches/low", "ches/high", "pairs"))
    return [] if rho is None or low is None or high is None else [who_falls(rho, (low, high), int(n or 0))]


def _grew(probes: Sequence[Mapping[str, Any]], since: int) -> bool:
    """Whether the reward margin is larger at the end than it was at a step."""
    margins = [_number(row, "rewards/margins") for row in probes if row.get("step", 0) >= since]
    known = [margin for margin in margins if margin is not None]
    return len(known) > 1 and known[-1] > known[0]


def _clipped(rows: Sequence[Mapping[str, Any]], limit: float) -> float | None:
    norms = [norm for row in rows if (norm := _number(row, "train/grad_norm")) is not None]
    return sum(norm > limit for norm in norms) / len(norms) if norms and limit > 0 else None


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
