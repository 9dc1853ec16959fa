"""Split the encoding of prompt and completion, tokenised as one text, at the prompt boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphapo_cli.data.special_text import encode_masked, is_masked


@dataclass(frozen=True)
class Split:
    """A completion's ids. `straddled`: a token crossed the boundary; `exact`: it decodes to the original text."""

    ids: list[int]
    straddled: bool = False
    exact: bool = True


def split(prompt_ids: list[int], prompt: str, completion: str, whole: Any, tokenizer: Any) -> Split:
    """The completion's ids, taken from `whole`, the encoding of prompt and completion (a tokenizers.Encoding)."""
    ids: list[int] = whole.ids
    if ids[: len(prompt_ids)] == prompt_ids:
        return Split(ids[len(prompt_ids) :])
    # A token crosses the boundary, or the text after the prompt changes the prompt's own tokens.
    target = _decode(tokenizer, ids)
    candidates = [[*fragment, *rest] for fragment, rest in _resegmentations(prompt, completion, whole, tokenizer)]
    for candidate in candidates:
        if _decode(tokenizer, [*prompt_ids, *candidate]) == target:
            return Split(candidate, straddled=True)
    return Split(candidates[0], straddled=True, exact=False)


def _resegmentations(prompt: str, completion: str, whole: Any, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Ways to re-tokenise the completion's text from the boundary up to a later token.

    The second token after the boundary is tried too, because some tokenizers' offsets leave out the space that belongs
    to a token.

    Args:
        prompt: the prompt's text, which ends at the boundary.
        completion: the text after it.
        whole: encoding of both.
        tokenizer: re-tokenises the fragment.

    Returns:
        (ids of the fragment, remaining ids of `whole`), the shortest fragment first, the whole completion last.
    """
    offsets: list[tuple[int, int]] = whole.offsets
    inside = [k for k, (start, stop) in enumerate(offsets) if start >= len(prompt) and stop > start]
    stops = [(offsets[k][0] - len(prompt), k) for k in inside[:2]]
    candidates: list[tuple[list[int], list[int]]] = []
    for length, k in [*stops, (len(completion), len(offsets))]:
        fragment = completion[:length]
        if not fragment:
            candidates.append(([], whole.ids[k:]))
            continue
        candidates.extend((ids, whole.ids[k:]) for ids in _fragment_ids(fragment, tokenizer))
    return candidates


def _fragment_ids(fragment: str, tokenizer: Any) -> list[list[int]]:
    # On its own, and after a line break: some tokenizers put a space before the beginning of a text.
    after_break = encodings_of(tokenizer, ["\n" + fragment])[0]
    anchored = [i for i, (start, _) in zip(after_break.ids, after_break.offsets, strict=True) if start >= 1]
    return [ids_of(tokenizer, [fragment])[0], anchored]


def turns_of(ids: list[int], whole: Any, prompt: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Index of the turn that each token of a completion belongs to.

    Args:
        ids: [n] the completion. Ids re-tokenised at the boundary are not in `whole`; they belong to the first turn.
        whole: encoding of prompt and completion.
        prompt: the prompt's text.
        spans: (start, stop) of each turn in characters after the prompt.

    Returns:
        [n] indices into `spans`, -1 for tokens of no turn.
    """
    known = min(len(ids), sum(stop > len(prompt) for _, stop in whole.offsets))
    starts = [start - len(prompt) for start, _ in whole.offsets[len(whole.offsets) - known :]]
    turns = [next((n for n, (a, b) in enumerate(spans) if a <= start < b), -1) for start in starts]
    return [0] * (len(ids) - known) + [max(n, 0) if start <= 0 else n for n, start in zip(turns, starts, strict=True)]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without special tokens around it; masked ones in it are text (see `special_text`)."""
    if any(map(is_masked, texts)):
        return [encoding.ids for encoding in encodings_of(tokenizer, texts)]
    ids: list[list[int]] = _encode(tokenizer, texts)["input_ids"]
    return ids


def encodings_of(tokenizer: Any, texts: list[str]) -> list[Any]:
    """Each text as a tokenizers.Encoding, or what is used of one; see `ids_of`."""
    encodings: list[Any] = _encode(tokenizer, texts).encodings
    return [
        encode_masked(text, tokenizer) if is_masked(text) else encoding
        for text, encoding in zip(texts, encodings, strict=True)
    ]
