# SPDX-License-Identifier: MIT
"""What fio's write_iolog writes, versions 2 and 3: "Trace file format" of fio's HOWTO.

A line is ``[TIME] FILE ACTION [OFFSET LENGTH]``; version 3 has the time, in milliseconds.  Of one file or device only,
for what has an offset in each of two files has none on a device.
"""

import array
import re

from pmem_core.errors import BadTrace
from pmem_core.tracescan import FLUSH, TRIM, WRITE

from .trace import BadLine, TextTrace, require_range

_FIRST_LINE = re.compile(rb"fio version (\d+) iolog\s*\n")


class FioLog(TextTrace):
    """An iolog.  seen: "read"; "open", "close", "wait" and the like are not counted; "sync_file_range" is no flush."""

    format = "fio"

    @staticmethod
    def recognises(head: bytes) -> bool:
        return head.startswith(b"fio version ")

    def _begin(self) -> None:
        found = _FIRST_LINE.match(self._file.readline(80))
        if not found:
            raise BadTrace(self.path, "line 1: is not that of an iolog", "'fio version 2 iolog', or 3")
        version = int(found[1])
        if version not in (2, 3):
            raise BadTrace(self.path, f"line 1: is of an iolog of version {version}", "2 or 3")
        self.header = {"version": version}
        self._times = version - 2

    def _reset(self) -> None:
        super()._reset()
        self._name = b""
        self._is_first = True

    def _line(self, line: bytes, requests: "array.array[int]") -> None:
        fields = line.split()
        if self._is_first or not fields:
            self._is_first = False
            return
        if self._times:
            int(fields.pop(0))
        if len(fields) == 4:
            name, action, offset, count = fields[0], fields[1], int(fields[2]), int(fields[3])
            if name != self._name:
                self._require_one_file(name)
            if action == b"write":
                require_range(offset, count)
                requests.extend((WRITE, offset, count))
            elif action == b"read":
                self.seen["read"] += 1
            elif action in (b"sync", b"datasync"):
                requests.extend((FLUSH, 0, 0))
            elif action == b"trim":
                require_range(offset, count)
                requests.extend((TRIM, offset, count))
            elif action == b"sync_file_range":
                self.seen["sync_file_range"] += 1
            elif action != b"wait" or self._times:
                raise self._unknown(action)
        elif len(fields) == 2 and fields[1] in (b"add", b"open", b"close"):
            self._require_one_file(fields[0])
        elif len(fields) != 3 or fields[1] != b"wait" or self._times:
            raise BadLine(f"has {len(fields) + self._times} words", "[TIME] FILE ACTION [OFFSET LENGTH]")

    def _require_one_file(self, name: bytes) -> None:
        self._name = self._name or name
        if name != self._name:
            raise BadLine(f"is of a second file, {name.decode(errors='replace')}", "the requests of one file or device")
        self.header["file"] = name.decode(errors="replace")

    def _unknown(self, action: bytes) -> BadLine:
        known = "read, write, sync, datasync, sync_file_range, trim" + ("" if self._times else ", wait")
        return BadLine(f"has the action {action.decode(errors='replace')}", known)
