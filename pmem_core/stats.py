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
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import layout, snapshot
from .counters import KINDS, Fold, Scan, See, cell_lines, scan
from .snapshot import Look

HOST = (
    *("reads", "writes", "read_bytes", "written_bytes", "flushes", "trims", "zeros"),
    *("trimmed_bytes", "zeroed_bytes", "page_writes"),
)


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


def _leveling(found: Look, moves: int) -> dict[str, Any]:
    """What leveling did; with a policy that accounts for stalls, also how long writes would have waited."""
    info, module = found.plan.info, found.plan.leveling
    result = {"name": info.leveling, "moves": moves, "parameters": info.parameters["leveling"]}
    if hasattr(module, "stall_nanoseconds"):
        result["stall_seconds"] = module.stall_nanoseconds(found.plan.leveling_state, found.table) / 1e9
    return result


def collect(path: Path, *, fold: Fold | None = None, histogram: bool = False, see: See | None = None) -> dict[str, Any]:
    """Every figure of the image at `path`, served or not, ready for JSON; keys are stable.

    write_amplification: line writes for host, descriptors and moves ÷ those for the host's data.  normalized_life: line
    writes by the host, data and descriptors, ÷ (lines · largest counter), that is, the share of the ideal life that is
    used if wear goes on as it has so far and the device ends with its hottest line: an extrapolation of what was seen,
    no forecast.  Both are None before the first write.  fold: also a heat map; histogram: also every counter value
    and its lines, by kind.  see: looks on while the counters are read; what is in holes of the file, zeros, it is not
    shown.

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
        "leveling": _leveling(found, int(tally["moves"])),
        "write_amplification": _ratio(device_writes, causes["host"]),
        "normalized_life": _ratio(causes["host"] + causes["descriptor"], wear["all"]["lines"] * wear["all"]["max"]),
        "errors": {name: int(tally[name]) for name in ("checksum_errors", "healed")},
        "retired_pages": found.retired,
        "descriptor_memory": snapshot.memory(found),
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
