# SPDX-License-Identifier: MIT
"""What completed and no flush has covered yet: entries as the log will have them, in a file without a name.

Not in memory, for a client may write for hours without a flush.  Entries are numbered from 0 in order of completion.
One thread at a time.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pmem_core import host

from .record import HEADER, SECTOR_BYTES, Header

ROOM_BYTES = 16 << 20  # what is done with goes back to the host in pieces of this size
PIECE_BYTES = 1 << 20

Entry = tuple[bytes, Sequence[Any] | int]  # head, and buffers of data, or how many bytes of zeros


def write_at(fd: int, buffers: Sequence[Any], at: int) -> int:
    """Write all of the buffers at byte `at` and return how many bytes that was; OSError."""
    total = sum(len(one) for one in buffers)
    written = os.pwritev(fd, buffers, at)
    if written < total:
        rest = memoryview(b"".join(buffers))
        while written < total:  # a full disk takes what fits first
            written += os.pwrite(fd, rest[written:], at + written)
    return total


class Place(NamedTuple):
    """A place between two entries: the byte in the file, and the number of the entry that begins there."""

    byte: int
    entry: int


class Spool:
    """head: where the first entry begins that is not logged; tail: where the next one will."""

    def __init__(self, folder: Path) -> None:
        self.head = self.tail = Place(0, 0)
        self._freed = 0
        self._has_holes = False
        with host.host_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by close)
        self.fd = self._file.fileno()

    def stage(self, entries: Iterable[Entry]) -> Place:
        """Put entries behind the tail and return where they end: `tail = ` that makes them count.  OSError."""
        byte, number = self.tail
        for head, data in entries:
            if isinstance(data, int):
                # Behind the tail there is nothing but holes, which read as zeros.
                byte += write_at(self.fd, [head], byte) + data
                self._has_holes |= data > 0
            else:
                byte += write_at(self.fd, [head, *data], byte)
            number += 1
        return Place(byte, number)

    def unstage(self) -> None:
        """Forget what was put behind the tail."""
        os.ftruncate(self.fd, self.tail.byte)

    def walk(self, end: Place) -> Iterator[tuple[int, Header, int]]:
        """Number, head and place of the data of each entry from `head` to `end`."""
        byte, number = self.head
        while byte < end.byte:
            header = Header(*HEADER.unpack(os.pread(self.fd, HEADER.size, byte)))
            yield number, header, byte + SECTOR_BYTES
            byte += SECTOR_BYTES * (1 + header.data_sectors)
            number += 1

    def copy(self, first: int, end: int, fd: int, at: int) -> int:
        """Copy bytes of the file into another, holes as holes, and return where they end there; OSError."""
        for start, stop in host.data_ranges(self.fd, end, first) if self._has_holes else [(first, end)]:
            for byte in range(start, stop, PIECE_BYTES):
                piece = os.pread(self.fd, min(PIECE_BYTES, stop - byte), byte)
                write_at(fd, [piece], at + byte - first)
        return at + end - first

    def drop(self, end: Place) -> None:
        """The entries up to `end` are logged."""
        self.head = end
        if self.head == self.tail:
            if self._has_holes or self.tail.byte > ROOM_BYTES:
                os.ftruncate(self.fd, 0)
                self.head = self.tail = Place(0, end.entry)
                self._freed, self._has_holes = 0, False
        elif end.byte - self._freed > ROOM_BYTES:
            with contextlib.suppress(OSError):  # not every filesystem makes holes
                host.fallocate(self.fd, host.PUNCH_HOLE, self._freed, end.byte - self._freed)
            self._freed = end.byte

    def close(self) -> None:
        """Let go of it; what it holds is gone."""
        self._file.close()
