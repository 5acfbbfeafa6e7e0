# SPDX-License-Identifier: MIT
"""How many lines of each kind have how much wear, and how it lies on the medium: one look at every counter.

The counters are those of an image's wear file, or of a replay.  Kinds are as stats.py has them.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from . import capacity, host, layout, wearscan
from .geometry import Geometry
from .snapshot import Look

# Is handed each part of the counters, in order: the number of its first line, and uint32[] of whole pages, not to keep.
See = Callable[[int, np.ndarray], None]

CHUNK_LINES = 1 << 20
BLOCK_LINES = 1 << wearscan.BLOCK_SHIFT
KINDS = ("data", "descriptor", "spare")


@dataclasses.dataclass(frozen=True)
class Fold:
    """The shape of a heat map.  stripe: pages a stripe to fold the medium by; 0: the medium row by row."""

    rows: int
    columns: int
    stripe: int = 0


@dataclasses.dataclass
class Scan:
    """Counters by kind: values (int64[n], ascending) and how many lines have each; and the cells of a heat map."""

    histograms: dict[str, tuple[np.ndarray, np.ndarray]]
    sums: np.ndarray
    hottest: np.ndarray
    total: int


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, rounded out to blocks of counters: first byte and end."""
    block, done = 4 * BLOCK_LINES, 0
    for first, end in host.data_ranges(fd, size):
        first, end = max(done, first // block * block), min(size, -(-end // block) * block)
        if end > first:
            yield first, end
            done = end


def _slots(plan: Geometry, extents: list[tuple[int, int]]) -> np.ndarray:
    slots, many = np.full(-(-plan.line_count // BLOCK_LINES), -1, np.int32), 0
    for begin, end in extents:
        first, last = begin // 4 // BLOCK_LINES, -(-end // 4 // BLOCK_LINES)
        slots[first:last] = np.arange(many, many + last - first)
        many += last - first
    return slots


def _kinds(found: Look, slots: np.ndarray, unit_shift: int) -> np.ndarray:
    """The kind of every unit of the blocks that exist, uint8[]; see wearscan."""
    plan, device, frame_bytes = found.plan, found.handle(), found.plan.info.frame_bytes
    block_units = BLOCK_LINES * plan.info.line_bytes >> unit_shift
    kinds = np.full((int(slots.max(initial=-1)) + 1) * block_units, wearscan.DATA, np.uint8)
    common = (device, slots, kinds, unit_shift)
    wearscan.mark_medium(*common, wearscan.SPARE, found.free_frames, frame_bytes)
    if plan.leveling.MOVES:
        rest = plan.info.size - layout.FRAMES_AT - plan.medium_frames * frame_bytes
        wearscan.mark_medium(*common, wearscan.SPARE, np.array([plan.medium_frames]), rest)
    for begin, end in capacity.padding(plan):
        wearscan.mark_placed(*common, wearscan.SPARE, begin, 0, end - begin, 1)
    wearscan.mark_placed(*common, wearscan.DESCRIPTOR, *capacity.descriptor_spans(plan))
    if slots[0] >= 0:
        kinds[: layout.FRAMES_AT >> unit_shift] = wearscan.INFO  # all in the first block, whatever the line
    return kinds


def scan(path: Path, found: Look, fold: Fold | None = None, see: See | None = None) -> Scan:
    """Read every counter once.  Holes of the wear file are skipped, so a sparse image costs what was written of it."""
    with host.host_errors(path / "wear"), (path / "wear").open("rb", buffering=0) as file:
        extents = list(_extents(file.fileno(), 4 * found.plan.line_count))
        return _count(found, extents, _parts(file.fileno(), extents), fold, see)


def scan_counters(counters: np.ndarray, found: Look, fold: Fold | None = None, see: See | None = None) -> Scan:
    """The same for `counters`, uint32[], one a line of the medium, that are in memory."""
    parts = ((at, counters[at : at + CHUNK_LINES]) for at in range(0, len(counters), CHUNK_LINES))
    return _count(found, [(0, 4 * len(counters))], parts, fold, see)


def _parts(fd: int, extents: list[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
    """First line and counters of each part of the wear file; the array is used again for the next one."""
    buffer = np.empty(CHUNK_LINES, np.uint32)
    for begin, end in extents:
        for at in range(begin, end, 4 * CHUNK_LINES):
            part = buffer[: min(CHUNK_LINES, (end - at) // 4)]
            # Read, not mapped: the host reads ahead, and a file cut short meanwhile is no SIGBUS.
            yield at // 4, part[: os.preadv(fd, [part.data], at) // 4]


def _count(
    found: Look,
    extents: list[tuple[int, int]],
    parts: Iterator[tuple[int, np.ndarray]],
    fold: Fold | None,
    see: See | None,
) -> Scan:
    plan = found.plan
    unit_shift = min(plan.info.frame_bytes, layout.PAGE_BYTES).bit_length() - 1
    unit_lines = (1 << unit_shift) // plan.info.line_bytes
    pages = capacity.pages_behind_info(plan)
    histogram = np.zeros((len(wearscan.KINDS), wearscan.BINS), np.int64)
    large, large_kinds = np.empty(CHUNK_LINES, np.uint32), np.empty(CHUNK_LINES, np.uint8)
    overflow = []
    sums, hottest = np.zeros((2, fold.rows, fold.columns) if fold else (2, 0, 0), np.int64)
    kinds, done = _kinds(found, _slots(plan, extents), unit_shift), 0
    for first, part in parts:
        many = wearscan.count_wear(part, kinds[done:], unit_lines, histogram, large, large_kinds)
        done += len(part) // unit_lines
        if many:
            overflow.append((large[:many].copy(), large_kinds[:many].copy()))
        if fold:
            wearscan.fold_wear(part, first // unit_lines, unit_lines, unit_shift, pages, fold.stripe, sums, hottest)
        if see:
            see(first, part)
    return _finished(plan, histogram, overflow, sums, hottest)


def _finished(
    plan: Geometry,
    histogram: np.ndarray,
    overflow: list[tuple[np.ndarray, np.ndarray]],
    sums: np.ndarray,
    hottest: np.ndarray,
) -> Scan:
    """Bring small and large counters together, and give each kind the lines that lie in holes as zeros."""
    large = np.concatenate([part[0] for part in overflow]) if overflow else np.zeros(0, np.uint32)
    large_kinds = np.concatenate([part[1] for part in overflow]) if overflow else np.zeros(0, np.uint8)
    by_kind, lines = {}, capacity.lines_by_kind(plan)
    for number, name in enumerate(wearscan.KINDS):
        many, counts = np.unique(large[large_kinds == number], return_counts=True)
        row = histogram[number]
        row[0] += lines[name] - row.sum() - counts.sum()
        values = np.flatnonzero(row)
        by_kind[name] = (np.concatenate([values, many.astype(np.int64)]), np.concatenate([row[values], counts]))
    everything = [by_kind[name] for name in KINDS]
    values, places = np.unique(np.concatenate([values for values, _ in everything]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, places, np.concatenate([counts for _, counts in everything]))
    total = sum(int(values @ counts) for values, counts in by_kind.values())
    return Scan(by_kind | {"all": (values, counts)}, sums, hottest, total)


def cell_lines(plan: Geometry, fold: Fold) -> np.ndarray:
    """How many lines each cell of a heat map stands for, int64[rows, columns]; see wearscan.fold_wear."""
    pages, page_lines = capacity.pages_behind_info(plan), layout.PAGE_BYTES // plan.info.line_bytes
    cells = fold.rows if fold.stripe else fold.rows * fold.columns
    edges = -(-np.arange(cells + 1) * pages // cells)
    if not fold.stripe:
        return np.diff(edges).reshape(fold.rows, fold.columns) * page_lines
    places = np.arange(fold.stripe)
    before = (edges[:, None] - places + fold.stripe - 1) // fold.stripe  # pages below an edge with each remainder
    lines = np.zeros((fold.rows, fold.columns), np.int64)
    np.add.at(lines.T, places * fold.columns // fold.stripe, np.diff(before, axis=0).T)
    return lines * page_lines
