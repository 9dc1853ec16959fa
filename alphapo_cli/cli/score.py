"""`alphapo score`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
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
from alphapo_cli.errors import ConfigError, UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries

if TYPE_CHECKING:
    from alphapo_cli.config.overrides import Line
    from alphapo_cli.pairs.scoring.schema import ScorerConfig


def register(app: typer.Typer) -> None:
    """Add `alphapo score` to the application."""
    app.command(short_help="A number for every answer: reward model, judge, rule.")(score)


def score(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ANSWERS... [OVERRIDES]...",
            help="Directories of alphapo generate, or files with prompt and responses; then Hydra overrides.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default runs/score-<column>-<hash8>.")
    ] = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """A number for every answer: reward models, log-probs, rules, judges. What was scored once is not scored again.

    \b
    scorer=  reward_model | pair_model | judge | rubric | implicit | logprob | rule | length | column | mean | source |
    glassbox
    \b
    scorer=rule runs a command or function of yours (scorer.rule=...) with your rights, in no sandbox. It is taken from
    the line alone, never from a YAML.
    \b
    Examples:
      alphapo score runs/generate-base-1a2b3c4d scorer=glassbox
      alphapo score runs/generate-base-1a2b3c4d scorer=reward_model scorer.model=./reward-model
      alphapo score answers.jsonl scorer=rule scorer.rule='python check.py'
      alphapo score answers.jsonl scorer=implicit scorer.model=runs/dpo-5e6f7a8b scorer.reference=./sft
    \f

    Raises:
        UsageError: no answers are named.
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.pairs.scoring.schema import ScoreConfig

    given = list(arguments or [])
    answers = [Path(text) for text in given if is_path(text)]
    line = read_line([text for text in given if not is_path(text)], where := sources(config_dir))
    cfg = compose_under(load(config), "score", ScoreConfig, [line], where)
    check_consent(cfg.scorer, line)
    if print_config:
        print(to_yaml(cfg), end="")
        return
    if not answers:
        raise UsageError("which answers? give a directory of alphapo generate, or a file with prompt and responses")
    check_json_target(json)
    from alphapo_cli.stages.paths import check_scorers

    check_scorers(cfg.scorer)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.score import prepare, run

    scoring = prepare(cfg, answers, out, replace=replace)
    announce(scoring.directory.path)
    if scoring.state == "complete":
        say("complete")
        summary = scoring.directory.summary()
    else:
        summary = run(scoring)
        print_table(_table(summary))
    emit({"path": str(scoring.directory.path.resolve()), **summary}, json)
    next_step(
        f"alphapo pairs --answers {shlex.quote(str(scoring.directory.path / 'scored.jsonl'))}",
        "makes pairs of what was scored",
    )


def is_path(text: str) -> bool:
    """Whether an argument names answers rather than a setting (a path may hold a `=`)."""
    return "=" not in text or Path(text).expanduser().exists()


def check_consent(cfg: ScorerConfig, line: Line, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Refuse code to run that a YAML names: the line that runs it must say so.

    Args:
        cfg: of `scorer`.
        line: the command line.
        more: column -> settings, of `scorers`.

    Raises:
        ConfigError: the line does not say so.
    """
    named = {"scorer.rule": cfg.rule, "scorer.trust_remote_code": cfg.trust_remote_code}
    for column, settings in more.items():
        if isinstance(settings, Mapping):
            named[f"scorers.{column}.trust_remote_code"] = settings.get("trust_remote_code")
    for key, value in named.items():
        if value and not _typed(key, line.values):
            raise ConfigError(f"{key}: code that runs is named on the command line, not in a YAML; type {key}=...")


def _typed(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a line says `key`, by itself or within the object of a key above it; another object there says nothing of it."""
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        value = values.get(".".join(parts[:n]))
        for part in parts[n:]:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:  # a rule may be the command "false"
            return True
    return False


def _table(summary: dict[str, Any]) -> Any:
    from alphapo_cli.runtime.tables import Table

    metrics = summary["metrics"]
    table = Table(title=f"scores: {summary['column']}", title_justify="left", show_header=False)
    table.add_row("answers", f"{metrics['answers']:,} to {metrics['prompts']:,} prompts")
    if metrics["not_scored"]:
        table.add_row("without a score", f"{metrics['not_scored']:,}")
    if metrics["shortened"]:
        table.add_row("behind a prompt without its beginning", f"{metrics['shortened']:,}")
    if metrics["mean"] is not None:
        table.add_row("mean and s.d. of the scores", f"{metrics['mean']:.4g}, {metrics['sd']:.4g}")
    table.add_row("scored now, not kept from earlier", f"{summary['cost']['asked']:,}")
    return table
