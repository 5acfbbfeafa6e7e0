# SPDX-License-Identifier: MIT
"""A table of where every block is, for levelings that let any two blocks change places.

A block is 1 << block_shift adjacent frames.  The medium's blocks are `blocks` placed ones and two rings of
`spare_blocks` each that hold nothing.  Two blocks change places through the rings: x moves into the young ring's next
block, y into the old ring's, and what they leave becomes the other ring's last.  So a hot block x and a cold block y
end on a little-worn block and on a much-worn one, whatever is in between.

Why spares: in place, one copy of a block would be overwritten before the other is durable.  A block that an exchange
freed may be the only durable copy until the next checkpoint; it is written again `spare_blocks` exchanges later.

The table, int64 words; all zeros at creation, so that it costs nothing on a large device::

    0 .. blocks                block i is where word i says: i + word
    .. + 2 spare_blocks        the same for the spare blocks: the young ring, then the old one
    turn                       exchanges made
    extra                      words of the policy
    redo                       how many pairs follow (0: none), then pairs: word number, new value

An exchange changes several words.  They are described in the redo words first, and storing their number is the one
store that switches; a process killed behind it leaves the rest to `finish`.
"""

import numpy as np

from . import media, reservations
from .jit import hot, publish
from .layout import CHECKPOINT, OK

FIELDS = [("blocks", "<i8"), ("block_shift", "<i8"), ("spare_blocks", "<i8"), ("extra", "<i8")]
REDO_PAIRS = 6
REDO_WORDS = 1 + 2 * REDO_PAIRS
# Every commit of moves copies the table, so defaults keep it below 16 MiB; more than 128 MiB would not fit the journal.
BLOCKS_SUITED, BLOCKS_MAX = 1 << 21, 1 << 24


def plan(state, medium_frames, block_frames, spare_blocks, extra):
    """Share out `medium_frames`: fills in FIELDS of `state`; returns placed frames and the table (int64[]).

    No placed frames where there are too few.  ValueError where block_frames is no power of two, or so small that the
    table would be too large.
    """
    if block_frames & (block_frames - 1):
        raise ValueError(f"block_frames={block_frames}: a power of two")
    if medium_frames // block_frames > BLOCKS_MAX:
        least = suited_block(medium_frames, 1, BLOCKS_MAX)
        raise ValueError(f"block_frames={block_frames}: {least} at least, for a table of at most {BLOCKS_MAX} blocks")
    blocks = medium_frames // block_frames - 2 * spare_blocks
    if blocks < 1:
        return 0, np.zeros(0, np.int64)
    state["blocks"], state["spare_blocks"], state["extra"] = blocks, spare_blocks, extra
    state["block_shift"] = block_frames.bit_length() - 1
    return blocks * block_frames, np.zeros(blocks + 2 * spare_blocks + 1 + extra + REDO_WORDS, np.int64)


def suited_spares(medium_frames, block_frames=1):
    """A default for `spare_blocks`: a 128th of the medium for both rings together, at most 128 blocks each."""
    return max(1, min(128, medium_frames // block_frames // 256))


def suited_block(medium_frames, least, blocks=BLOCKS_SUITED):
    """A default for `block_frames`: `least`, or more where the table would have more than `blocks` blocks."""
    while medium_frames // least > blocks:
        least *= 2
    return least


def suited(medium_frames, given, least):
    """Defaults for `block_frames`, `least` unless the medium is large, and `spare_blocks`."""
    block_frames = max(1, given.get("block_frames", suited_block(medium_frames, least)))
    return {"block_frames": block_frames, "spare_blocks": suited_spares(medium_frames, block_frames)}


def finish(state, table):
    """Bring `table` (int64[], changed in place) into line after a kill in the middle of an exchange."""
    at = len(table) - REDO_WORDS
    for pair in range(int(table[at])):
        table[table[at + 1 + 2 * pair]] = table[at + 2 + 2 * pair]
    table[at] = 0


def exchanges(state, table):
    """How many exchanges `table` (int64[]) has seen."""
    return int(table[int(state["blocks"]) + 2 * int(state["spare_blocks"])])


def spare_frames(state, table):
    """The medium frames that hold nothing, int64[]."""
    first, shift, count = int(state["blocks"]), int(state["block_shift"]), 2 * int(state["spare_blocks"])
    # Not a copy of the whole table: it may be gigabytes of zeros.
    words, at = table[first : first + count].copy(), len(table) - REDO_WORDS
    for pair in range(int(table[at])):
        word = int(table[at + 1 + 2 * pair])
        if first <= word < first + count:
            words[word - first] = table[at + 2 + 2 * pair]
    return (((np.arange(first, first + count) + words) << shift)[:, None] + np.arange(1 << shift)).ravel()


def table_is_sane(state, table):
    """True where compiled code can bear `table`, whatever is in it."""
    every = int(state["blocks"]) + 2 * int(state["spare_blocks"])
    redo = table[len(table) - REDO_WORDS :]
    if not 0 <= redo[0] <= REDO_PAIRS or table[every] < 0:
        return False
    pairs = redo[1 : 1 + 2 * int(redo[0])].reshape(-1, 2)
    if np.any((pairs[:, 0] < 0) | (pairs[:, 0] >= len(table) - REDO_WORDS)):
        return False
    table = table.copy()
    finish(state, table)
    places = np.arange(every) + table[:every]
    return bool(np.all((places >= 0) & (places < every))) and bool(table[every] >= 0)


@hot
def translate(state, run, frame):
    shift = state["block_shift"]
    block = frame >> shift
    return ((block + media.table_of(run)[block]) << shift) | (frame & ((1 << shift) - 1))


@hot
def block_wear(state, run, block):
    """The counter of the most worn line of the place of block `block`."""
    shift, hottest = state["block_shift"], 0
    first = translate(state, run, block << shift)
    for frame in range(first, first + (1 << shift)):
        hottest = max(hottest, media.frame_wear(run, frame))
    return hottest


@hot
def turn(state, run):
    """How many exchanges were made."""
    return media.table_of(run)[state["blocks"] + 2 * state["spare_blocks"]]


@hot
def extra_at(state):
    """The number of the first extra word."""
    return state["blocks"] + 2 * state["spare_blocks"] + 1


@hot
def room(state, run):
    """OK where an exchange may be made now, or CHECKPOINT: the next spares are still the durable copy of something."""
    at = state["blocks"] + 2 * state["spare_blocks"]
    not_durable = media.table_of(run)[at] - media.durable_table_of(run)[at]
    if not_durable >= state["spare_blocks"]:
        return CHECKPOINT
    if 4 * not_durable >= 3 * state["spare_blocks"]:
        run["wanted"] = 1
    return OK


@hot
def _reserve_block(state, run, block):
    """Make sure that the host has room for all of medium block `block`: half an exchange would be made in vain."""
    if not run["media"]:
        return OK
    shift = state["block_shift"]
    return reservations.reserve(run, media.frame_at(run, block << shift), 1 << (shift + run["frame_shift"]))


@hot
def _copy_block(state, run, core, source, target):
    shift = state["block_shift"]
    for frame in range(1 << shift):
        code = media.move(run, core, (source << shift) + frame, (target << shift) + frame)
        if code:
            return code
    return OK


@hot
def exchange(state, run, core, x, y, word, value):
    """Let blocks x and y, different ones, change places; OK or a stop code, nothing having changed.

    In the same instant table word number `word` becomes `value`; -1: none.
    """
    code = room(state, run)
    if code:
        return code
    table = media.table_of(run)
    count = state["spare_blocks"]
    turn_at = state["blocks"] + 2 * count
    young = state["blocks"] + table[turn_at] % count
    old = young + count
    from_x, from_y, to_x, to_y = x + table[x], y + table[y], young + table[young], old + table[old]
    for target in (to_x, to_y):
        code = _reserve_block(state, run, target)
        if code:
            return code
    code = _copy_block(state, run, core, from_x, to_x)
    if code == OK:
        code = _copy_block(state, run, core, from_y, to_y)
    if code:
        return code
    at = turn_at + 1 + state["extra"]
    _note(table, at, 0, x, to_x - x)
    _note(table, at, 1, y, to_y - y)
    _note(table, at, 2, young, from_y - young)
    _note(table, at, 3, old, from_x - old)
    _note(table, at, 4, turn_at, table[turn_at] + 1)
    pairs = 5
    if word >= 0:
        _note(table, at, 5, word, value)
        pairs = 6
    publish(table, at, pairs)
    for pair in range(pairs):
        table[table[at + 1 + 2 * pair]] = table[at + 2 + 2 * pair]
    publish(table, at, 0)
    return OK


@hot
def _note(table, at, pair, word, value):
    table[at + 1 + 2 * pair] = word
    table[at + 2 + 2 * pair] = value


LOW = (1 << 31) - 1


@hot
def mixed(x):
    """Scatter 31 bits (the products stay below 2**63: plain Python and compiled code agree)."""
    for _ in range(2):
        x = (((x >> 16) ^ x) * 0x45D9F3B) & LOW
    return (x >> 16) ^ x


@hot
def draw(key, number, below):
    """Draw number `number` of the stream of `key` (31 bits): 0 .. below - 1.  No state, so no cut loses it."""
    low = mixed((number & LOW) ^ key)
    high = mixed(low ^ (number >> 31) ^ 0x2545F491)
    return (high << 31 | low) % below


@hot
def draw_other(state, key, number, block):
    """Draw one of the blocks, of which there are two or more, that are not `block`.

    Were `block` drawn nothing would move, and a number that follows from the exchanges would be drawn for ever.
    """
    found = draw(key, number, state["blocks"] - 1)
    return found + 1 if found >= block else found
