# SPDX-License-Identifier: MIT
"""What a request asks of placement and leveling together, compiled for each pair of them and called by its address.

One call in place of eight: after a system call the processor cannot predict where a call by address leads, and each of
them costs 10 ns.
"""

from . import leveling, media, placement
from .jit import hot
from .layout import HOST, OK, PAGE_BYTES, STOP_KIND

# What `where` answers, a tuple.
PLACED, AT, DESCRIBED, DESCRIBED_AT = range(4)


@hot
def medium_at(level, run, placed):
    """Where on the medium placed byte `placed` is."""
    frame = placed >> run["frame_shift"]
    within = placed - (frame << run["frame_shift"])
    return media.frame_at(run, leveling.translate(level, run, frame)) + within


@hot
def where(place, level, run, page):
    """The placed address of `page`, where on the medium that is, and the same of its descriptor: -1 where none lies."""
    placed, described, described_at = placement.page_at(place, page), -1, -1
    if run["descriptor_bytes"] and not run["descriptors"]:
        described = placement.descriptor_at(place, page)
        described_at = medium_at(level, run, described)
    return placed, medium_at(level, run, placed), described, described_at


@hot
def settle(level, run, core, placed, count):
    """Make the moves that are due around `count` placed bytes; OK or a stop code."""
    for frame in range(placed >> run["frame_shift"], ((placed + count - 1) >> run["frame_shift"]) + 1):
        code = leveling.settle(level, run, core, frame)
        # No room on the host for a move is no reason to refuse the write: the move stays due.
        if code and code & STOP_KIND != HOST:
            return code
    return OK


@hot
def settle_page(place, level, run, core, page):
    """Make the moves that are due around `page`, and then those around its descriptor on the medium."""
    code = settle(level, run, core, placement.page_at(place, page), PAGE_BYTES)
    if code:
        return code
    return settle(level, run, core, placement.descriptor_at(place, page), run["descriptor_bytes"])
