"""`alphapo measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    Json,
    PrintConfig,
    Replace,
    announce,
    check_json_target,
    emit,
    next_step,
    print_table,
    sources,
    warn,
)
from alphapo_cli.cli.generate import is_model
from alphapo_cli.errors import say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import rate

# Rows of the table: metric, label, format.
_RATE = "rate"
_ROWS = (
    ("displacement/chosen", "displacement, chosen (nats per token)", "+.4f"),
    ("displacement/rejected", "displacement, rejected (nats per token)", "+.4f"),
    ("displacement/share_chosen_down", "chosen answers that became less likely", _RATE),
    ("displacement/quadrant/down_down", "pairs of which both did", _RATE),
    ("rewards/margins", "reward margin (reward units)", "+.4f"),
    ("rewards/accuracies", "pairs in the right order by reward", _RATE),
    ("ranking/accuracy", "pairs in the right order by log-prob", _RATE),
    ("ranking/start_accuracy", "the start's pairs in that order", _RATE),
    ("ranking/idealised_accuracy", "the same of DPO's optimum", _RATE),
    ("kl/reference", "KL from the start (nats per token)", ".4f"),
    ("pairs/ches_normalised", "likeness of both answers (CHES, length-normalised)", "+.4g"),
)

# Accuracies by subset: without and with the start as reference, summed and per token.
_ACCURACIES = (
    ("rewards/accuracies", "by reward"),
    ("ranking/accuracy", "log-prob"),
    ("ranking/accuracy_length_normalised", "per token"),
    ("ranking/against_start", "gained on the start"),
    ("ranking/against_start_length_normalised", "gained per token"),
)


def register(app: typer.Typer) -> None:
    """Add `alphapo measure` to the application."""
    app.command(short_help="The displacement probe on any model and any pairs.")(measure)


def measure(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]... [OVERRIDES]...",
            help="Run directories, saved models, adapters or hub names (without: the embedded world's base model); then Hydra overrides.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="MODEL",
            help="What they are compared with. Default: a run's own start, an adapter's base, or the model itself.",
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs",
            metavar="SET",
            help="probe (held out), train or all. Default: all pairs of the data named here, of a run's own those held out.",
        ),
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Also write tokens.jsonl and tokens.html: log-prob and reward of every token."),
    ] = False,
    falls: Annotated[
        int,
        typer.Option(
            "--falls",
            metavar="K",
            help="Positions of a chosen answer, where it fell most, at which to see where probability went.",
        ),
    ] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default runs/measure-<model>-<hash8>.")
    ] = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """The displacement probe on any model and any pairs, without training; with scores of each pair under the start.

    \b
    Examples:
      alphapo measure runs/dpo-5e6f7a8b
      alphapo measure ./my-model --start ./my-sft-model objective=simpo data=jsonl data.path=pairs.jsonl
      alphapo measure ./my-sft-model data=jsonl data.path=pairs.jsonl
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.overrides import read_line

    given = list(arguments or [])
    models = []
    while given and is_model(given[0]):
        models.append(given.pop(0))
    where = sources(config_dir)
    line = read_line(given, where)
    from alphapo_cli.stages.measuring.request import Request, check_files, check_models, configurations

    request = Request(tuple(models), start, line, where, pairs, out, replace, tokens, falls)
    if not print_config:
        check_models(request)
    configs = configurations(request)
    if print_config:
        for cfg in configs:
            print(to_yaml(cfg), end="")
        return
    check_json_target(json)
    check_files(configs)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.measuring.prepare import prepare
    from alphapo_cli.stages.training.inputs import InputsBuilder

    builder = InputsBuilder()
    prepared = [prepare(cfg, model, request, builder) for cfg, model in zip(configs, models or (None,), strict=True)]
    for measurement in prepared:
        announce(measurement.directory.path)
    results = [_result(measurement, builder) for measurement in prepared]
    print_table(_table([m.measured.name for m in prepared], results))
    for measurement, result in zip(prepared, results, strict=True):
        _print_subsets(measurement.measured.name, result["metrics"])
    for measurement, result in zip(prepared, results, strict=True):
        for said in (result["went"], result.get("foretold")):  # measurements of earlier versions have no second one
            if said is not None:
                say(f"{measurement.measured.name}: {said}", file=sys.stderr)
    shown = [_shown(result) for result in results]
    emit(shown[0] if len(shown) == 1 else {"models": shown}, json)
    next_step("alphapo metrics KEY", f"explains a figure; all of them are in {prepared[0].directory.path}")


def _result(measurement: Any, builder: Any) -> dict[str, Any]:
    """The result object of a measurement, which is made where it is not there yet."""
    folder, result = measurement.directory.path, measurement.directory.result()
    if measurement.state == "complete":
        say("complete")
    else:
        from alphapo_cli.stages.measuring.run import run

        result = run(measurement, builder)
    for note in result["notes"]:
        warn(note)
    if measurement.tokens and not (measurement.state == "complete" and (folder / "tokens.html").is_file()):
        from alphapo_cli.report.token_page import write_token_page

        write_token_page(folder, result, measurement.measured.name)
    return {"directory": str(folder.resolve()), **result}


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    """The result object of `--json`."""
    return {key: value for key, value in result.items() if key not in ("state", "files", "checksum")}


def _table(names: list[str], results: list[dict[str, Any]]) -> Any:
    """The models side by side, as a rich table."""
    from alphapo_cli.runtime.tables import Table

    table = Table(title="measured against the start", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("pairs", *(f"{result['pairs']:,}" for result in results))
    for key, label, form in _ROWS:
        values = [result["metrics"].get(key) for result in results]
        if any(value is not None for value in values):
            counts = [result["pairs"] for result in results]
            table.add_row(label, *(_written(*one, form) for one in zip(values, counts, strict=True)))
    for name, called in (("ches", "CHES"), ("ches_normalised", "CHES, length-normalised,")):
        found = [result["correlations"].get(name, {}) for result in results]
        if any(one.get("rho") is not None for one in found):
            table.add_row(f"rank correlation of {called} with displacement", *map(_correlation, found))
    return table


def _print_subsets(name: str, metrics: dict[str, float | None]) -> None:
    """Print the accuracies of each subset (data.subset_column), where there are subsets."""
    from alphapo_cli.runtime.tables import Table
    from alphapo_cli.runtime.wording import rate

    names = [
        k.removeprefix("subset/").removesuffix("/pairs")
        for k in metrics
        if k.startswith("subset/") and k.endswith("/pairs")
    ]
    if not names:
        return
    table = Table(title=f"{name}: accuracy by subset, per cent with 95 % intervals", title_justify="left")
    for heading in ("subset", "pairs", *(heading for _, heading in _ACCURACIES)):
        table.add_column(heading, justify="left" if heading == "subset" else "right", overflow="fold")
    for subset in names:
        pairs = metrics[f"subset/{subset}/pairs"]
        shares = [metrics.get(f"subset/{subset}/{key}") for key, _ in _ACCURACIES]
        # Without its n, which is the column's.
        texts = ["-" if share is None else rate(share, pairs).partition(", n")[0] for share in shares]
        table.add_row(subset, f"{pairs or 0:,.0f}", *texts)
    print_table(table)


def _written(value: float | None, pairs: int, form: str) -> str:
    """A figure of the table; `form`: a number's format, or `_RATE` for a share of the pairs."""
    if value is None:
        return "-"
    return rate(value, pairs) if form == _RATE else format(value, form)


def _correlation(found: dict[str, Any]) -> str:
    if found.get("rho") is None:
        return "-"
    from alphapo_cli.runtime.wording import correlation

    return correlation(found["rho"], (found["low"], found["high"]))
