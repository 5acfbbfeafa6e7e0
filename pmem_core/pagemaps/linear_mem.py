# SPDX-License-Identifier: MIT
"""One array in RAM with a descriptor for every page, made anew at every boot.

Source: Linux, drivers/nvdimm/pfn_devs.c with PFN_MODE_RAM, which is ``ndctl create-namespace --map=mem``.  Ingo Molnar,
linux-kernel, 7 May 2015, on real RAM: "we allocate a struct page for every page in nice, large, mostly linear arrays".
"""

import numpy as np

from ..jit import hot
from ..layout import OK
from . import _descriptors as d

TITLE = "linear array in RAM"
SOURCE = "Linux, ndctl create-namespace --map=mem"
WHERE, SHARED = "memory", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, ("array_in_ram", "<i8")])


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"], states["descriptor_bytes"] = page_count, page_count << d.BYTES_SHIFT
    states["array_in_ram"] = arena.take(page_count << d.BYTES_SHIFT)
    return states


def figures(states):
    """See the package."""
    return {}


@hot
def bring_up(state, pages):
    first, end = d.next_pages(state, pages)
    for page in range(first, end):
        d.ensure(state, lookup(state, page), page, 0)
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
    return state["array_in_ram"] + (page << d.BYTES_SHIFT)


@hot
def get_page(state, page):
    return d.get(state, lookup(state, page), page, 0)


@hot
def put_page(state, page, descriptor):
    d.put(state, descriptor, 0)


begin_io, end_io = get_page, put_page
