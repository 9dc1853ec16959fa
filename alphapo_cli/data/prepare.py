"""From loaded pairs to the inputs of training: token ids, the held-out probe set, and a table of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.probe_split import DEFAULT_PROBE_PAIRS, hold_out, ordered
from alphapo_cli.data.template import written_date
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs, Side, TextPair, digest
from alphapo_cli.data.token_cache import encode_cached, tokenizer_hash
from alphapo_cli.data.token_pairs import Index, TokenPair, TokenPairs
from alphapo_cli.data.tokenise import Encoded, TokenCounts

__all__ = ["PreparedData", "PromptSample", "TokenPair", "TokenPairs", "prepare", "tokenizer_hash"]

_SAMPLES = 8


@dataclass(frozen=True)
class PromptSample:
    """A training prompt in the form that `encode_prompt` takes, with the ids that training conditions on."""

    prompt: Side
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PreparedData:
    """Training and probe pairs as token ids.

    Attributes:
        train: training pairs.
        probe: held-out pairs of the displacement probe.
        table: (label, value) rows to print, without any text of the data.
        report: the same counts as numbers, for the manifest.
        key: hex SHA-256 of everything in `train` and `probe`.
        prompt_samples: the first training prompts.
    """

    train: TokenPairs
    probe: TokenPairs
    table: list[tuple[str, str]]
    report: dict[str, Any]
    key: str
    prompt_samples: list[PromptSample]

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
        train_pairs: pairs to train on.
        probe_pairs: the probe set is the first `probe.pairs` (256) of these in order of prompt hash, and all training
            pairs train. None: it is split off the training pairs, see `probe_split.hold_out`.
        cache_dir: root of the token cache.

    Returns:
        Both sets as token ids, with their counts.

    Raises:
        UsageError: `encode_pairs` refuses the pairs or the tokenizer, or no training pair remains.
    """
    encoded, key = encode_cached(train_pairs.pairs, tokenizer, cfg, cache_dir)
    all_pairs = _token_pairs(train_pairs.pairs, encoded)
    contents = [train_pairs.pairs[position].content_key for position in encoded.kept]
    probe_report: dict[str, Any] = {}
    if probe_pairs is None:
        train_positions, probe_positions = hold_out(all_pairs.prompt_keys, contents, probe.pairs)
        train, probe_set = all_pairs.select(train_positions), all_pairs.select(probe_positions)
        keys = [key, probe_positions]
    else:
        probe_encoded, probe_key = encode_cached(probe_pairs.pairs, tokenizer, cfg, cache_dir)
        candidates = _token_pairs(probe_pairs.pairs, probe_encoded)
        probe_contents = [probe_pairs.pairs[position].content_key for position in probe_encoded.kept]
        positions = ordered(candidates.prompt_keys, probe_contents)[: probe.pairs or DEFAULT_PROBE_PAIRS]
        train, probe_set = all_pairs, candidates.select(positions)
        keys = [key, probe_key, positions]
        known = set(train.prompt_keys)
        probe_report = {
            "probe_source": probe_pairs.description,
            "probe_prompts_in_training": len({name for name in probe_set.prompt_keys if name in known}),
            **{f"probe_{name}": value for name, value in asdict(probe_pairs.counts).items() if name != "tied" or value},
        }
    report = _report(train_pairs, encoded, train, probe_set, tokenizer) | probe_report
    return PreparedData(
        train=train,
        probe=probe_set,
        table=_table(report, train_pairs.counts, encoded.counts),
        report=report,
        key=digest([keys, sorted(all_pairs.columns), contents, _columns_hash(train, probe_set)]),
        prompt_samples=[
            _sample(train_pairs.pairs, train, n, encoded.template) for n in range(min(_SAMPLES, len(train)))
        ],
    )


def _token_pairs(pairs: Sequence[TextPair], encoded: Encoded) -> TokenPairs:
    kept = [pairs[position] for position in encoded.kept]
    names = sorted({name for pair in kept for name in pair.columns})
    return TokenPairs(
        prompt=encoded.prompt,
        chosen=encoded.chosen,
        rejected=encoded.rejected,
        prompt_keys=tuple(pair.prompt_key for pair in kept),
        index=np.asarray(encoded.kept, np.int64),
        others=encoded.others,
        turns=encoded.turns,
        columns={name: np.array([pair.columns.get(name, np.nan) for pair in kept], np.float64) for name in names},
    )


def _columns_hash(*sets: TokenPairs) -> str:
    # Objectives may read columns, so the key of everything computed from these pairs must cover them.
    return digest([[name, values.tobytes().hex()] for pairs in sets for name, values in sorted(pairs.columns.items())])


def _sample(pairs: Sequence[TextPair], train: TokenPairs, position: int, template: str) -> PromptSample:
    pair = pairs[int(train.index[position])]
    plain = template == "plain" and pair.verbatim is not None
    prompt = pair.verbatim.prompt if plain and pair.verbatim is not None else pair.prompt
    return PromptSample(prompt, tuple(train.prompt[position].tolist()))


def _report(
    loaded: LoadedPairs, encoded: Encoded, train: TokenPairs, probe: TokenPairs, tokenizer: Any
) -> dict[str, Any]:
    load, token = loaded.counts, encoded.counts
    date = written_date(tokenizer) if encoded.template == "chat" else None
    chosen, rejected = train.chosen.lengths, train.rejected.lengths
    more: dict[str, Any] = {}
    if train.others or loaded.form == "answers":  # lists are cut to one length: reported even where two are left
        more = {"answers": train.num_sides, "tied": load.tied}
    if train.unpaired:
        more |= {"desirable": int((chosen > 0).sum()), "undesirable": int((rejected > 0).sum())}
    return {
        "source": loaded.description,
        "form": loaded.form,
        "template": encoded.template,
        **({"template_date": date} if date else {}),
        "tokenizer": tokenizer_hash(tokenizer),
        "pairs_read": load.read,
        "pairs_usable": len(encoded.kept),
        "no_common_prompt": load.no_common_prompt,
        "emptied": load.emptied + token.emptied,
        "identical": load.identical + token.identical,
        "duplicates": load.duplicates,
        "duplicates_dropped": load.duplicates_dropped,
        "template_refused": token.refused,
        "truncated_pairs": token.truncated_pairs,
        "truncated_prompts": token.truncated_prompts,
        "truncated_completions": token.truncated_completions,
        "boundary_splits": token.boundary,
        "boundary_inexact": token.inexact,
        "special_inside": token.special_inside,
        "train_pairs": len(train),
        "probe_pairs": len(probe),
        "mean_prompt_tokens": float(train.prompt.lengths.mean()),
        "mean_chosen_tokens": _mean(chosen[chosen > 0]),
        "mean_rejected_tokens": _mean(rejected[rejected > 0]),
        "mean_chosen_minus_rejected_tokens": _mean((chosen - rejected)[(chosen > 0) & (rejected > 0)]),
        "unknown_share": token.unknown / max(token.tokens, 1),
        **more,
    }


def _mean(values: Index) -> float | None:
    return float(values.mean()) if len(values) else None


def _shown(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _table(report: dict[str, Any], load: LoadCounts, token: TokenCounts) -> list[tuple[str, str]]:
    duplicates = f"{load.duplicates:,}" + (" (dropped)" if load.duplicates_dropped else "")
    cut = (
        f"{token.truncated_pairs:,} ({token.truncated_prompts:,} prompts, {token.truncated_completions:,} completions)"
    )
    rows = [
        ("data", report["source"]),
        ("pairs read", f"{load.read:,}"),
        ("usable", f"{report['pairs_usable']:,}"),
        ("skipped: no common prompt", f"{load.no_common_prompt:,}"),
        ("skipped: empty answer", f"{report['emptied']:,}"),
        ("skipped: identical answers", f"{report['identical']:,}"),
        ("duplicates", duplicates),
        ("truncated", cut),
        ("split at the boundary", f"{token.boundary:,}"),
    ]
    # Rare: shown only where not zero.
    rare = [
        ("skipped: refused by the template", token.refused),
        ("split with a change of text", token.inexact),
        ("answers spelling special tokens", token.special_inside),
        ("probe prompts also in training", report.get("probe_prompts_in_training", 0)),
        ("skipped: all scores equal", load.tied),
        ("answers a row", report.get("answers", 0)),
        ("desirable training rows", report.get("desirable", 0)),
        ("undesirable training rows", report.get("undesirable", 0)),
    ]
    rows += [(label, f"{value:,}") for label, value in rare if value]
    return [
        *rows,
        ("training pairs", f"{report['train_pairs']:,}"),
        ("probe pairs", f"{report['probe_pairs']:,}"),
        ("mean prompt tokens", f"{report['mean_prompt_tokens']:.1f}"),
        ("mean chosen tokens", _shown(report["mean_chosen_tokens"], ".1f")),
        ("mean rejected tokens", _shown(report["mean_rejected_tokens"], ".1f")),
        ("mean chosen minus rejected", _shown(report["mean_chosen_minus_rejected_tokens"], "+.1f")),
        ("unknown tokens", f"{report['unknown_share']:.2%}"),
        ("template", report["template"]),
    ]
