# SPDX-License-Identifier: MIT
"""What is measured of one page map on one device: a cell, a first use, a first I/O."""

import dataclasses
import time
from typing import Any

import numpy as np

from .. import maploops
from . import extents as files
from .subject import Subject

PATTERNS = ("sequential", "random", "fragmented")
MODES = {"where": maploops.WHERE, "latency": maploops.LATENCY, "read": maploops.READ}
FEW, FEW_PAGES = 16, 1 << 15  # extents of the file whose pages are read at random: 128 MiB each
IO_NS = 20_000_000  # I/Os are timed until they took this long
IN_FLIGHT = 64  # I/Os on pages far from each other, all at once
BRING_UP_PAGES = 1 << 20  # at a time, and twice as many as before while that writes little
BRING_UP_LITTLE = 1 << 20
BRING_UP_AT_ONCE = 1 << 10  # a first part that writes no more says that all can be brought up together
BRING_UP_BYTES = 512 << 20  # after so many bytes written the rest is worked out

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Extents of a file, int64[n, 2], and which of its pages are looked up, int64[m], in order."""

    name: str
    extents: np.ndarray
    pages: np.ndarray


def pattern(name: str, page_count: int, touched: int, extents_max: int, seed: int) -> Pattern:
    """One of PATTERNS on a device of `page_count` pages; `touched`: how many page numbers, at most."""
    generator = np.random.default_rng(seed + 1)
    if name == "sequential":
        count = min(touched, page_count)
        first = (page_count - count) // 2
        return Pattern(name, np.array([[first, count]], np.int64), np.arange(first, first + count, dtype=np.int64))
    if name == "random":
        table = files.few(page_count, FEW, FEW_PAGES, seed)
    else:
        table = files.fragmented(page_count, extents_max, seed)
    offsets = generator.integers(0, int(table[:, 1].sum()), touched)
    return Pattern(name, table, files.pages_of(table, offsets))


def cell(name: str, page_count: int, drawn: Pattern) -> Figures:
    """One round of one map under one pattern: ns a lookup by mode, ns to map and unmap, ns and stores of an I/O."""
    subject = Subject(name, page_count)
    mapped_ns = subject.map_all(drawn.extents)
    held = np.zeros(len(drawn.pages), np.int64)
    # Somebody holds each of the pages: so what is made at the first use is there, and is found by everybody else.
    subject.perform(maploops.GET, drawn.pages, held=held)
    subject.perform(maploops.WHERE, drawn.pages)  # not counted: whoever is first would pay for what is far
    found: Figures = {}
    for mode, what in MODES.items():
        total, taken = subject.perform(what, drawn.pages)
        found[mode] = taken / len(drawn.pages) if total > 0 else None
    found["mapped_ram_bytes"] = subject.ram_bytes
    found["figures"] = subject.module.figures(subject.states)
    subject.perform(maploops.PUT, drawn.pages, held=held)
    found["io_ns"], found["io_stores"] = _ios(subject, drawn.pages)
    found["map_ns"] = mapped_ns
    found["unmap_ns"] = subject.perform(maploops.UNMAP, extents=drawn.extents)[1]
    return found


def _ios(subject: Subject, pages: np.ndarray) -> tuple[float, float]:
    """Nanoseconds and stores to the medium of one I/O, on pages whose descriptors were used before."""
    done, taken, count = 0, 0, 4
    before = subject.counters()["stores"]
    while done < len(pages) and taken < IO_NS:
        part = pages[done : done + count]
        taken += subject.perform(maploops.IO, part)[1]
        done, count = done + len(part), count * 2
    return taken / done, (subject.counters()["stores"] - before) / done


def alone(pages: np.ndarray) -> Figures:
    """Nanoseconds of the loops without a lookup."""
    maploops.alone(pages, maploops.WHERE)
    found = {}
    for mode, what in MODES.items():
        begin = time.thread_time_ns()
        maploops.alone(pages, what)
        found[mode] = (time.thread_time_ns() - begin) / len(pages)
    return found


def first_use(name: str, page_count: int) -> Figures:
    """What has to be done before a device that was just discovered can be used.

    Where that takes too much memory for here, it is worked out from the pages that were brought up.  In parts only
    where it must be: a group that could be one would be several.
    """
    subject, pages = Subject(name, page_count), BRING_UP_PAGES
    subject.perform(maploops.BRING_UP, np.array([pages], np.int64))
    if subject.counters()["initialised_bytes"] <= BRING_UP_AT_ONCE:
        pages = page_count
    subject = Subject(name, page_count)
    at_rest = {key: subject.counters()[key] for key in ("medium_bytes", "descriptor_bytes", "structure_bytes")}
    covered, taken, written = 0, 0, 0
    while covered < page_count and written < BRING_UP_BYTES:
        covered, more = subject.perform(maploops.BRING_UP, np.array([pages], np.int64))
        before, written = written, subject.counters()["initialised_bytes"]
        taken += more
        if written - before < BRING_UP_LITTLE:
            pages *= 2
    share = covered / page_count
    counters = subject.counters()
    return {
        "descriptors": round(counters["initialised"] / share),
        "bytes": round(counters["initialised_bytes"] / share),
        "seconds": taken / share / 1e9,
        "measured": covered == page_count,
        "pages": covered,
        "at_rest": at_rest,
        "ram_bytes": subject.ram_bytes,
    }


def first_ios(name: str, page_count: int, pages: np.ndarray) -> Figures:
    """What an I/O on a page of a device that was just discovered takes: the mean of as many in flight at once."""
    subject = Subject(name, page_count)
    held = np.zeros(len(pages), np.int64)
    ram = subject.ram_bytes
    taken = subject.map_all(np.stack([pages, np.ones_like(pages)], axis=1))
    taken += subject.perform(maploops.BEGIN, pages, held=held)[1]
    counters = subject.counters()
    return {
        "descriptors": counters["initialised"] / len(pages),
        "bytes": counters["initialised_bytes"] / len(pages),
        "seconds": taken / len(pages) / 1e9,
        "ram_bytes": (subject.ram_bytes - ram) / len(pages),
    }


def far_apart(page_count: int) -> np.ndarray:
    """Pages for `first_ios`: one in the middle of each of IN_FLIGHT parts of the device, or fewer."""
    count = min(IN_FLIGHT, page_count)
    return (np.arange(count, dtype=np.int64) * 2 + 1) * page_count // (2 * count)
