"""Refuse a tokenizer that does not cover the data: training on unknown tokens runs without error and learns nothing."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.rendering import render_pair
from alphapo_cli.data.template import Style
from alphapo_cli.data.text_pairs import TextPair
from alphapo_cli.errors import UsageError


def unknown_id(tokenizer: Any, style: Style) -> int | None:
    """The id of the unknown token; None without one, or where it is also BOS or end token (GPT-2)."""
    unknown = tokenizer.unk_token_id
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, style.end_id, *style.prefix}
    return None if unknown is None or unknown in others else int(unknown)


def round_trip_loss(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig, style: Style) -> tuple[float, str]:
    """Measure how many characters are lost by encoding and decoding, for tokenizers that drop unknown text.

    White space, case and accents are not compared, since many tokenizers normalise them.

    Args:
        pairs: a sample of the data.
        tokenizer: a fast transformers tokenizer.
        cfg: template settings.
        style: see `template.style_of`.

    Returns:
        Share of lost characters, in [0, 1], and a word that lost some ("" without loss).
    """
    lost = total = 0
    example = ""
    for pair in pairs:
        texts = render_pair(pair, tokenizer, cfg, style)
        if texts is None:
            continue
        for text in (texts.prompt, *texts.present):
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            before = _letters(text)
            missing = before - _letters(back)
            lost, total = lost + missing.total(), total + before.total()
            if missing and not example:
                example = next((word for word in text.split() if not missing.keys().isdisjoint(_letters(word))), "")
    return (lost / total if total else 0.0), example


def _letters(text: str) -> Counter[str]:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return Counter(c for c in folded if not c.isspace() and unicodedata.category(c)[0] not in "MC")


def check_known(
    unknown: int,
    tokens: int,
    loss: tuple[float, str],
    pairs: Sequence[TextPair],
    tokenizer: Any,
    cfg: DataConfig,
    style: Style,
) -> None:
    """Refuse data with more unknown tokens (or lost characters) than `data.max_unknown`.

    Args:
        unknown: number of unknown ids; with 0, `loss` decides.
        tokens: number of all ids.
        loss: result of `round_trip_loss`.
        pairs: searched for an unknown word to show.
        tokenizer: a fast transformers tokenizer.
        cfg: `max_unknown` is the largest share allowed.
        style: see `template.style_of`.

    Raises:
        UsageError: the share of unknown tokens or lost characters is above `data.max_unknown`.
    """
    share, example = (unknown / max(tokens, 1), "") if unknown else loss
    if share <= cfg.max_unknown:
        return
    what = "tokens" if unknown else "characters"
    word = _unknown_word(pairs, tokenizer, cfg, style) if unknown else example
    shown = f" (for example {word[:40]!r})" if word else ""
    raise UsageError(
        f"{tokenizer.name_or_path or 'this tokenizer'}: does not know the data's words: {share:.1%} of the {what} are "
        f"unknown{shown}, more than data.max_unknown={cfg.max_unknown:g}; set model.path to a model that goes with the "
        "data, or model=from_scratch"
    )


def _unknown_word(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig, style: Style) -> str:
    for pair in pairs:
        texts = render_pair(pair, tokenizer, cfg, style)
        if texts is None:
            continue
        for text in (texts.prompt + completion for completion in texts.present):
            encoding = tokenizer([text], add_special_tokens=False, verbose=False).encodings[0]
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == tokenizer.unk_token_id and text[start:stop].strip():
                    return text[start:stop].strip()
    return ""
