# SPDX-License-Identifier: MIT
"""The verb stats: the wear of an image, for people and for programs."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmem_core import rounding
from pmem_core.cli._capacity import memory_words
from pmem_core.cli._common import (
    IMAGE,
    emit,
    human_bytes,
    json_option,
    plain_console,
    policy_file_option,
    refuse,
    working,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from pmem_core.counters import Fold

ROWS, COLUMNS_MAX, BAR_MAX = 12, 96, 40
RAMP = " .:-=+*#%@"
# From cold to hot; each step is brighter than the one before, also for the colour-blind (matplotlib's inferno).
COLOURS = ["#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"]
MARGIN = 10
WIDE = 68
WATCH_S_MAX = 86400
KINDS = ("data", "descriptor", "spare")


def _seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # which is within any range
        raise click.BadParameter("nan is no time", context, parameter)
    return value


@click.command()
@IMAGE
@json_option
@click.option("--heat-map/--no-heat-map", default=None, help="Show the medium as a map of its wear (default).")
@click.option("--histogram", is_flag=True, help="Show how many lines have how much wear.")
@click.option("--stripe", is_flag=True, help="Fold the map at a group of pages: 65 with 64-byte descriptors.")
@click.option(
    "--by",
    type=click.Choice(["max", "mean"]),
    default="max",
    show_default=True,
    help="A cell of the map shows its hottest line, or the mean of its lines.",
)
@click.option(
    "--watch",
    metavar="SECONDS",
    type=click.FloatRange(0.05, WATCH_S_MAX),
    callback=_seconds,
    help="Show it anew until Ctrl-C.",
)
@policy_file_option
def stats(
    image: Path, as_json: bool, heat_map: bool | None, histogram: bool, stripe: bool, by: str, watch: float | None
) -> None:
    """Show the wear of an image; a server that has it open is not disturbed.

    Data, descriptor and spare lines are told apart by what they hold now.

    \b
    Examples:
      pmem-nbd stats disk.pmem
      pmem-nbd stats disk.pmem --stripe --by mean
      pmem-nbd stats disk.pmem --histogram
      pmem-nbd stats disk.pmem --watch 1
      pmem-nbd stats disk.pmem -j | jq .wear.descriptor.max
    """
    wanted = heat_map if heat_map is not None else stripe or not (histogram or as_json)
    if as_json or not wanted:
        refuse("no map is shown", "no --by, or a map" if not as_json else "no --by: -j has both", "by")
    # Programs ask for figures often, and rich takes a while to import.
    console = None if as_json else plain_console()
    with working(f"reading {image}"):
        from pmem_core import stats as figures_

        fold = _fold(image, (console or plain_console()).width, stripe) if wanted else None

    def collect() -> dict[str, Any]:
        return figures_.collect(image, fold=fold, histogram=histogram)

    def once() -> None:
        if console:
            from rich.text import Text

            narrow = console.is_terminal or "COLUMNS" in os.environ
            for part in render(collect(), by, console):
                # Nobody's window is to be fitted where it is read by programs.
                console.print(part, soft_wrap=isinstance(part, Text) and not narrow)
        else:
            emit(collect())
        sys.stdout.flush()

    if watch is None:
        once()
        return
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        if not console or not console.is_terminal:
            while True:
                once()
                time.sleep(watch)
        _watch(console, lambda: render(collect(), by, console), watch)


def _watch(console: "Console", picture: Callable[[], Iterator["RenderableType"]], seconds: float) -> None:
    from rich.console import Group
    from rich.live import Live

    with Live(Group(*picture()), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(seconds)
            live.update(Group(*picture()), refresh=True)


def _fold(image: Path, width: int, stripe: bool) -> "Fold":
    """A map that fits the terminal: no more cells than pages, and a stripe in as many columns as it has pages."""
    from pmem_core import capacity, counters, layout, snapshot

    plan = snapshot.look(image).plan
    group = layout.PAGE_BYTES // plan.info.descriptor_bytes + 1 if stripe else 0
    pages = capacity.pages_behind_info(plan)
    columns = max(1, min(group or COLUMNS_MAX, width - MARGIN, pages))
    return counters.Fold(rows=max(1, min(ROWS, pages // (group or columns))), columns=columns, stripe=group)


# ---- for people ----


def render(figures: dict[str, Any], by: str, console: "Console") -> Iterator["RenderableType"]:
    """The figures as blocks to print: wear by kind, by cause, what it comes to, and the pictures asked for."""
    from rich.text import Text

    image, wear = figures["image"], figures["wear"]
    served = f"served by process {figures['pid']}" if figures["served"] else figures["session"]
    yield Text(f"{image['path']}: {human_bytes(image['size'])}, {image['placement']}, {image['leveling']}, {served}")
    yield _kinds(wear, console)
    causes = {cause: count for cause, count in wear["by_cause"].items() if count}
    told = ", ".join(f"{cause} {count}" for cause, count in causes.items())
    host, level = figures["host"], figures["leveling"]
    written = human_bytes(host["written_bytes"])
    yield Text(f"line writes by cause  {told or 'none'}")
    yield Text(
        f"host                  {host['writes']} writes, {written}; {host['reads']} reads; {host['trims']} trims"
    )
    yield Text(f"write amplification   {_number(figures['write_amplification'])}, {level['moves']} frames moved")
    if "stall_seconds" in level:
        yield Text(f"stalls (modelled)     {level['stall_seconds']:.3g} s")
    if image["descriptors"] == "memory":
        yield Text(f"descriptors           in the server's memory: {memory_words(figures['descriptor_memory'])}")
    life = figures["normalized_life"]
    told = "-" if life is None else rounding.percent(life, 2, "high", "%")
    yield Text(f"normalised life       {told}, if wear goes on as it did so far")
    yield from _warnings(figures)
    if "histogram" in figures:
        yield _histogram(figures["histogram"], console)
    if "heat_map" in figures:
        yield from _heat_map(figures["heat_map"], by, console)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}" if value < 10000 else f"{value:.0f}"


def _table(console: "Console") -> "Table":
    from rich import box
    from rich.table import Table

    # Nothing but ASCII where nobody watches.
    frame = box.SIMPLE_HEAD if console.is_terminal else None
    return Table(box=frame, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def _kinds(wear: dict[str, Any], console: "Console") -> "RenderableType":
    """Wear by kind; a kind is a row where there is room, else a column."""
    names = {"lines": "lines", "total": "total", "mean": "mean", "max": "hottest", "cov": "CoV", "gini": "Gini"}
    names["jain"] = "Jain"
    rows = [["wear", *names.values()]]
    for kind in (*KINDS, "all"):
        rows.append([kind, *(_number(wear[kind][name]) for name in names)])
    if console.width < WIDE:
        rows = [list(row) for row in zip(*rows, strict=True)]
    table = _table(console)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _warnings(figures: dict[str, Any]) -> Iterator["Text"]:
    from rich.text import Text

    errors = figures["errors"]
    if errors["checksum_errors"]:
        yield Text(f"checksum errors       {errors['checksum_errors']} reads refused", style="bold red")
    for name, holds in figures["invariants"].items():
        note = figures["invariants_notes"].get(name, "")
        if holds is False:
            yield Text(f"invariant broken      {name}{': ' if note else ''}{note}", style="bold red")
        elif note:
            yield Text(f"invariant {name:11} {note}")


def _histogram(pairs: dict[str, list[list[int]]], console: "Console") -> "RenderableType":
    """Lines by wear, in bins of powers of two; bars on a log scale, because one hot line matters."""
    bins: dict[int, dict[str, int]] = {}
    for kind in KINDS:
        for value, lines in pairs[kind]:
            bins.setdefault(value.bit_length(), dict.fromkeys(pairs, 0))[kind] += lines
    table = _table(console)
    for column in ("wear", *KINDS):
        table.add_column(column, justify="right", no_wrap=True)
    room = min(BAR_MAX, console.width - 48)
    if room > 4:
        table.add_column("lines, log scale", no_wrap=True)
    most = max((sum(row.values()) for row in bins.values()), default=1)
    for bits in range(min(bins, default=0), max(bins, default=0) + 1):
        row = bins.get(bits, dict.fromkeys(pairs, 0))
        first, last = (1 << bits) >> 1, (1 << bits) - 1
        length = round(room * math.log1p(sum(row.values())) / math.log1p(most))
        name = str(first) if first >= last else f"{first}-{last}"
        cells = [name, *(str(row[kind]) for kind in KINDS)]
        table.add_row(*cells, *(["#" * length] if room > 4 else []))
    return table


def _heat_map(heat: dict[str, Any], by: str, console: "Console") -> Iterator["Text"]:
    from rich.text import Text

    values = [value for row in heat[by] for value in row if value]
    # Eight-fold at least: noise around one value shall look even.
    most = max(values, default=0)
    least = min(*values, most / 8) if values else 0
    colour = console.is_terminal and console.color_system in ("256", "truecolor")
    what = "the hottest line" if by == "max" else "the mean"
    fold = f", folded at {heat['stripe']} pages" if heat["stripe"] else ""
    yield Text(f"\nthe medium{fold}; a cell is {what} of its part, log scale")
    for number, row in enumerate(heat[by]):
        line = Text(f"{number / heat['rows']:6.1%}  ", no_wrap=True, overflow="crop")
        for value in row:
            line.append(*_cell(1 + math.log(value / most) / math.log(most / least) if value else -1, colour))
        yield line
    legend = Text(f"{'':8}never ", no_wrap=True, overflow="crop").append(*_cell(-1, colour)).append(f"  {least:.3g} ")
    for step in range(len(COLOURS)):
        legend.append(*_cell(step / (len(COLOURS) - 1), colour))
    yield legend.append(f" {most:.4g}")


def _cell(level: float, colour: bool) -> tuple[str, str]:
    """The character and the style of a cell; `level` from 0 to 1, below 0: never written."""
    if level < 0:
        return ("·", "dim") if colour else (RAMP[0], "")
    step = min(int(level * len(COLOURS)), len(COLOURS) - 1)
    return (" ", f"on {COLOURS[step]}") if colour else (RAMP[step + 1], "")
