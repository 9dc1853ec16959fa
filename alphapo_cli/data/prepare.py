"""From loaded pairs to the inputs of training: token ids, the held-out probe set, and a table of counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.answer_frame import header_of
from alphapo_cli.data.data_report import evaluation_report, report_of, table_of, with_unread_numbers
from alphapo_cli.data.mixture import weighted
from alphapo_cli.data.probe_split import DEFAULT_PROBE_PAIRS, hold_out, ordered
from alphapo_cli.data.subsets import numbered
from alphapo_cli.data.text_pairs import NO_CONTEXT, LoadedPairs, PromptContext, Side, TextPair, digest
from alphapo_cli.data.token_cache import encode_cached, tokenizer_hash
from alphapo_cli.data.token_pairs import TokenPair, TokenPairs
from alphapo_cli.data.tokenise import Encoded

__all__ = ["PreparedData", "PromptSample", "TokenPair", "TokenPairs", "prepare", "tokenizer_hash"]

_SAMPLES = 8


@dataclass(frozen=True)
class PromptSample:
    """A training prompt and its context as `encode_prompt` takes them, with the ids that training conditions on.

    Among these is the header that completions begin with (`data.completion_includes_header`): generation is fed it.
    """

    prompt: Side
    ids: tuple[int, ...]
    context: PromptContext = NO_CONTEXT

    @property
    def as_json(self) -> dict[str, Any]:
        """The prompt for prompts.json, its context where it has one."""
        context = {"context": self.context} if self.context else {}
        return {"prompt": self.prompt, "ids": self.ids, **context}


@dataclass(frozen=True)
class PreparedData:
    """Training and probe pairs as token ids.

    Attributes:
        train: training pairs.
        probe: held-out pairs of the displacement probe.
        table: (label, value) rows to print, without any text of the data.
        report: the same counts as numbers, for manifest.json and summary.json.
        key: hex SHA-256 of everything in `train` and `probe`.
        prompt_samples: the first training prompts.
        numbers: rows by column of numbers.
        dropped: training pairs that `data.select` left out, as rows of dropped.jsonl.
    """

    train: TokenPairs
    probe: TokenPairs
    table: list[tuple[str, str]]
    report: dict[str, Any]
    key: str
    prompt_samples: list[PromptSample]
    numbers: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[Mapping[str, Any], ...] = ()

    def read_by(self, columns: Collection[str]) -> PreparedData:
        """The same data for an objective that reads these columns: numbers in others are counted as not used."""
        unread = {name: rows for name, rows in self.numbers.items() if name not in columns}
        report, table = with_unread_numbers(self.report, self.table, unread)
        return replace(self, report=report, table=table)

    def with_mismatched(self) -> PreparedData:
        """The same data with a mismatched answer added to each row, see `TokenPairs.with_mismatched`."""
        train, probe = self.train.with_mismatched(), self.probe.with_mismatched()
        return replace(self, train=train, probe=probe, key=digest([self.key, "mismatched"]))


def prepare(
    cfg: DataConfig,
    probe: ProbeConfig,
    tokenizer: Any,
    *,
    train_pairs: LoadedPairs,
    probe_pairs: LoadedPairs | None,
    cache_dir: Path,
) -> PreparedData:
    """Tokenise pairs (through the cache) and hold out the probe set.

    Args:
        cfg: template, truncation and worker settings.
        probe: `pairs` is the size of the probe set, None for its default.
        tokenizer: a fast transformers tokenizer.
        train_pairs: pairs to train on; with `data.weights`, as many of each source as the weights allow.
        probe_pairs: the probe set is the first `probe.pairs` (256) of these in order of prompt hash, and all training
            pairs train. None: it is split off the training pairs, see `probe_split.hold_out`.
        cache_dir: root of the token cache.

    Returns:
        Both sets as token ids, with their counts.

    Raises:
        UsageError: `encode_pairs` refuses the pairs or the tokenizer, or no training pair remains.
    """
    encoded, key = encode_cached(train_pairs.pairs, tokenizer, cfg, cache_dir)
    all_pairs = _token_pairs(train_pairs, encoded)
    contents = [train_pairs.pairs[position].content_key for position in encoded.kept]
    keys: list[Any] = [key]
    probe_report: dict[str, Any] = {}
    train_positions = list(range(len(all_pairs)))
    if probe_pairs is None:
        train_positions, probe_positions = hold_out(all_pairs.prompt_keys, contents, probe.pairs, all_pairs.source)
        probe_set = all_pairs.select(probe_positions)
        keys += [probe_positions]
    else:
        probe_encoded, probe_key = encode_cached(probe_pairs.pairs, tokenizer, cfg, cache_dir)
        candidates = _token_pairs(probe_pairs, probe_encoded)
        probe_contents = [probe_pairs.pairs[position].content_key for position in probe_encoded.kept]
        positions = ordered(candidates.prompt_keys, probe_contents)[: probe.pairs or DEFAULT_PROBE_PAIRS]
        probe_set = candidates.select(positions)
        keys += [probe_key, positions]
        probe_report = evaluation_report(probe_pairs, probe_encoded, probe_set, set(all_pairs.prompt_keys))
    unweighted = len(train_positions)
    if cfg.weights is not None and all_pairs.source is not None:
        train_positions = weighted(train_positions, all_pairs.source, contents, cfg.weights)
        keys += [train_positions]
    if all_pairs.source is not None:
        keys += [all_pairs.source.tolist(), list(all_pairs.source_names)]
    keys += [
        [*pairs.subset.tolist(), *pairs.subset_names] for pairs in (all_pairs, probe_set) if pairs.subset is not None
    ]
    train = all_pairs if len(train_positions) == len(all_pairs) else all_pairs.select(train_positions)
    report = report_of(train_pairs, encoded, train, probe_set, tokenizer, cfg, unweighted=unweighted) | probe_report
    return PreparedData(
        train=train,
        probe=probe_set,
        table=table_of(report, train_pairs, encoded, probe_pairs),
        report=report,
        key=digest([keys, sorted(all_pairs.columns), contents, _columns_hash(train, probe_set)]),
        prompt_samples=[
            _sample(train_pairs.pairs, train, n, encoded.template, header_of(tokenizer, cfg).ids)
            for n in range(min(_SAMPLES, len(train)))
        ],
        numbers={name: rows for name, rows in train_pairs.numbers.counts.items() if name != cfg.subset_column},
    )


def _token_pairs(loaded: LoadedPairs, encoded: Encoded) -> TokenPairs:
    kept = [loaded.pairs[position] for position in encoded.kept]
    several = len(loaded.sources) > 1
    names = sorted({name for pair in kept for name in pair.columns})
    subset, subset_names = numbered(kept)
    return TokenPairs(
        prompt=encoded.prompt,
        chosen=encoded.chosen,
        rejected=encoded.rejected,
        prompt_keys=tuple(pair.prompt_key for pair in kept),
        index=np.asarray(encoded.kept, np.int64),
        others=encoded.others,
        turns=encoded.turns,
        columns={name: np.array([pair.columns.get(name, np.nan) for pair in kept], np.float64) for name in names},
        source=np.array([pair.source for pair in kept], np.int64) if several else None,
        source_names=tuple(source.name for source in loaded.sources) if several else (),
        subset=subset,
        subset_names=subset_names,
    )


def _columns_hash(*sets: TokenPairs) -> str:
    # Objectives may read columns, so the key of everything computed from these pairs must cover them.
    return digest([[name, values.tobytes().hex()] for pairs in sets for name, values in sorted(pairs.columns.items())])


def _sample(
    pairs: Sequence[TextPair], train: TokenPairs, position: int, template: str, header: tuple[int, ...]
) -> PromptSample:
    pair = pairs[int(train.index[position])]
    plain = template == "plain" and pair.verbatim is not None
    prompt = pair.verbatim.prompt if plain and pair.verbatim is not None else pair.prompt
    # The header that completions begin with is what generation is fed after the prompt.
    begins = [tuple(side[position][: len(header)].tolist()) for side in train.answers if len(side[position])]
    ids = header if header in begins else begins[0]
    return PromptSample(prompt, (*train.prompt[position].tolist(), *ids), pair.context)
