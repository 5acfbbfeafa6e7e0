# SPDX-License-Identifier: MIT
"""Memory hotplug by SECTION_SIZE: the first reference in 128 MiB makes 2 MiB of descriptors, the last one frees them.

Source: Dan Williams, linux-kernel, 7 May 2015: "get_user_pages() triggers memory hotplug for persistent memory"; Dave
Hansen on it: "We've traditionally limited them to SECTION_SIZE granularity, which is 128MB IIRC", "2MB of temporary
'struct page' space per page of I/O".  The words of a section are what Linux has mem_section for.
"""

import numpy as np

from ..jit import hot
from . import _descriptors as d
from . import _hotplug as hotplug

TITLE = "hotplug by section, 128 MiB"
SOURCE = "Williams and Hansen, 7 May 2015"
WHERE, SHARED = "memory", True
PARAMETERS = hotplug.PARAMETERS
SHIFT = 15  # SECTION_SIZE_BITS (27 on x86) less PAGE_SHIFT
STATE = np.dtype([*d.FIELDS, *hotplug.FIELDS, ("sections", "<i8")])

bring_up = d.nothing_to_bring_up
figures = hotplug.figures


def plan(page_count, parameters, arena):
    """See the package."""
    return hotplug.plan(STATE, "sections", SHIFT, page_count, parameters, arena)


@hot
def map_extent(state, first, count):
    return hotplug.map_extent(state, state["sections"], SHIFT, first, count)


@hot
def unmap_extent(state, first, count):
    hotplug.unmap_extent(state, state["sections"], SHIFT, first, count)


@hot
def lookup(state, page):
    return hotplug.lookup(state["sections"], SHIFT, page)


@hot
def get_page(state, page):
    return hotplug.get_page(state, state["sections"], SHIFT, page)


@hot
def put_page(state, page, descriptor):
    hotplug.put_page(state, state["sections"], SHIFT, page, descriptor)


begin_io, end_io = get_page, put_page
