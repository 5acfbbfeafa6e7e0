# SPDX-License-Identifier: MIT
"""Figures: from plain arrays and dicts to matplotlib's.  None of these functions knows what an image is.

Every text and axis has the colour INK, which a page replaces by its own.  The other colours are of Okabe and Ito's
palette (told apart with any colour vision) as far as they have contrast 3 to white and to near-black; lines also differ
in style, bars in hatching.  Heat maps are viridis.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from . import curves

INK = "#1a1b1c"
NEVER = "#8d8d8d"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#b3669a"
STYLES = {
    "all": (INK, "-"),
    "data": (BLUE, "--"),
    "descriptor": (VERMILION, "-"),
    "spare": (GREEN, ":"),
    "host": (BLUE, "--"),
    "move": (GREEN, ":"),
    "info": (PURPLE, "-."),
    "hottest": (VERMILION, "-"),
    "mean": (BLUE, "--"),
}
SERIES = (BLUE, VERMILION, GREEN, PURPLE)
HATCHES = ("", "//", "..", "xx", "\\\\")
LOG_FROM = 100  # times the median of what was written: from there on a linear scale would show one spot
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may have dollar signs
    "image.composite_image": False,
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def style(more: dict[str, Any] | None = None) -> Iterator[None]:
    """Draw and save in our style, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE | (more or {}))  # type: ignore[arg-type] # they are names of its own
        yield


@contextlib.contextmanager
def _new(width: float, height: float) -> Iterator[Figure]:
    """A figure, inches."""
    with style():
        yield Figure(figsize=(width, height), layout="constrained")


# ---- heat map ----


def heat_norm(maps: dict[str, np.ndarray]) -> Normalize:
    """The scale that the maps share: from 0 on, or logarithmic where one spot would outshine everything else."""
    cells = np.concatenate([values[values > 0] for values in maps.values()])
    if not len(cells):
        return Normalize(0, 1)
    most = float(cells.max())
    return LogNorm(float(cells.min()), most) if most > LOG_FROM * float(np.median(cells)) else Normalize(0, most)


def is_linear(maps: dict[str, np.ndarray]) -> bool:
    """Whether their scale is linear."""
    return not isinstance(heat_norm(maps), LogNorm)


def heat_colours(values: np.ndarray, norm: Normalize) -> np.ndarray:
    """The colours of cells, uint8[rows, columns, 4]: viridis, NEVER where a value is 0, transparent where it is NaN."""
    coloured = mpl.colormaps["viridis"](norm(np.where(values > 0, values, norm.vmax or 1)), bytes=True)
    coloured[values == 0] = [*bytes.fromhex(NEVER[1:]), 255]
    coloured[np.isnan(values)] = 0
    return np.asarray(coloured)


def heat_map(
    maps: dict[str, np.ndarray], *, label: str, x_label: str, y_label: str, profile: np.ndarray | None = None
) -> Figure:
    """Heat maps side by side, on one scale.

    maps: title -> float64[rows, columns], NaN where there is nothing.  profile: float64[columns], the mean of each
    column, drawn above each map.
    """
    norm = heat_norm(maps)
    with _new(4.9 * len(maps) + 0.8, 4.6 if profile is None else 5.4) as figure:
        grid = figure.add_gridspec(
            1 if profile is None else 2, len(maps), height_ratios=None if profile is None else [1, 4]
        )
        axes = []
        for number, (title, values) in enumerate(maps.items()):
            axis = figure.add_subplot(grid[-1, number])
            rows, columns = values.shape
            axis.imshow(
                heat_colours(values, norm),
                aspect="auto",
                interpolation="none",  # the cells themselves, not a picture of them
                extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
            )
            axis.set(xlabel=x_label, ylabel=y_label if not number else "")
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
            if profile is not None:
                above = figure.add_subplot(grid[0, number], sharex=axis)
                edges = np.arange(columns + 1) - 0.5
                above.stairs(np.nan_to_num(profile), edges, fill=True, color=VERMILION)
                above.set_ylim(bottom=0)
                above.tick_params(labelbottom=False)
                above.set_ylabel("column\nmean" if not number else "")
                above.set_title(title)
            else:
                axis.set_title(title)
            axes.append(axis)
        bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label=label, shrink=0.9)
        bar.outline.set_visible(False)
    return figure


# ---- distribution ----


def _plain(value: float, _place: int | None) -> str:
    """A power of ten as a number: matplotlib would write it as mathematics, which is off."""
    return f"{value:g}" if value < 1e5 else f"1e{round(np.log10(value))}"


def lorenz(counters: dict[str, tuple[np.ndarray, np.ndarray]], gini: dict[str, str]) -> Figure:
    """Lorenz curves, and in the legend the Gini coefficient of each, as text.  counters: name -> values, counts."""
    with _new(5.2, 4.6) as figure:
        axis = figure.add_subplot()
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.6, label="even wear (Gini 0)")
        for name, pair in counters.items():
            colour, style = STYLES[name]
            axis.plot(
                *curves.thin(*curves.lorenz_curve(*pair)),
                color=colour,
                linestyle=style,
                label=f"{name} (Gini {gini[name]})",
            )
        axis.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="share of the lines, least worn first",
            ylabel="their share of all line writes",
        )
        axis.set_aspect("equal")
        axis.legend(loc="upper left")
    return figure


def histogram(counters: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """How many lines have how much wear.  counters: name -> values, counts."""
    edges = curves.bin_edges(counters)
    grows = len(edges) > 3 and edges[-1] - edges[-2] > 2 * (edges[2] - edges[1])
    with _new(6.4, 3.8) as figure:
        axis = figure.add_subplot()
        for name, pair in counters.items():
            colour, style = STYLES[name]
            lines = curves.binned(*pair, edges)
            axis.stairs(lines, edges, color=colour, linestyle=style, linewidth=1.6, label=name)
        if grows:
            axis.set_xscale("symlog", linthresh=1, linscale=0.3)
            axis.xaxis.set_major_formatter(FuncFormatter(_plain))
        axis.set_xlim(0, int(edges[-1]))
        axis.set_yscale("symlog", linthresh=1, linscale=0.3)
        axis.yaxis.set_major_formatter(FuncFormatter(_plain))
        axis.set_ylim(bottom=0)
        axis.set(xlabel="wear: how often a line was written", ylabel="lines (log scale from 1)")
        axis.legend()
    return figure


# ---- over time ----


def life_over_time(
    x: np.ndarray, hottest: np.ndarray, mean: np.ndarray, causes: dict[str, np.ndarray], *, x_label: str
) -> Figure:
    """The hottest line and the mean beside each other, and line writes by cause; all arrays are as long as `x`."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), curves.POINTS_MAX)).astype(int))
    with _new(9.6, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for name, values in (("hottest", hottest), ("mean", mean)):
            colour, style = STYLES[name]
            left.plot(
                x[kept],
                values[kept],
                color=colour,
                linestyle=style,
                label=f"{name} line" if name == "hottest" else name,
            )
        left.set(xlabel=x_label, ylabel="wear of a line")
        below = np.zeros(len(kept))
        for (name, values), hatch in zip(causes.items(), itertools.cycle(HATCHES), strict=False):
            above = below + values[kept]
            right.fill_between(
                x[kept], below, above, facecolor=STYLES[name][0], hatch=hatch, edgecolor=INK, linewidth=0.3, label=name
            )
            below = above
        right.set(xlabel=x_label, ylabel="line writes, one cause upon the other")
        for axis in (left, right):
            axis.set_xlim(x[0], x[-1] if x[-1] > x[0] else x[0] + 1)
            axis.set_ylim(bottom=0)
            axis.legend(loc="upper left")
    return figure


def bars_by_group(groups: dict[str, dict[str, float | None]], *, label: str, most: float | None = None) -> Figure:
    """Bars side by side: group (a workload, say) -> series (a policy, say) -> value; None is drawn as a dash.

    Series keep their colour and place in every group; most: the end of the axis.
    """
    names = list(dict.fromkeys(name for series in groups.values() for name in series))
    width = 0.8 / max(len(names), 1)
    with _new(max(5.0, 1.2 + 0.35 * len(groups) * max(len(names), 1)), 3.8) as figure:
        axis: Axes = figure.add_subplot()
        for number, name in enumerate(names):
            values = [series.get(name) for series in groups.values()]
            places = np.arange(len(groups)) - 0.4 + width * (number + 0.5)
            axis.bar(
                places,
                [value or 0 for value in values],
                width=width,
                color=SERIES[number % len(SERIES)],
                hatch=HATCHES[number // len(SERIES) % len(HATCHES)],
                edgecolor=INK,
                linewidth=0.4,
                label=name,
            )
            for place, value in zip(places, values, strict=True):
                if value is None:
                    axis.annotate("–", (place, 0), ha="center", va="bottom")
        axis.set_xticks(np.arange(len(groups)), list(groups))
        axis.set_ylabel(label)
        axis.set_ylim(0, most)
        if names:
            axis.legend()
    return figure


def matrix(values: list[list[float | None]], *, rows: list[str], columns: list[str], label: str) -> Figure:
    """Shares (0 to 1) as coloured cells with their percentages, rounded down; None is left blank."""
    shown = np.array([[np.nan if value is None else value for value in row] for row in values], float)
    with _new(2.4 + 0.72 * len(columns), 1.3 + 0.32 * len(rows)) as figure:
        axis = figure.add_subplot()
        image = axis.imshow(100 * shown, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(shown):
            if not np.isnan(value):
                text = f"{np.floor(value * 1000) / 10:.1f}"
                axis.annotate(text, (column, row), ha="center", va="center", color="white" if value < 0.6 else "black")
        axis.set_xticks(np.arange(len(columns)), columns, rotation=30, ha="right")
        axis.set_yticks(np.arange(len(rows)), rows)
        axis.tick_params(length=0)
        bar = figure.colorbar(image, ax=axis, label=f"{label}, %")
        bar.outline.set_visible(False)
    return figure
