# SPDX-License-Identifier: MIT
"""No descriptors on the medium: I/O by page frame number alone.

Source: Ingo Molnar on linux-kernel, 7 May 2015: "then we might as well ... use pfns directly and avoid the dynamic
allocation overhead".  Without descriptors nothing records which pages hold data or what their checksums are: the
device reports all of itself as data, and damage goes unnoticed.
"""

import numpy as np

from ..jit import hot
from ..layout import PAGE_BYTES, PAGE_SHIFT

ON_MEDIUM = False
IN_MEMORY = False
STATE = np.dtype([("pfn_only", "<i8")])


def plan(placed_bytes, descriptor_bytes):
    """Share out `placed_bytes`; returns the state (STATE[]) and the number of pages the client sees."""
    return np.zeros((), STATE), placed_bytes // PAGE_BYTES


def data_at(state):
    """The placed address of page 0."""
    return 0


def descriptor_spans(state, page_count):
    """Where descriptors lie: nowhere."""
    return 0, PAGE_BYTES, 0, 0


@hot
def page_at(state, page):
    return page << PAGE_SHIFT


@hot
def descriptor_at(state, page):
    return -1
