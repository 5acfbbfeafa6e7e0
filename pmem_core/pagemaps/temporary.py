# SPDX-License-Identifier: MIT
"""Descriptors for as long as an I/O: a page of memory, room for 64 of them, for each outstanding page of I/O.

Source: Dave Hansen, linux-kernel, 7 May 2015: "just allocating PAGE_SIZE worth of 'struct page' (which is 64) and
mapping it in to vmemmap[]. The worst case is that you'll eat 1 page of space for each outstanding page of I/O."  What
Ingo Molnar said to it shows too: "not just the temporary IO instance".  Two I/Os on one page see two descriptors, so
nothing can be agreed on by them, and outside of an I/O there is none to hold.  The page is not mapped anywhere: what
page tables would cost is not seen here.
"""

import numpy as np

from ..jit import clear_bytes, hot, u8_at
from ..layout import PAGE_BYTES
from . import _descriptors as d
from . import _pool as pool

TITLE = "a page of descriptors per I/O"
SOURCE = "Hansen, 7 May 2015"
WHERE, SHARED = "memory", False
PARAMETERS = {"outstanding": (1 << 16, 1, 1 << 24, "I/Os that there is room for at a time")}
STATE = np.dtype([*d.FIELDS, ("outstanding", pool.POOL)])
IN_PAGE = PAGE_BYTES // d.BYTES - 1

bring_up, map_extent, unmap_extent = d.nothing_to_bring_up, d.nothing_to_map, d.nothing_to_unmap


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"] = page_count
    pool.plan(states[0]["outstanding"], PAGE_BYTES, parameters["outstanding"], arena)
    return states


def figures(states):
    """See the package."""
    return {"outstanding": int(states[0]["outstanding"]["taken"])}


@hot
def lookup(state, page):
    return d.NONE


get_page = lookup


@hot
def put_page(state, page, descriptor):
    pass


@hot
def begin_io(state, page):
    block = pool.take(state["outstanding"])
    if block < 0:
        return d.NO_ROOM
    clear_bytes(u8_at(block, PAGE_BYTES), 0, PAGE_BYTES)
    descriptor = block + ((page & IN_PAGE) << d.BYTES_SHIFT)
    d.initialise(state, descriptor, page, d.PG_RESERVED, 0)
    d.hold(descriptor)
    state["initialised_bytes"] += PAGE_BYTES
    state["descriptor_bytes"] += PAGE_BYTES
    return descriptor


@hot
def end_io(state, page, descriptor):
    if descriptor > 0:
        d.release(descriptor)
        pool.give(state["outstanding"], descriptor & ~(PAGE_BYTES - 1))
        state["descriptor_bytes"] -= PAGE_BYTES
