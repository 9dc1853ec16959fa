"""`alphapo eval --protocol arena_hard`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.cli.common import announce, check_json_target, emit, print_table, sources
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries

PROTOCOLS = ("alpaca_eval", "arena_hard")


@dataclass(frozen=True)
class ArenaHardOptions:
    """The options of `alphapo eval` as typed. `foreign`: values of those that AlpacaEval's protocol alone has."""

    outputs: Path | None
    overrides: list[str]
    reference: Path | None
    judge: str | None
    annotations: Path | None
    questions: Path | None
    max_cost: float | None
    out: Path | None
    leaderboard: Path | None
    config: Path | None
    config_dir: Path | None
    print_config: bool
    replace: bool
    strip_think: bool
    json: str | None
    foreign: Mapping[str, object]


def check_protocol(protocol: str, questions: Path | None) -> None:
    """Check the options that choose a protocol.

    Args:
        protocol: the value of --protocol.
        questions: the file of --questions.

    Raises:
        UsageError: there is no such protocol, or --questions is given without Arena-Hard's.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"--protocol {protocol}: choose among {', '.join(PROTOCOLS)}")
    if questions is not None and protocol != "arena_hard":
        raise UsageError("--questions goes with --protocol arena_hard")


def evaluate_arena_hard(options: ArenaHardOptions) -> None:
    """Evaluate by Arena-Hard's protocol, and print and write the results.

    Args:
        options: the options as typed.

    Raises:
        UsageError: an option is missing, or belongs to AlpacaEval's protocol.
    """
    from alphapo_cli.cli.evaluate import tell
    from alphapo_cli.config.compose import to_yaml

    cfg, judged_by = _config(options)
    if options.print_config:
        print(to_yaml(cfg), end="")
        return
    if options.outputs is None:
        raise UsageError(
            "OUTPUTS.json is missing: the answers to judge, model_outputs.json or model_answer/MODEL.jsonl"
        )
    if options.reference is None:
        raise UsageError("--reference REF.json is missing: the baseline's answers, in either of the two forms")
    if not judged_by:
        raise UsageError(
            "--protocol arena_hard needs a judge: --judge openai judge.model=NAME judge.base_url=URL, --judge vllm "
            "judge.model=DIR, or --annotations model_judgment/JUDGE/MODEL.jsonl"
        )
    check_json_target(options.json)
    from alphapo_cli.stages.paths import check_judge

    check_judge(cfg.judge)
    quiet_libraries()
    from alphapo_cli.evaluation.arena_hard.leaderboard import update
    from alphapo_cli.stages.evaluate_arena_hard import ArenaHardInputs, prepare, run

    inputs = ArenaHardInputs(
        options.outputs, options.reference, options.annotations, options.questions, options.leaderboard
    )
    evaluation = prepare(cfg, inputs, options.out, replace=options.replace)
    announce(evaluation.directory.path)
    if evaluation.state == "complete":
        say("complete")
        results = evaluation.directory.load_results()
        if options.leaderboard is not None:
            update(options.leaderboard, evaluation.outputs.generator, results)
    else:
        if evaluation.state == "statistics":
            say("other statistics: computed anew from the judgements that are there", file=sys.stderr)
        results = run(evaluation)

        from alphapo_cli.evaluation.arena_hard.report import results_table

        print_table(results_table(results))
        tell(results, evaluation.directory.path)
    emit({"path": str(evaluation.directory.path.resolve()), **results}, options.json)


def _config(options: ArenaHardOptions) -> tuple[Any, bool]:
    """The resolved configuration, and whether a judge was named."""
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import Line, read_line
    from alphapo_cli.evaluation.arena_hard.schema import NOT_HERE, ArenaHardConfig

    given = [name for name, value in options.foreign.items() if value]
    if given:
        raise UsageError(f"{given[0]} belongs to AlpacaEval's protocol; leave it out with --protocol arena_hard")
    where = sources(options.config_dir)
    line = read_line(options.overrides, where)
    typed = [f"judge.{name}" for name in NOT_HERE if f"judge.{name}" in line.values]
    if typed:
        raise UsageError(
            f"{typed[0]} is about AlpacaEval's one-token verdicts; leave it out: Arena-Hard's judges write a text, always "
            "in both orders"
        )
    judge, given_groups = options.judge, [group for group in line.groups if group.startswith("judge=")]
    if judge is None and options.annotations is not None and not given_groups:
        judge = "replay"
    chosen = read_line([f"judge={judge}"], where).groups if judge is not None else ()
    if chosen and given_groups and given_groups != list(chosen):
        raise UsageError(f"--judge {judge} and {given_groups[0]} are both given: give one")
    if "judge=glassbox" in (*chosen, *given_groups):
        raise UsageError(
            "--judge glassbox knows a true reward and no five grades; with --protocol arena_hard take openai, vllm or "
            "replay"
        )
    limit: dict[str, object] = {} if options.max_cost is None else {"judge.max_cost": options.max_cost}
    limit |= {"strip_think": True} if options.strip_think else {}
    file = load(options.config)
    cfg = compose_under(file, "arena_hard", ArenaHardConfig, [Line(chosen), line, Line((), limit)], where)
    return cfg, bool(chosen or given_groups or (file is not None and "judge.name" in file.settings))
