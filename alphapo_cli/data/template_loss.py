"""What to do about answers that a chat template refuses or leaves out in part: the message, with advice that was tried.

Each remedy is tried on the first pair in question: what the message says to type gives a whole answer there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.messages import answer_text
from alphapo_cli.data.rendering import DIFFERS, TemplateLoss, render_pair
from alphapo_cli.data.row_context import ARGUMENTS, DOCUMENTS
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import Style, style_of
from alphapo_cli.data.template_errors import TemplateRefusal
from alphapo_cli.data.text_pairs import REASONING, Message, Side, TextPair
from alphapo_cli.data.truncation import TokenCounts
from alphapo_cli.errors import UsageError

# Arguments by which templates of reasoning models are told to think, or not to.
_SWITCHES = ("enable_thinking", "thinking")
_OPEN, _CLOSE = "<think>", "</think>"
_SHOWN = 60  # characters of an answer in a message


def is_loss(reason: str) -> bool:
    """Whether a reason of `Encoded.left_out` is a loss, which data.on_template_loss decides about, and no refusal."""
    return reason == DIFFERS or reason.startswith("leaves out")


def check_losses(left_out: Tally, pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig, style: Style) -> None:
    """Refuse pairs of whose answers the template leaves out a part, under `data.on_template_loss=refuse`.

    Args:
        left_out: pairs by reason, with positions.
        pairs: all pairs.
        tokenizer: a fast transformers tokenizer.
        cfg: the data settings.
        style: see `template.style_of`.

    Raises:
        UsageError: there are such pairs; the message has their number, the first, and what to type.
    """
    losses = [(reason, rows, pairs[first]) for reason, rows, first in left_out if is_loss(reason)]
    if not losses or cfg.on_template_loss != "refuse":
        return
    reason, rows, pair = losses[0]
    more = "".join(f"; {also} in {n:,} (the first: {other.place})" for also, n, other in losses[1:])
    keep = "" if reason == DIFFERS else "data.on_template_loss=keep trains on what is left of them, "
    raise UsageError(
        f"{tokenizer.name_or_path or 'this tokenizer'}: its chat template {reason} in {rows:,} of {len(pairs):,} pairs "
        f"(the first: {pair.place}){more}; {advice(pair, reason, tokenizer, cfg)}; "
        f"{keep}data.on_template_loss=skip leaves such pairs out"
    )


def nothing_left(
    left_out: Tally, counts: TokenCounts, pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig, style: Style
) -> str:
    """Why no pair is left: the template's first reason with advice, or the counts."""
    for reason, rows, first in left_out:
        name = tokenizer.name_or_path or "this tokenizer"
        where = f"{rows:,} of {len(pairs):,} pairs, the first: {pairs[first].place}"
        return f"{name}: its chat template {reason} ({where}); {advice(pairs[first], reason, tokenizer, cfg)}"
    return f"{counts.emptied} empty, {counts.identical} identical after tokenisation"


def advice(pair: TextPair, reason: str, tokenizer: Any, cfg: DataConfig) -> str:
    """What to type, or to change in the data, so that the pair is rendered whole.

    Args:
        pair: a pair that is not.
        reason: why not.
        tokenizer: its tokenizer.
        cfg: the data settings.

    Returns:
        The first remedy that renders this pair whole, else that the template be corrected.
    """
    for text, changed, settings in _remedies(pair, cfg):
        if _is_whole(changed, tokenizer, settings):
            return text
    if reason == DIFFERS:
        plain = pair.verbatim is not None or all(isinstance(side, str) for side in (pair.prompt, *pair.sides))
        return f"correct its chat_template.jinja{' or set data.template=plain' if plain else ''}"
    if reason.endswith("'"):
        mark = reason.rpartition(" ")[2]
        return f"its chat_template.jinja cuts answers at {mark}: take that out for the last message"
    if is_loss(reason):
        return "change its chat_template.jinja to write the last answer whole"
    return "correct these rows, or its chat_template.jinja"


def _remedies(pair: TextPair, cfg: DataConfig) -> Iterator[tuple[str, TextPair, DataConfig]]:
    """(advice, the pair and the settings under it) of everything that may help."""
    thinks = _thinks(pair)
    for value in (thinks, not thinks):
        for name in _SWITCHES:
            settings = replace(cfg, chat_template_kwargs={**cfg.chat_template_kwargs, name: value})
            yield f"for these answers type data.chat_template_kwargs.{name}={str(value).lower()}", pair, settings
    yield (
        "give the reasoning as 'reasoning_content' of the answer's message, in place of <think>...</think> in its text",
        _changed(pair, _apart),
        cfg,
    )
    yield (
        "write the reasoning into the answer's text, as <think>...</think>, in place of 'reasoning_content'",
        _changed(pair, _together),
        cfg,
    )
    yield (
        "it wants a thought before an answer: begin the answers with <think></think>, or give 'reasoning_content'",
        _changed(pair, lambda message: {**message, "content": f"{_OPEN}\n\n{_CLOSE}\n\n{message['content']}"}),
        cfg,
    )
    if pair.context.system is not None:
        yield (
            f"it takes no system text: add data.ignore_columns=[{cfg.system_column}]",
            replace(pair, context=replace(pair.context, system=None)),
            cfg,
        )
    if cfg.system is not None:
        yield "it takes no system text: leave data.system out", pair, replace(cfg, system=None)


def _thinks(pair: TextPair) -> bool:
    """Whether an answer has reasoning, apart or in its text."""
    messages = [message for side in pair.answers if not isinstance(side, str) for message in side]
    return _CLOSE in "".join(map(answer_text, pair.answers)) or any(key in m for m in messages for key in REASONING)


def _changed(pair: TextPair, change: Callable[[Message], Message]) -> TextPair:
    """The pair with every answer's message changed."""

    def side(answer: Side) -> Side:
        messages = ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer
        return tuple(change(message) if message["role"] == "assistant" else message for message in messages)

    sides = tuple(map(side, pair.sides))
    return replace(pair, chosen=sides[0], rejected=sides[1], others=sides[2:])


def _apart(message: Message) -> Message:
    """A message whose text begins with a thought, with that as reasoning_content."""
    thought, close, text = message["content"].partition(_CLOSE)
    if not close:
        return message
    return {**message, "reasoning_content": thought.replace(_OPEN, "").strip(), "content": text.strip()}


def _together(message: Message) -> Message:
    """A message whose text begins with the thought that it had apart."""
    thought = next((message[key] for key in REASONING if key in message), None)
    if thought is None:
        return message
    rest = {key: value for key, value in message.items() if key not in REASONING}
    return {**rest, "content": f"{_OPEN}\n{thought}\n{_CLOSE}\n\n{message['content']}"}


def _is_whole(pair: TextPair, tokenizer: Any, cfg: DataConfig) -> bool:
    try:
        rendered = render_pair(pair, tokenizer, cfg, style_of(tokenizer, cfg))
    except (TemplateRefusal, TemplateLoss, UsageError):
        return False
    return rendered is not None and rendered.lost is None


def idle_arguments(sample: Sequence[TextPair], tokenizer: Any, cfg: DataConfig, style: Style) -> list[str]:
    """Template arguments that change the text of no pair of a sample; their names may be misspelt.

    Args:
        sample: some pairs; one of which no side is present stands for a prompt alone.
        tokenizer: a fast transformers tokenizer.
        cfg: the data settings, with arguments for all pairs.
        style: see `template.style_of`.

    Returns:
        Names, as `chat_template_kwargs.name`.
    """
    if not style.chat:
        return []
    names = dict.fromkeys([*cfg.chat_template_kwargs, *(name for pair in sample for name in pair.context.arguments)])
    return [
        f"{ARGUMENTS}.{name}"
        for name in names
        if name not in ("tools", DOCUMENTS) and all(_is_idle(name, pair, tokenizer, cfg, style) for pair in sample)
    ]


def _is_idle(name: str, pair: TextPair, tokenizer: Any, cfg: DataConfig, style: Style) -> bool:
    """Whether a pair's texts are the same without a template argument."""
    settings = replace(cfg, chat_template_kwargs={k: v for k, v in cfg.chat_template_kwargs.items() if k != name})
    arguments = {key: value for key, value in pair.context.arguments.items() if key != name}
    bare = replace(pair, context=replace(pair.context, arguments=arguments))
    try:
        one, other = render_pair(pair, tokenizer, cfg, style), render_pair(bare, tokenizer, settings, style)
    except (TemplateRefusal, TemplateLoss):
        return False
    return one is not None and other is not None and (one.prompt, one.completions) == (other.prompt, other.completions)
