# SPDX-License-Identifier: MIT
"""The steps of a conversion in place, each made durable before the next; run.py says which and why."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import capacity, checkscan, host, infoblock, layout, reshape, statefile
from ..binding import Handle, bind
from ..check import pages as check_pages
from ..check import trust
from ..device import Device
from ..errors import BadData, DamagedImage, DoesNotFit, UnsupportedImage
from ..geometry import Geometry
from ..infoblock import Info
from ..journal import Journal
from . import saved

BATCH_PAGES = 1 << 14  # most pages of a batch: 64 MiB
BAD_SHOWN = 20
PHASES = ("move", "describe", "sweep", "verify", "finish")
SHAPED = "shaped"  # the journal has the new shape; what is left is to make files of it
Watch = Callable[[float], None]


def shape(info: Info) -> dict[str, int]:
    """What a conversion changes of an image."""
    return {"descriptor_bytes": info.descriptor_bytes, "descriptor_format": info.descriptor_format}


def told(of: dict[str, int]) -> str:
    """A shape in words."""
    return f"descriptors of {of['descriptor_bytes']} bytes, format {of['descriptor_format']}"


def summary(record: dict[str, Any], old: Geometry, new: Geometry) -> dict[str, Any]:
    """What every conversion says of itself when it is done; sizes in bytes."""
    sizes = {"device_bytes_before": old.device_bytes, "device_bytes": new.device_bytes}
    return {"from": record["from"], "to": record["to"], "changed": True, **sizes}


def require_settled(device: Device) -> None:
    """UnsupportedImage where checksums are not compared in all sections: what is damaged there would get good ones."""
    if np.any(device.mapping.sections & layout.SECTION_SUSPECT):
        what = "some of its sections held writes not flushed at a power cut"
        raise UnsupportedImage(device.path, what, f"'pmem-nbd check --repair {device.path}' first")


def pages_in_file(device: Device) -> np.ndarray:
    """Which placed pages are in no hole of the medium (`held` of checkscan); DamagedImage."""
    blocks = check_pages.blocks_in_use(device.path / "media", device.plan.info.size)
    table = device.mapping.table[: len(device.plan.table)].copy()
    problem, in_file = trust.survey(device.plan, device.handle, table, blocks, lambda share: None)
    if problem:
        raise DamagedImage(device.path / "state", problem, "a map that is one-to-one")
    return in_file


def lost_pages(device: Device) -> Iterator[int]:
    """The pages that read as zeros for want of their descriptors, and are not: a conversion would leave them behind."""
    in_file, at, end = pages_in_file(device), 0, device.plan.info.page_count
    while (at := int(checkscan.lost(device.handle, at, end, in_file))) < end:
        yield at
        at += 1


def shown(pages: list[int], count: int) -> str:
    """The first of `count` pages, some of which are in `pages`."""
    return ", ".join(map(str, pages[:BAD_SHOWN])) + (", ..." if count > BAD_SHOWN else "")


def require_whole(device: Device, bad: list[int], count: int) -> None:
    """BadData where `count` pages, some of which are in `bad`, fail a checksum, or where others have no descriptor."""
    lost = list(lost_pages(device))
    if not count and not lost:
        return
    named = shown(sorted({*bad, *lost}), count + len(lost))
    what = f"{count + len(lost)} pages are damaged, and a conversion would hide it: {named}"
    raise BadData(device.path, what, "'pmem-nbd check' names them; trim them or write them whole")


def target_of(device: Device, new: Geometry) -> Handle:
    """The `target` of reshape's loops."""
    run, core = device.mapping.run.copy(), device.mapping.core.copy()
    for name, value in new.for_compiled_code().items():
        run[name] = value
    run["coalesced"] = 0
    core["placement"] = new.placement_state
    return bind(run, core, new)


def gather(device: Device, new: Geometry, writer: saved.Writer, watch: Watch) -> None:
    """Fill the file; BadData, DoesNotFit."""
    target, plan = target_of(device, new), device.plan
    each = layout.PAGE_BYTES // new.info.descriptor_bytes
    size = plan.info.section_pages
    numbers, pages = np.empty(saved.CHUNK, np.int64), np.empty(saved.CHUNK * layout.PAGE_BYTES, np.uint8)
    bad, bad_pages, beyond = np.zeros(BAD_SHOWN, np.int64), [], 0
    bad_count = 0
    for section in np.flatnonzero(device.mapping.sections[: plan.section_count]).tolist():
        watch(0.3 * section / plan.section_count)
        at, last = section * size // each, -(-min((section + 1) * size, plan.info.page_count) // each)
        while at < last:
            at, made, wrong, outside = reshape.gather(device.handle, target, at, last, numbers, pages, bad)
            bad_pages += bad[: min(wrong, BAD_SHOWN)].tolist()
            bad_count, beyond = bad_count + wrong, beyond + outside
            writer.append(numbers[:made], pages[: made * layout.PAGE_BYTES])
    require_whole(device, bad_pages, bad_count)
    if beyond:
        what = f"{beyond} pages with data lie beyond the {new.device_bytes} bytes that would be left"
        raise DoesNotFit(
            device.path, what, f"shrink the filesystem to {new.device_bytes} bytes, and trim what is behind"
        )
    writer.finish()


def line_writes(device: Device) -> np.ndarray:
    """The totals of line writes by cause, int64[4]."""
    return np.array(device.mapping.core["tally"][0]["worn"])


class Conversion:
    """One that is under way, in an opened device.  before: the line writes by cause when this run began, int64[4]."""

    def __init__(self, device: Device, new: Geometry, record: dict[str, Any], watch: Watch, before: np.ndarray) -> None:
        self.device, self.new, self.record, self.watch = device, new, record, watch
        info = new.info
        self.saved = saved.Saved(device.path, info.uuid, info.descriptor_bytes, info.page_count)
        self.target = target_of(device, new)
        self._before = before
        self._bad: list[int] = []
        self._bad_count = 0

    def run(self) -> dict[str, Any]:
        """Do what is left to be done; the summary."""
        for phase in PHASES[PHASES.index(self.record["phase"]) :]:
            if phase != self.record["phase"]:
                self._commit(phase, None)
            getattr(self, f"_{phase}")()
        if self._bad_count:
            # What they held is nowhere.  Their descriptors say so: to read them fails, as in any image.
            named = shown(self._bad, self._bad_count)
            what = f"it is converted, but {self._bad_count} pages were damaged meanwhile: {named}"
            raise BadData(self.device.path, what, "'pmem-nbd check' names them; trim them or write them whole")
        return self.summary

    def _commit(self, phase: str, at: int | None) -> None:
        """Everything so far is durable; and only then is that said."""
        self.device.checkpoint()
        self.record = {**self.record, "phase": phase, "at": at}
        self.device.journal.put_conversion(self.record)

    def _loop(self, function: Callable[..., int], *arguments: Any, at: int, behind: tuple[Any, ...] = ()) -> None:
        """Call a loop of reshape until it is through."""
        while result := int(function(self.device.handle, *arguments, at, *behind)):
            code, at = result & layout.STOP_MASK, result >> layout.STOP_SHIFT
            if code == layout.BAD_DATA:
                raise BadData(self.device.path, f"page {at}: it changed while it was copied", "a disk that is well")
            if code == layout.CHECKPOINT:
                self.device.commit_moves()
            else:
                with host.host_errors(self.device.path / "media"):
                    raise host.os_error(code >> layout.ERRNO_SHIFT)

    def _move(self) -> None:
        held, pages = self.saved.held, min(self.new.info.page_count, self.device.plan.info.page_count)
        step = -1 if self.new.info.descriptor_bytes > self.device.plan.info.descriptor_bytes else 1
        at = self.record["at"] if self.record["at"] is not None else (pages - 1 if step < 0 else 0)
        for first, end in self._batches(at, step):
            self._loop(reshape.move, self.target, held, at=first, behind=(end, step))
            self._commit("move", end)
            self.watch(0.3 + 0.5 * (abs(end - (pages - 1 if step < 0 else 0)) / pages))

    def _batches(self, at: int, step: int) -> Iterator[tuple[int, int]]:
        while True:
            first, end = reshape.batch(self.device.handle, self.target, self.saved.held, at, step, BATCH_PAGES)
            if first == end:
                return
            yield int(first), int(end)
            at = int(end)

    def _describe(self) -> None:
        for at, records in self.saved.chunks(self.record["at"] or 0):
            self._store(records)
            self._commit("describe", at + len(records))
            self.watch(0.8 + 0.1 * (at + len(records)) / self.saved.count)

    def _store(self, records: np.ndarray) -> None:
        """Store descriptor pages as the file has them."""
        pages = np.ascontiguousarray(records["descriptors"]).reshape(-1)
        self._loop(reshape.describe, self.target, records["number"].copy(), pages, at=0)

    def _sweep(self) -> None:
        device, new, found = self.device, self.new, self.saved
        in_file = pages_in_file(device)
        each = layout.PAGE_BYTES // new.info.descriptor_bytes
        self._loop(reshape.sweep_pages, self.target, found.held, in_file, at=0, behind=(new.info.page_count,))
        numbers = -(-new.info.page_count // each)
        self._loop(reshape.sweep_descriptors, self.target, found.says, in_file, at=0, behind=(numbers,))
        for first, end in capacity.padding(new):
            first, end = -(-first // layout.PAGE_BYTES), end // layout.PAGE_BYTES
            self._loop(reshape.sweep_placed, in_file, at=first, behind=(end,))

    def _verify(self) -> None:
        for at, records in self.saved.chunks():
            self._bad_count += self._verify_chunk(records)
            self.watch(0.9 + 0.1 * (at + len(records)) / self.saved.count)

    def _verify_chunk(self, records: np.ndarray) -> int:
        """How many pages have data that is not theirs any more; a descriptor that is not is stored once more."""
        numbers, found = records["number"].copy(), np.zeros(BAD_SHOWN, np.int64)
        wrong, count = reshape.verify(self.target, numbers, self.saved.held, found)
        if wrong >= 0:
            self._store(records)
            wrong, count = reshape.verify(self.target, numbers, self.saved.held, found)
        if wrong >= 0:
            what = f"page {wrong}: its descriptor does not stay what was stored"
            raise BadData(self.device.path, what, "a disk that is well")
        self._bad += found[: min(count, BAD_SHOWN)].tolist()
        return int(count)

    def _finish(self) -> None:
        device, new = self.device, self.new
        for at in layout.INFO_OFFSETS:
            reshape.count_info(device.handle, at)
        worn = (line_writes(device) - self._before).tolist()
        self.summary = {
            **summary(self.record, device.plan, new),
            "pages_with_data": int(np.unpackbits(self.saved.held).sum()),
            "line_writes": dict(zip(layout.CAUSES, worn, strict=True)),
        }
        device.sample()
        device.checkpoint()
        core = device.mapping.core.copy()
        core["placement"], core["intent"] = new.placement_state, 0
        table, ticks = device.mapping.table[: len(new.table)].copy(), device.mapping.ticks.copy()
        sections = self.saved.sections(new.section_count, new.info.section_pages)
        event = {"event": "converted", "from": told(self.record["from"]), "to": told(self.record["to"])}
        chunks, rows = dict(statefile.table_chunks(table)), dict(statefile.section_rows(sections))
        device.journal.put_shape(core.tobytes(), chunks, rows, {**self.record, "phase": SHAPED}, event)
        try:
            finish(device.path, device.journal, new, ticks)
        finally:
            device.abandon()


def finish(path: Path, journal: Journal, new: Geometry, ticks: np.ndarray = statefile.NO_WORDS) -> None:
    """Make state file and info blocks those of the journal's shape, and forget the conversion."""
    core, table = journal.load_checkpoint()
    held = np.frombuffer(core, layout.core_dtype(new.placement.STATE, new.leveling.STATE))
    sections = np.frombuffer(journal.load_sections(), np.uint8)
    with host.host_errors(path / "state"):
        statefile.write_state(path / "state", new, held, np.frombuffer(table, np.int64), sections, ticks)
    with host.host_errors(path / "media"):
        infoblock.write(path / "media", new.info)
    forget(path, journal)


def forget(path: Path, journal: Journal) -> None:
    saved.remove(path)
    journal.put_conversion(None)
