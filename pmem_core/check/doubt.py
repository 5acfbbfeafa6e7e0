# SPDX-License-Identifier: MIT
"""Which of state and journal is that of the last session?  After a power cut the state may be older than the medium.

Only the journal can tell.  Where that is lost, the pages are asked: by the map of another session many of them fail
their checksums.  To repair by it would give good checksums to what is other pages' data.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import checkscan, layout
from . import pages, wear
from .findings import Kind, Report
from .trust import Belief, Stage

# More than a page of descriptors, and more than one page of so many with data.
FAILING_MAX, FAILING_SHARE = layout.PAGE_BYTES // 64, 8
FEWER = 4  # times as few pages fail by a map that fits better
SECTOR_BYTES = 512  # what a disk writes whole
PART_PAGES = 64  # what maps are compared by: the pages whose descriptors are in one, or fewer
_REMEDY = (
    "descriptors and data: put the journal of the last session back; or move the folder 'journal' out of the "
    "image, and --repair marks the pages that fail as damaged, where the state says they are"
)
IN_FLIGHT_MAX = layout.TOGETHER_MAX + 1  # pages that a kill may leave apart


class Fit(NamedTuple):
    """How a map fits the medium: pages whose descriptors fail, whose data does, that lost theirs, that hold data.

    Descriptors are lost where a map leads into holes, and where a disk lost sectors; so that tells two maps apart, but
    is no word against one.
    """

    damaged: int
    mismatched: int
    lost: int
    with_data: int

    @property
    def failing(self) -> int:
        return self.damaged + self.mismatched


def fit(stage: Stage, belief: Belief, numbers: Iterable[int], size: int = 0) -> Fit:
    """How the map of `belief` fits; numbers, size: as of pages.verdicts."""
    stage.load(belief)
    told, with_data = pages.verdicts(stage.plan, stage.handle, numbers, belief.held, size)
    return Fit(told[checkscan.DAMAGED], told[checkscan.MISMATCHED], told[checkscan.LOST], with_data)


def are_too_many(bad: int, with_data: int, most: int) -> bool:
    """True where more than `most` pages fail, and more than a share of those with data."""
    return bad > most and FAILING_SHARE * bad > with_data


def fits_better(stage: Stage, one: Belief, other: Belief) -> bool:
    """True where pages fail by the map of `other`, more than a kill leaves, and by that of `one` far fewer."""
    everywhere = range(stage.plan.section_count)
    by_other = fit(stage, other, everywhere)
    bad = by_other.failing + by_other.lost
    if not are_too_many(bad, by_other.with_data, IN_FLIGHT_MAX):
        return False
    by_one = fit(stage, one, everywhere)
    return FEWER * (by_one.failing + by_one.lost) < bad


def contradicts(scan: pages.Scan, report: Report) -> bool:
    """True where too many pages are as if the map were another session's; lost descriptors alone are no sign of it."""
    kinds = Counter(finding.kind for _, finding in scan.todo)
    bad, lost = kinds[Kind.DESCRIPTOR_DAMAGED] + kinds[Kind.DATA_DAMAGED], kinds[Kind.DESCRIPTOR_LOST]
    with_data = int(report.checked["pages_with_data"])
    return bad > IN_FLIGHT_MAX and are_too_many(bad + lost, with_data + lost, FAILING_MAX)


def is_older(stage: Stage, journal: Belief, state: Belief) -> bool:
    """True where descriptors fail by the journal's map, and not by the state's: it is no checkpoint of this session.

    A power cut alone does not do that.  The frames that the last checkpoint knows of are not given to other pages
    before the next one, so descriptors there are their pages' own, of whatever age; they may not fit the data.  But
    they may be torn where they are larger than a sector.
    """
    plan = stage.plan
    if not (plan.has_descriptors and journal.maps_well and state.maps_well):
        return False
    if plan.info.descriptor_bytes > SECTOR_BYTES or np.array_equal(journal.table, state.table):
        return False
    parts = apart(stage, journal, state)
    by_journal = fit(stage, journal, parts, PART_PAGES)
    if not are_too_many(by_journal.damaged, by_journal.with_data, FAILING_MAX):
        return False
    return FEWER * fit(stage, state, parts, PART_PAGES).damaged < by_journal.damaged


def apart(stage: Stage, one: Belief, other: Belief) -> np.ndarray:
    """The parts of PART_PAGES pages, in sections in use by `one`, of which something lies elsewhere by `other`."""
    plan, prints = stage.plan, []
    for belief in (one, other):
        stage.load(belief)
        prints.append(np.zeros(-(-plan.info.page_count // PART_PAGES), np.int64))
        checkscan.fingerprints(stage.handle, PART_PAGES, prints[-1])
    parts = np.flatnonzero(prints[0] != prints[1])
    bits = one.sections[parts * PART_PAGES // plan.info.section_pages]
    return parts[bits & (layout.SECTION_TOUCHED | layout.SECTION_DIRTY) != 0]


def find_older(report: Report) -> bool:
    """True, and reported: the journal is another session's, and the state may not be whole after a power cut."""
    report.add(Kind.MAP_DOUBTFUL, "journal", "where the state says they are they are whole")
    report.unchecked.append(_REMEDY)
    return True


def find(report: Report, stage: Stage, belief: Belief) -> bool:
    """True, and reported, where too many pages fail by the map that is believed."""
    found = fit(stage, belief, range(stage.plan.section_count))
    if not are_too_many(found.failing, found.with_data, FAILING_MAX):
        return False
    report.add(Kind.MAP_DOUBTFUL, "state", f"{found.failing} of {found.with_data} with data")
    report.unchecked.append(_REMEDY)
    return True


def settled(path: Path, stage: Stage, state: Belief, journal: Belief, *, wear_is_whole: bool) -> Belief:
    """The one that descriptors and wear counters agree with; of sections, what either says to be in use."""
    plan, sections = stage.plan, state.sections | journal.sections
    measured = wear.measure(path / "wear", 4 * plan.line_count) if wear_is_whole else None
    scores = []
    for belief in (journal, state):
        stage.load(belief)
        tally = belief.core[0]["tally"]
        wrong_sum = measured is not None and wear.difference(tally, measured) != 0
        wrong_hottest = measured is not None and int(tally["hottest"]) != measured.hottest
        bad = pages.count_bad(plan, stage.handle, sections, belief.held)
        scores.append((bad, wrong_sum + wrong_hottest))
    better = journal if scores[0] <= scores[1] else state
    # A source of its own: neither file holds it as it is.
    source = f"{better.source} that the descriptors agree with"
    return dataclasses.replace(better, sections=sections, source=source)
