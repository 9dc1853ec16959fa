"""A reward model: a sequence classifier that reads a prompt and one answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.pairs.candidates import Candidates
from alphapo_cli.pairs.scoring.classifier import Classifier
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.scorer import Scores


class RewardModel:
    """The logit of one label of a sequence classifier, for prompt and answer in the model's own chat template."""

    together = False
    free = False

    def __init__(self, column: str, cfg: ScorerConfig, cache: Path) -> None:
        self.column, self.cfg = column, cfg
        self.classifier = Classifier(cfg, cache)
        self.batch: int | None = self.classifier.batch_size
        self.label = self.classifier.label()

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        cfg = self.cfg
        settings = {"bos": cfg.bos, "max_length": self.classifier.limit, "too_long": cfg.too_long}
        return {"scorer": "reward_model", "label": self.label, **settings, **self.classifier.identity}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`; messages need a chat template."""
        needing = sum(not isinstance(prompt.content, str) for prompt in prompts)
        if needing and self.classifier.tokenizer.chat_template is None:
            raise UsageError(
                f"scorer.model={self.cfg.model}: its tokenizer has no chat template, and {needing} of {len(prompts)} prompts "
                "are messages; take a model with one"
            )

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`; an answer that does not fit has no score."""
        rows = [self.ids(prompt, answer.text) for prompt in prompts for answer in prompt.answers]
        usable = [row for row in rows if row is not None]
        logits = iter(self.classifier.logits(usable)[:, self.label].tolist() if usable else [])
        values = iter([None if row is None else float(next(logits)) for row in rows])
        return [[next(values) for _ in prompt.answers] for prompt in prompts]

    def shortened(self, prompts: Sequence[Candidates]) -> int:
        """See `Scorer.shortened`; the prompts are tokenised once more, as scores that are kept do not tell."""
        limit = self.classifier.limit
        if self.cfg.too_long != "cut" or limit is None:
            return 0
        rows = [self._parts(prompt, answer.text) for prompt in prompts for answer in prompt.answers]
        return sum(len(ids) > limit and self._cut(start, whole, ids) is not None for start, whole, ids in rows)

    def close(self) -> None:
        """See `Scorer.close`."""
        self.classifier.close()

    def ids(self, prompt: Candidates, answer: str) -> list[int] | None:
        """The model's input with exactly one BOS, where it uses one; None for an input that is too long."""
        start, whole, ids = self._parts(prompt, answer)
        if self.classifier.limit is None or len(ids) <= self.classifier.limit:
            return ids
        return self._cut(start, whole, ids) if self.cfg.too_long == "cut" else None

    def _parts(self, prompt: Candidates, answer: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of the prompt, of prompt and answer, and of these with one BOS."""
        tokenizer = self.classifier.tokenizer
        if tokenizer.chat_template is None:
            start, whole = tokenizer(prompt.text)["input_ids"], tokenizer(f"{prompt.text}{answer}")["input_ids"]
        else:
            system = prompt.context.get("system")
            messages = [*([{"role": "system", "content": system}] if system else []), *prompt.messages]
            texts = (
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
                tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False),
            )
            start, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        return start, whole, self.classifier.with_bos(whole)

    def _cut(self, start: Sequence[int], whole: Sequence[int], ids: Sequence[int]) -> list[int] | None:
        """The ids without the prompt's beginning; None where nothing of the prompt would be left."""
        lead = list(ids[:1]) if ids[0] == self.classifier.tokenizer.bos_token_id else []
        kept = (self.classifier.limit or 0) - len(lead)
        return [*lead, *ids[-kept:]] if kept > len(whole) - len(start) else None
