# SPDX-License-Identifier: MIT
"""What the mail of 7 May 2015 says in figures, beside what was measured here."""

from typing import Any

from ..layout import DESCRIPTOR, FRAMES_AT, PAGE_BYTES
from ..placement import interleaved, linear
from .answer import listed, ratio, rows_of_largest
from .words import bytes_of, number, percent

Result = dict[str, Any]
Claim = dict[str, Any]

CACHEMISS_RATIO = 50  # what "cachemiss country" is taken for: so many times a lookup of the modulo's


def _claim(claim: str, claimed: str, measured: str, how: str, **values: Any) -> Claim:
    return {"claim": claim, "claimed": claimed, "measured": measured, "how": how, "values": values}


def _lost(result: Result) -> list[Claim]:
    size = max(result["sizes"]) - FRAMES_AT
    shares = {}
    for module in (interleaved, linear):
        pages = module.plan(size, DESCRIPTOR.itemsize)[1]
        shares[module.__name__.rpartition(".")[2]] = 1 - pages * PAGE_BYTES / size
    return [
        _claim(
            "space lost",
            "1.5 %",
            f"interleaved {percent(shares['interleaved'])}, linear {percent(shares['linear'])}",
            f"what `create` takes of {bytes_of(max(result['sizes']))}: 1/65; and in Linux's own layout, which"
            " has descriptors of its descriptors' pages too and begins its data at a multiple of 2 MiB, 1/64",
            **shares,
        )
    ]


def _tree(result: Result) -> list[Claim]:
    tree, modulo = (rows_of_largest(result).get(name) for name in ("interval_tree", "interleaved"))
    if tree is None:
        return []
    found = []
    figures, mapping = tree["figures"], tree["mapping"]
    nodes, depth = figures.get("nodes"), figures.get("depth_mean")
    found.append(
        _claim(
            "a continuous mmap() of a fragmented file explodes the rbtree",
            "1 million nodes",
            f"{number(nodes)} nodes",
            f"one mapping of {number(mapping['pages'])} pages in {number(mapping['extents'])} extents",
            nodes=nodes,
            extents=mapping["extents"],
        )
    )
    found.append(
        _claim(
            "its average depth",
            "20",
            number(depth),
            f"mean over all nodes, the root being 1; the deepest is at {number(figures.get('depth_max'))}",
            depth_mean=depth,
            depth_max=figures.get("depth_max"),
        )
    )
    if modulo is None:
        return found
    parts, ratios = [], {}
    for mode, text in (
        ("latency", "latency"),
        ("where", "throughput"),
        ("read", "latency up to a word of the descriptor"),
    ):
        times = ratio(tree, modulo, "fragmented", mode)
        if times:
            ratios[mode] = times
            of_tree, of_modulo = (number(row["lookups"]["fragmented"][mode]["ns"]) for row in (tree, modulo))
            parts.append(f"{text} {of_tree} ns to {of_modulo} ns, {times:.1f} times")
    found.append(
        _claim(
            "“cachemiss country for even simple lookups”",
            f"taken for {CACHEMISS_RATIO} times the modulo's",
            "; ".join(parts) or "–",
            f"random pages of that file, {bytes_of(max(result['sizes']))}, {number(result['touched'])} lookups a round",
            **ratios,
        )
    )
    return found


def _hotplug(result: Result) -> list[Claim]:
    found = []
    for name, what, claimed in (
        ("hotplug_section", "a page of I/O, by hotplug of a memory section of 128 MiB", "2 MiB"),
        ("hotplug_subsection", "the same by sub-sections of 2 MiB (Linux 5.3)", "–"),
        ("temporary", "a page of I/O, descriptors in a page of their own", "4096 bytes"),
    ):
        row = rows_of_largest(result).get(name)
        if row is not None:
            io = row["first_io"]
            found.append(
                _claim(
                    what,
                    claimed,
                    f"{bytes_of(io['ram_bytes'])} of memory, descriptors: {number(io['descriptors'])}",
                    f"`{name}`, I/Os in flight on pages far from each other",
                    ram_bytes=io["ram_bytes"],
                    descriptors=io["descriptors"],
                )
            )
    return found


def _bootup(result: Result) -> list[Claim]:
    every, buddy = (rows_of_largest(result).get(name) for name in ("interleaved", "buddy"))
    if every is None or buddy is None:
        return []
    one, other = every["initialise"], buddy["initialise"]
    mark = "" if one["measured"] else "~"
    return [
        _claim(
            "on bootup all the page structs have to be initialised, probably in a hierarchical way",
            "power-of-two groups",
            f"{mark}{number(one['descriptors'])} descriptors, {mark}{bytes_of(one['bytes'])} written; in groups"
            f" {number(other['descriptors'])}, {bytes_of(other['bytes'])}",
            f"`interleaved` against `buddy`, {bytes_of(max(result['sizes']))}",
            all=one["descriptors"],
            groups=other["descriptors"],
        )
    ]


def _shared(result: Result) -> list[Claim]:
    verdicts = {name: found["verdict"] for name, found in result["sharing"].items()}
    if "temporary" not in verdicts:
        return []
    found = result["sharing"]["temporary"]
    others = [name for name, verdict in verdicts.items() if verdict != "same" and name != "temporary"]
    return [
        _claim(
            "with temporary ones “most of the synchronization properties are lost”",
            "lost",
            f"{number(found['differed'])} of {number(found['shared'])} pages seen by two descriptors at a moment,"
            f" {number(found['lost_updates'])} of {number(found['updates'])} updates lost",
            f"`temporary` in the stress, and of the others it fails {listed(others) or 'none'}",
            **verdicts,
        )
    ]


def claims(result: Result) -> list[Claim]:
    """Each claim with what is claimed, what was measured, and how; those whose maps were not run are left out."""
    return [*_lost(result), *_bootup(result), *_tree(result), *_hotplug(result), *_shared(result)]
