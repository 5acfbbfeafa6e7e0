# SPDX-License-Identifier: MIT
"""Security Refresh: blocks change places in pairs that a random key names, round after round; one level or two.

Source: Seong, Woo, Lee, "Security Refresh: Prevent Malicious Wear-out and Increase Durability for Phase-Change Memory
with Dynamically Randomized Address Mapping", ISCA 2010.

One level: N = 2**k addresses, keys k0 and k1, a pointer.  Every `interval` stores the pointer's address and its pair,
address ^ k0 ^ k1, change places if the pair is the larger one (else they have done so this round), and the pointer
advances; behind the last address k0 becomes k1, and k1 a random number.  In the paper frame address ^ k1 then holds
what was refreshed, frame address ^ k0 the rest.

Two levels (sub_regions > 1): the outer level does the same with all blocks, every `outer_interval` stores to the
device, and gives each an intermediate address; its upper bits are the sub-region.  The inner levels refresh the
intermediate addresses of their own sub-region, every `interval` stores to it.

What is not the paper's:

* A table says where blocks are, so that an exchange can go through spares (see frametable); the paper's controller
  swaps in place.  Who changes places, and when, is the paper's.  A block's place then is not address ^ key, and a
  sub-region is a set of intermediate addresses, not of adjacent frames.
* Where there are fewer blocks than a power of two, a pair of which one is no block is passed over.
* The writes of exchanges are not counted as stores.  An exchange is made before the next write, not after the last.

A pointer is how many addresses it has ever refreshed, one extra word of the table each, the outer one first; it
advances in the instant of its exchange.  Keys are drawn by the number of the round; that of round 0 is 0, so all blocks
begin at their own address.  One tick word a pointer.
"""

import numpy as np

from .. import frametable, media
from ..frametable import finish, spare_frames, translate  # the contract's
from ..jit import hot, publish
from ..layout import HOST, OK, STOP_KIND

__all__ = ["finish", "spare_frames", "translate"]

SOURCE = "Seong et al., ISCA 2010"
MOVES = True
PARAMETERS = {
    "interval": (100, 1, 1 << 30, "stores to a sub-region between two refreshes in it"),
    "sub_regions": (1, 1, 1 << 16, "1: one level; a power of two above it: two levels"),
    "outer_interval": (100, 1, 1 << 30, "with two levels: stores between two refreshes across sub-regions"),
    "block_frames": (16, 1, 1 << 20, "frames a block, a power of two"),
    "spare_blocks": (128, 1, 1 << 20, "free blocks in each of two rings; less on a small medium"),
}
STATE = np.dtype(
    [
        *frametable.FIELDS,
        ("interval", "<i8"),
        ("outer_interval", "<i8"),
        ("sub_regions", "<i8"),
        ("address_bits", "<i8"),
        ("inner_bits", "<i8"),
        ("refresh_key", "<i8"),
    ]
)
REFRESHED_MAX = 1 << 48
OUTER, INNER = 0, 1  # pointers: the outer one, and the first of the inner ones


def suited(medium_frames, given):
    """Fewer spares on a small medium, larger blocks where the table would be too large."""
    return frametable.suited(medium_frames, given, PARAMETERS["block_frames"][0])


def plan(medium_frames, parameters, seed):
    """Share out `medium_frames`; returns state (STATE[]), placed frames, initial table (int64[]), tick words.

    ValueError for parameters that cannot be.
    """
    sub_regions = parameters["sub_regions"]
    if sub_regions & (sub_regions - 1):
        raise ValueError(f"sub_regions={sub_regions}: a power of two")
    state = np.zeros((), STATE)
    pointers = INNER + sub_regions
    frames, table = frametable.plan(
        state, medium_frames, parameters["block_frames"], parameters["spare_blocks"], pointers
    )
    sub_region_bits = sub_regions.bit_length() - 1
    state["interval"], state["outer_interval"] = parameters["interval"], parameters["outer_interval"]
    state["sub_regions"] = sub_regions
    state["address_bits"] = max((max(int(state["blocks"]), 1) - 1).bit_length(), sub_region_bits)
    state["inner_bits"] = state["address_bits"] - sub_region_bits
    state["refresh_key"] = np.random.default_rng(seed).integers(0, 1 << 31)
    return state, frames, table, pointers


def table_is_sane(state, table):
    """True where compiled code can bear `table`, whatever is in it."""
    if not frametable.table_is_sane(state, table):
        return False
    table = table.copy()
    finish(state, table)
    first = len(table) - frametable.REDO_WORDS - int(state["extra"])
    refreshed = table[first : first + int(state["extra"])]
    return bool(np.all((refreshed >= 0) & (refreshed < REFRESHED_MAX)))


@hot
def tick(state, run, frame, lines):
    ticks = media.ticks_of(run)
    if state["sub_regions"] > 1:
        ticks[OUTER] += 1
    ticks[_inner_pointer(state, run, frame)] += 1


@hot
def settle(state, run, core, frame):
    code = _settle(state, run, core, OUTER, state["outer_interval"])
    if code:
        return code
    # Only now: what the outer level exchanges has new intermediate addresses.
    return _settle(state, run, core, _inner_pointer(state, run, frame), state["interval"])


@hot
def _settle(state, run, core, pointer, interval):
    ticks = media.ticks_of(run)
    while ticks[pointer] >= interval:
        code = _refresh(state, run, core, pointer)
        if code & STOP_KIND == HOST:
            ticks[pointer] = interval  # one stays due; all of them, when there is room again, would take it at once
        if code:
            return code
        ticks[pointer] -= interval
    return OK


@hot
def _bits(state, pointer):
    return state["address_bits"] if pointer == OUTER else state["inner_bits"]


@hot
def _key(state, pointer, number):
    """The key of round `number` of a pointer."""
    if number == 0:
        return 0
    stream = number * (INNER + state["sub_regions"]) + pointer
    return frametable.draw(state["refresh_key"], stream, 1 << _bits(state, pointer))


@hot
def _refresh(state, run, core, pointer):
    """Refresh the next address of a pointer; OK or a stop code, nothing having changed."""
    table, word, bits = media.table_of(run), frametable.extra_at(state) + pointer, _bits(state, pointer)
    refreshed = table[word]
    number, address = refreshed >> bits, refreshed & ((1 << bits) - 1)
    pair = address ^ _key(state, pointer, number) ^ _key(state, pointer, number + 1)
    if pair > address:
        x, y = address, pair
        if pointer != OUTER:
            first = (pointer - INNER) << bits
            x, y = _block_at(state, run, first | address), _block_at(state, run, first | pair)
        if x < state["blocks"] and y < state["blocks"]:
            return frametable.exchange(state, run, core, x, y, word, refreshed + 1)
    publish(table, word, refreshed + 1)
    return OK


@hot
def _outer(state, run, address, was_key, is_key):
    """What the outer level has address at: address ^ is_key once it or its pair was refreshed, before ^ was_key."""
    pointer = media.table_of(run)[frametable.extra_at(state) + OUTER] & ((1 << state["address_bits"]) - 1)
    if address < pointer or address ^ was_key ^ is_key < pointer:
        return address ^ is_key
    return address ^ was_key


@hot
def _outer_round(state, run):
    return media.table_of(run)[frametable.extra_at(state) + OUTER] >> state["address_bits"]


@hot
def _inner_pointer(state, run, frame):
    """The pointer of the sub-region of placed frame `frame`."""
    if state["sub_regions"] == 1:
        return INNER
    number = _outer_round(state, run)
    was_key, is_key = _key(state, OUTER, number), _key(state, OUTER, number + 1)
    return INNER + (_outer(state, run, frame >> state["block_shift"], was_key, is_key) >> state["inner_bits"])


@hot
def _block_at(state, run, intermediate):
    """The address that the outer level has at an intermediate one."""
    number = _outer_round(state, run)
    was_key, is_key = _key(state, OUTER, number), _key(state, OUTER, number + 1)
    address = intermediate ^ is_key
    if _outer(state, run, address, was_key, is_key) == intermediate:
        return address
    return intermediate ^ was_key
