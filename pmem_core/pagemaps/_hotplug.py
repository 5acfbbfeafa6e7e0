# SPDX-License-Identifier: MIT
"""Memory hotplug: the descriptors of a run of 1 << shift pages, a *plug*, appear at its first use and go with its last.

A plug has two words in the table: the address of its descriptors (0: none), and its users, which are the
references held in it and, with `mapping_pins`, the extents mapped in it.  Its arithmetic is that of Linux's SPARSEMEM:
a table's entry, and an index into the array found there.  What else hotplug does, page tables, zones and locks, is not
done, so what a plug costs here is the least that it can cost.
"""

import numpy as np

from ..jit import hot, i64_at
from ..layout import OK
from . import _descriptors as d
from . import _pool as pool

FIELDS = [("shift", "<i8"), ("mapping_pins", "<i8"), ("table", "<i8"), ("blocks", pool.POOL)]
PINS = (0, 0, 1, "1: a mapped extent is a user of what it covers; 0: only a reference is")


def plan(dtype, page_count, parameters, arena):
    """The state (dtype[1])."""
    shift = parameters["shift"]
    plugs = -(-page_count >> shift)
    states = np.zeros(1, dtype)
    states["page_count"], states["mapping_pins"] = page_count, parameters["mapping_pins"]
    states["shift"], states["table"] = shift, arena.take(16 * plugs)
    states["structure_bytes"] = 16 * plugs
    pool.plan(states[0]["blocks"], d.BYTES << shift, plugs, arena)
    return states


def figures(states):
    """See the package."""
    return {"present": int(states[0]["blocks"]["taken"])}


@hot
def entry_of(state, page):
    """The two words of the plug of `page`."""
    return i64_at(state["table"] + ((page >> state["shift"]) << 4), 2)


@hot
def use(state, page):
    """One user more of the plug of `page`: its descriptors appear if it is the first.  NO_ROOM is not possible."""
    shift, entry = state["shift"], entry_of(state, page)
    if entry[1] == 0:
        first = (page >> shift) << shift
        entry[0] = pool.take(state["blocks"])
        d.initialise_run(state, entry[0], first, min(1 << shift, state["page_count"] - first))
        state["descriptor_bytes"] += d.BYTES << shift
    entry[1] += 1


@hot
def leave(state, page):
    """One user less; the last one's going takes the descriptors along."""
    entry = entry_of(state, page)
    entry[1] -= 1
    if entry[1] == 0:
        pool.give(state["blocks"], entry[0])
        entry[0] = 0
        state["descriptor_bytes"] -= d.BYTES << state["shift"]


@hot
def map_extent(state, first, count):
    shift = state["shift"]
    if state["mapping_pins"]:
        for plug in range(first >> shift, ((first + count - 1) >> shift) + 1):
            use(state, plug << shift)
    return OK


@hot
def unmap_extent(state, first, count):
    shift = state["shift"]
    if state["mapping_pins"]:
        for plug in range(first >> shift, ((first + count - 1) >> shift) + 1):
            leave(state, plug << shift)


@hot
def lookup(state, page):
    at = entry_of(state, page)[0]
    return at + ((page & ((1 << state["shift"]) - 1)) << d.BYTES_SHIFT) if at else d.NONE


@hot
def get_page(state, page):
    use(state, page)
    descriptor = lookup(state, page)
    d.hold(descriptor)
    return descriptor


@hot
def put_page(state, page, descriptor):
    if descriptor > 0:
        d.release(descriptor)
        leave(state, page)
