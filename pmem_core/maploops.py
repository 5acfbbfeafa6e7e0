# SPDX-License-Identifier: MIT
"""The loops that time page maps.  All are one compiled function, so that each map is compiled once.

A loop takes its page numbers from an array.  What it finds is summed up and returned, so that no lookup can be left
out as useless; where lookups shall wait for each other, the place of the next page number is made to depend on what the
last one found, which no compiler can know to add nothing.
"""

from . import pagemaps
from .jit import hot, i64_at

WHERE, LATENCY, READ, GET, PUT, BEGIN, END, IO, MAP, UNMAP, BRING_UP = range(11)
INDEX_WORD = 4  # of a descriptor: the page number, so below 1 << 62


@hot
def _nothing(found):
    """0, for an address, NONE, NO_ROOM or a page number."""
    return (found + 2) >> 62


@hot
def _waiting(state, pages, read):
    total, i = 0, 0
    while i < len(pages):
        found = pagemaps.lookup(state, pages[i])
        total += found
        if read and found > 0:
            found = i64_at(found, INDEX_WORD + 1)[INDEX_WORD]
        i += 1 + _nothing(found)
    return total


@hot
def perform(states, what, pages, extents, held):
    """Do `what` for each page of `pages` (int64[n]) or extent of `extents` (int64[n, 2]: first page, pages).

    states: STATE[1] of a page map.  held: int64[n], descriptors: GET and BEGIN answer them, PUT and END give them back.
    Returns the sum of the addresses (WHERE, LATENCY, READ, GET, BEGIN, IO), the pages brought up (BRING_UP: the next
    pages[0] ones), or how many extents there was room for (MAP).
    """
    state = states[0]
    total = 0
    if what == WHERE:
        for i in range(len(pages)):
            total += pagemaps.lookup(state, pages[i])
    elif what == LATENCY or what == READ:
        total = _waiting(state, pages, what == READ)
    elif what == GET:
        for i in range(len(pages)):
            held[i] = pagemaps.get_page(state, pages[i])
            total += held[i]
    elif what == PUT:
        for i in range(len(pages)):
            pagemaps.put_page(state, pages[i], held[i])
    elif what == BEGIN:
        for i in range(len(pages)):
            held[i] = pagemaps.begin_io(state, pages[i])
            total += held[i]
    elif what == END:
        for i in range(len(pages)):
            pagemaps.end_io(state, pages[i], held[i])
    elif what == IO:
        for i in range(len(pages)):
            found = pagemaps.begin_io(state, pages[i])
            total += found
            pagemaps.end_io(state, pages[i], found)
    elif what == MAP:
        for i in range(len(extents)):
            if pagemaps.map_extent(state, extents[i, 0], extents[i, 1]) < 0:
                break
            total += 1
    elif what == UNMAP:
        for i in range(len(extents)):
            pagemaps.unmap_extent(state, extents[i, 0], extents[i, 1])
    elif what == BRING_UP:
        total = pagemaps.bring_up(state, pages[0])
    return total


@hot
def alone(pages, what):
    """The loops of WHERE, LATENCY and READ without a lookup: what is read is the array of page numbers."""
    total, i = 0, 0
    if what == WHERE:
        for j in range(len(pages)):
            total += pages[j]
    else:
        while i < len(pages):
            total += pages[i]
            i += 1 + _nothing(pages[i])
    return total
