"""Preference pairs from files and from the hub: read, converted to `TextPair`, and filtered.

A row carries no preference when its two sides share no prompt, an answer is empty, two answers are the same or all
scores are equal: it is left out and counted. A malformed row (no `rejected`, a number in place of text) is an error
that names it; rows with images, video or audio are one, with their number.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import folders
from alphapo_cli.data.hub import read_hub
from alphapo_cli.data.messages import MediaFound, answer_content
from alphapo_cli.data.row_formats import detect_form, to_pair
from alphapo_cli.data.scored_answers import answers_per_row, tied
from alphapo_cli.data.sources import SUFFIXES, Row, read_files
from alphapo_cli.data.subsets import check_subsets
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs, SourceReport, TextPair
from alphapo_cli.errors import UsageError


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source. `description`: its path or hub name, for messages; `report`: see `SourceReport`."""

    rows: list[Row]
    description: str
    report: SourceReport


def paths_of(value: str | list[str] | None) -> list[str]:
    """The entries of data.path or data.eval_path."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def placed(path: str, cfg: DataConfig) -> str:
    """The path; of a folder, what `data.data_dir` names in it."""
    return path if cfg.data_dir is None or not Path(path).expanduser().is_dir() else os.path.join(path, cfg.data_dir)


def split_paths(cfg: DataConfig) -> list[str]:
    """Entries of data.path with several splits, of which `data.eval_split` names one: they hold the evaluation pairs too."""
    if cfg.eval_split is None or cfg.eval_path is not None:
        return []
    return [path for path in paths_of(cfg.path) if len(folders.splits_of(placed(path, cfg), cfg.config)) > 1]


def has_evaluation(cfg: DataConfig) -> bool:
    """Whether separate evaluation pairs are configured: `data.eval_path`, or `data.eval_split` of the hub or a folder."""
    # A local path takes precedence over the hub: of a file, or a folder without splits, no split is read.
    if cfg.eval_path is not None or split_paths(cfg):
        return True
    return cfg.source == "hub" and cfg.path is None and cfg.eval_split is not None


def check_source(cfg: DataConfig) -> None:
    """Refuse (UsageError) a data file or hub name set beside data=glassbox, which would ignore it."""
    unused = [name for name in ("path", "eval_path", "name", "subset_column") if getattr(cfg, name) is not None]
    if cfg.source == "glassbox" and unused:
        group = "hub" if unused == ["name"] else "jsonl"
        raise UsageError(
            f"data.{unused[0]}={getattr(cfg, unused[0])} is not read by data=glassbox, the embedded world; add data={group}"
        )


def load_pairs(cfg: DataConfig, *, evaluation: bool = False) -> LoadedPairs:
    """Read the training pairs or the evaluation pairs.

    Args:
        cfg: the data settings. A local path wins over a hub name; `data.limit` takes the first rows of each training
            source, before any row is left out.
        evaluation: read `data.eval_path` / `data.eval_split` instead of the training source.

    Returns:
        The usable pairs in source order, with counts of the rows left out.

    Raises:
        UsageError: the data are missing, empty or malformed, or hold images, video or audio; the message names file and
            row.
    """
    sources = read_sources(cfg, evaluation=evaluation)
    for source in sources:
        if not source.rows:
            raise UsageError(
                f"{source.description}: holds no pairs; alphapo needs rows with prompt, chosen and rejected"
            )
    forms = [detect_form(source.rows[0], cfg) for source in sources]
    cfg = replace(cfg, answers=_num_answers(sources, forms, cfg))
    pairs: list[TextPair] = []
    reports: list[SourceReport] = []
    counts, unread, numbers, seen = LoadCounts(), Tally(), Tally(), set[str]()
    for position, (source, form) in enumerate(zip(sources, forms, strict=True)):
        own, of_source = _convert(source, position, form, cfg, seen, unread, numbers)
        counts += of_source
        pairs += own
        reports.append(replace(source.report, usable=len(own)))
    description = " + ".join(source.description for source in sources)
    if cfg.subset_column is not None and (evaluation or not has_evaluation(cfg)):  # the probe is taken from these
        check_subsets(pairs, cfg.subset_column, list(map(str, sources[0].rows[0].values)), description)
    form = " + ".join(dict.fromkeys(forms))
    return LoadedPairs(pairs, counts, f"{description} ({form})", form, unread, numbers, tuple(reports))


def _convert(
    source: SourceRows, position: int, form: str, cfg: DataConfig, seen: set[str], unread: Tally, numbers: Tally
) -> tuple[list[TextPair], LoadCounts]:
    """The usable pairs of one source; `seen` gets the keys of its pairs, `unread` and `numbers` the counts of its columns."""
    counts: Counter[str] = Counter()
    pairs: list[TextPair] = []
    media = Tally()
    for row in source.rows:
        try:
            pair = to_pair(row, form, cfg, unread)
        except MediaFound as error:
            media.add(error.what, row.where)
            continue
        if pair is None:
            counts["no_common_prompt"] += 1
            continue
        for name in pair.columns:
            if name in row.values:  # others are made from scored answers
                numbers.add(name, row.where)
        answers = [answer_content(answer) for answer in pair.answers]
        if not all(text or more for text, more in answers):
            counts["emptied"] += 1
            continue
        if len(set(answers)) < len(answers):
            counts["identical"] += 1
            continue
        if form == "answers" and tied(pair):
            counts["tied"] += 1
            continue
        pair = replace(pair, source=position) if position else pair
        key = pair.content_key
        if key in seen:
            counts["duplicates"] += 1
            if cfg.duplicates == "drop":
                counts["duplicates_dropped"] += 1
                continue
        seen.add(key)
        pairs.append(pair)
    refuse_media(media, len(source.rows), source.description)
    if not pairs:
        reasons = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items() if value)
        hint = "; data.trajectories=true reads answers of several turns" if _may_have_turns(counts, form, cfg) else ""
        raise UsageError(
            f"{source.description}: none of its {len(source.rows)} rows is usable as {form} ({reasons}){hint}"
        )
    return pairs, LoadCounts(read=len(source.rows), **counts)


def _may_have_turns(counts: Mapping[str, int], form: str, cfg: DataConfig) -> bool:
    """Whether rows may be left out because their answers have several turns."""
    return form == "messages" and not cfg.trajectories and bool(counts["no_common_prompt"])


def refuse_media(media: Tally, rows: int, description: str) -> None:
    """Refuse rows with images, video or audio.

    Args:
        media: the rows by what they hold, as `MediaFound` says it.
        rows: number of all rows.
        description: their source.

    Raises:
        UsageError: there are any.
    """
    if media:
        columns = [what.partition(" in column '")[2].rstrip("'") for what in media.counts if " in column '" in what]
        ignore = f", or where their text makes sense without it add data.ignore_columns=[{','.join(columns)}]"
        raise UsageError(
            f"{description}: {sum(media.counts.values()):,} of {rows:,} rows hold what is not text "
            f"({', '.join(media.counts)}; the first: {next(iter(media.first.values()))}); alphapo reads text alone: leave "
            f"these rows out{ignore if columns else ''}"
        )


def _num_answers(sources: Sequence[SourceRows], forms: Sequence[str], cfg: DataConfig) -> int | None:
    """Number of answers of each row, the same in all sources, which `data.answers` must match."""
    numbers = []
    for source, form in zip(sources, forms, strict=True):
        description = source.description
        if cfg.gold_column is not None and form not in ("pairs", "messages"):
            raise UsageError(f"data.gold_column={cfg.gold_column}: {description} holds {form}; leave it out")
        if form == "answers":
            numbers.append(answers_per_row(source.rows, cfg, description))
            continue
        count = {"unpaired": 1}.get(form, 2 if cfg.gold_column is None else 3)
        if cfg.answers not in (None, count):
            raise UsageError(
                f"data.answers={cfg.answers}: {description} holds {form}, {count} answer(s) a row; leave it out, or give "
                "rows with a list 'responses' and 'scores'"
            )
        numbers.append(count)
    lists = [number for number, form in zip(numbers, forms, strict=True) if form == "answers"]
    others = {max(number, 2) for number, form in zip(numbers, forms, strict=True) if form != "answers"}
    if lists and others and others != {min(lists)}:
        raise UsageError(
            f"data.path mixes lists of {min(lists)} answers with rows of {max(others)}; give data.answers={max(others)}, or "
            "train on them apart"
        )
    return min(lists) if lists else numbers[0]


def read_sources(cfg: DataConfig, *, evaluation: bool = False) -> list[SourceRows]:
    """Read the rows of every source, of which the first `data.limit` of training data.

    Args:
        cfg: the data settings.
        evaluation: read `data.eval_path` / `data.eval_split` instead of the training sources.

    Returns:
        One entry for each entry of the path, or for the hub data set.

    Raises:
        UsageError: a source is missing, unreadable or not named.
    """
    if evaluation and not has_evaluation(cfg):
        raise UsageError(
            "no evaluation pairs are configured: set data.eval_path or, for a hub data set or a folder with splits, "
            "data.eval_split"
        )
    of_split = split_paths(cfg) if evaluation else []
    paths = (of_split or paths_of(cfg.eval_path)) if evaluation else paths_of(cfg.path)
    split, setting = (cfg.eval_split or "", "data.eval_split") if evaluation else (cfg.split, "data.split")
    limit = None if evaluation else cfg.limit
    if paths:
        return [
            _read_path(path, name, split, setting, cfg, limit) for path, name in zip(paths, _names(paths), strict=True)
        ]
    if cfg.source == "hub":
        if cfg.name is None:
            raise UsageError("data.name is not set: type data.name=OWNER/DATASET, or data.path=FILE for a local file")
        rows = read_hub(cfg.name, cfg.config, split, cfg.revision, limit, cfg.data_dir)
        one_file = cfg.name.count("/") > 1
        report = SourceReport(_short(cfg.name), len(rows), splits=() if one_file else (split,))
        return [SourceRows(rows, cfg.name if one_file else f"{cfg.name}:{split}", report)]
    raise UsageError(
        f"data.path is not set: type data.path=FILE ({', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}) or a folder"
    )


def _read_path(path: str, name: str, split: str, setting: str, cfg: DataConfig, limit: int | None) -> SourceRows:
    found = folders.find(placed(path, cfg), split, cfg.config, setting)
    rows = read_files(found.files, limit, cfg.max_row_mb)
    names = tuple(file.name for file in found.files)
    report = SourceReport(name, len(rows), 0, names, found.splits, found.left, found.unread)
    return SourceRows(rows, path if not found.splits else f"{path}:{'+'.join(found.splits)}", report)


def _names(paths: Sequence[str]) -> list[str]:
    """A short name of its own for each path: the file's, or where two have the same the whole path."""
    short = [_short(path) for path in paths]
    names = [name if short.count(name) == 1 else _clean(path) for name, path in zip(short, paths, strict=True)]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def _short(path: str) -> str:
    return _clean(Path(path).name.partition(".")[0]) or "data"


def _clean(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
