"""Generation and evaluation of a trained run, and its outcome.

The directory of a stage is named by a hash of its inputs, and a complete one is not computed again. The outcome is
written to outcome.json in the run directory, and logged to the W&B run of the training.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Line
from alphapo_cli.config.schema import ModelConfig, TrainConfig
from alphapo_cli.data.file_hashes import fingerprints
from alphapo_cli.errors import AlphapoError, say
from alphapo_cli.evaluation.output_check import notes_of
from alphapo_cli.evaluation.schema import EvalConfig
from alphapo_cli.evaluation.verdict import verdict
from alphapo_cli.generation.run_settings import run_layer, taken_over
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.provenance import manifest
from alphapo_cli.runs.state import OUTCOME
from alphapo_cli.stages import over_training
from alphapo_cli.stages.plan import Plan
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.jsonl import InUse
from alphapo_cli.storage.strict_json import read_object

# Keys of results.json that become metrics of the run, as eval/<name>; AlpacaEval's rates are in per cent.
RATES = ("win_rate", "length_controlled_winrate", "discrete_win_rate", "standard_error", "lc_standard_error",
         "lc_bootstrap_error")  # fmt: skip
FIGURES = (*RATES, "avg_length", "n_total", "true_win_rate", "true_reward")
OVER_TRAINING = ("eval/win_rate", "eval/length_controlled_winrate")  # drawn against the step in W&B
LOOK = 0.5  # seconds between two polls of answers that another process generates


def after_training(
    plan: Plan,
    cfg: TrainConfig,
    directory: RunDirectory,
    join: Callable[[dict[str, Any]], object],
    *,
    inside: bool = False,
) -> dict[str, Any]:
    """Generate and evaluate, unless the plan's outcome exists.

    Args:
        plan: generation and evaluation.
        cfg: the run's configuration.
        directory: the run directory.
        join: logs the outcome to W&B; called before outcome.json is written, which marks the run as done.
        inside: whether answers and evaluation are kept in the run directory, as for the cells of a sweep.

    Returns:
        The content of outcome.json.

    Raises:
        UsageError: an input of a stage cannot be used.
        AlphapoError: a stage failed; the same command resumes it.
        Interrupted: a stage was interrupted; the same command resumes it.
    """
    done = directory.outcome()
    if done.get("key") == plan.key:
        return done
    trained = directory.ended_as()
    keeper = directory.path if inside else None
    reference: Path | None = None
    spent = 0.0

    def outcome_of(model: str | None, of_run: bool = True) -> dict[str, Any]:
        nonlocal reference, spent
        inside = keeper if of_run else None
        own = _generate(plan, model, cfg, {}, inside)
        reference = reference or plan.reference or make_reference(plan, cfg)
        found, cost = _judge(plan, cfg, own, reference, inside, spent)
        spent += cost
        return found

    last = outcome_of(str(directory.path))
    found: dict[str, Any] = {"key": plan.key, "of": trained, **last}
    (directory.path / over_training.PICTURE).unlink(missing_ok=True)
    if plan.at:
        rows, notes = over_training.evaluate_at(plan.at, cfg, directory, last, outcome_of)
        found["over_training"] = rows
        if notes:
            found["over_training_notes"] = notes
        if cfg.tracking.pictures:
            over_training.draw(rows, directory)
    if directory.ended_as() != trained:
        raise AlphapoError(
            f"{directory.path}: another process has trained this run anew meanwhile; the same line evaluates what it trained"
        )
    join(found)
    write_json(directory.path / OUTCOME, checksums.sealed(found))
    return found


def _judge(
    plan: Plan, cfg: TrainConfig, own: Any, reference: Path, inside: Path | None, spent: float
) -> tuple[dict[str, Any], float]:
    """Have answers judged, unless they were.

    Args:
        plan: generation and evaluation.
        cfg: the run's configuration.
        own: the answers.
        reference: what they are compared with.
        inside: as for `after_training`, where the model is the run's.
        spent: USD of the run's evaluations before, which --max-cost counts and `judge.max_cost` does not.

    Returns:
        The outcome for outcome.json, and what its judge cost in USD.
    """
    from alphapo_cli.stages import evaluate

    settings = compose("eval", EvalConfig, [plan.evaluate], plan.sources)
    settings.run.dir = cfg.run.dir
    of_run, of_one = plan.max_cost, settings.judge.max_cost
    if of_run is None or (of_one is not None and of_one < of_run - spent):
        spent = 0.0
    else:
        settings.judge.max_cost = of_run
    inputs = evaluate.Inputs(own.outputs(), reference, plan.annotations, plan.difficulty, plan.gamed, spent=spent)
    evaluation = evaluate.prepare(settings, inputs, inside=inside)
    results = evaluation.directory.load_results() if evaluation.state == "complete" else evaluate.run(evaluation)
    found: dict[str, Any] = {
        "generate": str(own.path.resolve()),
        "eval": str(evaluation.directory.path.resolve()),
        "metrics": {
            f"eval/{name}": results[name] / (100 if name in RATES else 1)
            for name in FIGURES
            if results.get(name) is not None
        },
        "confidence": results["confidence"],
        "intervals_over": results.get("intervals_over", "instructions"),
        "intervals": {
            f"eval/{name}": [end / 100 for end in results[f"{name}_interval"]]
            for name in RATES
            if results.get(f"{name}_interval") is not None
        },
    }
    # Without --reference it is compared with the model that training started from, whose name need not say so.
    found["verdict"] = verdict(results, "" if plan.reference else "the model before training")
    if odd := notes_of(results):
        found["answers"] = odd
    if notes := [*_notes(own.summary(), reference), *odd]:
        found["notes"] = notes
    return found, float((results.get("judging") or {}).get("cost_usd") or 0.0)


def _notes(own: dict[str, Any], reference: Path) -> list[str]:
    """What was said about the answers and about those of the reference, each once."""
    other = read_object(reference.parent / "summary.json") or {}
    return list(
        dict.fromkeys(text for s in (own, other) for kind in ("notes", "warnings") for text in s.get(kind) or [])
    )


def begin_untrained(cfg: TrainConfig, directory: RunDirectory, note: str) -> None:
    """Write the first files of a run whose training never began, so that its end can be recorded; `note` says why."""
    directory.begin(cfg, manifest(note=note), fingerprints(cfg.data))


def note_failure(plan: Plan, directory: RunDirectory, reason: str) -> None:
    """Record in outcome.json that generation or evaluation of a trained run failed."""
    nothing: dict[str, Any] = {
        "key": None,
        "of": directory.ended_as(),
        "failed": plan.key,
        "reason": reason,
        "metrics": {},
    }
    write_json(directory.path / OUTCOME, checksums.sealed(nothing))


def make_reference(plan: Plan, cfg: TrainConfig) -> Path:
    """Generate answers of the initial model, once for all runs with the same initial model and seed.

    Waits while another process generates them.

    Args:
        plan: generation and evaluation.
        cfg: the run's configuration.

    Returns:
        The file of the answers, in AlpacaEval's format.
    """
    said = False
    while True:
        try:
            # Another seed than the policy's, so that an unchanged policy has a win rate of one half.
            how: dict[str, Any] = {"seed": cfg.seed + 1}
            if cfg.model.quantization != ModelConfig().quantization:
                how["model.quantization"] = cfg.model.quantization
            path: Path = _generate(plan, cfg.model.path, cfg, how).outputs()
            return path
        except InUse as error:
            if not said:
                say(f"waiting for the reference answers: {error}", file=sys.stderr, flush=True)
            said = True
            time.sleep(LOOK)


def _generate(
    plan: Plan, model: str | None, cfg: TrainConfig, extra: dict[str, Any], inside: Path | None = None
) -> Any:
    """The directory of a model's answers, which are generated where they are missing."""
    from alphapo_cli.stages import generate, own_prompts

    base = Line((), {"seed": cfg.seed, "run.dir": cfg.run.dir, **extra})
    # Reference answers are sampled with the settings of the run; a run that `model` names overrides them with its own.
    revision = {} if cfg.model.revision is None else {"model.revision": cfg.model.revision}
    start = Line((), {**taken_over(OmegaConf.structured(cfg)), **revision})
    settings = compose("generate", GenerateConfig, [start, run_layer(model), base, plan.generate], plan.sources)
    prompts = None
    if plan.takes_own_prompts(cfg):
        prompts = own_prompts.own_prompts(cfg, settings.data.limit)
        settings.data = own_prompts.data_of_prompts(settings.data, cfg)
    generation = generate.prepare(settings, model, inside=inside, prompts=prompts)
    if generation.state != "complete":
        _say(generation.notes, "note")
        _say(generate.run(generation)["warnings"], "alphapo: warning")
    return generation.directory


def _say(texts: list[str], kind: str) -> None:
    for text in texts:
        say(f"{kind}: {text}", file=sys.stderr, flush=True)


def join_tracking(cfg: TrainConfig, directory: RunDirectory, found: dict[str, Any], group: Any = None) -> str | None:
    """Log the outcome to the W&B run of the training; the command that uploads an offline run, or None."""
    from alphapo_cli.stages.training.tracker import run_tracker

    summary = directory.summary() or {}
    tracker = run_tracker(cfg, directory, group)
    step = int(summary.get("step", 0))
    tracker.log(step, found["metrics"])
    pictures = {
        "curves": directory.path / "curves.png",
        "reward_shape": directory.path / "reward_shape.png",
        "eval": Path(found["eval"]) / "winrate.png",
        "over_training": directory.path / over_training.PICTURE,
    }
    for name, picture in pictures.items():
        if picture.is_file() and cfg.tracking.pictures:
            tracker.picture(name, picture, step)
    if rows := found.get("over_training"):
        tracker.table("over_training", over_training.flat(rows), step)
        for key in OVER_TRAINING:
            line = [(float(row["step"]), row["metrics"][key]) for row in rows if key in row["metrics"]]
            if line:
                tracker.overlay(f"{key} over training", {directory.path.name: line}, step)
    tracker.finish({**summary.get("metrics", {}), **found["metrics"], "state": summary.get("state")}, 0)
    return tracker.sync_hint()
