"""Log-probs of answers under a language model, and implicit rewards: beta times the log-ratio of two models.

The ids are those that were sampled, with the end token unless the limit cut the answer, where the model's tokenizer gives
the prompt the same ids; otherwise prompt and answer are tokenised as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.row_context import context_of
from alphapo_cli.data.sources import Row
from alphapo_cli.data.template import style_of
from alphapo_cli.data.text_pairs import ABSENT, Conversation, PromptContext, Side, TextPair
from alphapo_cli.data.token_pairs import Ragged, TokenPairs
from alphapo_cli.data.tokenise import encode_pairs, encode_prompt, end_token_id
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.schema import SubjectConfig
from alphapo_cli.generation.target_model import TargetModel, find
from alphapo_cli.modeling.policy import PolicyModel, inference
from alphapo_cli.pairs.candidates import Answer, Candidates
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.scorer import Scores, Whole


class LogProbs(Whole):
    """Sum or mean over an answer's tokens of its log-probs in nats."""

    together = False
    free = False

    def __init__(self, column: str, cfg: ScorerConfig, data: DataConfig, cache: Path, model: str, key: str) -> None:
        self.column, self.cfg, self.data, self.cache = column, cfg, data, cache
        self.batch: int | None = cfg.batch_size
        settings = SubjectConfig(
            revision=cfg.revision if key == "scorer.model" else None, dtype=cfg.dtype,
            trust_remote_code=cfg.trust_remote_code,
        )  # fmt: skip
        self.subject: TargetModel = find(model, settings, cache, key=key)
        self._policy: PolicyModel | None = None

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        model = self.subject.identity(self.cache)
        return {
            "scorer": "logprob",
            "reduce": self.cfg.reduce,
            "model": model,
            "template": template_settings(self.data),
        }

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`; messages need a chat template."""
        check_template(self.subject, self.data, prompts)

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        rows = [(prompt, answer) for prompt in prompts for answer in prompt.answers]
        ids = [self.ids_of(prompt, answer) for prompt, answer in rows]
        usable = [i for i, one in enumerate(ids) if one is not None]
        values: list[float | None] = [None] * len(rows)
        if usable:
            known = [one for one in ids if one is not None]
            sums = self._sums([p for p, _ in known], [a for _, a in known])
            for i, total in zip(usable, sums, strict=True):
                length = len(ids[i][1]) if ids[i] is not None else 1  # type: ignore[index]
                values[i] = float(total) / (length if self.cfg.reduce == "mean" else 1)
        found = iter(values)
        return [[next(found) for _ in prompt.answers] for prompt in prompts]

    def close(self) -> None:
        """See `Scorer.close`."""
        self._policy = None

    def ids_of(self, prompt: Candidates, answer: Answer) -> tuple[list[int], list[int]] | None:
        """Ids of prompt and answer, end token included; None for an answer that is too long or that nothing is left of."""
        tokenizer = self.subject.tokenizer
        side, context = side_of(prompt), context_of_prompt(prompt, self.data)
        data = replace(self.data, max_prompt_length=None)
        limit = self.cfg.max_length or self.subject.context
        start = encode_prompt(side, tokenizer, data, context)
        if answer.ids is not None and prompt.ids is not None and start == list(prompt.ids):
            end = [] if answer.cut else [end_token_id(tokenizer, data)]
            completion = [*answer.ids, *end]
        else:
            reply: Side = answer.text if isinstance(side, str) else ({"role": "assistant", "content": answer.text},)
            whole = replace(data, max_length=2**30, on_template_loss="keep", max_unknown=1.0, workers=1)
            try:
                encoded = encode_pairs([TextPair(side, reply, ABSENT, context=context)], tokenizer, whole)
            except UsageError:
                return None
            start, completion = encoded.prompt[0].tolist(), encoded.chosen[0].tolist()
        if not completion or (limit is not None and len(start) + len(completion) > limit):
            return None
        return start, completion

    def _sums(self, starts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> np.ndarray:
        """[n] log-probs of the completions, each summed over its tokens, nats; one forward pass."""
        if self._policy is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._policy = PolicyModel(self.subject.load(device), layout="padded")
        n = len(starts)
        pairs = TokenPairs(
            Ragged.from_lists(starts), Ragged.from_lists(completions), Ragged.from_lists([[]] * n),
            ("",) * n, np.arange(n),
        )  # fmt: skip
        pad = self.subject.tokenizer.pad_token_id or 0
        # Scores are kept, and the order of rows may show in their last digits: always by length.
        order = np.argsort(pairs.prompt.lengths + pairs.chosen.lengths, kind="stable")
        batch = self._policy.layout.collate([pairs[i] for i in order], pad_id=pad)
        with inference(self._policy):
            sums: np.ndarray = self._policy.answers(batch.to(self._policy.device)).sums[0].double().cpu().numpy()
        return sums[np.argsort(order)]


class Implicit(Whole):
    """DPO's implicit reward, beta times log pi(y|x) / pi_ref(y|x) (arXiv 2305.18290, eq. 5)."""

    together = False
    free = False

    def __init__(self, column: str, cfg: ScorerConfig, data: DataConfig, cache: Path) -> None:
        self.column, self.cfg = column, cfg
        self.batch: int | None = cfg.batch_size
        self.policy = LogProbs(column, cfg, data, cache, str(cfg.model), "scorer.model")
        self.reference = LogProbs(column, cfg, data, cache, str(cfg.reference), "scorer.reference")

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        models = {"policy": self.policy.identity(), "reference": self.reference.identity()}
        return {"scorer": "implicit", "beta": self.cfg.beta, **models}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`."""
        self.policy.check(prompts)
        self.reference.check(prompts)

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        both = zip(self.policy.score(prompts), self.reference.score(prompts), strict=True)
        return [
            [None if p is None or r is None else self.cfg.beta * (p - r) for p, r in zip(own, other, strict=True)]
            for own, other in both
        ]

    def close(self) -> None:
        """See `Scorer.close`."""
        self.policy.close()
        self.reference.close()


def check_template(subject: TargetModel, data: DataConfig, prompts: Sequence[Candidates]) -> None:
    """UsageError where prompts are messages and the model's tokenizer has no chat template."""
    needing = [prompt for prompt in prompts if not isinstance(prompt.content, str)]
    if needing and not style_of(subject.tokenizer, data).chat:
        raise UsageError(
            f"{subject.source.key}={subject.asked}: its tokenizer has no chat template, and "
            f"{len(needing)} of {len(prompts)} prompts are messages; take an instruction-tuned model"
        )


def side_of(prompt: Candidates) -> Side:
    """The prompt as data that are tokenised."""
    if isinstance(prompt.content, str):
        return prompt.content
    conversation: Conversation = tuple(dict(message) for message in prompt.content)
    return conversation


def context_of_prompt(prompt: Candidates, data: DataConfig) -> PromptContext:
    """What the chat template gets beside the prompt."""
    return context_of(Row(dict(prompt.context), 1, prompt.where), data)


def template_settings(data: DataConfig) -> dict[str, Any]:
    """The settings that decide how prompt and answer become ids."""
    names = (
        "template",
        "system",
        "chat_template_kwargs",
        "date",
        "special_tokens_in_text",
        "completion_includes_header",
    )
    return {name: getattr(data, name) for name in names}
