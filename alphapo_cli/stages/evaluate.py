"""`alphapo eval`: judge outputs against a reference; annotations, results, leaderboard row and picture.

`prepare` loads and validates all inputs and writes nothing; `run` judges and writes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphapo_cli import __version__
from alphapo_cli.errors import AlphapoError, UsageError, say
from alphapo_cli.evaluation import leaderboard, output_check
from alphapo_cli.evaluation import length_controlled as lc
from alphapo_cli.evaluation.formats import Annotation, ModelOutputs, Output, check_same_set, read_outputs
from alphapo_cli.evaluation.judges.journal import Answered
from alphapo_cli.evaluation.judges.judge import Judge, Verdict
from alphapo_cli.evaluation.judges.protocol import Pair, is_verdict, verdict_mass
from alphapo_cli.evaluation.judges.registry import build
from alphapo_cli.evaluation.judges.verdict_mass import mass_figures, tokens_of
from alphapo_cli.evaluation.naming import told_apart
from alphapo_cli.evaluation.output_check import without_thought
from alphapo_cli.evaluation.results import LengthControl, summarise
from alphapo_cli.evaluation.schema import EvalConfig, JudgeConfig, verdict_settings
from alphapo_cli.runs.provenance import git_commit, versions
from alphapo_cli.stages.directories.evaluation import EvalDirectory
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.strict_json import read_object

_SIDES = ("outputs", "reference")


@dataclass(frozen=True)
class Inputs:
    """The input files of an evaluation; a directory means the file of the usual name in it."""

    outputs: Path
    reference: Path
    annotations: Path | None = None
    difficulty: Path | None = None
    gamed: Path | None = None
    leaderboard: Path | None = None  # None: leaderboard.csv in the evaluation's directory
    spent: float = 0.0  # USD that judge.max_cost counts and that other evaluations took


@dataclass(frozen=True)
class Evaluation:
    """The validated inputs. `rows`: (reference, model) outputs in the reference's order; `state`: of the directory."""

    cfg: EvalConfig
    inputs: Inputs
    outputs: ModelOutputs
    reference: ModelOutputs
    rows: tuple[tuple[Output, Output], ...]
    judge: Judge
    control: tuple[dict[str, float], lc.Gamed] | str
    directory: EvalDirectory
    identity: dict[str, Any]
    statistics: dict[str, Any]
    state: str
    replace: bool
    looked: dict[str, dict[str, int]]  # what is odd about the answers, before thoughts are removed

    @property
    def notes(self) -> list[str]:
        """Lines about odd answers, to be read before a judge is paid."""
        return output_check.notes(self.looked, self.cfg.strip_think)

    @property
    def asking(self) -> bool:
        """Whether failed judgements are requested again; not where only the statistics differ."""
        return self.state != "statistics"

    @property
    def pairs(self) -> list[Pair]:
        """(instruction, reference output, model output) for the judge."""
        return [Pair(base.instruction, base.output, own.output) for base, own in self.rows]


def prepare(
    cfg: EvalConfig, inputs: Inputs, out: Path | None = None, *, replace: bool = False, inside: Path | None = None
) -> Evaluation:
    """Load and validate outputs, reference, judge and the other files.

    Args:
        cfg: the configuration.
        inputs: the files.
        out: the directory of the evaluation; None: one named by its content in run.dir.
        replace: whether to discard the content of the directory.
        inside: a run directory in which the evaluation is kept, in place of `out`.

    Returns:
        The inputs; its `state` is "complete" where nothing is left to do.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    read = [read_outputs(path) for path in (inputs.outputs, inputs.reference)]
    looked = {
        side: output_check.look([row.output for row in file.rows]) for side, file in zip(_SIDES, read, strict=True)
    }
    outputs, reference = (_without_thoughts(file) if cfg.strip_think else file for file in read)
    check_same_set(outputs, reference)
    judge = build(cfg.judge, outputs, inputs.annotations, inputs.spent)
    own = outputs.by_instruction()
    rows = tuple((base, own[base.instruction]) for base in reference.rows if base.instruction in own)
    control = _control(inputs, reference)
    if inputs.leaderboard is not None:
        leaderboard.check(inputs.leaderboard)
    identity = {
        "outputs": _hash(outputs),
        "reference": _hash(reference),
        "judge": {"name": cfg.judge.name, **judge.identity()},
    }
    verdicts = {} if cfg.judge.name in ("replay", "glassbox") else verdict_settings(cfg.judge)
    statistics = {
        **asdict(cfg.statistics),
        **verdicts,
        "length_control": control if isinstance(control, str) else _key(*control),
    }
    directory = EvalDirectory.place(out, inside, cfg.run, outputs.generator, identity)
    state = directory.open(identity, statistics, replace=replace)
    left_out = directory.load_results().get("judging", {}).get("failed", 0)
    if state in ("complete", "statistics") and left_out > cfg.judge.max_failed:
        state = "continued"  # judge.max_failed was larger then
    evaluation = Evaluation(
        cfg, inputs, outputs, reference, rows, judge, control, directory, identity, statistics, state, replace, looked
    )
    if state != "complete":
        # Under --replace the present judgements will be discarded, so the judge must not rely on them.
        kept = directory.path / "replaced" if replace else directory.path
        judge.check(evaluation.pairs, kept, asking=evaluation.asking)
    return evaluation


def run(evaluation: Evaluation) -> dict[str, Any]:
    """Judge, compute the statistics and write all results.

    Returns:
        The content of results.json.

    Raises:
        AlphapoError: judgements failed, or there are none; finished ones are kept, and the same call resumes.
        Interrupted: a signal arrived; finished judgements are kept, and the same call resumes.
    """
    cfg, directory = evaluation.cfg, evaluation.directory
    for note in evaluation.notes:
        say(f"note: {note}", file=sys.stderr, flush=True)
    directory.begin(manifest_of(evaluation.identity, evaluation.inputs, cfg), replace=evaluation.replace)
    judged = evaluation.judge.judge(evaluation.pairs, directory.path, asking=evaluation.asking)
    annotations = [
        _annotation(base, own, verdict, evaluation)
        for (base, own), verdict in zip(evaluation.rows, judged.verdicts, strict=True)
        if verdict is not None
    ]
    texts = [row.output for row in evaluation.outputs.rows]
    try:
        figures = summarise(annotations, texts, _rows_control(evaluation, annotations), cfg.statistics)
    except ValueError as error:
        raise AlphapoError(f"{evaluation.inputs.outputs}: {error}; there is nothing to count") from error
    write_json(directory.annotations, [row.row() for row in annotations])
    own, base = evaluation.outputs, evaluation.reference
    named = told_apart((own.generator, base.generator), (own.path, base.path), ("outputs", "reference"))
    results = {
        "state": "complete",
        "generator": named[0],
        "reference": named[1],
        "annotator": evaluation.judge.annotator,
        **figures,
        "n_outputs": len(evaluation.outputs.rows),
        "n_reference": len(evaluation.reference.rows),
        "n_not_judged": len(evaluation.rows) - len(annotations),
        "answers": {**evaluation.looked, "strip_think": cfg.strip_think},
        **judged.facts,
        "statistics": evaluation.statistics,
    }
    board = evaluation.inputs.leaderboard or directory.leaderboard
    leaderboard.update(board, evaluation.outputs.generator, results)
    from alphapo_cli.plots.evaluation import evaluation_picture

    evaluation_picture(results, directory.picture)
    return directory.finish(results)


def recheck(path: Path, cfg: JudgeConfig) -> dict[str, Any]:
    """Compute the probability of each verdict of an evaluation on disk, and write mass.json; nothing is asked.

    Args:
        path: the evaluation's directory.
        cfg: `min_mass`; the verdict tokens are those of the evaluation, unless `cfg` has others than the default.

    Returns:
        The content of mass.json; `below` has the answers that are no verdict.

    Raises:
        UsageError: the directory holds no answers of a judge model.
    """
    directory = EvalDirectory(path)
    if not directory.log.is_file():
        raise UsageError(f"--recheck {path}: there is no {directory.log.name}, so no judge model was asked there")
    if "protocol" in (directory.stored() or {}):
        raise UsageError(
            f"--recheck {path}: an evaluation by another protocol, whose judge wrote texts; it has no log-probs"
        )
    asked = (checksums.intact(read_object(directory.manifest)) or {}).get("config", {}).get("judge", {})
    own = cfg.verdict_tokens != JudgeConfig().verdict_tokens
    first, second = cfg.verdict_tokens if own else asked.get("verdict_tokens", cfg.verdict_tokens)
    answers = [(row, tokens_of(row)) for row in Answered(directory.log).rows.values()]
    if not answers:
        raise UsageError(
            f"--recheck {path}: no answer with log-probs is in {directory.log.name}, so there is nothing to tell"
        )
    masses = [verdict_mass(top, (first, second)) for _, top in answers]
    below = [
        {"row": row["row"], "mass": mass, "top_logprobs": top}
        for (row, top), mass in zip(answers, masses, strict=True)
        if not is_verdict(mass, cfg.min_mass)
    ]
    found = {
        "answers": len(answers), "verdict_tokens": [first, second], "min_mass": cfg.min_mass, **mass_figures(masses),
        "below": below,
    }  # fmt: skip
    write_json(directory.masses, found)
    return found


def _control(inputs: Inputs, reference: ModelOutputs) -> tuple[dict[str, float], lc.Gamed] | str:
    """Instruction -> difficulty and the length-gamed rows, or why the length-controlled rate is unavailable."""
    missing = [flag for flag, path in (("--difficulty", inputs.difficulty), ("--gamed", inputs.gamed)) if path is None]
    difficulty = None if inputs.difficulty is None else lc.read_difficulty(inputs.difficulty, reference)
    gamed = None if inputs.gamed is None else lc.read_gamed(inputs.gamed)
    if difficulty is None or gamed is None:
        return f"needs {' and '.join(missing)}"
    return difficulty, gamed


def _rows_control(evaluation: Evaluation, rows: Sequence[Annotation]) -> LengthControl | str:
    if isinstance(evaluation.control, str):
        return evaluation.control
    by_instruction, gamed = evaluation.control
    if evaluation.cfg.statistics.official_row_index:
        return LengthControl(lc.by_row(by_instruction, evaluation.reference, len(rows)), gamed)
    return LengthControl(lc.by_name(by_instruction, [row.instruction for row in rows]), gamed)


def _annotation(base: Output, own: Output, verdict: Verdict, evaluation: Evaluation) -> Annotation:
    """The row as alpaca_eval 0.6.6 writes it."""
    return Annotation(
        instruction=base.instruction,
        output_1=base.output,
        output_2=own.output,
        preference=verdict.preference,
        generator_1=evaluation.reference.generator,
        generator_2=evaluation.outputs.generator,
        dataset=own.dataset or base.dataset,
        annotator=evaluation.judge.annotator,
        extra={
            "preference_price_per_example": verdict.price,
            "preference_time_per_example": verdict.seconds,
            "preference_raw_completion": verdict.raw,
            "preference_date": verdict.date,
            "preference_version": f"alphapo {__version__}",
            **verdict.extra,
        },
    )


def manifest_of(identity: Mapping[str, Any], inputs: Any, cfg: Any) -> dict[str, Any]:
    """The manifest of an evaluation: `inputs` and `cfg` are the dataclasses of its files and of its settings."""
    return {
        "identity": dict(identity),
        "command": sys.argv,
        "files": {key: str(path) for key, path in asdict(inputs).items() if path is not None},
        "config": asdict(cfg),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _without_thoughts(file: ModelOutputs) -> ModelOutputs:
    return dataclasses.replace(
        file, rows=tuple(dataclasses.replace(row, output=without_thought(row.output)) for row in file.rows)
    )


def _hash(outputs: ModelOutputs) -> str:
    """Hash of the content of the outputs, independent of spacing and compression of the file."""
    return digest([outputs.generator, [[row.instruction, row.output] for row in outputs.rows]])


def _key(difficulty: dict[str, float], gamed: lc.Gamed) -> str:
    """Hash of the inputs of the length-controlled rate."""
    rows = [gamed.t.tolist(), gamed.difficulty.tolist(), gamed.p.tolist(), gamed.weight]
    return digest([sorted(difficulty.items()), rows])
