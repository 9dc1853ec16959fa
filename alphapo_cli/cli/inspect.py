"""`alphapo env`, `alphapo metrics`: what is installed, and what the curves mean."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(env)
    app.command()(metrics)


def env() -> None:
    """Versions, hardware and caches: what a bug report needs. Nothing secret is shown."""
    from alphapo_cli.locations import cache_dir, shipped
    from alphapo_cli.runs import git_commit, hardware, versions

    cache = cache_dir()
    sizes = (
        {p.name: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in cache.iterdir() if p.is_dir()}
        if cache.is_dir()
        else {}
    )
    facts = {
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": git_commit(),
        "conf": str(shipped("conf")),
        "cache": {"path": str(cache), "bytes": sizes},
    }
    print(jsonlib.dumps(facts, indent=2))


def metrics(
    key: Annotated[str | None, typer.Argument(help="One metric; all when left out.")] = None,
) -> None:
    """What each metric means, one sentence each."""
    from alphapo_cli.metrics_catalog import CATALOG, explain

    if key is not None:
        print(explain(key))
        return
    for name in CATALOG:
        print(f"{name}\n    {explain(name)}")
