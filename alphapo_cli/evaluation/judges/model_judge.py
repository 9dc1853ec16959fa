"""A language model as judge: AlpacaEval 2's protocol and a journal around an inference engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import AlphapoError, say
from alphapo_cli.evaluation.judges import protocol
from alphapo_cli.evaluation.judges.incomplete import raise_incomplete
from alphapo_cli.evaluation.judges.journal import FILE, Answered, Journal
from alphapo_cli.evaluation.judges.judge import Judged, JudgeEngine, JudgingResult, Verdict
from alphapo_cli.evaluation.judges.prompt import load_template
from alphapo_cli.evaluation.judges.protocol import Ask, Pair, TopLogProbs
from alphapo_cli.evaluation.judges.verdict_mass import likeliest, mass_figures, remedy, shortfall, tokens_of
from alphapo_cli.evaluation.schema import JudgeConfig


class ModelJudge:
    """AlpacaEval 2's protocol with the model behind `engine`; `spent`: USD that others took of judge.max_cost."""

    def __init__(self, engine: JudgeEngine, cfg: JudgeConfig, spent: float = 0.0) -> None:
        self.engine, self.cfg, self.spent = engine, cfg, spent
        self.template = load_template(cfg.prompt_file)
        self.annotator = cfg.annotator or f"alphapo_{cfg.name}_{cfg.model}"
        first, second = cfg.verdict_tokens
        self.names = (first, second)

    def identity(self) -> dict[str, Any]:
        """See `Judge.identity`."""
        order = {"seed": self.cfg.seed, "both_orders": self.cfg.both_orders, "annotator": self.annotator}
        return {**self.engine.identity(), "prompt": self.template.text, **order}

    def check(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> None:
        """See `Judge.check`."""
        answered = Answered(folder / FILE)
        unanswered = self._unanswered(self._asks(pairs), answered)
        if unanswered and (asking or len(unanswered) > self.cfg.max_failed):
            self.engine.check(unanswered, self.spent + answered.spent)

    def judge(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> Judged:
        """See `Judge.judge`."""
        asks = self._asks(pairs)
        answered = Answered(folder / FILE)
        unanswered, outcome = self._unanswered(asks, answered), JudgingResult()
        if unanswered and (asking or len(unanswered) > self.cfg.max_failed):
            with Journal(folder) as journal:
                outcome = self.engine.ask(unanswered, self.spent + answered.spent, journal.record)
            answered = Answered(folder / FILE)
            unanswered = self._unanswered(asks, answered)
        if unanswered:
            raise_incomplete(outcome, len(unanswered), sum(map(len, asks.values())), self.cfg.max_failed, folder)
        masses = self._masses(asks, answered)
        low = [key for key, mass in masses.items() if not protocol.is_verdict(mass, self.cfg.min_mass)]
        failed = len(unanswered) + len(low)
        verdicts: list[Verdict | None] = [
            self._verdict(asks.get(row, []), answered, masses) for row in range(len(pairs))
        ]
        counted = any(verdict is not None and verdict.preference is not None for verdict in verdicts)
        if low and (
            failed > self.cfg.max_failed or not counted
        ):  # of an order that is missing, too, nothing may be left
            raise AlphapoError(self._without_verdict(low, answered, len(masses), failed if counted else None, folder))
        if low:
            tops = [tokens_of(answered.rows[key]) for key in low]
            say(f"note: {self._lacking(tops, len(masses))}; they are left out (judge.max_failed)", file=sys.stderr)
        judging = {
            "requests": sum(map(len, asks.values())),
            "failed": failed,
            "without_verdict": len(low),
            "verdict_mass": mass_figures(list(masses.values())),
            "tokens": answered.tokens,
            "cost_usd": answered.spent if answered.priced else None,
        }
        return Judged(verdicts, {"judging": judging})

    def _asks(self, pairs: Sequence[Pair]) -> dict[int, list[Ask]]:
        fingerprint = json.dumps({**self.engine.identity(), "prompt": self.template.text}, sort_keys=True)
        return protocol.asks(
            pairs, self.template, seed=self.cfg.seed, both_orders=self.cfg.both_orders, fingerprint=fingerprint
        )

    @staticmethod
    def _unanswered(asks: Mapping[int, Sequence[Ask]], answered: Answered) -> list[Ask]:
        return [ask for row in asks.values() for ask in row if ask.key not in answered.rows]

    def _masses(self, asks: Mapping[int, Sequence[Ask]], answered: Answered) -> dict[str, float]:
        """Probability of the two names together in every answer, by key."""
        keys = [ask.key for row in asks.values() for ask in row if ask.key in answered.rows]
        return {key: protocol.verdict_mass(tokens_of(answered.rows[key]), self.names) for key in keys}

    def _lacking(self, tops: Sequence[TopLogProbs], total: int) -> str:
        return (
            f"{len(tops)} of {total} answers of the judge {self.cfg.model} are no verdict: "
            f"{shortfall(self.names, self.cfg.min_mass)} (likeliest: {likeliest(tops)})"
        )

    def _without_verdict(
        self, low: Sequence[str], answered: Answered, total: int, failed: int | None, folder: Path
    ) -> str:
        """The error of `low` answers, of `total`, that are no verdict; `failed`: how many to leave out, None: that is all."""
        tops = [tokens_of(answered.rows[key]) for key in low]
        again = "" if failed is None else f"; judge.max_failed={failed} leaves them out"
        return (
            f"{self._lacking(tops, total)}; {remedy(tops, self.cfg, self.engine.thinking())}{again}; "
            f"all answers are kept in {folder / FILE}"
        )

    def _verdict(self, asks: Sequence[Ask], answered: Answered, masses: Mapping[str, float]) -> Verdict:
        if not asks:
            return Verdict(protocol.DRAW, price=0.0, seconds=0.0)
        rows = [answered.rows.get(ask.key) for ask in asks]
        replies = [row for row in rows if row is not None]
        own = [masses[ask.key] for ask in asks if ask.key in masses]
        parsed = [
            protocol.preference(tokens_of(row), row["switched"], self.names)
            for row, mass in zip(replies, own, strict=True)
            if protocol.is_verdict(mass, self.cfg.min_mass)
        ]
        preferences = [x for x in parsed if x is not None]
        complete = len(preferences) == len(asks)  # with both_orders, one order alone is no judgement
        raw = [{"switched": row["switched"], "top_logprobs": row["top_logprobs"]} for row in replies]
        prices = [row["price"] for row in replies if row.get("price") is not None]
        seconds = [row["seconds"] for row in replies if row.get("seconds") is not None]
        return Verdict(
            preference=sum(preferences) / len(preferences) if complete else None,
            raw=raw[0] if len(asks) == 1 and raw else raw or None,
            price=sum(prices) if prices else None,
            seconds=sum(seconds) if seconds else None,
            date=max((str(row["date"]) for row in replies), default=None),
            extra={"preference_mass": min(own)} if own else {},
        )
