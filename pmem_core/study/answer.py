# SPDX-License-Identifier: MIT
"""What a study found, in words: every number in them is out of its rows."""

from collections.abc import Iterable
from typing import Any

from .. import rounding
from .run import Row

SENTENCE = "will wear-leveling properly migrate these 'hot' pages around?"
ASKED_BY = "Ingo Molnar, linux-kernel, 7 May 2015"
PROPERLY = 0.9  # wear is spread as well as without descriptors, to a tenth


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Rows whose columns are as wanted."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Iterable[Row], column: str) -> list[Any]:
    """The values of a column, each once, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def typical(rows: Iterable[Row]) -> list[Row]:
    """Of rows that differ in their seed only, the one with the median life, the lower one of two.

    It has the `life_least` and `life_most` of all, and how many there are, `seeds`.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        parts = ("placement", "leveling", "line_bytes", "descriptor_writes", "workload", "endurance", "frames")
        groups.setdefault(tuple(row[name] for name in parts), []).append(row)
    found = []
    for group in groups.values():
        group.sort(key=lambda row: row["normalized_life"] or 0)
        ends = {"life_least": group[0]["normalized_life"], "life_most": group[-1]["normalized_life"]}
        found.append({"seeds": len(group), **ends, **group[(len(group) - 1) // 2]})
    return found


def percent(share: float | None) -> str:
    """A share of life, rounded down: never in our favour."""
    if share is None:
        return rounding.NOTHING
    return rounding.percent(share, 0 if share >= 0.1 else 1 if share >= 0.01 else 2, "high")


def lived(row: Row) -> str:
    """The life of a typical row, and in brackets the least and the most of its seeds where they differ."""
    least, most = (percent(row[name]) for name in ("life_least", "life_most"))
    told = percent(row["normalized_life"])
    return told if least == most else f"{told} ({least.removesuffix(' %')}–{most.removesuffix(' %')})"


def hottest_over_mean(row: Row, kind: str = "all") -> float | None:
    """Of the lines of a kind, against the mean of all lines."""
    if row[f"hottest_{kind}"] is None or not row["mean_all"]:
        return None
    return float(row[f"hottest_{kind}"]) / float(row["mean_all"])


def kept(rows: list[Row], label: str, unit: int, writes: str, workload: str) -> float | None:
    """How evenly wear is spread beside a device without descriptors: the normalised lives' ratio, same leveling."""
    return _beside(rows, "normalized_life", label, unit, writes, workload)


def pages_kept(rows: list[Row], label: str, unit: int, writes: str, workload: str) -> float | None:
    """Pages written until the first line is dead, a frame, beside those of a device without descriptors."""
    return _beside(rows, "data_life", label, unit, writes, workload)


def _beside(rows: list[Row], column: str, label: str, unit: int, writes: str, workload: str) -> float | None:
    common = {"leveling": label, "workload": workload}
    there = select(rows, placement="interleaved", line_bytes=unit, descriptor_writes=writes, **common)
    without = select(rows, placement="none", **common)
    if not there or not without or there[0][column] is None or not without[0][column]:
        return None
    return float(there[0][column] / without[0][column])


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) if names else "none of them"


def of_first_endurance(rows: list[Row]) -> list[Row]:
    """The rows without those that are there for their longer life."""
    return select(rows, endurance=rows[0]["endurance"]) if rows else []


def paragraphs(rows: list[Row]) -> list[str]:
    """The answer.  Empty where the rows that it is made from were not run."""
    every = typical(rows)
    rows = of_first_endurance(every)
    units = sorted({row["line_bytes"] for row in rows if row["placement"] == "interleaved"})
    labels = distinct(rows, "leveling")
    loads = distinct(rows, "workload")
    found = []
    if "none" in labels and "uniform" in loads and units:
        found.append(_without(rows, units))
    coarse = units[-1] if units else 0
    if "uniform" in loads and coarse:
        found.append(_with(rows, labels, coarse))
        found.append(_longer(every))
        found.append(_data(rows, units))
    if len(loads) > 1 and coarse:
        found.append(_everywhere(rows, labels, loads, units))
    found += _written(rows, coarse)
    found += _placed(rows, labels, loads, coarse)
    return [text for text in found if text]


def _without(rows: list[Row], units: list[int]) -> str:
    parts = []
    for unit in units:
        wanted = {"placement": "interleaved", "leveling": "none", "descriptor_writes": "each", "workload": "uniform"}
        row = select(rows, line_bytes=unit, **wanted)
        if row:
            ratio = hottest_over_mean(row[0])
            parts.append(
                f"{ratio:.1f} times the mean at {unit} bytes ({percent(row[0]['normalized_life'])} of the ideal life)"
            )
    if not parts:
        return ""
    return (
        "**Without leveling the pages of descriptors are the hot ones, if wear is counted in large units.** Pages are"
        " written at random, and each write updates its descriptor: when the first unit dies, the hottest has"
        f" {', '.join(parts)}. Counted in units of a descriptor's own size it is not hot at all: each descriptor is"
        " written as often as its page."
    )


def _with(rows: list[Row], labels: list[str], unit: int) -> str:
    good: list[tuple[float, str]] = []
    poor: list[tuple[float, str]] = []
    for label in labels:
        share = kept(rows, label, unit, "each", "uniform")
        if share is not None:
            (good if share >= PROPERLY else poor).append((share, label))
    if not good and not poor:
        return ""
    told = ", ".join(f"`{label}` {percent(share)}" for share, label in sorted(good + poor, reverse=True))
    verdict = "Yes, with the right leveling." if good else "No, not with any of these levelings."
    return (
        f"**{verdict}** Under uniform writes, counted in units of {unit} bytes, at W = {rows[0]['endurance']}, the"
        " normalised life of a device with descriptors on the medium is this share of that of one without them, under"
        f" the same leveling: {told}. By {_listed([label for _, label in good])} they are migrated properly (at least"
        f" {percent(PROPERLY)}). How much there is to be spread is another matter, see below."
    )


def _longer(rows: list[Row]) -> str:
    every = select(rows, placement="interleaved", descriptor_writes="each")
    endurances = sorted(distinct(every, "endurance"))
    if len(endurances) < 2:
        return ""
    unit = max(row["line_bytes"] for row in select(every, endurance=endurances[-1]))
    parts, frames = [], set()
    for load in distinct(select(every, endurance=endurances[-1]), "workload"):
        told = []
        for label in distinct(every, "leveling"):
            of_label = select(every, leveling=label, workload=load, line_bytes=unit)
            lives = sorted((row["endurance"], row["normalized_life"]) for row in of_label)
            if len(lives) > 1 and lives[0][1] < PROPERLY:
                told.append(f"`{label}` {', '.join(percent(value) for _, value in lives)}")
                frames |= {row["frames"] for row in of_label}
        if told:
            parts.append(f"under {load} writes {'; '.join(told)}")
    if not parts:
        return ""
    return (
        "**A life is a life at one W**: W / ψ is how often a policy turns in it. In units of"
        f" {unit} bytes, with W = {', '.join(map(str, endurances))}, as far as it was run, and the same intervals, the"
        f" lives are, {'; '.join(parts)}. It need not grow with W: what goes round comes back to the same frame after"
        " the same number of turns, and it matters which turn the first death falls into. These are devices of"
        f" {' or '.join(map(str, sorted(frames)))} frames; of other sizes nothing is said here, and where writes are"
        " uneven a life depends on the size too (docs/leveling.md, What Start-Gap lives by W)."
    )


def _data(rows: list[Row], units: list[int]) -> str:
    told, pages = [], []
    for unit in units:
        wanted = {"placement": "interleaved", "descriptor_writes": "each", "workload": "uniform", "line_bytes": unit}
        best = max(select(rows, **wanted), key=lambda row: row["data_life"] or 0, default=None)
        if best and best["data_life"]:
            told.append(f"{percent(best['data_life'])} in units of {unit} bytes (`{best['leveling']}`)")
            share = pages_kept(rows, best["leveling"], unit, "each", "uniform")
            pages += [percent(share)] if share else []
    if not told:
        return ""
    text = (
        "**What descriptors cost in wear is not undone by leveling**: each write of a page is two. Of the ideal life"
        f" data alone get at most {', '.join(told)}."
    )
    if len(pages) == len(told):
        text += f" Of the pages that can be written without descriptors that is {', '.join(pages)}."
    return text


def _everywhere(rows: list[Row], labels: list[str], loads: list[str], units: list[int]) -> str:
    worst: dict[str, tuple[float, Row]] = {}
    for row in select(rows, placement="interleaved"):
        value = row["life_least"]
        if value is not None and (row["leveling"] not in worst or value < worst[row["leveling"]][0]):
            worst[row["leveling"]] = (value, row)
    if not worst:
        return ""
    order = sorted(worst.items(), key=lambda item: item[1][0], reverse=True)
    told = ", ".join(
        f"`{label}` {percent(value)} ({row['workload']}, {row['line_bytes']} bytes, {row['descriptor_writes']})"
        for label, (value, row) in order
    )
    label, (value, _) = order[0]
    extras = (row["extra_writes"] or 0 for row in select(rows, placement="interleaved", leveling=label))
    extra = rounding.percent(max(extras), 2, "low", "%")
    return (
        f"**Over all {len(loads)} workloads and {len(units)} units** the worst life of each leveling with interleaved"
        f" descriptors is: {told}. `{label}` loses least, at no more than {extra} extra writes."
    )


def _written(rows: list[Row], unit: int) -> list[str]:
    found = []
    for load in distinct(rows, "workload"):
        common = {"placement": "interleaved", "leveling": "none", "line_bytes": unit, "workload": load}
        each, rare = (select(rows, descriptor_writes=writes, **common) for writes in ("each", "coalesced"))
        if each and rare and each[0]["data_life"]:
            found.append((rare[0]["data_life"] / each[0]["data_life"], load))
    if not found:
        return []
    most, least = max(found), min(found)
    text = (
        "**Coalescing descriptor writes until the next flush** multiplies what the host can write without"
        f" leveling by {least[0]:.2f} ({least[1]}) to {most[0]:.2f} ({most[1]}), in units of {unit} bytes."
    )
    return [text]


def _placed(rows: list[Row], labels: list[str], loads: list[str], unit: int) -> list[str]:
    better: list[tuple[float, str, str]] = []
    worse: list[tuple[float, str, str]] = []
    unclear = 0
    for label in labels:
        for load in loads:
            common = {"leveling": label, "line_bytes": unit, "descriptor_writes": "each", "workload": load}
            one, other = (select(rows, placement=name, **common) for name in ("interleaved", "linear"))
            if not one or not other or not one[0]["life_least"] or not other[0]["life_least"]:
                continue
            ratio = one[0]["normalized_life"] / other[0]["normalized_life"]
            if one[0]["life_least"] > other[0]["life_most"]:
                better.append((ratio, label, load))
            elif one[0]["life_most"] < other[0]["life_least"]:
                worse.append((ratio, label, load))
            else:
                unclear += 1
    if not better and not worse:
        return []
    pairs = sorted(better + worse)
    low, high = pairs[0], pairs[-1]
    text = (
        f"**Interleaved or in one array** (`linear`): of {len(pairs) + unclear} pairs of lives in units of {unit} bytes"
        f" the interleaved one is longer with every seed in {len(better)} and shorter in {len(worse)}; in {unclear} the"
        f" seeds do not agree or it is equal. Of the clear ones it is between {low[0]:.2f} (`{low[1]}`, {low[2]}) and"
        f" {high[0]:.2f} (`{high[1]}`, {high[2]}) times the linear one."
    )
    return [text]
