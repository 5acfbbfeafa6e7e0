# SPDX-License-Identifier: MIT
"""Huge pages under a medium in tmpfs, as a mapped pmem has them.

Requests go to places far apart, and with pages of 4096 bytes each of them is looked up in the page tables anew: that is
a fifth of a page's time (docs/performance-choices.md, "Huge pages").  tmpfs gives small ones unless it was mounted with
huge=, which would also fill holes.  Here each 2 MiB (on x86) get their huge page once all of them are in memory:

================ ================================================= =====================================================
2 MiB are        and become                                        by
================ ================================================= =====================================================
with holes       full                                              requests and moves
full             one huge page                                     Collapser, a little at a time
one huge page    full, or with holes, in small pages               the kernel, when a part is trimmed
================ ================================================= =====================================================

It moves bytes behind everybody's back and changes none, in memory or in what the file takes.  Linux has it since 6.1;
before, and where there are no huge pages, nothing happens.
"""

import ctypes
import errno
import mmap
import time
from pathlib import Path

import numpy as np

from . import arena, host

_LIBC = ctypes.CDLL(None, use_errno=True)
_MADV_COLLAPSE = 25  # madvise(2)
_MAP_FIXED = 0x10
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def huge_bytes() -> int:
    """The bytes of a huge page; 0 where this machine has none."""
    try:
        return int(_SIZE.read_text())
    except (OSError, ValueError):
        return 0


def suits(fd: int, size: int) -> bool:
    """True where huge pages can lie under a file of so many bytes."""
    return 0 < huge_bytes() <= size and host.is_tmpfs(fd)


def map_aligned(fd: int, count: int) -> tuple[mmap.mmap, np.ndarray]:
    """Map `count` bytes of a file, shared and for writing, where huge pages can lie under them; OSError.

    Returns what keeps the map, and the bytes, uint8[].
    """
    huge = huge_bytes()
    # Python's mmap takes no address: it has more than is wanted, and the file lies over a part of that.
    held = mmap.mmap(-1, count + huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | arena.MAP_NORESERVE)
    try:
        view = np.frombuffer(held, np.uint8)
        skipped = -view.ctypes.data % huge
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | arena.MAP_NORESERVE | _MAP_FIXED
        at = ctypes.c_void_p(view.ctypes.data + skipped)
        _LIBC.mmap.restype = ctypes.c_void_p
        if _LIBC.mmap(at, ctypes.c_size_t(count), protection, flags, fd, ctypes.c_int64(0)) != at.value:
            raise host.last_error()
        return held, view[skipped : skipped + count]
    except BaseException:
        del view
        held.close()
        raise


class Collapser:
    """Gives a file huge pages, if it lies in tmpfs; address: where map_aligned has mapped all of its `size` bytes."""

    def __init__(self, fd: int, address: int, size: int) -> None:
        self._fd, self._address, self._huge = fd, address, huge_bytes()
        self._size = size if suits(fd, size) else 0  # of nothing the end is soon reached
        self._at = 0

    def turn(self, seconds: float) -> bool:
        """Go on for about so long; True when the end is reached and the next turn begins anew."""
        deadline = time.monotonic() + seconds
        # Holes are skipped at once.  The next one is not looked for: to find it, the kernel passes each page before it.
        while (at := host.next_data(self._fd, self._size, self._at)) < self._size:
            at = -(-at // self._huge) * self._huge
            if at + self._huge > self._size:
                break
            if time.monotonic() >= deadline:
                self._at = at
                return False
            if self._is_full(at):
                self._collapse(at)
            self._at = at + self._huge
        self._at = 0
        return True

    def _is_full(self, at: int) -> bool:
        """True where all pages of the huge one at `at` are in memory (mincore(2))."""
        found = np.empty(self._huge // mmap.PAGESIZE, np.uint8)
        where, count = ctypes.c_void_p(self._address + at), ctypes.c_size_t(self._huge)
        return _LIBC.mincore(where, count, found.ctypes) == 0 and bool(np.all(found & 1))

    def _collapse(self, at: int) -> None:
        where, count = ctypes.c_void_p(self._address + at), ctypes.c_size_t(self._huge)
        # It fills a hole that a trim made meanwhile.  That costs room and no more: nobody takes the zeros for data.
        if _LIBC.madvise(where, count, _MADV_COLLAPSE) and ctypes.get_errno() == errno.EINVAL:
            self._size = 0  # this kernel cannot
