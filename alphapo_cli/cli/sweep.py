"""`alphapo sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    Json,
    PrintConfig,
    announce,
    check_json_target,
    emit,
    quiet_libraries,
    sources,
)
from alphapo_cli.errors import AlphapoError


def register(app: typer.Typer) -> None:
    app.command()(sweep)


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|FILE.yaml] [OVERRIDES]...",
            help="A sweep and Hydra overrides; a list or range sweeps a key.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The sweep's directory (default runs/<NAME>-<hash8>).")
    ] = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    json: Json = None,
) -> None:
    """Run a grid of trainings and draw what alpha does. The same line again continues it.

    [bold]Examples[/bold]

      alphapo sweep alpha

      alphapo sweep alpha objective.shape.alpha=-0.5,0,0.5,1 seed=0,1,2

      alphapo sweep alpha_ratio model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz

      alphapo sweep objective=simpo,dpo,alphapo
    """
    from alphapo_cli.compose import to_yaml
    from alphapo_cli.sweep.grid import make
    from alphapo_cli.sweep.state import SweepDirectory, another

    texts = list(arguments or [])
    name = texts.pop(0) if texts and "=" not in texts[0] else None
    grid = make(name, texts, sources(config_dir))
    if print_config:
        print(
            f"# {len(grid.cells)} cells over {', '.join(grid.keys)}: "
            + "; ".join(" ".join(c.overrides) for c in grid.cells)
        )
        print(to_yaml(grid.cells[0].cfg), end="")
        return
    check_json_target(json)
    quiet_libraries()
    directory = SweepDirectory((out or Path(grid.cells[0].cfg.run.dir) / f"{grid.name}-{grid.hash}").expanduser())
    directory.check(grid)
    announce(directory.path)
    note = another(directory.path, grid)
    if note:
        typer.echo(note, err=True)

    from rich.console import Console

    from alphapo_cli.report import HTML
    from alphapo_cli.stages.sweep import run_sweep, table

    result = run_sweep(grid, directory)
    wide = Console()
    # A pipe has no width of its own; the table needs about this much.
    (wide if wide.is_terminal else Console(width=120)).print(table(directory))
    print(result.sentence)
    for title, path in result.pictures.items():
        print(f"{title}: {path.resolve()}")
    if (directory.path / HTML).is_file():
        print(f"report: {(directory.path / HTML).resolve()}")
    emit({"path": str(directory.path.resolve()), **result.summary}, json)
    if result.failed:
        raise AlphapoError(f"{len(result.failed)} of {len(grid.cells)} cells failed, first {result.failed[0]}")
