# SPDX-License-Identifier: MIT
"""The page of a comparison of page maps: tables out of its result, and what they answer."""

import re
from collections.abc import Iterable
from typing import Any

from ..study.answer import ASKED_BY
from . import answer
from .measure import IN_FLIGHT, PATTERNS
from .words import (
    INTRO,
    MODES,
    QUESTION,
    SERVES,
    SERVING,
    bytes_of,
    how,
    measured,
    number,
    percent,
    seconds,
    verdict,
)

Result = dict[str, Any]
Row = dict[str, Any]


def table(head: list[str], rows: Iterable[list[str]], text: int = 1) -> list[str]:
    """A table of Markdown; the first `text` columns are text, the others stand to the right."""
    return [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join([*["---"] * text, *["---:"] * (len(head) - text)]) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def of_size(result: Result, size: int) -> list[Row]:
    """The rows of one size, in the order of the maps."""
    return [row for row in result["rows"] if row["size"] == size]


def _ns(row: Row, pattern: str, mode: str) -> str:
    found = row["lookups"][pattern][mode]
    return number(found["ns"]) if found else "–"


OVERVIEW = ["map", "one descriptor a page, for all", "ns a lookup, random", "fragmented", "RAM, idle"]
OVERVIEW += ["RAM, file mapped", "of the medium", "written before first use", "takes", "written for a first I/O"]
OVERVIEW += ["descriptor writes an I/O"]


def overview(result: Result) -> list[list[str]]:
    """Each map in one line, at the largest size; its columns are OVERVIEW."""
    lines = []
    for row in of_size(result, max(result["sizes"])):
        first, place = row["initialise"], row["space"]
        lines.append(
            [
                f"`{row['map']}`",
                verdict(result["sharing"][row["map"]]),
                _ns(row, "random", "latency"),
                _ns(row, "fragmented", "latency"),
                bytes_of(place["ram_bytes"]),
                bytes_of(place["mapped_ram_bytes"]),
                percent(place["medium_share"]),
                measured(bytes_of(first["bytes"]), first["measured"]),
                measured(seconds(first["seconds"]), first["measured"]),
                bytes_of(row["first_io"]["bytes"]),
                number(row["io"]["descriptor_writes"]),
            ]
        )
    return lines


def maps(result: Result) -> list[str]:
    """The overview, and what each map is."""
    mapping = result["rows"][-1]["mapping"]
    about = (
        f"Lookups wait for each other. The file that is mapped has {number(mapping['pages'])} pages in"
        f" {number(mapping['extents'])} extents. ~ is worked out from a part that was run."
    )
    kinds = [[f"`{name}`", known["title"], known["source"]] for name, known in result["maps"].items()]
    return [
        f"## All maps, a device of {bytes_of(max(result['sizes']))}",
        "",
        about,
        "",
        *table(OVERVIEW, overview(result)),
        *table(["map", "what it is", "whose idea"], kinds, 3),
    ]


def sharing(result: Result) -> list[str]:
    """What the stress counted."""
    lines = []
    for name, found in result["sharing"].items():
        counts = ("shared", "differed", "without", "updates", "lost_updates", "moved_in_use", "forgotten")
        lines.append([f"`{name}`", verdict(found), *(number(found[count]) for count in counts)])
    head = ["map", "verdict", "pages with two at work", "two descriptors", "no descriptor", "updates", "lost updates"]
    head += ["moved in use", "dirty bits forgotten"]
    return ["## Does everybody see the same descriptor?", "", SERVING["stress"], "", *table(head, lines)]


def lookups(result: Result) -> list[str]:
    """Nanoseconds, a table a mode."""
    lines = ["## Nanoseconds a lookup", ""]
    for mode, about in MODES.items():
        head = ["map"]
        for size in result["sizes"]:
            head += [f"{bytes_of(size)}, {pattern}" for pattern in PATTERNS]
        found = []
        for name in result["maps"]:
            of_map = [row for size in result["sizes"] for row in of_size(result, size) if row["map"] == name]
            found.append([f"`{name}`", *(_ns(row, pattern, mode) for row in of_map for pattern in PATTERNS)])
        found.append(["*the loop alone*", *(number(result["loop"][mode]) for _ in head[1:])])
        lines += [f"### {about}", "", *table(head, found)]
    return lines


def space(result: Result) -> list[str]:
    """RAM and medium by size."""
    lines = []
    for row in result["rows"]:
        place, mapping = row["space"], row["mapping"]
        more = place["mapped_ram_bytes"] - place["ram_bytes"]
        lines.append(
            [
                f"`{row['map']}`",
                bytes_of(row["size"]),
                bytes_of(place["ram_bytes"]),
                bytes_of(place["mapped_ram_bytes"]),
                number(more / mapping["pages"]),
                bytes_of(place["medium_bytes"]),
                percent(place["medium_share"]),
            ]
        )
    head = ["map", "device", "RAM, idle", "RAM, file mapped", "more, bytes a mapped page", "of the medium", "share"]
    return ["## Space", "", *table(head, lines)]


def initialisation(result: Result) -> list[str]:
    """What has to be made before the first use, and for a first I/O."""
    lines = []
    for row in result["rows"]:
        whole, first = row["initialise"], row["first_io"]
        lines.append(
            [
                f"`{row['map']}`",
                bytes_of(row["size"]),
                number(whole["pages"]),
                measured(number(whole["descriptors"]), whole["measured"]),
                measured(bytes_of(whole["bytes"]), whole["measured"]),
                measured(seconds(whole["seconds"]), whole["measured"]),
                number(first["descriptors"]),
                bytes_of(first["bytes"]),
                bytes_of(first["ram_bytes"]),
                seconds(first["seconds"]),
            ]
        )
    head = ["map", "device", "pages brought up", "descriptors made", "bytes written", "takes"]
    head += ["for a first I/O: descriptors", "bytes written", "RAM", "takes"]
    about = (
        "Before the device can be used; and then for the first I/O on a page, each on a page far from the others,"
        f" {number(IN_FLIGHT)} in flight at once: the mean."
    )
    return ["## Initialisation, and a first I/O", "", about, "", *table(head, lines)]


def mapping(result: Result) -> list[str]:
    """What mmap() and munmap() of a fragmented file cost, and an I/O on one of its pages."""
    lines = []
    for row in result["rows"]:
        cost, io = row["mapping"], row["io"]
        ways = [cost[f"{way}_ns_{of}"] for way in ("map", "unmap") for of in ("extent", "page")]
        counts = [number(cost["extents"]), number(cost["pages"])]
        of_io = [number(io["ns"]), number(io["descriptor_writes"])]
        lines.append([f"`{row['map']}`", bytes_of(row["size"]), *counts, *map(number, ways), *of_io])
    head = ["map", "device", "extents", "pages", "map, ns an extent", "ns a page", "unmap, ns an extent", "ns a page"]
    head += ["an I/O, ns", "descriptor writes"]
    about = (
        "Nanoseconds to map and unmap the fragmented file, and to begin and end an I/O on a page of it whose descriptor"
        " was used before; and how many stores to descriptors on the medium that makes."
    )
    return ["## Map and unmap a fragmented file, and I/O on it", "", about, "", *table(head, lines)]


def claims(result: Result) -> list[str]:
    """The mail's figures beside ours."""
    lines = [[one["claim"], one["claimed"], one["measured"], one["how"]] for one in result["claims"]]
    head = ["the mail", "says", "measured", "how"]
    return ["## What the mail says, and what was measured", "", *table(head, lines, 4)]


def serving(result: Result) -> list[str]:
    """Which maps a served device can have, and why the others are not offered."""
    lines = []
    for name in result["maps"]:
        option, why = SERVES.get(name, ("", "–"))
        lines.append([f"`{name}`", option or "no", why])
    rows = table(["map", "`pmem-nbd create`", "why"], lines, 3)
    return ["## Which of them can serve a device", "", SERVING["device"], "", *rows]


def as_markdown(result: Result, figures: Iterable[tuple[str, str, str]] = ()) -> str:
    """The comparison as a page.  figures: path, alternative text and caption of each."""
    machine = "; ".join(f"{key} {value}" for key, value in result["machine"].items())
    parts = [
        "# Where is the descriptor of a page?",
        "",
        *(f"> {line}".rstrip() for line in (*QUESTION, "", f"— {ASKED_BY}")),
        "",
        f"Made by `{result['command']}` in {result['seconds']:.0f} s, compiling took {result['compile_seconds']:.0f}.",
        f"Parameters: seed {result['seed']}; medians of {result['rounds']} rounds; for each size and pattern",
        f"{number(result['touched'])} pages are looked up, the same for all maps.",
        f"Machine: {machine}. Date: {result['date']}.",
        "",
        *INTRO,
        "",
        *(line for text in answer.paragraphs(result) for line in (text, "")),
        *maps(result),
    ]
    for path, alternative, caption in figures:
        parts += [f"![{alternative}]({path})", "", f"*{caption}*", ""]
    for section in (claims, sharing, lookups, space, initialisation, mapping, serving):
        parts += section(result)
    parts += ["## How it was measured", "", *how(result["extents_max"])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"
