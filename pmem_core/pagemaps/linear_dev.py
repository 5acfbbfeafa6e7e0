# SPDX-License-Identifier: MIT
"""One array on the medium with a descriptor for every page.

Source: Linux, drivers/nvdimm/pfn_devs.c with PFN_MODE_PMEM, which is ``ndctl create-namespace --map=dev``.  Ingo
Molnar, linux-kernel, 7 May 2015: "allocating them in nice, large, predictable places - such as on the device itself".
"""

import numpy as np

from ..jit import hot
from ..layout import OK
from . import _descriptors as d

TITLE = "linear array on the medium"
SOURCE = "Linux, ndctl create-namespace --map=dev"
WHERE, SHARED = "medium", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("array_on_medium", "<i8")])


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"], states["medium_bytes"] = page_count, page_count << d.BYTES_SHIFT
    states["array_on_medium"] = arena.take(page_count << d.BYTES_SHIFT)
    return states


def figures(states):
    """See the package."""
    return {}


@hot
def bring_up(state, pages):
    first, end = d.next_pages(state, pages)
    for page in range(first, end):
        d.ensure(state, lookup(state, page), page, 1)
    state["covered"] = end
    return end


@hot
def map_extent(state, first, count):
    return OK


@hot
def unmap_extent(state, first, count):
    pass


@hot
def lookup(state, page):
    return state["array_on_medium"] + (page << d.BYTES_SHIFT)


@hot
def get_page(state, page):
    return d.get(state, lookup(state, page), page, 1)


@hot
def put_page(state, page, descriptor):
    d.put(state, descriptor, 1)


begin_io, end_io = get_page, put_page
