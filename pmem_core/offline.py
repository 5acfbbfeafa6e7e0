# SPDX-License-Identifier: MIT
"""A device without a medium: requests wear its lines exactly as they would wear those of a served one.

Placement and leveling are the compiled policies that a device runs.  What onepage.py does to a page is done here in the
same order, less the bytes: settle the frames, count the data's lines, tick, count the descriptor's lines, tick
(tests/test_replay.py compares the counters of both, line by line).  Nothing has to be durable, so no move ever waits.

`device` is the tuple (RUN[1], CORE[1], placement STATE[1], leveling STATE[1]); run["media"] is 0.  Of a pending
descriptor only whose it is is kept: a word a slot, page + 1.  Arrays come as addresses: an array handed from function
to function costs 5 ns each time.
"""

from . import leveling, media, placement
from .jit import hot, i64_at, prefetch, u8_at
from .layout import (
    CAUSE_DESCRIPTOR,
    CAUSE_HOST,
    PAGE_BYTES,
    PAGE_SHIFT,
    PENDING_SLOTS,
    SECTION_TOUCHED,
)
from .roads import medium_at, settle
from .tracescan import TRIM, WRITE, ZERO, ZERO_KEEP

GROUP = 64
AHEAD = 8  # pages between bringing counters near and counting
FAR_UNITS = 1 << 17  # with fewer, counters stay near by themselves (1 MiB of them)


@hot
def _store(run, core, level, cause, placed, count):
    frame_bytes = 1 << run["frame_shift"]
    while count > 0:
        size = min(count, frame_bytes - (placed & (frame_bytes - 1)))
        lines = media.count_bytes(run, core, cause, medium_at(level, run, placed), size)
        leveling.tick(level, run, placed >> run["frame_shift"], lines)
        placed += size
        count -= size


# ---- descriptors ----


@hot
def _pending(run):
    """A word a slot, and behind them how many of each GROUP slots are taken, so that a flush need not look at all."""
    return i64_at(run["pending"], PENDING_SLOTS + PENDING_SLOTS // GROUP)


@hot
def _settle_descriptor(run, core, place, level, page):
    target = page
    if run["coalesced"]:
        waiting = _pending(run)[page % PENDING_SLOTS]
        if waiting == 0 or waiting == page + 1:
            return
        target = waiting - 1
    settle(level, run, core, placement.descriptor_at(place, target), run["descriptor_bytes"])


@hot
def _store_descriptor(run, core, place, level, page):
    target = page
    if run["coalesced"]:
        pending = _pending(run)
        waiting = pending[page % PENDING_SLOTS]
        pending[page % PENDING_SLOTS] = page + 1
        if waiting == 0:
            pending[PENDING_SLOTS + page % PENDING_SLOTS // GROUP] += 1
        if waiting == 0 or waiting == page + 1:
            return
        target = waiting - 1
    placed = placement.descriptor_at(place, target)
    _store(run, core, level, CAUSE_DESCRIPTOR, placed, run["descriptor_bytes"])


@hot
def drain(device):
    """Store every pending descriptor, as a flush does."""
    run, core, place, level = device[0][0], device[1][0], device[2][0], device[3][0]
    pending = _pending(run)
    for group in range(PENDING_SLOTS // GROUP):
        if pending[PENDING_SLOTS + group]:
            _drain_group(run, core, place, level, pending, group)


@hot
def _drain_group(run, core, place, level, pending, group):
    pending[PENDING_SLOTS + group] = 0
    for slot in range(group * GROUP, (group + 1) * GROUP):
        if pending[slot]:
            placed = placement.descriptor_at(place, pending[slot] - 1)
            settle(level, run, core, placed, run["descriptor_bytes"])
            _store(run, core, level, CAUSE_DESCRIPTOR, placed, run["descriptor_bytes"])
            pending[slot] = 0


# ---- pages ----


@hot
def _sections(run):
    return u8_at(run["sections"], run["section_count"])


@hot
def _held(run):
    return u8_at(run["held"], run["page_count"])


@hot
def _write_page(run, core, place, level, page, at, count):
    _sections(run)[page >> run["section_shift"]] = SECTION_TOUCHED
    placed = placement.page_at(place, page)
    settle(level, run, core, placed, PAGE_BYTES)
    if run["descriptor_bytes"]:
        _settle_descriptor(run, core, place, level, page)
    if run["held"]:
        if not _held(run)[page]:
            # The rest of a page that held nothing becomes zeros.
            at, count = 0, PAGE_BYTES
        _held(run)[page] = 1
    _store(run, core, level, CAUSE_HOST, placed + at, count)
    core["tally"]["page_writes"] += 1
    if run["descriptor_bytes"]:
        _store_descriptor(run, core, place, level, page)


@hot
def _trim_page(run, core, place, level, page):
    if not run["held"] or not _sections(run)[page >> run["section_shift"]]:
        return
    held = _held(run)
    if held[page]:
        held[page] = 0
        if run["descriptor_bytes"]:
            _settle_descriptor(run, core, place, level, page)
            _store_descriptor(run, core, place, level, page)


@hot
def write_pages(device, pages, first, goal, flush_every):
    """Write whole pages pages[first:] (int64[]) in turn, until `goal` lines have died; returns where it stopped.

    flush_every: a flush behind each so many pages; 0: none.
    """
    run, core, place, level = device[0][0], device[1][0], device[2][0], device[3][0]
    at, last = first, pages.size
    ahead = AHEAD if run["unit_count"] > FAR_UNITS else last
    if not run["coalesced"]:
        flush_every = 0  # which would store nothing
    while at < last and run["death_count"] < goal:
        if at + ahead < last:
            placed = placement.page_at(place, pages[at + ahead])
            prefetch(run["units"] + ((medium_at(level, run, placed) >> run["unit_shift"]) << 3))
        _write_page(run, core, place, level, pages[at], 0, PAGE_BYTES)
        at += 1
        if flush_every and core["tally"]["page_writes"] % flush_every == 0:
            drain(device)
    return at


@hot
def _zero(run, core, place, level, offset, end, may_trim):
    while offset < end:
        page, at = offset >> PAGE_SHIFT, offset & (PAGE_BYTES - 1)
        count = min(PAGE_BYTES - at, end - offset)
        if count == PAGE_BYTES and may_trim:
            _trim_page(run, core, place, level, page)
        elif _sections(run)[page >> run["section_shift"]] or not may_trim:
            _write_page(run, core, place, level, page, at, count)
        offset += count


@hot
def replay(device, kinds, offsets, counts, first, goal):
    """Perform requests `first` on (int64[] each) until `goal` lines have died; returns where it stopped.

    A request is finished even where a line dies in the middle of it.
    """
    run, core, place, level = device[0][0], device[1][0], device[2][0], device[3][0]
    at = first
    while at < kinds.size and run["death_count"] < goal:
        kind, offset, end = kinds[at], offsets[at], offsets[at] + counts[at]
        if kind == WRITE:
            while offset < end:
                page, within = offset >> PAGE_SHIFT, offset & (PAGE_BYTES - 1)
                count = min(PAGE_BYTES - within, end - offset)
                _write_page(run, core, place, level, page, within, count)
                offset += count
        elif kind == TRIM:
            for page in range((offset + PAGE_BYTES - 1) >> PAGE_SHIFT, end >> PAGE_SHIFT):
                _trim_page(run, core, place, level, page)
        elif kind in (ZERO, ZERO_KEEP):
            _zero(run, core, place, level, offset, end, kind == ZERO)
        elif run["coalesced"]:
            drain(device)
        at += 1
    return at
