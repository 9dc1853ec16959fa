"""Cache of tokenised data, keyed by content.

The key covers everything that changes the ids: the pairs, the tokenizer with its template, the settings, and the
version of the code. An entry is a folder written under a temporary name and renamed, so that processes may write the
same entry concurrently and a killed process leaves no partial one; its checksums.json tells damage.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import rendered_example, style_of
from alphapo_cli.data.text_pairs import TextPair, digest
from alphapo_cli.data.token_pairs import Ragged
from alphapo_cli.data.tokenise import Encoded, encode_pairs
from alphapo_cli.data.truncation import TokenCounts
from alphapo_cli.errors import UsageError, say
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import discard, shared_directory

# Increase it whenever the same pairs, tokenizer and settings give different ids or counts.
CODE_VERSION = 1
# Of tokenizers as they were written at a call. A run asks four times, and canonical JSON of a large vocabulary takes ten
# times as long as writing it.
_HASHES: dict[str, str] = {}
_TALLIES = ("left_out", "cut", "unused")
_COLUMNS = ("prompt", "chosen", "rejected")  # and answer_2, answer_3, ... where there are more, turns_0, ... of each


def tokenizer_hash(tokenizer: Any) -> str:
    """Hex SHA-256 of what determines a tokenizer's ids: model, normaliser, added and special tokens, chat template.

    Its name, its folder, and the padding and truncation state of its last call are left out.

    Args:
        tokenizer: a fast transformers tokenizer.

    Returns:
        The digest.
    """
    text = tokenizer.backend_tokenizer.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    rest = [special, tokenizer.chat_template, bool(getattr(tokenizer, "split_special_tokens", False))]
    written = digest([hashlib.sha256(text.encode()).hexdigest(), rest])
    if written not in _HASHES:
        backend = json.loads(text)
        backend.pop("truncation", None)
        backend.pop("padding", None)
        _HASHES[written] = digest([backend, *rest])
    return _HASHES[written]


def encode_key(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig) -> str:
    """Hex SHA-256 of everything that determines the result of `encode_pairs`."""
    settings: list[Any] = [cfg.template, cfg.system, cfg.max_length, cfg.max_prompt_length, cfg.max_unknown]
    settings += ["trajectories"] if cfg.trajectories else []
    settings += [{"arguments": cfg.chat_template_kwargs}] if cfg.chat_template_kwargs else []
    settings += [cfg.on_template_loss] if cfg.on_template_loss != "refuse" else []
    settings += ["header"] if cfg.completion_includes_header else []
    settings += ["second end"] if cfg.second_end_token else []
    settings += [{"special tokens": cfg.special_tokens_in_text}] if cfg.special_tokens_in_text != "parse" else []
    settings += [{"date": cfg.date}] if cfg.date != DataConfig().date else []
    # The rendered text may also depend on the version of transformers.
    written = rendered_example(tokenizer, cfg) if style_of(tokenizer, cfg).chat else None
    return digest([CODE_VERSION, tokenizer_hash(tokenizer), written, settings, [pair.template_key for pair in pairs]])


def encode_cached(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig, cache_dir: Path) -> tuple[Encoded, str]:
    """`encode_pairs` through the cache; a damaged entry is recomputed.

    Args:
        pairs: pairs to tokenise.
        tokenizer: a fast transformers tokenizer.
        cfg: the data settings.
        cache_dir: root of the cache; entries are under `tokens/`.

    Returns:
        The tokenised pairs, and their key (see `encode_key`).

    Raises:
        UsageError: `encode_pairs` refuses the pairs or the tokenizer, or the cache cannot be written.
    """
    key = encode_key(pairs, tokenizer, cfg)
    folder = cache_dir / "tokens" / key
    encoded = _read(folder)
    if encoded is None:
        if (folder / checksums.NAME).exists():  # older entries have none
            say(f"note: {folder} is damaged; the pairs are tokenised again", file=sys.stderr)
        encoded = encode_pairs(pairs, tokenizer, cfg)
        try:
            discard(folder)
            _write(folder, encoded)
        except OSError as error:
            raise UsageError(
                f"{folder}: the cache cannot be written ({error.strerror or error}); set ALPHAPO_CACHE to a folder that can"
            ) from error
    return encoded, key


def _read(folder: Path) -> Encoded | None:
    if not checksums.whole(folder):
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # Opened here: numpy leaves a file open that it finds damaged.
        with open(folder / "tokens.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:

            def further(stem: str, first: int) -> list[Ragged]:
                names = itertools.takewhile(
                    lambda name: f"{name}_ids" in arrays, (f"{stem}_{side}" for side in itertools.count(first))
                )
                return list(map(ragged, names))

            def ragged(name: str) -> Ragged:
                return Ragged(arrays[f"{name}_ids"], arrays[f"{name}_offsets"])

            prompt, chosen, rejected = map(ragged, _COLUMNS)
            others, turns = further("answer", 2), further("turns", 0)
            kept = tuple(arrays["kept"].tolist())
        counts = TokenCounts(**meta["counts"])
        tallies = {name: Tally.from_json(meta[name]) for name in _TALLIES}
        return Encoded(prompt, chosen, rejected, kept, counts, meta["template"], tuple(others), tuple(turns), **tallies)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _write(folder: Path, encoded: Encoded) -> None:
    arrays: dict[str, Any] = {"kept": np.asarray(encoded.kept, np.int64)}
    columns = dict(zip(_COLUMNS, (encoded.prompt, encoded.chosen, encoded.rejected), strict=True))
    columns |= {f"answer_{side}": ragged for side, ragged in enumerate(encoded.others, 2)}
    columns |= {f"turns_{side}": ragged for side, ragged in enumerate(encoded.turns)}
    for name, ragged in columns.items():
        arrays |= {f"{name}_ids": ragged.ids, f"{name}_offsets": ragged.offsets}
    with shared_directory(folder, private=True) as beside:
        np.savez(beside / "tokens.npz", **arrays)
        tallies = {name: getattr(encoded, name).as_json for name in _TALLIES}
        meta = {"counts": asdict(encoded.counts), "template": encoded.template, **tallies}
        (beside / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        checksums.write(beside)
