# SPDX-License-Identifier: MIT
"""One array on the medium with a descriptor for every page.

Source: Linux, drivers/nvdimm/pfn_devs.c with PFN_MODE_PMEM, which is ``ndctl create-namespace --map=dev``.  Ingo
Molnar, linux-kernel, 7 May 2015: "allocating them in nice, large, predictable places - such as on the device itself".
"""

import numpy as np

from . import _array as arrays
from . import _descriptors as d

TITLE = "linear array on the medium"
SOURCE = "Linux, ndctl create-namespace --map=dev"
WHERE, SHARED = "medium", True
PARAMETERS = {}
STATE = np.dtype([*d.FIELDS, *arrays.FIELDS, ("of_linear_dev", "<i8")])

lookup = arrays.linear_lookup
bring_up, get_page, put_page = arrays.bring_up, arrays.get_page, arrays.put_page
begin_io, end_io = get_page, put_page
map_extent, unmap_extent, figures = d.nothing_to_map, d.nothing_to_unmap, d.no_figures


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    states["page_count"], states["medium_bytes"] = page_count, page_count << d.BYTES_SHIFT
    states["array"], states["medium"] = arena.take(page_count << d.BYTES_SHIFT), 1
    return states
