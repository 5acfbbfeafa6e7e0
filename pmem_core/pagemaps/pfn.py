# SPDX-License-Identifier: MIT
"""No descriptors: whoever needs a page has its number, and nobody can hold it.

Source: Ingo Molnar, linux-kernel, 7 May 2015: "skip the dynamic allocation and use pfns directly"; the thread is about
__pfn_t, which was to do so in the block layer.
"""

import numpy as np

from ..jit import hot
from . import _descriptors as d

TITLE = "page numbers only"
SOURCE = "the __pfn_t of the mail's thread"
WHERE, SHARED = "nowhere", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("no_descriptors", "<i8")])

bring_up, map_extent, unmap_extent = d.nothing_to_bring_up, d.nothing_to_map, d.nothing_to_unmap
figures = d.no_figures


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"] = page_count
    return states


@hot
def lookup(state, page):
    return d.NONE


get_page = lookup


@hot
def put_page(state, page, descriptor):
    pass


begin_io, end_io = get_page, put_page
