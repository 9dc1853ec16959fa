"""A pair as the texts that are tokenised: the prompt, and each side's completion after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.answer_frame import OTHER_HEADER, cut_after_end, without_end
from alphapo_cli.data.left_out import cause_of, is_contained, lost_of, unused_keys, unused_of
from alphapo_cli.data.special_text import masked, masked_text
from alphapo_cli.data.template import (
    Style,
    Template,
    conversation_of,
    plain_pair,
    template_of,
)
from alphapo_cli.data.template_errors import TemplateRefusal
from alphapo_cli.data.text_pairs import ABSENT, ANSWER_KEYS, Conversation, Side, TextPair
from alphapo_cli.errors import UsageError

Spans = tuple[tuple[int, int], ...]
DIFFERS = "writes the prompt differently with and without the answer"
_PLACE = "alphapo-answer"


class TemplateLoss(UsageError):
    """The chat template leaves nothing of an answer, or nothing that can be found. `cause`: see `Rendered.lost`."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"the chat template {cause}")
        self.cause = cause


@dataclass(frozen=True)
class Rendered:
    """Texts of one pair: the prompt and each side's completion, None for an absent one.

    Attributes:
        prompt: text of the prompt, to which `data.completion_includes_header` leaves no generation prompt.
        completions: text of each side after it.
        ends: whether the template closed a completion with an end token; otherwise the tokenizer's is appended.
        turns: with `data.trajectories`, the (start, stop) of each assistant turn in a completion, in characters.
        lost: what the template leaves out of an answer, as "leaves out ..."; None for nothing.
        unused: what it leaves out beside the answers: columns, and keys of messages.
    """

    prompt: str
    completions: tuple[str | None, ...]
    ends: tuple[bool, ...]
    turns: tuple[Spans, ...] = ()
    lost: str | None = None
    unused: tuple[str, ...] = ()

    @property
    def present(self) -> list[str]:
        """The completions of sides that are not absent."""
        return [text for text in self.completions if text is not None]


def render_pair(pair: TextPair, tokenizer: Any, cfg: DataConfig, style: Style) -> Rendered | None:
    """Render a pair as texts.

    Returns:
        Prompt and completions, None when an answer is empty without its end token.

    Raises:
        TemplateRefusal: the template refuses the conversation.
        TemplateLoss: the template leaves nothing of an answer, or the answer cannot be located.
        UsageError: messages without a chat template.
    """
    if not style.chat:
        prompt, answers = plain_pair(pair)
        prompt = masked_text(prompt, tokenizer, cfg)
        stripped = tuple(
            None if answer is None else masked_text(without_end(answer, style.written_ends), tokenizer, cfg)
            for answer in answers
        )
        if any(text is not None and not text.strip() for text in stripped):
            return None
        system = [cfg.system_column] if pair.context.system is not None else []
        return Rendered(prompt, stripped, (False,) * len(stripped), unused=(*system, *pair.context.arguments))
    template = template_of(tokenizer, cfg, pair.context)
    conversation = masked(conversation_of(pair.prompt, cfg, pair.context), tokenizer, cfg)
    fed = template.render(conversation, generation=True)
    prompt = template.render(conversation) if cfg.completion_includes_header else fed
    unused = list(unused_of(fed, conversation, template, pair.context, cfg))
    sides: list[tuple[str | None, bool]] = []
    turns: list[Spans] = []
    losses: list[str] = []
    for answer in pair.sides:
        if answer == ABSENT:
            sides.append((None, False))
            turns += [()] if cfg.trajectories else []
            continue
        messages = masked(_answer_messages(answer, style), tokenizer, cfg)
        if not messages[-1]["content"].strip() and not any(key in messages[-1] for key in ANSWER_KEYS):
            return None
        whole = template.render((*conversation, *messages))
        if cfg.completion_includes_header and not whole.startswith(fed):
            raise UsageError(f"data.completion_includes_header: {OTHER_HEADER}; leave it out")
        text, cause = _after_prompt(prompt, whole, conversation, messages, template, style)
        found = [cause] if cause else list(lost_of(prompt, text, whole, conversation, messages, template))
        if found and not without_end(text, style.ends).strip():
            raise TemplateLoss(found[0])
        losses += found
        unused += unused_keys(whole, conversation, messages, template, generation=False)
        cut, closed = cut_after_end(text, style)
        sides.append((cut if style.second_end_id is None else text, closed))
        if cfg.trajectories:
            turns.append(_turns(prompt, (*conversation, *messages), len(conversation), whole, template, style))
    completions, ends = zip(*sides, strict=True)
    lost = losses[0] if losses else None
    return Rendered(prompt, completions, ends, tuple(turns), lost, tuple(dict.fromkeys(unused)))


def _answer_messages(answer: Side, style: Style) -> Conversation:
    """An answer's messages, the last of them without end tokens at its end."""
    messages = ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer
    last = messages[-1]
    return (*messages[:-1], {**last, "content": without_end(last["content"], style.written_ends)})


def _turns(prompt: str, messages: Conversation, first: int, whole: str, template: Template, style: Style) -> Spans:
    """(start, stop) of each assistant turn in characters after the prompt, end tokens included."""
    if len(messages) == first + 1:
        return ((0, len(whole) - len(prompt)),)
    spans = []
    for n in range(first, len(messages)):
        if messages[n]["role"] == "assistant":
            before = template.render(messages[:n], generation=True)
            turn = cut_after_end(template.render(messages[: n + 1]), style)[0]
            if not (whole.startswith(before) and whole.startswith(turn) and turn.startswith(before)):
                raise TemplateRefusal(
                    "writes earlier turns differently in a longer conversation", template.tokenizer.name_or_path
                )
            spans.append((len(before) - len(prompt), len(turn) - len(prompt)))
    return tuple(spans)


def _after_prompt(
    prompt: str, whole: str, conversation: Conversation, messages: Conversation, template: Template, style: Style
) -> tuple[str, str | None]:
    """The completion: what follows the prompt in the rendered conversation `whole`.

    Some templates end the generation prompt with text that they leave out of a finished conversation ("<think>"). The
    completion then starts after the longest common prefix, if only white space separates that from the answer.

    Returns:
        The text after the prompt, and what the template left out of the answer where that was found on the way.

    Raises:
        TemplateLoss: the template renders the prompt differently with and without the answer, or leaves nothing of it.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :], None
    shared = next(
        (n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    last = messages[-1]
    answer = last["content"].strip()
    core = without_end(whole, style.ends).rstrip()
    if any(key in last for key in ANSWER_KEYS):
        start = _start_of_answer(whole, conversation, messages, template)
        if start is not None and not whole[shared:start].strip():
            return whole[_begin(prompt, shared, start) :], None
    common = _common_end(core, answer)
    start = len(core) - common
    if common and not whole[shared:start].strip():
        kept = min(common, len(core) - shared)
        cause = None if common == len(answer) else cause_of(answer[: len(answer) - kept])
        return whole[_begin(prompt, shared, start) :], cause
    raise TemplateLoss(DIFFERS if is_contained(answer, whole) else cause_of(answer))


def _begin(prompt: str, shared: int, start: int) -> int:
    """Where the completion begins in a rendered conversation that has `shared` first characters of the prompt."""
    # An answer that itself begins with the text that ends the prompt ("<think>") loses that; one that has but its first
    # characters ("<b>") does not.
    return shared if start < shared and not prompt[shared:].strip() else start


def _start_of_answer(whole: str, conversation: Conversation, messages: Conversation, template: Template) -> int | None:
    """Where an answer with tool calls or reasoning begins in the rendered conversation; None if that cannot be told."""
    bare = {key: value for key, value in messages[-1].items() if key not in ANSWER_KEYS}
    try:
        text = template.render((*conversation, *messages[:-1], {**bare, "content": _PLACE}))
    except TemplateRefusal:
        return None
    return text.index(_PLACE) if _PLACE in text and whole.startswith(text[: text.index(_PLACE)]) else None


def _common_end(text: str, answer: str) -> int:
    """Number of last characters that two texts have in common."""
    return next(
        (n for n, (a, b) in enumerate(zip(reversed(text), reversed(answer), strict=False)) if a != b),
        min(len(text), len(answer)),
    )
