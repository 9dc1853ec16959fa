"""What a server says in place of an answer: its status and words, wherever it puts them.

OpenAI, vLLM, llama.cpp   {"error": {"message", "type", "code"}}, the code a number or a name; older vLLM without "error"
Azure                     {"error": {"code": "429", "message"}} or {"statusCode", "message"}
OpenRouter                {"error": {"code": 502, "message", "metadata": {"raw"}}}, also inside a choice
TGI, Ollama               {"error": "text"}, with or without "error_type"
Anthropic's gateways      {"type": "error", "error": {"type": "overloaded_error", "message"}}
Google                    [{"error": {"code", "message", "status": "RESOURCE_EXHAUSTED"}}]
Cloudflare                {"success": false, "errors": [{"code", "message"}]}, and pages of HTML
FastAPI, problem+json     {"detail"}, {"title", "status", "detail"}

Any of them may come with HTTP 200, behind a gateway that does not look inside, and as the only event of a stream.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

# Names of errors and what they stand for, as parts of their type, code or status without punctuation; the first fits.
_NAMED = (
    ("insufficientquota", 402), ("billing", 402), ("credit", 402), ("paymentrequired", 402), ("apikey", 401),
    ("authentication", 401), ("unauthenticated", 401), ("unauthorized", 401), ("permission", 403), ("forbidden", 403),
    ("contentfilter", 400), ("contentpolicy", 400), ("responsibleai", 400), ("notfound", 404), ("notavailable", 404),
    ("ratelimit", 429), ("throttl", 429), ("resourceexhausted", 429), ("toomanyrequests", 429), ("toolarge", 413),
    ("overload", 503), ("unavailable", 503), ("contextlength", 400), ("contextsize", 400), ("validation", 422),
    ("invalid", 400), ("badrequest", 400), ("timeout", 504), ("servererror", 500), ("apierror", 500), ("internal", 500),
)  # fmt: skip
# The same for servers that send words alone.
_SAID = (
    (re.compile(r"\bmodel\b.{0,120}\b(?:not found|not exist|unknown)|unknown model|no such model", re.I), 404),
    (re.compile(r"(?:invalid|incorrect|missing|no) api.?key|\bauthentication (?:error|failed)|\bunauthori[sz]ed\b", re.I), 401),
    (re.compile(r"rate limit|too many requests", re.I), 429),
    (re.compile(r"context (?:length|size|window)|too long|too large", re.I), 400),
)  # fmt: skip
_STATUS = ("code", "status", "status_code", "statusCode", "http_status", "httpStatusCode")
_NAMES = ("type", "code", "status", "error_type", "__type", "reason")
_TEXTS = (
    "message", "Message", "msg", "error_msg", "errorMessage", "error_message", "status_msg", "detail",
    "error_description", "error", "reason", "title", "errors", "base_resp", "raw",
)  # fmt: skip
_COMMENTS = re.compile(r"\A(?::[^\n]*\n\s*)+")
_TITLE = re.compile(r"<(title|h1)\b[^>]*>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_PAGE = re.compile(r"\s*(?:<!doctype html|<html|<head|<body|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)
# Answers of other protocols: (a key and its value, None for any, whose protocol it is).
_FOREIGN = (
    ("type", "message", "Anthropic's"), ("object", "response", "OpenAI's Responses API's"), ("done", True, "Ollama's own"),
    ("candidates", None, "Google's own"), ("generated_text", None, "TGI's own"),
)  # fmt: skip


@dataclass(frozen=True)
class ServerError:
    """An answer that holds an error.

    `status`: what the answer, or the error in it, calls its HTTP status; `acts_as`: the one that says what to do; `message`:
    the server's words, not truncated, because a key must be found in them as a whole; `kind`: its names for the error;
    `costly`: whether the server may charge for it.
    """

    status: int
    acts_as: int
    message: str
    kind: str = ""
    costly: bool = False


def read(answer: httpx.Response) -> Any | ServerError:
    """Read what a server sent.

    Args:
        answer: an answer of any status.

    Returns:
        The parsed body, whose first choice is an object; or the error that was sent in its place.
    """
    status, content = answer.status_code, answer.content
    try:
        body = _parsed(content)
    except (ValueError, RecursionError):
        return _no_json(answer)
    return error_in(body, status)


def error_in(body: Any, status: int = 200) -> Any | ServerError:
    """Find the error in a parsed answer.

    Args:
        body: the answer.
        status: its HTTP status.

    Returns:
        The error; `body` where it is an answer with choices.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    whole = body if isinstance(body, dict) else {}
    choice = _choice(whole)
    error = whole.get("error") or whole.get("errors")
    if 200 <= status < 300 and choice is not None:
        own = choice.get("error")
        spoilt = choice.get("finish_reason") == "error" or (error and not _says(choice))
        if not own and not spoilt:
            return body
        error = own or error or {"message": "the server broke the answer off (finish_reason is error)"}
    if isinstance(error, list) and error:
        error = error[0]
    inside: Mapping[str, Any] = error if isinstance(error, dict) else whole
    names = [value for place in (inside, whole) for key in _NAMES if isinstance(value := place.get(key), str)]
    kind = " ".join(names if error or status >= 300 else [])
    message = _text(error) or _text(inside) or (_text(whole) if error else None)
    if message is None and not error and (foreign := _foreign(whole)):
        return ServerError(
            status, 404, f"an answer in {foreign} format, not in that of OpenAI's chat completions", kind
        )
    if message is None:
        message = "an error without a word" if error else f"an answer without choices{_shown(body)}"
    named = _status_in(inside) or _status_in(whole)
    if not 200 <= status < 300:
        return ServerError(status, status, message, kind)
    return ServerError(named or status, named or _meant(kind, message) or status, message, kind)


def _shown(body: Any) -> str:
    """A body of no known form, in parentheses; empty where there is nothing to see."""
    return f" ({json.dumps(body, ensure_ascii=False)})" if body else ""


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = body.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _says(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    return bool(choice.get("logprobs")) or (isinstance(message, dict) and bool(message.get("content")))


def _status_in(body: Mapping[str, Any]) -> int | None:
    texts = (str(value) for key in _STATUS if isinstance(value := body.get(key), int | str))
    return next((int(text) for text in texts if text.isascii() and text.isdigit() and 400 <= int(text[:9]) < 600), None)


def _meant(kind: str, message: str) -> int | None:
    """The status that an error's names, or else its words, stand for."""
    flat = re.sub(r"[^a-z ]", "", kind.lower())
    found = next((status for part, status in _NAMED if part in flat), None)
    return found or next((status for pattern, status in _SAID if pattern.search(message)), None)


def _text(found: Any, depth: int = 4) -> str | None:
    """The words in an error of any form: a text, or one of the usual keys, at any of a few depths."""
    if isinstance(found, str):
        return found.strip() or None
    if isinstance(found, list):
        texts = [text for each in found[:3] if depth and (text := _text(each, depth - 1))]
        return "; ".join(texts) or None
    if not isinstance(found, dict) or not depth:
        return None
    said = next((text for key in _TEXTS if (text := _text(found.get(key), depth - 1))), None)
    # A gateway's own words are general ("Provider returned error"): the provider's say what happened.
    raw = _text((found.get("metadata") or {}).get("raw")) if isinstance(found.get("metadata"), dict) else None
    where = ".".join(str(part) for part in found["loc"]) if isinstance(found.get("loc"), list) else None
    parts = [part for part in (where, said, raw) if part]
    return ": ".join(parts) if said else None


def _foreign(body: Mapping[str, Any]) -> str | None:
    return next((who for key, value, who in _FOREIGN if key in body and value in (None, body[key])), None)


def _parsed(content: bytes) -> Any:
    """JSON in whatever encoding of Unicode; bytes behind the end of an object are left out. Not JSON: a ValueError."""
    text = content.decode(json.detect_encoding(content), "replace").lstrip("\ufeff \t\r\n")
    # ": still working", in lines of their own, by which a gateway keeps a connection open.
    text = _COMMENTS.sub("", text)
    body, end = json.JSONDecoder().raw_decode(text)
    if text[end:].strip("\0 \t\r\n") and not (isinstance(body, dict) and body):
        raise ValueError("something follows")
    return body


def _error_in_stream(text: str, status: int) -> ServerError | None:
    """The error in the first event of a stream that tells one."""
    for line in text.splitlines():
        if line.startswith("data:"):
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line.removeprefix("data:"))
                if isinstance(event, dict) and (event.get("error") or "choices" not in event):
                    found = error_in(event, status)
                    return found if isinstance(found, ServerError) else None
    return None


def _no_json(answer: httpx.Response) -> ServerError:
    """The error of an answer that is not JSON."""
    status, text = answer.status_code, answer.text.strip("\ufeff\0 \t\r\n")
    good = 200 <= status < 300
    if not text:
        return ServerError(status, status, "an empty answer" if good else "")
    if _PAGE.match(text):
        found = _TITLE.search(text)
        title = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found[2])).split()) if found else ""
        plain = title or " ".join(re.sub(r"<[^>]*>", " ", text).split())
        return ServerError(status, status, f"{'not JSON but ' if good else ''}a web page ({plain})", kind="page")
    if not good:
        return ServerError(status, status, text)
    if text.startswith(("data:", "event:", "id:")):
        return _error_in_stream(text, status) or ServerError(
            status, status, "an event stream, not JSON", kind="stream", costly=True
        )
    encoding = answer.headers.get("content-encoding", "")
    packed = f", packed as {encoding}" if encoding not in ("", "identity", "gzip", "deflate") else ""
    # It may be half of an answer that was paid for.
    return ServerError(status, status, f"an answer that is not JSON{packed} ({text})", costly=True)
