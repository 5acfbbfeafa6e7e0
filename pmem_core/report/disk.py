# SPDX-License-Identifier: MIT
"""The report of an image: the figures of stats, drawn, and what has to be said beside them."""

from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, layout, snapshot, stats
from ..errors import PmemError
from . import curves, figures, words
from .page import Drawing, Key, Page, Section, Table
from .wearmap import WearMap
from .words import number, percent

Counters = dict[str, tuple[np.ndarray, np.ndarray]]
KINDS = ("data", "descriptor", "spare", "all")
DRAWN = ("all", "data", "descriptor")
NOTHING_WRITTEN = "Nothing was written: there is nothing to draw."
BY = {"max": "hottest line", "mean": "mean of all lines"}


def report(path: Path, *, by: str = "max", over: str = "bytes") -> Page:
    """The page of the image at `path`, served or not; see stats.collect for its errors.

    by: a page-frame of the heat map is its hottest line ("max") or the mean of its lines ("mean").  over: life is
    drawn over the "bytes" that the host wrote, or over "time".
    """
    plan = snapshot.look(path).plan
    line_bytes = plan.info.line_bytes
    group = layout.PAGE_BYTES // plan.info.descriptor_bytes + 1
    wear_map = WearMap(
        snapshot.pages_behind_info(plan),
        layout.PAGE_BYTES // line_bytes,
        layout.FRAMES_AT // line_bytes,
        stripe=group if plan.info.placement == "interleaved" else 0,
    )
    found = stats.collect(path, histogram=True, see=wear_map.add)
    pairs = found.pop("histogram")
    counters = {kind: (np.array(pairs[kind]).reshape(-1, 2)[:, 0], np.array(pairs[kind]).reshape(-1, 2)[:, 1]) for kind in pairs}
    history: list[dict[str, Any]] | str
    try:
        history = snapshot.history(path)
    except PmemError as error:
        history = str(error)
    sections = [
        _image(found, snapshot.shares(plan)),
        _by_kind(found),
        _map(found, wear_map, by),
        _lorenz(found, counters),
        _histogram(counters),
        _life(found, history, over),
        _method(found),
    ]
    name = words.name_of(path.absolute().name)
    image = found["image"]
    served = f"served by process {found['pid']}, live" if found["served"] else f"last session: {found['session']}"
    lead = (
        f"{words.size(image['size'])} of emulated persistent memory, placement {image['placement']}, leveling "
        f"{image['leveling']}; {served}; read {words.when(found['time'])}."
    )
    return Page(f"Wear of {name}", lead, sections, _key(found), _alarms(found), found)


def _key(found: dict[str, Any]) -> list[Key]:
    everything, host = found["wear"]["all"], found["host"]
    mean = everything["mean"]
    return [
        Key("host wrote", words.size(host["written_bytes"]), f"{number(host['writes'])} writes"),
        Key("hottest line", number(everything["max"]), f"{number(everything['max'] / mean if mean else None, 'low')} times the mean"),
        Key("mean wear", number(mean, "low"), f"of {number(everything['lines'])} lines of {found['wear']['line_bytes']} bytes"),
        Key("Gini coefficient", number(everything["gini"], "low"), "0 is even, 1 is all in one line"),
        Key("write amplification", number(found["write_amplification"], "low"), "line writes ÷ those for the host’s data"),
        Key("share of ideal life", percent(found["normalized_life"], "high"), "if wear goes on as it did so far"),
    ]


def _alarms(found: dict[str, Any]) -> list[str]:
    said = []
    if found["errors"]["checksum_errors"]:
        said.append(f"{number(found['errors']['checksum_errors'])} reads were refused: data did not match its checksum.")
    if found["retired_pages"]:
        said.append(f"The data of {number(found['retired_pages'])} pages was given up.")
    notes = found["invariants_notes"]
    for name, holds in found["invariants"].items():
        if holds is False:
            said.append(f"Invariant {name} is broken: pmem-nbd check says more.")
        elif name in notes:
            said.append(f"Invariant {name}: {notes[name]}.")
    return said


# ---- what it is ----


def _image(found: dict[str, Any], shares: dict[str, int]) -> Section:
    image = found["image"]
    parameters = {**image["parameters"]["placement"], **image["parameters"]["leveling"]}
    has_descriptors = image["descriptor_bytes"] > 0
    rows = [
        ["path", words.name_of(image["path"])],
        ["uuid", image["uuid"]],
        ["created", words.when(image["created"])],
        ["medium", words.size(image["size"])],
        ["the client sees", f"{words.size(image['device_bytes'])} in {number(image['page_count'])} pages"],
        ["placement", image["placement"]],
        ["leveling", image["leveling"]],
        *[[f"  {name}", number(value)] for name, value in parameters.items()],
        ["descriptor", f"{image['descriptor_bytes']} bytes, written {image['descriptor_writes']}" if has_descriptors else "none"],
        ["checksums", "yes" if image["checksums"] else "no"],
        ["frame (what leveling moves)", f"{image['frame_bytes']} bytes"],
        ["line (what wears)", f"{image['line_bytes']} bytes"],
    ]
    uses = [[use, number(count), percent(count / image["size"])] for use, count in shares.items()]
    return Section(
        "image",
        "The image",
        tables=[Table(rows), Table(uses, ["use of the medium", "bytes", "share"])],
    )


def _by_kind(found: dict[str, Any]) -> Section:
    wear, host = found["wear"], found["host"]
    head = ["lines", "how many", "line writes", "hottest", "mean", "CoV", "Gini", "Jain"]
    rows = []
    for kind in KINDS:
        one = wear[kind]
        better = {"mean": "low", "cov": "low", "gini": "low", "jain": "high"}
        shown = [number(one[name], better.get(name, "")) for name in ("lines", "total", "max", "mean", "cov", "gini", "jain")]
        rows.append([kind, *shown])
    total = sum(wear["by_cause"].values())
    causes = [[cause, number(count), percent(count / total if total else None)] for cause, count in wear["by_cause"].items()]
    moves = ["frames moved", number(found["leveling"]["moves"])]
    did = [[name.replace("_", " "), number(count)] for name, count in host.items()]
    return Section(
        "wear",
        "Wear by kind and by cause",
        ["A kind is what a line holds now; its wear is of everything it ever held."],
        tables=[
            Table(rows, head),
            Table(causes, ["cause", "line writes", "share"], "info: the two info blocks, which are of no kind"),
            Table([*did, moves], ["the host", "count"]),
        ],
    )


# ---- figures ----


def _map(found: dict[str, Any], seen: WearMap, by: str) -> Section:
    image = found["image"]
    if not found["wear"]["all"]["total"]:
        return Section("map", "Wear by position", [NOTHING_WRITTEN])
    maps = {"mean": seen.mean(by), "max": seen.most(by)}
    a_row = f"{seen.share} stripes" if seen.share > 1 else "a stripe"
    if not seen.stripe:
        a_row = f"{number(seen.share * seen.columns)} page-frames, {number(seen.share)} a cell"
    drawn = {f"mean of the {seen.share}": maps["mean"], f"hottest of the {seen.share}": maps["max"]} if seen.share > 1 else {"": maps["max"]}
    what = f"line writes of a page-frame’s {BY[by]}"
    profile = seen.profile(by) if seen.stripe else None
    x_label = f"page-frame of the medium, modulo {seen.stripe}" if seen.stripe else "medium, left to right, then down"
    figure = figures.heat_map(drawn, label=what, x_label=x_label, y_label=f"row: {a_row}", profile=profile)
    hottest = np.unravel_index(int(np.nanargmax(maps["max"])), maps["max"].shape)
    rows = [
        ["rows × columns", f"{seen.rows} × {seen.columns}"],
        ["hottest page-frame", number(float(np.nanmax(maps["max"])), "low")],
        ["  in row, column", f"{hottest[0]}, {hottest[1]}"],
        ["cells never written", number(int((seen.line_sum[seen.pages > 0] == 0).sum()))],
    ]
    alt = f"Heat map of the medium, {seen.rows} rows of {seen.columns} cells."
    text = [_position(image, seen)]
    if profile is not None:
        rest = np.delete(profile, 0)
        ratio = profile[0] / np.nanmean(rest) if np.nansum(rest) else None
        rows += [
            ["mean of column 0", number(float(profile[0]), "low")],
            ["mean of the other columns", number(float(np.nanmean(rest)))],
            ["  the hottest of them", number(float(np.nanmax(rest)))],
            ["column 0 ÷ the others", number(None if ratio is None else float(ratio), "low")],
        ]
        alt += f" Column 0 has mean wear {number(float(profile[0]))}, the other columns {number(float(np.nanmean(rest)))}."
    norm = figures.heat_norm(drawn)
    scale = "Logarithmic scale" if type(norm) is not figures.Normalize else "Linear scale from 0"
    caption = (
        f"By position on the medium, which is what wears. A page-frame is 4096 bytes, and its value is its {BY[by]}"
        f"{'' if by == 'mean' else ', so that a page of descriptors counts as its most written line'}. {scale}; grey was never "
        "written. The info blocks in front are left out."
    )
    return Section("map", "Wear by position", text, [Drawing("heat-map", figure, alt, caption)], [Table(rows)])


def _position(image: dict[str, Any], seen: WearMap) -> str:
    if not seen.stripe:
        return "The medium from its first page-frame to its last: this placement has no stripe to fold it by."
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


def _lorenz(found: dict[str, Any], counters: Counters) -> Section:
    worn = {kind: counters[kind] for kind in DRAWN if found["wear"][kind]["total"]}
    if not worn:
        return Section("lorenz", "How evenly", [NOTHING_WRITTEN])
    gini = {kind: number(found["wear"][kind]["gini"], "low") for kind in worn}
    rows = []
    for percents in (50, 90, 99):
        shares = [1 - float(np.interp(percents / 100, *curves.lorenz_curve(*pair))) for pair in worn.values()]
        rows.append([f"most worn {100 - percents} %", *(percent(share, "low") for share in shares)])
    alt = "Lorenz curves: " + ", ".join(f"{kind} lines, Gini {value}" for kind, value in gini.items()) + "."
    caption = "The further below the diagonal, the less evenly worn. Descriptors: lines of pages of descriptors, by what lies there now."
    drawing = Drawing("lorenz", figures.lorenz(worn, gini), alt, caption)
    return Section("lorenz", "How evenly", [], [drawing], [Table(rows, ["lines", *worn], "share of the line writes that they have")])


def _histogram(counters: Counters) -> Section:
    if not int(counters["all"][0][-1]):
        return Section("histogram", "How many lines have how much", [NOTHING_WRITTEN])
    there = {kind: counters[kind] for kind in KINDS[:-1] if counters[kind][1].sum()}
    head = ["wear", *there]
    rows = [["lines never written", *(number(int(counts[values == 0].sum())) for values, counts in there.values())]]
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        rows.append([percent(share), *(number(curves.quantile(*pair, share)) for pair in there.values())])
    rows.append(["hottest", *(number(int(values[-1])) for values, _ in there.values())])
    alt = "Histogram of wear: " + ", ".join(f"{kind} up to {int(values[-1])}" for kind, (values, _) in there.items()) + "."
    drawing = Drawing("histogram", figures.histogram(there), alt, "Lines by how often they were written, on a log scale: one hot line matters.")
    caption = "a share of the lines has at most this wear"
    return Section("histogram", "How many lines have how much", [], [drawing], [Table(rows, head, caption)])


def _life(found: dict[str, Any], history: list[dict[str, Any]] | str, over: str) -> Section:
    title = "Life over time"
    if isinstance(history, str):
        return Section("life", title, [f"The history cannot be read: {words.name_of(history)}."])
    wear, host = found["wear"], found["host"]
    causes = [cause for cause in layout.CAUSES if cause != "info"]
    # Between creation, when every counter was 0, and now.
    begin = {"time_ns": found["image"]["created"] * 10**9, "written_bytes": 0, "hottest": 0, "worn": {}}
    now = {"time_ns": int(found["time"] * 1e9), "written_bytes": host["written_bytes"], "hottest": wear["all"]["max"]}
    if found["served"] or not history:
        history = [*history, {**now, "worn": wear["by_cause"]}]
    samples = [begin, *history]
    worn = {cause: np.array([sample["worn"].get(cause, 0) for sample in samples], np.float64) for cause in causes}
    total, lines = sum(worn.values()), wear["all"]["lines"]
    if not np.any(total):
        return Section("life", title, [NOTHING_WRITTEN])
    hottest = np.array([sample["hottest"] for sample in samples], np.float64)
    x, x_label = _axis(samples, over)
    figure = figures.life_over_time(x, hottest, total / lines, worn, x_label=x_label)
    rows = []
    for place in np.unique(np.linspace(1, len(samples) - 1, 8).astype(int)):
        sample, most = samples[place], hottest[place]
        ideal = worn["host"][place] / (lines * most) if most else None
        mean = total[place] / lines
        shown = [number(int(most)), number(float(mean), "low"), number(float(most / mean) if mean else None, "low"), percent(ideal, "high")]
        rows.append([words.when(sample["time_ns"] / 1e9), words.size(sample["written_bytes"]), *shown])
    head = ["when", "host wrote", "hottest", "mean", "hottest ÷ mean", "share of ideal life"]
    alt = f"Wear over {over}: {len(samples) - 1} samples, at the end hottest {number(int(hottest[-1]))}, mean {number(float(total[-1] / lines))}."
    caption = (
        "From the journal: a sample every 10 seconds of service in which something was written, and one at each close; "
        "the line from 0 is that of the creation. Even wear would have the two curves on the left as one."
    )
    return Section("life", title, [], [Drawing("life", figure, alt, caption)], [Table(rows, head)])


def _axis(samples: list[dict[str, Any]], over: str) -> tuple[np.ndarray, str]:
    if over == "time":
        seconds = np.array([sample["time_ns"] for sample in samples]) / 1e9
        seconds = np.maximum.accumulate(seconds - seconds[0])  # clocks may be set back
        scale, unit = next(pair for pair in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")) if seconds[-1] >= 3 * pair[0] or pair[0] == 1)
        return seconds / scale, f"{unit} since the image was created"
    written = np.array([sample["written_bytes"] for sample in samples], np.float64)
    scale, unit = words.unit_of(written[-1])
    return written / scale, f"written by the host, {unit}"


def _method(found: dict[str, Any]) -> Section:
    rows = [
        ["CoV", "standard deviation ÷ mean"],
        ["Gini", "Σ Σ |x − y| ÷ (2 n² mean): 0 where all lines are worn alike"],
        ["Jain", "(Σ x)² ÷ (n Σ x²): 1 where all lines are worn alike"],
        ["write amplification", "line writes for host, descriptors and moves ÷ those for the host’s data"],
        ["share of ideal life", "host’s line writes ÷ (lines × hottest): what the host gets of n lines, if the device ends with its first line"],
    ]
    text = [
        f"Made by pmem-nbd {__version__}. Lines are counted one by one; none is a sample or an estimate. Digits that are dropped make "
        "a figure worse. Time is not modelled and lines do not die: life is worked out from the counters. "
        "The numbers of this page are in it as JSON, in the element with the id “figures”.",
    ]
    return Section("method", "What the figures mean", text, tables=[Table(rows)])
