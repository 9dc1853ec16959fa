"""Arena-Hard's protocol around an inference engine, and judgements that exist already."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from alphapo_cli.errors import AlphapoError
from alphapo_cli.evaluation.arena_hard.answers import Answer
from alphapo_cli.evaluation.arena_hard.judgments import Game, JudgedPair, Judgments
from alphapo_cli.evaluation.arena_hard.prompt import fill, load_template
from alphapo_cli.evaluation.arena_hard.replies import TextAnswered, TextJournal
from alphapo_cli.evaluation.arena_hard.schema import ArenaHardJudgeConfig
from alphapo_cli.evaluation.arena_hard.verdicts import TIE, read_label, without_thoughts
from alphapo_cli.evaluation.judges.incomplete import raise_incomplete
from alphapo_cli.evaluation.judges.journal import FILE
from alphapo_cli.evaluation.judges.judge import JudgeEngine, JudgingResult
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.storage.hashing import digest

Pairs = Sequence[tuple[Answer, Answer]]  # (baseline's, model's)
SAME = "The two answers are the same text: a tie, without a question to the judge."
_CUT = "cut at judge.max_tokens"
_WITHOUT = "no label"


@dataclass(frozen=True)
class ArenaHardJudged:
    """The judgement of each pair (None: it has none) and further fields of results.json."""

    pairs: list[JudgedPair | None]
    facts: Mapping[str, Any] = field(default_factory=dict)


class ArenaHardJudge(Protocol):
    """Grades every pair in both orders. `annotator`: its name in the results."""

    annotator: str

    def identity(self) -> dict[str, Any]:
        """Everything that verdicts depend on besides the pairs; no secrets."""
        ...

    def check(self, pairs: Pairs, folder: Path, *, asking: bool = True) -> None:
        """Check before any work that judging can succeed; raises UsageError where it cannot."""
        ...

    def judge(self, pairs: Pairs, folder: Path, *, asking: bool = True) -> ArenaHardJudged:
        """Judge every pair; raises AlphapoError where more judgements failed than may, Interrupted after a signal."""
        ...


class Replay:
    """The judgements of a model_judgment file."""

    def __init__(self, judgments: Judgments) -> None:
        self.judgments = judgments
        self.annotator = judgments.judge or "unknown"

    def identity(self) -> dict[str, Any]:
        """See `ArenaHardJudge.identity`."""
        rows = [[row.uid, row.first.label, row.second.label] for row in self.judgments.rows]
        return {"annotations": digest(rows), "annotator": self.annotator}

    def check(self, pairs: Pairs, folder: Path, *, asking: bool = True) -> None:
        """Nothing: the file was checked against the answers when it was read."""

    def judge(self, pairs: Pairs, folder: Path, *, asking: bool = True) -> ArenaHardJudged:
        """See `ArenaHardJudge.judge`."""
        known = self.judgments.by_uid()
        return ArenaHardJudged([known.get(base.uid) for base, _ in pairs])


class TextJudge:
    """A language model that writes its judgement and ends with a label, asked in both orders.

    judge.max_tokens is no part of a judgement's identity: a larger one asks again only for texts that were cut.

    Args:
        engine: runs the model.
        cfg: the judge settings.
        annotator: the judge's name in the results.
        version: of the rules by which a label is read.
        pilot: answers after which a judge that never gave a label is asked for nothing more, as texts cost money; 0: all
            are asked for.
    """

    def __init__(
        self, engine: JudgeEngine, cfg: ArenaHardJudgeConfig, annotator: str, version: str, pilot: int = 0
    ) -> None:
        self.engine, self.cfg, self.annotator, self.version, self.pilot = engine, cfg, annotator, version, pilot
        self.template = load_template(cfg.prompt_file)

    def identity(self) -> dict[str, Any]:
        """See `ArenaHardJudge.identity`."""
        return {**self.engine.identity(), "prompt": self.template.text, "annotator": self.annotator}

    def check(self, pairs: Pairs, folder: Path, *, asking: bool = True) -> None:
        """See `ArenaHardJudge.check`."""
        answered = TextAnswered(folder / FILE)
        unanswered = self._unanswered(self._asks(pairs), answered)
        if unanswered and (asking or len(unanswered) > self.cfg.max_failed):
            self.engine.check(unanswered, answered.spent)

    def judge(self, pairs: Pairs, folder: Path, *, asking: bool = True) -> ArenaHardJudged:
        """See `ArenaHardJudge.judge`; an answer without a label is a failed judgement, and is not asked for again."""
        asks = self._asks(pairs)
        answered, outcome = self._answers(asks, folder, asking=asking)
        unanswered = self._unanswered(asks, answered)
        if unanswered:
            raise_incomplete(outcome, len(unanswered), len(asks), self.cfg.max_failed, folder)
        labels = self._labels(asks, answered)
        without = [key for key, label in labels.items() if label is None]
        graded = Counter(ask.row for ask in asks if labels.get(ask.key) is not None)
        needed = 1 if self.version == "v0.1" else 2  # games of a pair, for it to count
        counted = any(n >= needed for n in graded.values()) or len({ask.row for ask in asks}) < len(pairs)
        if without and (len(unanswered) + len(without) > self.cfg.max_failed or not counted):
            self._raise_without_verdict(without, answered, len(asks), len(unanswered), folder, counted=counted)
        games: dict[tuple[int, bool], Game] = {}
        for ask in asks:
            if ask.key in labels:
                games[ask.row, ask.switched] = Game(labels[ask.key], str(answered.rows[ask.key]["text"]), _shown(ask))
        judging = {
            "requests": len(asks),
            "failed": len(unanswered) + len(without),
            "without_verdict": len(without),
            "same_answers": sum(_same(pair) for pair in pairs),
            "tokens": answered.tokens,
            "cost_usd": answered.spent if answered.priced else None,
        }
        return ArenaHardJudged(
            [self._pair(row, pair, games) for row, pair in enumerate(pairs)], {"judging": judging}
        )  # fmt: skip

    def _asks(self, pairs: Pairs) -> list[Ask]:
        """Two questions for each pair; `switched`: the model's answer is shown as A. None for equal answers."""
        fingerprint = json.dumps({**self.engine.identity(), "prompt": self.template.text}, sort_keys=True)
        asks = []
        for row, (base, own) in enumerate(pairs):
            if _same((base, own)):
                continue
            for switched in (False, True):
                shown = (own.text, base.text) if switched else (base.text, own.text)
                parts = ["arena_hard", fingerprint, base.instruction, base.text, own.text, switched]
                key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
                asks.append(Ask(row, switched, fill(self.template, base.instruction, *shown), key))
        return asks

    def _answers(self, asks: Sequence[Ask], folder: Path, *, asking: bool) -> tuple[TextAnswered, JudgingResult]:
        """Ask for what is missing, at first for a few; the journal afterwards, and how that ended."""
        answered, outcome = TextAnswered(folder / FILE), JudgingResult()
        unanswered = self._unanswered(asks, answered)
        if not unanswered or not (asking or len(unanswered) > self.cfg.max_failed):
            return answered, outcome
        labels = self._labels(asks, answered)
        first = 0 if any(labels.values()) else max(self.pilot - len(labels), 0)
        with TextJournal(folder, self.cfg.max_tokens) as journal:
            if first:
                outcome = self.engine.ask(unanswered[:first], answered.spent, journal.record)
                answered = TextAnswered(folder / FILE)
                labels = self._labels(asks, answered)
            mute = len(labels) >= self.pilot > 0 and not any(labels.values()) and len(labels) > self.cfg.max_failed
            if mute and len(unanswered) > first:
                self._raise_without_verdict(
                    list(labels), answered, len(asks), len(asks) - len(labels), folder, counted=False
                )
            if outcome.stopped is None and not outcome.interrupted and unanswered[first:]:
                rest = self.engine.ask(unanswered[first:], answered.spent, journal.record)
                outcome = JudgingResult({**outcome.failed, **rest.failed}, rest.stopped, rest.interrupted)
        return TextAnswered(folder / FILE), outcome

    def _labels(self, asks: Sequence[Ask], answered: TextAnswered) -> dict[str, str | None]:
        """The label in every answer that stands, by key."""
        missing = {ask.key for ask in self._unanswered(asks, answered)}
        return {ask.key: self._label(answered.rows[ask.key]) for ask in asks if ask.key not in missing}

    def _unanswered(self, asks: Sequence[Ask], answered: TextAnswered) -> list[Ask]:
        return [ask for ask in asks if ask.key not in answered.rows or self._may_grow(answered.rows[ask.key])]

    def _may_grow(self, row: Mapping[str, Any]) -> bool:
        """Whether a text was cut at a lower limit than the present one."""
        return _cut(row) and int(row.get("max_tokens") or 0) < self.cfg.max_tokens

    def _label(self, row: Mapping[str, Any]) -> str | None:
        """The verdict in an answer; a text that was cut may have named a label on its way, and has none."""
        return None if _cut(row) else read_label(without_thoughts(str(row["text"])), self.version)

    def _pair(self, row: int, pair: tuple[Answer, Answer], games: Mapping[tuple[int, bool], Game]) -> JudgedPair:
        if _same(pair):
            return JudgedPair(pair[0].uid, Game(TIE, SAME), Game(TIE, SAME))
        return JudgedPair(pair[0].uid, games.get((row, False), Game(None)), games.get((row, True), Game(None)))

    def _raise_without_verdict(
        self, keys: Sequence[str], answered: TextAnswered, total: int, unanswered: int, folder: Path, *, counted: bool
    ) -> None:
        """`counted`: whether anything would be left to count without `keys`."""
        rows = [answered.rows[key] for key in keys]
        reasons = Counter(_CUT if _cut(row) else _WITHOUT for row in rows)
        why = ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common())
        ends = " ".join(str(rows[0]["text"]).split())[-60:]
        more = "a larger judge.max_tokens" if reasons[_CUT] else "a judge.prompt_file that asks for [[A>B]]"
        none = len(keys) == total - unanswered
        left_out = f"; judge.max_failed={len(keys) + unanswered} leaves them out" if counted else ""
        rest = f"; the other {unanswered} were not asked for" if none and unanswered else ""
        raise AlphapoError(
            f"{len(keys)} of {total} answers of the judge {self.cfg.model} are no verdict ({why}; the first ends with "
            f"{ends!r}){rest}; type {more}, or another judge.model{left_out}; all answers are kept in {folder / FILE}"
        )


def _shown(ask: Ask) -> str:
    """What the judge was shown, as a single text; the system message holds no answer."""
    return "\n\n".join(message.content for message in ask.messages if message.role != "system")


def _cut(row: Mapping[str, Any]) -> bool:
    return row.get("finish") == "length"


def _same(pair: tuple[Answer, Answer]) -> bool:
    return pair[0].text == pair[1].text
