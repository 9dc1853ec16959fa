"""Special tokens that somebody typed: text such as <|im_end|> inside a prompt or an answer.

A tokenizer that reads a rendered conversation cannot tell them from those of the chat template, so a typed one ends the
turn. `data.special_tokens_in_text` decides: `parse` does as transformers and vLLM do, `escape` makes plain text of
them, `refuse` stops. Under `escape` they are masked before the template is applied, by characters that stand for no
text, and read as text where the rendered conversation is tokenised. An end token that closes an answer is no part of
its text, and taken off before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.text_pairs import Conversation

# Noncharacters of Unicode, which no text interchanges: a mark is _OPEN, the token's number in base 16, _CLOSE.
_OPEN, _CLOSE, _DIGITS = "\ufdd0", "\ufdd1", [chr(0xFDE0 + n) for n in range(16)]
_MARK = re.compile(f"{_OPEN}([{_DIGITS[0]}-{_DIGITS[-1]}]+){_CLOSE}")


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of a tokenizer's special tokens, the longest first."""
    return _special_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=16)  # transformers makes its table of added tokens anew at each look
def _special_tokens(tokenizer: Any, size: int) -> tuple[str, ...]:
    """`special_tokens` of a tokenizer with `size` tokens: some may have been added since."""
    found = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= set(map(str, tokenizer.all_special_tokens))
    return tuple(sorted((text for text in found if text.strip()), key=lambda text: (-len(text), text)))


@lru_cache(maxsize=16)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


@lru_cache(maxsize=16)
def _as_tokenised(tokenizer: Any, tokens: tuple[str, ...]) -> re.Pattern[str]:
    """What the tokenizer takes for each of its special tokens, one group each: some take white space around them, too."""
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    parts = []
    for text in tokens:
        token, part = added.get(text), f"({re.escape(text)})"
        if token is not None:
            part = rf"(?<!\w){part}(?!\w)" if token.single_word else part
            # The first of several white spaces alone: each would look through all that follow.
            part = (r"(?:(?<!\s)\s+)?" if token.lstrip else "") + part + (r"\s*" if token.rstrip else "")
        parts.append(part)
    return re.compile("|".join(parts) or r"(?!)")


def stripped_around(text: str, tokenizer: Any) -> str:
    """A text without the white space that its special tokens take from it where they are read as tokens."""
    tokens = special_tokens(tokenizer)
    return _as_tokenised(tokenizer, tokens).sub(lambda found: found.group(found.lastindex or 0), text)


def spelled_in(text: str, tokens: tuple[str, ...]) -> list[str]:
    """The special tokens that a text spells, in order."""
    return _pattern(tokens).findall(text)


def masked_text(text: str, tokenizer: Any, cfg: DataConfig) -> str:
    """A typed text with its special tokens masked, under `data.special_tokens_in_text=escape`; else unchanged."""
    if cfg.special_tokens_in_text != "escape":
        return text
    tokens = special_tokens(tokenizer)
    return _pattern(tokens).sub(lambda found: _mark(tokens.index(found.group())), text)


def masked(messages: Conversation, tokenizer: Any, cfg: DataConfig) -> Conversation:
    """A conversation whose texts are `masked_text`: contents, thoughts, and those inside tool calls."""
    if cfg.special_tokens_in_text != "escape":
        return messages
    return tuple(
        {key: value if key == "role" else masked_value(value, tokenizer, cfg) for key, value in message.items()}
        for message in messages
    )


def masked_value(value: Any, tokenizer: Any, cfg: DataConfig) -> Any:
    """A JSON value whose texts, names of objects included, are `masked_text`."""
    if isinstance(value, str):
        return masked_text(value, tokenizer, cfg)
    if isinstance(value, Mapping):
        return {masked_value(k, tokenizer, cfg): masked_value(v, tokenizer, cfg) for k, v in value.items()}
    return [masked_value(item, tokenizer, cfg) for item in value] if isinstance(value, list | tuple) else value


def texts_in(value: Any) -> Iterator[str]:
    """The texts of a JSON value, names of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from texts_in(name)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _mark(number: int) -> str:
    return _OPEN + "".join(_DIGITS[int(digit, 16)] for digit in f"{number:x}") + _CLOSE


def _number(mark: re.Match[str]) -> int:
    return int("".join(f"{ord(digit) - 0xFDE0:x}" for digit in mark.group(1)), 16)


def is_masked(text: str) -> bool:
    """Whether a text holds masked special tokens."""
    return _OPEN in text and _MARK.search(text) is not None


def unmasked(text: str, tokenizer: Any) -> str:
    """The text as it was typed."""
    tokens = special_tokens(tokenizer)
    return _MARK.sub(lambda mark: tokens[n] if (n := _number(mark)) < len(tokens) else mark.group(), text)


@dataclass(frozen=True)
class MaskedEncoding:
    """What of a tokenizers.Encoding is used: ids, and their (start, stop) in the masked text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def encode_masked(text: str, tokenizer: Any) -> MaskedEncoding:
    """Tokenise a rendered text with masked special tokens: the template's are tokens, the masked ones are text.

    As the tokenizer itself does, the text is split at the tokens, and each part is encoded by itself.

    Args:
        text: the rendered text.
        tokenizer: a fast transformers tokenizer.

    Returns:
        Ids and offsets.
    """
    found = MaskedEncoding([], [])
    at = 0
    for token in [*_as_tokenised(tokenizer, special_tokens(tokenizer)).finditer(text), None]:
        stop = len(text) if token is None else token.start()
        if stop > at:
            _append_part(found, text, at, stop, tokenizer)
        if token is not None:
            found.ids.append(int(tokenizer.convert_tokens_to_ids(token.group(token.lastindex or 0))))
            found.offsets.append(token.span())
            at = token.end()
    return found


def _append_part(found: MaskedEncoding, text: str, first: int, stop: int, tokenizer: Any) -> None:
    """Append the ids of text[first:stop], which holds no token of the template."""
    places: list[int] = []  # of every character of the typed text in `text`
    typed, at = "", first
    for mark in [*_MARK.finditer(text, first, stop), None]:
        end = stop if mark is None else mark.start()
        typed += text[at:end]
        places += range(at, end)
        if mark is not None:
            whole = unmasked(mark.group(), tokenizer)
            typed += whole
            places += [mark.start()] * len(whole)
            at = mark.end()
    ends = [*[place + 1 for place in places], stop]
    # A part after a token is no beginning of a text, before which some tokenizers put a space.
    anchor = "\n" if first and not _begins_alike(tokenizer) else ""
    encoding = tokenizer(
        [anchor + typed], add_special_tokens=False, split_special_tokens=True, verbose=False
    ).encodings[0]
    for number, (a, b) in zip(encoding.ids, encoding.offsets, strict=True):
        a, b = a - len(anchor), b - len(anchor)
        if a < 0:
            continue
        found.ids.append(int(number))
        found.offsets.append((places[a] if a < len(places) else stop, ends[b - 1] if b else places[0]))


def _begins_alike(tokenizer: Any) -> bool:
    """Whether a text after a special token has the ids that it has at the beginning."""
    tokens = special_tokens(tokenizer)
    alone, after = (
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in ("a", f"{tokens[0]}a")
    )
    return bool(after[1:] == alone)
