"""Render a pair as the text that is tokenised: the prompt as generation sees it, and each side's completion.

The chat template is applied to the whole conversation, once for the prompt (with add_generation_prompt) and once for
each side (`rendering`). The prompt's text is always the one that generation uses, so training and generation condition
on the same tokens; the completion is what the template puts after it, cut after the end token.

Templates that write today's date (Llama 3.2) get that of `data.date` instead, so that the same command trains on the
same tokens on any day, and generation has the date that training had.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.call_forms import form_of
from alphapo_cli.data.row_context import check_arguments
from alphapo_cli.data.special_text import masked, masked_text, masked_value
from alphapo_cli.data.template_errors import LONGEST, TemplateRefusal, TemplateTimeout
from alphapo_cli.data.text_pairs import (
    ABSENT,
    CALLS,
    NO_CONTEXT,
    REASONING,
    SYSTEM_ROLES,
    Conversation,
    Message,
    PromptContext,
    Side,
    TextPair,
)
from alphapo_cli.data.time_limit import OutOfTime, time_limit
from alphapo_cli.errors import UsageError, first_line

TODAY = datetime.datetime.fromisoformat(DataConfig().date)  # unless `data.date` is another one
_MARKER = "alphapo-probe"
_USER: Message = {"role": "user", "content": "Hello"}
EXAMPLES: tuple[Conversation, ...] = (
    (_USER, {"role": "assistant", "content": _MARKER}),
    # For templates that ask for a system text, or for a thought before an answer.
    ({"role": "system", "content": "Hello"}, _USER, {"role": "assistant", "content": _MARKER}),
    (_USER, {"role": "assistant", "content": f"<think>\n\n</think>\n\n{_MARKER}"}),
    (_USER, {"role": "assistant", "content": _MARKER, "reasoning_content": "Hello"}),
)
_NEEDS_TEMPLATE = (
    "the data are messages and need a chat template: set model.path to a model whose tokenizer has one and leave "
    "data.template=auto (data.template=plain is for text and dialogues)"
)


@dataclass(frozen=True)
class Style:
    """How a tokenizer renders conversations.

    Attributes:
        chat: whether with its chat template.
        prefix: ids that add_special_tokens puts before a text (BOS).
        end: text of the token that closes an answer.
        end_id: its id.
        ends: texts of all tokens that may close an answer in the template's text.
        written_ends: those that are taken off an answer which has them written out at its end.
        second_end_id: with `data.second_end_token`, the id (EOS) that every completion ends with; else None.
    """

    chat: bool
    prefix: tuple[int, ...]
    end: str
    end_id: int
    ends: tuple[str, ...]
    written_ends: tuple[str, ...]
    second_end_id: int | None = None

    @property
    def name(self) -> str:
        """Chat or plain, as `data.template` names them."""
        return "chat" if self.chat else "plain"


def style_of(tokenizer: Any, cfg: DataConfig) -> Style:
    """Determine the style of a tokenizer; UsageError, naming the remedy, for one that does not fit `cfg`."""
    name = tokenizer.name_or_path or "this tokenizer"
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{name}: alphapo needs a fast tokenizer (tokenizer.json); install or convert one")
    has_template = bool(tokenizer.chat_template)
    if cfg.template == "chat" and not has_template:
        raise UsageError(f"{name}: has no chat template; set data.template=plain or take an instruction-tuned model")
    chat = has_template and cfg.template != "plain"
    if cfg.system is not None and not chat:
        raise UsageError(f"data.system needs a chat template and {name} is used without one; leave data.system out")
    if cfg.chat_template_kwargs:
        if not chat:
            raise UsageError(
                f"data.chat_template_kwargs needs a chat template and {name} is used without one; leave it out"
            )
        check_arguments(cfg.chat_template_kwargs, "data.chat_template_kwargs")
    if cfg.trajectories and not chat:
        raise UsageError(f"data.trajectories needs a chat template and {name} is used without one; leave it out")
    if cfg.completion_includes_header and not chat:
        raise UsageError(
            f"data.completion_includes_header needs a chat template and {name} is used without one; leave it out"
        )
    if cfg.completion_includes_header and cfg.trajectories:
        raise UsageError(
            "data.completion_includes_header is for answers of one turn; leave it or data.trajectories out"
        )
    if cfg.second_end_token and tokenizer.eos_token_id is None:
        raise UsageError(f"data.second_end_token: {name} has no eos_token; leave it out")
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(map(str, tokenizer.all_special_tokens))
    special.discard("")
    end = _template_end(tokenizer, cfg) if chat else None
    if end is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"{name}: has no end-of-text token; set eos_token in its tokenizer_config.json")
        end = str(tokenizer.eos_token)
    end_id = int(tokenizer.convert_tokens_to_ids(end))
    prefix = _prefix(tokenizer)
    if cfg.completion_includes_header and not prefix and tokenizer.bos_token_id is not None:
        prefix = (int(tokenizer.bos_token_id),)
    # Not every special token: an answer may be a tool call that is written out with the tokens around it.
    written = {end} | ({str(tokenizer.eos_token), str(tokenizer.pad_token)} & special)
    second_end_id = int(tokenizer.eos_token_id) if cfg.second_end_token else None
    return Style(chat, prefix, end, end_id, _longest_first(special | {end}), _longest_first(written), second_end_id)


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def rendered_example(tokenizer: Any, cfg: DataConfig) -> str:
    """A fixed short conversation in the tokenizer's chat template, the first of `EXAMPLES` that it takes."""
    template, refusal = template_of(tokenizer, cfg), None
    texts = []
    for example in EXAMPLES:
        try:
            texts.append(template.render(example))
        except TemplateRefusal as error:
            refusal = refusal or error
            continue
        if _MARKER in texts[-1]:
            return texts[-1]
    if texts:
        return texts[0]
    raise refusal or TemplateRefusal("refuses every conversation", tokenizer.name_or_path)


def written_date(tokenizer: Any, cfg: DataConfig) -> str | None:
    """The date (ISO form) that the chat template writes as today's; None for one that writes none."""
    return cfg.date if "strftime_now" in str(tokenizer.chat_template) else None


def _template_end(tokenizer: Any, cfg: DataConfig) -> str | None:
    """The first added token that the template writes after an answer, or None when it writes none."""
    text = rendered_example(tokenizer, cfg)
    if _MARKER not in text:
        raise UsageError(f"{tokenizer.name_or_path}: its chat template leaves out the assistant's answer; correct it")
    tail = text[text.rindex(_MARKER) + len(_MARKER) :]
    positions = [
        (tail.find(str(token)), str(token)) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()
    ]
    after_answer = [(position, -len(token), token) for position, token in positions if position >= 0]
    return min(after_answer)[2] if after_answer else None


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with arguments for it: tools, documents, enable_thinking, ...

    `date`: what it writes as today's, in ISO form.
    """

    tokenizer: Any
    arguments: Mapping[str, Any]
    date: str = DataConfig().date

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of apply_chat_template."""
        # strftime_now overrides the function that transformers passes.
        return {"strftime_now": datetime.datetime.fromisoformat(self.date).strftime, **self.arguments}

    def render(self, messages: Sequence[Message], generation: bool = False, continued: bool = False) -> str:
        """Render a conversation.

        Args:
            messages: the conversation.
            generation: whether the text ends where an answer begins.
            continued: whether it ends within the last message, which generation continues.

        Returns:
            The text.

        Raises:
            TemplateRefusal: the template raises an error; the message has its reason.
            TemplateTimeout: it takes longer than `LONGEST`.
        """
        how = {"add_generation_prompt": generation and not continued, "continue_final_message": continued}
        return str(self.apply(messages, tokenize=False, **how))

    def apply(self, messages: Sequence[Message], **how: Any) -> Any:
        """Call apply_chat_template with the template's options.

        Args:
            messages: the conversation.
            how: further arguments of it.

        Returns:
            What it returns.

        Raises:
            TemplateRefusal: the template raises an error; the message has its reason.
            TemplateTimeout: it takes longer than `LONGEST`.
        """
        try:
            with time_limit(LONGEST):
                return self.tokenizer.apply_chat_template(self.prepared(messages), **how, **self.options)
        except OutOfTime as error:
            raise TemplateTimeout(self.tokenizer.name_or_path) from error
        except Exception as error:  # a template is a program and may fail in any way
            raise TemplateRefusal(f"refuses: {first_line(error)}", self.tokenizer.name_or_path) from error

    def prepared(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template gets them."""
        found: list[Message] = []
        for message in messages:
            thought = next((message[key] for key in REASONING if key in message), None)
            if thought is not None:  # it has several names, of which a template knows one
                message = {**dict.fromkeys(REASONING, thought), **message}
            if any(key in message for key in CALLS):
                message = form_of(self.tokenizer).applied(message)
            found.append(message)
        return found


def template_of(tokenizer: Any, cfg: DataConfig, context: PromptContext = NO_CONTEXT) -> Template:
    """The chat template with the arguments of the settings and of a row, which win and may be masked."""
    given = masked_value(dict(context.arguments), tokenizer, cfg)
    return Template(tokenizer, {**cfg.chat_template_kwargs, **given}, cfg.date)


def render_prompt(
    prompt: Side, tokenizer: Any, cfg: DataConfig, style: Style, context: PromptContext = NO_CONTEXT,
    *, continued: bool = False,
) -> str:  # fmt: skip
    """The prompt's text, which generation continues.

    Args:
        prompt: text or messages.
        tokenizer: its chat template is applied.
        cfg: template settings.
        style: of the tokenizer.
        context: what the row gives the template beside its messages.
        continued: whether the last message is the beginning of the answer.

    Returns:
        The text.

    Raises:
        UsageError: messages without a chat template, or a template that refuses them.
    """
    if not style.chat:
        if not isinstance(prompt, str):
            raise UsageError(_NEEDS_TEMPLATE)
        return masked_text(prompt, tokenizer, cfg)
    messages = masked(conversation_of(prompt, cfg, context), tokenizer, cfg)
    return template_of(tokenizer, cfg, context).render(messages, generation=True, continued=continued)


def conversation_of(prompt: Side, cfg: DataConfig, context: PromptContext = NO_CONTEXT) -> Conversation:
    """The prompt's messages; one that begins with no system text gets the row's, or that of the settings."""
    messages: Conversation = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    system = context.system if context.system is not None else cfg.system
    if system is not None and (not messages or messages[0]["role"] not in SYSTEM_ROLES):
        messages = ({"role": "system", "content": system}, *messages)
    return messages


def plain_pair(pair: TextPair) -> tuple[str, list[str | None]]:
    """Prompt and completions as text without a chat template; UsageError for message data."""
    if pair.verbatim is not None:
        return pair.verbatim.prompt, [pair.verbatim.chosen, pair.verbatim.rejected]
    sides = [None if side == ABSENT else side for side in pair.sides]
    texts = [side for side in sides if side is None or isinstance(side, str)]
    if isinstance(pair.prompt, str) and len(texts) == len(sides):
        return pair.prompt, texts
    raise UsageError(_NEEDS_TEMPLATE)
