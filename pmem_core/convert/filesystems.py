# SPDX-License-Identifier: MIT
"""How far a filesystem on a device reaches: data need not lie at its end, and yet it cannot be mounted without it.

The sizes are where Linux has them: fs/ext4/ext4.h (ext4_super_block), fs/xfs/libxfs/xfs_format.h (xfs_dsb).
"""

import contextlib
import struct

from ..device import Device
from ..errors import BadData, DoesNotFit

_HEAD_BYTES = 4096  # to the end of both superblocks


def size_of(head: bytes) -> tuple[str, int] | None:
    """Name and bytes of the filesystem that begins with `head`, of ext4 and its forerunners, and of xfs."""
    if head[1080:1082] == b"\x53\xef":
        low, block_shift = struct.unpack_from("<4xI16xI", head, 1024)
        incompatible, high = struct.unpack_from("<I", head, 1024 + 0x60)[0], 0
        if incompatible & 0x80:  # INCOMPAT_64BIT
            high = struct.unpack_from("<I", head, 1024 + 0x150)[0]
        return "ext4", (high << 32 | low) << (10 + min(block_shift, 16))
    if head[:4] == b"XFSB":
        block_bytes, blocks = struct.unpack_from(">4xIQ", head)
        return "xfs", block_bytes * blocks
    return None


def require_room(device: Device, new_bytes: int) -> None:
    """DoesNotFit where the filesystem on `device` reaches beyond `new_bytes`, what the device is to be."""
    with contextlib.suppress(BadData):  # which a look at all pages will name
        found = size_of(device.read(min(_HEAD_BYTES, device.plan.device_bytes), 0))
        if found and new_bytes < found[1] <= device.plan.device_bytes:
            what = f"the {found[0]} on it has {found[1]} bytes, and {new_bytes} would be left"
            raise DoesNotFit(device.path, what, f"shrink the filesystem to {new_bytes} bytes first")
