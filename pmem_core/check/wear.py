# SPDX-License-Identifier: MIT
"""The wear counters against the totals: sum of the wear file = line writes by cause + tally["uncheckpointed"].

`uncheckpointed` is what the file has more than the totals: what was counted after the last checkpoint before a power
cut.  It is negative where counters were lost.

And the totals that no counter knows of against the sum kept of them.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import layout, recovery
from ..host import data_ranges
from .findings import Finding, Kind, Report
from .probe import Record

CHUNK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Measured:
    """The sum of all counters and the largest one."""

    total: int
    hottest: int


def measure(path: Path, size: int) -> Measured:
    """Add up the first `size` bytes of the wear file at `path`."""
    total, hottest = 0, 0
    with path.open("rb", buffering=0) as file:
        for first, end in data_ranges(file.fileno(), size):
            for at in range(first // 4 * 4, end, CHUNK_BYTES):
                count = min(CHUNK_BYTES, -(-end // 4) * 4 - at)
                counters = np.frombuffer(os.pread(file.fileno(), count, at), "<u4")
                total += int(counters.sum(dtype=np.int64))
                hottest = max(hottest, int(counters.max(initial=0)))
    return Measured(total, hottest)


def difference(tally: Any, measured: Measured) -> int:
    """Line writes that the counters have and the totals have not."""
    return measured.total - int(tally["worn"].sum()) - int(tally["uncheckpointed"])


def compare(report: Report, tally: Any, measured: Measured) -> list[Finding]:
    """Report where the counters and the totals differ; a power cut since the last repair explains a surplus."""
    off, hottest, found = difference(tally, measured), int(tally["hottest"]), []
    surplus = off > 0 and int(tally["cuts"]) > 0
    report.checked |= {"line_writes": measured.total, "hottest": measured.hottest}
    if surplus:
        found.append(report.add(Kind.WEAR_UNCHECKPOINTED, "wear", f"{off} line writes"))
    elif off:
        wanted = measured.total - off
        found.append(report.add(Kind.WEAR_SUM, "wear", f"{measured.total} counted, {wanted} by the totals: {off:+d}"))
    if hottest != measured.hottest and not (surplus and hottest < measured.hottest):
        found.append(report.add(Kind.HOTTEST_WRONG, "wear", f"{measured.hottest} counted, {hottest} by the totals"))
    return found


def compare_totals(report: Report, core: np.ndarray) -> list[Finding]:
    """Report where the totals that no counter knows of differ from the sum kept of them (core[1])."""
    if not recovery.sum_is_wrong(core):
        return []
    return [report.add(Kind.TOTALS_WRONG, "state", "one of them, or the sum")]


def totals_only_grew(record: Record) -> bool:
    """Whether the journal's events go back to the image's creation, all of them, and none of them sets totals back.

    A power cut or a repair does, and leaves descriptors as they are: they may tell of more writes, and of later ones.
    """
    events = record.events
    whole = bool(events) and events[0].get("event") == "created" and "events" not in record.damaged
    return whole and not any(event.get("how") == "power cut" or event.get("event") == "repaired" for event in events)


def compare_lines(report: Report, tally: Any, lines: np.ndarray) -> None:
    """Report where descriptors tell of more line writes (int64[2], of data and of descriptors) than the totals have.

    Of less is no fault: a page that a kill interrupted, a descriptor that was built anew.
    """
    for cause, count in zip((layout.CAUSE_HOST, layout.CAUSE_DESCRIPTOR), lines.tolist(), strict=True):
        if count > tally["worn"][cause]:
            detail = f"{layout.CAUSES[cause]}: {count} by the descriptors, {tally['worn'][cause]} by the totals"
            report.add(Kind.LINES_WRONG, "media", detail)
