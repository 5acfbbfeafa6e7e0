# SPDX-License-Identifier: MIT
"""A descriptor for every page, at an address that follows from the page's number; what maps of this kind share.

Each has a `lookup` of its own, and the rest from here.
"""

from ..jit import hot
from . import _descriptors as d
from . import lookup

# The address of what is looked into; 1 where that is the medium, whose stores are counted.
FIELDS = [("array", "<i8"), ("medium", "<i8")]


@hot
def bring_up(state, pages):
    first, end = d.next_pages(state, pages)
    for page in range(first, end):
        d.ensure(state, lookup(state, page), page, state["medium"])
    state["covered"] = end
    return end


@hot
def linear_lookup(state, page):
    return state["array"] + (page << d.BYTES_SHIFT)


@hot
def get_page(state, page):
    return d.get(state, lookup(state, page), page, state["medium"])


@hot
def put_page(state, page, descriptor):
    d.put(state, descriptor, state["medium"])
