"""`alphapo generate`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

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
    shortened,
    sources,
    warn,
)
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import rate

SHOWN = 2  # answers that are printed


def register(app: typer.Typer) -> None:
    """Add `alphapo generate` to the application."""
    app.command(short_help="Answers of a run or model to prompts, for AlpacaEval.")(generate)


def generate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|MODEL] [OVERRIDES]...",
            help="A run directory, a saved model's directory or a hub name (without: the embedded world's base model); then Hydra overrides.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default runs/generate-<generator>-<hash8>.")
    ] = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """Answers of a run or model to prompts, in AlpacaEval's format, by vLLM or transformers.

    \b
    Examples:
      alphapo generate runs/alphapo-1a2b3c4d
      alphapo generate runs/dpo-5e6f7a8b data=alpaca_eval data.path=alpaca_eval.json generation.temperature=0.7
      alphapo generate ./my-model data=jsonl data.path=prompts.jsonl generation=transformers generation.max_new_tokens=256
    \f

    Raises:
        UsageError: the model is not of the embedded world, and no prompts are named.
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.embedded_world import names
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.generation.run_settings import answers_world, run_layer
    from alphapo_cli.generation.schema import GenerateConfig, check_line

    given = list(arguments or [])
    model = given.pop(0) if given and is_model(given[0]) else None
    where = sources(config_dir)
    line = read_line(given, where)
    check_line(line)
    file = load(config)
    if not names([line, *([] if file is None else [file.layer([line], where)])], "data") and not answers_world(model):
        raise UsageError(
            f"{model}: answers to which prompts? give data=... too (data=alpaca_eval, data=jsonl data.path=FILE, or "
            "data=glassbox for the embedded world's)"
        )
    cfg = compose_under(file, "generate", GenerateConfig, [line], where, beneath=[run_layer(model)])
    if print_config:
        print(to_yaml(cfg), end="")
        return
    check_json_target(json)
    from alphapo_cli.generation.prompts import check_files
    from alphapo_cli.stages.paths import check_model

    if model is not None:
        check_model(model, cfg.model.revision, key="model")
    check_files(cfg.data)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.generate import prepare, run

    generation = prepare(cfg, model, out, replace=replace)
    announce(generation.directory.path)
    if generation.state == "complete":
        say("complete")
        summary = generation.directory.summary()
    else:
        for note in generation.notes:
            say(f"note: {note}", file=sys.stderr)
        summary = run(generation)
        print_table(_table(summary))
        for warning in summary["warnings"]:
            warn(warning)
        _tell(summary, generation.directory.outputs(), model)
    emit({"path": str(generation.directory.path.resolve()), **summary}, json)


def _tell(summary: dict[str, Any], outputs: Path, model: str | None) -> None:
    """Print two answers to stderr, what is wrong with the answers, and what can be done next."""
    import json

    for row in json.loads(outputs.read_text(encoding="utf-8"))[:SHOWN]:
        say(f"prompt: {shortened(row['instruction'])}", file=sys.stderr)
        say(f"answer: {shortened(row['output'])}", file=sys.stderr)
    say(f"verdict: {summary['verdict']['sentence']}", file=sys.stderr)
    next_step(
        f"alphapo eval {shlex.quote(str(outputs))} --reference REF.json", "answers of another model to the same prompts"
    )


def is_model(text: str) -> bool:
    """Whether the first argument names a model rather than a setting (a path may hold a `=`)."""
    return "=" not in text or os.path.exists(os.path.expanduser(text))  # False for text that is no valid file name


def _table(summary: dict[str, Any]) -> Any:
    """The summary as a rich table."""
    from alphapo_cli.runtime.tables import Table

    metrics, cost = summary["metrics"], summary["cost"]
    table = Table(title=f"{summary['generator']} by {summary['backend']}", title_justify="left", show_header=False)
    table.add_row("prompts", f"{summary['prompts']:,} of {summary['source']}")
    table.add_row("answers", f"{metrics['answers']:,}")
    table.add_row("mean length", f"{metrics['mean_length']:.1f} tokens, {metrics['mean_characters']:.1f} characters")
    table.add_row("cut by the token limit", rate(metrics["share_cut"], metrics["answers"]))
    if metrics["repetition_rate"] is not None:
        table.add_row("repetition rate (4-grams)", f"{metrics['repetition_rate']:.1%}")
    if metrics["share_empty"]:
        table.add_row("empty", rate(metrics["share_empty"], metrics["answers"]))
    if cost["tokens_per_second"] is not None:
        table.add_row("speed", f"{cost['tokens_per_second']:,.0f} tokens/s ({cost['tokens']:,} tokens)")
    return table
