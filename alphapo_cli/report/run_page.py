"""The page of a run, report.html in its directory, and of several runs with their curves over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.report import settings
from alphapo_cli.report.collect import ReportCell, Sweep, number
from alphapo_cli.report.numbers import COLUMNS, Entry, entry, titled, units
from alphapo_cli.report.page import duration, environment, shared
from alphapo_cli.report.payload import payload
from alphapo_cli.report.samples import samples
from alphapo_cli.runs.verdict import beside_evaluation
from alphapo_cli.runtime.wording import level, rate
from alphapo_cli.tracking import metrics as catalog

_CLASSES = {"better": "yes", "worse": "no"}
_WIN_RATE = "glassbox/true_win_rate"
# Ends of bands: metric -> suffixes.
_BANDS = {"displacement/chosen": "p10 p90", "displacement/rejected": "p10 p90", _WIN_RATE: "low high"}
# Counts of the manifest that are shown where they are not zero.
_COUNTS = (
    ("pairs_read", "pairs read"),
    ("no_common_prompt", "left out: no common prompt"),
    ("emptied", "left out: empty answer"),
    ("identical", "left out: identical answers"),
    ("template_refused", "left out: refused by the template"),
    ("template_lost", "left out: cut by the template"),
    ("left_out_by_weights", "left out: beyond data.weights"),
    ("duplicates", "duplicates"),
    ("duplicates_dropped", "of these dropped"),
    ("truncated_pairs", "truncated"),
    ("probe_prompts_in_training", "held-out prompts also in training"),
    ("train_pairs", "training pairs"),
    ("probe_pairs", "held-out pairs"),
)
_MEANS = (
    ("mean_prompt_tokens", "mean prompt, tokens"),
    ("mean_chosen_tokens", "mean chosen answer, tokens"),
    ("mean_rejected_tokens", "mean rejected answer, tokens"),
)


@dataclass(frozen=True)
class Figure:
    """A figure of curves over steps; `keys` are drawn in one frame."""

    heading: str
    caption: str
    keys: tuple[str, ...]
    unit: str
    shared: tuple[str, ...] = ()  # further metrics that the scale must hold, as another figure shows them

    @property
    def data(self) -> dict[str, str]:
        """What the script reads of it."""
        # Of several runs the bands over pairs would hide one another.
        bands = "" if self.shared else _BANDS.get(self.keys[0], "")
        return {"keys": " ".join(self.keys), "band": bands, "unit": self.unit, "shared": " ".join(self.shared)}

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Colours and words where one frame shows both sides."""
        sides = [key.rsplit("/", 1)[-1] for key in self.keys]
        return [(f"--{side}", side) for side in sides] if len(self.keys) > 1 else []


_SIDES = (
    (
        "Displacement", "displacement", "nats per token since step 0",
        "Log-prob of held-out answers since step 0; below 0, training makes them less likely.",
    ),
    (
        "Gradient weight", "gradient_weight", "size of the mean dL/ds",
        "Size of the mean derivative of the loss by the score. A rejected side far above the chosen one pushes down more than "
        "it lifts.",
    ),
)  # fmt: skip
_BAND = " The band holds the middle 80 % of the pairs."
_SINGLE = (
    Figure("True win rate", "Against the model before training, with 95 % intervals over prompts.", (_WIN_RATE,),
           "share of prompts won"),
    Figure("Reward margin", "Chosen minus rejected reward of held-out pairs. It may grow while quality falls.",
           ("rewards/margins",), "reward"),
    Figure("Pairs in the right order", "By reward; ties count half.", ("rewards/accuracies",), "share of pairs"),
    Figure("Pairs in the right order by log-prob", "Which of both answers the model itself finds likelier; ties count half. "
           "Training on rewards against a reference may leave it as it was. Of one run a line shows what DPO's optimum "
           "would have, where the probabilities of the preferences are known.",
           ("ranking/accuracy",), "share of pairs"),
    Figure("Chosen answers that became less likely", "Towards 1, nearly every preferred answer did.",
           ("displacement/share_chosen_down",), "share of pairs"),
    Figure("Loss", "Of the training batches.", ("train/loss",), "loss"),
    Figure("Distance from the start", "KL divergence of the next-token distribution to step 0, on chosen answers.",
           ("kl/reference",), "nats per token"),
    Figure("Gradient norm", "Of the training batches, before clipping.", ("train/grad_norm",), "norm"),
)  # fmt: skip


def page(sweep: Sweep, paths: Sequence[Path]) -> str:
    """The page of runs as HTML.

    Args:
        sweep: the runs, as `read_runs` returns them.
        paths: the directories that were asked for.

    Returns:
        One file that makes no requests.
    """
    one = len(sweep.cells) == 1
    answers = samples(sweep)
    data = payload(sweep, answers, [f"{key}/{end}" for key, ends in _BANDS.items() for end in ends.split()])
    data["marks"] = _marks(sweep.cells[0]) if one else []
    cells = [
        {"cell": cell, "name": titled(sweep.points[cell.point].label), "guards": _guards(cell), "data": _data(cell)}
        for cell in sweep.cells
    ]
    verdict = _verdict(sweep.cells[0]) if one else None
    outcomes = _outcomes(sweep)
    seed = "" if answers is None or answers.seed is None else f" of seed {answers.seed}"
    return (
        environment()
        .get_template("runs.html.j2")
        .render(
            **shared(sweep, answers, data),
            one=one,
            title=sweep.name.replace(" -", " \u2212"),
            verdict=verdict,
            facts=_facts(sweep),
            warning=_warning(sweep),
            figures=[f for f in _figures(one) if any(key in data["metrics"] for key in f.keys)],
            samples_caption=f"Answers{seed} to the same prompts, drawn by a hash: before training, and at the last step.",
            outcomes=outcomes,
            units=units(sweep),
            listed=_listed(outcomes) if one else [],
            cells=cells,
            report_command=settings.command_of_report(paths),
        )
    )


def _figures(one: bool) -> list[Figure]:
    """Both sides in one frame for one run; in one each where several runs are compared."""
    sides = []
    for heading, key, unit, caption in _SIDES:
        keys = [f"{key}/{side}" for side in ("chosen", "rejected")]
        alone = [Figure(f"{heading}: {k.rsplit('/', 1)[-1]}", caption, (k,), unit, tuple(keys)) for k in keys]
        both = Figure(heading, f"{caption}{_BAND if key == 'displacement' else ''}", tuple(keys), unit)
        sides.append([both] if one else alone)
    moved, weights = sides
    return [*moved, *_SINGLE[:5], *weights, *_SINGLE[5:]]


def _verdict(cell: ReportCell) -> tuple[str, str, list[str]]:
    """CSS class, text of the label, and sentences of one run."""
    summary, judged = cell.run.summary() or {}, cell.run.outcome()
    said = summary.get("verdict") or {}
    sentences = [str(s) for s in said.get("sentences") or ()]
    outcome = str(said.get("outcome") or ("not over" if cell.state not in ("complete", "stopped") else "not measured"))
    evaluated = judged.get("verdict") or {}
    if isinstance(evaluated, dict) and evaluated.get("sentence"):
        outcome = str(evaluated.get("outcome"))
        sentences = [str(evaluated["sentence"]), *beside_evaluation(sentences)]
    if cell.state == "stopped":
        outcome += ", stopped by a guard"
    elif cell.state != "complete":
        outcome = cell.state
    return _CLASSES.get(outcome.partition(",")[0], "open"), outcome, sentences


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Name and value of what the page's head lists."""
    if len(sweep.cells) > 1:
        counts = sweep.counts()
        return [("runs", ", ".join(f"{n} {state}" for state, n in counts.items()))]
    cell = sweep.cells[0]
    s, data = cell.settings, cell.manifest.get("data")
    counted: Mapping[str, Any] = data if isinstance(data, dict) else {}
    facts = [("state", cell.state), ("seed", str(s.get("seed")))]
    total = number(cell.manifest.get("steps"))
    facts.append(("steps", f"{cell.step:,} of {total:,.0f}" if total and total > cell.step else f"{cell.step:,}"))
    facts.append(("started from", str(cell.manifest.get("start") or s.get("model.path") or s.get("model.source"))))
    facts.append(("data", str(counted.get("source") or s.get("data.path") or s.get("data.source"))))
    for key, name in _COUNTS[-2:]:
        if number(counted.get(key)):
            facts.append((name, f"{counted[key]:,}"))
    spent = number(cell.cost.get("seconds"))
    if spent:
        facts.append(("training time", duration(spent)))
    return facts


def _warning(sweep: Sweep) -> str | None:
    """What is not as it should be with a run."""
    found = []
    for cell in sweep.cells:
        said = "; ".join(text for text in (cell.reason, cell.fault) if text)
        if said or cell.state != "complete":
            name = "" if len(sweep.cells) == 1 else f"{titled(sweep.points[cell.point].label)}: "
            found.append(f"{name}{cell.state} at step {cell.step:,}{f': {said}' if said else ''}")
    return "; ".join(found) or None


def _marks(cell: ReportCell) -> list[dict[str, Any]]:
    """Steps that the curves of one run mark."""
    said = (cell.run.summary() or {}).get("verdict") or {}
    best = number(said.get("best_step"))
    marks = (
        [] if best is None or best == cell.step else [{"step": int(best), "word": f"best win rate: step {best:.0f}"}]
    )
    if cell.state in ("stopped", "failed"):
        marks.append({"step": cell.step, "word": f"{cell.state}: step {cell.step}"})
    return marks


def _guards(cell: ReportCell) -> list[str]:
    """Guards that were set, and what they and gradient clipping did."""
    limits = {k.partition(".")[2]: v for k, v in cell.settings.items() if k.startswith("guard.")}
    named = [f"{name} = {value}" for name, value in limits.items() if value is not None and not isinstance(value, bool)]
    said = [f"limits: {', '.join(named)}" if named else "no limit was set (guard.max_chosen_drop and others)"]
    if cell.state == "stopped" and cell.reason:
        said.append(f"stopped: {cell.reason}")
    elif named:
        said.append("none was reached")
    clipped = number(((cell.run.summary() or {}).get("verdict") or {}).get("clipped"))
    if clipped is not None:
        logged = sum(number(row.get("train/grad_norm")) is not None for row in cell.rows)
        said.append(f"the gradient was clipped at {rate(clipped, None)} of {logged:,} logged steps")
    return said


def _data(cell: ReportCell) -> list[tuple[str, str]]:
    """Label and value of what the manifest says of the data."""
    data = cell.manifest.get("data")
    found: Mapping[str, Any] = data if isinstance(data, dict) else {}
    rows = [(name, str(found[key])) for key, name in (("source", "data"), ("template", "template")) if found.get(key)]
    rows += [(name, f"{value:,.0f}") for key, name in _COUNTS if (value := number(found.get(key)))]
    rows += [(name, f"{value:.1f}") for key, name in _MEANS if (value := number(found.get(key)))]
    return rows


def _outcomes(sweep: Sweep) -> dict[str, Any]:
    """The table of outcomes: a row for each run."""
    columns = [c for c in COLUMNS if any(p.mean(c[0]) is not None for p in sweep.points)]
    heads = [{"name": "run", "explained": ""}, {"name": "verdict", "explained": "By the win rate alone"}]
    rates = [key for key in ("eval/win_rate", _WIN_RATE) if any(key in cell.final for cell in sweep.cells)]
    for key in rates:
        name = "win rate by the judge" if key.startswith("eval/") else "true win rate"
        over = "95 % over prompts"
        if key.startswith("eval/"):
            over = level(cell.run.outcome() for cell in sweep.cells if key in cell.final)
        heads.append({"name": name, "explained": f"{catalog.explain(key)} With its interval, {over}."})
    heads += [{"name": name, "explained": catalog.explain(key)} for key, name, _ in columns]
    heads += [{"name": "best step", "explained": "Of the highest true win rate"},
              {"name": "clipped steps", "explained": "Share of logged steps whose gradient was clipped"},
              {"name": "steps", "explained": "Optimizer steps done"}]  # fmt: skip
    rows = []
    for cell in sweep.cells:
        point = sweep.points[cell.point]
        said = (cell.run.summary() or {}).get("verdict") or {}
        cells = [Entry(_verdict(cell)[1]), *(_rated(cell, key, said) for key in rates)]
        counted = cell.manifest.get("data")
        pairs = number(counted.get("probe_pairs")) if isinstance(counted, dict) else None
        cells += [entry(number(cell.final.get(key)), form, pairs) for key, _, form in columns]
        clipped = number(said.get("clipped"))
        logged = sum(number(row.get("train/grad_norm")) is not None for row in cell.rows)
        share = Entry("–") if clipped is None else Entry(rate(clipped, None), repr(clipped), f"of {logged:,}")
        cells += [entry(number(said.get("best_step")), ".0f"), share, entry(cell.step, ",")]
        order = point.alpha if point.alpha is not None else cell.point
        rows.append({"point": cell.point, "label": titled(point.label), "order": order, "cells": cells})
    return {"heads": heads, "rows": rows}


def _listed(table: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the first row's numbers: a table of one row would be wider than a page."""
    heads, cells = table["heads"][1:], table["rows"][0]["cells"]
    return [
        (head["name"], f"{cell.text} {cell.extra}".strip(), head["explained"])
        for head, cell in zip(heads, cells, strict=True)
    ]


def _rated(cell: ReportCell, key: str, said: Mapping[str, Any]) -> Entry:
    """A win rate with interval and n."""
    value = number(cell.final.get(key))
    if value is None:
        return Entry("–")
    n, ends = number(said.get("n")), said.get("interval")
    if key.startswith("eval/"):
        n, ends = number(cell.final.get("eval/n_total")), (cell.run.outcome().get("verdict") or {}).get("interval")
    interval = (float(ends[0]), float(ends[1])) if isinstance(ends, list) and len(ends) == 2 else None
    share, _, rest = rate(value, n, interval).partition(" % ")
    return Entry(f"{share} %", repr(value), rest) if rest else Entry(rate(value, n, interval), repr(value))
