# SPDX-License-Identifier: MIT
"""The loops of `check`: they go over frames or pages and stop at the first that wants a look.

`device` is (RUN[1], CORE[1]), as for a request.  What lies in a hole of the medium file is not read, for a full tmpfs
has no room for it: `blocks` has a bit for every 4096 bytes of the file that are not in a hole, `held` one for every
piece of placed addresses (both uint8[]).  A piece lies in one frame: 4096 bytes, or a frame where that is smaller.
"""

from . import bringup, descriptor, media, onepage, policies
from .jit import hot, i64_at
from .layout import INITIALISE_BUDDY, OK, PAGE_BYTES, PAGE_SHIFT
from .roads import AT, PLACED

# Verdicts: nothing to say; the descriptor fails its checksum; the data does not match it; it says that the data is
# damaged; bytes lie behind a page that is free; something lies in a section that was never written; bytes lie behind a
# page that has no descriptor and must have one.
FINE, DAMAGED, MISMATCHED, CONDEMNED, LEAKED, UNMARKED, LOST = range(7)
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
def piece_shift(run):
    """The binary logarithm of the bytes of a piece."""
    return min(PAGE_SHIFT, run["frame_shift"])


@hot
def is_held(run, held, placed):
    """True where the placed byte is in no hole."""
    return has(held, placed >> piece_shift(run))


@hot
def map_frames(device, first, last, frames, seen, blocks, held):
    """Translate placed frames first .. last - 1 into `seen`, a bit a medium frame of `frames`.

    held (uint8[]): the bit of each piece is set that is in the file.  Returns the first placed frame that has no medium
    frame or one that another has; else `last`.
    """
    run = device[0][0]
    shift, shift_of_piece = run["frame_shift"], piece_shift(run)
    for placed in range(first, last):
        frame = policies.translate(run, placed)
        if frame < 0 or frame >= frames or has(seen, frame):
            return placed
        seen[frame >> 3] |= 1 << (frame & 7)
        for within in range(0, 1 << shift, PAGE_BYTES):
            if has(blocks, (media.frame_at(run, frame) + within) >> PAGE_SHIFT):
                at = ((placed << shift) + within) >> shift_of_piece
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
def _leaks(run, held, page):
    """True where the medium has something else than zeros for `page`."""
    placed, size = policies.page_at(run, page), 1 << piece_shift(run)
    for at in range(placed, placed + PAGE_BYTES, size):
        if is_held(run, held, at) and _nonzero(run, onepage.medium_at(run, at), size):
            return True
    return False


@hot
def _leak(run, held, page):
    """LOST or LEAKED: whether `page`, which holds nothing and has bytes behind it, was written once.

    A trim leaves a descriptor, unless it gives those of a group back: then a free group covers the page.
    """
    is_there = not in_hole(run, held, page) or _is_pending(run, page)
    if is_there and onepage.load_descriptor(run, page) != descriptor.EMPTY:
        return LEAKED
    if run["initialise"] == INITIALISE_BUDDY:
        head, order = bringup.covering(run, page)
        if bringup.look(run, head) == order:
            return LEAKED
    return LOST


@hot
def in_hole(run, held, page):
    """True where the descriptor of `page` is in a hole."""
    return not is_held(run, held, policies.descriptor_at(run, page))


@hot
def _is_pending(run, page):
    return run["coalesced"] != 0 and onepage.pending_slot(run, page)[0] == page + 1


@hot
def _examine(run, page):
    """The verdict on descriptor and data of `page`, whatever its section; and 1 where it holds data."""
    road = policies.where(run, page)
    status = onepage.load_descriptor_from(run, page, road)
    if status == descriptor.DAMAGED:
        return DAMAGED, 1
    if status == descriptor.VALID and descriptor.is_bad(run):
        return CONDEMNED, 1
    if status == descriptor.EMPTY or not descriptor.holds_data(run):
        return FINE, 0
    if run["checksums"]:
        crc = onepage.page_checksum_from(run, road[PLACED], road[AT])
        if crc != descriptor.data_checksum(run):
            return MISMATCHED, 1
    return FINE, 1


@hot
def touched(device, first, last, held, holds):
    """Examine pages first .. last - 1 of a section in use, until one is not FINE.

    holds (uint8[]), from `first` on: 1 where the page holds data, IN_HOLE where not even its descriptor is in the
    file.  Returns that page (or `last`) and its verdict.
    """
    run = device[0][0]
    for page in range(first, last):
        verdict, holding = FINE, IN_HOLE
        if not in_hole(run, held, page) or _is_pending(run, page):
            verdict, holding = _examine(run, page)
        holds[page - first] = holding
        if verdict == FINE and holding != 1 and _leaks(run, held, page):
            verdict = _leak(run, held, page)
        if verdict != FINE:
            return page, verdict
    return last, FINE


@hot
def _is_somewhere(run, held, page):
    """True where not all of `page` is in holes."""
    placed, size = policies.page_at(run, page), 1 << piece_shift(run)
    for at in range(placed, placed + PAGE_BYTES, size):
        if is_held(run, held, at):
            return True
    return False


@hot
def lost(device, first, last, held):
    """The first of pages first .. last - 1 that was written and has lost its descriptor, or `last`."""
    run = device[0][0]
    for page in range(first, last):
        if _is_somewhere(run, held, page) and _leak(run, held, page) == LOST and _leaks(run, held, page):
            return page
    return last


@hot
def untouched(device, first, last, held):
    """Look for anything behind pages first .. last - 1 of a section that was never written; returns as `touched`."""
    run = device[0][0]
    has_descriptors = run["descriptor_bytes"] > 0 and run["descriptors"] == 0
    for page in range(first, last):
        if has_descriptors and (not in_hole(run, held, page) or _is_pending(run, page)):
            verdict, holding = _examine(run, page)
            if verdict != FINE or holding:
                return page, UNMARKED
        if _leaks(run, held, page):
            return page, LEAKED if has_descriptors and _leak(run, held, page) == LEAKED else UNMARKED
    return last, FINE


@hot
def punch_page(device, page):
    """Give the host back what lies behind `page`, which is free; OK or HOST."""
    run = device[0][0]
    placed, size = policies.page_at(run, page), 1 << piece_shift(run)
    for at in range(placed, placed + PAGE_BYTES, size):
        code = media.punch(run, onepage.medium_at(run, at), size)
        if code:
            return code
    return OK


@hot
def page_offset(device, page):
    """Where in the medium file the data of `page` begins."""
    run = device[0][0]
    return onepage.medium_at(run, policies.page_at(run, page))


@hot
def descriptor_offset(device, page):
    """Where in the medium file the descriptor of `page` begins."""
    run = device[0][0]
    return onepage.medium_at(run, policies.descriptor_at(run, page))


@hot
def fingerprints(device, size, prints):
    """For each `size` pages, into `prints` (int64[]), a number that two maps share where these lie alike by both."""
    run = device[0][0]
    for page in range(run["page_count"]):
        at = page // size
        mixed = prints[at] * 31 + onepage.medium_at(run, policies.page_at(run, page))
        prints[at] = mixed * 31 + onepage.medium_at(run, policies.descriptor_at(run, page))


@hot
def descriptor_address(device, page):
    """The placed address of the descriptor of `page`."""
    return policies.descriptor_at(device[0][0], page)


@hot
def count_lines(device, first, last, held, lines):
    """Add the line writes that descriptors first .. last - 1 tell of to `lines`, int64[2]: of data, of descriptors.

    Of format 2 only.  Returns the first page whose first write comes after its last; `last`: there is none.
    """
    run = device[0][0]
    for page in range(first, last):
        if in_hole(run, held, page) and not _is_pending(run, page):
            continue
        if onepage.load_descriptor(run, page) == descriptor.VALID:
            words = descriptor.large_words(run)
            lines[0] += words[descriptor.DATA_LINES]
            lines[1] += words[descriptor.DESCRIPTOR_LINES]
            if words[descriptor.FIRST_GENERATION] > words[descriptor.GENERATION]:
                return page
    return last
