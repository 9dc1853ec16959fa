"""The HTML page of a report: one file with its style, script and data inside, which makes no requests.

The figures are drawn by about 700 lines of JavaScript in this package. Plotly's script would be 4.5 MB in every report;
smaller chart libraries are not on PyPI, and would still need code for selection, colour scale and tooltips.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from alphapo_cli.report import settings
from alphapo_cli.report.collect import Sweep, number, shown
from alphapo_cli.report.frontier import frontier
from alphapo_cli.report.numbers import OUTCOMES, numbers, titled, units
from alphapo_cli.report.over_training import HEADS, over_training
from alphapo_cli.report.payload import payload, written
from alphapo_cli.report.samples import Samples, samples
from alphapo_cli.report.shapes import left_out, words
from alphapo_cli.sweep.analysis import scale_note
from alphapo_cli.sweep.intervals import UNDECIDED
from alphapo_cli.sweep.verdicts import BASELINE
from alphapo_cli.tracking import metrics as catalog

FOLDER = Path(__file__).parent
_SCRIPTS = ("base.js", "chart.js", "figures.js", "shapes.js", "page.js")


_FRONTIER = (
    " Models that eval.at kept are on it, too. The dashed line is the frontier: no other end of training, nor the start, wins "
    "as much at a KL as small; which points stand on it is as uncertain as their win rates."
)


def page(sweep: Sweep) -> str:
    """The report as HTML."""
    answers = samples(sweep)
    commands = settings.Commands()
    metric = sweep.analysis.metric
    title, lead = _title(sweep)
    data = payload(sweep, answers)
    rates = frontier(sweep)
    if rates is not None:
        data["frontier"] = {"paths": {str(k): written(path) for k, path in rates.paths.items()}, "front": rates.front}
    seed = "" if answers is None or answers.seed is None else f" of seed {answers.seed}"
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            **shared(sweep, answers, data),
            axis=sweep.axis,
            mark="bar" if sweep.axis.kind == "category" else "band",
            title=title,
            lead=lead,
            verdict=_verdict(sweep),
            facts=_facts(sweep),
            warning=_warning(sweep),
            outcome_title=OUTCOMES.get(metric or "", metric or "Outcome"),
            has_seeds=any(len(p.cells) > 1 for p in sweep.points),
            over=sweep.over,
            has_intervals=any(e is not None for e in sweep.analysis.estimates),
            has_advantage=any(a is not None for a in sweep.analysis.advantages),
            frontier_note=_FRONTIER if rates is not None else "",
            has_length="glassbox/length" in data["metrics"],
            band_note=" The band spans the seeds." if any(len(p.members) > 1 for p in sweep.points) else "",
            samples_caption=f"Answers at the last step{seed}, for prompts drawn by a hash.",
            numbers=numbers(sweep),
            units=units(sweep),
            scale_note=scale_note(sweep.points),
            unfinished=[c for c in sweep.cells if c.state != "complete" or c.fault or c.reason],
            cell_commands=[(c, line) for c in sweep.cells if (line := commands.of(c)) is not None],
            report_command=settings.command_of_report([sweep.path]),
        )
    )


def shared(sweep: Sweep, answers: Samples | None, data: dict[str, Any]) -> dict[str, Any]:
    """What every page of points is rendered with.

    Args:
        sweep: the points.
        answers: sampled answers, where there are some.
        data: of the figures, as `payload` returns it.

    Returns:
        Variables of layout.html.j2 and parts.html.j2.
    """
    metrics = list(data["metrics"])
    shapes = data["shapes"]
    return {
        "sweep": sweep,
        "directory": sweep.path.resolve().name,
        "metric_groups": _groups(metrics),
        "first_metric": "rewards/margins",
        "samples": answers,
        "over_training": (HEADS, *over_training(sweep)),
        "reward_shapes": {
            "any": bool(shapes),
            "field": any("field" in panel for panel in shapes.values()),
            "saturated": words(shapes),
            "left_out": left_out(sweep),
        },
        "settings": settings.settings(sweep),
        "typed": settings.typed(sweep),
        "versions": settings.versions(sweep),
        "glossary": [(key, catalog.explain(key), catalog.lookup(key).bad) for key in metrics],
        "data": Markup(embedded(data)),
        "css": Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        "js": Markup("\n".join((FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)),
    }


def embedded(data: Any) -> str:
    """JSON, escaped for a script element, which no text of a model can then close."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@cache
def environment() -> Environment:
    """Templates of this package, which escape what they are given."""
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _title(sweep: Sweep) -> tuple[str, str]:
    """The heading and the line below it: the sweep's description, else its keys."""
    description = str(sweep.record.get("description") or "")
    first, _, rest = description.partition(";")
    if description:
        return first.strip(), rest.strip()
    return f"Sweep over {', '.join(k for k in sweep.keys) or 'seeds'}", ""


def _verdict(sweep: Sweep) -> tuple[str, str]:
    """CSS class and text of the label above the sentence."""
    best = sweep.best
    if best is None:
        return "open", "nothing complete yet"
    at = sweep.points[sweep.analysis.best or 0]
    name = f"best: {titled(at.label)}"
    if best["verdict"] is None:
        return "open", name
    if best["verdict"] == BASELINE:
        return "open", f"{name}, which the others are compared with"
    if best["verdict"] == UNDECIDED:
        return "open", f"{name}, undecided whether it differs from alpha = 0"
    return "yes" if best["distinguishable"] else "no", f"{name}, {best['verdict']} from alpha = 0"


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Name and value of what the page's head lists: cells, seeds, steps, model, data, cost."""
    counts = sweep.counts()
    first = next((c for c in sweep.cells if c.settings), None)
    seeds = list(dict.fromkeys(shown(c.seed) for c in sweep.cells if c.seed is not None))
    facts = [("cells", ", ".join(f"{n} {state}" for state, n in counts.items()) or "none")]
    if seeds:
        facts.append(("seeds", ", ".join(seeds)))
    steps = sorted({c.step for c in sweep.cells if c.state == "complete"})
    if steps:
        facts.append(("steps", str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"))
    if first is not None:
        s = first.settings
        world = {"glassbox": "embedded world", "from_scratch": "random weights"}
        for name, found in (("model", "model.path"), ("data", "data.path")):
            named = s.get(found) or s.get(f"{name}.name") or s.get(f"{name}.source")
            facts.append((name, world.get(str(named), str(named))))
        pairs = first.manifest.get("data")
        if isinstance(pairs, dict) and number(pairs.get("train_pairs")):
            facts.append(("training pairs", f"{pairs['train_pairs']:,}"))
        if isinstance(pairs, dict) and number(pairs.get("probe_pairs")):
            facts.append(("held-out pairs", f"{pairs['probe_pairs']:,}"))
    spent = sum(number(c.cost.get("seconds")) or 0.0 for c in sweep.cells)
    if spent:
        facts.append(("training time, all cells", duration(spent)))
    return facts


def duration(seconds: float) -> str:
    """A time span in seconds, minutes, or hours and minutes."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _warning(sweep: Sweep) -> str | None:
    """A warning about cells that are not complete, if any."""
    counts = sweep.counts()
    missing = {state: n for state, n in counts.items() if state != "complete"}
    if not missing:
        return None
    done = counts.get("complete", 0)
    listed = ", ".join(f"{n} {state}" for state, n in missing.items())
    return f"{done} of {len(sweep.cells)} cells are complete ({listed}); this page shows what there is."


_GROUPS = (
    ("where probability went", "mass/"),
    ("what scores foretold", "foretold/"),
    ("subsets and sources", ("subset/", "source/")),
    ("sampled answers", "samples/"),
    ("training batches", "train/"),
)


def _groups(metrics: list[str]) -> list[tuple[str, list[str]]]:
    """Headings and metrics of the list from which a metric is chosen."""
    groups = [
        ("held-out pairs", [k for k in metrics if k in catalog.PROBE]),
        ("embedded world", [k for k in metrics if k in catalog.GLASSBOX]),
        *((name, [k for k in metrics if k.startswith(starts)]) for name, starts in _GROUPS),
    ]
    return [(name, keys) for name, keys in groups if keys]
