# SPDX-License-Identifier: MIT
"""Every descriptor and the data it describes, section by section; holes of the medium are not read."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .. import checkscan, datapath, layout
from ..binding import Handle
from ..geometry import Geometry
from ..host import data_ranges, host_errors
from .findings import Finding, Kind, Report

AHEAD_BYTES = 32 << 20


def blocks_in_use(path: Path, size: int) -> np.ndarray:
    """A bit for every 4096 bytes of the file at `path` that are not in a hole, uint8[]."""
    bits = np.zeros((size >> layout.PAGE_SHIFT + 3) + 1, np.uint8)
    with host_errors(path), path.open("rb") as file:
        for first, end in data_ranges(file.fileno(), size):
            checkscan.mark(bits, first >> layout.PAGE_SHIFT, -(-end // layout.PAGE_BYTES))
    return bits


def verdicts(
    plan: Geometry, handle: Handle, numbers: Iterable[int], held: np.ndarray, size: int = 0
) -> tuple[Counter[int], int]:
    """What checkscan says of the pages of these sections: how often each verdict, and how many pages hold data.

    size: pages of a part, where `numbers` are not of sections.  It tells how well the map on stage fits the medium.
    """
    size = size or plan.info.section_pages
    found, pages, holds = Counter[int](), 0, np.zeros(size, np.uint8)
    for number in numbers if plan.has_descriptors else ():
        first = at = int(number) * size
        last = min(first + size, plan.info.page_count)
        while at < last:
            at, verdict = checkscan.touched(handle, at, last, held, holds[at - first :])
            found[verdict] += 1
            at += 1
        pages += int(np.count_nonzero(holds[: last - first] == 1))
    return found, pages


def count_bad(plan: Geometry, handle: Handle, sections: np.ndarray, held: np.ndarray) -> int:
    """How many pages are not as their descriptors say, in the sections that are marked."""
    told, _ = verdicts(plan, handle, np.flatnonzero(sections[: plan.section_count]), held)
    return sum(told[one] for one in (checkscan.DAMAGED, checkscan.MISMATCHED, checkscan.LEAKED, checkscan.LOST))


class _ReadAhead:
    """Lets the host read the medium ahead of the walk, which goes through it about in order; holes are left out.

    The mapping does not read ahead, because the host would fill holes with zeros in memory.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size, self._ranges = fd, size, data_ranges(fd, size)
        self._at, self._end = next(self._ranges, (size, size))

    def pass_to(self, share: float) -> None:
        """The walk will soon be at `share` of the medium."""
        limit = share * self._size + AHEAD_BYTES
        while self._at < min(limit, self._size):
            count = min(AHEAD_BYTES, self._end - self._at)
            os.posix_fadvise(self._fd, self._at, count, os.POSIX_FADV_WILLNEED)
            self._at += count
            if self._at >= self._end:
                self._at, self._end = next(self._ranges, (self._size, self._size))


@dataclasses.dataclass
class Scan:
    """One walk over all pages.  `todo`: pages that want repair, with their findings, in order.

    lines: line writes of data and of descriptors that descriptors of format 2 tell of, int64[2].

    path: of the medium file; held: which placed blocks are in no hole (checkscan); ordered: whether a later write has a
    higher generation, and totals that descriptors cannot exceed (wear.totals_only_grew); in_flight: pages that the last
    session was writing when it was killed; trimmed: those it was trimming; behind: that session's state is lost, so
    descriptors that were pending are, and nobody cut them off; mark: called with a section that turns out to be in use.
    """

    report: Report
    path: Path
    plan: Geometry
    handle: Handle
    sections: np.ndarray
    held: np.ndarray
    ordered: bool
    in_flight: range = range(0)
    trimmed: range = range(0)
    behind: bool = False
    mark: Callable[[int], None] = lambda section: None
    todo: list[tuple[int, Finding]] = dataclasses.field(default_factory=list)
    lines: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, np.int64))

    def run(self, watch: Callable[[float], None]) -> None:
        """Walk; watch is told the share done, 0 to 1."""
        plan, size, counted, in_use, with_data = self.plan, self.plan.info.section_pages, 0, 0, 0
        with self.path.open("rb") as file:
            ahead = _ReadAhead(file.fileno(), plan.info.size)
            for section in range(plan.section_count):
                watch(section / plan.section_count)
                ahead.pass_to((section + 1) / plan.section_count)
                first, last = section * size, min((section + 1) * size, plan.info.page_count)
                if not self._in_use(section) and not self._untouched(section, first, last):
                    continue
                in_use, counted = in_use + 1, counted + last - first
                with_data += self._touched(section, first, last)
        self.report.checked |= {
            "sections": plan.section_count,
            "sections_in_use": in_use,
            "pages": counted,
            "pages_with_data": with_data,
            "data_checksums": bool(plan.info.checksums and plan.has_descriptors),
        }

    def _in_use(self, section: int) -> bool:
        return bool(self.sections[section] & (layout.SECTION_TOUCHED | layout.SECTION_DIRTY))

    def _untouched(self, section: int, first: int, last: int) -> bool:
        """Walk a section that was never written; True where something is in it all the same."""
        at = first
        while at < last:
            at, verdict = checkscan.untouched(self.handle, at, last, self.held)
            if verdict == checkscan.UNMARKED:
                finding = self.report.add(Kind.SECTION_UNMARKED, "state", f"section {section}, from page {at} on")
                self.mark(section)
                if self._in_use(section):
                    self.report.done(finding, "marked as written")
                self.sections[section] |= np.uint8(layout.SECTION_TOUCHED)
                return True
            if verdict == checkscan.LEAKED:
                self._found(Kind.LEAKED_DATA, at)
            at += 1
        return False

    def _touched(self, section: int, first: int, last: int) -> int:
        """Walk a section in use; how many of its pages hold data."""
        if not self.plan.has_descriptors:
            return last - first
        suspect = bool(self.sections[section] & layout.SECTION_SUSPECT)
        holds, at = np.zeros(last - first, np.uint8), first
        while at < last:
            at, verdict = checkscan.touched(self.handle, at, last, self.held, holds[at - first :])
            if verdict != checkscan.FINE:
                self._judge(at, verdict, suspect)
            at += 1
        if self.plan.info.descriptor_format == 2:
            wrong = int(checkscan.count_lines(self.handle, first, last, self.held, self.lines))
            if wrong != last and self.ordered:
                self._found(Kind.LINES_WRONG, wrong, "its first write is later than its last")
        # A hole says nothing, and to look at it makes the host fill it with zeros in memory.
        seen = np.flatnonzero(np.diff(holds != checkscan.IN_HOLE, prepend=False, append=False)).reshape(-1, 2)
        for begin, end in seen.tolist():
            self._compare_extents(first + begin, first + end, holds[begin:end])
        return int(np.count_nonzero(holds == 1))

    def _judge(self, page: int, verdict: int, suspect: bool) -> None:
        unsettled = suspect or page in self.in_flight
        given_up = not self.behind and (unsettled or page in self.trimmed)
        if verdict == checkscan.LEAKED or (verdict == checkscan.LOST and given_up):
            self._found(Kind.LEAKED_DATA, page)
        elif verdict == checkscan.CONDEMNED:
            self._found(Kind.CONDEMNED, page)
        elif unsettled and verdict != checkscan.LOST:
            self._found(Kind.UNSETTLED, page)
        elif verdict in (checkscan.LOST, checkscan.DAMAGED):
            kind = Kind.DESCRIPTOR_LOST if verdict == checkscan.LOST else Kind.DESCRIPTOR_DAMAGED
            at = int(checkscan.descriptor_offset(self.handle, page))
            self._found(kind, page, f"the descriptor at {at}")
        else:
            self._found(Kind.DATA_DAMAGED, page)

    def _found(self, kind: Kind, page: int, detail: str = "") -> None:
        offset = int(checkscan.page_offset(self.handle, page))
        finding = self.report.add(kind, "media", detail, page=page, offset=offset)
        if kind.mend:
            self.todo.append((page, finding))

    def _compare_extents(self, first: int, last: int, holds: np.ndarray) -> None:
        runs = np.empty((last - first, 2), np.int64)
        start, stop = first << layout.PAGE_SHIFT, last << layout.PAGE_SHIFT
        filled = int(datapath.extents(self.handle, start, stop, runs))
        ends = np.concatenate(([first], runs[:filled, 0] >> layout.PAGE_SHIFT))
        said = np.repeat(runs[:filled, 1], np.diff(ends))
        wrong = np.flatnonzero(said != holds)
        if len(wrong):
            self._found(Kind.EXTENTS_DIFFER, first + int(wrong[0]), f"and {len(wrong) - 1} more up to page {last - 1}")
