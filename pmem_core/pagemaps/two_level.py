# SPDX-License-Identifier: MIT
"""One descriptor for 2 MiB, and the 512 small ones only where a mapping wants them.

Source: Rik van Riel, linux-kernel, 8 May 2015, answering Ingo Molnar's mail: "allocating one struct page for every PMD
/ THP sized area (2MB on x86), and dynamically allocating struct pages for the 4kB pages inside only if the area gets
split. They can be freed again when the area is not being accessed in 4kB chunks."

A mapped extent that covers an area in part wants it split.  An area is split once somebody wants that and nobody holds
a reference in it, and merged once nobody wants it split and nobody holds one: Linux, too, does not split a large page
that somebody holds.  So whoever holds a page's descriptor has the one that everybody else gets.
"""

import numpy as np

from ..jit import hot, i64_at
from ..layout import OK
from . import _descriptors as d
from . import _pool as pool

TITLE = "two levels: 2 MiB, split on demand"
SOURCE = "van Riel, 8 May 2015"
WHERE, SHARED = "memory", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("large", "<i8"), ("small", pool.POOL)])
ORDER = 9
PAGES = 1 << ORDER
# The large descriptor's counts: references to it or to its small ones, and extents that want it split.
SMALL_WORD = 7  # of the large descriptor: the address of the small ones, 0: not split


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    areas = -(-page_count >> ORDER)
    states["page_count"], states["descriptor_bytes"] = page_count, areas << d.BYTES_SHIFT
    states["large"] = arena.take(areas << d.BYTES_SHIFT)
    pool.plan(states[0]["small"], PAGES << d.BYTES_SHIFT, areas, arena)
    return states


def figures(states):
    """See the package."""
    return {"split": int(states[0]["small"]["taken"])}


@hot
def _large(state, page):
    return state["large"] + ((page >> ORDER) << d.BYTES_SHIFT)


@hot
def _ensure(state, page):
    """The large descriptor of `page`, initialised."""
    large = _large(state, page)
    if not d.is_initialised(large):
        d.initialise(state, large, page & ~(PAGES - 1), d.PG_RESERVED | d.PG_HEAD, ORDER)
    return large


@hot
def _settle(state, large):
    """Split the area or merge it, where that is wanted and nobody holds a reference in it."""
    words = i64_at(large, d.WORDS)
    if words[d.COUNT_WORD] & d.COUNT_MASK:
        return
    small, wanted, first = words[SMALL_WORD], words[d.COUNT_WORD] >= d.MAPPED_ONCE, words[d.INDEX_WORD]
    if wanted and not small:
        small = pool.take(state["small"])
        d.initialise_run(state, small, first, min(PAGES, state["page_count"] - first))
        state["descriptor_bytes"] += PAGES << d.BYTES_SHIFT
        words[SMALL_WORD] = small
    elif small and not wanted:
        pool.give(state["small"], small)
        state["descriptor_bytes"] -= PAGES << d.BYTES_SHIFT
        words[SMALL_WORD] = 0


@hot
def bring_up(state, pages):
    first, end = d.next_pages(state, pages)
    for area in range(first >> ORDER, -(-end >> ORDER)):
        _ensure(state, area << ORDER)
    state["covered"] = end
    return end


@hot
def _want_split(state, first, count, more):
    """An extent wants `more` of the areas that it covers in part to be split: `more` is 1 or -1."""
    end = first + count
    for area in range(first >> ORDER, ((end - 1) >> ORDER) + 1):
        begin = area << ORDER
        if first > begin or end < min(begin + PAGES, state["page_count"]):
            large = _ensure(state, begin)
            i64_at(large, d.WORDS)[d.COUNT_WORD] += more * d.MAPPED_ONCE
            _settle(state, large)


@hot
def map_extent(state, first, count):
    _want_split(state, first, count, 1)
    return OK


@hot
def unmap_extent(state, first, count):
    _want_split(state, first, count, -1)


@hot
def lookup(state, page):
    large = _large(state, page)
    small = i64_at(large, d.WORDS)[SMALL_WORD]
    return small + ((page & (PAGES - 1)) << d.BYTES_SHIFT) if small else large


@hot
def get_page(state, page):
    large = _ensure(state, page)
    descriptor = lookup(state, page)
    if descriptor != large:
        d.hold(descriptor)
    d.hold(large)
    return descriptor


@hot
def put_page(state, page, descriptor):
    if descriptor > 0:
        large = _large(state, page)
        if descriptor != large:
            d.release(descriptor)
        if d.release(large) == 0:
            _settle(state, large)


begin_io, end_io = get_page, put_page
