"""The token view of a measurement: one HTML file that colours the text of every pair by what happened to its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from alphapo_cli.report.page import FOLDER, embedded, environment
from alphapo_cli.report.payload import rounded
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.jsonl import read_jsonl

_FACTS = (
    ("displacement/chosen", "displacement, chosen", "+.3f"),
    ("displacement/rejected", "displacement, rejected", "+.3f"),
    ("displacement/share_chosen_down", "chosen answers that became less likely", ".0%"),
    ("rewards/accuracies", "reward accuracy", ".0%"),
)


def write_token_page(folder: Path, result: Mapping[str, Any], name: str) -> Path:
    """Write tokens.html beside the rows that it shows.

    Args:
        folder: the directory of the measurement, with measured.jsonl and tokens.jsonl.
        result: the content of its metrics.json.
        name: what the model is called.

    Returns:
        The file.
    """
    metrics = result["metrics"]
    facts = [(label, format(metrics[key], form)) for key, label, form in _FACTS if metrics.get(key) is not None]
    page = environment().get_template("tokens.html.j2")
    text = page.render(
        name=name,
        directory=folder.resolve().name,
        start=result["start"],
        went=result.get("went"),
        facts=[("pairs", f"{result['pairs']:,}"), *facts],
        data=Markup(embedded(payload(folder))),
        css=Markup("\n".join((FOLDER / file).read_text(encoding="utf-8") for file in ("style.css", "tokens.css"))),
        js=Markup((FOLDER / "tokens.js").read_text(encoding="utf-8")),
    )
    file = folder / "tokens.html"
    write_atomic(file, text)
    return file


def payload(folder: Path) -> list[dict[str, Any]]:
    """The page's data: the pairs, those whose chosen answer fell most first, with their numbers and tokens."""
    pairs = {row["pair"]: row for row in read_jsonl(folder / "measured.jsonl")}
    answers: dict[int, dict[str, Any]] = {}
    prompts: dict[int, str] = {}
    for row in read_jsonl(folder / "tokens.jsonl"):
        prompts[row["pair"]] = row["prompt"]
        answers.setdefault(row["pair"], {})[row["side"]] = {
            "tokens": row["tokens"],
            "before": [rounded(value) for value in row["before"]],
            "now": [rounded(value) for value in row["now"]],
            "reward": [rounded(value) for value in row["reward"]],
            "weight": rounded(row["gradient_weight"]),
            "moved": rounded(pairs[row["pair"]][f"displacement/{row['side']}"]),
        }
    found = [
        {
            "row": pairs[pair]["row"],
            "set": pairs[pair]["set"],
            "quadrant": pairs[pair]["quadrant"],
            "ches": rounded(pairs[pair]["ches_normalised"]),
            "prompt": prompts[pair],
            "answers": sides,
        }
        for pair, sides in answers.items()
    ]
    return sorted(found, key=lambda pair: _fall(pair["answers"]))


def _fall(sides: Mapping[str, Any]) -> float:
    moved = sides.get("chosen", {}).get("moved")
    return float("inf") if moved is None else float(moved)
