"""Style of all figures: size, colours, axes and legends; and saving.

Figures are 1600 pixels over 8 inches wide: sharp at the 1200 pixels of a README, with text of at least 16 pixels there.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from alphapo_cli.plots import colours
from alphapo_cli.storage.atomic import write_atomic

WIDTH = 8.0  # inches
DPI = 200

BLUE, VERMILLION, GREEN, PURPLE = colours.BLUE, colours.VERMILLION, colours.GREEN, colours.PURPLE
INK, GREY, BEST, CATEGORIES = colours.INK, colours.GREY, colours.BEST, colours.CATEGORIES
CHOSEN, REJECTED = colours.CHOSEN, colours.REJECTED
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")

MANY = 16  # labels up to which they fit the usual legend or axis

TITLE_SIZE, PANEL_SIZE, LABEL_SIZE, TICK_SIZE = 10.5, 9.0, 8.5, 8.0

DIVERGING = LinearSegmentedColormap.from_list("alpha", list(colours.DIVERGING))
ORDERED = LinearSegmentedColormap.from_list("ordered", list(colours.ORDERED))


def new_figure(rows: int, columns: int, height: float, title: str, **layout: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` panels, `height` inches high, and its axes row by row."""
    spacing = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.05)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=spacing, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(plain(title), fontsize=TITLE_SIZE, fontweight="bold", color=INK, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False, **layout)
    flat = [ax for line in axes for ax in line]
    for ax in flat:
        plain_axes(ax)
    return figure, flat


def plain(text: str) -> str:
    """Escape dollar signs, between which matplotlib would parse mathematics."""
    return text.replace("$", r"\$")


def names(texts: Iterable[str], *, bare: bool = False) -> dict[str, str]:
    """Short, unique labels for a figure.

    Args:
        texts: the texts to label, such as "alpha=0.5"; texts above 30 characters are shortened.
        bare: whether to drop a "key=" that all of them begin with, because the figure names the key elsewhere.

    Returns:
        Text -> label.
    """
    known = list(dict.fromkeys(texts))
    keys = {text.partition("=")[0] for text in known}
    values = [text.partition("=")[2] for text in known]
    bare = bare and len(keys) == 1 and all(value and " " not in value for value in values)
    labels: dict[str, str] = {}
    for cut in ("{0:.29}…", "…{1}", "{2}"):
        texts = values if bare else known
        labels = {k: plain(t if len(t) <= 30 else cut.format(t, t[-29:], t)) for k, t in zip(known, texts, strict=True)}
        if len(set(labels.values())) == len(known):
            break
    return labels


def panel(ax: Axes, title: str, y_label: str, x_label: str = "") -> None:
    """Set a panel's title, on the left, and its axis labels, with units."""
    ax.set_title(title, fontsize=PANEL_SIZE, loc="left", color=INK)
    ax.set_ylabel(y_label, fontsize=LABEL_SIZE, color=INK)
    ax.set_xlabel(x_label, fontsize=LABEL_SIZE, color=INK)


def legend(ax: Axes, **options: Any) -> None:
    """Add a frameless legend where the panel has labelled artists."""
    handles, _ = ax.get_legend_handles_labels()
    if handles:
        ax.legend(**{"fontsize": TICK_SIZE, "frameon": False, "handlelength": 2.2, "labelspacing": 0.3, **options})


def from_zero(ax: Axes) -> None:
    """Let the y axis begin at 0, with room for the marks at the top."""
    top = max(ax.dataLim.y1, 0.0) if ax.has_data() else 0.0
    ax.set_ylim(0, 1.1 * top if top > 0 else 1.0)


def figure_legend(figure: Figure, handles: Sequence[Any], columns: int = 6) -> None:
    """Add a legend below all panels, where it covers no data, in as many columns as are no wider than the figure."""
    if handles:
        widths = [0.062 * len(handle.get_label()) + 0.5 for handle in handles]  # inches, of text and mark
        columns = min(columns, len(handles))
        while columns > 1 and sum(max(widths[i::columns]) for i in range(columns)) > figure.get_figwidth():
            columns -= 1
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            fontsize=TICK_SIZE,
            frameon=False,
            handlelength=1.4,
            columnspacing=1.8,
            handletextpad=0.5,
        )


def beside_or_below(figure: Figure, ax: Axes, handles: Sequence[Any]) -> None:
    """Add a legend to the right of `ax`; of more than MANY entries in columns below, enlarging the figure."""
    if len(handles) > MANY:
        columns = 4
        figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(handles) / columns))
        figure_legend(figure, handles, columns)
    elif handles:
        ax.legend(handles=handles, fontsize=TICK_SIZE, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def colour_bar(figure: Figure, axes: Sequence[Axes], alphas: Sequence[float], name: str) -> None:
    """Add a colour bar over the range of `alphas` and 0, with a notch at every alpha; `name` is the swept key."""
    norm = centred(alphas)
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=list(axes), pad=0.02, aspect=28, fraction=0.05)
    low, high = min(0.0, *alphas), max(0.0, *alphas)
    if low == high:
        low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    bar.ax.set_ylim(low, high)
    bar.ax.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    bar.ax.hlines(alphas, 0.0, 0.35, color="white", linewidth=0.9, transform=bar.ax.get_yaxis_transform())
    bar.set_label(name, fontsize=LABEL_SIZE, color=INK)
    bar.ax.tick_params(labelsize=TICK_SIZE, length=3, color=GREY)
    bar.outline.set_visible(False)


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, Any]]) -> None:
    """Write a text in its colour beside each (x, y, text, colour), moved apart where they would overlap."""
    if not ends:
        return
    low, high = ax.get_ylim()
    gap = 0.055 * (high - low)
    placed: list[float] = []
    ordered = sorted(ends, key=lambda end: end[1])
    for _, y, *_ in ordered:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    shift = max(0.0, placed[-1] - (high - 0.2 * gap))
    for i in range(len(placed) - 1, -1, -1):  # from the top, down as far as there is room to make
        limit = placed[i] - shift if i == len(placed) - 1 else min(placed[i], placed[i + 1] - gap)
        placed[i] = limit
    for (x, _, text, colour), y in zip(ordered, placed, strict=True):
        ax.annotate(text.replace("-", "\u2212"), (x, y), xytext=(4, 0), textcoords="offset points", color=colour, fontsize=TICK_SIZE,
                    va="center", annotation_clip=False, gid="label")  # fmt: skip


def name_places(ax: Axes, labels: Sequence[str]) -> None:
    """Put `labels` at 0, 1, 2, ... on the x axis, rotated where they would overlap."""
    capacity = 90 * ax.get_position().width  # characters that fit side by side
    turned = 0 if sum(map(len, labels)) <= capacity else 35 if len(labels) <= MANY else 90
    size = TICK_SIZE if len(labels) <= 2 * MANY else 6.0
    ax.set_xticks(range(len(labels)), labels, rotation=turned, ha="right" if turned == 35 else "center", fontsize=size)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xlabel("")


def reference_line(ax: Axes, y: float) -> None:
    """Draw a thin dashed line at a value that means "no change" or "no better than chance"."""
    ax.axhline(y, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def centred(values: Sequence[float]) -> Normalize:
    """The colour scale of `values`, symmetric about 0, so that the hue shows the sign."""
    reach = max((abs(value) for value in values), default=0.0) or 1.0
    return Normalize(vmin=-reach, vmax=reach)


def number(value: Any) -> float | None:
    """`value` as a float, None where it is null, missing, text or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def series(
    rows: Sequence[Mapping[str, Any]], key: str, change: Callable[[float], float] = float
) -> tuple[list[float], list[float]]:
    """Steps, ascending, and values (after `change`) of `key`; rows without a finite value are left out."""
    points: dict[float, float] = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and value is not None:
            points[step] = change(value)
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write `figure` atomically, as SVG where the path ends in .svg, else as PNG; deterministic, byte for byte."""
    buffer = io.BytesIO()
    if os.fspath(path).endswith(".svg"):
        # Otherwise ids are random and the file has the date. Text stays text, so that it can be edited.
        with rc_context({"svg.hashsalt": "alphapo", "svg.fonttype": "none"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def plain_axes(ax: Axes) -> None:
    """Give a panel the spines, ticks and grid of all figures."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(labelsize=TICK_SIZE, color=GREY, labelcolor=INK, length=3)
    ax.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
