# SPDX-License-Identifier: MIT
"""Table swap: a block written `interval` times changes places with a random block, or with a little-worn one.

Source: the table-based segment swapping of Zhou, Zhao, Yang, Zhang, "A Durable and Energy Efficient Main Memory Using
Phase Change Memory Technology", ISCA 2009, section 3.3: a hot segment is swapped with a cold one, the map is a table.

With candidates = 1 the other block is drawn at random; with more, it is the least worn of that many drawn.  Looking at
all blocks, as the paper does, would take a time that grows with the device.

One tick word a block: the stores since it was last exchanged.
"""

import numpy as np

from .. import frametable, media
from ..frametable import finish, spare_frames, table_is_sane, translate  # the contract's
from ..jit import hot
from ..layout import OK

__all__ = ["finish", "spare_frames", "table_is_sane", "translate"]

SOURCE = "Zhou et al., ISCA 2009"
MOVES = True
PARAMETERS = {
    "interval": (1000, 1, 1 << 30, "stores to a block between two exchanges of it"),
    "block_frames": (16, 1, 1 << 20, "frames a block, a power of two; more on a large medium"),
    "candidates": (1, 1, 1 << 10, "blocks drawn; the least worn of them is the other one"),
    "spare_blocks": (128, 1, 1 << 20, "free blocks in each of two rings; less on a small medium"),
}
STATE = np.dtype([*frametable.FIELDS, ("interval", "<i8"), ("candidates", "<i8"), ("swap_key", "<i8")])


def suited(medium_frames, given):
    """Fewer spares on a small medium, larger blocks on a large one."""
    return frametable.suited(medium_frames, given, PARAMETERS["block_frames"][0])


def plan(medium_frames, parameters, seed):
    """Share out `medium_frames`; returns state (STATE[]), placed frames, initial table (int64[]), tick words."""
    state = np.zeros((), STATE)
    state["interval"], state["candidates"] = parameters["interval"], parameters["candidates"]
    state["swap_key"] = np.random.default_rng(seed).integers(0, 1 << 31)
    block_frames = parameters["block_frames"]
    frames, table = frametable.plan(state, medium_frames, block_frames, parameters["spare_blocks"], 0)
    return state, frames, table, frames // block_frames


@hot
def tick(state, run, frame, lines):
    media.ticks_of(run)[frame >> state["block_shift"]] += 1


@hot
def settle(state, run, core, frame):
    block = frame >> state["block_shift"]
    ticks = media.ticks_of(run)
    if ticks[block] < state["interval"]:
        return OK
    if state["blocks"] > 1:
        code = frametable.exchange(state, run, core, block, _other(state, run, block), -1, 0)
        if code:
            return code
    ticks[block] = 0
    return OK


@hot
def _other(state, run, block):
    first = frametable.turn(state, run) * state["candidates"]
    found = frametable.draw_other(state, state["swap_key"], first, block)
    if state["candidates"] > 1:
        least = frametable.block_wear(state, run, found)
        for i in range(1, state["candidates"]):
            drawn = frametable.draw_other(state, state["swap_key"], first + i, block)
            wear = frametable.block_wear(state, run, drawn)
            if wear < least:
                found, least = drawn, wear
    return found
