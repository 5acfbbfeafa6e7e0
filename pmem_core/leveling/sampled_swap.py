# SPDX-License-Identifier: MIT
"""Sampled swap: a store drawn at random shows a hot frame; where it wears a worn one, a little-worn one takes over.

Source: ours.  The table and its exchanges are Zhou et al.'s (ISCA 2009, section 3.3), to move by worn counters is as
old as flash, and that a hot frame is met by sampling stores is folklore of caches.

One of `sample` stores is looked at.  Its frame x is met in proportion to its writes, with no counter a frame, and one
more block is drawn at random as a candidate; the one in which x would meet the least wear, y, stands.  x's block and
that one change places where

1. the stores since have paid for it: lines written >= interval * lines of a block, for an exchange of two moves;
2. x lies on the upper eighth of what lies between y and the most worn line of the medium, and
3. a quarter of `interval` above y at least.

Wear is that of the frame that x lies on or would, not of the block: where a hot frame has been, the place of its block
keeps a much-worn frame, and whatever lies there now would be moved for nothing.

Why that is enough, with blocks of a frame (docs/leveling.md has figures, and what larger blocks cost).  Let r be the
most worn line less the standing candidate.  By 1 the extra writes are at most 2 / interval, whatever is written.  By 2
a frame that was moved must wear 7/8 r before it may be moved again, and each of these writes pays: where r >= 8/7
interval there is credit for every frame that was moved down, so r grows only by the writes before a sample, a run of
k * sample of which is met with probability 1 - exp(-k), and by what is hot and took x's place by chance.  So the most
worn frame stays within about 2 * interval of the least worn candidates, a width that depends neither on the endurance,
nor on the size, nor on how the writes are spread; what is lost of the ideal life is half of it over the endurance, and
2 / interval.  An exchange of larger blocks costs as many times more and cools one frame, or few: the width is that of
blocks of a frame times their frames.

Draws are keyed by the image's uuid, the store's number and the frame, so there is no period that a stride or the turn
of data and descriptor could agree with, and who knows all but the key cannot tell where a frame will be.

Tick words: the stores; the lines written that have paid for nothing yet; the store that was last looked at; the store
at which the standing candidate was drawn.
"""

import numpy as np

from .. import frametable, media
from ..frametable import finish, spare_frames, table_is_sane, translate  # the contract's
from ..jit import hot
from ..layout import OK

__all__ = ["finish", "spare_frames", "table_is_sane", "translate"]

SOURCE = "ours"
MOVES = True
PARAMETERS = {
    "interval": (200, 1, 1 << 30, "writes of a whole block that pay for an exchange, which is two moves of it"),
    "sample": (8, 1, 1 << 20, "one of so many stores is looked at"),
    "block_frames": (1, 1, 1 << 20, "frames a block, a power of two; more on a large medium"),
    "spare_blocks": (128, 1, 1 << 20, "free frames in each of two rings; less on a small medium"),
}
STORES, CREDIT, LOOKED, STANDING, TICK_WORDS = 0, 1, 2, 3, 4
CREDIT_MAX = 16  # exchanges that may be paid for beforehand
STATE = np.dtype([*frametable.FIELDS, ("interval", "<i8"), ("sample", "<i8"), ("sample_key", "<i8")])


def suited(medium_frames, given):
    """Fewer spares on a small medium, larger blocks on a large one."""
    return frametable.suited(medium_frames, given, PARAMETERS["block_frames"][0])


def plan(medium_frames, parameters, seed):
    """Share out `medium_frames`; returns state (STATE[]), placed frames, initial table (int64[]), tick words."""
    state = np.zeros((), STATE)
    state["interval"], state["sample"] = parameters["interval"], parameters["sample"]
    state["sample_key"] = np.random.default_rng(seed).integers(0, 1 << 31)
    frames, table = frametable.plan(state, medium_frames, parameters["block_frames"], parameters["spare_blocks"], 0)
    return state, frames, table, TICK_WORDS


@hot
def tick(state, run, frame, lines):
    ticks = media.ticks_of(run)
    ticks[STORES] += 1
    ticks[CREDIT] += lines


@hot
def _is_drawn(state, frame, stores):
    number = frametable.mixed((frame & frametable.LOW) ^ state["sample_key"])
    return frametable.mixed(number ^ (stores & frametable.LOW)) % state["sample"] == 0


@hot
def settle(state, run, core, frame):
    ticks = media.ticks_of(run)
    stores = ticks[STORES]
    # Once a store: a page is settled again from its first frame on when one of them had to wait for a checkpoint.
    if stores == ticks[LOOKED] or not _is_drawn(state, frame, stores):
        return OK
    block, standing = frame >> state["block_shift"], ticks[STANDING]
    other = frametable.draw(state["sample_key"], standing, state["blocks"])
    least = _wear_within(state, run, other, frame)
    found = frametable.draw(state["sample_key"], stores, state["blocks"])
    wear = _wear_within(state, run, found, frame)
    if wear <= least:
        standing, other, least = stores, found, wear
    price = state["interval"] << (state["block_shift"] + run["frame_shift"] - run["line_shift"])
    if ticks[CREDIT] >= price and _is_due(state, core, _wear_within(state, run, block, frame) - least, least):
        code = frametable.exchange(state, run, core, block, other, -1, 0)
        if code:
            return code
        ticks[CREDIT] = min(ticks[CREDIT], CREDIT_MAX * price) - price
        standing = stores
    ticks[STANDING] = standing
    ticks[LOOKED] = stores
    return OK


@hot
def _wear_within(state, run, block, frame):
    """The most worn line of the medium frame that in `block` has the place of `frame` in its own."""
    there = block << state["block_shift"] | frame & ((1 << state["block_shift"]) - 1)
    return media.frame_wear(run, frametable.translate(state, run, there))


@hot
def _is_due(state, core, above, least):
    """Is a frame that lies `above` the candidate's wear, `least`, worth an exchange?"""
    return above > 0 and 4 * above >= state["interval"] and 8 * above >= 7 * (core["tally"]["hottest"] - least)
