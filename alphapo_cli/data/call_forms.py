"""The form in which a chat template shows tool calls: templates differ in what they expect of a missing text and of arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from alphapo_cli.data.text_pairs import Message

_NAME, _VALUE = "alphapo-probe", "alphapo-value"


@dataclass(frozen=True)
class CallForm:
    """A form of tool calls. `text`: of a message without text; `as_json`: whether arguments are written as JSON text."""

    text: str | None = ""
    as_json: bool = False

    def applied(self, message: Message) -> Message:
        """A message with tool calls in this form."""
        calls = message["tool_calls"]
        if self.as_json:
            calls = [_written(call) for call in calls]
        return {**message, "content": message["content"] or self.text, "tool_calls": calls}


# The form that transformers documents comes first.
_FORMS = (CallForm(), CallForm(None), CallForm(as_json=True), CallForm(None, as_json=True))
_FORM_OF: dict[str, CallForm] = {}  # by template


def form_of(tokenizer: Any) -> CallForm:
    """The first form in which the tokenizer's chat template shows a call; the documented one where it shows none."""
    template = str(tokenizer.chat_template)
    if template not in _FORM_OF:
        _FORM_OF[template] = next((form for form in _FORMS if _is_shown(form, tokenizer)), _FORMS[0])
    return _FORM_OF[template]


def _is_shown(form: CallForm, tokenizer: Any) -> bool:
    """Whether the template writes a call of that form with its arguments, and no None for what is missing."""
    call = {"type": "function", "id": "call00000", "function": {"name": _NAME, "arguments": {"name": _VALUE}}}
    message = form.applied({"role": "assistant", "content": "", "tool_calls": [call]})
    try:
        text = str(tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}, message], tokenize=False))
    except Exception:  # a template is a program and may fail in any way
        return False
    return _NAME in text and _VALUE in text and "None" not in text


def _written(call: Any) -> Any:
    """A call whose arguments are written as JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
