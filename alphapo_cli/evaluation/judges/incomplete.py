"""The error of a judging that did not answer every question."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from alphapo_cli.errors import AlphapoError, Interrupted
from alphapo_cli.evaluation.judges.journal import FILE
from alphapo_cli.evaluation.judges.judge import JudgingResult


def raise_incomplete(outcome: JudgingResult, unanswered: int, total: int, max_failed: int, folder: Path) -> None:
    """Raise the error of an incomplete judging, unless no more judgements failed than may.

    Args:
        outcome: how querying ended.
        unanswered: questions without an answer.
        total: all questions.
        max_failed: judgements that may fail and be left out.
        folder: the directory of the journal.

    Raises:
        Interrupted: a signal ended it.
        AlphapoError: too many judgements failed, or the rest was not asked for.
    """
    kept = f"{total - unanswered} of {total} judgements are kept in {folder / FILE}"
    if outcome.interrupted:
        raise Interrupted(f"interrupted: {kept}; the same line asks for the rest")
    none = unanswered == total  # with all left out there would be nothing to count, and the reasons would not be told
    if outcome.stopped is None and unanswered <= max_failed and not none:
        return
    parts, again = [], "the same line asks for the rest"
    # A permanent refusal would be repeated.
    if outcome.stopped is None and not none:
        again += f" (judge.max_failed={unanswered} leaves them out)"
    if outcome.failed:
        reasons = Counter(outcome.failed.values()).most_common(3)
        more = len(set(outcome.failed.values())) - len(reasons)
        listed = "; ".join(f"{n} x {reason}" for reason, n in reasons) + (f"; {more} other reasons" if more else "")
        parts.append(f"{len(outcome.failed)} of {total} judgements failed ({listed})")
    if outcome.stopped is not None:
        parts.append(f"{unanswered - len(outcome.failed)} were not asked for: {outcome.stopped}")
    raise AlphapoError(f"{'; '.join(parts)}; {kept}; {again}")
