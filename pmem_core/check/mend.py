# SPDX-License-Identifier: MIT
"""What --repair does.

First the files that opening needs (`files`), each written aside and renamed; then, through the opened device, info
block, pages and totals (`Mender`), so that every store is counted and moves as any other.  A repair that is cut short
leaves an image that can be checked and repaired again.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkscan, host, layout, recovery, statefile, upkeep
from ..device import Device
from ..errors import PmemError
from ..geometry import Geometry
from ..host import host_errors, sync_folder
from ..journal import Journal
from . import wear
from .findings import Finding, Kind, Report
from .probe import Record
from .trust import Belief

STATE_KINDS = (Kind.STATE_LOST, Kind.STATE_DAMAGED, Kind.STATE_DIFFERS)
DOUBTED_KINDS = (Kind.DESCRIPTOR_DAMAGED, Kind.DESCRIPTOR_LOST, Kind.UNSETTLED)
JOURNAL_KINDS = (Kind.JOURNAL_LOST, Kind.JOURNAL_FOREIGN, Kind.JOURNAL_DAMAGED)


def files(path: Path, plan: Geometry, report: Report, belief: Belief, record: Record) -> None:
    """Mend wear, state and journal so that the device can be opened.  HostFull, HostError."""
    for finding in report.of(Kind.WEAR_LOST):
        with host_errors(path / "wear"), (path / "wear").open("ab") as file:
            file.truncate(4 * plan.line_count)
        report.done(finding, "made whole with zeros")
    if report.has(*JOURNAL_KINDS, *STATE_KINDS):
        # What the journal says is true of medium and counters at every instant: a killed session's may not be synced.
        for name in ("media", "wear"):
            with host_errors(path / name), (path / name).open("rb") as file:
                os.fsync(file.fileno())
    # The journal first: with a state that is whole, it alone says which sections are suspect.
    if report.has(*JOURNAL_KINDS):
        aside = _new_journal(path, plan, belief, record)
        for finding in report.of(*JOURNAL_KINDS):
            report.done(finding, f"made anew from the {belief.source}" + (f"; the old one is {aside}" if aside else ""))
    elif report.has(Kind.JOURNAL_RECORDS, *STATE_KINDS):
        journal = Journal(path / "journal")
        try:
            # In place: a new journal would not know how the session ended, nor of a cut.
            journal.drop_damaged_records()
            if report.has(*STATE_KINDS):
                _put(journal, belief)
        finally:
            journal.close()
    for finding in report.of(Kind.JOURNAL_RECORDS):
        report.done(finding, "dropped")
    if report.has(*STATE_KINDS, Kind.STATE_HEAD) and belief.source != "state":
        with host_errors(path / "state"):
            parts = belief.core, belief.table, belief.sections, belief.ticks, belief.pending
            statefile.write_state(path / "state", plan, *parts)
    elif report.has(Kind.STATE_HEAD):
        with host_errors(path / "state"), (path / "state").open("r+b") as file:
            os.pwrite(file.fileno(), statefile.fresh_head(plan), 0)
            os.ftruncate(file.fileno(), plan.zones()["end"][0])
            os.fsync(file.fileno())
    for finding in report.of(*STATE_KINDS):
        report.done(finding, f"kept what the {belief.source} says")
    for finding in report.of(Kind.STATE_HEAD):
        report.done(finding, "written again")
    with host_errors(path):
        # Before the device is opened: the old journal, back after a power cut, would not know of moves made by then.
        sync_folder(path)


def _put(journal: Journal, belief: Belief) -> None:
    chunks, rows = dict(statefile.table_chunks(belief.table)), dict(statefile.section_rows(belief.sections))
    journal.checkpoint(belief.core.tobytes(), chunks, rows)


def _new_journal(path: Path, plan: Geometry, belief: Belief, record: Record) -> str:
    """Make the journal anew; what the old one still tells people is kept.  Returns where the old one was put."""
    fresh, number, aside = path / f"journal.new.{time.time_ns()}", 0, ""
    with contextlib.ExitStack() as undo, host_errors(path / "journal"):
        undo.callback(shutil.rmtree, fresh, ignore_errors=True)
        fresh.mkdir()
        journal = Journal(fresh, create=True)
        try:
            journal.initialise(plan.info.uuid)
            _put(journal, belief)
            for page, retired in record.retired.items():
                journal.retire(page, retired)
            for event in record.events:
                journal.event(event)
            for figures in record.history:
                journal.sample(figures)
            journal.event({"event": "remade"})
            journal.note_remade(True)
            if _was_in_use(belief, plan):
                # How the last session ended is not known any more; nothing suggests that the page cache was lost.
                journal.begin_session(host.witness(path))
        finally:
            journal.close()
        sync_folder(fresh)
        while (path / "journal").exists():
            aside = f"journal.damaged.{number}"
            if not (path / aside).exists():
                (path / "journal").rename(path / aside)
                undo.callback((path / aside).rename, path / "journal")
            number += 1
        fresh.rename(path / "journal")
        undo.pop_all()
    return aside


def _was_in_use(belief: Belief, plan: Geometry) -> bool:
    core = belief.core[0]
    dirty = np.any(belief.sections & layout.SECTION_DIRTY) or len(recovery.pending_slots(belief.pending, plan))
    return bool(dirty) or bool(np.any(core["intent"])) or bool(core["unit"][layout.UNIT_CAUSE])


class Mender:
    """Repairs through the opened device.

    sure: the map is that of the last session.  Else what fails a checksum may be another page's, and gets no new one.
    """

    def __init__(self, device: Device, report: Report, *, sure: bool = True) -> None:
        self.device, self.report, self.sure = device, report, sure

    def mark(self, section: int) -> None:
        """Mark a section as written, durably."""
        sections = self.device.mapping.sections
        sections[section] |= np.uint8(layout.SECTION_TOUCHED)
        self.device.journal.put_sections(dict(statefile.section_rows(sections)))

    def info_blocks(self) -> None:
        """Write the copy that is torn or older again."""
        for finding in self.report.of(Kind.INFO_TORN, Kind.INFO_DIFFERS):
            assert finding.offset is not None
            self.device.store_info(self.device.plan.info, finding.offset)
            self.report.done(finding, "written again")

    def _call(self, function: Callable[..., Any], page: int) -> None:
        result = function(self.device.handle, page)
        if result:
            self.device.finish(lambda handle, _: function(handle, page), result, page << layout.PAGE_SHIFT)

    def pages(self, todo: list[tuple[int, Finding]], watch: Callable[[float], None]) -> None:
        """Bring pages into line, give their space back, or mark them as damaged."""
        for number, (page, finding) in enumerate(todo):
            if number % 1024 == 0:
                watch(number / len(todo))
            if finding.kind is Kind.LEAKED_DATA:
                self._call(checkscan.punch_page, page)
                self.report.done(finding, "space given back")
            elif finding.kind is Kind.DATA_DAMAGED or (not self.sure and finding.kind in DOUBTED_KINDS):
                self._call(upkeep.condemn, page)
                why = {"why": finding.kind.sentence, "time": int(time.time()), "offset": finding.offset}
                self.device.journal.retire(page, why)
                self.report.done(finding, "data lost; reads fail until the page is written whole")
            else:
                self._call(upkeep.rebuild if finding.kind is Kind.DESCRIPTOR_LOST else upkeep.heal, page)
                verified = finding.kind is Kind.UNSETTLED
                self.report.done(finding, "rebuilt" if verified else "rebuilt; the data could not be verified")

    def totals(self, path: Path) -> None:
        """Note in the totals what the counters have more or less."""
        device = self.device
        tally, unit = device.mapping.core["tally"][0], device.mapping.core["unit"][0]
        measured = wear.measure(path / "wear", 4 * device.plan.line_count)
        off = wear.difference(tally, measured)
        lost = self.report.of(Kind.WEAR_LOST)
        if lost:
            lost[0].repaired += f"; {-off} line writes are forgotten, and the totals say so"
            self.report.checked |= {"line_writes": measured.total, "hottest": measured.hottest}
        else:
            for finding in wear.compare(self.report, tally, measured):
                self.report.done(finding, "noted in the totals")
        for finding in wear.compare_totals(self.report, device.mapping.core):
            self.report.done(finding, "added up anew; one of the totals stays wrong")
        unit[layout.UNIT_TALLY] = 0
        tally["uncheckpointed"] += off
        tally["cuts"] = 0
        tally["hottest"] = measured.hottest
        recovery.know_sum(device.mapping.core)

    def finish(self) -> None:
        """Make all of it durable; then nothing is suspect any more, and the journal says what was done."""
        device = self.device
        device.flush(counted=False)
        device.checkpoint()
        sections = device.mapping.sections
        settled = bool(np.any(sections & layout.SECTION_SUSPECT))
        sections[:] &= np.uint8(layout.SECTION_TOUCHED | layout.SECTION_DIRTY | layout.SECTION_RECENT)
        if settled:
            device.journal.put_sections(dict(statefile.section_rows(sections)))
        if self.report.repairs or settled or not self.sure:
            counts = {kind.word: count for kind, count in self.report.repairs.items()}
            uncheckpointed = int(device.mapping.core["tally"][0]["uncheckpointed"])
            device.journal.event({"event": "repaired", "counts": counts, "uncheckpointed": uncheckpointed})
        if device.journal.remade:
            device.journal.note_remade(False)
        for finding in self.report.of(Kind.REPAIR_UNFINISHED):
            self.report.done(finding, "done")


def open_device(path: Path, report: Report) -> Device | None:
    """Open the device, which recovers it; None, and said in the report, where it cannot be opened."""
    try:
        return Device(path)
    except PmemError as error:
        report.unchecked.append(f"the image cannot be opened: {error.what}")
        return None
