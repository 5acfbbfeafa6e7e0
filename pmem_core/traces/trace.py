# SPDX-License-Identifier: MIT
"""What every trace is: a file that gives requests, chunk by chunk, in the order in which a device did them."""

import array
import collections
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar

import numpy as np

from pmem_core import host
from pmem_core.errors import BadTrace
from pmem_core.tracescan import DRAIN, FLUSH, REQUEST, TRIM, WRITE, ZERO, ZERO_KEEP

KINDS = {WRITE: "write", TRIM: "trim", ZERO: "zero", ZERO_KEEP: "zero-keep", FLUSH: "flush", DRAIN: "drain"}
CHUNK = 65536
HEAD_BYTES = 1 << 16  # what a format is recognised by
BLOCK_BYTES = 1 << 20  # what is read at once
OFFSET_MAX = 1 << 62


def open_file(path: Path) -> BinaryIO:
    """Open a file to read; BadTrace where it can be read only once, HostError."""
    with host.host_errors(path):
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK):
            raise BadTrace(path, "is a pipe or the like, and a trace is read more than once", "a file")
        return path.open("rb")


def head_of(path: Path) -> bytes:
    """The first bytes of a file; BadTrace, HostError."""
    with host.host_errors(path), open_file(path) as file:
        return file.read(HEAD_BYTES)


class Trace:
    """An open trace; go through it, as often as you like, for chunks of at most CHUNK requests (REQUEST[]).

    device_bytes: of the device it was taken from, None where the file does not say.  header: what else it says of that.
    position: bytes gone through.  Known at the end: torn_bytes (a record or line that is not all there, at the end of a
    file whose writer was killed), whole (False: it does not have the end that its writer would have put), seen (how
    many of what becomes no request, or is more than its kind says, by name).  BadTrace while it is gone through.
    """

    format: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device_bytes: int | None = None
        self.header: dict[str, Any] = {}
        self._reset()
        self._file = open_file(path)
        try:
            self.size_bytes = os.fstat(self._file.fileno()).st_size
            with host.host_errors(path):
                self._begin()
        except BaseException:
            self._file.close()
            raise

    def _reset(self) -> None:
        self.position = self.torn_bytes = 0
        self.whole = True
        self.seen: collections.Counter[str] = collections.Counter()

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Whether a file that begins like this is of this format."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Read what comes before the requests."""
        raise NotImplementedError

    def _chunks(self) -> Iterator[np.ndarray]:
        """The requests, from the beginning; the file is there."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[np.ndarray]:
        self._reset()
        with host.host_errors(self.path):
            self._file.seek(0)
            yield from self._chunks()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BadLine(Exception):
    """A line makes no sense.  what, expected: words for an error that names the line."""

    def __init__(self, what: str, expected: str) -> None:
        super().__init__(what)
        self.what, self.expected = what, expected


class TextTrace(Trace):
    """A trace of lines."""

    def _line(self, line: bytes, requests: "array.array[int]") -> None:
        """Put what one line says behind `requests`: kind, offset, count, and so on.  BadLine; ValueError is one too."""
        raise NotImplementedError

    def _chunks(self) -> Iterator[np.ndarray]:
        number, rest = 1, b""
        while block := self._file.read(BLOCK_BYTES):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            if len(rest) > BLOCK_BYTES:
                raise BadTrace(self.path, f"line {number + len(lines)}: is longer than {BLOCK_BYTES} bytes", "text")
            yield from self._parsed(lines, number)
            number += len(lines)
        if rest:
            try:
                yield from self._parsed([rest], number)
            except BadTrace:
                # Its writer had no time for the end of the line.
                self.position += len(rest)
                self.torn_bytes, self.whole = len(rest), False

    def _parsed(self, lines: Sequence[bytes], number: int) -> Iterator[np.ndarray]:
        requests = array.array("q")
        done = -1
        try:
            for done, line in enumerate(lines):  # noqa: B007 (it says which line is at fault)
                self._line(line, requests)
        except BadLine as error:
            raise BadTrace(self.path, f"line {number + done}: {error.what}", error.expected) from None
        except ValueError:
            what = f"line {number + done}: has something else for a number"
            raise BadTrace(self.path, what, f"a line of {self.format}") from None
        self.position = min(self.size_bytes, self.position + sum(map(len, lines)) + len(lines))
        found = np.frombuffer(requests, REQUEST) if requests else np.empty(0, REQUEST)
        for first in range(0, len(found), CHUNK):
            yield found[first : first + CHUNK]


def require_range(offset: int, count: int) -> None:
    """Raise BadLine unless a request can be there."""
    if offset < 0 or count < 0 or offset + count > OFFSET_MAX:
        raise BadLine(f"{count} bytes at {offset}", f"within {OFFSET_MAX} bytes")
