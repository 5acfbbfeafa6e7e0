# SPDX-License-Identifier: MIT
"""Descriptor pages scattered over the device: with 64-byte descriptors every 65th page is a page of 64 of them.

Source: Ingo Molnar on linux-kernel, 7 May 2015, "evacuate struct page from the block layer, introduce __pfn_t": "every
65 pages we could have a page-struct page. Finding a pmem page's struct page would thus involve rounding it modulo 65
and reading that page."

With descriptors of B bytes a group is one descriptor page followed by the 4096 / B pages it describes.  The descriptor
page comes first, so that the page to look at is the placed page number rounded down to a multiple of the stride.
"""

import numpy as np

from ..jit import hot
from ..layout import PAGE_BYTES, PAGE_SHIFT

ON_MEDIUM = True
IN_MEMORY = False
STATE = np.dtype([("group_shift", "<i8"), ("descriptor_shift", "<i8")])


def plan(placed_bytes, descriptor_bytes):
    """Share out `placed_bytes`; returns the state (STATE[]) and the number of pages the client sees."""
    group = PAGE_BYTES // descriptor_bytes
    groups, rest = divmod(placed_bytes // PAGE_BYTES, group + 1)
    state = np.zeros((), STATE)
    state["group_shift"] = group.bit_length() - 1
    state["descriptor_shift"] = descriptor_bytes.bit_length() - 1
    return state, groups * group + max(rest - 1, 0)


def data_at(state):
    """The placed address of page 0."""
    return PAGE_BYTES


def descriptor_spans(state, page_count):
    """Where descriptors lie: first placed address, stride and size in bytes of a span, and how many spans."""
    group = 1 << int(state["group_shift"])
    return 0, (group + 1) * PAGE_BYTES, PAGE_BYTES, -(-page_count // group)


@hot
def page_at(state, page):
    return (page + (page >> state["group_shift"]) + 1) << PAGE_SHIFT


@hot
def descriptor_at(state, page):
    group = page >> state["group_shift"]
    first = ((group << state["group_shift"]) + group) << PAGE_SHIFT
    return first + ((page - (group << state["group_shift"])) << state["descriptor_shift"])
