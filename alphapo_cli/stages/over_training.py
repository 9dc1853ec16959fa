"""Evaluations of a run's model at the fractions of training that `eval.at` names, beside that of its last model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import in_words, say
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.wording import level
from alphapo_cli.stages.training.kept_models import KeptModels, step_of

PICTURE = "outcome_over_training.png"
# What an evaluation is drawn against, beside the step: keys of the probe at that step.
PROBE_KEYS = ("displacement/chosen", "displacement/rejected", "kl/reference", "rewards/margins")

Evaluate = Callable[[str | None, bool], Mapping[str, Any]]  # (model, whether it is of the run) -> its outcome


def evaluate_at(
    fractions: Sequence[float], cfg: TrainConfig, directory: RunDirectory, last: Mapping[str, Any], evaluate: Evaluate
) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluate the models of some fractions of training; those that were evaluated before are not again.

    Args:
        fractions: of training, ascending, 0 to 1.
        cfg: the run's configuration.
        directory: the run directory; the run is over.
        last: the outcome of model/.
        evaluate: generates from a model and has the answers judged; of the model before training the path is None
            where it is the embedded world's.

    Returns:
        (one row an evaluation: step, fraction, "generate", "eval", "metrics", "intervals", their "confidence" and what they
        are over, and "probe" as it was measured then; notes for the user).

    Raises:
        UsageError: an input of a stage cannot be used.
        AlphapoError: a stage failed; the same command resumes it.
        Interrupted: a stage was interrupted; the same command resumes it.
    """
    summary = directory.summary() or {}
    ended = int(summary.get("step", 0))
    total = int(directory.read_manifest().get("steps") or ended)
    kept, probe = KeptModels.of(cfg, directory, total), _probe_rows(directory)
    rows, notes, done = [], [], set[int]()
    for fraction in fractions:
        step, outcome = step_of(fraction, total), last
        at_end = fraction == 1 or step == total == ended
        if at_end:
            step = int((summary.get("best") or {}).get("step", ended))
        elif step > ended:
            notes.append(f"no model after {fraction:.0%} of training (step {step}): it ended at step {ended}")
            continue
        if step in done:
            notes.append(f"the model after {fraction:.0%} of training is that of step {step} again; it counts once")
            continue
        done.add(step)
        if not at_end:
            where = "before training" if step == 0 else f"of step {step}"
            say(f"eval.at: the model {where} ({fraction:.0%} of training)", file=sys.stderr, flush=True)
            outcome = evaluate(cfg.model.path if step == 0 else str(kept.of_step(step)), step > 0)
        rows.append(
            {
                "step": step, "fraction": step / total if total else fraction, "generate": outcome["generate"], "eval": outcome["eval"],
                "metrics": outcome["metrics"], "intervals": outcome["intervals"],
                "confidence": outcome["confidence"], "intervals_over": outcome["intervals_over"], "probe": probe.get(step, {}),
            }
        )  # fmt: skip
    return rows, notes


def draw(rows: Sequence[Mapping[str, Any]], directory: RunDirectory) -> Path | None:
    """Draw the outcome against step, KL and displacement, in the run directory.

    Returns:
        The picture; None where it could not be drawn, of which a note is printed.

    Raises:
        OSError: the disk refuses the file.
    """
    from alphapo_cli.plots.over_training import over_training

    path = directory.path / PICTURE
    try:
        over_training(rows, path, directory.path.name, level(rows))
    except OSError:
        raise
    except Exception as error:
        say(f"note: {PICTURE} was not drawn ({in_words(error)})", file=sys.stderr)
        return None
    return path


def flat(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a table: step, fraction, and the figures of evaluation and probe."""
    return [{"step": row["step"], "fraction": row["fraction"], **row["metrics"], **row["probe"]} for row in rows]


def _probe_rows(directory: RunDirectory) -> dict[int, dict[str, Any]]:
    """Step -> what the probe measured of `PROBE_KEYS`."""
    found: dict[int, dict[str, Any]] = {}
    for row in directory.rows():
        values = {key: row[key] for key in PROBE_KEYS if row.get(key) is not None}
        if values:
            found.setdefault(int(row["step"]), {}).update(values)
    return found
