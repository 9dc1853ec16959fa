"""Messages of a row: role, text, and every further key that is not null, in the form that chat templates read.

What is written in several ways is brought to one: content as a list of text parts becomes text, a tool call
{"name", "arguments"} or a `function_call` becomes {"type": "function", "function": {...}}, and arguments written as JSON
text become the object, as serving engines pass them to the template. Images, video and audio are refused.
"""

from __future__ import annotations

import datetime
import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from alphapo_cli.data.sources import Row
from alphapo_cli.data.text_pairs import ANSWER_KEYS, CALLS, ROLES, TOOL_ROLES, Conversation, Message, Side, canonical
from alphapo_cli.errors import UsageError
from alphapo_cli.storage.strict_json import half_character

_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = re.compile(
    r"(?:input_)?(image|img|picture|photo|video|audio|speech|pixel_value)s?(?:_?(?:path|url|file|bytes)s?)?(?:_?[0-9]+)?"
)


class MediaFound(UsageError):
    """A row holds what text cannot stand for. `what`: kind and place, without the row."""

    def __init__(self, what: str, row: Row) -> None:
        super().__init__(f"{row.where}: {what}")
        self.what = what


# What to type where a row is not of the form that data.format, or the first row, says.
OTHER_FORM = "type data.format=auto, which reads all rows as the first one is, or another form of docs/data.md"


def media_kind(name: str) -> str | None:
    """The kind of media that a column, key or part type of that name holds: image, video, audio; None for others."""
    found = _MEDIA.fullmatch(name.lower())
    if found is None:
        return None
    return {"video": "video", "audio": "audio", "speech": "audio"}.get(found.group(1), "image")


def message_list(value: Any, row: Row, name: str) -> Conversation:
    """The messages in column `name`; UsageError, naming the row, for a value that is no message list."""
    if not isinstance(value, list):
        raise UsageError(f"{row.where}: '{name}' is {type_name(value)}, not a message list; {OTHER_FORM}")
    return tuple(read_message(message, row, f"{name}[{index}]") for index, message in enumerate(value))


def read_message(value: Any, row: Row, name: str) -> Message:
    """Read one message.

    Args:
        value: the message as the source has it.
        row: its row, for messages.
        name: its column and position, for messages.

    Returns:
        role, content as text, and the further keys that are not null.

    Raises:
        MediaFound: it holds an image, a video or audio.
        UsageError: it is no message, or its role or content cannot be read.
    """
    if not isinstance(value, Mapping) or "role" not in value:
        raise UsageError(f"{row.where}: '{name}' is not a message with 'role' and 'content'{_keys(value)}")
    role = value["role"]
    if role not in ROLES:
        raise UsageError(f"{row.where}: '{name}' has role {reprlib.repr(role)}; supported are {', '.join(ROLES)}")
    more = {str(key): plain(item, row, name) for key, item in value.items() if key not in ("role", "content")}
    more = {key: item for key, item in more.items() if not is_empty(item)}
    kind = next((kind for key in more if (kind := media_kind(key))), None)
    if kind is not None:
        raise MediaFound(f"{kind} in the messages of '{_column(name)}'", row)
    if "function_call" in more:
        more.setdefault("tool_calls", [more.pop("function_call")])
    for key in CALLS:
        if key in more:
            more[key] = _calls(more[key], row, f"{name}.{key}")
    content = value.get("content")
    if isinstance(content, list):
        content = _parts(content, more, row, name)
    if content is None and (role in TOOL_ROLES or any(key in more for key in ANSWER_KEYS)):
        content = ""
    if content is None and "content" not in value:
        raise UsageError(f"{row.where}: '{name}' is not a message with 'role' and 'content'{_keys(value)}")
    if not isinstance(content, str) and role in TOOL_ROLES:
        content = json.dumps(plain(content, row, name), ensure_ascii=False)
    if not isinstance(content, str):
        raise UsageError(f"{row.where}: the content of '{name}' is {type_name(content)}, not text")
    return {"role": role, "content": encodable(str(content), row, name), **more}


def _keys(value: Any) -> str:
    return f" (keys: {', '.join(map(str, value))})" if isinstance(value, Mapping) else ""


def _column(name: str) -> str:
    """The column of a value's name: chosen of chosen[1]."""
    return name.partition("[")[0]


def _parts(parts: list[Any], more: Message, row: Row, name: str) -> Any:
    """The text of a content that is a list of parts; those of a thought go to `more`. Not parts: the list itself."""
    texts = []
    for part in parts:
        if not isinstance(part, Mapping):
            return parts
        filled = {str(key): item for key, item in part.items() if not is_empty(item)}
        kind = str(filled.get("type", "text" if "text" in part else ""))
        media = media_kind(kind) or next((found for key in filled if (found := media_kind(key))), None)
        if media is not None:
            raise MediaFound(f"{media} in the messages of '{_column(name)}'", row)
        thought = filled.get("thinking", filled.get("reasoning"))
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(thought, str):
            more.setdefault("reasoning_content", encodable(thought, row, name))
        else:
            raise UsageError(
                f"{row.where}: the content of '{name}' holds a part of type {reprlib.repr(kind)}{_keys(part)}; alphapo reads "
                "parts of type text"
            )
    return "\n".join(texts)


def _calls(value: Any, row: Row, name: str) -> list[Any]:
    """Tool calls as a list of {"type": "function", "function": {"name", "arguments"}}, whatever else they hold kept."""
    value = from_json(value)
    calls = [from_json(call) for call in (value if isinstance(value, list) else [value])]
    if not all(isinstance(call, dict) for call in calls):
        raise UsageError(
            f"{row.where}: '{name}' is not a list of tool calls; each is an object with name and arguments"
        )
    return [_call(call) for call in calls]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = from_json(call.get("function"))
    if function is None and "name" in call:
        function = {key: call[key] for key in ("name", "arguments", "parameters") if key in call}
        call = {key: item for key, item in call.items() if key not in function}
    if not isinstance(function, dict):
        return call
    arguments = from_json(function.get("arguments"))
    if isinstance(arguments, dict):  # a text that is no JSON object stays as it is: the answer may be wrong on purpose
        function = {**function, "arguments": arguments}
    return {"type": "function", **call, "function": function}


def from_json(value: Any) -> Any:
    """The list or object that a text writes in JSON; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return read if isinstance(read, list | dict) else value
    return value


def plain(value: Any, row: Row, name: str) -> Any:
    """A value of JSON types that writes as UTF-8; dates and other types of tables become text."""
    if isinstance(value, str):
        return encodable(str(value), row, name)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, row, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, row, name) for item in value]
    if isinstance(value, bytes | bytearray):
        raise MediaFound(f"bytes in the value of '{_column(name)}'", row)
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, empty text or an empty list or object."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def encodable(text: str, row: Row, name: str) -> str:
    """`text`; UsageError, naming the row, where it holds half a character, which UTF-8 cannot write."""
    at = half_character(text)
    if at is not None:
        raise UsageError(
            f"{row.where}: '{name}' holds half a character (\\u{ord(text[at]):04x}) at {at}; it cannot be written "
            "as UTF-8; correct the row or leave it out"
        )
    return text


def type_name(value: Any) -> str:
    """The type of a value in words: a list, an object, a number."""
    names = {
        list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number", type(None): "null"
    }  # fmt: skip
    return "text" if isinstance(value, str) else names.get(type(value), f"a {type(value).__name__}")


def answer_text(answer: Side) -> str:
    """The text of an answer in either form; several turns are joined by blank lines."""
    return answer if isinstance(answer, str) else "\n\n".join(message["content"] for message in answer)


def answer_content(answer: Side) -> tuple[str, str]:
    """What an answer consists of, without white space around it: its text, and its tool calls and reasoning as JSON."""
    more: list[Any] = []
    if not isinstance(answer, str):
        more = [{key: message[key] for key in ANSWER_KEYS if key in message} for message in answer]
    return answer_text(answer).strip(), canonical(more) if any(more) else ""
