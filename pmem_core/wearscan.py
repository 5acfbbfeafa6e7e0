# SPDX-License-Identifier: MIT
"""The loops of `stats`: which kind every unit of the medium is, and how often each counter value occurs in each kind.

A unit is the largest piece of the medium that is all of one kind: a page, or a frame where frames are smaller.  Units
are numbered from the start of the medium, the info blocks' included.  A block is 1024 counters, a page of the wear
file.  `slots` (int32, one a block) numbers the blocks that exist; -1 is a hole of that file, whose counters are all 0
and need no look.  `kinds` (uint8) has the kind of each unit of the blocks that exist, in order of slots.

`device` is the tuple (RUN[1], placement STATE[1], leveling STATE[1]); of RUN only the shifts, the table and the ticks
are used.
"""

from . import leveling
from .jit import hot, int64
from .layout import FRAMES_AT, PAGE_SHIFT

KINDS = ("data", "descriptor", "spare", "info")
DATA, DESCRIPTOR, SPARE, INFO = range(4)
BINS = 1 << 16
BLOCK_SHIFT = 10

# What check_frames finds wrong with a frame, indexes into its answer; and what it writes into `hit`.
TWICE, OUTSIDE, IN_SPARE = range(3)
HIT, HIT_SPARE = 1, 2


@hot
def _mark(run, slots, kinds, unit_shift, kind, address):
    block_shift = run["line_shift"] + BLOCK_SHIFT
    if address < run["medium_bytes"] and slots[address >> block_shift] >= 0:
        inside = (address & ((1 << block_shift) - 1)) >> unit_shift
        kinds[(int64(slots[address >> block_shift]) << (block_shift - unit_shift)) + inside] = kind


@hot
def mark_placed(device, slots, kinds, unit_shift, kind, first, stride, size, count):
    """Set the kind of the units under `count` placed spans: `size` bytes every `stride` bytes from `first` on."""
    run, state = device[0][0], device[2][0]
    frame_shift = run["frame_shift"]
    for span in range(count):
        begin = first + span * stride
        for at in range(begin >> unit_shift << unit_shift, begin + size, 1 << unit_shift):
            address = leveling.translate(state, run, at >> frame_shift) << frame_shift | at & ((1 << frame_shift) - 1)
            _mark(run, slots, kinds, unit_shift, kind, FRAMES_AT + address)


@hot
def mark_medium(device, slots, kinds, unit_shift, kind, frames, size):
    """Set the kind of the units of `size` bytes from the start of each of the medium frames `frames`, int64[]."""
    run = device[0][0]
    for frame in frames:
        first = FRAMES_AT + (frame << run["frame_shift"])
        for address in range(first, first + size, 1 << unit_shift):
            _mark(run, slots, kinds, unit_shift, kind, address)


@hot
def count_wear(counters, kinds, unit_lines, histogram, large, large_kinds):
    """Count uint32 `counters`, whole units whose kinds are `kinds`, into histogram[kind, value] (int64[4, BINS]).

    Values from BINS on go one by one into `large` (uint32[]) and their kinds into `large_kinds` (uint8[]), both at
    least as long as `counters`.  Returns how many.
    """
    many = 0
    for unit in range(counters.size // unit_lines):
        kind = kinds[unit]
        for i in range(unit * unit_lines, (unit + 1) * unit_lines):
            value = counters[i]
            if value < BINS:
                histogram[kind, value] += 1
            else:
                large[many] = value
                large_kinds[many] = kind
                many += 1
    return many


@hot
def fold_wear(counters, first_unit, unit_lines, unit_shift, pages, fold, sums, hottest):
    """Add uint32 `counters` to the cells of a map: `sums` (int64[rows, columns]) and `hottest` (likewise, the largest).

    With fold = 0 the medium behind the info blocks, `pages` long, runs through the cells row by row.  With fold = n a
    column is a share of the n pages of a stripe, and a row is a share of the stripes.
    """
    rows, columns = sums.shape
    for unit in range(counters.size // unit_lines):
        page = (((first_unit + unit) << unit_shift) - FRAMES_AT) >> PAGE_SHIFT
        if page < 0:
            continue
        if fold:
            row, column = page * rows // pages, page % fold * columns // fold
        else:
            cell = page * (rows * columns) // pages
            row, column = cell // columns, cell % columns
        total, most = 0, 0
        for i in range(unit * unit_lines, (unit + 1) * unit_lines):
            value = int64(counters[i])
            total += value
            most = max(most, value)
        sums[row, column] += total
        hottest[row, column] = max(hottest[row, column], most)


@hot
def check_frames(device, first, count, hit, found):
    """Translate `count` placed frames from `first` on and note each in `hit` (uint8, one a medium frame).

    Adds to found[TWICE], found[OUTSIDE] and found[IN_SPARE] (int64[3]) the frames that are mapped to one in use, to
    none, and to one that `hit` has marked as spare.
    """
    run, state = device[0][0], device[2][0]
    for placed in range(first, first + count):
        frame = leveling.translate(state, run, placed)
        if frame < 0 or frame >= hit.size:
            found[OUTSIDE] += 1
        elif hit[frame] & HIT:
            found[TWICE] += 1
        else:
            if hit[frame] & HIT_SPARE:
                found[IN_SPARE] += 1
            hit[frame] |= HIT


@hot
def translate_frames(device, first, frames):
    """Fill `frames` (int64[]) with the medium frames of the placed frames from `first` on."""
    run, state = device[0][0], device[2][0]
    for i in range(frames.size):
        frames[i] = leveling.translate(state, run, first + i)


@hot
def compare_frames(used, free, found):
    """Look whether `used` and `free` (int64[], ascending if all is well) name every frame of theirs once.

    Adds to found[TWICE] the neighbours in `used` that do not ascend, to found[IN_SPARE] those in `free`, and what is in
    both.
    """
    at = 0
    for i in range(1, used.size):
        found[TWICE] += used[i] <= used[i - 1]
    for i in range(1, free.size):
        found[IN_SPARE] += free[i] <= free[i - 1]
    for frame in used:
        while at < free.size and free[at] < frame:
            at += 1
        found[IN_SPARE] += at < free.size and free[at] == frame
