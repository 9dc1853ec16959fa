"""`alphapo chat`: a conversation with a model, by the template and the ids that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alphapo_cli.data.template import style_of
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation import parity
from alphapo_cli.generation.backend import request_seed
from alphapo_cli.generation.run_settings import run_record
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.generation.target_model import TargetModel, find
from alphapo_cli.modeling.sampling import sample
from alphapo_cli.stages.training import glassbox_base
from alphapo_cli.storage.paths import cache_dir

LONGEST = 512  # tokens of an answer, where nothing else is set


class Conversation:
    """Messages so far, and the model that answers them.

    Attributes:
        messages: roles and texts; of a model without a chat template none are kept, each message is a prompt.
        ids: token ids of the last prompt.
        cut: whether the token limit ended the last answer.
    """

    def __init__(self, cfg: GenerateConfig, model: str | None, cache: Path | None = None) -> None:
        """Load the model.

        Args:
            cfg: the resolved configuration of a generation.
            model: a run, a saved model or an adapter, or a hub name; None: the embedded world's base model.
            cache: the cache directory; None for the usual one.

        Raises:
            UsageError: the model cannot be used, or its template no longer gives the ids that training saw.
        """
        cache = cache or cache_dir()
        path = str(glassbox_base.ensure(cache)) if model is None else model
        self.cfg = cfg
        self.subject: TargetModel = find(path, cfg.model, cache, name="glassbox-base" if model is None else None)
        if self.subject.merge_obstacle is not None:
            raise UsageError(f"{self.subject.asked}: {self.subject.merge_obstacle}; give its base model")
        if self.subject.run is not None:
            record = run_record(self.subject.run, unverified=cfg.generation.accept_unverified_prompts)
            if record is not None:
                parity.check_run(record, self.subject.tokenizer, cfg.data)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.lm: Any = self.subject.load(device, cfg.model.attention)
        self.keeps = style_of(self.subject.tokenizer, cfg.data).name == "chat"
        self.stop_ids = self.subject.stop_ids(cfg.data)
        self.messages: list[dict[str, str]] = []
        self.ids: list[int] = []
        self.cut = False
        self.turn = 0

    def forget(self) -> None:
        """Begin anew."""
        self.messages = []

    def reply(self, text: str) -> str:
        """Answer a message.

        Args:
            text: what the user says.

        Returns:
            The answer, without special tokens.

        Raises:
            UsageError: the conversation is longer than what the model can read.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        tokenizer, generation = self.subject.tokenizer, self.cfg.generation
        self.ids = encode_prompt(tuple(asked) if self.keeps else text, tokenizer, self.cfg.data)
        limit = generation.max_new_tokens or LONGEST
        if self.subject.context is not None:
            limit = min(limit, self.subject.context - len(self.ids))
        if limit < 1:
            raise UsageError(
                f"the conversation has {len(self.ids):,} tokens and the model reads {self.subject.context:,}; /new begins "
                "another"
            )
        (answer,) = sample(
            self.lm, [self.ids], [request_seed(self.cfg.seed, text, self.turn)], max_new_tokens=limit,
            temperature=generation.temperature, top_p=generation.top_p, eos_ids=self.stop_ids,
            pad_id=tokenizer.pad_token_id, batch_size=1,
        )  # fmt: skip
        self.turn, self.cut = self.turn + 1, answer.cut
        said = str(tokenizer.decode(answer.ids, skip_special_tokens=True)).strip()
        if self.keeps:
            self.messages = [*asked, {"role": "assistant", "content": said}]
        return said
