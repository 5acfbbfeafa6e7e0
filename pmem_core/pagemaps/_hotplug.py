# SPDX-License-Identifier: MIT
"""Memory hotplug: the descriptors of a run of 1 << shift pages, a *plug*, appear at its first use and go with its last.

`table` is the address of two words a plug: the address of its descriptors (0: none), and its users, which are the
references held in it and, with `mapping_pins`, the extents mapped in it.  Its arithmetic is that of Linux's SPARSEMEM:
a table's entry, and an index into the array found there.
"""

import numpy as np

from ..jit import hot, i64_at
from ..layout import OK
from . import _descriptors as d
from . import _pool as pool

FIELDS = [("mapping_pins", "<i8"), ("blocks", pool.POOL)]
PARAMETERS = {"mapping_pins": (0, 0, 1, "1: a mapped extent is a user of what it covers; 0: only a reference is")}


def plan(dtype, table_field, shift, page_count, parameters, arena):
    """The state (dtype[1])."""
    plugs = -(-page_count >> shift)
    states = np.zeros(1, dtype)
    states["page_count"], states["mapping_pins"] = page_count, parameters["mapping_pins"]
    states[table_field] = arena.take(16 * plugs)
    states["structure_bytes"] = 16 * plugs
    pool.plan(states[0]["blocks"], d.BYTES << shift, plugs, arena)
    return states


def figures(states):
    """See the package."""
    return {"present": int(states[0]["blocks"]["taken"])}


@hot
def entry_of(table, shift, page):
    """The two words of the plug of `page`."""
    return i64_at(table + ((page >> shift) << 4), 2)


@hot
def use(state, table, shift, page):
    """One user more of the plug of `page`: its descriptors appear if it is the first.  NO_ROOM is not possible."""
    entry = entry_of(table, shift, page)
    if entry[1] == 0:
        first = (page >> shift) << shift
        entry[0] = pool.take(state["blocks"])
        d.initialise_run(state, entry[0], first, min(1 << shift, state["page_count"] - first))
        state["descriptor_bytes"] += d.BYTES << shift
    entry[1] += 1


@hot
def leave(state, table, shift, page):
    """One user less; the last one's going takes the descriptors along."""
    entry = entry_of(table, shift, page)
    entry[1] -= 1
    if entry[1] == 0:
        pool.give(state["blocks"], entry[0])
        entry[0] = 0
        state["descriptor_bytes"] -= d.BYTES << shift


@hot
def map_extent(state, table, shift, first, count):
    if state["mapping_pins"]:
        for plug in range(first >> shift, ((first + count - 1) >> shift) + 1):
            use(state, table, shift, plug << shift)
    return OK


@hot
def unmap_extent(state, table, shift, first, count):
    if state["mapping_pins"]:
        for plug in range(first >> shift, ((first + count - 1) >> shift) + 1):
            leave(state, table, shift, plug << shift)


@hot
def lookup(table, shift, page):
    at = entry_of(table, shift, page)[0]
    return at + ((page & ((1 << shift) - 1)) << d.BYTES_SHIFT) if at else d.NONE


@hot
def get_page(state, table, shift, page):
    use(state, table, shift, page)
    descriptor = lookup(table, shift, page)
    d.hold(descriptor)
    return descriptor


@hot
def put_page(state, table, shift, page, descriptor):
    if descriptor > 0:
        d.release(descriptor)
        leave(state, table, shift, page)
