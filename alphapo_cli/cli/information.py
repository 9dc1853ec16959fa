"""`alphapo env`, `alphapo metrics` and `alphapo objectives`: installation, meaning of the metrics, and objectives."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from alphapo_cli.cli.common import ConfigDir, sources
from alphapo_cli.errors import say


def register(app: typer.Typer) -> None:
    """Add `alphapo env`, `alphapo metrics` and `alphapo objectives` to the application."""
    app.command()(env)
    app.command(short_help="What each metric means.")(metrics)
    app.command(short_help="Every objective: loss, paper, defaults, needs.")(objectives)


def env() -> None:
    """Versions, hardware and caches, as a bug report needs them. Shows no secret.

    Also what each `numerics` of a run changed.
    """
    from alphapo_cli.cli.housekeeping.sizes import bytes_of
    from alphapo_cli.config.shipped import shipped
    from alphapo_cli.runs.format_version import NUMERICS
    from alphapo_cli.runs.provenance import git_commit, hardware, versions
    from alphapo_cli.storage.paths import cache_dir

    cache = cache_dir()
    sizes = {p.name: bytes_of(p) for p in cache.iterdir() if p.is_dir()} if cache.is_dir() else {}
    report = {
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": git_commit(),
        "numerics": {"now": max(NUMERICS), "changes": {str(n): text for n, text in NUMERICS.items()}},
        "conf": str(shipped("conf")),
        "cache": {"path": str(cache), "bytes": sizes},
    }
    print(jsonlib.dumps(report, indent=2))


def metrics(
    key: Annotated[str | None, typer.Argument(help="One metric; all when left out.")] = None,
) -> None:
    """What each metric means, in which direction it is better where that is plain, and what a bad value is."""
    from alphapo_cli.tracking.metrics import CATALOG, PER_PAIR, described

    if key is not None:
        say(described(key))
        return
    for name in (*CATALOG, *PER_PAIR):
        say(name)
        say(f"    {described(name)}")


def objectives(
    name: Annotated[str | None, typer.Argument(help="One objective; all when left out.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/objectives.md.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Every objective: loss, paper, defaults, what it needs, and how its formula was checked.

    \b
    Examples:
      alphapo objectives
      alphapo objectives odpo
    \f

    Raises:
        UsageError: there is no such objective.
    """
    from alphapo_cli.config.renamed import suggestion
    from alphapo_cli.errors import UsageError
    from alphapo_cli.objective import catalog

    found = catalog.methods(sources(config_dir))
    if name is not None:
        known = [m.name for m in found]
        if name not in known:
            raise UsageError(
                f"objective '{name}': no such objective{suggestion('objective', name, known)} (there are: {', '.join(known)})"
            )
        found = [m for m in found if m.name == name]
    if markdown:
        print(catalog.markdown(found), end="")
        return
    for m in found:
        for line in catalog.lines(m):
            say(line)
    print()
    for line in catalog.LEGEND.split("\n"):
        say(line)
