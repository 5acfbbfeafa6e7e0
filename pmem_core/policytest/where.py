# SPDX-License-Identifier: MIT
"""What the process that tries a policy out is at, so that another can say where it hung or died."""

import mmap
import struct
from pathlib import Path

DOING = ("starting", "loading", "compiling", "plan", "translate", "settle", "tick", "table_is_sane", "spare_frames")
RECORD = struct.Struct("<qqq")  # calls so far, index of DOING, write


class Where:
    """Writes it into a file that is there already."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), RECORD.size)
        self._calls = 0

    def at(self, doing: str, write: int = 0) -> None:
        """`doing` begins."""
        self._calls += 1
        RECORD.pack_into(self._bytes, 0, self._calls, DOING.index(doing), write)


def read(path: Path) -> tuple[int, str, int]:
    """How many times something has begun, what did last, and at which write (0: none)."""
    calls, doing, write = RECORD.unpack(path.read_bytes())
    return calls, DOING[doing], write
