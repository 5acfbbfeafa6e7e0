# SPDX-License-Identifier: MIT
"""Blocks of one size, taken and given back: the last one given is the next one taken, as a slab has it.

What is given back is kept for the next one who takes; it counts as free, as with the kernel's allocators.
"""

import numpy as np

from ..jit import hot, i64_at
from ._descriptors import NO_ROOM

POOL = np.dtype(
    [
        ("at", "<i8"),  # address of the first block
        ("block_bytes", "<i8"),
        ("room", "<i8"),  # blocks
        ("made", "<i8"),  # blocks that were taken at least once
        ("free", "<i8"),  # address of a free block, whose first word has the next; 0: none
        ("taken", "<i8"),  # blocks taken now
    ]
)


def plan(pool, block_bytes, room, arena):
    """Fill in `pool` (a POOL): `room` blocks, on multiples of block_bytes where that is a power of two up to 4096."""
    pool["block_bytes"], pool["room"] = block_bytes, room
    pool["at"] = arena.take(block_bytes * room)


@hot
def take(pool):
    """The address of a block, whatever is in it; or NO_ROOM."""
    block = pool["free"]
    if block:
        pool["free"] = i64_at(block, 1)[0]
    elif pool["made"] < pool["room"]:
        block = pool["at"] + pool["made"] * pool["block_bytes"]
        pool["made"] += 1
    else:
        return NO_ROOM
    pool["taken"] += 1
    return block


@hot
def give(pool, block):
    """Give it back."""
    i64_at(block, 1)[0] = pool["free"]
    pool["free"] = block
    pool["taken"] -= 1
