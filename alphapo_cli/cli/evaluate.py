"""`alphapo eval`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from re import DOTALL, fullmatch
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    Overrides,
    PrintConfig,
    Replace,
    StripThink,
    announce,
    check_json_target,
    emit,
    next_step,
    print_table,
    sources,
)
from alphapo_cli.errors import AlphapoError, UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries

if TYPE_CHECKING:
    from alphapo_cli.evaluation.schema import JudgeConfig


def register(app: typer.Typer) -> None:
    """Add `alphapo eval` to the application."""
    app.command(name="eval", short_help="Win rate, also length-controlled, against a reference.")(evaluate)


def evaluate(
    outputs: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUTPUTS.json",
            help="AlpacaEval's model_outputs.json, .gz too, or its folder; or Arena-Hard's model_answer file.",
        ),
    ] = None,
    overrides: Overrides = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="REF.json", help="The outputs to compare with; required.")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option("--protocol", metavar="NAME", help="alpaca_eval, or arena_hard: five grades, in both orders."),
    ] = "alpaca_eval",
    questions: Annotated[
        Path | None,
        typer.Option("--questions", metavar="FILE", help="For arena_hard: question.jsonl, with uids and categories."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="NAME", help="replay, openai, vllm or glassbox (the default); same as judge=NAME."
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="FILE", help="For replay: annotations.json, or a model_judgment file."),
    ] = None,
    preferences: Annotated[
        str | None,
        typer.Option(
            "--preferences",
            metavar="KIND",
            help="What their numbers mean: alpaca_eval (1 to 2, 0 a draw) or 01 (lost, won).",
        ),
    ] = None,
    difficulty: Annotated[
        Path | None,
        typer.Option("--difficulty", metavar="CSV", help="Instruction difficulties, for the length-controlled rate."),
    ] = None,
    gamed: Annotated[
        Path | None, typer.Option("--gamed", metavar="CSV", help="Length-gamed references, for the same.")
    ] = None,
    official_row_index: Annotated[
        bool,
        typer.Option(
            "--official-row-index",
            help="Look difficulty up by row position, as published figures of files with missing rows do.",
        ),
    ] = False,
    strip_think: StripThink = False,
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", metavar="USD", help="Refuse to start, or stop, when judging costs more."),
    ] = None,
    recheck: Annotated[
        Path | None,
        typer.Option(
            "--recheck",
            metavar="DIR",
            help="In place of OUTPUTS.json: how sure the judge of this evaluation was; asks nothing.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default runs/eval-<generator>-<hash8>.")
    ] = None,
    leaderboard: Annotated[
        Path | None,
        typer.Option(
            "--leaderboard", metavar="CSV", help="Put the row here instead of leaderboard.csv in the directory."
        ),
    ] = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """Win rate and length-controlled win rate of outputs against a reference, in AlpacaEval's formats; or Arena-Hard.

    \b
    Examples:
      alphapo eval samples/step-128.json --reference samples/reference.json
      alphapo eval model_outputs.json --reference gpt4.json --judge replay --annotations annotations.json --difficulty instruction_difficulty.csv --gamed df_gamed.csv
      alphapo eval model_outputs.json --reference gpt4.json --judge openai --max-cost 12
      alphapo eval model_outputs.json --protocol arena_hard --reference baseline.jsonl --judge openai --max-cost 25
      alphapo eval model_outputs.json --reference gpt4.json --judge openai judge.base_url=http://127.0.0.1:8000/v1 judge.model=my-judge judge.api_key_env=null
    \f

    Raises:
        UsageError: --judge and judge=NAME differ, or --reference is missing.
    """
    from alphapo_cli.cli.evaluate_arena_hard import ArenaHardOptions, check_protocol, evaluate_arena_hard
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import Line, read_line
    from alphapo_cli.evaluation.schema import STRIP_THINK, EvalConfig

    check_protocol(protocol, questions)
    if protocol == "arena_hard":
        foreign = {"--difficulty": difficulty, "--gamed": gamed, "--official-row-index": official_row_index,
                   "--preferences": preferences, "--recheck": recheck}  # fmt: skip
        typed = ArenaHardOptions(
            outputs, overrides or [], reference, judge, annotations, questions, max_cost, out, leaderboard, config,
            config_dir, print_config, replace, strip_think, json, foreign,
        )  # fmt: skip
        evaluate_arena_hard(typed)
        return
    where = sources(config_dir)
    # An override in the place of the outputs; what has a slash before its = is a path.
    if outputs is not None and fullmatch(r"[^/=]+=.*", str(outputs), DOTALL) and not outputs.exists():
        overrides, outputs = [str(outputs), *(overrides or [])], None
    if recheck is not None and outputs is not None:
        raise UsageError(f"--recheck DIR takes no outputs: leave out {outputs}")
    line = read_line(overrides or [], where)
    options: dict[str, object] = {}
    if official_row_index:
        options["statistics.official_row_index"] = True
    if preferences is not None:
        options["judge.preferences"] = preferences
    if strip_think:
        options[STRIP_THINK] = True
    if max_cost is not None:
        options["judge.max_cost"] = max_cost
    given = [group for group in line.groups if group.startswith("judge=")]
    if judge is None and annotations is not None and not given:
        judge = "replay"
    chosen = read_line([f"judge={judge}"], where).groups if judge is not None else ()
    if chosen and given and given != list(chosen):
        raise UsageError(f"--judge {judge} and {given[0]} are both given: give one")
    cfg = compose_under(load(config), "eval", EvalConfig, [Line(chosen), line, Line((), options)], where)
    if print_config:
        print(to_yaml(cfg), end="")
        return
    if recheck is not None:
        _check_alone({"--reference": reference, "--annotations": annotations, "--difficulty": difficulty, "--gamed": gamed,
                      "--out": out, "--leaderboard": leaderboard, "--replace": replace, "--max-cost": max_cost,
                      "--strip-think": strip_think})  # fmt: skip
        _recheck(recheck, cfg.judge, json)
        return
    if outputs is None:
        raise UsageError("OUTPUTS.json is missing: the outputs to judge (or --recheck DIR)")
    if reference is None:
        raise UsageError("--reference REF.json is missing: the outputs that these are compared with")
    check_json_target(json)
    from alphapo_cli.stages.paths import check_judge

    check_judge(cfg.judge)
    quiet_libraries()
    from alphapo_cli.evaluation.leaderboard import update
    from alphapo_cli.stages.evaluate import Inputs, prepare, run

    inputs = Inputs(outputs, reference, annotations, difficulty, gamed, leaderboard)
    evaluation = prepare(cfg, inputs, out, replace=replace)
    announce(evaluation.directory.path)
    if evaluation.state == "complete":
        say("complete")
        results = evaluation.directory.load_results()
        if leaderboard is not None:
            update(leaderboard, evaluation.outputs.generator, results)
    else:
        if evaluation.state == "statistics":
            say("other statistics: computed anew from the judgements that are there", file=sys.stderr)
        results = run(evaluation)

        from alphapo_cli.evaluation.report import results_table

        print_table(results_table(results))
        tell(results, evaluation.directory.path)
    emit({"path": str(evaluation.directory.path.resolve()), **results}, json)


def tell(results: Mapping[str, Any], path: Path) -> None:
    """Print to stderr whether the outputs beat the reference, and what can be done next.

    Args:
        results: the content of results.json, of either protocol.
        path: the directory of the evaluation.
    """
    from alphapo_cli.evaluation.verdict import verdict

    say(f"verdict: {verdict(results)['sentence']}", file=sys.stderr)
    next_step(f"alphapo compare {shlex.quote(str(path))} OTHER-EVALUATION", "whether two models can be told apart")


def _check_alone(others: Mapping[str, object]) -> None:
    """Refuse options that mean nothing beside --recheck, which reads what the evaluation wrote."""
    given = [name for name, value in others.items() if value not in (None, False)]
    if given:
        raise UsageError(f"--recheck asks and compares nothing: leave out {', '.join(given)}")


def _recheck(folder: Path, cfg: JudgeConfig, json: str | None) -> None:
    """Write mass.json, and exit with 1 where an answer is no verdict."""
    check_json_target(json)
    from alphapo_cli.evaluation.judges.verdict_mass import likeliest, shortfall
    from alphapo_cli.evaluation.report import mass_in_words
    from alphapo_cli.stages.evaluate import recheck

    found = recheck(folder, cfg)
    say(f"{found['answers']} answers: probability of a verdict {mass_in_words(found)}")
    emit({"path": str(folder.resolve()), **found}, json)
    if found["below"]:
        raise AlphapoError(
            f"{folder}: {len(found['below'])} of {found['answers']} answers are no verdict: "
            f"{shortfall(found['verdict_tokens'], cfg.min_mass)} "
            f"(likeliest: {likeliest(row['top_logprobs'] for row in found['below'])})"
        )
