# SPDX-License-Identifier: MIT
"""Descriptors in memory, made when the device is opened, gone when it is closed: they cost no room and no wear.

Source: nd_pfn_init() in drivers/nvdimm/pfn_devs.c (Linux 6.1), mode PFN_MODE_RAM: what ``ndctl create-namespace
--map=mem`` makes, whose struct pages are in memory and "rebuilt at each boot"::

    dataoff = ALIGN(8 KiB, 2 MiB)

Pages begin where Linux has them, 2 MiB into the medium, so that the two can be compared to the byte, and so that Linux
can use the medium.  The 8 KiB are the zone of the info blocks, in front of the placed space.

What lies on the medium is what `none` has there, so a kill or a power cut may do what it may with `none`.  While the
device is open a page that was touched, written or read, has a descriptor: from then on its data is verified, and a
page given back is known to hold nothing.
"""

import numpy as np

from ..jit import hot
from ..layout import FRAMES_AT, PAGE_BYTES, PAGE_SHIFT

ON_MEDIUM = False
IN_MEMORY = True
ALIGN = 2 << 20
STATE = np.dtype([("pages_at", "<i8")])


def plan(placed_bytes, descriptor_bytes):
    """Share out `placed_bytes`; returns the state (STATE[]) and the number of pages the client sees."""
    state = np.zeros((), STATE)
    state["pages_at"] = ALIGN - FRAMES_AT
    return state, max(placed_bytes - (ALIGN - FRAMES_AT), 0) // PAGE_BYTES


def data_at(state):
    """The placed address of page 0."""
    return int(state["pages_at"])


def descriptor_spans(state, page_count):
    """Where descriptors lie: nowhere on the medium."""
    return 0, PAGE_BYTES, 0, 0


@hot
def page_at(state, page):
    return state["pages_at"] + (page << PAGE_SHIFT)


@hot
def descriptor_at(state, page):
    return -1
