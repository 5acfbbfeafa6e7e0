# SPDX-License-Identifier: MIT
"""Append to a log, with the semantics of dm-log-writes.

A write is logged when a flush that was asked for after its completion has answered, in order of completion, and then
the flush.  A write with FUA is logged at its own completion, ahead of what was completed before it and not flushed.
Two things go further than the kernel, so that the log replayed to any place is what the device could have held there:

* A flush logs all that it covers, also what an earlier flush covers that has not answered yet.
* What is logged late does not hide what overtook it: of a write the sectors are left out that a later write, logged
  before it, has overwritten.

The superblock counts what is whole, and is written last: a log can be read at any time, also after a kill.
One thread at a time.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pmem_core import host
from pmem_core.errors import UsageError

from . import record
from .record import SECTOR_BYTES
from .spool import Entry, Place, Spool, write_at

Range = tuple[int, int]  # sectors: the first, and the end


@dataclasses.dataclass(eq=False)
class Forced:
    """Pieces with FUA of one request, done and not yet durable."""

    after: int  # the number of the spooled entry that would have come next
    entries: list[Entry]
    hidden: list[Range] = dataclasses.field(default_factory=list)  # overwritten later, and logged already


class Writer:
    """A new log at `path`.  HostFull, HostError; a call that raises has logged nothing."""

    def __init__(self, path: Path, *, device_bytes: int) -> None:
        self.path = path
        self.entries = 0
        self._end = SECTOR_BYTES
        self._forced: list[Forced] = []  # in order of completion
        self._overtook: list[tuple[int, Range]] = []  # logged before spooled entries of a lower number
        host.require_new(path, "a log")
        self._spool = Spool(path.parent)
        with host.host_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            self.mark(f"{record.MARK_START} device_bytes={device_bytes}")
        except BaseException:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    # ---- what completes ----

    def stage(self, entries: Iterable[Entry]) -> Place:
        """Keep room for what is about to be done; `keep` it once it is, or `unstage` it."""
        try:
            with host.host_errors(self.path):
                return self._spool.stage(entries)
        except BaseException:
            self._spool.unstage()
            raise

    def keep(self, staged: Place) -> None:
        """What was staged is done, and waits for a flush."""
        self._spool.tail = staged

    def unstage(self) -> None:
        """What was staged could not be done."""
        self._spool.unstage()

    def force(self, entries: list[Entry]) -> Forced:
        """What has FUA is done; hand the result to `log_forced` once it is durable, or to `forget`."""
        forced = Forced(self._spool.tail.entry, entries)
        self._forced.append(forced)
        return forced

    # ---- what is logged ----

    def log_forced(self, forced: Forced) -> None:
        """Log what has FUA; nothing where it changed nothing."""
        if not forced.entries:
            self.forget(forced)
            return
        whole = [_range(head) for head, _ in forced.entries]
        pieces = [piece for entry in forced.entries for piece in _without(entry, forced.hidden)]
        # All of it is durable together: whoever stops at an entry with FUA has the request whole.
        head, data = pieces.pop() if pieces else (record.header_sector(whole[-1][0], 0, 0), [])
        pieces.append((_flagged(head, record.FUA), data))
        with self._appending():
            self._commit(self._append(pieces, self._end), len(pieces))
        for earlier in self._forced[: self._forced.index(forced)]:
            earlier.hidden += whole
        self.forget(forced)
        if self._spool.head.entry < forced.after:
            self._overtook += [(forced.after, one) for one in whole]

    def forget(self, forced: Forced) -> None:
        """What has FUA did not become durable; its client knows."""
        self._forced.remove(forced)

    def covered(self) -> Place:
        """All that has completed by now, for `log_flush` once the flush has answered."""
        return self._spool.tail

    def log_flush(self, covered: Place) -> None:
        """Log what the flush covers, and the flush."""
        self._log_covered(covered, record.header_sector(0, 0, record.FLUSH))

    def mark(self, text: str) -> None:
        """Log a mark.  UsageError where it is too long."""
        self._log_covered(self._spool.head, _mark(text))

    def close(self) -> None:
        """Log what is left, for the device was closed and all of it is durable, and that this is the end."""
        try:
            self._log_covered(self._spool.tail, _mark(record.MARK_END))
            with host.host_errors(self.path):
                os.fsync(self._fd)
        finally:
            self._spool.close()
            os.close(self._fd)

    def _log_covered(self, covered: Place, last: bytes) -> None:
        if covered.entry <= self._spool.head.entry:
            # Another flush has logged it, and may have begun the file of the spool anew.
            covered = self._spool.head
        with self._appending():
            hidden: list[tuple[int, Range]] = []
            if self._overtook or self._forced:
                end, count, hidden = self._append_one_by_one(covered)
            else:
                end = self._spool.copy(self._spool.head.byte, covered.byte, self._fd, self._end)
                count = covered.entry - self._spool.head.entry
            self._commit(end + write_at(self._fd, [last], end), count + 1)
        self._spool.drop(covered)
        for forced in self._forced:
            forced.hidden += [one for number, one in hidden if number >= forced.after]
        self._overtook = [(after, one) for after, one in self._overtook if after > covered.entry]

    def _append_one_by_one(self, covered: Place) -> tuple[int, int, list[tuple[int, Range]]]:
        """Append what is spooled but for sectors overwritten since; where it ends, entries, and what they wrote."""
        at, count, written = self._end, 0, []
        for number, header, data_at in self._spool.walk(covered):
            first, end = header.sector, header.sector + header.nr_sectors
            written.append((number, (first, end)))
            for start, stop in _left(first, end, [one for after, one in self._overtook if number < after]):
                head = record.header_sector(start, stop - start, header.flags)
                at += write_at(self._fd, [head], at)
                if header.data_sectors:
                    byte = data_at + SECTOR_BYTES * (start - first)
                    at = self._spool.copy(byte, byte + SECTOR_BYTES * (stop - start), self._fd, at)
                count += 1
        return at, count, written

    @contextlib.contextmanager
    def _appending(self) -> Iterator[None]:
        try:
            with host.host_errors(self.path):
                yield
        except BaseException:
            # The next to come may be zeros, which are not written: there has to be nothing.
            os.ftruncate(self._fd, self._end)
            raise

    def _append(self, entries: Sequence[Entry], at: int) -> int:
        for head, data in entries:
            if isinstance(data, int):
                at += write_at(self._fd, [head], at) + data
            else:
                at += write_at(self._fd, [head, *data], at)
        return at

    def _commit(self, end: int, count: int) -> None:
        """So many entries more are in the log, which ends at `end`."""
        if os.fstat(self._fd).st_size < end:
            os.ftruncate(self._fd, end)
        write_at(self._fd, [record.super_sector(self.entries + count)], 0)
        self._end, self.entries = end, self.entries + count


def _mark(text: str) -> bytes:
    data = text.encode()
    if not data or len(data) > record.MARK_BYTES_MAX or b"\0" in data:
        raise UsageError("mark", f"{len(data)} bytes of text", f"1 to {record.MARK_BYTES_MAX}, none of them zero")
    return record.header_sector(0, 0, record.MARK, data)


def _range(head: bytes) -> Range:
    sector, count, _, _ = record.HEADER.unpack_from(head)
    return sector, sector + count


def _flagged(head: bytes, flags: int) -> bytes:
    header = record.Header(*record.HEADER.unpack_from(head))
    return record.header_sector(header.sector, header.nr_sectors, header.flags | flags)


def _left(first: int, end: int, hidden: Iterable[Range]) -> list[Range]:
    """What is left of the sectors from `first` to `end`."""
    left = [(first, end)]
    for start, stop in hidden:
        left = [
            part
            for one, other in left
            for part in ((one, min(other, start)), (max(one, stop), other))
            if part[0] < part[1]
        ]
    return left


def _without(entry: Entry, hidden: Sequence[Range]) -> list[Entry]:
    """The pieces of an entry that are left."""
    head, data = entry
    if not hidden:
        return [entry]
    first, end = _range(head)
    flags = record.HEADER.unpack_from(head)[2]
    whole = b"" if isinstance(data, int) else b"".join(data)
    pieces: list[Entry] = []
    for start, stop in _left(first, end, hidden):
        part: Sequence[Any] | int = [whole[SECTOR_BYTES * (start - first) : SECTOR_BYTES * (stop - first)]]
        if isinstance(data, int):
            part = SECTOR_BYTES * (stop - start) if data else 0
        pieces.append((record.header_sector(start, stop - start, flags), part))
    return pieces
