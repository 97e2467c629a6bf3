"""Every plot of the book, in one style.

    style, figure, show, save      one look; a figure is closed, described for those who cannot see it, and
                                   the same bytes on every run
    curve_with_interval            estimates along an axis with their 95 % band
    exact_against_queries          what an attack buys for its queries, published points beside ours
    distributions, bits            many values per row, or one, on a logarithmic axis
    loss_curve                     the CSV that training writes
    coloured_diff, inversion_path, explorer, scores_table     HTML; see `tutorial_lib.explorer`

Figures are made without pyplot, so nothing is kept between cells and nothing is shown twice. White
background on purpose: it is readable on a dark page, and a transparent one would not be.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .errors import TutorialError
from .explorer import coloured_diff, explorer, inversion_path, scores_table
from .metrics import Estimate

__all__ = [
    "MARKERS",
    "PALETTE",
    "PUBLISHED_SWEEP",
    "bits",
    "coloured_diff",
    "curve_with_interval",
    "distributions",
    "exact_against_queries",
    "explorer",
    "figure",
    "inversion_path",
    "loss_curve",
    "save",
    "scores_table",
    "show",
    "style",
]

# Okabe & Ito (2008): told apart with any common colour blindness. Shapes say the same as colours.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#1b1f24"

# Embedder queries per text and exact match in per cent: the public vec2text checkpoint for GTR-base on
# Natural Questions passages of 32 tokens, n = 100; steps x beam: 16x1, 8x4, 4x8, 16x4, 8x8, 16x8, 8x16.
PUBLISHED_SWEEP = ((16, 61), (116, 84), (200, 75), (244, 87), (456, 92), (968, 94), (1808, 97))

_STYLE: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "axes.facecolor": "white",
    "axes.edgecolor": "#7a828c",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#e7eaee",
    "grid.linewidth": 0.8,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so every machine draws the same glyphs
    "font.size": 12,  # at 6 inches across, still 9 px on a phone 360 px wide
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2.2,
    "lines.markersize": 7,
    "text.color": INK,
    "text.parse_math": False,  # a label may quote a text with two dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "svg.hashsalt": "tutorial_lib",
    "svg.fonttype": "path",
}


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_styled = mpl.rc_context(_STYLE)  # as a decorator: the style holds while the function draws


def style() -> AbstractContextManager[None]:
    """The book's style, for `with style():` around plotting code that does not start from `figure`."""
    return mpl.rc_context(_STYLE)


@_styled
def figure(
    width: float = 6.0, height: float = 3.9, *, rows: int = 1, columns: int = 1, **axes: Any
) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches and its axes (an array of them when there are several)."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, **axes)


def show(fig: Figure, *, alt: str, caption: str = "") -> None:
    """Display a figure as a PNG with its description.

    alt: what the figure shows, in words, for readers who cannot see it; it is also the text/plain form.
    In a built book the caption and alt text come from the cell's metadata (`mystnb`). Raises TutorialError
    when `alt` is empty: every figure of the book has one.
    """
    from IPython.display import display

    if not alt.strip():
        raise TutorialError("show was given no alt text; say in words what the figure shows.")
    text = f"{alt.strip()} {caption.strip()}".strip()
    bundle = {"image/png": _render(fig, "png"), "text/plain": text}
    display(bundle, metadata={"image/png": {"alt": alt.strip()}}, raw=True)


def save(fig: Figure, path: str | Path) -> Path:
    """Write a figure as .png or .svg: the same bytes for the same figure, without time or version."""
    target = Path(path)
    kind = target.suffix.removeprefix(".")
    if kind not in ("png", "svg"):
        raise TutorialError(f"save was given {target.name!r}; figures are written as .png or .svg.")
    target.write_bytes(_render(fig, kind))
    return target


def _power(value: float, _: int) -> str:
    exponent = round(math.log10(value))
    return {0: "1", -1: "0.1"}.get(exponent, "10" + str(exponent).translate(_SUPERSCRIPT))


def _render(fig: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with style():
        fig.savefig(buffer, format=kind, dpi=180, metadata=metadata)
    return buffer.getvalue()


@_styled
def curve_with_interval(
    ax: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str, *, series: int = 0
) -> None:
    """Draw estimates against x with their intervals as a band; `series` picks colour and marker together.

    Where an estimate has no interval (one text) the band has a gap. Raises TutorialError when x and the
    estimates do not pair.
    """
    if len(x) != len(estimates) or not len(x):
        raise TutorialError(
            f"curve_with_interval was given {len(x)} positions and {len(estimates)} estimates; "
            "give one estimate per position, at least one."
        )
    colour, marker = PALETTE[series % len(PALETTE)], MARKERS[series % len(MARKERS)]
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    ax.fill_between(list(x), low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(
        list(x),
        [e.value for e in estimates],
        color=colour,
        marker=marker,
        label=label,
        markeredgecolor="white",
    )


@_styled
def exact_against_queries(
    series: Mapping[str, Sequence[tuple[float, Estimate]]],
    *,
    paper: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ylabel: str = "exact match, %",
) -> Figure:
    """Exact match (or another score) against embedder queries per text, on a logarithmic axis.

    series: label -> (queries per text, estimate); paper: label -> (queries per text, value), drawn as hollow
    markers without a line, since they are other people's measurements in another setting. No queries at
    all (a first guess never checked) stands at 1. Raises TutorialError when there is nothing to draw.
    """
    if not any(series.values()):
        raise TutorialError(
            "exact_against_queries was given no points; give at least one (queries, estimate)."
        )
    fig, ax = figure()
    for number, (label, points) in enumerate(series.items()):
        ordered = sorted(points, key=lambda point: point[0])
        if ordered:
            xs = [max(1.0, queries) for queries, _ in ordered]
            curve_with_interval(ax, xs, [estimate for _, estimate in ordered], label, series=number)
    for number, (label, published) in enumerate((paper or {}).items(), start=len(series)):
        xs, ys = [max(1.0, q) for q, _ in published], [value for _, value in published]
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(
            xs,
            ys,
            marker,
            markerfacecolor="white",
            markeredgecolor="#57606a",
            markeredgewidth=1.6,
            label=label,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set(xlabel="embedder queries per text", ylabel=ylabel)
    ax.set_ylim(-3, 103)
    fig.legend(loc="outside upper left", ncols=1)
    return fig


@_styled
def distributions(
    rows: Mapping[str, Sequence[float] | np.ndarray],
    *,
    xlabel: str,
    marks: Mapping[str, float] | None = None,
    floor: float = 1e-16,
) -> Figure:
    """One row per name on a logarithmic axis: every value faint, 5–95 % thin, 25–75 % thick, median dotted.

    rows: name -> [n] values >= 0; those below `floor`, zeros included, are drawn there and the label says so.
    marks: name -> position of a vertical line to compare with. Raises TutorialError for an empty row, or
    values that are negative or NaN.
    """
    if not rows:
        raise TutorialError("distributions was given no rows; give at least one name with its values.")
    names = list(rows)
    lines = marks or {}
    fig, ax = figure(6.0, 1.5 + 0.42 * len(names) + 0.25 * len(lines))
    for y, name in enumerate(names):
        values = np.asarray(rows[name], dtype=float)
        if not values.size or not (values >= 0).all():
            raise TutorialError(
                f"distributions was given a row {name!r} that is empty or has values below 0 or NaN."
            )
        shown = np.maximum(values, floor)
        jitter = np.random.default_rng(0).uniform(-0.26, 0.26, size=len(shown))
        colour = PALETTE[y % len(PALETTE)]
        ax.plot(shown, y + jitter, ".", color=colour, alpha=min(0.5, 60 / len(shown)), markersize=3, zorder=2)
        q05, q25, q50, q75, q95 = np.quantile(shown, [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([q05, q95], [y, y], color=INK, linewidth=1.4, zorder=3)
        ax.plot([q25, q75], [y, y], color=INK, linewidth=5, solid_capstyle="butt", zorder=3)
        ax.plot(q50, y, "o", color="white", markeredgecolor=INK, markersize=7, zorder=4)
        if (values < floor).mean() > 0.5:
            names[y] = f"{name} (0)"
    for number, (name, position) in enumerate(lines.items()):
        colour = PALETTE[number % len(PALETTE)]
        height = -0.75 - 0.5 * number  # the labels climb, so that close lines stay legible
        ax.plot(
            [position] * 2, [len(names) - 0.5, height], color=colour, linestyle="--", linewidth=1.5, zorder=1
        )
        right = position > math.sqrt(floor)
        ax.annotate(
            f"{name} " if right else f" {name}",
            (position, height),
            color=colour,
            ha="right" if right else "left",
            va="center",
            fontsize=11,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(_power)
    ax.set_xlabel(xlabel)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6 - 0.5 * len(lines) - (0.2 if lines else 0))  # first row on top
    ax.grid(axis="y", visible=False)
    return fig


@_styled
def bits(rows: Mapping[str, float | Estimate], *, xlabel: str = "bits") -> Figure:
    """Amounts that differ by orders of magnitude, one row each, with the number written at the point.

    rows: name -> bits > 0 (an Estimate shows its interval). Raises TutorialError otherwise.
    """
    values = [row.value if isinstance(row, Estimate) else float(row) for row in rows.values()]
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise TutorialError("bits was given no rows, or one that is not above 0; give amounts in bits.")
    fig, ax = figure(6.0, 1.2 + 0.45 * len(values))
    left = 10 ** math.floor(math.log10(min(values)) - 0.3)
    for y, (row, value) in enumerate(zip(rows.values(), values, strict=True)):
        colour = PALETTE[y % len(PALETTE)]
        ax.plot([left, value], [y, y], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
        ax.plot(value, y, MARKERS[y % len(MARKERS)], color=colour, markersize=9)
        if isinstance(row, Estimate) and math.isfinite(row.low):
            ax.plot([row.low, row.high], [y, y], color=INK, linewidth=1.5)
        ax.annotate(f"{value:,.0f}", (value, y), xytext=(9, 0), textcoords="offset points", va="center")
    ax.set_xscale("log")
    ax.set_xlim(left, 10 ** (math.log10(max(values)) + 0.18 * math.log10(max(values) / left) + 0.2))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.grid(axis="y", visible=False)
    return fig


@_styled
def loss_curve(
    runs: Mapping[str, str | Path] | str | Path, *, x: str = "sequences", window: int = 25
) -> Figure:
    """Training loss from the CSV that `tutorial-lib train` writes: step,seconds,sequences,loss,...

    runs: a file, or label -> file. Every reading is faint; the line is the mean of the `window` readings
    around each (fewer at the ends). x: the column on the horizontal axis. Raises TutorialError for a file
    without these columns.
    """
    files = runs if isinstance(runs, Mapping) else {"": runs}
    fig, ax = figure()
    for number, (label, path) in enumerate(files.items()):
        xs, loss = _read_columns(Path(path), x, "loss")
        ones = np.ones(min(window, len(loss)))  # centred: the line does not trail behind a falling loss
        smooth = np.convolve(loss, ones, "same") / np.convolve(np.ones_like(loss), ones, "same")
        colour = PALETTE[number % len(PALETTE)]
        ax.plot(xs, loss, color=colour, alpha=0.25, linewidth=1)
        ax.plot(xs, smooth, color=colour, label=label or None)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set(xlabel="training " + x if x == "sequences" else x, ylabel="loss, nats per token")
    if any(files):
        ax.legend()
    return fig


def _read_columns(path: Path, *columns: str) -> list[np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = [np.array([float(row[column]) for row in rows if row["loss"]]) for column in columns]
    except FileNotFoundError:
        raise TutorialError(f"loss_curve was given {path.name}, which does not exist; train first.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise TutorialError(
            f"loss_curve could not read {' and '.join(columns)} from {path.name} ({type(error).__name__}); "
            "give the CSV that training writes, with the columns step,seconds,sequences,loss."
        ) from error
    if not found[0].size:
        raise TutorialError(
            f"loss_curve was given {path.name}, which has no rows yet; wait for the first step."
        )
    return found
