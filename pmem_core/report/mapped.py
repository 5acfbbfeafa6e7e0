# SPDX-License-Identifier: MIT
"""The figures of the page maps: nanoseconds, memory and initialisation, on logarithmic scales."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from . import figures, words
from .page import Drawing

MARKS = "os^Dv*"
ROW_INCHES = 0.34
DOTS = (9.0, 6.0, 3.5)  # one upon the other, all are seen


def _mark(number: int) -> tuple[str, str]:
    return figures.SERIES[number % len(figures.SERIES)], MARKS[number % len(MARKS)]


def _size(value: float, _place: int | None = None) -> str:
    return words.size(int(value)).partition(" (")[0]


def _plain(value: float, _place: int | None = None) -> str:
    return f"{value:g}" if value < 1e5 else f"1e{round(np.log10(value))}"


def dots(rows: dict[str, dict[str, float | None]], *, x_label: str, in_bytes: bool = False) -> Figure:
    """A row a map, a dot a series, on a logarithmic axis; what is None or 0 is left out."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    with figures.style():
        figure = Figure(figsize=(7.2, 1.2 + ROW_INCHES * len(rows)), layout="constrained")
        axis: Axes = figure.add_subplot()
        for number, name in enumerate(series):
            colour, mark = _mark(number)
            pairs = [(row.get(name), place) for place, row in enumerate(rows.values())]
            found = [(value, place) for value, place in pairs if value]
            if found:
                axis.plot(*zip(*found, strict=True), mark, color=colour, label=name, markersize=DOTS[number])
        axis.set_xscale("log", base=1024 if in_bytes else 10)
        axis.xaxis.set_major_formatter(FuncFormatter(_size if in_bytes else _plain))
        axis.minorticks_off()
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="both", color=figures.NEVER, linewidth=0.3)
        axis.set_xlabel(x_label)
        axis.legend(loc="lower right", ncols=len(series), bbox_to_anchor=(1, 1))
    return figure


def by_size(curves: dict[str, dict[int, float]], *, y_label: str) -> Figure:
    """A curve a map over the sizes of the device, both axes logarithmic.  curves: name -> bytes -> value."""
    with figures.style():
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        axis: Axes = figure.add_subplot()
        for number, (name, values) in enumerate(curves.items()):
            colour, mark = _mark(number)
            line = ("-", "--", ":")[number // len(figures.SERIES) % 3]
            axis.plot(list(values), list(values.values()), line, marker=mark, color=colour, label=name)
        sizes = sorted({size for values in curves.values() for size in values})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sizes, [_size(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(FuncFormatter(_plain))
        axis.grid(axis="y", color=figures.NEVER, linewidth=0.3)
        axis.set(xlabel="size of the device", ylabel=y_label)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _value(row: dict[str, Any], pattern: str, mode: str) -> float | None:
    found = row["lookups"][pattern][mode]
    return found["ns"] if found else None


def drawings(result: dict[str, Any]) -> list[Drawing]:
    """The figures of a result of ``pagebench.run``."""
    rows, names = result["rows"], list(result["maps"])
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        value = _value(row, "fragmented", "latency")
        if value is not None:
            curves.setdefault(row["map"], {})[row["size"]] = value
    largest = {row["map"]: row for row in rows if row["size"] == max(result["sizes"])}
    size = _size(max(result["sizes"]))
    patterns = ("sequential", "random", "fragmented")
    lookups = {name: {p: _value(largest[name], p, "latency") for p in patterns} for name in names}
    space = {
        name: {
            "RAM, idle": largest[name]["space"]["ram_bytes"],
            "RAM, file mapped": largest[name]["space"]["mapped_ram_bytes"],
            "medium": largest[name]["space"]["medium_bytes"],
        }
        for name in names
    }
    first = {
        name: {
            "before first use": largest[name]["initialise"]["bytes"],
            "for a first I/O": largest[name]["first_io"]["bytes"],
        }
        for name in names
    }
    found = []
    if curves:
        found.append(
            Drawing(
                "by-size",
                by_size(curves, y_label="ns from one lookup to the next"),
                "nanoseconds from one lookup to the next, by map and size of the device, pages of a fragmented file",
                "Pages of a fragmented file at random: nanoseconds a lookup, each waiting for the one before.",
            )
        )
    found.append(
        Drawing(
            "by-pattern",
            dots(lookups, x_label=f"ns from one lookup to the next, {size}"),
            f"nanoseconds from one lookup to the next, by map and pattern, {size}",
            f"A device of {size}: nanoseconds a lookup, each waiting for the one before; no dot: nothing is found.",
        )
    )
    found.append(
        Drawing(
            "space",
            dots(space, x_label=f"bytes held for a device of {size}", in_bytes=True),
            f"bytes of RAM and of the medium that each map holds for a device of {size}",
            f"What the descriptors of a device of {size} take; no dot is no byte.",
        )
    )
    found.append(
        Drawing(
            "initialisation",
            dots(first, x_label=f"bytes of descriptors written, {size}", in_bytes=True),
            f"bytes of descriptors that are written before the first use of a device of {size}, and for a first I/O",
            f"Bytes written before a device of {size} can be used, and for a first I/O on a page; no dot is no byte.",
        )
    )
    return found
