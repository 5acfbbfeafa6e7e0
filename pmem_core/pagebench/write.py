# SPDX-License-Identifier: MIT
"""The page of a comparison of page maps: tables out of its result, and what they answer."""

import re
from collections.abc import Iterable
from typing import Any

from ..study.answer import ASKED_BY
from .words import (
    HOW,
    INTRO,
    MODES,
    QUESTION,
    SERVING,
    bytes_of,
    measured,
    number,
    percent,
    seconds,
    verdict,
)

Result = dict[str, Any]
Row = dict[str, Any]


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A table of Markdown; the first column is text, the others stand to the right."""
    return [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---", *["---:"] * (len(head) - 1)]) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def of_size(result: Result, size: int) -> list[Row]:
    """The rows of one size, in the order of the maps."""
    return [row for row in result["rows"] if row["size"] == size]


def _ns(row: Row, pattern: str, mode: str) -> str:
    found = row["lookups"].get(pattern)
    return number(found[mode]["ns"]) if found else "–"


def overview(result: Result) -> list[str]:
    """Each map in one line, at the largest size."""
    size = max(result["sizes"])
    lines = []
    for row in of_size(result, size):
        known = result["maps"][row["map"]]
        lines.append(
            [
                f"`{row['map']}`",
                verdict(result["sharing"][row["map"]]),
                _ns(row, "random", "latency"),
                _ns(row, "fragmented", "latency"),
                measured(bytes_of(row["space"]["ram_bytes"]), row["space"]["measured"]),
                measured(percent(row["space"]["medium_share"]), True),
                measured(bytes_of(row["initialise"]["bytes"]), row["initialise"]["measured"]),
                bytes_of(row["first_page"]["bytes"]),
                known["serves"] or "no",
            ]
        )
    head = ["map", "one descriptor a page, for all", "ns, random", "ns, fragmented", "RAM, all mapped", "of the medium"]
    head += ["written before first use", "written for one page", "`create`"]
    return [f"## All maps, a device of {bytes_of(size)}", "", *table(head, lines)]


def sharing(result: Result) -> list[str]:
    """What the stress counted."""
    lines = []
    for name, found in result["sharing"].items():
        counts = ("shared", "differed", "without", "updates", "lost_updates", "moved_in_use", "never_written")
        lines.append([f"`{name}`", verdict(found), *(number(found[count]) for count in counts)])
    head = ["map", "verdict", "pages with two at work", "two descriptors", "no descriptor", "updates", "lost updates"]
    head += ["moved in use", "dirty and not written"]
    return ["## Does everybody see the same descriptor?", "", SERVING["stress"], "", *table(head, lines)]


def lookups(result: Result) -> list[str]:
    """Nanoseconds, a table a mode."""
    patterns = ("sequential", "random", "fragmented")
    lines = ["## Nanoseconds a lookup", ""]
    for mode, about in MODES.items():
        head = ["map"]
        for size in result["sizes"]:
            head += [f"{bytes_of(size)}, {pattern}" for pattern in patterns]
        found = []
        for name in result["maps"]:
            of_map = [row for size in result["sizes"] for row in of_size(result, size) if row["map"] == name]
            found.append([f"`{name}`", *(_ns(row, pattern, mode) for row in of_map for pattern in patterns)])
        found.append(["*the loop alone*", *(number(result["loop"][mode]) for _ in head[1:])])
        lines += [f"### {about}", "", *table(head, found)]
    return lines


def space(result: Result) -> list[str]:
    """RAM and medium by size."""
    head, found = ["map"], []
    for size in result["sizes"]:
        head += [f"RAM, {bytes_of(size)}", "medium", "share"]
    for name in result["maps"]:
        line = [f"`{name}`"]
        for size in result["sizes"]:
            row = next(row for row in of_size(result, size) if row["map"] == name)["space"]
            line += [measured(bytes_of(row["ram_bytes"]), row["measured"]), bytes_of(row["medium_bytes"])]
            line.append(percent(row["medium_share"]))
        found.append(line)
    return ["## Space, with all of the device mapped", "", *table(head, found)]


def initialisation(result: Result) -> list[str]:
    """What has to be made before the first use, and for the first page."""
    lines = []
    for row in result["rows"]:
        whole, first = row["initialise"], row["first_page"]
        lines.append(
            [
                f"`{row['map']}`",
                bytes_of(row["size"]),
                measured(number(whole["descriptors"]), whole["measured"]),
                measured(bytes_of(whole["bytes"]), whole["measured"]),
                measured(seconds(whole["seconds"]), whole["measured"]),
                number(first["descriptors"]),
                bytes_of(first["bytes"]),
                seconds(first["seconds"]),
            ]
        )
    head = ["map", "device", "descriptors made", "bytes", "time", "for one page", "bytes", "time"]
    return ["## Initialisation, and the first page", "", *table(head, lines)]


def mapping(result: Result) -> list[str]:
    """What mmap() and munmap() of a fragmented file cost."""
    lines = []
    for row in result["rows"]:
        cost = row["mapping"]
        if cost is None:
            continue
        lines.append(
            [
                f"`{row['map']}`",
                bytes_of(row["size"]),
                number(cost["extents"]),
                number(cost["pages"]),
                number(cost["map_ns_extent"]),
                number(cost["map_ns_page"]),
                number(cost["unmap_ns_extent"]),
                number(cost["unmap_ns_page"]),
            ]
        )
    head = ["map", "device", "extents", "pages", "map, ns an extent", "ns a page", "unmap, ns an extent", "ns a page"]
    return ["## Map and unmap a fragmented file", "", *table(head, lines)]


def ios(result: Result) -> list[str]:
    """What an I/O costs."""
    lines = []
    for row in of_size(result, max(result["sizes"])):
        io = row["io"]
        lines.append(
            [
                f"`{row['map']}`",
                number(io["ns"]),
                number(io["descriptor_writes"]),
                bytes_of(io["ram_bytes_outstanding"]),
            ]
        )
    head = ["map", "ns to begin and end", "descriptors written to the medium", "RAM for each page in flight"]
    size = bytes_of(max(result["sizes"]))
    return [f"## One I/O of a page, a device of {size}", "", *table(head, lines)]


def claims(result: Result) -> list[str]:
    """The mail's figures beside ours."""
    lines = [[one["claim"], one["claimed"], one["measured"], one["how"]] for one in result["claims"]]
    head = ["the mail", "says", "measured", "how"]
    return ["## What the mail says, and what was measured", "", *table(head, lines)]


def serving(result: Result) -> list[str]:
    """Which maps a served device can have, and why the others are not offered."""
    lines = []
    for name, known in result["maps"].items():
        lines.append([f"`{name}`", known["serves"] or "–", known["why"]])
    rows = table(["map", "`pmem-nbd create`", "why"], lines)
    rows[1] = "| --- | --- | --- |"
    return ["## Which of them can serve a device", "", SERVING["device"], "", *rows]


def as_markdown(result: Result, figures: Iterable[tuple[str, str, str]] = ()) -> str:
    """The comparison as a page.  figures: path, alternative text and caption of each."""
    machine = "; ".join(f"{key} {value}" for key, value in result["machine"].items())
    parts = [
        "# Where is the descriptor of a page?",
        "",
        *(f"> {line}".rstrip() for line in (*QUESTION, "", f"— {ASKED_BY}")),
        "",
        f"Made by `{result['command']}`, in {result['seconds']:.0f} s, of which {result['compile_seconds']:.0f} went into"
        " compiling.",
        f"Parameters: seed {result['seed']}, medians of {result['rounds']} rounds, {number(result['touched'])} pages"
        " touched for each size and pattern, the same for all maps.",
        f"Machine: {machine}. Date: {result['date']}.",
        "",
        *INTRO,
        "",
        *overview(result),
    ]
    for path, alternative, caption in figures:
        parts += [f"![{alternative}]({path})", "", f"*{caption}*", ""]
    for section in (claims, sharing, lookups, space, initialisation, mapping, ios, serving):
        parts += section(result)
    parts += ["## How it was measured", "", *HOW]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"
