# SPDX-License-Identifier: MIT
"""What blkparse prints of a blktrace, in its default format: blkparse(1), "DEFAULT OUTPUT".

A line is ``MAJOR,MINOR CPU SEQUENCE SECONDS.NANOSECONDS PID ACTION RWBS SECTOR + SECTORS [WHO]``.  Requests are taken
from one action: completions (C) where the beginning of the file has any, else what was issued to the driver (D), else
what was queued (Q).  RWBS: F in front is a flush before, D a discard, W a write, R a read, N nothing; an F behind that
is FUA; A, S and M say what we need not know.
"""

import array
import re

from pmem_core.errors import BadTrace
from pmem_core.tracescan import FLUSH, TRIM, WRITE

from .trace import HEAD_BYTES, BadLine, TextTrace, require_range

SECTOR_BYTES = 512
_EVENT = re.compile(rb"^ *\d+,\d+ +\d+ +\d+ +\d+\.\d{9} +\d+ +([A-Z])[A-Z]? ", re.MULTILINE)
_RWBS = re.compile(rb"(F?)([DWRN])(F?)[ASM]*")
_SUMMARY = (b"CPU", b"Total", b"Throughput", b"Events", b"Skips", b"Input")  # lines that are no events
_KINDS = {b"W": WRITE, b"D": TRIM, b"R": 0, b"N": 0}


class BlkparseText(TextTrace):
    """blkparse's text.  seen: "read"; "failed", completions with an error; "fua", writes with FUA."""

    format = "blkparse"

    @staticmethod
    def recognises(head: bytes) -> bool:
        return _EVENT.search(head) is not None

    def _begin(self) -> None:
        actions = set(_EVENT.findall(self._file.read(HEAD_BYTES)))
        action = next((one for one in (b"C", b"D", b"Q") if one in actions), None)
        if action is None:
            raise BadTrace(self.path, "contains no blkparse events", "lines with C, D or Q, in its default format")
        self._action = action
        self.header = {"action": action.decode()}
        self._meanings: dict[bytes, tuple[bool, int, bool, bool]] = {}

    def _reset(self) -> None:
        super()._reset()
        self._device = b""
        self._is_over = False

    def _line(self, line: bytes, requests: "array.array[int]") -> None:
        fields = line.split()
        if self._is_over or not fields:
            return
        if len(fields) < 7 or b"," not in fields[0]:
            if not line.startswith(_SUMMARY):
                raise BadLine("is no event", "MAJOR,MINOR CPU SEQUENCE TIME PID ACTION RWBS ..., as blkparse prints it")
            self._is_over = not line.startswith(b"Input")
            return
        if fields[5] != self._action:
            return
        if fields[0] != self._device:
            self._require_one_device(fields[0])
        flush, kind, fua, is_read = self._meanings.get(fields[6]) or self._meaning(fields[6])
        if self._action == b"C" and fields[-1] != b"[0]":
            self.seen["failed"] += 1
            return
        if flush:
            requests.extend((FLUSH, 0, 0))
        # Without sectors it is a flush and nothing else, or a command for the drive itself.
        if len(fields) < 10 or fields[8] != b"+":
            return
        if is_read:
            self.seen["read"] += 1
        elif kind:
            offset, count = SECTOR_BYTES * int(fields[7]), SECTOR_BYTES * int(fields[9])
            require_range(offset, count)
            requests.extend((kind, offset, count))
            if fua:
                self.seen["fua"] += 1
                requests.extend((FLUSH, 0, 0))

    def _meaning(self, rwbs: bytes) -> tuple[bool, int, bool, bool]:
        found = _RWBS.fullmatch(rwbs)
        if not found:
            raise BadLine(f"has the flags {rwbs.decode(errors='replace')}", "F, then D, W, R or N, then F, A, S, M")
        self._meanings[rwbs] = meaning = (bool(found[1]), _KINDS[found[2]], bool(found[3]), found[2] == b"R")
        return meaning

    def _require_one_device(self, name: bytes) -> None:
        self._device = self._device or name
        if name != self._device:
            raise BadLine(f"is of a second device, {name.decode(errors='replace')}", "the events of one device")
        self.header["device"] = name.decode(errors="replace")
