# SPDX-License-Identifier: MIT
"""One array of descriptors in front of the data, as Linux lays out a fsdax namespace with ``--map=dev``.

Source: nd_pfn_init() in drivers/nvdimm/pfn_devs.c (Linux 6.1) and edbb52c24441 ("libnvdimm/pfn: store PFN_SB
page_size and page_struct_size", v5.4)::

    npfns0  = (size - 8 KiB) / 4 KiB               the array's own pages are counted
    dataoff = ALIGN(8 KiB + descriptor_bytes * npfns0, 2 MiB)

The 8 KiB are the zone of the info blocks, in front of the placed space, so placed addresses are 8 KiB smaller.
"""

import numpy as np

from ..jit import hot
from ..layout import FRAMES_AT, PAGE_BYTES, PAGE_SHIFT

ON_MEDIUM = True
IN_MEMORY = False
ALIGN = 2 << 20
STATE = np.dtype([("data_at", "<i8"), ("array_shift", "<i8")])


def plan(placed_bytes, descriptor_bytes):
    """Share out `placed_bytes`; returns the state (STATE[]) and the number of pages the client sees."""
    array_bytes = descriptor_bytes * (placed_bytes // PAGE_BYTES)
    data_at = -(-(FRAMES_AT + array_bytes) // ALIGN) * ALIGN - FRAMES_AT
    state = np.zeros((), STATE)
    state["data_at"] = data_at
    state["array_shift"] = descriptor_bytes.bit_length() - 1
    return state, max(placed_bytes - data_at, 0) // PAGE_BYTES


def data_at(state):
    """The placed address of page 0."""
    return int(state["data_at"])


def descriptor_spans(state, page_count):
    """Where descriptors lie: first placed address, stride and size in bytes of a span, and how many spans."""
    array_bytes = page_count << int(state["array_shift"])
    return 0, array_bytes, array_bytes, 1


@hot
def page_at(state, page):
    return state["data_at"] + (page << PAGE_SHIFT)


@hot
def descriptor_at(state, page):
    return page << state["array_shift"]
