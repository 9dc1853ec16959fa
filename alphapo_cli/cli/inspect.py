"""`alphapo inspect`."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli import inspect_scores
from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    Overrides,
    PrintConfig,
    check_json_target,
    emit,
    next_step,
    print_list,
    sources,
)
from alphapo_cli.errors import say, visible
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import rate

if TYPE_CHECKING:
    from alphapo_cli.stages.inspect import Inspection, LengthBias, Shown

_COLOURS = {"chosen": "green", "rejected": "red"}
_BAR = 30  # columns of the longest bar


def register(app: typer.Typer) -> None:
    """Add `alphapo inspect` to the application."""
    app.command(short_help="What training sees of the data: pairs, ids, lengths.")(inspect)


def inspect(
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Training pairs to show.")] = 2,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page, too.")] = None,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Load the model, and score up to 256 training pairs: CHES, edit distance, log-prob gap and others.",
        ),
    ] = False,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    json: Json = None,
) -> None:
    """What training sees of the data: rendered pairs, ids, trained tokens, lengths, what was left out. Trains nothing.

    Takes the overrides of `alphapo train`, prepares model and data by the same code, and refuses what that refuses.

    \b
    Examples:
      alphapo inspect
      alphapo inspect model.path=./my-model data=jsonl data.path=pairs.jsonl --rows 5
      alphapo inspect model=from_scratch data=hh_rlhf data.path=pairs.jsonl.gz --html pairs.html
      alphapo inspect model.path=./my-model data=jsonl data.path=pairs.jsonl --scores
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.storage.atomic import check_file, write_atomic

    where = sources(config_dir)
    cfg = compose_under(load(config), "train", TrainConfig, [read_line(overrides or [], where)], where)
    if print_config:
        print(to_yaml(cfg), end="")
        return
    if scores:
        inspect_scores.check_start_model(cfg)
    check_json_target(json)
    if html is not None:
        check_file(str(html), "--html")
    from alphapo_cli.stages.paths import check_paths

    check_paths(cfg)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.inspect import inspect as look

    found = look(cfg, rows, scores=scores)
    _show(found)
    said = sentences(found)
    for sentence in said:
        say(sentence)
    given = [("--config", config), ("--config-dir", config_dir)]
    line = [*(str(word) for pair in given if pair[1] is not None for word in pair), *(overrides or [])]
    if html is not None:
        from alphapo_cli.stages.inspect_page import page

        write_atomic(
            html, page(found, said, shlex.join(["alphapo", "inspect", *line, *(["--scores"] if scores else [])]))
        )
        say(f"page: {html.resolve()}")
    emit(_result(found), json)
    select = inspect_scores.selecting(cfg.data.select) if scores else []
    why = (
        f"without the {inspect_scores.LEFT_OUT} % of highest CHES, to compare with a training on all" if select else ""
    )
    next_step(shlex.join(["alphapo", "train", *line, *select]), why)


def sentences(found: Inspection) -> list[str]:
    """What the figures say, in words."""
    report = found.report
    said = [
        f"{report['train_pairs']:,} training pairs with {found.prompts:,} different prompts, {report['probe_pairs']:,} of the probe"
    ]
    read = report["pairs_read"]
    for key, words in (
        ("truncated_pairs", "truncated to data.max_length or data.max_prompt_length"),
        ("emptied", "left out: an answer is empty"),
        ("identical", "left out: both answers are the same"),
        ("no_common_prompt", "left out: the answers have no common prompt"),
        ("template_refused", "left out: the chat template refuses them"),
        ("template_lost", "left out: the chat template drops a part of an answer"),
        ("duplicates", "duplicates of another row" + ("" if report["duplicates_dropped"] else ", trained on")),
    ):
        if report.get(key):
            said.append(f"{words}: {report[key]:,} of {read:,} rows, {report[key] / read:.1%}")
    said += [f"not trained on: {reason}" for reason in found.untrained]
    if found.bias is not None:
        said.append(_bias(found.bias))
    if found.scores is not None:
        said += inspect_scores.sentences(found.scores)
    return said


def _bias(bias: LengthBias) -> str:
    gap = f"{bias.mean_gap:+.1f} tokens on average"
    if bias.share is None or bias.interval is None:
        return f"length: both answers of every pair are equally long, n = {bias.pairs:,}"
    words = rate(bias.share, bias.pairs - bias.equal, bias.interval)
    tied = f" ({bias.equal:,} more are equally long)" if bias.equal else ""
    low, high = bias.interval
    judged = (
        "the labels favour longer answers" if low > 0.5 else
        "the labels favour shorter answers" if high < 0.5 else "no evidence of a length bias either way"
    )  # fmt: skip
    return f"length: the chosen answer is the longer one in {words} pairs that differ{tied}, {gap}: {judged}"


def _show(found: Inspection) -> None:
    from rich.console import Console

    from alphapo_cli.stages.inspect import bin_words

    console = Console(highlight=False)
    for pair in found.shown:
        _show_pair(console, pair)
    for histogram in found.histograms:
        most = max(histogram.counts)
        bins = zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
        print_list(
            [f"{histogram.name}, tokens", "answers" if histogram.name != "prompt" else "prompts", ""],
            [[bin_words(low, high), f"{count:,}", "█" * round(_BAR * count / most)] for low, high, count in bins],
            right=("answers", "prompts"),
        )
        print()
    for side, openings in found.openings.items():
        if openings:
            rows = [[f"{count:,}", jsonlib.dumps(text, ensure_ascii=False)] for text, count in openings]
            print_list(["answers", f"{side} begins"], rows, right=("answers",))
            print()
    if found.scores is not None:
        inspect_scores.show(found.scores)
    print_list(["what was read, left out and used", ""], [[label, value] for label, value in found.table])
    print()


def _seen(text: str) -> str:
    """Text of the data on a terminal: line breaks as they are, other control characters escaped."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _show_pair(console: Any, pair: Shown) -> None:
    from rich.text import Text

    whole = not console.is_terminal  # a file keeps the text's own lines; a terminal breaks them between words
    console.print(f"training pair {pair.position + 1:,}", style="bold")
    for name, tokens in pair.parts:
        trained = sum(token.trained for token in tokens)
        console.print(f"{name}: {len(tokens):,} tokens, {trained:,} trained", style="underline")
        text = Text()
        for n, token in enumerate(tokens):
            colour = _COLOURS.get(name, "blue")
            style = "dim" if not token.trained else f"bold {colour}" if n % 2 else colour
            text.append(_seen(token.text), style=style)
        console.print(text, soft_wrap=whole)
        console.print("ids " + " ".join(str(token.id) for token in tokens), style="dim", soft_wrap=whole)
        skipped = [token.text for token in tokens if not token.trained]
        if trained and skipped:  # without colour nothing else says which they are
            console.print(f"not trained: {_seen(''.join(skipped))}", style="dim", soft_wrap=whole, markup=False)
    console.print()


def _result(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    pairs = [
        {
            "position": pair.position,
            "parts": [
                {"name": name, "ids": [t.id for t in tokens], "trained": [t.trained for t in tokens],
                 "text": "".join(t.text for t in tokens)}
                for name, tokens in pair.parts
            ],
        }
        for pair in found.shown
    ]  # fmt: skip
    return {
        "key": found.key,
        "pairs": pairs,
        "lengths": [asdict(histogram) for histogram in found.histograms],
        "length_bias": None if found.bias is None else asdict(found.bias),
        "openings": {side: [list(one) for one in openings] for side, openings in found.openings.items()},
        "prompts": found.prompts,
        "report": found.report,
        "scores": None if found.scores is None else inspect_scores.result(found.scores),
    }
