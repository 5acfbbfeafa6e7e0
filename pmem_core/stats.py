# SPDX-License-Identifier: MIT
"""The figures of an image, read from outside: no lock is taken on a served image, and nothing is written.

Every line behind the info blocks is of one kind, at the moment the leveling's table was copied:

* ``descriptor``: it lies in a page of descriptors;
* ``data``: it lies in a page the client sees;
* ``spare``: it holds nothing: the leveling's free frames, the placement's padding, what does not fill a frame or group;
* ``all``: the three together.  The info blocks' lines are counted in none of them.

A kind is what a line holds now; its wear is of everything it ever held.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import host, layout, snapshot, wearscan
from .geometry import Geometry
from .snapshot import Look

# Is handed each part of the counters, in order: the number of its first line, and uint32[] of whole pages, not to keep.
See = Callable[[int, np.ndarray], None]

CHUNK_LINES = 1 << 20
BLOCK_LINES = 1 << wearscan.BLOCK_SHIFT
KINDS = ("data", "descriptor", "spare")
HOST = (
    *("reads", "writes", "read_bytes", "written_bytes", "flushes", "trims", "zeros"),
    *("trimmed_bytes", "zeroed_bytes", "page_writes"),
)


# ---- the wear counters ----


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
    wearscan.mark_medium(*common, wearscan.SPARE, snapshot.free_frames(found), frame_bytes)
    if plan.leveling.MOVES:
        rest = plan.info.size - layout.FRAMES_AT - plan.medium_frames * frame_bytes
        wearscan.mark_medium(*common, wearscan.SPARE, np.array([plan.medium_frames]), rest)
    for begin, end in snapshot.padding(plan):
        wearscan.mark_placed(*common, wearscan.SPARE, begin, 0, end - begin, 1)
    wearscan.mark_placed(*common, wearscan.DESCRIPTOR, *snapshot.descriptor_spans(plan))
    if slots[0] >= 0:
        kinds[: layout.FRAMES_AT >> unit_shift] = wearscan.INFO  # all in the first block, whatever the line
    return kinds


def scan(path: Path, found: Look, fold: Fold | None = None, see: See | None = None) -> Scan:
    """Read every counter once.  Holes of the wear file are skipped, so a sparse image costs what was written of it."""
    plan = found.plan
    unit_shift = min(plan.info.frame_bytes, layout.PAGE_BYTES).bit_length() - 1
    unit_lines = (1 << unit_shift) // plan.info.line_bytes
    pages = snapshot.pages_behind_info(plan)
    histogram = np.zeros((len(wearscan.KINDS), wearscan.BINS), np.int64)
    buffer, large = np.empty((2, CHUNK_LINES), np.uint32)
    large_kinds, overflow = np.empty(CHUNK_LINES, np.uint8), []
    sums, hottest = np.zeros((2, fold.rows, fold.columns) if fold else (2, 0, 0), np.int64)
    with host.host_errors(path / "wear"), (path / "wear").open("rb", buffering=0) as file:
        extents = list(_extents(file.fileno(), 4 * plan.line_count))
        kinds, done = _kinds(found, _slots(plan, extents), unit_shift), 0
        for begin, end in extents:
            for at in range(begin, end, 4 * CHUNK_LINES):
                part = buffer[: min(CHUNK_LINES, (end - at) // 4)]
                # Read, not mapped: the host reads ahead, and a file cut short meanwhile is no SIGBUS.
                part = part[: os.preadv(file.fileno(), [part.data], at) // 4]
                many = wearscan.count_wear(part, kinds[done:], unit_lines, histogram, large, large_kinds)
                done += len(part) // unit_lines
                if many:
                    overflow.append((large[:many].copy(), large_kinds[:many].copy()))
                if fold:
                    wearscan.fold_wear(
                        part, at // 4 // unit_lines, unit_lines, unit_shift, pages, fold.stripe, sums, hottest
                    )
                if see:
                    see(at // 4, part)
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
    by_kind, lines = {}, snapshot.lines_by_kind(plan)
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


# ---- figures ----


def figures(values: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """The figures of counters, given as ascending `values` and how many lines have each.

    cov: standard deviation ÷ mean; gini: Σᵢ Σⱼ |xᵢ - xⱼ| ÷ (2 n² mean), computed from ranks; jain: (Σx)² ÷ (n Σx²)
    (Jain, Chiu, Hawe, "A Quantitative Measure of Fairness", DEC TR-301, 1984).  Lines that are all at 0 are evenly
    worn: 0, 0 and 1.  None where there are no lines.
    """
    lines, total = int(counts.sum()), int(values @ counts)
    result: dict[str, Any] = {"lines": lines, "total": total, "max": int(values[-1]) if lines else 0}
    if not lines:
        return result | {"mean": None, "cov": None, "gini": None, "jain": None}
    mean = total / lines
    if not total:
        return result | {"mean": mean, "cov": 0.0, "gini": 0.0, "jain": 1.0}
    x, c = values.astype(np.float64), counts.astype(np.float64)
    # Mean rank of the lines with one value, less the mean of all ranks: no cancellation of large numbers.
    rank = np.cumsum(c) - (c - 1) / 2 - (lines + 1) / 2
    return result | {
        "mean": mean,
        "cov": float(np.sqrt(c @ (x - mean) ** 2 / lines) / mean),
        "gini": max(0.0, float(2 * ((x - mean) * c @ rank) / (lines * float(total)))),
        "jain": total**2 / (lines * float(c @ x**2)),
    }


def lorenz(values: np.ndarray, counts: np.ndarray, points: int = 101) -> list[tuple[float, float]]:
    """The Lorenz curve: the share of all wear that the least worn share of the lines has, at `points` even shares.

    `values` ascend.  Empty where there is no wear.
    """
    total = int(values @ counts)
    if not total:
        return []
    shares = np.linspace(0, 1, points)
    lines = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    wear = np.concatenate([[0], np.cumsum(values.astype(np.float64) * counts)]) / total
    return list(zip(shares.tolist(), np.interp(shares, lines, wear).tolist(), strict=True))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def cell_lines(plan: Geometry, fold: Fold) -> np.ndarray:
    """How many lines each cell of a heat map stands for, int64[rows, columns]; see wearscan.fold_wear."""
    pages, page_lines = snapshot.pages_behind_info(plan), layout.PAGE_BYTES // plan.info.line_bytes
    cells = fold.rows if fold.stripe else fold.rows * fold.columns
    edges = -(-np.arange(cells + 1) * pages // cells)
    if not fold.stripe:
        return np.diff(edges).reshape(fold.rows, fold.columns) * page_lines
    places = np.arange(fold.stripe)
    before = (edges[:, None] - places + fold.stripe - 1) // fold.stripe  # pages below an edge with each remainder
    lines = np.zeros((fold.rows, fold.columns), np.int64)
    np.add.at(lines.T, places * fold.columns // fold.stripe, np.diff(before, axis=0).T)
    return lines * page_lines


# ---- invariants ----

POWER_CUT = "a power cut lost counts: the wear file and the totals were saved at different moments"


def _invariants(found: Look, after: tuple[np.ndarray, np.ndarray], done: Scan) -> tuple[dict[str, Any], dict[str, str]]:
    """Each invariant as true, false or None where it cannot be known, and why not.

    after: the core read twice behind the scan.  Counters are raised before the totals, so what the first reading says
    is in flight and the totals of the second bound what the scan may have seen.
    """
    one_to_one, disjoint, frames = snapshot.check_map(found)
    unit, later = after[0]["unit"][0], after[1]["tally"][0]
    in_flight = int(unit[layout.UNIT_LINES]) if unit[layout.UNIT_CAUSE] else 0
    noted = int(later["uncheckpointed"])
    hottest = max(int(values[-1]) for values, _ in done.histograms.values() if len(values))
    holds: dict[str, Any] = {
        "bijection": one_to_one,
        "spare_disjoint": disjoint,
        "wear_sum": int(found.tally["worn"].sum()) <= done.total - noted <= int(later["worn"].sum()) + in_flight,
        "hottest": int(found.tally["hottest"]) <= hottest <= int(later["hottest"]) + bool(in_flight),
        "kinds": all(bool((counts >= 0).all()) for _, counts in done.histograms.values()),
        "bijection_frames": frames,
    }
    notes = {}
    if frames < found.plan.placed_frames:
        notes["bijection"] = (
            f"checked on {frames} of {found.plan.placed_frames} frames, in windows of {snapshot.WINDOW_FRAMES}"
        )
    if found.cut or later["cuts"]:
        for name in ("wear_sum", "hottest"):
            holds[name], notes[name] = None, POWER_CUT
    return holds, notes


# ---- all together ----


def collect(path: Path, *, fold: Fold | None = None, histogram: bool = False, see: See | None = None) -> dict[str, Any]:
    """Every figure of the image at `path`, served or not, ready for JSON; keys are stable.

    write_amplification: line writes for host, descriptors and moves ÷ those for the host's data.  normalized_life: host
    line writes ÷ (lines · largest counter), that is, the share of the ideal life that the host gets if wear goes on as
    it has so far and the device ends with its hottest line: an extrapolation of what was seen, no forecast.  Both are
    None before the first write.  fold: also a heat map; histogram: also every counter value and its lines, by kind.
    see: looks on while the counters are read; what is in holes of the file, zeros, it is not shown.

    Errors: NotAnImage, DamagedImage, UnsupportedImage, HostError.
    """
    path = Path(path)
    found = snapshot.look(path)
    done = scan(path, found, fold, see)
    after = snapshot.core_now(path, found), snapshot.core_now(path, found)
    holds, notes = _invariants(found, after, done)
    tally, info = after[1]["tally"][0], found.plan.info
    causes = dict(zip(layout.CAUSES, tally["worn"].tolist(), strict=True))
    wear: dict[str, Any] = {kind: figures(*done.histograms[kind]) for kind in (*KINDS, "all")}
    device_writes = sum(count for cause, count in causes.items() if cause != "info")
    result = {
        "image": snapshot.describe(path, found),
        "time": time.time(),
        "served": found.session == "served",
        "pid": found.holder.get("pid"),
        "session": found.session,
        "host": {name: int(tally[name]) for name in HOST},
        "wear": {**wear, "line_bytes": info.line_bytes, "by_cause": causes},
        "leveling": {"name": info.leveling, "moves": int(tally["moves"]), "parameters": info.parameters["leveling"]},
        "write_amplification": _ratio(device_writes, causes["host"]),
        "normalized_life": _ratio(causes["host"], wear["all"]["lines"] * wear["all"]["max"]),
        "errors": {name: int(tally[name]) for name in ("checksum_errors", "healed")},
        "retired_pages": found.retired,
        "invariants": holds,
        "invariants_notes": notes,
    }
    if fold:
        lines = cell_lines(found.plan, fold)
        mean = done.sums / np.maximum(lines, 1)
        result["heat_map"] = {**dataclasses.asdict(fold), "mean": mean.tolist(), "max": done.hottest.tolist()}
    if histogram:
        result["histogram"] = {kind: np.stack(pair, axis=1).tolist() for kind, pair in done.histograms.items()}
    return result
