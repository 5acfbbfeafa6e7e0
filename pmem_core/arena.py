# SPDX-License-Identifier: MIT
"""Memory that costs only what is touched, in any amount: for tables as large as a large device asks for."""

import mmap

import numpy as np

from .errors import HostError

# mmap has no name for it before Python 3.13; the value is that of include/uapi/asm-generic/mman-common.h.
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def anonymous(count: int) -> mmap.mmap:
    """`count` (1 or more) zero bytes, a map of their own; OSError or OverflowError where no addresses are left.

    Not counted by the kernel's overcommit (MAP_NORESERVE), and in pages of 4096 bytes only: with transparent huge
    pages each byte touched would cost 2 MiB.  Left out of core dumps, which would write the zeros.
    """
    taken = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    taken.madvise(mmap.MADV_NOHUGEPAGE)
    taken.madvise(mmap.MADV_DONTDUMP)
    return taken


class Arena:
    """Such memory, given out once and freed as a whole; keep it as long as its addresses are used."""

    def __init__(self) -> None:
        self._maps: list[tuple[mmap.mmap, np.ndarray]] = []
        self.bytes = 0

    def take(self, count: int) -> int:
        """The address of `count` more zero bytes, a multiple of 4096; HostError where no addresses are left."""
        count = max(count, 1)
        try:
            taken = anonymous(count)
        except (OSError, OverflowError) as error:
            raise HostError(f"{count} bytes of memory", f"mmap: {error}", "a smaller device") from None
        view = np.frombuffer(taken, np.uint8)
        self._maps.append((taken, view))
        self.bytes += count
        return int(view.ctypes.data)
