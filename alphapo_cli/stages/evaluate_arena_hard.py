"""`alphapo eval --protocol arena_hard`: grade outputs against a baseline; the public tool's files, results, leaderboard row.

`prepare` loads and validates all inputs and writes nothing; `run` judges and writes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphapo_cli import __version__
from alphapo_cli.errors import AlphapoError, say
from alphapo_cli.evaluation import output_check
from alphapo_cli.evaluation.arena_hard import leaderboard
from alphapo_cli.evaluation.arena_hard.answers import Answer, Answers, matched, read_answers
from alphapo_cli.evaluation.arena_hard.judge import ArenaHardJudge
from alphapo_cli.evaluation.arena_hard.judgments import JudgedPair, answer_rows, judgment_rows
from alphapo_cli.evaluation.arena_hard.registry import build
from alphapo_cli.evaluation.arena_hard.results import summarise
from alphapo_cli.evaluation.arena_hard.schema import ArenaHardConfig
from alphapo_cli.evaluation.arena_hard.style import count_style
from alphapo_cli.evaluation.arena_hard.verdicts import grades
from alphapo_cli.evaluation.formats import Annotation
from alphapo_cli.evaluation.naming import told_apart
from alphapo_cli.stages.directories.arena_hard import ArenaHardDirectory, write_rows
from alphapo_cli.stages.evaluate import manifest_of
from alphapo_cli.storage.atomic import write_json

# Label and key of the picture's rates.
_RATES = (("score", "score"), ("style-\ncontrolled", "style_controlled_score"))


@dataclass(frozen=True)
class ArenaHardInputs:
    """The input files; a directory means its model_outputs.json."""

    outputs: Path
    reference: Path
    annotations: Path | None = None  # a model_judgment file
    questions: Path | None = None  # None: the question.jsonl above a model_answer file
    leaderboard: Path | None = None  # None: leaderboard.csv in the evaluation's directory


@dataclass(frozen=True)
class ArenaHardEvaluation:
    """The validated inputs. `pairs`: (baseline's, model's) answers; `state`: of the directory."""

    cfg: ArenaHardConfig
    inputs: ArenaHardInputs
    outputs: Answers
    reference: Answers
    pairs: list[tuple[Answer, Answer]]
    judge: ArenaHardJudge
    directory: ArenaHardDirectory
    identity: dict[str, Any]
    state: str
    replace: bool
    looked: dict[str, dict[str, int]]  # what is odd about the answers, before thoughts are removed

    @property
    def asking(self) -> bool:
        """Whether failed judgements are requested again; not where only the statistics differ."""
        return self.state != "statistics"


def prepare(
    cfg: ArenaHardConfig, inputs: ArenaHardInputs, out: Path | None = None, *, replace: bool = False
) -> ArenaHardEvaluation:
    """Load and validate outputs, baseline, judge and the other files.

    Args:
        cfg: the configuration.
        inputs: the files.
        out: the directory of the evaluation; None: one named by its content in run.dir.
        replace: whether to discard the content of the directory.

    Returns:
        The inputs; its `state` is "complete" where nothing is left to do.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    read = [read_answers(path, inputs.questions) for path in (inputs.outputs, inputs.reference)]
    sides = zip(("outputs", "reference"), read, strict=True)
    looked = {side: output_check.look([row.text for row in file.rows]) for side, file in sides}
    outputs, reference = (file.without_thoughts() if cfg.strip_think else file for file in read)
    pairs = matched(outputs, reference)
    whole = matched(*read) if cfg.strip_think else None
    judge = build(cfg, outputs, reference, pairs, inputs.annotations, whole)
    if inputs.leaderboard is not None:
        leaderboard.check(inputs.leaderboard)
    identity = {
        "protocol": "arena_hard",
        "outputs": outputs.hash(),
        "reference": reference.hash(),
        "judge": {"name": cfg.judge.name, **judge.identity()},
    }
    directory = ArenaHardDirectory.place(out, None, cfg.run, outputs.generator, identity)
    state = directory.open(identity, asdict(cfg.statistics), replace=replace)
    left_out = directory.load_results().get("judging", {}).get("failed", 0)
    if state in ("complete", "statistics") and left_out > cfg.judge.max_failed:
        state = "continued"  # judge.max_failed was larger then
    evaluation = ArenaHardEvaluation(
        cfg, inputs, outputs, reference, pairs, judge, directory, identity, state, replace, looked
    )  # fmt: skip
    if state != "complete":
        # Under --replace the present judgements will be discarded, so the judge must not rely on them.
        kept = directory.path / "replaced" if replace else directory.path
        judge.check(pairs, kept, asking=evaluation.asking)
    return evaluation


def run(evaluation: ArenaHardEvaluation) -> dict[str, Any]:
    """Judge, compute the statistics and write all results.

    Returns:
        The content of results.json.

    Raises:
        AlphapoError: judgements failed, or there are none; finished ones are kept, and the same call resumes.
        Interrupted: a signal arrived; finished judgements are kept, and the same call resumes.
    """
    cfg, directory, pairs = evaluation.cfg, evaluation.directory, evaluation.pairs
    for note in output_check.notes(evaluation.looked, cfg.strip_think):
        say(f"note: {note}", file=sys.stderr, flush=True)
    directory.begin(manifest_of(evaluation.identity, evaluation.inputs, cfg), replace=evaluation.replace)
    judged = evaluation.judge.judge(pairs, directory.path, asking=evaluation.asking)
    kept = [(pair, games) for pair, games in zip(pairs, judged.pairs, strict=True) if games is not None]
    answered = [pair for pair, _ in kept]
    texts = [row.text for row in evaluation.outputs.rows]
    try:
        found = [grades(games.first.label, games.second.label) for _, games in kept]
        figures, preferences = summarise(answered, found, texts, cfg.statistics)
    except ValueError as error:
        raise AlphapoError(f"{evaluation.inputs.outputs}: {error}; there is nothing to count") from error
    own, base = evaluation.outputs, evaluation.reference
    named = told_apart((own.generator, base.generator), (own.path, base.path), ("outputs", "reference"))
    tokens = [row.tokens for row in own.rows if row.tokens is not None]
    results = {
        "state": "complete",
        "protocol": "arena_hard",
        "generator": named[0],
        "reference": named[1],
        "annotator": evaluation.judge.annotator,
        **figures,
        "avg_tokens": sum(tokens) / len(tokens) if len(tokens) == len(own.rows) else None,
        "n_outputs": len(own.rows),
        "n_reference": len(base.rows),
        "n_not_judged": len(pairs) - len(kept),
        "answers": {**evaluation.looked, "strip_think": cfg.strip_think},
        **judged.facts,
        "statistics": asdict(cfg.statistics),
    }
    write_json(directory.annotations, _annotations(evaluation, kept, preferences))
    _write_public(evaluation, judged.pairs, named)
    leaderboard.update(evaluation.inputs.leaderboard or directory.leaderboard, own.generator, results)
    _draw(evaluation, results)
    return directory.finish(results)


def _annotations(
    evaluation: ArenaHardEvaluation,
    kept: Sequence[tuple[tuple[Answer, Answer], JudgedPair]],
    preferences: Sequence[float | None],
) -> list[dict[str, Any]]:
    """Rows in AlpacaEval's format, which `alphapo compare` reads; the raw completion has both labels."""
    return [
        Annotation(
            instruction=base.instruction,
            output_1=base.text,
            output_2=own.text,
            preference=preference,
            generator_1=evaluation.reference.generator,
            generator_2=evaluation.outputs.generator,
            dataset=own.category,
            annotator=evaluation.judge.annotator,
            extra={
                "preference_raw_completion": {"uid": own.uid, "labels": [games.first.label, games.second.label]},
                "preference_version": f"alphapo {__version__}, arena_hard",
            },
        ).row()
        for ((base, own), games), preference in zip(kept, preferences, strict=True)
    ]


def _write_public(evaluation: ArenaHardEvaluation, judged: Sequence[JudgedPair | None], named: tuple[str, str]) -> None:
    """The public tool's files; `named`: model and baseline, by names that differ."""
    directory, pairs = evaluation.directory, evaluation.pairs
    asked = [{"uid": own.uid, "category": own.category, "prompt": own.instruction} for _, own in pairs]
    write_rows(directory.questions, [{k: v for k, v in row.items() if v is not None} for row in asked])
    if directory.answers(named[0]) == directory.answers(named[1]):  # names that differ in signs a file name cannot hold
        named = named[0], f"{named[1]}-baseline"
    for side, name in ((1, named[0]), (0, named[1])):
        answers = [pair[side] for pair in pairs]
        metadata = [
            None if row.tokens is None else count_style(row.text, row.tokens).metadata() for row in answers
        ]  # fmt: skip
        write_rows(directory.answers(name), answer_rows(answers, name, metadata))
    judge = evaluation.judge.annotator
    write_rows(directory.judgments(judge, named[0]), judgment_rows(pairs, judged, (judge, named[0], named[1])))


def _draw(evaluation: ArenaHardEvaluation, results: dict[str, Any]) -> None:
    from alphapo_cli.plots.evaluation import evaluation_picture

    shown = {
        "score": results["arena_hard/score"],
        "score_interval": results["arena_hard/ci"],
        "style_controlled_score": results["arena_hard/style_controlled_score"],
        "style_controlled_score_interval": results["arena_hard/style_controlled_ci"],
    }
    evaluation_picture({**results, **shown}, evaluation.directory.picture, _RATES)
