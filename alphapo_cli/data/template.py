"""From a pair to the text that is tokenised: the prompt as generation feeds it, and each side as a whole.

The chat template is applied to the whole conversation, once for the prompt (with the generation prompt) and once for
each side. The prompt's text is always the generation prompt, so that training conditions on what generation conditions
on; the completion is what the template puts after it, cut behind the end token.

Templates that write today's date (Llama 3.2) are given a fixed day instead: the same command is the same training
tomorrow, and cached work stays good over midnight.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.text_pairs import ABSENT, Conversation, Side, TextPair
from alphapo_cli.errors import UsageError, first_line

# The day that Llama 3's own template falls back to where it has no clock.
TODAY = datetime.datetime(2024, 7, 26)
_PROBE = "alphapo-probe"
_NEEDS_TEMPLATE = (
    "the data are messages and need a chat template: set model.path to a model whose tokenizer has one and leave "
    "data.template=auto (data.template=plain is for text and dialogues)"
)


class TemplateRefusal(UsageError):
    """A chat template that does not take a conversation (roles that do not alternate, no system message, ...)."""


Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rendered:
    """Texts of one pair: the prompt and each side's completion, None for an absent one.

    `ends`: whether a completion holds its own end token; one that does not gets the tokenizer's. `turns`: with
    `data.trajectories`, where in each completion (characters) each of its assistant turns stands.
    """

    prompt: str
    completions: tuple[str | None, ...]
    ends: tuple[bool, ...]
    turns: tuple[Spans, ...] = ()

    @property
    def present(self) -> list[str]:
        """The completions without an absent one."""
        return [text for text in self.completions if text is not None]


@dataclass(frozen=True)
class Style:
    """How a tokenizer writes conversations.

    `chat`: with its template. `prefix`: ids that it puts before a text of its own accord (BOS). `end`: the text and id
    of the token that closes an answer; `ends`: every text that counts as one at the end of an answer.
    """

    chat: bool
    prefix: tuple[int, ...]
    end: str
    end_id: int
    ends: tuple[str, ...]

    @property
    def name(self) -> str:
        return "chat" if self.chat else "plain"


def style_of(tokenizer: Any, cfg: DataConfig) -> Style:
    """Reads a tokenizer's ways off it. Raises UsageError for one that cannot serve, saying what to type."""
    who = tokenizer.name_or_path or "this tokenizer"
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{who}: alphapo needs a fast tokenizer (tokenizer.json); install or convert one")
    has_template = bool(tokenizer.chat_template)
    if cfg.template == "chat" and not has_template:
        raise UsageError(f"{who}: has no chat template; set data.template=plain or take an instruction-tuned model")
    chat = has_template and cfg.template != "plain"
    if cfg.system is not None and not chat:
        raise UsageError(f"data.system needs a chat template and {who} is used without one; leave data.system out")
    if cfg.trajectories and not chat:
        raise UsageError(f"data.trajectories needs a chat template and {who} is used without one; leave it out")
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(map(str, tokenizer.all_special_tokens))
    special.discard("")
    end = _template_end(tokenizer) if chat else None
    if end is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"{who}: has no end-of-text token; set eos_token in its tokenizer_config.json")
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


def rendered_probe(tokenizer: Any) -> str:
    """A fixed short conversation in the tokenizer's chat template."""
    return _apply(tokenizer, [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}], False)


def written_date(tokenizer: Any) -> str | None:
    """The day (ISO form) that stands for today in the tokenizer's chat template; None where it asks for none."""
    return TODAY.date().isoformat() if "strftime_now" in str(tokenizer.chat_template) else None


def _template_end(tokenizer: Any) -> str | None:
    """The first added token that the template writes after an answer, or None when it writes none."""
    text = rendered_probe(tokenizer)
    if _PROBE not in text:
        raise UsageError(f"{tokenizer.name_or_path}: its chat template leaves out the assistant's answer; correct it")
    tail = text[text.rindex(_PROBE) + len(_PROBE) :]
    found = [
        (tail.find(str(token)), str(token)) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()
    ]
    inside = [(place, -len(token), token) for place, token in found if place >= 0]
    return min(inside)[2] if inside else None


def _apply(tokenizer: Any, messages: Sequence[dict[str, str]], generation: bool) -> str:
    """The rendered conversation. Raises UsageError with the template's own words when it refuses."""
    import jinja2

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=TODAY.strftime,  # what is passed goes before the clock that transformers offers
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise TemplateRefusal(f"{tokenizer.name_or_path}: its chat template refuses: {reason}") from error


def render_prompt(prompt: Side, tokenizer: Any, cfg: DataConfig, style: Style) -> str:
    """The text that generation continues. Text becomes one user message under a chat template.

    Raises UsageError for messages without chat template.
    """
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
    """Prompt and completions as text without template. Raises UsageError for message data."""
    if pair.verbatim is not None:
        return pair.verbatim.prompt, [pair.verbatim.chosen, pair.verbatim.rejected]
    sides = [None if side == ABSENT else side for side in pair.sides]
    texts = [side for side in sides if side is None or isinstance(side, str)]
    if isinstance(pair.prompt, str) and len(texts) == len(sides):
        return pair.prompt, texts
    raise UsageError(_NEEDS_TEMPLATE)


def render_pair(pair: TextPair, tokenizer: Any, cfg: DataConfig, style: Style) -> Rendered | None:
    """The texts of a pair; None when an answer is empty once its end token is taken off.

    Raises TemplateRefusal when the template refuses the conversation, UsageError when it cannot be told where in the
    template's text the answer begins.
    """
    if not style.chat:
        prompt, answers = plain_pair(pair)
        bare = tuple(None if answer is None else without_end(answer, style.ends) for answer in answers)
        if any(text is not None and not text.strip() for text in bare):
            return None
        return Rendered(prompt, bare, (False,) * len(bare))
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
        between = () if isinstance(answer, str) else answer[:-1]
        messages = (*conversation, *between, {"role": "assistant", "content": content})
        whole = _apply(tokenizer, messages, False)
        sides.append(cut_after_end(_after_prompt(prompt, whole, content, style.ends, pair, tokenizer), style.ends))
        if cfg.trajectories:
            turns.append(_turns(prompt, messages, len(conversation), whole, tokenizer, style))
    completions, ends = zip(*sides, strict=True)
    return Rendered(prompt, completions, ends, tuple(turns))


def _turns(prompt: str, messages: Conversation, first: int, whole: str, tokenizer: Any, style: Style) -> Spans:
    """Where behind the prompt the assistant's turns stand, end tokens included.

    Raises TemplateRefusal when the template writes a turn differently once the conversation goes on.
    """
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
    """What the template writes after the prompt.

    Some templates open the generation prompt with text that they leave out of a finished conversation ("<think>").
    The completion then follows the longest part that both share, provided that nothing but white space lies between it
    and the answer.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    shared = next(
        (n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    core = without_end(whole, ends).rstrip()
    start = len(core) - len(answer.strip())
    if core.endswith(answer.strip()) and not whole[shared:start].strip():
        # An answer that itself opens with the text in question goes on behind the part that the prompt has.
        return whole[max(shared, start) :]
    raise UsageError(
        f"{tokenizer.name_or_path}: its chat template writes the prompt of row {pair.row} differently with and without "
        "the answer, which cannot be found then; correct chat_template.jinja or set data.template=plain"
    )


def without_end(text: str, ends: tuple[str, ...]) -> str:
    """`text` without end tokens written out at its end; untouched when there is none."""
    body = text.rstrip()
    if not body.endswith(ends):
        return text
    while body.endswith(ends):
        body = body[: -len(next(end for end in ends if body.endswith(end)))].rstrip()
    return body


def cut_after_end(text: str, ends: tuple[str, ...]) -> tuple[str, bool]:
    """`text` up to the first of the end tokens that close it, and whether there is one.

    White space after it is the template's, as are further tokens ("<|end|>\\n<|endoftext|>").
    """
    body, kept = text.rstrip(), None
    while body.endswith(ends):
        kept = body
        body = body[: -len(next(end for end in ends if body.endswith(end)))].rstrip()
    return (body, False) if kept is None else (kept, True)
