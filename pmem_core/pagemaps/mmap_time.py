# SPDX-License-Identifier: MIT
"""Descriptors made when a file is mapped, in arrays that overlapping mappings share, and gone with the last user.

Source: Ingo Molnar, linux-kernel, 7 May 2015, quoted in his mail of that day: "creating struct page backing at mmap()
time (and making sure aliased mmaps share struct page arrays)", which Dan Williams and Dave Hansen answer there.

An array is a page of memory: 64 descriptors.  Its users are the extents that cover any of its pages and the references
held in it.  Arrays are found by a radix tree of 64 slots a node (RADIX_TREE_MAP_SHIFT is 6), Linux's own way, in 2015,
from the number of a page to its descriptor (struct address_space).
"""

import numpy as np

from ..jit import hot, i64_at
from ..layout import OK, PAGE_BYTES
from . import _descriptors as d
from . import _pool as pool

TITLE = "made at mmap() time, shared by aliases"
SOURCE = "Molnar, Williams and Hansen, 7 May 2015"
WHERE, SHARED = "memory", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("levels", "<i8"), ("root", "<i8"), ("arrays", pool.POOL), ("radix_nodes", pool.POOL)])
ARRAY_SHIFT = 6  # pages to arrays
SLOT_SHIFT = 6
SLOTS = 1 << SLOT_SHIFT
NODE_WORDS = SLOTS + 8  # 64 slots, how many of them are taken, and the rest of that cache line
NODE_BYTES = 8 * NODE_WORDS
USERS_WORD = 6  # of an array's first descriptor, where layout.DESCRIPTOR has nothing

bring_up = d.nothing_to_bring_up


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    arrays = -(-page_count >> ARRAY_SHIFT)
    nodes, count, levels = 0, arrays, 0
    while count > 1 or not levels:
        count = -(-count >> SLOT_SHIFT)
        nodes, levels = nodes + count, levels + 1
    states["page_count"], states["levels"] = page_count, levels
    pool.plan(states[0]["arrays"], PAGE_BYTES, arrays, arena)
    pool.plan(states[0]["radix_nodes"], NODE_BYTES, nodes, arena)
    states["root"] = _new_node(states[0])
    return states


def figures(states):
    """See the package."""
    state = states[0]
    return {
        "arrays": int(state["arrays"]["taken"]),
        "radix_nodes": int(state["radix_nodes"]["taken"]),
        "levels": int(state["levels"]),
    }


@hot
def _new_node(state):
    node = pool.take(state["radix_nodes"])
    i64_at(node, NODE_WORDS)[:] = 0
    state["structure_bytes"] += NODE_BYTES
    return node


@hot
def _slot(level, array):
    """The number of the slot that leads to `array`, in a node `level` levels above the last."""
    return (array >> (SLOT_SHIFT * level)) & (SLOTS - 1)


@hot
def _find(state, array):
    """The address of array number `array`; 0 where there is none."""
    at = state["root"]
    for level in range(state["levels"] - 1, -1, -1):
        at = i64_at(at, NODE_WORDS)[_slot(level, array)]
        if at == 0:
            break
    return at


@hot
def _make(state, array):
    """Make array number `array`, and the nodes that lead to it; its address."""
    at = state["root"]
    for level in range(state["levels"] - 1, 0, -1):
        words, slot = i64_at(at, NODE_WORDS), _slot(level, array)
        if words[slot] == 0:
            words[slot] = _new_node(state)
            words[SLOTS] += 1
        at = words[slot]
    words = i64_at(at, NODE_WORDS)
    made = pool.take(state["arrays"])
    words[_slot(0, array)] = made
    words[SLOTS] += 1
    first = array << ARRAY_SHIFT
    d.initialise_run(state, made, first, min(1 << ARRAY_SHIFT, state["page_count"] - first))
    state["descriptor_bytes"] += PAGE_BYTES
    return made


@hot
def _node_at(state, level, array):
    """The node `level` levels above the last, on the way to `array`."""
    at = state["root"]
    for above in range(state["levels"] - 1, level, -1):
        at = i64_at(at, NODE_WORDS)[_slot(above, array)]
    return at


@hot
def _free(state, array, at):
    """Free array number `array`, which is at `at`, and the nodes that lead nowhere then; the root stays."""
    pool.give(state["arrays"], at)
    state["descriptor_bytes"] -= PAGE_BYTES
    for level in range(state["levels"]):
        node = _node_at(state, level, array)
        words = i64_at(node, NODE_WORDS)
        words[_slot(level, array)] = 0
        words[SLOTS] -= 1
        if words[SLOTS] or level == state["levels"] - 1:
            break
        pool.give(state["radix_nodes"], node)
        state["structure_bytes"] -= NODE_BYTES


@hot
def _add_users(state, array, at, more):
    users = i64_at(at, d.WORDS)
    users[USERS_WORD] += more
    if users[USERS_WORD] == 0:
        _free(state, array, at)


@hot
def map_extent(state, first, count):
    for array in range(first >> ARRAY_SHIFT, ((first + count - 1) >> ARRAY_SHIFT) + 1):
        at = _find(state, array)
        _add_users(state, array, at if at else _make(state, array), 1)
    return OK


@hot
def unmap_extent(state, first, count):
    for array in range(first >> ARRAY_SHIFT, ((first + count - 1) >> ARRAY_SHIFT) + 1):
        _add_users(state, array, _find(state, array), -1)


@hot
def lookup(state, page):
    at = _find(state, page >> ARRAY_SHIFT)
    return at + ((page & ((1 << ARRAY_SHIFT) - 1)) << d.BYTES_SHIFT) if at else d.NONE


@hot
def get_page(state, page):
    descriptor = lookup(state, page)
    if descriptor > 0:
        d.hold(descriptor)
        _add_users(state, page >> ARRAY_SHIFT, descriptor & ~(PAGE_BYTES - 1), 1)
    return descriptor


@hot
def put_page(state, page, descriptor):
    if descriptor > 0:
        d.release(descriptor)
        _add_users(state, page >> ARRAY_SHIFT, descriptor & ~(PAGE_BYTES - 1), -1)


begin_io, end_io = get_page, put_page
