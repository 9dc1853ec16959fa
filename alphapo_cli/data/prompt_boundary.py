"""Where a completion's ids begin: split off behind the prompt, out of the encoding of the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Split:
    """A completion's ids. `straddled`: a token reached over the boundary; `exact`: the text is the original one."""

    ids: list[int]
    straddled: bool = False
    exact: bool = True


def split(prompt_ids: list[int], prompt: str, completion: str, whole: Any, tokenizer: Any) -> Split:
    """The completion's ids out of the whole text's encoding (a tokenizers.Encoding)."""
    ids: list[int] = whole.ids
    if ids[: len(prompt_ids)] == prompt_ids:
        return Split(ids[len(prompt_ids) :])
    # A token reaches over the boundary, or the text behind the prompt changes the prompt's own tokens.
    want = _decode(tokenizer, ids)
    attempts = [[*fragment, *rest] for fragment, rest in _repairs(prompt, completion, whole, tokenizer)]
    for attempt in attempts:
        if _decode(tokenizer, [*prompt_ids, *attempt]) == want:
            return Split(attempt, straddled=True)
    return Split(attempts[0], straddled=True, exact=False)


def _repairs(prompt: str, completion: str, whole: Any, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Ways to tokenise anew the text between the boundary and a later token: the least first, all of it last.

    A token later than the first one behind the boundary is tried too, because some tokenizers' offsets leave out the
    space that belongs to a token.
    """
    offsets: list[tuple[int, int]] = whole.offsets
    inside = [k for k, (start, stop) in enumerate(offsets) if start >= len(prompt) and stop > start]
    stops = [(offsets[k][0] - len(prompt), k) for k in inside[:2]]
    repairs: list[tuple[list[int], list[int]]] = []
    for length, k in [*stops, (len(completion), len(offsets))]:
        fragment = completion[:length]
        if not fragment:
            repairs.append(([], whole.ids[k:]))
            continue
        repairs.extend((ids, whole.ids[k:]) for ids in _fragment_ids(fragment, tokenizer))
    return repairs


def _fragment_ids(fragment: str, tokenizer: Any) -> list[list[int]]:
    # By itself; and behind a line break, for tokenizers that put a space before the beginning of a text.
    behind = encodings_of(tokenizer, ["\n" + fragment])[0]
    anchored = [i for i, (start, _) in zip(behind.ids, behind.offsets, strict=True) if start >= 1]
    return [ids_of(tokenizer, [fragment])[0], anchored]


def turns_of(ids: list[int], whole: Any, prompt: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Which of the turns at `spans` (characters behind the prompt) each id of a completion belongs to, -1 for none.

    Ids that were made anew at the boundary are not in the whole text's encoding; they belong to the first turn.
    """
    known = min(len(ids), sum(stop > len(prompt) for _, stop in whole.offsets))
    starts = [start - len(prompt) for start, _ in whole.offsets[len(whole.offsets) - known :]]
    found = [next((n for n, (a, b) in enumerate(spans) if a <= start < b), -1) for start in starts]
    return [0] * (len(ids) - known) + [max(n, 0) if start <= 0 else n for n, start in zip(found, starts, strict=True)]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without special tokens."""
    ids: list[list[int]] = _encode(tokenizer, texts)["input_ids"]
    return ids


def encodings_of(tokenizer: Any, texts: list[str]) -> list[Any]:
    """Each text as a tokenizers.Encoding, without special tokens."""
    encodings: list[Any] = _encode(tokenizer, texts).encodings
    return encodings
