# SPDX-License-Identifier: MIT
"""What a study found, in words: every number in them is out of its rows."""

from collections.abc import Iterable
from typing import Any

from .run import Row

SENTENCE = "will wear-leveling properly migrate these 'hot' pages around?"
ASKED_BY = "Ingo Molnar, linux-kernel, 7 May 2015"
PROPERLY = 0.9  # a device lives as long as one without descriptors would, to a tenth


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Rows whose columns are as wanted."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Iterable[Row], column: str) -> list[Any]:
    """The values of a column, each once, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def life(rows: Iterable[Row], **wanted: object) -> float | None:
    """The normalised life of the one row that is as wanted; None where it was not run."""
    found = select(rows, **wanted)
    return found[0]["normalized_life"] if found else None


def percent(share: float | None) -> str:
    """A share of life, rounded down: never in our favour."""
    if share is None:
        return "–"
    value = share * 100
    digits = 0 if value >= 10 else 1 if value >= 1 else 2
    scale = 10**digits
    return f"{int(value * scale) / scale:.{digits}f} %"


def hottest_over_mean(row: Row, kind: str = "all") -> float | None:
    """Of the lines of a kind, against the mean of all lines."""
    if row[f"hottest_{kind}"] is None or not row["mean_all"]:
        return None
    return float(row[f"hottest_{kind}"]) / float(row["mean_all"])


def kept(rows: list[Row], label: str, unit: int, writes: str, workload: str) -> float | None:
    """What descriptors on the medium leave of life: that of interleaved / that without descriptors, same leveling."""
    common = {"leveling": label, "workload": workload}
    there = life(rows, placement="interleaved", line_bytes=unit, descriptor_writes=writes, **common)
    without = [row["normalized_life"] for row in select(rows, placement="none", **common)]
    return there / without[0] if there is not None and without and without[0] else None


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) if names else "none of them"


def of_first_endurance(rows: list[Row]) -> list[Row]:
    """The rows without those that are there for their longer life."""
    return select(rows, endurance=rows[0]["endurance"]) if rows else []


def paragraphs(rows: list[Row]) -> list[str]:
    """The answer.  Empty where the rows that it is made from were not run."""
    every, rows = rows, of_first_endurance(rows)
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
        f"**{verdict}** Under uniform writes, counted in units of {unit} bytes, a device with descriptors on the medium"
        f" lives this share of the life of one without them, under the same leveling: {told}."
        f" By {_listed([label for _, label in good])} they are migrated properly (at least {percent(PROPERLY)})."
    )


def _longer(rows: list[Row]) -> str:
    told = []
    for label in distinct(rows, "leveling"):
        of_label = select(rows, leveling=label, placement="interleaved", descriptor_writes="each", workload="uniform")
        unit = max((row["line_bytes"] for row in of_label), default=0)
        lives = sorted((row["endurance"], row["normalized_life"]) for row in select(of_label, line_bytes=unit))
        if len(lives) > 1 and lives[0][1] < PROPERLY:
            told.append(f"`{label}` {', '.join(percent(value) for _, value in lives)}")
    if not told:
        return ""
    endurances = ", ".join(str(value) for value in sorted({row["endurance"] for row in rows}))
    return (
        f"**What decides is W / ψ**, how often a policy turns in a life. With W = {endurances} and the same intervals"
        f" the lives are: {'; '.join(told)}. A device that endures more is levelled better by the same policy."
    )


def _data(rows: list[Row], units: list[int]) -> str:
    told = []
    for unit in units:
        wanted = {"placement": "interleaved", "descriptor_writes": "each", "workload": "uniform", "line_bytes": unit}
        best = max(select(rows, **wanted), key=lambda row: row["data_life"] or 0, default=None)
        if best and best["data_life"]:
            told.append(f"{percent(best['data_life'])} in units of {unit} bytes (`{best['leveling']}`)")
    if not told:
        return ""
    return (
        "**What descriptors cost in wear is not undone by leveling**: each write of a page is two. Of the ideal life"
        f" data alone get at most {', '.join(told)}."
    )


def _everywhere(rows: list[Row], labels: list[str], loads: list[str], units: list[int]) -> str:
    worst: dict[str, tuple[float, Row]] = {}
    for row in select(rows, placement="interleaved"):
        value = row["normalized_life"]
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
    extra = max(row["extra_writes"] or 0 for row in select(rows, placement="interleaved", leveling=label))
    return (
        f"**Over all {len(loads)} workloads and {len(units)} units** the worst life of each leveling with interleaved"
        f" descriptors is: {told}. `{label}` loses least, at no more than {extra:.2%} extra writes."
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
    for label in labels:
        for load in loads:
            common = {"leveling": label, "line_bytes": unit, "descriptor_writes": "each", "workload": load}
            one, other = life(rows, placement="interleaved", **common), life(rows, placement="linear", **common)
            if one and other:
                (better if one >= other else worse).append((one / other, label, load))
    if not better and not worse:
        return []
    pairs = sorted(better + worse)
    low, high = pairs[0], pairs[-1]
    text = (
        f"**Interleaved or in one array** (`linear`): of {len(pairs)} pairs of lives in units of {unit} bytes the"
        f" interleaved one is longer or equal in {len(better)}. It is between {low[0]:.2f} (`{low[1]}`, {low[2]}) and"
        f" {high[0]:.2f} (`{high[1]}`, {high[2]}) times the linear one."
    )
    return [text]
