# SPDX-License-Identifier: MIT
"""A check from beginning to end."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import geometry, image, infoblock, layout, recovery
from ..device import Device
from ..errors import DamagedImage, UnsupportedImage, UsageError
from ..geometry import Geometry
from ..host import Lock, cache_was_kept, host_errors
from . import choose, doubt, groups, mend, pages, trust, wear
from .choose import CLOSED, CUT, KILLED, MISSING, SESSIONS, UNKNOWN, Image
from .findings import Kind, Report
from .probe import Record, read_journal
from .trust import Belief, Stage

Watch = Callable[[float], None]
FILES = {"media", "wear", "state", "journal", "lock"}
JOURNAL_FILES = {"data.mdb", "lock.mdb"}
MAP_SHARE = 0.1  # of the time, for the progress


def check(path: Path, *, repair: bool = False, watch: Watch = lambda share: None) -> Report:
    """Check the image at `path`; with `repair`, mend what can be mended.  watch is told the share done, 0 to 1.

    Without repair not a byte of the image changes.  Errors: ImageBusy (it is being served, or read by others while it
    is to be repaired), NotAnImage, UnsupportedImage, HostFull, HostError.
    """
    started, report = time.monotonic(), Report()
    image.find(path)
    lock = Lock(path, read_only=not repair)
    try:
        belief, found = _look(path, report, repair, watch)
        if repair and belief and found:
            mend.files(path, found.plan, report, belief, found.record)
    finally:
        lock.release()
    if repair and belief and found:
        _mend(found, report, watch)
    report.checked["seconds"] = round(time.monotonic() - started, 3)
    watch(1.0)
    return report


def _look(path: Path, report: Report, repair: bool, watch: Watch) -> tuple[Belief | None, Image | None]:
    """Everything up to what is believed of the map; without repair also pages and wear, by that belief."""
    _strange_files(path, report)
    found = _examine_parts(path, report, repair)
    if found is None:
        return None, None
    with trust.staged(path, found.plan, wear_is_whole=found.wear_is_whole) as stage:
        belief = choose.believe(found, report, stage, lambda share: watch(share * MAP_SHARE))
        if belief is None:
            report.add(Kind.MAP_LOST, "state")
            report.unchecked.append("descriptors and data: nothing says where they are")
        elif choose.is_doubtful(found, belief, report, stage):
            return None, found
        elif not repair:
            _walk(found, report, stage, belief, watch)
    return belief, found


def _strange_files(path: Path, report: Report) -> None:
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in FILES)
    inner = (entry.name for entry in (path / "journal").glob("*"))
    strange += sorted(f"journal/{name}" for name in inner if name not in JOURNAL_FILES)
    for name in strange:
        report.add(Kind.STRANGE_FILE, name)


def _examine_parts(path: Path, report: Report, repair: bool) -> Image | None:
    """Info blocks, presence and sizes of the files, and the journal; None where nothing else can be checked."""
    plan = _examine_info(path / "media", report, repair)
    if plan is None:
        return None
    found, wanted = (path / "media").stat().st_size, plan.info.size
    if found > wanted:
        report.add(Kind.MEDIA_LONG, "media", f"{found} bytes, {wanted} expected")
    elif found < wanted:
        report.add(Kind.MEDIA_SHORT, "media", f"{found} bytes, {wanted} expected")
        report.unchecked.append("descriptors and data: the medium is not whole")
        return None
    found = (path / "wear").stat().st_size if (path / "wear").is_file() else -1
    wanted = 4 * plan.line_count
    if found > wanted:
        report.add(Kind.WEAR_LONG, "wear", f"{found} bytes, {wanted} expected")
    elif found < wanted:
        report.add(Kind.WEAR_LOST, "wear", "missing" if found < 0 else f"{found} bytes, {wanted} expected")
    record, end = _examine_journal(path, plan, report)
    report.session = SESSIONS[end]
    return Image(path, plan, record, end, found >= wanted)


def _examine_info(media: Path, report: Report, repair: bool) -> Geometry | None:
    with host_errors(media), media.open("rb") as file:
        blocks = [os.pread(file.fileno(), layout.INFO_BYTES, at) for at in layout.INFO_OFFSETS]
    copies = [infoblock.unpack(block) for block in blocks]
    try:
        info = infoblock.read(media, read_only=not repair)
        try:
            plan = geometry.derive(info)
        except UnsupportedImage as error:
            raise UnsupportedImage(media, f"info block: {error.subject}: {error.what}", error.expected) from None
    except (DamagedImage, UsageError) as error:
        report.add(Kind.INFO_LOST, "media", error.what, offset=layout.INFO_OFFSETS[0])
        report.unchecked.append("everything behind the info blocks")
        return None
    for copy, at in zip(copies, layout.INFO_OFFSETS, strict=True):
        if copy is None:
            report.add(Kind.INFO_TORN, "media", f"the copy at {at}", offset=at)
    if all(copies) and blocks[0] != blocks[1]:
        older = layout.INFO_OFFSETS[copies[1] != plan.info]
        report.add(Kind.INFO_DIFFERS, "media", f"the copy at {older} is the older one", offset=older)
    report.checked["info_blocks"] = sum(copy is not None for copy in copies)
    return plan


def _examine_journal(path: Path, plan: Geometry, report: Report) -> tuple[Record, str]:
    """What the journal holds, and how the last session ended by it."""
    if not (path / "journal" / "data.mdb").is_file():
        report.add(Kind.JOURNAL_LOST, "journal")
        return Record(problem=MISSING), UNKNOWN
    record = read_journal(path / "journal")
    if record.problem:
        report.add(Kind.JOURNAL_DAMAGED, "journal", record.problem)
        return record, UNKNOWN
    if record.uuid != plan.info.uuid:
        report.add(Kind.JOURNAL_FOREIGN, "journal", f"uuid {record.uuid}, {plan.info.uuid} expected")
        return Record(problem="another image's"), UNKNOWN
    report.checked["events"] = len(record.events)
    if record.damaged:
        report.add(Kind.JOURNAL_RECORDS, "journal", record.damaged)
    if record.remade:
        report.add(Kind.REPAIR_UNFINISHED, "journal")
    if not record.session.get("open"):
        return record, CLOSED
    same = cache_was_kept(path, record.session)
    return record, KILLED if same else CUT


# ---- pages and wear ----


def _totals_only_grew(found: Image) -> bool:
    return found.end in (CLOSED, KILLED) and wear.totals_only_grew(found.record)


def _walk(found: Image, report: Report, stage: Stage, belief: Belief, watch: Watch) -> None:
    """Pages and wear of an image that is not to be changed."""
    stage.load(belief)
    sections = stage.mapping.sections
    if found.end == CUT:
        suspect = int(np.count_nonzero(sections & layout.SECTION_SUSPECT))
        report.session += f", and compares no checksums in {suspect} sections"
    # As opening would after a kill, but in memory; nothing is in flight otherwise.
    recovery.finish_count(stage.mapping)
    media, intent, ordered = found.path / "media", stage.mapping.core[0]["intent"], _totals_only_grew(found)
    flying = recovery.pages_in_flight(intent), recovery.pages_in_trim(intent)
    scan = pages.Scan(report, media, found.plan, stage.handle, sections, belief.held, ordered, *flying, found.behind)
    scan.run(lambda share: watch(MAP_SHARE + (1 - MAP_SHARE) * share))
    if found.end == CLOSED and groups.can_be_told(found.plan) and not np.any(sections & layout.SECTION_SUSPECT):
        # After a crash heads may be stale or missing, until the device is opened, or repaired.
        groups.examine(report, found.plan, stage.handle, belief.held)
    wear.compare_totals(report, stage.mapping.core)
    if scan.ordered:
        wear.compare_lines(report, stage.mapping.core["tally"][0], scan.lines)
    if found.wear_is_whole:
        measured = wear.measure(found.path / "wear", 4 * found.plan.line_count)
        wear.compare(report, stage.mapping.core["tally"][0], measured)


def _mend(found: Image, report: Report, watch: Watch) -> None:
    """Pages, info blocks and totals, through the opened device."""
    device = mend.open_device(found.path, report)
    if device is None:
        return
    with device:
        mender = mend.Mender(device, report, sure=found.sure)
        mender.info_blocks()
        media, mapping, held = found.path / "media", device.mapping, _held(device)
        ordered = _totals_only_grew(found)
        scan = pages.Scan(report, media, device.plan, device.handle, mapping.sections, held, ordered)
        scan.behind, scan.mark = found.behind, mender.mark
        scan.run(lambda share: watch(MAP_SHARE + 0.8 * share))
        if len(device.plan.table) and doubt.contradicts(scan, report):
            mender.sure = False
        mender.pages(scan.todo, lambda share: watch(0.9 + 0.1 * share))
        if groups.can_be_told(device.plan):
            groups.repair(report, device, _held(device) if scan.todo else held)
        mender.totals(found.path)
        mender.finish()
        # The views of the mapping must be gone before it is closed.
        del scan, mapping


def _held(device: Device) -> np.ndarray:
    """Which placed pieces are in no hole of the medium by now; as in checkscan."""
    plan, table = device.plan, device.mapping.table[: len(device.plan.table)]
    blocks = pages.blocks_in_use(device.path / "media", plan.info.size)
    return trust.survey(plan, device.handle, table, blocks, lambda share: None)[1]
