"""`alphapo pairs`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    PrintConfig,
    Replace,
    announce,
    check_json_target,
    emit,
    next_step,
    print_table,
    sources,
)
from alphapo_cli.cli.generate import is_model
from alphapo_cli.cli.score import check_consent
from alphapo_cli.errors import ConfigError, UsageError, nearest, say
from alphapo_cli.runtime.quiet import quiet_libraries

if TYPE_CHECKING:
    from alphapo_cli.config.overrides import Line, Sources
    from alphapo_cli.pairs.scoring.schema import PairsConfig
    from alphapo_cli.stages.pairs import Pairing

RECIPES = "pairs"  # the folder of conf/ that holds them


def register(app: typer.Typer) -> None:
    """Add `alphapo pairs` to the application."""
    app.command(short_help="Preference pairs from a model's own or scored answers.")(pairs)


def pairs(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|MODEL] [OVERRIDES]...",
            help="The model whose answers are paired (without it and --answers: the embedded world's base model).",
            show_default=False,
        ),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            "--answers",
            metavar="DIR|FILE",
            help="Answers that exist: a directory of alphapo generate, or a file. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default runs/pairs-<recipe>-<hash8>.")
    ] = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """Preference pairs from a model's own answers, or from answers made elsewhere: sampled, scored, paired, selected.

    \b
    recipe=NAME takes the settings of a paper (conf/pairs/): simpo, online_rlhf, dice, dno, rso, curry, ...
    \b
    Examples:
      alphapo pairs                                                       # the embedded world, by its true reward
      alphapo pairs runs/dpo-5e6f7a8b recipe=simpo data=ultrafeedback scorer.model=./reward-model
      alphapo pairs --answers scored.jsonl pair.rejected=rank:2
      alphapo pairs --answers runs/generate-base-1a2b3c4d scorer=rule scorer.rule='python check.py'
      alphapo train data=jsonl data.path=runs/pairs-simpo-1a2b3c4d model.path=./my-sft-model
    \f

    Raises:
        UsageError: the model is not of the embedded world, and no prompts are named.
        ConfigError: a recipe beside a file of settings.
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.embedded_world import names
    from alphapo_cli.config.overrides import Line
    from alphapo_cli.generation.run_settings import answers_world, run_layer
    from alphapo_cli.generation.schema import check_line
    from alphapo_cli.pairs.scoring.schema import PairsConfig

    given, files = list(arguments or []), list(answers or [])
    model = given.pop(0) if given and is_model(given[0]) else None
    where = sources(config_dir)
    line, recipe = read_recipe(given, where)
    check_line(line)
    sample = model is not None or not files
    file = load(config)
    if file is not None and recipe is not None:
        raise ConfigError(
            f"--config {config} and recipe={recipe}: both hold settings of all groups; give one of the two"
        )
    of_file = [] if file is None else [file.layer([line], where)]
    if sample and not names([*of_file, line], "data") and not answers_world(model):
        raise UsageError(f"{model}: answers to which prompts? give data=... too (data=jsonl data.path=FILE, ...)")
    named = Line((), {"recipe": recipe}, {"recipe": recipe}) if recipe else Line()
    cfg = compose_under(file, "pairs", PairsConfig, [line, named], where, beneath=[run_layer(model)])
    check_consent(cfg.scorer, line, cfg.scorers)
    if print_config:
        print(to_yaml(cfg), end="")
        return
    check_json_target(json)
    _check_paths(cfg, model, sample)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.pairs import prepare

    typed = {*line.values, *(choice.partition("=")[0] for choice in line.groups)}
    pairing = prepare(cfg, model, files, out, sample=sample, typed=typed, replace=replace)
    announce(pairing.directory.path)
    if pairing.state == "complete":
        say("complete")
        summary = pairing.directory.summary()
    else:
        for note in pairing.notes:
            say(f"note: {note}", file=sys.stderr)
        summary = _run(pairing)
    emit({"path": str(pairing.directory.path.resolve()), **summary}, json)
    words = f"data=jsonl data.path={shlex.quote(str(pairing.directory.path))} {_trained(model, sample)}"
    next_step(f"alphapo inspect {words}", "the pairs as training reads them")
    next_step(f"alphapo train {words}")


def _trained(model: str | None, sample: bool) -> str:
    """The model to train on the pairs: the one whose answers they are made of, where it is known."""
    if model is not None:
        return f"model.path={shlex.quote(model)}"
    return "model=glassbox" if sample else "model.path=MODEL"


def _check_paths(cfg: PairsConfig, model: str | None, sample: bool) -> None:
    """Check, before anything heavy is imported, that models and prompts are there; raises UsageError."""
    from alphapo_cli.generation.prompts import check_files
    from alphapo_cli.stages.paths import check_model, check_scorers

    if model is not None:
        check_model(model, cfg.model.revision, key="model")
    if sample:
        check_files(cfg.data)
    check_scorers(cfg.scorer, cfg.scorers)
    if cfg.start.model is not None:
        check_model(cfg.start.model, cfg.start.revision, key="start.model")


def read_recipe(texts: list[str], where: Sources) -> tuple[Line, str | None]:
    """The overrides with recipe=NAME as the choice of its file, and the name.

    Args:
        texts: the overrides, as typed.
        where: the directories of YAML files.

    Returns:
        The line, and the recipe; None where none is named.

    Raises:
        ConfigError: there is no such recipe.
    """
    from alphapo_cli.config.overrides import read_line

    chosen = [text.partition("=")[2].strip() for text in texts if text.startswith("recipe=")]
    rest = [text for text in texts if not text.startswith("recipe=")]
    if not chosen or chosen[-1] == "null":
        return read_line(rest, where), None
    known = where.groups().get(RECIPES, [])
    if chosen[-1] not in known:
        raise ConfigError(
            f"recipe={chosen[-1]}: no such recipe{nearest(chosen[-1], known)} (recipes: {', '.join(known)})"
        )
    return read_line([f"{RECIPES}={chosen[-1]}", *rest], where), chosen[-1]


def _run(pairing: Pairing) -> dict[str, Any]:
    """Make the pairs and print the table, also where none is left: NoPairsError."""
    from alphapo_cli.stages.pairs import NoPairsError, run

    try:
        summary = run(pairing)
    except NoPairsError as error:
        print_table(_table(error.metrics))
        raise
    print_table(_table(summary["metrics"]))
    return summary


def _table(metrics: dict[str, Any]) -> Any:
    from alphapo_cli.runtime.tables import Table

    table = Table(title=f"pairs of {metrics['prompts']:,} prompts", title_justify="left", show_header=False)
    table.add_row("prompts with pairs", f"{metrics['prompts_with_pairs']:,}")
    for reason, count in metrics["dropped"].items():
        table.add_row(f"without: {reason}", f"{count:,}")
    for reason, count in metrics["answers_left_out"].items():
        table.add_row(f"answers left out: {reason}", f"{count:,}")
    table.add_row(
        "pairs",
        f"{metrics['pairs']:,}" + (f", {metrics['rows']:,} rows" if metrics["rows"] != metrics["pairs"] else ""),
    )
    for text, count in metrics["not_selected"].items():
        table.add_row(f"pairs outside {text}", f"{count:,}")
    for name, what in (("not_scored", "answers without"), ("shortened", "answers behind a cut prompt:")):
        for column, count in metrics[name].items():
            if count:
                table.add_row(f"{what} {column}", f"{count:,}")
    if metrics["mean_margin"] is not None:
        table.add_row(
            "mean margin", f"{metrics['mean_margin']:.4g}, score of the chosen minus that of the rejected answer"
        )
    if metrics["mean_chars_difference"] is not None:
        table.add_row("chosen longer by", f"{metrics['mean_chars_difference']:.1f} characters")
    if metrics["length_weight"]:
        table.add_row("weight of length", f"{metrics['length_weight']:.6g}")
    return table
