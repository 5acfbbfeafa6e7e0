# SPDX-License-Identifier: MIT
"""What a comparison of page maps found, in sentences: every number in them is out of its result."""

from typing import Any

from .words import bytes_of, measured, number, percent, seconds

Result = dict[str, Any]
Row = dict[str, Any]


def rows_of_largest(result: Result) -> dict[str, Row]:
    """The rows of the largest size, by map."""
    size = max(result["sizes"])
    return {row["map"]: row for row in result["rows"] if row["size"] == size}


def ratio(one: Row, other: Row, pattern: str, mode: str) -> float | None:
    """How many times as long a lookup takes in one row as in another; None where one finds nothing."""
    first, second = (row["lookups"][pattern][mode] for row in (one, other))
    return first["ns"] / second["ns"] if first and second else None


def listed(names: list[str]) -> str:
    """Names of maps."""
    return ", ".join(f"`{name}`" for name in names)


def _sharing(result: Result) -> str:
    by_verdict: dict[str, list[str]] = {"same": [], "differ": [], "none": []}
    for name, found in result["sharing"].items():
        by_verdict[found["verdict"]].append(name)
    parts = []
    if by_verdict["same"]:
        parts.append(f"Yes with {listed(by_verdict['same'])}.")
    for name in by_verdict["differ"]:
        found = {key: number(value) for key, value in result["sharing"][name].items() if key != "verdict"}
        parts.append(
            f"No with `{name}`: of the {found['shared']} pages that two were at work on {found['differed']} had two"
            f" descriptors at one moment; {found['lost_updates']} updates were lost, for each saw a lock of its own,"
            f" and {found['moved_in_use']} times a page was moved that somebody held."
        )
    for name in by_verdict["none"]:
        lost = result["sharing"][name]["lost_updates"]
        parts.append(f"With `{name}` there is nothing to agree on: {number(lost)} updates were lost.")
    return f"**Does everybody see the same descriptor?** {' '.join(parts)}"


def _lookups(result: Result) -> str:
    rows = rows_of_largest(result)
    modulo, tree = rows.get("interleaved"), rows.get("interval_tree")
    if modulo is None:
        return ""
    ns = modulo["lookups"]["fragmented"]
    text = (
        "**What does the modulo cost?** Arithmetic: one lookup after the other, each waiting for the one before, takes"
        f" {number(ns['latency']['ns'])} ns, of which the loop alone is {number(result['loop']['latency'])}."
    )
    times = ratio(tree, modulo, "fragmented", "latency") if tree else None
    if tree is None or times is None:
        return text
    found, read = tree["lookups"]["fragmented"], ratio(tree, modulo, "fragmented", "read")
    return (
        f"{text} An interval tree with {number(tree['figures'].get('nodes'))} nodes takes"
        f" {number(found['latency']['ns'])} ns, {times:.0f} times as long, for"
        f" {number(tree['figures'].get('depth_mean'))} nodes from the root to the mean one. Whoever goes on to read the"
        f" descriptor waits for it with either, since it is as far away: {number(ns['read']['ns'])} ns by modulo,"
        f" {number(found['read']['ns'])} ns by the tree, {read:.1f} times."
    )


def _space(result: Result) -> str:
    rows = rows_of_largest(result)
    on_medium = [name for name, row in rows.items() if row["space"]["medium_bytes"]]
    parts = []
    if on_medium:
        share = rows[on_medium[0]]["space"]["medium_share"]
        parts.append(f"{percent(share)} of the medium with {listed(on_medium)}.")
        if "linear_dev" in on_medium:
            parts.append(f"Linux's own array describes the pages that it lies in as well: {percent(1 / 64)}.")
    for name in ("linear_mem", "interval_tree"):
        if name in rows:
            row = rows[name]
            more = (row["space"]["mapped_ram_bytes"] - row["space"]["ram_bytes"]) / row["mapping"]["pages"]
            each = f"and {number(more)} bytes for each page that is mapped" if more else "whatever is mapped"
            parts.append(f"`{name}` takes {bytes_of(row['space']['ram_bytes'])} of RAM, {each}.")
    return f"**What space does it take?** {' '.join(parts)}" if parts else ""


def _initialisation(result: Result) -> str:
    rows = rows_of_largest(result)
    parts = []
    for name in ("interleaved", "linear_mem", "two_level", "buddy"):
        if name in rows:
            first = rows[name]["initialise"]
            was = first["measured"]
            parts.append(
                f"`{name}` {measured(number(first['descriptors']), was)}"
                f" descriptor{'' if first['descriptors'] == 1 else 's'} in"
                f" {measured(seconds(first['seconds']), was)}"
            )
    lazy = [name for name, row in rows.items() if row["initialise"]["descriptors"] == 0]
    if lazy:
        parts.append(f"{listed(lazy)} none")
    size = bytes_of(max(result["sizes"]))
    return f"**What has to be made before {size} can be used?** {'; '.join(parts)}." if parts else ""


def paragraphs(result: Result) -> list[str]:
    """The answers; those whose maps were not run are left out."""
    found = [_sharing(result), _lookups(result), _space(result), _initialisation(result)]
    return [text for text in found if text]
