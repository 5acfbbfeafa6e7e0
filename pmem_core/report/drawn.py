# SPDX-License-Identifier: MIT
"""The sections of an image's report that have a figure, and what has to be said beside it."""

from typing import Any

import numpy as np

from .. import layout
from ..counters import KINDS
from . import curves, figures, words
from .page import Drawing, Section, Table
from .wearmap import WearMap
from .words import number, percent

Counters = dict[str, tuple[np.ndarray, np.ndarray]]
DRAWN = ("all", "data", "descriptor")
NOTHING_WRITTEN = "Nothing was written: there is nothing to draw."
ROWS = 8
TIME_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def by_position(found: dict[str, Any], seen: WearMap, by: str) -> Section:
    """The heat map; by: see WearMap.mean."""
    title = "Wear by position"
    if not found["wear"]["all"]["total"]:
        return Section("map", title, [NOTHING_WRITTEN])
    most, profile = seen.most(by), seen.profile(by) if seen.stripe else None
    each = f"{number(seen.share)} {'stripes' if seen.stripe else 'pages'}"
    maps = {"": most} if seen.share == 1 else {f"mean of {each}": seen.mean(by), f"hottest of {each}": most}
    if seen.stripe:
        x_label = f"page of the medium, modulo {seen.stripe}"
        y_label = f"row of {each}" if seen.share > 1 else "stripe"
    else:
        x_label, y_label = f"cell of {each}" if seen.share > 1 else "page of the medium", f"row of {seen.columns}"
    label = f"line writes of a page’s {'hottest line' if by == 'max' else 'lines, mean'}"
    figure = figures.heat_map(maps, label=label, x_label=x_label, y_label=y_label, profile=profile)
    row, column = np.unravel_index(int(np.nanargmax(most)), most.shape)
    rows = [
        ["rows × columns", f"{seen.rows} × {seen.columns}"],
        ["hottest page", number(float(np.nanmax(most)), "low")],
        ["· in row, column", f"{row}, {column}"],
        ["cells never written", number(int((seen.line_sum[seen.pages > 0] == 0).sum()))],
    ]
    alt = f"Heat map of the medium, {seen.rows} rows of {seen.columns} cells."
    if profile is not None:
        first, rest = float(profile[0]), float(np.nanmean(profile[1:]))
        rows += [
            ["mean of column 0", number(first, "low")],
            ["mean of the other columns", number(rest)],
            ["· the hottest of them", number(float(np.nanmax(profile[1:])), "low")],
            ["column 0 ÷ the others", number(first / rest if rest else None, "low")],
        ]
        alt += f" Column 0 has mean wear {number(first)}, the other columns have {number(rest)}."
    scale = "Linear scale from 0" if figures.is_linear(maps) else "Logarithmic scale"
    value = (
        "the mean of its lines" if by == "mean" else "its hottest line; so a page of descriptors is its most written"
    )
    caption = (
        f"By position on the medium, which is what wears. The value of a page of the medium is {value}. {scale}; "
        "what was never written is grey. The info blocks in front are left out."
    )
    return Section(
        "map", title, [_position(found["image"], seen)], [Drawing("heat-map", figure, alt, caption)], [Table(rows)]
    )


def _position(image: dict[str, Any], seen: WearMap) -> str:
    if not seen.stripe:
        return "The medium from its first page to its last: this placement has no stripe to fold it by."
    text = (
        f"The stripe’s {seen.stripe} columns side by side: as placed, a page of descriptors (column 0), then the "
        f"{seen.stripe - 1} pages that it describes. "
    )
    if image["leveling"] == "none":
        return text + "Nothing moves here, so the descriptors wear column 0."
    return text + (
        "Leveling carries frames along, so the column is expected to drift and to vanish: what is left of one, "
        "upright or slanting, is wear that has not been spread."
    )


def lorenz(found: dict[str, Any], counters: Counters) -> Section:
    """Lorenz curves."""
    title, worn = "How evenly", {kind: counters[kind] for kind in DRAWN if found["wear"][kind]["total"]}
    if not worn:
        return Section("lorenz", title, [NOTHING_WRITTEN])
    gini = {kind: number(found["wear"][kind]["gini"], "low") for kind in worn}
    rows = []
    for percents in (50, 90, 99):
        shares = [1 - float(np.interp(percents / 100, *curves.lorenz_curve(*pair))) for pair in worn.values()]
        rows.append([f"most worn {100 - percents} %", *(percent(share, "low") for share in shares)])
    alt = f"Lorenz curves: {', '.join(f'{kind} lines, Gini {value}' for kind, value in gini.items())}."
    caption = "The further below the diagonal, the less evenly worn. Data and descriptor: lines that hold such now."
    drawing = Drawing("lorenz", figures.lorenz(worn, gini), alt, caption)
    table = Table(rows, ["lines", *worn], "share of the line writes that they have")
    return Section("lorenz", title, [], [drawing], [table])


def histogram(counters: Counters) -> Section:
    """Lines by wear and kind."""
    title, there = "How many lines have how much", {kind: counters[kind] for kind in KINDS}
    there = {kind: pair for kind, pair in there.items() if pair[1].sum()}
    if not any(values[-1] for values, _ in there.values()):
        return Section("histogram", title, [NOTHING_WRITTEN])
    rows = [["never written", *(number(int(counts[values == 0].sum())) for values, counts in there.values())]]
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        rows.append([f"{share * 100:g} % up to", *(number(curves.quantile(*pair, share)) for pair in there.values())])
    hottest = {kind: number(int(values[-1])) for kind, (values, _) in there.items()}
    rows.append(["hottest", *hottest.values()])
    alt = f"Histogram of wear: {', '.join(f'{kind} lines up to {most}' for kind, most in hottest.items())}."
    caption = "Lines by how often they were written, on a log scale, because one hot line matters."
    drawing = Drawing("histogram", figures.histogram(there), alt, caption)
    return Section("histogram", title, [], [drawing], [Table(rows, ["lines", *there])])


# ---- over time ----


def _samples(found: dict[str, Any], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history between creation, when every counter was 0, and now, when they were what `found` says."""
    worn = found["wear"]["by_cause"]
    begin = {
        "time_ns": found["image"]["created"] * 10**9,
        "written_bytes": 0,
        "hottest": 0,
        "worn": dict.fromkeys(worn, 0),
    }
    written, hottest = found["host"]["written_bytes"], found["wear"]["all"]["max"]
    now = {"time_ns": int(found["time"] * 1e9), "written_bytes": written, "hottest": hottest, "worn": worn}
    # A server goes on; and a row that is no sample is no reason to have no page.
    kept = [row for row in history if row["time_ns"] <= now["time_ns"] and _is_sample(row, now)]
    if kept and kept[-1]["worn"] == worn:
        return [begin, *kept]
    return [begin, *kept, now]


def _is_sample(row: dict[str, Any], like: dict[str, Any]) -> bool:
    if any(type(row.get(name)) is not type(value) for name, value in like.items()):
        return False
    return all(type(row["worn"].get(cause)) is int for cause in like["worn"])


def _axis(samples: list[dict[str, Any]], over: str) -> tuple[np.ndarray, str]:
    if over == "bytes":
        written = np.array([sample["written_bytes"] for sample in samples], np.float64)
        scale, unit = words.unit_of(written.max())
        return written / scale, f"written by the host, {unit}"
    seconds = np.array([sample["time_ns"] - samples[0]["time_ns"] for sample in samples]) / 1e9
    seconds = np.maximum.accumulate(seconds)  # clocks may be set back
    size, unit = next((pair for pair in TIME_UNITS if seconds[-1] >= 3 * pair[0]), TIME_UNITS[-1])
    return seconds / size, f"{unit} since the image was created"


def life(found: dict[str, Any], history: list[dict[str, Any]] | str, over: str) -> Section:
    """Wear over what the host wrote ("bytes") or over "time".  history: see snapshot.history; or why there is none."""
    title, lines = "Life over time", found["wear"]["all"]["lines"]
    if isinstance(history, str):
        return Section("life", title, [f"The history cannot be read: {words.name_of(history)}."])
    if not found["wear"]["all"]["total"]:
        return Section("life", title, [NOTHING_WRITTEN])
    samples = _samples(found, history)
    causes = [cause for cause in layout.CAUSES if cause != "info"]
    worn = {cause: np.array([sample["worn"][cause] for sample in samples], np.float64) for cause in causes}
    mean = np.sum(list(worn.values()), axis=0) / lines
    hottest = np.array([sample["hottest"] for sample in samples], np.float64)
    x, x_label = _axis(samples, over)
    figure = figures.life_over_time(x, hottest, mean, worn, x_label=x_label)
    rows = []
    for place in np.unique(np.linspace(1, len(samples) - 1, ROWS).astype(int)).tolist():
        most, middle = float(hottest[place]), float(mean[place])
        when = words.when(samples[place]["time_ns"] / 1e9)
        ratio = number(most / middle if middle else None, "low")
        by_host = float(worn["host"][place] + worn["descriptor"][place])  # as stats counts it
        ideal = percent(by_host / (lines * most) if most else None, "high")
        written = words.size(samples[place]["written_bytes"]).partition(" (")[0]
        rows.append([when, written, number(most), number(middle, "low"), ratio, ideal])
    head = ["when", "host wrote", "hottest", "mean", "hottest ÷ mean", "normalised life"]
    alt = f"Wear over {over}: {len(samples) - 1} samples; in the last hottest {rows[-1][2]}, mean {rows[-1][3]}."
    caption = (
        "From the journal: a sample every 10 seconds of service in which something was written, one at each close, and "
        "now; before the first a line from 0, at the creation. With even wear the curves on the left would be one."
    )
    return Section("life", title, [], [Drawing("life", figure, alt, caption)], [Table(rows, head)])
