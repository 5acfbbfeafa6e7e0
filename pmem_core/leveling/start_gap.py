# SPDX-License-Identifier: MIT
"""Start-Gap, in regions, with a gap of one or more frames and an optional static randomisation in front.

Source: Qureshi, Karidis, Franceschini, Srinivasan, Lastras, Abali, "Enhancing Lifetime and Security of PCM-Based Main
Memory with Start-Gap Wear Leveling", MICRO 2009, sections 4 (Start-Gap), 5.2 (Feistel network) and 6 (regions).

A region has n placed frames on a ring of n + K medium frames; the K free ones, the gap, begin at `gap`.  Placed frame x
of the region is at ring position (gap + K + (x + turned) mod n) mod (n + K).  Every `interval` stores to the region the
frame below the gap is copied to the gap's upper end, gap falls by one and turned rises by one.  With K = 1 that is the
paper's algorithm, move for move.

Why K > 1: a frame that a move freed may be the only durable copy of its data until the next checkpoint.  The next
move's target is the frame freed K moves ago, so K moves a region need one checkpoint, not K.

One table word a region, gap << 32 | turned, so that one store switches a move.  One tick word a region: the stores
since its last move was due.
"""

import numpy as np

from .. import frametable, media
from ..jit import hot, publish
from ..layout import CHECKPOINT, HOST, OK, STOP_KIND

SOURCE = "Qureshi et al., MICRO 2009"
MOVES = True
# name: default, minimum, maximum, what it is
PARAMETERS = {
    "interval": (100, 1, 1 << 30, "stores to a region between two moves in it (the paper's psi)"),
    "region_frames": (
        8192,
        1,
        1 << 30,
        "placed frames a region, a power of two; less on a medium that holds no region",
    ),
    "gap_frames": (128, 1, 1 << 20, "free frames a region (1 in the paper); a 64th of region_frames unless it is set"),
    "randomize": (0, 0, 1, "1: a keyed Feistel permutation of all frames in front"),
}
ROUNDS = 3
REGIONS_MAX = frametable.BLOCKS_MAX  # a word of the table each, as a block of that has
LOW = (1 << 32) - 1
STATE = np.dtype(
    [
        ("frames", "<i8"),
        ("interval", "<i8"),
        ("region_shift", "<i8"),
        ("whole_regions", "<i8"),
        ("last_frames", "<i8"),
        ("gap_frames", "<i8"),
        ("randomize", "<i8"),
        ("half_bits", "<i8"),
        ("keys", "<i8", (ROUNDS,)),
    ]
)


def suited(medium_frames, given):
    """Defaults that depend on the medium and on the parameters given: a gap of a 64th of a region, and a whole region.

    Rings of 65 parts agree with the stride of 65 pages (docs/leveling.md).
    Regions are larger where there would be too many of them.
    """
    region = given.get("region_frames", _least_region(medium_frames, 0, PARAMETERS["region_frames"][0]))
    while "region_frames" not in given and region > 64 and region + region // 64 > medium_frames:
        region //= 2
    return {"region_frames": region, "gap_frames": max(1, region // 64)}


def _least_region(medium_frames, gap, least):
    """`least` region_frames, or as many as it takes for REGIONS_MAX regions."""
    while -(-medium_frames // (least + gap)) > REGIONS_MAX:
        least *= 2
    return least


def plan(medium_frames, parameters, seed):
    """Share out `medium_frames`; returns state (STATE[]), placed frames, initial table (int64[]), tick words.

    ValueError for parameters that cannot be.
    """
    region, gap = parameters["region_frames"], parameters["gap_frames"]
    if region & (region - 1):
        raise ValueError(f"region_frames={region}: a power of two")
    least = _least_region(medium_frames, gap, region)
    if least > region:
        what = f"region_frames={region}: {least} at least"
        raise ValueError(f"{what}, for a table of at most {REGIONS_MAX} regions")
    whole, rest = divmod(medium_frames, region + gap)
    last = max(rest - gap, 0)
    frames = whole * region + last
    state = np.zeros((), STATE)
    state["frames"] = frames
    state["interval"] = parameters["interval"]
    state["region_shift"] = region.bit_length() - 1
    state["whole_regions"] = whole
    state["last_frames"] = last
    state["gap_frames"] = gap
    state["randomize"] = parameters["randomize"]
    state["half_bits"] = max(1, ((frames - 1).bit_length() + 1) // 2)
    state["keys"] = np.random.default_rng(seed).integers(0, 1 << 31, ROUNDS)
    table = np.full(whole, region << 32, np.int64)
    if last:
        table = np.append(table, np.int64(last << 32))
    return state, frames, table, len(table)


def spare_frames(state, table):
    """The medium frames that hold nothing, int64[]."""
    gap = int(state["gap_frames"])
    region = 1 << int(state["region_shift"])
    sizes = np.full(len(table), region, np.int64)
    sizes[int(state["whole_regions"]) :] = int(state["last_frames"])
    ring = (sizes + gap)[:, None]
    first = (np.arange(len(table)) * (region + gap))[:, None]
    # In place, for these are megabytes where the medium is large, and new memory costs more than sums.
    frames = (table >> 32)[:, None] + np.arange(gap)
    np.subtract(frames, ring, out=frames, where=frames >= ring)
    frames += first
    return frames.ravel()


def spare_count(state, table):
    """How many frames `spare_frames` would name: of a large medium they are millions."""
    return len(table) * int(state["gap_frames"])


def table_is_sane(state, table):
    """True where compiled code can bear `table`, whatever is in it."""
    whole, gap_frames = int(state["whole_regions"]), int(state["gap_frames"])
    sane = True
    for part, size in ((table[:whole], 1 << int(state["region_shift"])), (table[whole:], int(state["last_frames"]))):
        # As unsigned words: a gap below zero is a large one.  Few arrays, for there may be half a million regions.
        words = part.view(np.uint64)
        sane = sane and bool(np.all(words >> np.uint64(32) < size + gap_frames))
        sane = sane and bool(np.all(words & np.uint64(LOW) < size))
    return sane


@hot
def _permuted(state, frame):
    """A static one-to-one map of 0 .. frames - 1: Feistel network over the next even power of two, cycle-walked."""
    bits = state["half_bits"]
    mask = (1 << bits) - 1
    while True:
        left, right = frame >> bits, frame & mask
        for i in range(ROUNDS):
            mixed = ((right ^ state["keys"][i]) * 0x45D9F3B) >> 16
            left, right = right, left ^ (mixed & mask)
        frame = left << bits | right
        if frame < state["frames"]:
            return frame


@hot
def _region_size(state, region):
    if region < state["whole_regions"]:
        return 1 << state["region_shift"]
    return state["last_frames"]


@hot
def translate(state, run, frame):
    if state["randomize"]:
        frame = _permuted(state, frame)
    shift, gap_frames = state["region_shift"], state["gap_frames"]
    region = frame >> shift
    size = _region_size(state, region)
    word = media.table_of(run)[region]
    x = frame - (region << shift) + (word & LOW)
    if x >= size:
        x -= size
    position = (word >> 32) + gap_frames + x
    if position >= size + gap_frames:
        position -= size + gap_frames
    return region * ((1 << shift) + gap_frames) + position


@hot
def tick(state, run, frame, lines):
    if state["randomize"]:
        frame = _permuted(state, frame)
    media.ticks_of(run)[frame >> state["region_shift"]] += 1


@hot
def settle(state, run, core, frame):
    if state["randomize"]:
        frame = _permuted(state, frame)
    region = frame >> state["region_shift"]
    ticks = media.ticks_of(run)
    while ticks[region] >= state["interval"]:
        code = _move(state, run, core, region)
        if code & STOP_KIND == HOST:
            # One stays due.  Were all of them made up for when there is room again, they would take it at once.
            ticks[region] = state["interval"]
        if code:
            return code
        ticks[region] -= state["interval"]
    return OK


@hot
def _move(state, run, core, region):
    table = media.table_of(run)
    size, gap_frames = _region_size(state, region), state["gap_frames"]
    ring = size + gap_frames
    gap, turned = table[region] >> 32, table[region] & LOW
    moves_not_durable = ((media.durable_table_of(run)[region] >> 32) - gap) % ring
    if moves_not_durable >= gap_frames:
        return CHECKPOINT
    if 4 * moves_not_durable >= 3 * gap_frames:
        run["wanted"] = 1
    first = region * ((1 << state["region_shift"]) + gap_frames)
    source = gap - 1 if gap else ring - 1
    target = gap + gap_frames - 1
    if target >= ring:
        target -= ring
    code = media.move(run, core, first + source, first + target)
    if code:
        return code
    turned = turned + 1 if turned + 1 < size else 0
    publish(table, region, source << 32 | turned)
    return OK
