"""A judge that is a language model: the protocol and the journal around an engine that answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import AlphapoError, Interrupted
from alphapo_cli.evaluation.judges import protocol
from alphapo_cli.evaluation.judges.journal import FILE, Answered, Journal
from alphapo_cli.evaluation.judges.judge import Judged, JudgeEngine, JudgingResult, Verdict
from alphapo_cli.evaluation.judges.protocol import Ask, Pair
from alphapo_cli.evaluation.schema import JudgeConfig


class ModelJudge:
    """AlpacaEval 2's protocol over `engine`."""

    def __init__(self, engine: JudgeEngine, cfg: JudgeConfig) -> None:
        self.engine, self.cfg = engine, cfg
        self.template = protocol.load_template(cfg.prompt_file)
        self.annotator = cfg.annotator or f"alphapo_{cfg.name}_{cfg.model}"

    def identity(self) -> dict[str, Any]:
        order = {"seed": self.cfg.seed, "both_orders": self.cfg.both_orders, "annotator": self.annotator}
        return {**self.engine.identity(), "prompt": self.template.text, **order}

    def check(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> None:
        answered = Answered(folder / FILE)
        left = self._left(self._asks(pairs), answered)
        if left and (asking or len(left) > self.cfg.max_failed):
            self.engine.check(left, answered.spent)

    def judge(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> Judged:
        asks = self._asks(pairs)
        answered = Answered(folder / FILE)
        left, outcome = self._left(asks, answered), JudgingResult()
        if left and (asking or len(left) > self.cfg.max_failed):
            with Journal(folder) as journal:
                outcome = self.engine.ask(left, answered.spent, journal.record)
            answered = Answered(folder / FILE)
            left = self._left(asks, answered)
        if left:
            self._give_up(outcome, left, sum(map(len, asks.values())), folder)
        verdicts: list[Verdict | None] = [self._verdict(asks.get(row, []), answered) for row in range(len(pairs))]
        self._named_any(asks, answered)
        facts = {
            "requests": sum(map(len, asks.values())),
            "failed": len(left),
            "tokens": answered.tokens,
            "cost_usd": answered.spent if answered.priced else None,
        }
        return Judged(verdicts, {"judging": facts})

    def _asks(self, pairs: Sequence[Pair]) -> dict[int, list[Ask]]:
        fingerprint = json.dumps({**self.engine.identity(), "prompt": self.template.text}, sort_keys=True)
        return protocol.asks(
            pairs, self.template, seed=self.cfg.seed, both_orders=self.cfg.both_orders, fingerprint=fingerprint
        )

    @staticmethod
    def _left(asks: Mapping[int, Sequence[Ask]], answered: Answered) -> list[Ask]:
        return [ask for row in asks.values() for ask in row if ask.key not in answered.rows]

    def _give_up(self, outcome: JudgingResult, left: Sequence[Ask], total: int, folder: Path) -> None:
        """Raise what ended the asking, unless as few failed as may fail."""
        kept = f"{total - len(left)} of {total} judgements are kept in {folder / FILE}"
        if outcome.interrupted:
            raise Interrupted(f"interrupted: {kept}; the same line asks for the rest")
        if outcome.stopped is None and len(left) <= self.cfg.max_failed:
            return
        parts, again = [], "the same line asks for the rest"
        if outcome.stopped is None:  # what is refused for good stays refused
            again += f" (judge.max_failed={len(left)} leaves them out)"
        if outcome.failed:
            reasons = Counter(outcome.failed.values()).most_common(3)
            more = len(set(outcome.failed.values())) - len(reasons)
            listed = "; ".join(f"{n} x {reason}" for reason, n in reasons) + (f"; {more} other reasons" if more else "")
            parts.append(f"{len(outcome.failed)} of {total} judgements failed ({listed})")
        if outcome.stopped is not None:
            parts.append(f"{len(left) - len(outcome.failed)} were not asked for: {outcome.stopped}")
        raise AlphapoError(f"{'; '.join(parts)}; {kept}; {again}")

    def _verdict(self, asks: Sequence[Ask], answered: Answered) -> Verdict:
        if not asks:
            return Verdict(protocol.DRAW, price=0.0, seconds=0.0)
        rows = [answered.rows.get(ask.key) for ask in asks]
        found = [row for row in rows if row is not None]
        read = [protocol.preference(row["top_logprobs"], row["switched"]) for row in found]
        told = [x for x in read if x is not None]
        whole = len(told) == len(asks)  # one order of two is not what was asked for
        raw = [{"switched": row["switched"], "top_logprobs": row["top_logprobs"]} for row in found]
        prices = [row["price"] for row in found if row.get("price") is not None]
        seconds = [row["seconds"] for row in found if row.get("seconds") is not None]
        return Verdict(
            preference=sum(told) / len(told) if whole else None,
            raw=raw[0] if len(asks) == 1 and raw else raw or None,
            price=sum(prices) if prices else None,
            seconds=sum(seconds) if seconds else None,
            date=max((str(row["date"]) for row in found), default=None),
        )

    def _named_any(self, asks: Mapping[int, Sequence[Ask]], answered: Answered) -> None:
        rows = [answered.rows[ask.key] for row in asks.values() for ask in row if ask.key in answered.rows]
        if not rows or any(protocol.probability_first(row["top_logprobs"]) is not None for row in rows):
            return
        tokens = Counter(row["top_logprobs"][0][0] for row in rows if row["top_logprobs"])
        seen = ", ".join(f"{token!r} ({n} times)" for token, n in tokens.most_common(3))
        raise AlphapoError(
            f"the judge {self.cfg.model} named neither m nor M among its top {self.cfg.top_logprobs} tokens in any of "
            f"{len(rows)} answers; most likely tokens: {seen}; try judge.top_logprobs=20, another judge.prompt_file "
            "or another judge.model"
        )
