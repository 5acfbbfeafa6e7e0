# SPDX-License-Identifier: MIT
"""Memory hotplug by sub-section: the first reference in 2 MiB makes 32 KiB of descriptors, the last one frees them.

Source: Linux f1eca35a0dc7 ("mm/sparsemem: introduce struct mem_section_usage", v5.3) and the commits behind it, by Dan
Williams: SUBSECTION_SHIFT is 21.  Linux keeps a bit a sub-section, and the page tables say where its descriptors are;
the two words here stand for both.
"""

import numpy as np

from . import _descriptors as d
from . import _hotplug as hotplug

TITLE = "hotplug by sub-section, 2 MiB"
SOURCE = "Linux f1eca35a0dc7, v5.3"
WHERE, SHARED = "memory", True
PARAMETERS = {
    "shift": (9, 0, 20, "pages of a sub-section, as a power of two: Linux has 2 MiB"),
    "mapping_pins": hotplug.PINS,
}
STATE = np.dtype([*d.FIELDS, *hotplug.FIELDS, ("of_subsections", "<i8")])

bring_up = d.nothing_to_bring_up
figures = hotplug.figures
map_extent, unmap_extent = hotplug.map_extent, hotplug.unmap_extent
lookup, get_page, put_page = hotplug.lookup, hotplug.get_page, hotplug.put_page
begin_io, end_io = get_page, put_page


def plan(page_count, parameters, arena):
    """See the package."""
    return hotplug.plan(STATE, page_count, parameters, arena)
