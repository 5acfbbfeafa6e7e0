# SPDX-License-Identifier: MIT
# long: an image in use, from its opening to its close, in the order in which things happen
"""The device: opened (and recovered), used, checkpointed, closed.

What an open finds, and does:

============================ ======================================= ===========================================
the last session             what may be believed                    what is done
============================ ======================================= ===========================================
closed                       every file                              nothing
killed (same boot and mount) every file, but for one page, or a few  the count of that run of lines is finished,
                             of a large write, and one run of lines  descriptors of these pages brought into line
power cut (anything else)    the medium's flushed pages, the         state is made anew from the journal; sections
                             journal, wear counters since the last   marked dirty become suspect: checksums are not
                             checkpoint in any mix                   compared there, until a repair
============================ ======================================= ===========================================

A frame freed by a move is not overwritten before a checkpoint has made the move durable, so the durable table always
finds whole frames.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from . import binding, datapath, host, image, infoblock, initialisation, layout, mapping, recovery, upkeep
from .durability import Durability
from .errors import BadData, DamagedImage, HostError, HostFull, UsageError
from .host import Lock
from .infoblock import Info
from .journal import Journal
from .turn import Turn

EXTENTS_MAX = 2048
PREFETCH_PAGES = 4096  # at most, whose places are looked up in a turn
PAUSE_SECONDS, PAUSE_EACH_SECONDS = 50e-6, 5e-3  # how long who waits needs to have the device, and how long it may wait


class Device:
    """An image in use.  One instance a process and image."""

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        converting: bool = False,
        lock: Lock | None = None,
        watch: initialisation.Watch | None = None,
    ) -> None:
        # converting: by a conversion, which may be under way.  lock: the caller's, and held longer than this.
        self.path = image.find(path)
        self.read_only = read_only
        self._paused = 0.0  # when a trim or zeroing last let others have the device
        # Called when leveling would like its moves committed soon; whoever serves the device may do that beside it.
        self.on_wanted: Callable[[], None] = lambda: None
        # Held while compiled code works on the device: of whoever serves it by several threads without the GIL.
        self.turn: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        # Before the lock: in what is no image of ours no file is made.
        plan = image.load_geometry(path, read_only=read_only, converting=converting)
        image.require_parts(path)
        image.require_wear(path, plan)
        self._lock = Lock(path, read_only=read_only) if lock is None else None
        with contextlib.ExitStack() as undo:
            undo.callback(self._release)
            # Whoever had the lock until now may have converted the image.
            self.plan = image.reload_geometry(path, plan, read_only=read_only, converting=converting)
            self.journal = Journal(path / "journal", read_only=read_only)
            undo.callback(self.journal.close)
            self._check_owner()
            self.recovery = self._open(undo, converting)
            initialisation.complete(self, watch)
            undo.pop_all()

    # ---- opening ----

    def _check_owner(self) -> None:
        if self.journal.uuid != self.plan.info.uuid:
            raise DamagedImage(self.path / "journal", "belongs to another image", f"uuid {self.plan.info.uuid}")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _open(self, undo: contextlib.ExitStack, converting: bool) -> str:
        """Map, recover (`recovered` says what was done); "" or what the last session's end was."""
        session = self.journal.session
        found = recovery.find_end(self.path, self.plan, session)
        sync_failed = found == "power cut" and host.sync_has_failed(self.path, session)
        if found == "power cut" and not self.read_only:
            recovery.rebuild_state(self.path, self.plan, self.journal)
        self.mapping = mapping.map_image(self.path, self.plan, read_only=self.read_only)
        undo.callback(self._unmap)
        self.mapping.run["session"] = time.time_ns()
        self.handle = binding.bind(self.mapping.run, self.mapping.core, self.plan)
        binding.bind_requests(self.handle)
        self._tally = self.mapping.core["tally"][0]
        if self.read_only and found == "power cut":
            recovery.recall(self.mapping, self.plan, self.journal)
        if found:
            table = recovery.last_checkpoint(self.plan, self.journal)[1]
            self.mapping.durable[: len(table)] = table
        recovery.require_sane(self.mapping, self.plan)
        if not found:
            # So `durable`, a copy of the mapped table, is as the journal has it.
            recovery.require_agreement(self.mapping, self.plan, self.journal)
        if found == "killed":
            recovery.require_newer(self.mapping, self.journal)
        if not self.read_only:
            # Not before: how the session ended of an image that is refused, the journal must go on to tell.
            event = {"event": "unclean", "how": found} if found else {"event": "opened"}
            told = {"pid": os.getpid(), **({"converting": True} if converting else {})}
            self.journal.begin_session({**host.witness(self.path), **told}, event)
        recovery.know_sum(self.mapping.core)
        self.recovered = recovery.Recovered(found, sections=self.plan.section_count, sync_failed=sync_failed)
        self._durability = Durability(self.path, self.plan, self.mapping, self._call, self.journal, self._drain)
        if found:
            self._durability.forget_moves()
        if found == "killed":
            # A checkpoint cut short may have cleared marks here that the journal still has, for data not yet synced.
            recovery.complete_state(self.mapping, self.plan, self.journal)
            self._finish_interrupted()
        if found:
            self.recovered.note(self.mapping, None if self.read_only else self.journal)
        if not self.read_only:
            host.mark_cache(self.mapping.files)
        if self.plan.in_memory:
            self.mapping.keep_descriptors(self.plan)  # not before: recovery goes on as with none
        self._sampled = -1
        return found

    def _finish_interrupted(self) -> None:
        """After a kill: finish the count of the run of lines, the pages in flight, and a trim's holes."""
        told, before = self.recovered, int(self._tally["healed"])
        told.lines = recovery.lines_in_flight(self.mapping)
        recovery.finish_count(self.mapping)
        told.pages = recovery.pages_in_flight(self.mapping.core[0]["intent"])
        for page in told.pages:
            if self.read_only:
                self.mapping.sections[page // self.plan.info.section_pages] |= np.uint8(layout.SECTION_SUSPECT)
            else:
                self.complete_page(upkeep.heal, page)
        told.healed = int(self._tally["healed"]) - before
        told.group = initialisation.finish_interrupted(self)
        told.trimmed = 0 if self.read_only else int(upkeep.finish_trim(self.handle))
        # Not before: what does not end well has to be done by the next open.
        self.mapping.core["intent"] = 0

    # ---- requests ----

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.turn:
            return function(self.handle, *arguments)

    def _require(self, count: int, offset: int, *, writes: bool = True) -> None:
        if writes and self.read_only:
            raise UsageError(self.path, "opened read-only", "open it for writing")
        if offset < 0 or count < 0 or offset + count > self.plan.device_bytes:
            raise UsageError(self.path, f"{count} bytes at {offset}", f"within {self.plan.device_bytes} bytes")

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes at `offset`; BadData where they do not match their checksums."""
        buffer = bytearray(count)
        self.read_into(buffer, offset)
        return bytes(buffer)

    def read_into(self, buffer: Any, offset: int) -> None:
        """Fill the writable `buffer` from `offset` on."""
        self._require(len(buffer), offset, writes=False)
        self.transfer(datapath.read, buffer, offset)

    def write(self, data: Any, offset: int, *, fua: bool = False) -> None:
        """Write `data` at `offset`; with `fua` it is durable on return.  HostFull, BadData (a part of a bad page)."""
        self._require(len(data), offset)
        self.transfer(datapath.write, data, offset)
        if fua:
            self.flush(counted=False)

    def trim(self, count: int, offset: int, *, fua: bool = False) -> None:
        """Give back the whole pages in the range; they read as zeros afterwards."""
        self._require(count, offset)
        self.complete(datapath.trim, offset, offset, offset + count)
        if fua:
            self.flush(counted=False)

    def zero(self, count: int, offset: int, *, may_trim: bool = True, fua: bool = False) -> None:
        """Make the range read as zeros; with `may_trim` whole pages are given back."""
        self._require(count, offset)
        self.complete(datapath.zero, offset, offset, offset + count, may_trim)
        if fua:
            self.flush(counted=False)

    def extents(self, count: int, offset: int, *, one: bool = False) -> list[tuple[int, int, bool]]:
        """(offset, bytes, holds data) from `offset` on; may stop early, never before the first extent's end."""
        self._require(count, offset, writes=False)
        runs = np.empty((1 if one else EXTENTS_MAX, 2), np.int64)
        filled = self._call(datapath.extents, offset, offset + count, runs)
        found, at = [], offset
        for end, holds in runs[:filled].tolist():
            found.append((at, end - at, bool(holds)))
            at = end
        return found

    def prefetch(self, count: int, offset: int) -> None:
        """Ask the host to bring the range's pages into memory."""
        self._require(count, offset, writes=False)
        page, end = offset // layout.PAGE_BYTES, -(-(offset + count) // layout.PAGE_BYTES)
        while page < end:
            places = np.empty(min(end - page, PREFETCH_PAGES), np.int64)
            self._call(upkeep.places, page, places)
            for run in np.split(places, np.flatnonzero(np.diff(places) != layout.PAGE_BYTES) + 1):
                size = run.size * layout.PAGE_BYTES
                os.posix_fadvise(self.mapping.files["media"], int(run[0]), size, os.POSIX_FADV_WILLNEED)
            page += places.size

    def transfer(self, function: Callable[..., int], buffer: Any, offset: int, result: int | None = None) -> None:
        """Do datapath.read or write of `buffer`, or the rest of it where it has begun and answered `result`."""
        if function is datapath.read and memoryview(buffer).readonly:
            raise BufferError("read into memory that must not change")
        where = self._where(buffer, offset)
        if result is None:
            result = self._call(function, *where, 0)
        self.finish(function, result, offset, *where)

    def _where(self, buffer: Any, offset: int) -> tuple[int, int, int]:
        """What datapath.read and write want to know: address and bytes of `buffer`, and the offset on the device."""
        memory = np.frombuffer(buffer, np.uint8)
        return memory.ctypes.data, memory.size, offset

    def finish(self, function: Callable[..., int], result: int, offset: int, *arguments: Any) -> None:
        """Do what a stop code asks for and call again, until all is done."""
        while result:
            if result & layout.STOP_MASK == layout.SOON:
                return self.on_wanted()
            self._resume(result, offset)
            result = self._call(function, *arguments, result >> layout.STOP_SHIFT)
        return None

    def complete(self, function: Callable[..., int], offset: int, *arguments: Any) -> None:
        self.finish(function, self._call(function, *arguments, 0), offset, *arguments)

    def complete_page(self, function: Callable[..., int], page: int) -> None:
        # A page is a single step: there is no `done`.
        while result := self._call(function, page):
            self._resume(result, page << layout.PAGE_SHIFT)

    def _resume(self, result: int, offset: int) -> None:
        code = result & layout.STOP_MASK
        page = (offset + (result >> layout.STOP_SHIFT)) >> layout.PAGE_SHIFT
        if code == layout.PAUSE:
            if time.monotonic() - self._paused > PAUSE_EACH_SECONDS:
                time.sleep(PAUSE_SECONDS)  # with the GIL, or the turn, given up: long enough for who waits to have it
                self._paused = time.monotonic()
        elif code == layout.CHECKPOINT:
            self.commit_moves()
        elif code == layout.SECTION:
            self._durability.mark_section(page)
        elif code in (layout.BAD_DATA, layout.BAD_DESCRIPTOR):
            which = "data" if code == layout.BAD_DATA else "descriptor"
            hint = "'pmem-nbd check' names all such pages"
            if self.plan.in_memory:
                hint = "its data changed since this server wrote or first read it; a restart forgets the checksum"
            raise BadData(self.path, f"page {page}: its {which} fails the checksum", hint)
        else:
            with host.host_errors(self.path / "media"):
                raise host.os_error(code >> layout.ERRNO_SHIFT)

    # ---- durability ----

    def flush(self, *, counted: bool = True) -> None:
        """Make every write that completed before this call durable.

        One fdatasync of the medium; then a commit of the journal, where what leveling moved since the last one was
        changed afterwards.
        """
        if self.read_only:
            return
        self._drain()
        self._durability.flush(counted=counted)

    def finish_flush(self, result: int) -> None:
        """Do the rest of a flush that compiled code began; see upkeep.flush_at."""
        self._durability.finish_flush(result)

    @property
    def flushing(self) -> Turn:
        """See durability.Durability."""
        return self._durability.flushing

    def _drain(self) -> None:
        if self.plan.pending_bytes:
            self.complete(upkeep.drain, 0)

    def checkpoint(self, *, settle_sections: bool = False, due: bool = True) -> bool:
        """Make medium, wear counters and journal durable together; see durability.Durability.checkpoint."""
        return self._durability.checkpoint(settle_sections=settle_sections, due=due)

    def commit_moves(self) -> None:
        """Let leveling go on: make the moves made so far durable."""
        self._durability.commit_moves()

    def store_info(self, info: Info, at: int) -> None:
        """Store `info` as the copy at byte `at` of the medium, and count its lines; nothing is waited for."""
        self._call(upkeep.store_info, np.frombuffer(infoblock.pack(info), np.uint8).copy(), at)

    def sample(self) -> None:
        """Append the wear totals to the journal's history, where something was written since the last time."""
        tally = self._call(lambda handle: self._tally.copy())  # of no request's middle
        worn = tally["worn"].tolist()
        if sum(worn) == self._sampled:
            return
        figures = {name: int(tally[name]) for name in ("writes", "written_bytes", "page_writes", "moves", "hottest")}
        self.journal.sample({**figures, "worn": dict(zip(layout.CAUSES, worn, strict=True))})
        self._sampled = sum(worn)

    def has_dirty(self) -> bool:
        """True where a section may hold writes that were not flushed."""
        return bool(np.any(self.mapping.sections & layout.SECTION_DIRTY))

    @property
    def medium(self) -> tuple[int, int]:
        """Address and bytes of the mapped medium."""
        return int(self.mapping.run["media"][0]), int(self.mapping.run["medium_bytes"][0])

    @property
    def waits_for_disk(self) -> bool:
        """False where the image lies in tmpfs."""
        return not self.mapping.run[0]["tmpfs"]

    def wants_checkpoint(self) -> bool:
        """True where leveling would soon have to stop for a checkpoint."""
        return bool(self.mapping.run[0]["wanted"])

    @property
    def sync_failed(self) -> bool:
        """See durability.Durability.sync_failed."""
        return self._durability.sync_failed

    # ---- closing ----

    def close(self) -> None:
        """Make everything durable and say so; the image may then be copied, moved or opened elsewhere."""
        try:
            if not self.read_only:
                self._drain()
                # Figures for plots; if the journal is at fault, the checkpoint says so.
                with contextlib.suppress(HostFull, HostError):
                    self.sample()
                self._durability.checkpoint(closing=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the files without a checkpoint: what a killed process leaves."""
        self.journal.close()
        self._unmap()
        self._release()

    def _unmap(self) -> None:
        self.handle = (np.zeros(1, layout.RUN), np.zeros(0, layout.CORE))
        self._tally = np.zeros((), layout.TALLY)
        self._durability = None  # type: ignore[assignment]  # it holds views of the files; nothing may use it any more
        self.mapping.close()

    def __enter__(self) -> "Device":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
