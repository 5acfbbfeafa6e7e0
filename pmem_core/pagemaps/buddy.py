# SPDX-License-Identifier: MIT
"""Descriptors brought up in power-of-two runs of pages, which split on demand and merge with their buddies.

Source: Ingo Molnar, linux-kernel, 7 May 2015, on initialising all page structs at discovery: "We could probably do this
in a hierarchical way, by dividing continuous pmem ranges into power-of-two groups of blocks, and organizing them like
the buddy allocator does."  Merging is __free_one_page()'s: the buddy of a run is at its number ^ its size.

There is room for a descriptor a page, in one array on the medium, but only the first one of each run, its *head*, is
initialised; it carries the order.  A device that is just discovered has O(log n) heads.  The head of a page's run is
found by looking at each order's candidate.

A reference splits its run down to the page; an extent's ends split theirs as far as alignment asks.  Two buddies merge
where nobody holds a reference in either and equally many mappings cover them.  So at any moment runs are as large as
they can be.
"""

import numpy as np

from ..jit import hot, i64_at
from ..layout import OK
from . import _descriptors as d

TITLE = "power-of-two runs, as buddies"
SOURCE = "Molnar, 7 May 2015"
WHERE, SHARED = "medium", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("heads_on_medium", "<i8"), ("order_max", "<i8"), ("heads", "<i8")])
HEAD_FLAGS = d.PG_RESERVED | d.PG_HEAD


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"], states["medium_bytes"] = page_count, page_count << d.BYTES_SHIFT
    states["heads_on_medium"] = arena.take(page_count << d.BYTES_SHIFT)
    states["order_max"] = page_count.bit_length() - 1
    return states


def figures(states):
    """See the package."""
    return {"heads": int(states[0]["heads"])}


@hot
def _words(state, page):
    return i64_at(state["heads_on_medium"] + (page << d.BYTES_SHIFT), d.WORDS)


@hot
def _head_of(state, page):
    """The first page of the run of `page`; -1 where it was not brought up."""
    for order in range(state["order_max"] + 1):
        first = (page >> order) << order
        words = _words(state, first)
        if words[d.FLAGS_WORD] & d.PG_HEAD and words[d.ORDER_WORD] >= order:
            return first
    return -1


@hot
def _make_head(state, page, order, mapped):
    """Initialise the head of a run that `mapped` mappings cover."""
    d.initialise(state, state["heads_on_medium"] + (page << d.BYTES_SHIFT), page, HEAD_FLAGS, order)
    _words(state, page)[d.COUNT_WORD] = mapped * d.MAPPED_ONCE
    state["stores"] += 1
    state["heads"] += 1


@hot
def _split(state, page, wanted):
    """Split the run of `page` until the one with `page` in it is of order `wanted`, or smaller already."""
    head = _head_of(state, page)
    words = _words(state, head)
    while words[d.ORDER_WORD] > wanted:
        order = words[d.ORDER_WORD] - 1
        buddy = head + (1 << order)
        _make_head(state, buddy, order, words[d.COUNT_WORD] // d.MAPPED_ONCE)
        words[d.ORDER_WORD] = order
        state["stores"] += 1
        if page >= buddy:
            head, words = buddy, _words(state, buddy)


@hot
def _merge(state, head):
    """Merge the run at `head` with its buddy, and so on; the first page of what it is then."""
    words = _words(state, head)
    while words[d.COUNT_WORD] & d.COUNT_MASK == 0:
        order = words[d.ORDER_WORD]
        buddy = head ^ (1 << order)
        if buddy >= state["page_count"]:
            break
        other = _words(state, buddy)
        alike = other[d.ORDER_WORD] == order and other[d.COUNT_WORD] == words[d.COUNT_WORD]
        if not (other[d.FLAGS_WORD] & d.PG_HEAD and alike):
            break
        if buddy < head:
            head, words, other = buddy, other, words
        other[d.FLAGS_WORD] = d.PG_RESERVED
        words[d.ORDER_WORD] = order + 1
        state["stores"] += 2
        state["heads"] -= 1
    return head


@hot
def _fitting(page, end):
    """The order of the largest run that begins at `page` and ends at `end` or before."""
    order = 0
    while page & (1 << order) == 0 and page + (2 << order) <= end:
        order += 1
    return order


@hot
def bring_up(state, pages):
    page, end = d.next_pages(state, pages)
    while page < end:
        order = _fitting(page, end)
        _make_head(state, page, order, 0)
        _merge(state, page)
        page += 1 << order
    state["covered"] = end
    return end


@hot
def _need(state, end):
    """Bring up what comes before page number `end`, and the rest with it: it is a few heads."""
    if end > state["covered"]:
        bring_up(state, state["page_count"])


@hot
def _count_mapping(state, first, count, more):
    """`more` (1 or -1) mappings more cover these pages."""
    page, end = first, first + count
    while page < end:
        _split(state, page, _fitting(page, end))
        words = _words(state, page)
        words[d.COUNT_WORD] += more * d.MAPPED_ONCE
        state["stores"] += 1
        page += 1 << words[d.ORDER_WORD]
    page = first
    while page < end:
        head = _merge(state, _head_of(state, page))
        page = head + (1 << _words(state, head)[d.ORDER_WORD])


@hot
def map_extent(state, first, count):
    _need(state, first + count)
    _count_mapping(state, first, count, 1)
    return OK


@hot
def unmap_extent(state, first, count):
    _count_mapping(state, first, count, -1)


@hot
def lookup(state, page):
    head = _head_of(state, page)
    return state["heads_on_medium"] + (head << d.BYTES_SHIFT) if head >= 0 else d.NONE


@hot
def get_page(state, page):
    _need(state, page + 1)
    _split(state, page, 0)
    descriptor = state["heads_on_medium"] + (page << d.BYTES_SHIFT)
    d.hold(descriptor)
    state["stores"] += 1
    return descriptor


@hot
def put_page(state, page, descriptor):
    if descriptor > 0:
        left = d.release(descriptor)
        state["stores"] += 1
        if left == 0:
            _merge(state, page)


begin_io, end_io = get_page, put_page
