# SPDX-License-Identifier: MIT
"""What was measured of Optane's leveling: a block of 64 KiB that was written often enough moves, and writes stall.

Source: Wang, Liu, Yang, Izraelevitz, Zhao, Swanson, "Characterizing and Modeling Non-Volatile Memory Systems", MICRO
2020 (LENS, which measured, and VANS, the model): a block of 64 KiB migrates after about 14000 writes of 256 bytes.  The
numbers are those of VANS's configuration: 896 times an entry of 16 such writes, which is 14336 writes, and then 256
lines of 270 cycles of 0.75 ns, for which writes are held up: 51.84 µs.

What is not known, or not theirs:

* Where the block goes is not published.  Here it changes places with a random one, through spares (see frametable), so
  a migration writes two blocks.
* VANS counts by entries of 4 KiB and moves no data; here writes are counted by blocks, which is what migrates.
* The stall is accounted, not slept: `stall_nanoseconds`.

A store counts as the 256-byte writes that its lines make, at least one.  `block_frames` times the size of a frame is a
block: 16 frames of 4096 bytes are 64 KiB.  One tick word a block: what was written since it last migrated, in lines or
in writes of 256 bytes, whichever is larger.
"""

import numpy as np

from .. import frametable, media
from ..frametable import finish, spare_frames, table_is_sane, translate  # the contract's
from ..jit import hot
from ..layout import OK

__all__ = ["finish", "spare_frames", "table_is_sane", "translate"]

SOURCE = "LENS and VANS: Wang et al., MICRO 2020"
MOVES = True
STALL_NANOSECONDS = 51840
WRITE_SHIFT = 8  # a write, as it is counted, is 256 bytes
PARAMETERS = {
    "threshold": (14336, 1, 1 << 40, "writes of 256 bytes to a block between two migrations of it"),
    "block_frames": (16, 1, 1 << 20, "frames a block, a power of two; 16 of 4096 bytes are Optane's 64 KiB"),
    "spare_blocks": (128, 1, 1 << 20, "free blocks in each of two rings; less on a small medium"),
}
STATE = np.dtype([*frametable.FIELDS, ("threshold", "<i8"), ("migration_key", "<i8")])


def suited(medium_frames, given):
    """Fewer spares on a small medium, larger blocks where the table would be too large."""
    least = frametable.suited_block(medium_frames, PARAMETERS["block_frames"][0], frametable.BLOCKS_MAX)
    return frametable.suited(medium_frames, {"block_frames": least} | given, least)


def plan(medium_frames, parameters, seed):
    """Share out `medium_frames`; returns state (STATE[]), placed frames, initial table (int64[]), tick words."""
    state = np.zeros((), STATE)
    state["threshold"] = parameters["threshold"]
    state["migration_key"] = np.random.default_rng(seed).integers(0, 1 << 31)
    block_frames = parameters["block_frames"]
    frames, table = frametable.plan(state, medium_frames, block_frames, parameters["spare_blocks"], 0)
    return state, frames, table, frames // block_frames


def stall_nanoseconds(state, table):
    """How long writes would have been held up since creation."""
    return frametable.exchanges(state, table) * STALL_NANOSECONDS


@hot
def tick(state, run, frame, lines):
    lines_shift = max(0, WRITE_SHIFT - run["line_shift"])  # lines smaller than a write: those of one
    media.ticks_of(run)[frame >> state["block_shift"]] += (lines + (1 << lines_shift) - 1) >> lines_shift


@hot
def settle(state, run, core, frame):
    block = frame >> state["block_shift"]
    ticks = media.ticks_of(run)
    if ticks[block] << max(0, run["line_shift"] - WRITE_SHIFT) < state["threshold"]:
        return OK
    if state["blocks"] > 1:
        other = frametable.draw_other(state, state["migration_key"], frametable.turn(state, run), block)
        code = frametable.exchange(state, run, core, block, other, -1, 0)
        if code:
            return code
    ticks[block] = 0
    return OK
