# SPDX-License-Identifier: MIT
"""The loops of `check`: they go over frames or pages and stop at the first that wants a look.

`device` is (RUN[1], core[1]), as for a request.  What lies in a hole of the medium file is not read: `blocks` has a bit
for every 4096 bytes of the file that are not in a hole, `held` the same for placed addresses (both uint8[]).
"""

from . import descriptor, leveling, media, onepage, placement
from .jit import hot, i64_at
from .layout import CAUSE_INFO, INFO_BYTES, OK, PAGE_BYTES, PAGE_SHIFT

# Verdicts: nothing to say; the descriptor fails its checksum; the data does not match it; it says that the data is
# damaged; bytes lie behind a page that holds nothing; something lies in a section that was never written.
FINE, DAMAGED, MISMATCHED, CONDEMNED, LEAKED, UNMARKED = range(6)
IN_HOLE = 2


@hot
def mark(bits, first, last):
    """Set bits first .. last - 1 of `bits`."""
    at = first
    while at < last:
        if at & 7 == 0 and last - at >= 8:
            bits[at >> 3] = 255
            at += 8
        else:
            bits[at >> 3] |= 1 << (at & 7)
            at += 1


@hot
def has(bits, at):
    """True where bit `at` of `bits` is set."""
    return bits[at >> 3] & (1 << (at & 7)) != 0


@hot
def map_frames(device, first, last, frames, seen, blocks, held):
    """Translate placed frames first .. last - 1 into `seen`, a bit a medium frame of `frames`.

    held (uint8[]): the bit of each 4096 placed bytes is set of which something is in the file.  Returns the first
    placed frame that has no medium frame or one that another has; else `last`.
    """
    run, state = device[0][0], device[1][0]["leveling"]
    shift = run["frame_shift"]
    for placed in range(first, last):
        frame = leveling.translate(state, run, placed)
        if frame < 0 or frame >= frames or has(seen, frame):
            return placed
        seen[frame >> 3] |= 1 << (frame & 7)
        for within in range(0, 1 << shift, PAGE_BYTES):
            if has(blocks, (media.frame_at(run, frame) + within) >> PAGE_SHIFT):
                at = ((placed << shift) + within) >> PAGE_SHIFT
                held[at >> 3] |= 1 << (at & 7)
    return last


@hot
def _nonzero(run, at, count):
    words = i64_at(run["media"] + at, count >> 3)
    for i in range(count >> 3):
        if words[i]:
            return True
    return False


@hot
def _piece_bytes(run):
    """The bytes of a page that surely lie in one frame."""
    return min(PAGE_BYTES, 1 << run["frame_shift"])


@hot
def _leaks(run, core, held, page):
    """True where the medium has something else than zeros for `page`."""
    placed, size = placement.page_at(core["placement"], page), _piece_bytes(run)
    if not has(held, placed >> PAGE_SHIFT):
        return False
    for at in range(placed, placed + PAGE_BYTES, size):
        if _nonzero(run, onepage.medium_at(run, core, at), size):
            return True
    return False


@hot
def _in_hole(core, held, page):
    """True where the descriptor of `page` is in a hole."""
    return not has(held, placement.descriptor_at(core["placement"], page) >> PAGE_SHIFT)


@hot
def _is_pending(run, page):
    return run["coalesced"] != 0 and onepage.pending_slot(run, page)[0] == page + 1


@hot
def _examine(run, core, page):
    """The verdict on descriptor and data of `page`, whatever its section; and 1 where it holds data."""
    status = onepage.load_descriptor(run, core, page)
    if status == descriptor.DAMAGED:
        return DAMAGED, 1
    if status == descriptor.EMPTY or not descriptor.holds_data(run):
        return FINE, 0
    if descriptor.is_bad(run):
        return CONDEMNED, 1
    placed = placement.page_at(core["placement"], page)
    if run["checksums"] and onepage.page_checksum(run, core, placed) != descriptor.data_checksum(run):
        return MISMATCHED, 1
    return FINE, 1


@hot
def touched(device, first, last, held, holds):
    """Examine pages first .. last - 1 of a section in use, until one is not FINE.

    holds (uint8[]), from `first` on: 1 where the page holds data, IN_HOLE where not even its descriptor is in the
    file.  Returns that page (or `last`) and its verdict.
    """
    run, core = device[0][0], device[1][0]
    for page in range(first, last):
        verdict, holding = FINE, IN_HOLE
        if not _in_hole(core, held, page) or _is_pending(run, page):
            verdict, holding = _examine(run, core, page)
        holds[page - first] = holding
        if verdict == FINE and holding != 1 and _leaks(run, core, held, page):
            verdict = LEAKED
        if verdict != FINE:
            return page, verdict
    return last, FINE


@hot
def untouched(device, first, last, held):
    """Look for anything behind pages first .. last - 1 of a section that was never written; returns as `touched`."""
    run, core = device[0][0], device[1][0]
    has_descriptors = run["descriptor_bytes"] > 0 and run["descriptors"] == 0
    for page in range(first, last):
        if has_descriptors and not _in_hole(core, held, page):
            verdict, holding = _examine(run, core, page)
            if verdict != FINE or holding:
                return page, UNMARKED
        if _leaks(run, core, held, page):
            return page, LEAKED if has_descriptors else UNMARKED
    return last, FINE


@hot
def punch_page(device, page):
    """Give the host back what lies behind `page`, which is free; OK or HOST."""
    run, core = device[0][0], device[1][0]
    placed, size = placement.page_at(core["placement"], page), _piece_bytes(run)
    for at in range(placed, placed + PAGE_BYTES, size):
        code = media.punch(run, onepage.medium_at(run, core, at), size)
        if code:
            return code
    return OK


@hot
def store_info(device, block, at):
    """Store `block`, uint8[4096], as the info block at byte `at` of the medium."""
    media.store(device[0][0], device[1][0], CAUSE_INFO, at, block, 0, INFO_BYTES)


@hot
def page_offset(device, page):
    """Where in the medium file the data of `page` begins."""
    run, core = device[0][0], device[1][0]
    return onepage.medium_at(run, core, placement.page_at(core["placement"], page))


@hot
def descriptor_offset(device, page):
    """Where in the medium file the descriptor of `page` begins."""
    run, core = device[0][0], device[1][0]
    return onepage.medium_at(run, core, placement.descriptor_at(core["placement"], page))
