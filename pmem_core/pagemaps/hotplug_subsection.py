# SPDX-License-Identifier: MIT
"""Memory hotplug by sub-section: the first reference in 2 MiB makes 32 KiB of descriptors, the last one frees them.

Source: Linux f1eca35a0dc7 ("mm/sparsemem: introduce struct mem_section_usage", v5.3) and the commits behind it, by Dan
Williams: SUBSECTION_SHIFT is 21.  Linux keeps a bit a sub-section, and the page tables say where its descriptors are;
the two words here stand for both.
"""

import numpy as np

from ..jit import hot
from . import _descriptors as d
from . import _hotplug as hotplug

TITLE = "hotplug by sub-section, 2 MiB"
SOURCE = "Linux f1eca35a0dc7, v5.3"
WHERE, SHARED = "memory", True
PARAMETERS = hotplug.PARAMETERS
SHIFT = 9  # SUBSECTION_SHIFT (21) less PAGE_SHIFT
STATE = np.dtype([*d.FIELDS, *hotplug.FIELDS, ("subsections", "<i8")])

bring_up = d.nothing_to_bring_up
figures = hotplug.figures


def plan(page_count, parameters, arena):
    """See the package."""
    return hotplug.plan(STATE, "subsections", SHIFT, page_count, parameters, arena)


@hot
def map_extent(state, first, count):
    return hotplug.map_extent(state, state["subsections"], SHIFT, first, count)


@hot
def unmap_extent(state, first, count):
    hotplug.unmap_extent(state, state["subsections"], SHIFT, first, count)


@hot
def lookup(state, page):
    return hotplug.lookup(state["subsections"], SHIFT, page)


@hot
def get_page(state, page):
    return hotplug.get_page(state, state["subsections"], SHIFT, page)


@hot
def put_page(state, page, descriptor):
    hotplug.put_page(state, state["subsections"], SHIFT, page, descriptor)


begin_io, end_io = get_page, put_page
