# SPDX-License-Identifier: MIT
"""Memory hotplug by SECTION_SIZE: the first reference in 128 MiB makes 2 MiB of descriptors, the last one frees them.

Source: Dan Williams, linux-kernel, 7 May 2015: "get_user_pages() triggers memory hotplug for persistent memory"; Dave
Hansen on it: "We've traditionally limited them to SECTION_SIZE granularity, which is 128MB IIRC", "2MB of temporary
'struct page' space per page of I/O".  The words of a section are what Linux has mem_section for.
"""

import numpy as np

from . import _descriptors as d
from . import _hotplug as hotplug

TITLE = "hotplug by section, 128 MiB"
SOURCE = "Williams and Hansen, 7 May 2015"
WHERE, SHARED = "memory", True
PARAMETERS = {
    "shift": (15, 0, 20, "pages of a section, as a power of two: x86 has 128 MiB"),
    "mapping_pins": hotplug.PINS,
}
STATE = np.dtype([*d.FIELDS, *hotplug.FIELDS, ("of_sections", "<i8")])

bring_up = d.nothing_to_bring_up
figures = hotplug.figures
map_extent, unmap_extent = hotplug.map_extent, hotplug.unmap_extent
lookup, get_page, put_page = hotplug.lookup, hotplug.get_page, hotplug.put_page
begin_io, end_io = get_page, put_page


def plan(page_count, parameters, arena):
    """See the package."""
    return hotplug.plan(STATE, page_count, parameters, arena)
