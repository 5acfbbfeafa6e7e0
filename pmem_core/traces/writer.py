# SPDX-License-Identifier: MIT
"""Append to a recording.

Records wait in memory until a flush, 64 KiB or a second, whichever comes first; then they are in the file, where a kill
of this process does not reach them.  A full disk makes them wait longer, up to 4 MiB of them; after that, or after any
other fault, the recording ends, with a line that says so.  No request ever fails because of it.
"""

import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmem_core import host, tracescan
from pmem_core.errors import HostFull, PmemError
from pmem_core.layout import PAGE_BYTES, PAGE_SHIFT

from . import record

SAVE_BYTES = 64 << 10
SAVE_SECONDS = 1.0
WAITING_BYTES_MAX = 4 << 20
CHECK_EVERY_BYTES = 64 << 10


class Writer:
    """A new recording at `path`; `tell` is given lines for people.  Hold `lock` when calling anything but close().

    about: what is recorded, for the header.  Raises HostFull, HostError.
    """

    def __init__(self, path: Path, *, device_bytes: int, about: dict[str, Any], tell: Callable[[str], None]) -> None:
        self.path, self.lock = path, threading.Lock()
        self._tell = tell
        self._waiting = bytearray()
        self._summed = 0  # bytes of these that the checksum has seen
        self._checksum, self._since_check = 0, 0
        self._end, self._count = 0, 0  # of the last request
        self._full, self._again_at = False, 0.0
        self.ended = False
        with host.host_errors(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                header = record.pack_header(device_bytes, PAGE_BYTES, about)
                written = 0
                while written < len(header):
                    written += os.write(self._fd, header[written:])
            except BaseException:
                os.close(self._fd)
                path.unlink()
                raise
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="recording", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._stopping.wait(SAVE_SECONDS):
            with self.lock:
                self.save()

    # ---- records ----

    def note(self, kind: int, offset: int = 0, count: int = 0, *, fua: bool = False) -> None:
        """Record a request; fua: a flush is for the request before it."""
        if self.ended:
            return
        waiting = self._waiting
        if kind >= tracescan.FLUSH:
            waiting.append(kind | tracescan.FUA if fua else kind)
        else:
            end, head, shift = self._end, kind, 0
            if not (offset | count) & (PAGE_BYTES - 1):
                head, shift = head | tracescan.PAGES, PAGE_SHIFT
            numbers = []
            if count == self._count:
                head |= tracescan.SAME
            else:
                numbers.append(count >> shift)
            if offset == end:
                head |= tracescan.NEXT
            else:
                difference = (offset >> shift) - (end >> shift)
                numbers.append(difference << 1 if difference >= 0 else ~(difference << 1))
            waiting.append(head)
            for number in numbers:
                while number > 127:
                    waiting.append(number & 127 | 128)
                    number >>= 7
                waiting.append(number)
            self._end, self._count = offset + count, count
        if len(waiting) >= SAVE_BYTES:
            self.save()

    def _check(self, flags: int = 0) -> None:
        self._checksum = zlib.crc32(memoryview(self._waiting)[self._summed :], self._checksum)
        self._since_check += len(self._waiting) - self._summed
        if flags or self._since_check >= CHECK_EVERY_BYTES:
            self._waiting += bytes([tracescan.CHECK | flags]) + record.CHECKSUM.pack(self._checksum)
            self._checksum = self._since_check = 0
        self._summed = len(self._waiting)

    # ---- the file ----

    def save(self) -> None:
        """Hand what waits to the host."""
        if not self._waiting or (self._full and time.monotonic() < self._again_at):
            return
        try:
            self._save()
        except HostFull as error:
            if len(self._waiting) >= WAITING_BYTES_MAX:
                self._give_up(error)
            elif not self._full:
                self._tell(f"{error}; what is recorded waits in memory")
            self._full, self._again_at = True, time.monotonic() + SAVE_SECONDS
        except PmemError as error:
            self._give_up(error)

    def _save(self) -> None:
        self._check()
        with host.host_errors(self.path):
            while self._waiting:
                written = os.write(self._fd, self._waiting)
                del self._waiting[:written]
                self._summed -= written
        if self._full:
            self._tell(f"{self.path}: there is room again: nothing of the recording is missing")
            self._full = False

    def _give_up(self, error: PmemError) -> None:
        self._tell(f"{error}; the recording ends here, and the device goes on")
        self.ended = True
        self._waiting.clear()

    def close(self) -> None:
        """Record that this is the end, and make all of it durable.  HostFull, HostError."""
        self._stopping.set()
        self._thread.join()
        try:
            if not self.ended:
                self._check(tracescan.LAST)
                self._save()
                with host.host_errors(self.path):
                    os.fsync(self._fd)
        finally:
            self.ended = True
            os.close(self._fd)
