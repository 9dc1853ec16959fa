"""What a row holds beside prompt and answers: context for the chat template, numbers, and columns that nobody reads.

column                                        what becomes of it
system (data.system_column)                   the conversation's system text, where it begins with none
tools (data.tools_column)                     the template's `tools`: a list of schemas, or the same as JSON text
documents                                     the template's `documents`: a list of objects
chat_template_kwargs                          further arguments of the template, over data.chat_template_kwargs
input, beside data.prompt_column=instruction  follows the instruction after a blank line (Alpaca's form)
numbers                                       columns for objectives that read them
images, video, audio                          refused
any other                                     counted as not used
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.messages import MediaFound, encodable, from_json, is_empty, media_kind, plain, type_name
from alphapo_cli.data.sources import CsvText, Row, without_nulls
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.text_pairs import CALLS, NO_CONTEXT, SYSTEM_ROLES, PromptContext, Side
from alphapo_cli.errors import UsageError

INSTRUCTION, INPUT = "instruction", "input"
DOCUMENTS, ARGUMENTS = "documents", "chat_template_kwargs"
# Arguments of apply_chat_template that decide what alphapo does with the text, not what the template writes.
RESERVED = (
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "strftime_now",
)  # fmt: skip


def value_of(row: Row, name: str, cfg: DataConfig) -> Any:
    """The value of a column; None where it is missing, null or in `data.ignore_columns`."""
    return None if name in cfg.ignore_columns else row.values.get(name)


def prompt_value(row: Row, name: str, cfg: DataConfig) -> Any:
    """The value of the prompt column; an instruction's `input` follows after a blank line."""
    value = row.values.get(name)
    more = value_of(row, INPUT, cfg) if name == INSTRUCTION else None
    return f"{value}\n\n{more}" if isinstance(value, str) and isinstance(more, str) and more.strip() else value


def says_prompt(row: Row, prompt: Side, cfg: DataConfig) -> bool:
    """Whether the prompt of a pair has the text of the prompt column, which a row of whole conversations may not need."""
    value = prompt_value(row, cfg.prompt_column, cfg)
    if not isinstance(value, str) or isinstance(prompt, str):
        return True
    text = "".join(value.split())
    return any(text in "".join(message["content"].split()) for message in prompt)


def joins_input(row: Row, name: str) -> bool:
    """Whether the column `name` is an instruction to which an `input` belongs: a text, not messages."""
    return name == INSTRUCTION and all(isinstance(row.values.get(column), str) for column in (INSTRUCTION, INPUT))


def context_of(row: Row, cfg: DataConfig) -> PromptContext:
    """What the row gives the chat template beside its messages; UsageError, naming the row, for a malformed column."""
    system = value_of(row, cfg.system_column, cfg)
    arguments: dict[str, Any] = _arguments(row, cfg)
    tools = _tools(row, cfg)
    if tools:
        arguments["tools"] = tools
    documents = from_json(value_of(row, DOCUMENTS, cfg))
    if _are_objects(documents):
        arguments["documents"] = plain(documents, row, DOCUMENTS)
    if isinstance(system, str) and system.strip():
        return PromptContext(encodable(str(system), row, cfg.system_column), arguments)
    return PromptContext(None, arguments) if arguments else NO_CONTEXT


def beside(prompt: Side, context: PromptContext) -> PromptContext:
    """The context of a prompt: to a conversation with another system text of its own the row's adds nothing."""
    if isinstance(prompt, str) or not prompt or prompt[0]["role"] not in SYSTEM_ROLES:
        return context
    if context.system in (None, prompt[0]["content"]):
        return context
    return replace(context, system=None) if context.arguments else NO_CONTEXT


def _are_objects(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, Mapping) for value in values)


def _tools(row: Row, cfg: DataConfig) -> list[Any]:
    name = cfg.tools_column
    value = from_json(value_of(row, name, cfg))
    if is_empty(value):
        return []
    tools = [from_json(tool) for tool in (value if isinstance(value, list) else [value])]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise UsageError(
            f"{row.where}: '{name}' is {type_name(value)} and no list of tool schemas (objects with name and parameters); "
            f"correct it, or add data.ignore_columns=[{name}]"
        )
    return [_schema(without_nulls(plain(tool, row, name))) for tool in tools]


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    """The schema in the form that templates and serving engines know, {"type": "function", "function": {...}}."""
    bare = "function" not in tool and "name" in tool and ("parameters" in tool or "description" in tool)
    return {"type": "function", "function": tool} if bare else tool


def without_foreign_nulls(side: Side, tools: Sequence[Any]) -> Side:
    """A side whose tool calls have no null arguments that their function does not know.

    Tables give every call the arguments of all functions, and what they write as JSON keeps the nulls.

    Args:
        side: text or messages.
        tools: the schemas of the functions.

    Returns:
        The side.
    """
    known = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool.get("function"), dict) else {}
        properties = (function.get("parameters") or {}).get("properties")
        if isinstance(properties, dict):
            known[function.get("name")] = properties

    def call_of(call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(arguments, dict) or function.get("name") not in known:
            return call
        own = known[function["name"]]
        arguments = {key: value for key, value in arguments.items() if value is not None or key in own}
        return {**call, "function": {**function, "arguments": arguments}}

    if isinstance(side, str) or not known or not any(key in message for message in side for key in CALLS):
        return side
    return tuple(
        {key: [call_of(call) for call in value] if key in CALLS else value for key, value in message.items()}
        for message in side
    )


def _arguments(row: Row, cfg: DataConfig) -> dict[str, Any]:
    value = from_json(value_of(row, ARGUMENTS, cfg))
    if is_empty(value):
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{row.where}: '{ARGUMENTS}' is {type_name(value)}, not an object of template arguments")
    check_arguments(value, f"{row.where}: '{ARGUMENTS}'")
    return dict(plain(value, row, ARGUMENTS))


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Refuse (UsageError) template arguments that alphapo sets itself."""
    taken = [name for name in arguments if name in RESERVED]
    if taken:
        columns = " (a column of its own)" if taken[0] in ("tools", "documents") else ""
        raise UsageError(
            f"{where} sets {taken[0]}, which is no argument of a template to choose{columns}; leave it out"
        )


def check_media(row: Row, read: Collection[str], cfg: DataConfig) -> None:
    """Refuse images, video and audio in columns beside the conversation.

    Args:
        row: the row.
        read: the columns of prompt and answers, which are read as text or messages.
        cfg: the data settings.

    Raises:
        MediaFound: a column holds media, by its name or by its values.
    """
    for name, value in row.values.items():
        if name in read or name in cfg.ignore_columns or is_empty(value) or isinstance(value, bool | int | float):
            continue
        kind = media_kind(str(name)) or _media_value(value)
        if kind is not None:
            raise MediaFound(f"{kind} in column '{name}'", row)


def _media_value(value: Any) -> str | None:
    """The kind of media that a value of the hub's Image, Video and Audio columns is."""
    if isinstance(value, list):
        return _media_value(value[0]) if value else None
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return "image"
        return "audio" if "array" in value and "sampling_rate" in value else None
    if isinstance(value, bytes | bytearray):
        return "bytes"
    return "image" if type(value).__module__.partition(".")[0] == "PIL" else None


def numbers(row: Row, read: Collection[str]) -> dict[str, float]:
    """The row's finite numbers by column, those in `read` left out."""
    found: dict[str, float] = {}
    for name, value in row.values.items():
        if name not in read and isinstance(value, bool | int | float | CsvText):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                continue
            if math.isfinite(number):
                found[name] = number
    return found


def count_unread(row: Row, read: Collection[str], known: Mapping[str, float], cfg: DataConfig, tally: Tally) -> None:
    """Count the columns of a row that are neither read, nor numbers (`known`), nor empty."""
    for name, value in row.values.items():
        if name in known or is_empty(value) or (isinstance(value, float | int) and name not in cfg.ignore_columns):
            continue
        if name not in read or name in cfg.ignore_columns:
            tally.add(str(name), row.where)


def context_columns(row: Row, context: PromptContext, cfg: DataConfig) -> list[str]:
    """The columns that `context_of` and `prompt_value` have read in this row."""
    read = [ARGUMENTS, cfg.tools_column]
    read += [cfg.system_column] if context.system is not None else []
    read += [DOCUMENTS] if DOCUMENTS in context.arguments else []
    read += [INPUT] if joins_input(row, cfg.prompt_column) else []
    return read


# Columns that hold what alphapo reads under another name -> the setting that reads them.
READ_BY = {
    re.compile(r"(custom_)?system_(prompt|message|text)", re.I): "data.system_column={name}",
    re.compile(r"functions?|tool_(schema|list|definition)s?|available_tools", re.I): "data.tools_column={name}",
    re.compile(r"input", re.I): "data.prompt_column=instruction joins it",
}


def reads(name: str) -> str | None:
    """What to type so that an unread column is read; None where alphapo knows no use of it."""
    return next((text.format(name=name) for pattern, text in READ_BY.items() if pattern.fullmatch(name)), None)
