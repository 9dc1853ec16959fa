"""The table of the data before training, and the same counts as numbers for manifest.json and summary.json.

It counts the rows read, those left out by reason, those used, and what nobody reads of them: columns, and keys that the
chat template does not write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.mean_lengths import mean_lengths, rows_of_means
from alphapo_cli.data.rendering import DIFFERS
from alphapo_cli.data.row_context import reads
from alphapo_cli.data.spelled_tokens import ESCAPE, spelled_in_pairs
from alphapo_cli.data.subsets import counted
from alphapo_cli.data.template import written_date
from alphapo_cli.data.template_loss import is_loss
from alphapo_cli.data.text_pairs import LoadedPairs, SourceReport
from alphapo_cli.data.token_cache import tokenizer_hash
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.data.tokenise import Encoded

_LISTED = 6  # files or columns by name
_UNREAD, _NOT_RENDERED, TRAINING_PAIRS = "columns not used", "not in the {} text", "training pairs"


def report_of(
    loaded: LoadedPairs, encoded: Encoded, train: TokenPairs, probe: TokenPairs, tokenizer: Any, cfg: DataConfig,
    *, unweighted: int,
) -> dict[str, Any]:  # fmt: skip
    """All counts of the training data as JSON values.

    Args:
        loaded: the pairs as read.
        encoded: the same tokenised.
        train: those that train.
        probe: those of the probe.
        tokenizer: their tokenizer.
        cfg: the data settings.
        unweighted: number of training pairs without `data.weights`.

    Returns:
        Counts and means by name; those of rare things only where there are any.
    """
    load, token = loaded.counts, encoded.counts
    date = written_date(tokenizer, cfg) if encoded.template == "chat" else None
    chosen, rejected = train.chosen.lengths, train.rejected.lengths
    spelled = spelled_in_pairs(loaded.pairs, tokenizer, cfg)
    more: dict[str, Any] = {}
    if train.others or "answers" in loaded.form:  # lists are cut to one length: reported even where two are left
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
        "template_lost": token.lost,
        "template_lost_kept": token.lost_kept,
        "left_out_by_weights": unweighted - len(train),
        "truncated_pairs": token.truncated_pairs,
        "truncated_prompts": token.truncated_prompts,
        "truncated_completions": token.truncated_completions,
        "boundary_splits": token.boundary,
        "boundary_inexact": token.inexact,
        "special_inside": token.special_inside,
        "prompts_spelling_special_tokens": spelled.rows,
        **(
            {"special_tokens_in_text": {"as": cfg.special_tokens_in_text, "tokens": spelled.shown}}
            if spelled.rows
            else {}
        ),
        "train_pairs": len(train),
        "probe_pairs": len(probe),
        **({} if probe.subset is None else {"probe_subsets": counted(probe.subset, probe.subset_names)}),
        **mean_lengths(train),
        "unknown_share": token.unknown / max(token.tokens, 1),
        "columns_not_used": dict(loaded.unread.counts),
        "not_rendered": dict(encoded.unused.counts),
        "sources": [_source(source, n, loaded, encoded, train, probe) for n, source in enumerate(loaded.sources)],
        **more,
    }


def _source(
    source: SourceReport, position: int, loaded: LoadedPairs, encoded: Encoded, train: TokenPairs, probe: TokenPairs
) -> dict[str, Any]:
    """The counts of one source."""
    files: dict[str, Any] = {"files": list(source.files), "splits": list(source.splits)}
    files |= {"splits_left": dict(source.left)} if source.left else {}
    files |= {"files_not_read": list(source.unread)} if source.unread else {}
    return {
        "name": source.name,
        "pairs_read": source.read,
        "pairs_usable": sum(loaded.pairs[kept].source == position for kept in encoded.kept),
        "train_pairs": len(train) if train.source is None else int((train.source == position).sum()),
        **({} if probe.source is None else {"probe_pairs": int((probe.source == position).sum())}),
        **files,
    }


def evaluation_report(
    loaded: LoadedPairs, encoded: Encoded, probe: TokenPairs, train_prompts: Collection[str]
) -> dict[str, Any]:
    """Counts of evaluation pairs, of which the probe is taken, as `probe_...`.

    Args:
        loaded: the pairs as read.
        encoded: the same tokenised.
        probe: those of the probe.
        train_prompts: prompt keys of the training pairs.

    Returns:
        Counts by name.
    """
    counts = {f"probe_{name}": value for name, value in asdict(loaded.counts).items() if name != "tied" or value}
    lost = {"probe_template_refused": encoded.counts.refused, "probe_template_lost": encoded.counts.lost}
    return {
        "probe_source": loaded.description,
        "probe_prompts_in_training": len({name for name in probe.prompt_keys if name in train_prompts}),
        **counts,
        **{name: value for name, value in lost.items() if value},
    }


def table_of(
    report: Mapping[str, Any], loaded: LoadedPairs, encoded: Encoded, evaluation: LoadedPairs | None = None
) -> list[tuple[str, str]]:
    """The (label, value) rows to print, without any text of the data.

    Args:
        report: the counts.
        loaded: the pairs as read.
        encoded: the same tokenised.
        evaluation: the pairs that the probe is taken from; None: the same.

    Returns:
        The rows; rare ones only where they are not zero.
    """
    load, token = loaded.counts, encoded.counts
    duplicates = f"{load.duplicates:,}" + (" (dropped)" if load.duplicates_dropped else "")
    cut = (
        f"{token.truncated_pairs:,} ({token.truncated_prompts:,} prompts, {token.truncated_completions:,} completions)"
    )
    rows = [
        ("data", report["source"]),
        *_files(loaded, () if evaluation is None else evaluation.sources),
        *([] if evaluation is None else [("probe from", evaluation.description)]),
        ("pairs read", f"{load.read:,}"),
        ("usable", f"{report['pairs_usable']:,}"),
        ("skipped: no common prompt", f"{load.no_common_prompt:,}{_turns_hint(loaded, encoded)}"),
        ("skipped: empty answer", f"{report['emptied']:,}"),
        ("skipped: identical answers", f"{report['identical']:,}"),
        *_by_template(loaded, encoded),
        ("duplicates", duplicates),
        ("truncated", cut),
        ("split at the boundary", f"{token.boundary:,}"),
    ]
    rare = [
        ("split with a change of text", token.inexact),
        ("answers spelling special tokens", token.special_inside),
        ("probe prompts also in training", report.get("probe_prompts_in_training", 0)),
        (
            "probe pairs left out by the template",
            report.get("probe_template_refused", 0) + report.get("probe_template_lost", 0),
        ),
        ("skipped: all scores equal", load.tied),
        ("skipped: beyond data.weights", report["left_out_by_weights"]),
        ("answers a row", report.get("answers", 0)),
        ("desirable training rows", report.get("desirable", 0)),
        ("undesirable training rows", report.get("undesirable", 0)),
    ]
    rows += [(label, f"{value:,}") for label, value in rare if value]
    if report["prompts_spelling_special_tokens"]:
        spelled = report["special_tokens_in_text"]
        how = "read as text" if spelled["as"] == "escape" else f"read as tokens; {ESCAPE}"
        rows.append(
            (
                "prompts spelling special tokens",
                f"{report['prompts_spelling_special_tokens']:,}: {spelled['tokens']}; {how}",
            )
        )
    if loaded.unread:
        rows.append((_UNREAD, named(loaded.unread.counts)))
    if encoded.unused:
        rows.append((_NOT_RENDERED.format(encoded.template), named(encoded.unused.counts)))
    return [
        *rows,
        (TRAINING_PAIRS, f"{report['train_pairs']:,}"),
        ("probe pairs", f"{report['probe_pairs']:,}"),
        *_by_subset(report),
        *rows_by_source(report),
        *rows_of_means(report),
        ("unknown tokens", f"{report['unknown_share']:.2%} of all"),
        ("template", report["template"]),
    ]


def with_unread_numbers(
    report: Mapping[str, Any], table: Sequence[tuple[str, str]], unread: Mapping[str, int]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Report and table with columns of numbers, which the objective does not read, among those that nobody reads."""
    if not unread:
        return dict(report), list(table)
    counts = {**report["columns_not_used"], **unread}
    rest = [row for row in table if row[0] != _UNREAD]
    at = next(
        n
        for n, row in enumerate(table)
        if row[0] in (_UNREAD, _NOT_RENDERED.format(report["template"]), TRAINING_PAIRS)
    )
    return {**report, "columns_not_used": counts}, [*rest[:at], (_UNREAD, named(counts)), *rest[at:]]


def _turns_hint(loaded: LoadedPairs, encoded: Encoded) -> str:
    """What reads answers of several turns, where rows were left out that may have such."""
    might = loaded.counts.no_common_prompt and "messages" in loaded.form and not encoded.turns
    return " (data.trajectories=true reads answers of several turns)" if might else ""


def _files(loaded: LoadedPairs, evaluation: Collection[SourceReport]) -> list[tuple[str, str]]:
    """Rows about the files that were read, and those that were not, where there is a choice."""
    rows = []
    probed = {split for source in evaluation for split in source.splits}
    for source in loaded.sources:
        if len(source.files) > 1 or (source.splits and source.files):
            rows.append(("files", f"{len(source.files):,}: {_some(source.files)}"))
        left = {name: files for name, files in source.left.items() if name not in probed}
        if left:
            names = ", ".join(f"{name} ({files:,} {'file' if files == 1 else 'files'})" for name, files in left.items())
            hint = (
                ""
                if evaluation
                else f"; data.eval_split={next((n for n in left if n != 'train'), 'NAME')} makes one the probe"
            )
            rows.append(("splits", f"{'+'.join(source.splits)}; not read: {names}{hint}"))
        if source.unread:
            rows.append(("files not read", f"{len(source.unread):,}: {_some(source.unread)}"))
    return rows


def _by_template(loaded: LoadedPairs, encoded: Encoded) -> list[tuple[str, str]]:
    """Rows about the pairs that the template refuses, or of whose answers it leaves out a part."""
    rows = []
    for kept, tally in (("skipped", encoded.left_out), ("kept", encoded.cut)):
        for reason, pairs, first in tally:
            label = "refused by the template"
            if is_loss(reason):
                label = "answer not found" if reason == DIFFERS else "cut by the template"
            rows.append((f"{kept}: {label}", f"{pairs:,}: it {reason} (the first: {loaded.pairs[first].place})"))
    return rows


def rows_by_source(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each source of a mixture."""
    sources = report["sources"]
    total = max(report["train_pairs"], 1)
    return [
        (
            f"from {source['name']}",
            f"{source['train_pairs']:,} training pairs ({source['train_pairs'] / total:.1%}), "
            f"{source.get('probe_pairs', 0):,} probe pairs, of {source['pairs_read']:,} read",
        )
        for source in (sources if len(sources) > 1 else [])
    ]


def _by_subset(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row with the number of probe pairs of each subset, where there are subsets."""
    subsets = report.get("probe_subsets") or {}
    texts = [f"{name} {pairs:,}" for name, pairs in subsets.items()]
    return [("probe pairs by subset", ", ".join(texts))] if texts else []


def named(counts: Mapping[str, int]) -> str:
    """Names of what is not used with their numbers of rows, those first that a setting would read."""
    names = sorted(counts, key=lambda name: reads(name) is None)
    hints = {name: f"; {reads(name)}" if reads(name) else "" for name in names}
    texts = [f"{name} ({counts[name]:,}{hints[name]})" for name in names[:_LISTED]]
    return ", ".join(texts) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _some(names: Collection[str]) -> str:
    shown = list(names)[:_LISTED]
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else "")
