# SPDX-License-Identifier: MIT
"""Go through a log, ours or one of the kernel's, entry by entry; a log may be read while it is written."""

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pmem_core import host
from pmem_core.errors import BadLog, HostError

from . import record
from .record import HEADER, SUPER, Header, Super


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One entry.  number: from 0; at: the byte of the log where it begins; offset, count: bytes of the device."""

    number: int
    at: int
    flags: int
    offset: int
    count: int
    mark: str
    data_at: int
    data_bytes: int

    @property
    def end(self) -> int:
        """The byte of the log behind it."""
        return self.data_at + self.data_bytes

    def has(self, flags: int) -> bool:
        """Whether any of these flags is set."""
        return bool(self.flags & flags)


class Log:
    """An open log.  count: of its entries, when it was opened.  Raises BadLog, HostError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with host.host_errors(path):
            kind = path.stat().st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                # Entries are looked up, and to open a pipe may wait for ever.
                raise BadLog(path, "is neither a file nor a block device", "one of these")
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.sector_bytes, self.count = self._superblock()
                # Not before: what the superblock counts was in the log by then, in one that grows meanwhile too.
                self.size = os.lseek(self.fd, 0, os.SEEK_END)
            except BaseException:
                os.close(self.fd)
                raise

    def _superblock(self) -> tuple[int, int]:
        raw = os.pread(self.fd, SUPER.size, 0)
        found = Super(*SUPER.unpack(raw.ljust(SUPER.size, b"\0")))
        if len(raw) < SUPER.size or found.magic != record.MAGIC:
            raise BadLog(self.path, "is no log of writes", "one that serve --log-writes or dm-log-writes has made")
        if found.version != record.VERSION:
            raise BadLog(self.path, f"has version {found.version}", f"version {record.VERSION}")
        size = found.sectorsize
        if not record.SECTOR_BYTES <= size <= 65536 or size & (size - 1):
            raise BadLog(self.path, f"has sectors of {size} bytes", "a power of two from 512 to 65536")
        return size, found.nr_entries

    def entries(self, first: int = 0, at: int | None = None) -> Iterator[Entry]:
        """The entries from number `first` on; `at`: where that one begins, if it is known."""
        number = 0 if at is None else first
        byte = self.sector_bytes if at is None else at
        while number < self.count:
            entry = self._entry(number, byte)
            if number >= first:
                yield entry
            number, byte = number + 1, entry.end

    def _entry(self, number: int, at: int) -> Entry:
        with host.host_errors(self.path):
            raw = os.pread(self.fd, self.sector_bytes, at)
        if len(raw) < self.sector_bytes:
            raise self._torn(number, at, at + self.sector_bytes)
        header = Header(*HEADER.unpack_from(raw))
        if not header.flags and not header.nr_sectors:
            raise BadLog(self.path, f"entry {number} at byte {at} is empty", "a write, or a flag")
        text = b""
        if header.flags & record.MARK:
            if header.data_len > self.sector_bytes - HEADER.size:
                raise BadLog(
                    self.path, f"entry {number} at byte {at} has a mark of {header.data_len} bytes", "a sector"
                )
            text = raw[HEADER.size : HEADER.size + header.data_len].rstrip(b"\0")
        entry = Entry(
            number=number,
            at=at,
            flags=header.flags,
            offset=header.sector * self.sector_bytes,
            count=header.nr_sectors * self.sector_bytes,
            mark=text.decode(errors="backslashreplace"),
            data_at=at + self.sector_bytes,
            data_bytes=header.data_sectors * self.sector_bytes,
        )
        if entry.end > self.size:
            raise self._torn(number, at, entry.end)
        if entry.count and entry.offset + entry.count > record.DEVICE_BYTES_MAX:
            what = f"entry {number} at byte {at} ends at byte {entry.offset + entry.count} of the device"
            raise BadLog(self.path, what, "one below 2**63")
        return entry

    def _torn(self, number: int, at: int, needed: int) -> BadLog:
        what = f"is torn: entry {number} of {self.count}, at byte {at}, ends at byte {needed}"
        return BadLog(self.path, what, f"a file of that size, not of {self.size} bytes")

    def read(self, at: int, count: int) -> bytes:
        """Bytes of the log."""
        with host.host_errors(self.path):
            data = os.pread(self.fd, count, at)
        if len(data) < count:
            raise HostError(self.path, f"has become shorter than {at + count} bytes", "a log that nobody cuts")
        return data

    @property
    def device_bytes(self) -> int:
        """The size of the device, where our own start mark tells it; else 0.  BadLog."""
        first = next(self.entries(), None)
        name, _, size = first.mark.partition(" device_bytes=") if first else ("", "", "")
        if name != record.MARK_START or not size.isdecimal():
            return 0
        # Of thousands of digits Python makes no number.
        if len(size) > len(str(record.DEVICE_BYTES_MAX)) or int(size) > record.DEVICE_BYTES_MAX:
            raise BadLog(
                self.path, "its first mark tells of a larger device than there can be", "less than 2**63 bytes"
            )
        return int(size)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
