"""The page of `alphapo inspect --html`: pairs with their tokens, lengths and counts in one file that works offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from alphapo_cli.stages.inspect import Histogram, Inspection, Shown, Token, bin_words
from alphapo_cli.stages.inspect_scores import LIKENESS, PairScores, bin_labels, figure, row_words

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
.tokens { font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; padding: 1px 0; box-shadow: inset -1px 0 0 #8886; color: inherit; }
.tokens .chosen { background: #2a9d4a44; } .tokens .rejected { background: #d0423044; }
.tokens .other { background: #3b6fd044; } .tokens .not { opacity: .6; }
.bar { display: inline-block; height: .8em; background: #3b6fd0; vertical-align: baseline; }
code { overflow-wrap: anywhere; }
details { margin: .3rem 0 1rem; } summary { cursor: pointer; }
.ids { font: 12px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { margin: 1rem auto; } }
"""


def page(found: Inspection, sentences: list[str], line: str) -> str:
    """The page.

    Args:
        found: what was found.
        sentences: what it says, in words.
        line: the command that made it.

    Returns:
        HTML.
    """
    counts = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in found.table)
    said = "".join(f"<li>{escape(s)}</li>" for s in sentences)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>What training sees of the data</title><style>{_STYLE}</style></head><body>"
        f"<h1>What training sees of the data</h1><p><code>{escape(line)}</code></p><ul>{said}</ul>"
        f"<h2>Pairs</h2><p>Coloured tokens are trained on; pale ones are read only. The id of a token shows where the "
        f"pointer rests on it.</p>{''.join(map(_pair, found.shown))}"
        f"<h2>Lengths in tokens</h2><p>Tokens, and how many have as many.</p>{''.join(map(_histogram, found.histograms))}"
        f"{_scores(found.scores) if found.scores is not None else ''}"
        f"<h2>How answers begin</h2>{_openings(found)}"
        f"<h2>What was read, left out and used</h2><table>{counts}</table></body></html>\n"
    )


def _pair(shown: Shown) -> str:
    parts = []
    for name, tokens in shown.parts:
        trained = sum(token.trained for token in tokens)
        kind = name if name in ("chosen", "rejected") else "other"
        spans = "".join(_span(token, kind) for token in tokens)
        ids = " ".join(str(token.id) for token in tokens)
        parts.append(
            f"<tr><th>{escape(name)}</th><td><div class='tokens'>{spans}</div>"
            f"<details><summary>{len(tokens):,} tokens, {trained:,} trained</summary><div class='ids'>{ids}</div>"
            "</details></td></tr>"
        )
    return f"<h3>Training pair {shown.position + 1:,}</h3><table>{''.join(parts)}</table>"


def _span(token: Token, kind: str) -> str:
    style = kind if token.trained else "not"
    return f"<span class='{style}' title='{token.id}'>{escape(token.text)}</span>"


def _histogram(histogram: Histogram) -> str:
    labels = [bin_words(low, high) for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]
    return f"<h3>{escape(histogram.name)}</h3>{_bars(labels, histogram.counts)}"


def _bars(labels: Iterable[str], counts: Sequence[int]) -> str:
    most = max(counts)
    rows = "".join(
        f"<tr><td>{label}</td><td>{count:,}</td>"
        # A share of the room, so that bars keep their ratios on a narrow screen.
        f"<td><span class='bar' style='width:calc(min(24rem, 45vw) * {count / most:.4f})'></span></td></tr>"
        for label, count in zip(labels, counts, strict=True)
    )
    return f"<table>{rows}</table>"


def _scores(found: PairScores) -> str:
    rows = "".join(
        f"<tr><td><code>{one.name}</code></td>"
        + "".join(f"<td>{figure(value)}</td>" for value in one.percentiles)
        + f"<td>{one.pairs:,}</td></tr><tr><td colspan='5'><small>{escape(one.meaning)}</small></td></tr>"
        for one in found.spreads
    )
    histograms = "".join(
        f"<details{' open' if one.name == LIKENESS else ''}><summary><code>{one.name}</code>, pairs</summary>"
        f"{_bars(bin_labels(one), one.counts)}</details>"
        for one in found.spreads
    )
    highest = "".join(
        f"<tr><td>{escape(row_words(one))}</td><td>{figure(one.value)}</td><td>{escape(one.chosen)}</td>"
        f"<td>{escape(one.rejected)}</td></tr>"
        for one in found.highest
    )
    return (
        f"<h2>Scores of the pairs</h2><p>Of {found.pairs:,} training pairs under {escape(found.start)}, before any training.</p>"
        "<table><tr><th>score</th><th>10 %</th><th>median</th><th>90 %</th><th>n</th></tr>"
        f"{rows}</table>{histograms}<h3>Highest CHES</h3><table><tr><th>row</th><th><code>{LIKENESS}</code></th>"
        f"<th>chosen begins</th><th>rejected begins</th></tr>{highest}</table>"
    )


def _openings(found: Inspection) -> str:
    return "".join(
        f"<h3>{escape(side)}</h3><table>"
        + "".join(f"<tr><td>{count:,}</td><td><code>{escape(text)}</code></td></tr>" for text, count in openings)
        + "</table>"
        for side, openings in found.openings.items()
        if openings
    )
