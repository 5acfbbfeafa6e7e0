# SPDX-License-Identifier: MIT
"""The words of a comparison of page maps: numbers as people read them, and what stands between the tables."""

from typing import Any

from ..report import words

QUESTION = (
    "Stable, global page-struct descriptors are a given for real RAM, where we allocate a struct page for every page",
    "in nice, large, mostly linear arrays. We'd really need that for pmem too, to get the full power of struct page:",
    "and that means allocating them in nice, large, predictable places - such as on the device itself ...",
)

INTRO = """\
A kernel keeps a descriptor of every page of memory, 64 bytes in Linux: who uses the page, whether it is locked, whether
it is dirty. The mail weighs where the descriptors of a persistent-memory device could be, and sees four problems in
the place it likes best, on the device itself, every 65th page a page of them:

1. what was internal to a kernel becomes a format on a medium;
2. before the device can be used all descriptors have to be made; or fewer, of groups, as the buddy allocator has them;
3. 1.5 % of the space is lost;
4. the pages of descriptors are written far more often than others.

For a device that is served, [converting](converting.md) answers the first, [initialisation](initialisation.md) the
second, [capacity](capacity.md) the third and [the answer](the-answer.md) the fourth. This page measures the second and
the third for each place that descriptors could be, in memory that stands for the medium, by one thread, without wear
or checksums: each proposal of that thread is a *page map*, which says where the
descriptor of a page is, how it is made, and who shares it; all are built, and measured against each other with the
same pages, in the same rounds. What matters most to the mail comes first in the table: "the main value of struct page
is if everyone on the system sees the same struct page for the same pfn".""".splitlines()

SERVING = {
    "stress": "Mappings that alias each other, and I/Os, all at work on the same pages, one step at a time, in an order"
    " that a seeded scheduler draws. Each asks the map for the page's descriptor, holds a reference, takes the lock bit"
    " in what it got, adds one to the contents of the page, and sets the dirty bit; somebody moves pages that seem to"
    " have no references, and an fsync writes pages that seem to be dirty. The verdict is what came of it: **yes** if"
    " no two saw different descriptors of a page at one moment, no addition was lost and no page moved while in use."
    " A dirty bit is forgotten where the descriptor goes with its last user; a kernel keeps a reference to such pages.",
    "device": "A server of blocks is asked for pages and is not told who maps what; and the descriptor of a page has to"
    " tell, later and after a power cut too, whether the page's data is what was written: it has the checksum.",
}

# Of each map: the options of `pmem-nbd create` that it is behind, or "", and why.
SERVES = {
    "interleaved": ("`--placement interleaved`", "the mail's own, and the default"),
    "linear_dev": ("`--placement linear`", "Linux's layout on the medium (fsdax, `--map=dev`)"),
    "linear_mem": ("`--placement ram`", "Linux's `--map=mem`: made again whenever the device is opened"),
    "hotplug_section": (
        "`--initialise section`",
        "descriptors stay on the medium and are made 32768 at a time, before the first write there; none is taken away",
    ),
    "hotplug_subsection": ("`--initialise subsection`", "the same, 512 at a time"),
    "buddy": (
        "`--initialise buddy`",
        "descriptors stay on the medium, and runs of pages have one until they are written",
    ),
    "pfn": ("`--placement none`", "no descriptors: data that was damaged is read as it is"),
    "temporary": ("", "gone when the request is answered: no later one could be told anything"),
    "mmap_time": ("", "lives as long as a mapping, and mappings are not seen by a server of blocks"),
    "interval_tree": (
        "",
        "is made of the extents that are mapped, which are not seen either; and would have to be on the medium",
    ),
    "two_level": ("", "one descriptor for 512 pages has room for one checksum"),
}

MODES = {
    "where": "Only where it is, one lookup after the other without waiting (throughput)",
    "latency": "Only where it is, each lookup waiting for the one before (latency)",
    "read": "Where it is, and a word of it read, each lookup waiting for the one before",
}

_HOW = """\
* A lookup is compiled code that takes a page number to the address of its descriptor, while somebody holds the page.
  The time is the processor's for the whole loop, reading the page numbers from an array included; *the loop alone* does
  the same without a lookup, and is not subtracted. Each figure is a median over rounds in which all maps take turns,
  each on memory of its own that is made anew, so that what disturbs the machine disturbs all of them alike. Of a
  round's passes over the pages the first is not counted. The sum of all addresses comes out of the loop, so that no
  lookup can be left out; where lookups wait for each other, the place of the next page number depends on what the last
  one found. Where they do not, and arithmetic is enough, the compiler has the processor work on several pages at once.
* *Sequential*: adjacent pages of one extent. *Random*: pages at random of 16 extents of 128 MiB. *Fragmented*: pages at
  random of a file whose extents are those of a used filesystem: a device filled with files of log-normal sizes of up to
  64 pages, a random half of them deleted, the file written to the holes in order, in 64 zones all over the device; at
  most EXTENTS extents. `tests/test_pagebench.py` does the same to a real ext4 and compares the holes.
* Memory is reserved for all of the device and touched where pages are. What stands for the medium is memory too: the
  figures are about time, bytes and stores. Bytes are what each map counts as its own.
* ~ marks what was worked out, not run: the pages that were brought up, scaled to all pages.
* Not measured: the kernel's own locks, several processors at once, NUMA, and other machines."""


def how(extents_max: int) -> list[str]:
    """How it was measured, in lines."""
    return _HOW.replace("EXTENTS", number(extents_max)).splitlines()


VERDICTS = {"same": "yes", "differ": "**no**", "none": "none to see"}


def number(value: float | None) -> str:
    """Three significant digits, and no fraction from a hundred on."""
    return words.number(value if value is None or value < 100 else round(value), digits=3)


def bytes_of(count: float) -> str:
    """A number of bytes in one unit; 0 is 0."""
    return words.size(int(count)).partition(" (")[0] if count else "0"


def percent(share: float) -> str:
    """A share of the medium; 0 is 0."""
    return f"{share * 100:.4f} %" if share else "0"


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
