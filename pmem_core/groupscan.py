# SPDX-License-Identifier: MIT
"""The loop of `check` over groups of descriptors: each page is up or covered by one head (bringup.py).

device, held: as in checkscan.
"""

from . import bringup, policies
from .checkscan import FINE, in_hole, mark, piece_shift
from .jit import hot
from .layout import INITIALISE_BUDDY, INITIALISE_EAGER, PAGE_BYTES, PAGE_SHIFT

# Verdicts: pages have neither descriptors of their own nor a head that covers them; a group is claimed by two.
GAP, OVERLAP = range(1, 3)
CLAIM_HEAD, CLAIM_ORDER, CLAIM_END, GAP_END = range(4)
CLAIM_WORDS = 4


@hot
def _count_up(run, held, first, end):
    """Of the pages with descriptors in one page, how many are up, and how many are heads."""
    up, heads = 0, 0
    each = run["frame_shift"] < PAGE_SHIFT
    if each or not in_hole(run, held, first):
        for page in range(first, end):
            if each and in_hole(run, held, page):
                continue
            found = bringup.look(run, page)
            up += found == bringup.UP
            heads += found >= 0
    return up, heads


@hot
def groups(device, first, last, held, claim):
    """Go through the groups from page `first` on, until one is wrong; its first page (or `last`) and the verdict.

    claim (int64[CLAIM_WORDS]) goes along, zeros at first: the free group that was met last, order -1 where there is
    none, and its end; and of a gap the end.
    """
    run = device[0][0]
    step, page = PAGE_BYTES // run["descriptor_bytes"], first
    while page < last:
        end = min(page + step, last)
        up, heads = _count_up(run, held, page, end)
        claim[GAP_END] = end
        if run["initialise"] != INITIALISE_BUDDY:
            if up < end - page and (run["initialise"] == INITIALISE_EAGER or _group_is_used(run, held, page)):
                return page, GAP
        elif page < claim[CLAIM_END]:
            if up or heads:
                return page, OVERLAP
        elif up < end - page:
            order = -1
            if heads == 1 and not up:
                order = bringup.look(run, page)
            if not bringup.fits(run, page, order):
                claim[CLAIM_ORDER] = -1
                while not up and not heads and claim[GAP_END] < last:
                    end = min(claim[GAP_END] + step, last)
                    up, heads = _count_up(run, held, claim[GAP_END], end)
                    if not up and not heads:
                        claim[GAP_END] = end
                return page, GAP
            claim[CLAIM_HEAD], claim[CLAIM_ORDER], claim[CLAIM_END] = page, order, page + (1 << order)
        page = end
    return last, FINE


@hot
def note_head(device, page, held):
    """The descriptor of `page` is in no hole any more, since it may have become a head."""
    run = device[0][0]
    at = policies.descriptor_at(run, page) >> piece_shift(run)
    mark(held, at, at + 1)


@hot
def _group_is_used(run, held, page):
    """True where a page of the group that is brought up with `page` is up."""
    step, first = PAGE_BYTES // run["descriptor_bytes"], page >> run["group_shift"] << run["group_shift"]
    last = min(first + (1 << run["group_shift"]), run["page_count"])
    for at in range(first, last, step):
        if _count_up(run, held, at, min(at + step, last))[0]:
            return True
    return False
