# SPDX-License-Identifier: MIT
"""A device whose writes are logged: each request is done and noted under one lock, so the log's order is the device's.

Nothing is logged that failed, though a part of it may be on the device: its client knows.  Where the disk under the log
is full, a write is refused before it is done; with FUA, afterwards.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmem_core.layout import PAGE_BYTES

from . import record
from .record import SECTOR_BYTES
from .spool import Entry
from .writer import Writer

if TYPE_CHECKING:
    from pmem_core.device import Device


class LoggedDevice:
    """An open device and its log; every method may be called by several threads at once."""

    def __init__(self, device: "Device", path: Path) -> None:
        self._device = device
        self._writer = Writer(path, device_bytes=device.plan.device_bytes)
        self._lock = threading.Lock()

    def write(self, data: Any, offset: int, *, fua: bool = False) -> None:
        """Write `data` at `offset`."""
        self._do(lambda: [self._whole_sectors(data, offset)], lambda: self._device.write(data, offset), fua)

    def trim(self, count: int, offset: int, *, fua: bool = False) -> None:
        """Trim; a discard of the whole pages within, for these, and nothing else, read as zeros afterwards."""

        def entries() -> Iterator[Entry]:
            first, end = -(-offset // PAGE_BYTES) * PAGE_BYTES, (offset + count) // PAGE_BYTES * PAGE_BYTES
            for at, size in _pieces(first, end, record.DISCARD_BYTES_MAX):
                yield record.header_sector(at // SECTOR_BYTES, size // SECTOR_BYTES, record.DISCARD), 0

        self._do(entries, lambda: self._device.trim(count, offset), fua)

    def zero(self, count: int, offset: int, *, may_trim: bool = True, fua: bool = False) -> None:
        """Make the range read as zeros; a write of zeros, whose data is a hole in the log.

        A discard would do for our own replay, but may be left out by others, or leave what was there.
        """

        end = offset + count
        first, stop = -(-offset // SECTOR_BYTES) * SECTOR_BYTES, end // SECTOR_BYTES * SECTOR_BYTES

        def entries() -> Iterator[Entry]:
            if first > stop:
                yield self._whole_sectors(bytes(count), offset)
                return
            if offset < first:
                yield self._whole_sectors(bytes(first - offset), offset)
            for at, size in _pieces(first, stop, record.WRITE_BYTES_MAX):
                yield record.header_sector(at // SECTOR_BYTES, size // SECTOR_BYTES, 0), size
            if stop < end:
                yield self._whole_sectors(bytes(end - stop), stop)

        self._do(entries, lambda: self._device.zero(count, offset, may_trim=may_trim), fua)

    def flush(self) -> None:
        """Make what has completed durable; then it is logged, and the flush."""
        with self._lock:
            covered = self._writer.covered()
        self._device.flush()
        with self._lock:
            self._writer.log_flush(covered)

    def mark(self, text: str) -> None:
        """Put a mark into the log, behind what is logged by now."""
        with self._lock:
            self._writer.mark(text)

    def close(self) -> None:
        """Close the log, after the device."""
        with self._lock:
            self._writer.close()

    def _do(self, entries: Callable[[], Iterable[Entry]], request: Callable[[], None], fua: bool) -> None:
        if fua:
            self._do_durably(entries, request)
            return
        with self._lock:
            staged = self._writer.stage(entries())
            try:
                request()
            except BaseException:
                self._writer.unstage()
                raise
            self._writer.keep(staged)

    def _do_durably(self, entries: Callable[[], Iterable[Entry]], request: Callable[[], None]) -> None:
        with self._lock:
            pieces = list(entries())
            request()
            forced = self._writer.force(pieces)
        try:
            self._device.flush(counted=False)
            with self._lock:
                self._writer.log_forced(forced)
        except BaseException:
            with self._lock:
                self._writer.forget(forced)
            raise

    def _whole_sectors(self, data: Any, offset: int) -> Entry:
        """The entry of a write: all bytes of its sectors, as they are once it is done."""
        end = offset + len(data)
        first, stop = offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)
        parts = (self._read(SECTOR_BYTES * first, offset), data, self._read(end, SECTOR_BYTES * stop))
        return record.header_sector(first, stop - first, 0), [part for part in parts if len(part)]

    def _read(self, first: int, end: int) -> memoryview:
        buffer = memoryview(bytearray(end - first))
        if len(buffer):
            self._device.read_into(buffer, first)
        return buffer


def _pieces(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    return ((at, min(size, end - at)) for at in range(first, end, size))
