# SPDX-License-Identifier: MIT
"""The words of a comparison of page maps: numbers as people read them, and what stands between the tables."""

from typing import Any

from ..report import words

QUESTION = (
    "Stable, global page-struct descriptors are a given for real RAM, where we allocate a struct page for every page in",
    "nice, large, mostly linear arrays. We'd really need that for pmem too, to get the full power of struct page: and",
    "that means allocating them in nice, large, predictable places - such as on the device itself ...",
)

INTRO = """\
A kernel keeps a descriptor of every page of memory, 64 bytes in Linux: who uses the page, whether it is locked, whether
it is dirty. The mail weighs where the descriptors of a persistent-memory device could be, and sees four problems in
the place it likes best, on the device itself, every 65th page a page of them:

1. what was internal to a kernel becomes a format on a medium;
2. before the device can be used all descriptors have to be made, or made in parts, as the buddy allocator divides memory;
3. 1.5 % of the space is lost;
4. the pages of descriptors are written far more often than others.

The [media format](media-format.md) answers the first and [the answer](the-answer.md) the fourth. This page is about the
second and the third, and about the alternatives: each proposal of that thread is a *page map*, which says where the
descriptor of a page is, how it is made, and who shares it; all are built, and measured against each other with the
same pages, in the same rounds. What matters most to the mail comes first in the table: "the main value of struct page
is if everyone on the system sees the same struct page for the same pfn".""".splitlines()

SERVING = {
    "stress": "Mappings that alias each other, and I/Os, all at work on the same pages, one step at a time in an order that"
    " a seeded scheduler draws. Each asks the map for the page's descriptor by its own handle, takes a reference and the"
    " lock bit in what it gets, adds one to the contents of the page, and sets the dirty bit. Another moves pages that"
    " seem to have no references, and an fsync writes pages that seem to be dirty. The verdict is what came of it:"
    " **yes** if nobody saw another descriptor than the others and nothing was lost.",
    "device": "A served device needs the descriptor of every page, at any time, in a place that a power cut does not"
    " take away or that can be made again.",
}

MODES = {
    "where": "Only where it is, one lookup after the other without waiting (throughput)",
    "latency": "Only where it is, each lookup waiting for the one before (latency)",
    "read": "Where it is and its first word read, each lookup waiting for the one before",
}

HOW = """\
* A lookup is compiled code that takes a page number to the address of its descriptor. The time is that of the whole
  loop, reading the page numbers from an array included; *the loop alone* does the same without a lookup, and is not
  subtracted. Each figure is a median over rounds in which all maps take turns, so that what disturbs the machine
  disturbs all of them alike. The sum of all addresses comes out of the loop, so that no lookup can be left out, and
  where lookups wait for each other the next page number depends on the last address.
* *Sequential* and *random* are pages of a device that is mapped as one extent. *Fragmented* are pages at random of a
  file whose extents are those of a used filesystem: a device filled with files of log-normal sizes, a random half of
  them deleted, the file written to the holes in order. `tests/test_pagebench.py` does the same to a real ext4 and
  compares the holes. A file of more than a million extents is cut off there.
* Memory for descriptors is reserved for the whole device and touched where pages are. ~ marks what was not run but worked
  out: from what the map does for one page, section or group, which was run, times how many there are.
* Not measured: locks of the kernel's own, NUMA, and processors other than this one.""".splitlines()

VERDICTS = {"same": "yes", "differ": "**no**", "none": "none to see"}


def number(value: float | None) -> str:
    """At most three significant digits, but whole numbers as they are."""
    return words.number(value, digits=3)


def bytes_of(count: float) -> str:
    """A number of bytes in one unit; 0 is 0."""
    return words.size(int(count)).partition(" (")[0] if count else "0"


def percent(share: float) -> str:
    """A share of the medium; 0 is 0."""
    return f"{share * 100:.3f} %" if share else "0"


def seconds(value: float) -> str:
    """A time, in the unit that suits it."""
    for unit, size in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * size >= 1:
            return f"{number(value * size)} {unit}"
    return f"{number(value * 1e9)} ns" if value else "0"


def measured(text: str, was: bool) -> str:
    """Marked where it was worked out."""
    return text if was else f"~{text}"


def verdict(found: dict[str, Any]) -> str:
    """Of a stress, in a word."""
    return VERDICTS[found["verdict"]]
