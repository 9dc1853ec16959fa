"""Rows whose text spells special tokens of the tokenizer: counted, said, and refused on request (see `special_text`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.answer_frame import without_end
from alphapo_cli.data.special_text import special_tokens, spelled_in, texts_in
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import conversation_of, style_of
from alphapo_cli.data.text_pairs import PromptContext, Side, TextPair
from alphapo_cli.errors import UsageError

_BARE = DataConfig()
ESCAPE = "data.special_tokens_in_text=escape reads them as text"


@dataclass
class Spelled:
    """Rows that spell special tokens: their number, the rows by token, and the place of the first."""

    rows: int = 0
    tokens: Tally = field(default_factory=Tally)
    first: str = ""

    @property
    def shown(self) -> str:
        """The tokens with their numbers of rows."""
        return ", ".join(f"{token} ({rows:,})" for token, rows, _ in self.tokens)


def spelled(rows: Iterable[tuple[str, Sequence[str]]], tokenizer: Any) -> Spelled:
    """Find rows that spell special tokens.

    Args:
        rows: the place of each row, and its typed texts.
        tokenizer: a fast transformers tokenizer.

    Returns:
        Those rows, counted.
    """
    tokens, found = special_tokens(tokenizer), Spelled()
    for where, texts in rows:
        these = dict.fromkeys(token for text in texts for token in spelled_in(text, tokens))
        for token in these:
            found.tokens.add(token, where)
        if these:
            found.rows += 1
            found.first = found.first or where
    return found


def spelled_in_pairs(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig = _BARE) -> Spelled:
    """`spelled` of the prompts of pairs; answers have a count of their own, of their token ids."""
    return spelled(((pair.place, texts_of_prompt(pair.prompt, pair.context, cfg)) for pair in pairs), tokenizer)


def texts_of_prompt(prompt: Side, context: PromptContext, cfg: DataConfig) -> list[str]:
    """The typed texts of a prompt: of its messages, the system text that it gets, its tools and documents."""
    return [*texts_in(context.arguments), *_texts(conversation_of(prompt, cfg, context))]


def check_pairs(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig) -> None:
    """Refuse (UsageError) pairs that spell special tokens, in prompt or answers, where the settings say so."""
    if cfg.special_tokens_in_text != "refuse":
        return
    ends = style_of(tokenizer, cfg).written_ends  # an answer may be closed by them
    rows = (
        (
            pair.place,
            [
                *texts_of_prompt(pair.prompt, pair.context, cfg),
                *(without_end(text, ends) for side in pair.answers for text in _texts(side)),
            ],
        )
        for pair in pairs
    )
    check_spelled(spelled(rows, tokenizer), len(pairs), "pairs", cfg)


def check_spelled(found: Spelled, rows: int, what: str, cfg: DataConfig) -> None:
    """Refuse (UsageError) found rows under `data.special_tokens_in_text=refuse`; `rows` is the number of all `what`."""
    if cfg.special_tokens_in_text == "refuse" and found.rows:
        raise UsageError(
            f"{found.first}: spells a special token in its text, as do {found.rows:,} of {rows:,} {what}: {found.shown} "
            f"(data.special_tokens_in_text=refuse); correct them, or type what they are: {ESCAPE}, parse as tokens"
        )


def _texts(side: Side) -> list[str]:
    if isinstance(side, str):
        return [side]
    return [text for message in side for key, value in message.items() if key != "role" for text in texts_in(value)]
