# SPDX-License-Identifier: MIT
"""Descriptors scattered over the medium: every 65th page is a page of 64 of them.

Source: Ingo Molnar, linux-kernel, 7 May 2015: "we can pack 64 descriptors into a single page, so every 65 pages we
could have a page-struct page. Finding a pmem page's struct page would thus involve rounding it modulo 65 and reading
that page."  The arithmetic is the placement's of that name.
"""

import numpy as np

from ..jit import hot
from ..layout import PAGE_BYTES
from ..placement import interleaved as placing
from . import _array as arrays
from . import _descriptors as d

TITLE = "interleaved on the medium, modulo 65"
SOURCE = "Molnar, 7 May 2015"
WHERE, SHARED = "medium", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, *arrays.FIELDS, ("placing", placing.STATE)])

bring_up, get_page, put_page = arrays.bring_up, arrays.get_page, arrays.put_page
begin_io, end_io = get_page, put_page
map_extent, unmap_extent, figures = d.nothing_to_map, d.nothing_to_unmap, d.no_figures


def plan(page_count, parameters, arena):
    """See the package.  The medium is all there, data pages too: addresses are as far apart as they would be."""
    group = PAGE_BYTES // d.BYTES
    groups = -(-page_count // group)
    placed_bytes = (page_count + groups) * PAGE_BYTES
    states = np.zeros(1, STATE)
    states["placing"], found = placing.plan(placed_bytes, d.BYTES)
    assert found == page_count
    states["page_count"], states["medium_bytes"] = page_count, groups * PAGE_BYTES
    states["array"], states["medium"] = arena.take(placed_bytes), 1
    return states


@hot
def lookup(state, page):
    return state["array"] + placing.descriptor_at(state["placing"], page)
