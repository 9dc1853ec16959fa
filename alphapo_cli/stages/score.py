"""`alphapo score`: a number for every answer, by a model, a judge or a rule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.pairs import read, rows
from alphapo_cli.pairs.candidates import Candidates, mean_and_sd
from alphapo_cli.pairs.scoring.schema import ScoreConfig
from alphapo_cli.pairs.scoring.scorer import Scorer
from alphapo_cli.runs.provenance import manifest
from alphapo_cli.stages.directories.pairs import ScoreDirectory
from alphapo_cli.stages.scored_answers import make_scorers, score_all, scorer_configs
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.paths import cache_dir


@dataclass(frozen=True)
class Scoring:
    """The validated inputs; `state`: of the directory, pending or complete."""

    cfg: ScoreConfig
    prompts: list[Candidates]
    scorer: Scorer
    directory: ScoreDirectory
    identity: dict[str, Any]
    state: str


def prepare(
    cfg: ScoreConfig, answers: Sequence[Path], out: Path | None = None, *, replace: bool = False,
    cache: Path | None = None,
) -> Scoring:  # fmt: skip
    """Read the answers and find the scorer; loads no weights.

    Args:
        cfg: the configuration.
        answers: directories of `alphapo generate`, and files.
        out: the directory of the scores; None: one named by its content in run.dir.
        replace: whether to discard the content of the directory; numbers in the cache stay.
        cache: the cache directory; None for the usual one.

    Returns:
        The inputs.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    cache = cache or cache_dir()
    if cfg.scorer.name == "auto":
        raise UsageError("which scorer? type scorer=NAME (reward_model, logprob, rule, ...; --help lists them)")
    prompts = read.read(answers)
    configs = scorer_configs(cfg.scorer, {})
    (scorer,) = make_scorers(configs, cfg.judge, cfg.data, cache, prompts)
    content = [prompt.held for prompt in sorted(prompts, key=lambda prompt: prompt.key)]
    identity = {"scorer": scorer.identity(), "column": scorer.column, "answers": digest(content)}
    directory = ScoreDirectory.place(out, None, cfg.run, scorer.column, identity)
    return Scoring(cfg, prompts, scorer, directory, identity, directory.open(identity, replace=replace))


def run(scoring: Scoring) -> dict[str, Any]:
    """Score what is missing and write all results; the content of summary.json. Raises what scorers raise."""
    directory, column, began = scoring.directory, scoring.scorer.column, time.perf_counter()
    directory.begin(manifest(identity=scoring.identity, config=asdict(scoring.cfg)), scoring.cfg)
    prompts, asked = score_all(scoring.prompts, [scoring.scorer], cache_dir())
    prompts = sorted(prompts, key=lambda prompt: prompt.key)
    lines = [
        {"prompt": prompt.key, "source": a.source, "number": a.number, "output": a.text, column: a.scores.get(column)}
        for prompt in prompts
        for a in prompt.answers
    ]
    directory.write_rows("scores.jsonl", lines)
    columns = sorted({column, *read.columns_of(prompts)})
    directory.write_rows("scored.jsonl", [rows.scored_row(prompt, columns) for prompt in prompts])
    values = [a.scores[column] for prompt in prompts for a in prompt.answers if column in a.scores]
    mean, sd = mean_and_sd(values) if values else (None, None)
    metrics = {
        "prompts": len(prompts), "answers": len(lines), "scored": len(values), "not_scored": len(lines) - len(values),
        "shortened": scoring.scorer.shortened(prompts), "mean": mean, "sd": sd,
    }  # fmt: skip
    cost = {"seconds": time.perf_counter() - began, "asked": asked}
    return directory.finish("complete", column=column, metrics=metrics, cost=cost)
