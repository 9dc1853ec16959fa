"""Preference pairs from files and from the hub: read, converted to `TextPair`, and filtered.

A row carries no preference when its two sides share no prompt, an answer is empty, two answers are the same or all
scores are equal: it is left out and counted. A malformed row (no `rejected`, a number in place of text) is an error
that names it.
"""

from __future__ import annotations

from dataclasses import replace

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.row_formats import answer_text, detect_form, to_pair
from alphapo_cli.data.scored_answers import answers_per_row, tied
from alphapo_cli.data.sources import Row, read_files, read_hub
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs, TextPair
from alphapo_cli.errors import UsageError


def has_evaluation(cfg: DataConfig) -> bool:
    """Whether separate evaluation pairs are configured; `data.path` takes precedence over the hub's `eval_split`."""
    return cfg.eval_path is not None or (cfg.source == "hub" and cfg.path is None and cfg.eval_split is not None)


def check_source(cfg: DataConfig) -> None:
    """Refuse (UsageError) a data file or hub name set beside data=glassbox, which would ignore it."""
    unused = [name for name in ("path", "eval_path", "name") if getattr(cfg, name) is not None]
    if cfg.source == "glassbox" and unused:
        group = "hub" if unused == ["name"] else "jsonl"
        raise UsageError(
            f"data.{unused[0]}={getattr(cfg, unused[0])} is not read by data=glassbox, the embedded world; add data={group}"
        )


def load_pairs(cfg: DataConfig, *, evaluation: bool = False) -> LoadedPairs:
    """Read the training pairs or the evaluation pairs.

    Args:
        cfg: the data settings. A local path wins over a hub name; `data.limit` takes the first rows of the training
            source, before any row is left out.
        evaluation: read `data.eval_path` / `data.eval_split` instead of the training source.

    Returns:
        The usable pairs in source order, with counts of the rows left out.

    Raises:
        UsageError: the data are missing, empty or malformed; the message names file and row.
    """
    rows, description = _read(cfg, evaluation)
    if not rows:
        raise UsageError(f"{description}: holds no pairs; alphapo needs rows with prompt, chosen and rejected")
    form = detect_form(rows[0], cfg)
    cfg = replace(cfg, answers=_num_answers(rows, form, cfg, description))
    counts = {"no_common_prompt": 0, "emptied": 0, "identical": 0, "duplicates": 0, "duplicates_dropped": 0, "tied": 0}
    pairs: list[TextPair] = []
    seen: set[str] = set()
    for row in rows:
        pair = to_pair(row, form, cfg)
        if pair is None:
            counts["no_common_prompt"] += 1
            continue
        texts = [answer_text(answer).strip() for answer in pair.answers]
        if not all(texts):
            counts["emptied"] += 1
            continue
        if len(set(texts)) < len(texts):
            counts["identical"] += 1
            continue
        if form == "answers" and tied(pair):
            counts["tied"] += 1
            continue
        key = pair.content_key
        if key in seen:
            counts["duplicates"] += 1
            if cfg.duplicates == "drop":
                counts["duplicates_dropped"] += 1
                continue
        seen.add(key)
        pairs.append(pair)
    if not pairs:
        reasons = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items() if value)
        raise UsageError(f"{description}: none of its {len(rows)} rows is usable as {form} ({reasons})")
    return LoadedPairs(pairs, LoadCounts(read=len(rows), **counts), f"{description} ({form})", form)


def _num_answers(rows: list[Row], form: str, cfg: DataConfig, description: str) -> int | None:
    """Number of answers of each row, which `data.answers` must match."""
    if cfg.gold_column is not None and form not in ("pairs", "messages"):
        raise UsageError(f"data.gold_column={cfg.gold_column}: {description} holds {form}; leave it out")
    if form == "answers":
        return answers_per_row(rows, cfg, description)
    count = {"unpaired": 1}.get(form, 2 if cfg.gold_column is None else 3)
    if cfg.answers not in (None, count):
        raise UsageError(
            f"data.answers={cfg.answers}: {description} holds {form}, {count} answer(s) a row; leave it out, or give rows "
            "with a list 'responses' and 'scores'"
        )
    return count


def _read(cfg: DataConfig, evaluation: bool) -> tuple[list[Row], str]:
    if evaluation and not has_evaluation(cfg):
        raise UsageError(
            "no evaluation pairs are configured: set data.eval_path or, for a hub data set, data.eval_split"
        )
    path = cfg.eval_path if evaluation else cfg.path
    limit = None if evaluation else cfg.limit
    if path is not None:
        return read_files(path, limit), path
    if cfg.source == "hub":
        if cfg.name is None:
            raise UsageError("data.name is not set: type data.name=OWNER/DATASET, or data.path=FILE for a local file")
        split = (cfg.eval_split or "") if evaluation else cfg.split
        return read_hub(cfg.name, cfg.config, split, cfg.revision, limit, cfg.data_dir), f"{cfg.name}:{split}"
    raise UsageError("data.path is not set: type data.path=FILE (.jsonl, .jsonl.gz, .json, .json.gz, .csv or .parquet)")
