"""The picture of levels in docs/architecture.md, made from the contract in pyproject.toml, and what can be counted.

    python docs/architecture.py            # the counts: places, levels, edges, backward edges
    python docs/architecture.py --write    # the picture anew, between its two marks in docs/architecture.md

A place is a module or package directly under alphapo_cli/; an edge, one place importing another (also inside functions).
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = "alphapo_cli"
MARKS = ("<!-- levels: begin -->\n", "<!-- levels: end -->\n")
WHAT = {
    "__main__": "python -m alphapo_cli",
    "cli": "a file a command: options, messages, exit codes; lists and removal of what commands wrote",
    "launch": "what runs a sweep: engine, workers, Slurm, Ray",
    "report": "what sweeps and runs show: pictures, pages, a sweep's run in W&B; and the page of single tokens",
    "sweep": "what a sweep is: grid, directory, record, which point is best",
    "stages": "what a command does: train, generate, evaluate, all three, measure, loss; and the directories it fills",
    "evaluation": "judges, win rates, comparisons",
    "training": "order of pairs, the optimizer step, guards",
    "probe": "displacement on held-out pairs, scores of pairs, sampled answers",
    "pairs": "answers scored, and made into pairs: thin, pair, select, order",
    "generation": "prompts, parity of ids, vLLM and transformers",
    "objective": "score, shape, link and the other parts, put together",
    "modeling": "weights, layouts, log-probs, sampling",
    "runs": "a run's directory, identity, checkpoints",
    "data": "sources, templates, token ids, the embedded world",
    "tracking": "W&B, and the catalogue of metrics",
    "runtime": "what all parts share: signals, ranks, generators, threads, memo, statistics, figures as text",
    "config": "schema, overrides, composition, validation",
    "plots": "figures",
    "storage": "atomic files, JSONL, hashes, the run lock",
    "errors": "errors with exit codes, and escaping of what is printed",
}


def levels() -> list[list[str]]:
    """The places of each level, top first, as the contract says."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "levels")
    return [[name.strip() for name in line.split("|")] for line in contract["layers"]]


def edges() -> set[tuple[str, str]]:
    """Pairs (importing place, imported place)."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = tuple(name.split(".")[1] if "." in name else name for name in (module, imported))
            if pair[0] != pair[1] and PACKAGE not in pair:
                found.add((pair[0], pair[1]))
    return found


def counts() -> dict[str, int]:
    """Places, levels, edges, and edges that do not lead to a lower level."""
    level = {place: i for i, places in enumerate(levels()) for place in places}
    found = edges()
    return {
        "places": len(level),
        "levels": len(levels()),
        "edges": len(found),
        "edges not downwards": sum(level[a] >= level[b] for a, b in found),
    }


def larger() -> set[str]:
    """Modules of more than 300 lines, functions of more than 80 lines or 8 parameters; commands of cli/ are not counted."""
    found = set()
    for file in (ROOT / PACKAGE).rglob("*.py"):
        text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT / PACKAGE))
        if len(text.splitlines()) > 300:
            found.add(name)
        for scope in ast.walk(ast.parse(text)):
            for node in ast.iter_child_nodes(scope):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not name.startswith("cli/"):
                    taken = [
                        a for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs if a.arg != "self"
                    ]
                    if len(taken) > 8 or (node.end_lineno or 0) - node.lineno >= 80:
                        found.add(f"{scope.name}.{node.name}" if isinstance(scope, ast.ClassDef) else node.name)
    return found


def picture() -> str:
    """The levels as a table in text, top first."""
    width = max(len(place) for places in levels() for place in places)
    lines = []
    for number, places in zip(range(len(levels()), 0, -1), levels(), strict=True):
        for i, place in enumerate(places):
            lines.append(f"{number if i == 0 else '':>2}  {place:<{width}}  {WHAT[place]}")
    return "```\n" + "\n".join(lines) + "\n```\n"


def page() -> str:
    """docs/architecture.md with the picture as the contract has it now."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + picture() + MARKS[1] + rest.split(MARKS[1])[1]


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    print(", ".join(f"{count} {what}" for what, count in counts().items()))
