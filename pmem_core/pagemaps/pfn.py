# SPDX-License-Identifier: MIT
"""No descriptors: whoever needs a page has its number, and nobody can hold it.

Source: Ingo Molnar, linux-kernel, 7 May 2015: "skip the dynamic allocation and use pfns directly"; the thread is about
__pfn_t, which was to do so in the block layer.
"""

import numpy as np

from ..jit import hot
from ..layout import OK
from . import _descriptors as d

TITLE = "page numbers only"
SOURCE = "the __pfn_t of the mail's thread"
WHERE, SHARED = "nowhere", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("no_descriptors", "<i8")])

bring_up = d.nothing_to_bring_up


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"] = page_count
    return states


def figures(states):
    """See the package."""
    return {}


@hot
def map_extent(state, first, count):
    return OK


@hot
def unmap_extent(state, first, count):
    pass


@hot
def lookup(state, page):
    return d.NONE


get_page = lookup


@hot
def put_page(state, page, descriptor):
    pass


begin_io, end_io = get_page, put_page
