"""What a chat template leaves out of a conversation.

Whether it writes a thing is found by rendering, not from its text: an answer's text must be in the completion, and
without a tool call, a thought, a tool or a key of a message the text must be another one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.template import Template
from alphapo_cli.data.template_errors import TemplateRefusal
from alphapo_cli.data.text_pairs import ANSWER_KEYS, CALLS, REASONING, Conversation, Message, PromptContext

_TAG = r"(?:</[\w ]+>|\[/\w+\]|<\|[\w|]+\|>)"  # that closes a part of a text
_THOUGHT_END = re.compile(rf"({_TAG})\s*$")


def cause_of(removed: str) -> str:
    """What a template leaves out that removes this beginning of an answer's text."""
    mark = _THOUGHT_END.search(removed)
    if mark is not None:
        return f"leaves out an answer's text up to '{mark.group(1)}'"
    return "leaves out a part of an answer's text"


def lost_of(
    prompt: str, completion: str, whole: str, conversation: Conversation, messages: Conversation, template: Template
) -> Iterator[str]:
    """Find what the template leaves out of an answer: text, tool calls, reasoning.

    Args:
        prompt: the rendered prompt.
        completion: what follows it.
        whole: the rendered conversation.
        conversation: the prompt's messages.
        messages: the answer's.
        template: the template.

    Yields:
        "leaves out ..." for each thing.
    """
    for position, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        content = message["content"].strip()
        emptied = (*conversation, *messages[:position], {**message, "content": ""}, *messages[position + 1 :])
        if not (is_contained(content, completion) or _is_continued(prompt, content, completion)) and (
            not _is_rewritten(content, completion) or _same(whole, emptied, template)
        ):
            kept = next((n for n in _thought_ends(content) if is_contained(content[n:], completion)), None)
            yield cause_of(content if kept is None else content[:kept]) + (
                " beside tool calls" if kept is None and any(key in message for key in CALLS) else ""
            )
        for what, less in _lesser(message):
            if _same(whole, (*conversation, *messages[:position], less, *messages[position + 1 :]), template):
                yield f"leaves out an answer's {what}"


def _thought_ends(content: str) -> list[int]:
    """Positions in a text after its closing tags."""
    return [match.end() for match in re.finditer(_TAG, content)]


def is_contained(content: str, text: str) -> bool:
    """Whether `content` is in `text`, white space aside."""
    return content.strip() in text or _squeezed(content) in _squeezed(text)


def _is_continued(prompt: str, content: str, completion: str) -> bool:
    """Whether the prompt ends with the beginning of `content` ("<think>") and `completion` has the rest."""
    start, text, rest = _squeezed(prompt), _squeezed(content), _squeezed(completion)
    return any(start.endswith(text[:n]) and text[n:] in rest for n in range(1, min(len(text), 64)))


def _is_rewritten(content: str, text: str) -> bool:
    """Whether `text` has all characters of `content`, in another order or case."""
    return not Counter(_squeezed(content).casefold()) - Counter(_squeezed(text).casefold())


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _lesser(message: Message) -> Iterator[tuple[str, Message]]:
    """The message without each thing that its answer consists of beside text."""
    thoughts = [key for key in REASONING if key in message]
    if thoughts:
        yield thoughts[0], {key: value for key, value in message.items() if key not in REASONING}
    calls = message.get("tool_calls") or []
    for n, call in enumerate(calls):
        rest = [*calls[:n], *calls[n + 1 :]]
        yield "tool_calls", {**message, "tool_calls": rest} if rest else _without(message, "tool_calls")
        function = call.get("function")
        if isinstance(function, dict) and function.get("arguments"):
            bare = {**call, "function": {**function, "arguments": {}}}
            yield "arguments of tool_calls", {**message, "tool_calls": [*calls[:n], bare, *calls[n + 1 :]]}
    if "refusal" in message:
        yield "refusal", _without(message, "refusal")


def _without(message: Message, key: str) -> Message:
    return {name: value for name, value in message.items() if name != key}


def _same(text: str, messages: Iterable[Message], template: Template, generation: bool = False) -> bool:
    """Whether other messages give the same text; what the template refuses does not."""
    try:
        return template.render(tuple(messages), generation) == text
    except TemplateRefusal:
        return False


def unused_of(
    prompt: str, conversation: Conversation, template: Template, context: PromptContext, cfg: DataConfig
) -> Iterator[str]:
    """Find what the template leaves out of a prompt.

    Args:
        prompt: the rendered prompt.
        conversation: its messages.
        template: the template.
        context: what its row gives the template.
        cfg: the data settings.

    Yields:
        Names: tools, documents, the system column, messages of a role, `messages[].key` for keys of messages.
    """
    for name in ("tools", "documents"):
        if name in template.arguments:
            rest = {key: value for key, value in template.arguments.items() if key != name}
            if _same(prompt, conversation, replace(template, arguments=rest), generation=True):
                yield name
    if context.system is not None and _same(prompt, conversation[1:], template, generation=True):
        yield cfg.system_column
    for position, message in enumerate(conversation):
        content = message["content"]
        if is_contained(content, prompt) or (position == 0 and context.system is not None):
            continue
        if message["role"] == "assistant" and _thought_ends(content):
            yield "reasoning of earlier answers"
            continue
        emptied = (*conversation[:position], {**message, "content": ""}, *conversation[position + 1 :])
        if _same(prompt, emptied, template, generation=True):
            yield f"messages of role {message['role']}"
    yield from unused_keys(prompt, (), conversation, template, generation=True)


def unused_keys(
    text: str, before: Conversation, messages: Conversation, template: Template, *, generation: bool
) -> Iterator[str]:
    """Find keys of messages that the template leaves out.

    Args:
        text: the rendered conversation.
        before: its first messages.
        messages: its further messages, whose keys are looked at.
        template: the template.
        generation: whether `text` is a prompt; of an answer, the keys that are a part of it are a loss (`lost_of`).

    Yields:
        `messages[].key` for each.
    """
    keys = dict.fromkeys(key for message in messages for key in message if key not in ("role", "content"))
    for key in keys:
        if not generation and key in ANSWER_KEYS:
            continue
        dropped = REASONING if key in REASONING else (key,)
        less = ({name: value for name, value in message.items() if name not in dropped} for message in messages)
        if _same(text, (*before, *less), template, generation):
            yield f"messages[].{key}"
