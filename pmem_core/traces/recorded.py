# SPDX-License-Identifier: MIT
"""A device whose requests are recorded, in the order in which it does them.

A request is done and noted under one lock.  Where compiled code stops for the disk, the lock is given up: another
request may come in between, and then what was done so far is noted before that one, as a request of its own, and the
rest behind it.  So it is with a request that fails: what was done of it is noted.  (Were the lock held, requests would
wait for housekeeping's checkpoints, which want it for the pending descriptors and hold the disk's.)

A flush is noted when it has put the pending descriptors on the medium, and handed to the host before it waits for the
disk.  Reads are not noted: they wear nothing.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pmem_core import __version__, datapath, layout
from pmem_core.device import Device
from pmem_core.tracescan import DRAIN, FLUSH, TRIM, WRITE, ZERO, ZERO_KEEP

from .writer import Writer


@dataclasses.dataclass(eq=False, slots=True)
class _Begun:
    """A request that is being done.  done, noted: bytes; of a drain or flush, pending slots."""

    kind: int
    offset: int
    count: int
    done: int = 0
    noted: int = 0


class RecordedDevice(Device):
    """A device open for writing, and the recording of it; `tell` is given lines for people."""

    def __init__(self, path: Path, recording: Path, *, tell: Callable[[str], None]) -> None:
        self._mine = threading.local()
        self._stopped: list[_Begun] = []
        self._writer: Writer | None = None
        super().__init__(path)
        try:
            self._writer = Writer(recording, device_bytes=self.plan.device_bytes, about=self._about(), tell=tell)
        except BaseException:
            super().close()
            raise

    def _about(self) -> dict[str, Any]:
        tally = {name: self._tally[name].tolist() for name in layout.TALLY.names or ()}
        image = dataclasses.asdict(self.plan.info)
        return {"program": f"pmem-nbd {__version__}", "began": int(time.time()), "image": image, "tally": tally}

    # ---- requests ----

    def write(self, data: Any, offset: int, *, fua: bool = False) -> None:
        assert self._writer is not None
        count = len(data)
        self._require(count, offset)
        where = self._where(data, offset)
        with self._writer.lock:
            result = self._call(datapath.write, *where, 0)
            if result == layout.OK and not self._stopped:
                self._writer.note(WRITE, offset, count)  # nearly all of them: nothing was waited for
            else:
                rest = functools.partial(self.finish, datapath.write, result, offset, *where)
                self._go_on(_Begun(WRITE, offset, count), rest)
        if fua:
            self.flush(counted=False)

    def trim(self, count: int, offset: int, *, fua: bool = False) -> None:
        self._do(_Begun(TRIM, offset, count), functools.partial(super().trim, count, offset))
        if fua:
            self.flush(counted=False)

    def zero(self, count: int, offset: int, *, may_trim: bool = True, fua: bool = False) -> None:
        request = functools.partial(super().zero, count, offset, may_trim=may_trim)
        self._do(_Begun(ZERO if may_trim else ZERO_KEEP, offset, count), request)
        if fua:
            self.flush(counted=False)

    def flush(self, *, counted: bool = True) -> None:
        self._mine.flush = "counted" if counted else "fua"
        try:
            super().flush(counted=counted)
        finally:
            self._mine.flush = ""

    def _drain(self) -> None:
        flush = getattr(self._mine, "flush", "")
        if self._writer is None or not (flush or self.plan.pending_bytes):
            super()._drain()
            return
        begun = _Begun(FLUSH if flush else DRAIN, 0, layout.PENDING_SLOTS)
        self._do(begun, super()._drain, fua=flush == "fua")

    # ---- notes ----

    def _do(self, begun: _Begun, request: Callable[[], None], *, fua: bool = False) -> None:
        assert self._writer is not None
        with self._writer.lock:
            self._go_on(begun, request, fua=fua)
            if begun.kind == FLUSH:
                self._writer.save()

    def _go_on(self, begun: _Begun, request: Callable[[], None], *, fua: bool = False) -> None:
        """Do a request, or the rest of it, and note it."""
        self._mine.begun = begun
        try:
            request()
            begun.done = begun.count
        finally:
            self._mine.begun = None
            self._note_stopped()
            self._note(begun, fua=fua)

    def _note_stopped(self) -> None:
        """Note what was done of the requests that wait for the disk: it was done before what comes now."""
        for other in self._stopped:
            self._note(other)

    def _note(self, begun: _Begun, *, fua: bool = False) -> None:
        assert self._writer is not None
        if begun.done == begun.noted:
            return
        if begun.kind < FLUSH:
            self._writer.note(begun.kind, begun.offset + begun.noted, begun.done - begun.noted)
        else:
            # A flush that has not come to its end has made nothing durable.
            self._writer.note(begun.kind if begun.done == begun.count else DRAIN, fua=fua)
        begun.noted = begun.done

    def _resume(self, result: int, offset: int) -> None:
        begun = getattr(self._mine, "begun", None)
        if begun is None:
            super()._resume(result, offset)
            return
        if result >> layout.STOP_SHIFT > begun.done:
            self._note_stopped()
            begun.done = result >> layout.STOP_SHIFT
        with self._given_up(begun):
            super()._resume(result, offset)

    @contextlib.contextmanager
    def _given_up(self, begun: _Begun) -> Iterator[None]:
        assert self._writer is not None
        self._stopped.append(begun)
        self._writer.lock.release()
        try:
            yield
        finally:
            self._writer.lock.acquire()
            self._stopped.remove(begun)

    # ---- closing ----

    def close(self) -> None:
        """Close the device, and then the recording."""
        try:
            super().close()
        finally:
            if self._writer is not None:
                self._writer.close()
