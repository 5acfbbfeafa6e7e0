# SPDX-License-Identifier: MIT
"""One array in RAM with a descriptor for every page, made anew at every boot.

Source: Linux, drivers/nvdimm/pfn_devs.c with PFN_MODE_RAM, which is ``ndctl create-namespace --map=mem``.  Ingo Molnar,
linux-kernel, 7 May 2015, on real RAM: "we allocate a struct page for every page in nice, large, mostly linear arrays".
"""

import numpy as np

from . import _array as arrays
from . import _descriptors as d

TITLE = "linear array in RAM"
SOURCE = "Linux, ndctl create-namespace --map=mem"
WHERE, SHARED = "memory", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, *arrays.FIELDS, ("of_linear_mem", "<i8")])

lookup = arrays.linear_lookup
bring_up, get_page, put_page = arrays.bring_up, arrays.get_page, arrays.put_page
begin_io, end_io = get_page, put_page
map_extent, unmap_extent, figures = d.nothing_to_map, d.nothing_to_unmap, d.no_figures


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"], states["descriptor_bytes"] = page_count, page_count << d.BYTES_SHIFT
    states["array"], states["medium"] = arena.take(page_count << d.BYTES_SHIFT), 0
    return states
