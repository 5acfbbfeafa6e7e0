# SPDX-License-Identifier: MIT
"""Room on the host where files may share blocks, as a copy made by `cp` does on xfs.

A store through a map to a shared block needs another one; on a full disk that is a SIGBUS.  So room is asked for in a
mode that leaves nothing shared (fallocate(2), FALLOC_FL_UNSHARE_RANGE), where the filesystem has it.
"""

import errno
import fcntl
import os
import struct

from . import host

UNSHARE_RANGE = 0x40
_FS_IOC_FIEMAP, _EXTENT_LAST, _EXTENT_SHARED = 0xC020660B, 0x0001, 0x2000  # linux/fiemap.h
_REQUEST, _EXTENT, _EXTENTS = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x"), 16  # at a time


def allocation(fd: int) -> int:
    """The mode of fallocate that makes room for every later store to a file, `fd`, open for writing."""
    try:
        host.fallocate(fd, host.KEEP_SIZE | UNSHARE_RANGE, 0, host.whole_pages(1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return host.KEEP_SIZE  # the filesystem knows no such mode
    return host.KEEP_SIZE | UNSHARE_RANGE


def shares_blocks(fd: int) -> bool:
    """True where another file has some of this one's blocks too; OSError (Documentation/filesystems/fiemap.rst)."""
    at = 0
    while True:
        request = _REQUEST.pack(at, (1 << 63) - at, 0, 0, _EXTENTS, 0)
        answer = fcntl.ioctl(fd, _FS_IOC_FIEMAP, request + bytes(_EXTENTS * _EXTENT.size))
        count = _REQUEST.unpack_from(answer)[3]
        found = [_EXTENT.unpack_from(answer, _REQUEST.size + i * _EXTENT.size) for i in range(count)]
        if any(flags & _EXTENT_SHARED for *_, flags in found):
            return True
        if not found or found[-1][3] & _EXTENT_LAST:
            return False
        at = found[-1][0] + found[-1][2]


def take(fd: int) -> None:
    """Have room for all of a file: no hole (a sparse copy has some), no block shared; OSError, ENOSPC among them."""
    status, mode = os.fstat(fd), allocation(fd)
    # xfs asks for room that is there already.
    if status.st_blocks * 512 < status.st_size or (mode & UNSHARE_RANGE and shares_blocks(fd)):
        host.fallocate(fd, mode, 0, status.st_size)
