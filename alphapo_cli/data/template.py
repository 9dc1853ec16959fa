"""Render a pair as the text that is tokenised: the prompt as generation sees it, and each side's completion.

The chat template is applied to the whole conversation, once for the prompt (with add_generation_prompt) and once for
each side. The prompt's text is always the one that generation uses, so training and generation condition on the same
tokens; the completion is what the template puts after it, cut after the end token.

Templates that write today's date (Llama 3.2) get a fixed day instead, so that the same command trains on the same
tokens on any day, and caches stay valid past midnight.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.text_pairs import ABSENT, Conversation, Side, TextPair
from alphapo_cli.errors import UsageError, first_line

# The default date_string of Llama 3's template, used where strftime_now is undefined.
TODAY = datetime.datetime(2024, 7, 26)
_MARKER = "alphapo-probe"
_NEEDS_TEMPLATE = (
    "the data are messages and need a chat template: set model.path to a model whose tokenizer has one and leave "
    "data.template=auto (data.template=plain is for text and dialogues)"
)


class TemplateRefusal(UsageError):
    """The chat template raised for a conversation (roles that do not alternate, no system message, ...)."""


Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rendered:
    """Texts of one pair: the prompt and each side's completion, None for an absent one.

    `ends`: whether the template closed a completion with an end token; otherwise the tokenizer's is appended. `turns`:
    with `data.trajectories`, the (start, stop) of each assistant turn in a completion, in characters.
    """

    prompt: str
    completions: tuple[str | None, ...]
    ends: tuple[bool, ...]
    turns: tuple[Spans, ...] = ()

    @property
    def present(self) -> list[str]:
        """The completions of sides that are not absent."""
        return [text for text in self.completions if text is not None]


@dataclass(frozen=True)
class Style:
    """How a tokenizer renders conversations.

    `chat`: whether with its chat template. `prefix`: ids that add_special_tokens puts before a text (BOS). `end`,
    `end_id`: text and id of the token that closes an answer; `ends`: texts of all tokens that may close one.
    """

    chat: bool
    prefix: tuple[int, ...]
    end: str
    end_id: int
    ends: tuple[str, ...]

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
    if cfg.trajectories and not chat:
        raise UsageError(f"data.trajectories needs a chat template and {name} is used without one; leave it out")
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(map(str, tokenizer.all_special_tokens))
    special.discard("")
    end = _template_end(tokenizer) if chat else None
    if end is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"{name}: has no end-of-text token; set eos_token in its tokenizer_config.json")
        end = str(tokenizer.eos_token)
    end_id = int(tokenizer.convert_tokens_to_ids(end))
    return Style(
        chat, _prefix(tokenizer), end, end_id, tuple(sorted(special | {end}, key=lambda text: (-len(text), text)))
    )


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def rendered_example(tokenizer: Any) -> str:
    """A fixed short conversation in the tokenizer's chat template."""
    return _apply(tokenizer, [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _MARKER}], False)


def written_date(tokenizer: Any) -> str | None:
    """The fixed date (ISO form) that the chat template writes as today's; None for one that writes none."""
    return TODAY.date().isoformat() if "strftime_now" in str(tokenizer.chat_template) else None


def _template_end(tokenizer: Any) -> str | None:
    """The first added token that the template writes after an answer, or None when it writes none."""
    text = rendered_example(tokenizer)
    if _MARKER not in text:
        raise UsageError(f"{tokenizer.name_or_path}: its chat template leaves out the assistant's answer; correct it")
    tail = text[text.rindex(_MARKER) + len(_MARKER) :]
    positions = [
        (tail.find(str(token)), str(token)) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()
    ]
    after_answer = [(position, -len(token), token) for position, token in positions if position >= 0]
    return min(after_answer)[2] if after_answer else None


def _apply(tokenizer: Any, messages: Sequence[dict[str, str]], generation: bool) -> str:
    """The rendered conversation; TemplateRefusal, with the template's message, when it raises."""
    import jinja2

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=TODAY.strftime,  # overrides the function that transformers passes
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise TemplateRefusal(f"{tokenizer.name_or_path}: its chat template refuses: {reason}") from error


def render_prompt(prompt: Side, tokenizer: Any, cfg: DataConfig, style: Style) -> str:
    """The prompt's text, which generation continues; UsageError for messages without a chat template."""
    if not style.chat:
        if not isinstance(prompt, str):
            raise UsageError(_NEEDS_TEMPLATE)
        return prompt
    return _apply(tokenizer, _conversation(prompt, cfg), True)


def _conversation(prompt: Side, cfg: DataConfig) -> Conversation:
    messages: Conversation = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    if cfg.system is not None and (not messages or messages[0]["role"] != "system"):
        messages = ({"role": "system", "content": cfg.system}, *messages)
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


def render_pair(pair: TextPair, tokenizer: Any, cfg: DataConfig, style: Style) -> Rendered | None:
    """Render a pair as texts.

    Returns:
        Prompt and completions, None when an answer is empty without its end token.

    Raises:
        TemplateRefusal: the template refuses the conversation.
        UsageError: the answer cannot be located in the rendered conversation.
    """
    if not style.chat:
        prompt, answers = plain_pair(pair)
        stripped = tuple(None if answer is None else without_end(answer, style.ends) for answer in answers)
        if any(text is not None and not text.strip() for text in stripped):
            return None
        return Rendered(prompt, stripped, (False,) * len(stripped))
    conversation = _conversation(pair.prompt, cfg)
    prompt = _apply(tokenizer, conversation, True)
    sides: list[tuple[str | None, bool]] = []
    turns: list[Spans] = []
    for answer in pair.sides:
        if answer == ABSENT:
            sides.append((None, False))
            turns += [()] if cfg.trajectories else []
            continue
        content = without_end(answer if isinstance(answer, str) else answer[-1]["content"], style.ends)
        if not content.strip():
            return None
        earlier_turns = () if isinstance(answer, str) else answer[:-1]
        messages = (*conversation, *earlier_turns, {"role": "assistant", "content": content})
        whole = _apply(tokenizer, messages, False)
        sides.append(cut_after_end(_after_prompt(prompt, whole, content, style.ends, pair, tokenizer), style.ends))
        if cfg.trajectories:
            turns.append(_turns(prompt, messages, len(conversation), whole, tokenizer, style))
    completions, ends = zip(*sides, strict=True)
    return Rendered(prompt, completions, ends, tuple(turns))


def _turns(prompt: str, messages: Conversation, first: int, whole: str, tokenizer: Any, style: Style) -> Spans:
    """(start, stop) of each assistant turn in characters after the prompt, end tokens included."""
    if len(messages) == first + 1:
        return ((0, len(whole) - len(prompt)),)
    spans = []
    for n in range(first, len(messages)):
        if messages[n]["role"] == "assistant":
            before = _apply(tokenizer, messages[:n], True)
            turn = cut_after_end(_apply(tokenizer, messages[: n + 1], False), style.ends)[0]
            if not (whole.startswith(before) and whole.startswith(turn) and turn.startswith(before)):
                raise TemplateRefusal(
                    f"{tokenizer.name_or_path}: its chat template writes earlier turns differently in a longer conversation"
                )
            spans.append((len(before) - len(prompt), len(turn) - len(prompt)))
    return tuple(spans)


def _after_prompt(prompt: str, whole: str, answer: str, ends: tuple[str, ...], pair: TextPair, tokenizer: Any) -> str:
    """The completion: what follows the prompt in the rendered conversation `whole`.

    Some templates end the generation prompt with text that they leave out of a finished conversation ("<think>"). The
    completion then starts after the longest common prefix, if only white space separates that from the answer.

    Returns:
        The text after the prompt.

    Raises:
        UsageError: the template renders the prompt differently with and without the answer.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    shared = next(
        (n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    core = without_end(whole, ends).rstrip()
    start = len(core) - len(answer.strip())
    if core.endswith(answer.strip()) and not whole[shared:start].strip():
        # An answer that itself starts with that text loses the part that the prompt already has.
        return whole[max(shared, start) :]
    raise UsageError(
        f"{tokenizer.name_or_path}: its chat template writes the prompt of row {pair.row} differently with and without "
        "the answer, which cannot be found then; correct chat_template.jinja or set data.template=plain"
    )


def without_end(text: str, ends: tuple[str, ...]) -> str:
    """`text` without the end tokens that close it; unchanged without any."""
    body = text.rstrip()
    if not body.endswith(ends):
        return text
    while body.endswith(ends):
        body = body[: -len(next(end for end in ends if body.endswith(end)))].rstrip()
    return body


def cut_after_end(text: str, ends: tuple[str, ...]) -> tuple[str, bool]:
    r"""Cut `text` after the first of the end tokens that close it ("<|end|>\n<|endoftext|>").

    Returns:
        The text, and whether it ends with an end token.
    """
    body, kept = text.rstrip(), None
    while body.endswith(ends):
        kept = body
        body = body[: -len(next(end for end in ends if body.endswith(end)))].rstrip()
    return (body, False) if kept is None else (kept, True)
