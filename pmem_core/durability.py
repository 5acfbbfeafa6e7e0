# SPDX-License-Identifier: MIT
"""When medium, wear counters and journal become durable, and in which order.

============== ================================================= ======================================================
               made durable                                      taken
============== ================================================= ======================================================
flush          the medium, then the leveling's table             at a flush; the table only where what moved has changed
commit_moves   the frames that moved, then the leveling's table  when leveling would overwrite a frame freed since then
checkpoint     medium and wear, then core, table and sections    by housekeeping, at the end
mark_section   the mark that a section may hold unflushed        before the first write to a section
               writes
============== ================================================= ======================================================

The medium is always first: what the journal says is true of the medium at every instant.  A page that moved and was not
written since is in its old frame too, which leveling leaves alone until the move is committed: so a flush commits moves
only where a frame that one filled was changed afterwards (RUN's `rewritten`).

One lock, so that two of these never mix; requests go on meanwhile, for the disk is waited for without the GIL.  What
must not mix with a request is done in the device's turn, by `call`.

No view of a mapped file is kept, in an attribute or a variable: an exception that somebody holds would keep it mapped.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import host, layout, reservations, sections, statefile, upkeep
from .binding import Handle
from .errors import HostError, HostFull
from .geometry import Geometry
from .journal import Journal
from .mapping import MOVED_ROOM, Mapping
from .turn import Turn


class Durability:
    """Of one opened device.

    call: calls a function with the device's handle and what is given beside it, in its turn.  drain: puts every pending
    descriptor on the medium.  Errors of every method: HostFull, HostError.
    """

    def __init__(
        self,
        path: Path,
        plan: Geometry,
        mapping: Mapping,
        call: Callable[..., Any],
        journal: Journal,
        drain: Callable[[], None],
    ) -> None:
        self._path, self._plan, self._mapping, self._call = path, plan, mapping, call
        self._journal, self._drain = journal, drain
        self._lock = threading.RLock()
        self._can_sync_ranges = host.can_sync_ranges(mapping.files["media"])
        # Held by a flush that syncs: one at a time, or one would not hear of what the other was told.
        self.flushing = Turn()

    def forget_moves(self) -> None:
        """Take none of the moves so far for durable: an earlier session made them, and nothing says which are."""

        def forget(handle: Handle) -> None:
            handle[0]["moved_count"] = MOVED_ROOM + 1
            handle[0]["committed"] = -1

        self._call(forget)

    # ---- the disk ----

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        # After a failed sync the kernel may have dropped the pages: nothing later can be promised.
        if self.sync_failed:
            raise self._earlier_failure()
        try:
            yield
            if self.sync_failed:  # of one beside ours, which may have been told what is ours too
                raise host.os_error(self._error())
        except OSError as error:
            self._refuse(error)

    @property
    def sync_failed(self) -> bool:
        """True where a sync failed: until the image is opened again nothing can be made durable."""
        return self._error() != 0

    def _earlier_failure(self) -> HostError:
        return HostError(self._path, "an earlier sync failed", "stop the server and check the disk")

    def _error(self) -> int:
        return int(self._mapping.run["sync_failed"][0])

    def _refuse(self, error: OSError) -> NoReturn:
        """A sync failed with `error`, and so does whoever asked for it, and every later one."""
        self._mapping.run["sync_failed"] = error.errno or errno.EIO
        # The next open is told that not all of the page cache is on the disk: after a kill it would believe the cache.
        host.mark_failed_sync(self._mapping.files)
        with contextlib.suppress(HostError, HostFull):  # it lies on the same disk
            self._journal.note_failed_sync()
        with host.host_errors(self._path):
            raise error

    def sync(self, *names: str) -> None:
        """Wait until files of the image are on the disk as they were when this was called."""

        def begin_epoch(handle: Handle) -> None:
            handle[0]["epoch"] = handle[0]["epoch"] % reservations.EPOCHS + 1

        if "media" in names:
            self._call(begin_epoch)
        with self._syncing():
            for name in names:
                os.fdatasync(self._mapping.files[name])

    def _sync_frames(self, frames: list[int]) -> None:
        with self._syncing():
            size = self._plan.info.frame_bytes
            ranges = [(layout.FRAMES_AT + size * first, layout.FRAMES_AT + size * end) for first, end in runs(frames)]
            host.sync_ranges(self._mapping.files["media"], int(self._mapping.run["media"][0]), ranges)

    def flush(self, *, counted: bool) -> None:
        """Make the medium durable, and whatever it takes to find it; the plugin has the same, compiled.

        One sync is for all who asked for it before it began.
        """
        result = self._step(upkeep.FLUSH_BEGUN, int(counted))
        if not result & layout.STOP_MASK:
            with self.flushing:
                result = self._step(upkeep.FLUSH_SYNC, result >> layout.STOP_SHIFT)
                if result == upkeep.SYNC:
                    self.sync("flushes")
                    result = self._step(upkeep.FLUSH_SYNCED, 0)
        if result:
            self.finish_flush(result)

    def _step(self, step: int, number: int) -> int:
        return int(self._call(upkeep.flush, step, number))

    def finish_flush(self, result: int) -> None:
        """Do the rest of a flush that answered `result` and not OK (upkeep.flush_at)."""
        if result == layout.CHECKPOINT:
            self._commit_table(whole=True)
        elif error := result >> layout.ERRNO_SHIFT:
            self._refuse(host.os_error(error))
        else:
            raise self._earlier_failure()

    # ---- moves ----

    @contextlib.contextmanager
    def _taken(self) -> Iterator[tuple[np.ndarray, list[int] | None]]:
        """Yield the table, and the frames moved since the last time; None where not all of them are known.

        Where the block under it fails they are not known from then on, for they have been taken.
        """
        table, frames = np.empty(len(self._mapping.table), np.int64), np.empty(MOVED_ROOM, np.int64)

        def take(handle: Handle) -> tuple[int, int, int]:
            # It counts as a rewriting: until what is taken is committed, flushes wait for that.
            count = int(upkeep.take_moves(handle, table, frames))
            return count, int(handle[0]["rewritten"][0]), int(handle[0]["blanked"][0])

        count, rewritten, blanked = self._call(take)
        try:
            yield table, frames[:count].tolist() if count <= len(frames) else None
        except BaseException:
            self.forget_moves()
            raise
        self._mapping.durable[:] = table
        self._mapping.run["blanked_durably"] = blanked
        self._mapping.run["committed"] = rewritten

    def _changed(self, table: np.ndarray) -> dict[int, bytes]:
        words = len(self._plan.table)
        return dict(statefile.table_chunks(table[:words], self._mapping.durable[:words]))

    def commit_moves(self) -> None:
        """Make the moves made so far durable, so that leveling may go on; no other write is waited for."""
        self._commit_table(whole=False)

    def _commit_table(self, *, whole: bool) -> None:
        # whole: all of the medium is made durable, not only the frames that moved.
        with self._lock, self._taken() as (table, frames):
            if whole or frames is None or not self._can_sync_ranges:
                self.sync("media")
            elif frames:
                self._sync_frames(frames)
            self._journal.put_table(self._changed(table))

    # ---- checkpoints and sections ----

    def checkpoint(self, *, closing: bool = False, settle_sections: bool = False, due: bool = True) -> bool:
        """Make medium, wear counters and journal durable together; True where it was done.

        settle_sections: also clear the dirty marks of sections not written since the last time this was asked.  due:
        do it also where there is no such section.
        """
        with self._lock:
            cleared = np.empty(self._plan.section_count if closing or settle_sections else 0, np.int64)
            if len(cleared):
                cleared = cleared[: int(self._call(upkeep.clear_dirty, closing, cleared))]
            if not due and not len(cleared):
                return False
            try:
                if len(cleared):
                    # Their pending descriptors too: behind a cleared mark a lost one would be damage.
                    self._drain()
                self._commit(cleared, closing)
            except BaseException:
                self._call(upkeep.restore_dirty, cleared)
                raise
            return True

    def _commit(self, cleared: np.ndarray, closing: bool) -> None:
        with self._taken() as (table, _):
            core = self._call(lambda handle: bytes(self._mapping.core.data))
            self.sync("media", "wear")
            if closing:
                self.sync("state")
            event = {"event": "closed"} if closing else None
            rows = sections.rows_of(self._mapping.sections, cleared)
            self._journal.checkpoint(core, self._changed(table), rows, closing=closing, event=event)

    def mark_section(self, page: int) -> None:
        """Mark the section of `page` dirty, durably, before its first write."""
        with self._lock:
            at = page // self._plan.info.section_pages
            if not self._mapping.sections[at] & layout.SECTION_DIRTY:
                self._journal.put_sections(sections.row_if_marked(self._mapping.sections, at))
                self._call(lambda handle: sections.mark(self._mapping.sections, at))


def runs(frames: list[int]) -> list[tuple[int, int]]:
    """First frame and end of each run of adjacent frames."""
    found: list[tuple[int, int]] = []
    for frame in sorted(set(frames)):
        if found and found[-1][1] == frame:
            found[-1] = (found[-1][0], frame + 1)
        else:
            found.append((frame, frame + 1))
    return found
