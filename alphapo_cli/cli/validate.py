"""`alphapo validate`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli.common import ConfigDir, check_json_target, emit, next_step, sources
from alphapo_cli.cli.common import Json as JsonOption
from alphapo_cli.errors import ConfigError, UsageError, say

if TYPE_CHECKING:
    from alphapo_cli.config.overrides import Sources

COMMANDS = ("train", "run", "sweep", "generate", "eval")
_SWEEP_KEYS = {"description", "base", "grid"}
_LATER = {"generation", "prompts", "judge", "statistics", "strip_think", "eval"}


def register(app: typer.Typer) -> None:
    """Add `alphapo validate` to the application."""
    app.command(short_help="Check settings without running anything.")(validate)


def validate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.yaml|SWEEP] [OVERRIDES]...",
            help="A file of settings (--config), a sweep's file or name, a run's config.yaml; then Hydra overrides.",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        str | None, typer.Option("--for", metavar="COMMAND", help=f"{', '.join(COMMANDS)}; found out when left out.")
    ] = None,
    config_dir: ConfigDir = None,
    json: JsonOption = None,
) -> None:
    """Check settings without running anything: keys, types, ranges, parts that go together, and that files are there.

    \b
    Examples:
      alphapo validate settings.yaml
      alphapo validate objective=ipo objective/shape=power objective.shape.alpha=0.5
      alphapo validate sweeps/mine.yaml
    \f

    Raises:
        UsageError: the settings are not valid; exit code 2.
    """
    texts = list(arguments or [])
    file = texts.pop(0) if texts and ("=" not in texts[0] or os.path.isfile(texts[0])) else None
    check_json_target(json)
    where = sources(config_dir)
    is_yaml = file is not None and (file.endswith((".yaml", ".yml")) or os.path.exists(file))
    with _group_named(Path(str(file)) if is_yaml else None, where, config_dir):
        command = command or (_command_of(Path(str(file))) if is_yaml else "sweep" if file else _command_of_line(texts))
    if command not in COMMANDS:
        raise UsageError(f"--for {command}: no such command to validate for (choices: {', '.join(COMMANDS)})")
    is_grid = command == "sweep" and (not is_yaml or _is_grid(Path(str(file))))
    config = Path(file) if file is not None and not is_grid else None
    with _group_named(config, where, config_dir):
        said = _VALIDATORS[command](file if is_grid else None, config, texts, where)
    say(f"valid: {said}")
    first = [] if file is None else [file] if is_grid else ["--config", file]
    target = {"generate": "RUN|MODEL ", "eval": "OUTPUTS.json --reference REF.json "}.get(command, "")
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    line = f"alphapo {command} {target}{shlex.join([*first, *texts, *folder])}".rstrip()
    emit({"valid": True, "command": command, "line": line}, json)
    next_step(line)


@contextlib.contextmanager
def _group_named(path: Path | None, where: Sources, config_dir: Path | None) -> Iterator[None]:
    """Within the block, an error about a file that lies where a group's files lie says how that group is checked."""
    try:
        yield
    except ConfigError as error:
        folders = () if path is None else path.absolute().parent.parts
        groups = ["/".join(folders[-depth:]) for depth in (2, 1)]
        group = next((name for name in groups if path and path.stem in where.groups().get(name, ())), None)
        if group is None:
            raise
        more = "" if config_dir is None else f" --config-dir {shlex.quote(str(config_dir))}"
        choice = f"{group}={path.stem if path else ''}"
        raise ConfigError(f"{error}; if it is the file of a group: alphapo validate {choice}{more}") from error


def _settings(path: Path) -> dict[str, Any]:
    """Top-level keys of a file, which need not be valid otherwise."""
    from alphapo_cli.config.config_file import load

    file = load(path)
    return {} if file is None else {key.partition(".")[0]: None for key in file.settings}


def _is_grid(path: Path) -> bool:
    found = _settings(path).keys()
    return bool(found) and not found - _SWEEP_KEYS


def _command_of(path: Path) -> str:
    """The command for which a file holds settings."""
    found = _settings(path).keys()
    if (found and not found - _SWEEP_KEYS) or "launcher" in found:
        return "sweep"
    trains = bool(found & {"objective", "trainer", "probe", "guard", "tracking"})
    if trains:
        return "run" if found & _LATER else "train"
    return (
        "eval" if found & {"judge", "statistics", "strip_think"} else "generate" if "generation" in found else "train"
    )


def _command_of_line(texts: list[str]) -> str:
    from alphapo_cli.config.overrides import parse

    heads = {text.partition("=")[0].partition(".")[0] for text in texts}
    if any(override.is_sweep_override() for override in parse(texts)) or "launcher" in heads:
        return "sweep"
    return "run" if heads & _LATER else "train"


def _train(name: str | None, config: Path | None, texts: list[str], where: Any) -> str:
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig

    cfg = compose_under(load(config), "train", TrainConfig, [read_line(texts, where)], where)
    _check_training(cfg)
    return f"settings of a training by objective '{cfg.objective.name}'"


def _run(name: str | None, config: Path | None, texts: list[str], where: Any) -> str:
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages.plan import hints_from_other_stages, make_plan, split_line, training_part

    training, generation, evaluation = split_line(texts)
    file = load(config)
    with hints_from_other_stages("train", where):
        cfg = compose_under(training_part(file), "train", TrainConfig, [read_line(training, where)], where)
    make_plan(generation, evaluation, where, file).check(cfg)
    _check_training(cfg)
    return f"settings of training by objective '{cfg.objective.name}', of generation and of evaluation"


def _sweep(name: str | None, config: Path | None, texts: list[str], where: Any) -> str:
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.launch.launchers.registry import check_keys, check_processes
    from alphapo_cli.launch.schema import SweepConfig
    from alphapo_cli.stages.plan import LATER, make_plan, split_line, training_part
    from alphapo_cli.sweep.grid import make

    how = [text for text in texts if text.startswith("launcher")]
    training, generation, evaluation = split_line([text for text in texts if text not in how])
    file = load(config)
    rest = training_part(file)
    grid = make(name, training, where, None if rest is None else rest.without("launcher"))
    runs_on = None if file is None else file.part(["launcher"])
    launcher = compose_under(runs_on, "sweep", SweepConfig, [read_line(how, where)], where).launcher
    check_keys(launcher)
    check_processes(launcher, [cell.cfg for cell in grid.cells], here=False)
    later = file is not None and bool(file.part(LATER).settings)
    if generation or evaluation or later:
        make_plan(generation, evaluation, where, file).check(grid.cells[0].cfg)
    for cell in grid.cells:
        _check_training(cell.cfg)
    return f"{len(grid.cells)} cells over {', '.join(grid.keys)}"


def _generate(name: str | None, config: Path | None, texts: list[str], where: Any) -> str:
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.generation.schema import GenerateConfig, check_line, check_sampling

    line = read_line(texts, where)
    check_line(line)
    cfg = compose_under(load(config), "generate", GenerateConfig, [line], where)
    check_sampling(cfg.generation)
    return "settings of generation"


def _eval(name: str | None, config: Path | None, texts: list[str], where: Any) -> str:
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.evaluation.schema import EvalConfig

    cfg = compose_under(load(config), "eval", EvalConfig, [read_line(texts, where)], where)
    return f"settings of an evaluation by judge '{cfg.judge.name}'"


_VALIDATORS = {"train": _train, "run": _run, "sweep": _sweep, "generate": _generate, "eval": _eval}


def _check_training(cfg: Any) -> None:
    """Refuse what training would refuse before it loads a model: files that are missing, parts that do not go together."""
    from alphapo_cli.stages.best_metric import greater_is_better
    from alphapo_cli.stages.paths import check_paths

    check_paths(cfg)
    greater_is_better(cfg)
    from alphapo_cli.objective.build import build

    build(cfg.objective, cfg.seed)
    from alphapo_cli.config.sharding import check_sharding_settings
    from alphapo_cli.stages.training.low_precision import check_low_precision

    check_sharding_settings(cfg, None, cuda=True)
    check_low_precision(cfg, here=False)
