# SPDX-License-Identifier: MIT
"""Whole pages of a large write together: their data goes to the medium by one call where it is adjacent there.

The kernel takes less than two thirds of the time for it (docs/performance.md).  The device is the same as if each page
had been written alone, to the last counter, because all that may wait, fail or move a frame comes first and in that
order, and all that is left is bytes:

1. page by page: steps 1 to 3 of onepage.py, then the lines of the page are counted, then those of its descriptor;
   a stop ends the run before that page
2. INTENT names them all
3. data, to where the pages are by now: moves for one of them may have carried off another
4. descriptors
5. INTENT is cleared

A kill before 2 leaves lines counted that were not stored to, and nothing else; a kill between 2 and 5 leaves data and
descriptors apart, of some pages, and opening the image brings each together again.
"""

from . import descriptor, media, onepage, policies
from .crc32c import page_crc
from .jit import hot, i64_at, publish, u8_at
from .layout import CAUSE_DESCRIPTOR, CAUSE_HOST, OK, PAGE_BYTES, PAGE_SHIFT, STOP_SHIFT, TOGETHER, TOGETHER_SHIFT
from .roads import AT, DESCRIBED, DESCRIBED_AT, PLACED


@hot
def suits(run):
    """True where the request in hand may be written so: only its pages and their own descriptors are stored for it."""
    return run["by_call"] != 0 and run["ensure"] == 0 and run["coalesced"] == 0 and run["descriptors"] == 0


@hot
def write(run, core, first, count, address, source_at):
    """Write `count` pages from page `first` on, TOGETHER_MAX at most, of the bytes at address + source_at.

    Answers, as requests do, done << STOP_SHIFT | code: how many pages were written, and OK or a stop code.
    """
    source = u8_at(address, source_at + (count << PAGE_SHIFT))
    done, code = 0, OK  # a call for more than TOGETHER_MAX is hardly quicker, and a kill would leave more to heal
    while done < count:
        if done + 1 < count:
            onepage.anticipate(run, first + done + 1)
        code = _admit(run, core, first + done)
        if code:
            break
        done += 1
    if done:
        publish(core["intent"], TOGETHER, first << TOGETHER_SHIFT | done)
        _put_data(run, first, done, source, source_at)
        if run["descriptor_bytes"]:
            _put_descriptors(run, core, first, done, source, source_at)
        publish(core["intent"], TOGETHER, 0)
    return done << STOP_SHIFT | code


@hot
def _admit(run, core, page):
    """See to it that `page` may be written, and count that it was; OK or a stop code."""
    code, road = onepage.prepare(run, core, page, True)
    if code:
        return code
    lines = media.wear(run, core, CAUSE_HOST, road[AT], PAGE_BYTES)
    policies.tick(run, road[PLACED] >> run["frame_shift"], lines)
    media.count_page_write(core)
    if run["descriptor_bytes"]:
        lines = media.wear(run, core, CAUSE_DESCRIPTOR, road[DESCRIBED_AT], run["descriptor_bytes"])
        policies.tick(run, road[DESCRIBED] >> run["frame_shift"], lines)
    return OK


@hot
def _put_data(run, first, count, source, source_at):
    held_at, held = 0, 0
    for done in range(0, count << PAGE_SHIFT, PAGE_BYTES):
        at = policies.where(run, first + (done >> PAGE_SHIFT))[AT]
        by_call = media.goes_by_call(run, at)
        if held and not (by_call and at == held_at + held):
            media.put_pages_by_call(run, held_at, source, source_at + done - held, held)
            held = 0
        if not by_call:
            media.stream(run, at, source, source_at + done, PAGE_BYTES)
        elif held:
            held += PAGE_BYTES
        else:
            held_at, held = at, PAGE_BYTES
    if held:
        media.put_pages_by_call(run, held_at, source, source_at + (count << PAGE_SHIFT) - held, held)


@hot
def _put_descriptors(run, core, first, count, source, source_at):
    scratch, before = u8_at(run["scratch"], PAGE_BYTES), core["tally"]["page_writes"] - count
    for i in range(count):
        road = policies.where(run, first + i)
        if onepage.load_descriptor_from(run, first + i, road) == descriptor.DAMAGED:
            descriptor.clear(run)
        crc = 0
        if run["checksums"]:
            crc = page_crc(i64_at(source.ctypes.data + source_at + (i << PAGE_SHIFT), PAGE_BYTES >> 3), 0)
        descriptor.note_write(run, first + i, crc, before + i + 1, media.lines_under(run, road[AT], PAGE_BYTES))
        media.put(run, road[DESCRIBED_AT], scratch, 0, run["descriptor_bytes"])
