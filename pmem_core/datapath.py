# SPDX-License-Identifier: MIT
"""Requests: read, write, trim, zero, extents, page by page (onepage.py has the road of one page).

Each entry point takes `device`, the tuple (RUN[1], CORE[1]), and answers ``done << STOP_SHIFT | code``.  On a stop code
the cold side does what it asks for (device.Device) and calls again with `done`.  Calls never overlap: whoever calls
has the device's turn (Device.turn) where it is served, and else the GIL, which compiled code keeps.
"""

from . import descriptor, media, onepage, policies, together
from .jit import call_at, clear_bytes, hot, order_streams, publish, u8_at
from .layout import (
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAUSE,
    PAUSE_HOLES,
    PAUSE_PAGES,
    PAUSE_PAGES_TMPFS,
    SECTION_DIRTY,
    SECTION_TOUCHED,
    SOON,
    STOP_MASK,
    STOP_SHIFT,
    TOGETHER_MAX,
    TRIM_END,
    TRIM_FIRST,
)
from .roads import AT


@hot
def _stopped(done, code):
    return done << STOP_SHIFT | code


@hot
def read(device, address, size, offset, done):
    """Read size - done bytes at offset + done into memory, from address + done on."""
    run = device[0][0]
    return call_at(run["read_at"], (run, device[1][0], address, size, offset, done))


@hot
def read_at(run, core, address, size, offset, done):
    """`read`, for a caller that has the records RUN and CORE, and not the arrays of `device`."""
    target = u8_at(address, size)
    while done < target.size:
        page, at = (offset + done) >> PAGE_SHIFT, (offset + done) & (PAGE_BYTES - 1)
        count = min(PAGE_BYTES - at, target.size - done)
        if done + count < target.size:
            onepage.anticipate_data(run, policies.where(run, page + 1)[AT])
        code = onepage.read(run, core, page, at, target, done, count)
        if code:
            return _stopped(done, code)
        done += count
    tally = core["tally"]
    held = media.begin_count(core)
    tally["reads"] += 1
    tally["read_bytes"] += target.size
    media.end_count(core, held, 1 + target.size)
    return OK


@hot
def _write_page(run, core, page, at, source, source_at, count):
    """Write to a page, which gets its descriptor first where those are brought up."""
    if run["ensure"]:
        code = call_at(run["ensure"], (run, core, page))
        if code:
            return code
    return onepage.write(run, core, page, at, source, source_at, count)


@hot
def _write_pages(run, core, source, address, offset, done):
    """Write source[done:], of the bytes at `address`, and count its pages, but not the request; answers as `write`."""
    media.begin_write(run, source.size)
    if done < source.size:
        onepage.anticipate(run, (offset + done) >> PAGE_SHIFT)
    while done < source.size:
        page, at = (offset + done) >> PAGE_SHIFT, (offset + done) & (PAGE_BYTES - 1)
        pages = (source.size - done) >> PAGE_SHIFT
        if pages > 1 and at == 0 and together.suits(run):
            result = call_at(run["together"], (run, core, page, min(pages, TOGETHER_MAX), address, done))
            done += result >> STOP_SHIFT << PAGE_SHIFT
            if result & STOP_MASK:
                return _stopped(done, result & STOP_MASK)
            continue
        count = min(PAGE_BYTES - at, source.size - done)
        if done + count < source.size:
            onepage.anticipate(run, page + 1)
        code = _write_page(run, core, page, at, source, done, count)
        if code:
            return _stopped(done, code)
        done += count
    return OK


@hot
def write(device, address, size, offset, done):
    """Write size - done bytes of memory, from address + done on, at offset + done."""
    run = device[0][0]
    return call_at(run["write_at"], (run, device[1][0], address, size, offset, done))


@hot
def write_at(run, core, address, size, offset, done):
    """`write`, for a caller that has the records RUN and CORE, and not the arrays of `device`."""
    result = _write_pages(run, core, u8_at(address, size), address, offset, done)
    order_streams()
    if result:
        return result
    tally = core["tally"]
    held = media.begin_count(core)
    tally["writes"] += 1
    tally["written_bytes"] += size
    media.end_count(core, held, 1 + size)
    # On tmpfs nothing is waited for: quicker done within a request, when it must be, than by two threads.
    if run["wanted"] == 1 and not run["tmpfs"]:
        run["wanted"] = 2
        return _stopped(size, SOON)
    return OK


@hot
def _next_touched(run, page):
    """The first page from `page` on that lies in a section ever written; may be past the end."""
    sections = u8_at(run["sections"], run["section_count"])
    section = page >> run["section_shift"]
    while section < run["section_count"] and not sections[section] & (SECTION_TOUCHED | SECTION_DIRTY):
        section += 1
    return max(page, section << run["section_shift"])


@hot
def _whole_group(run, page, last):
    """The pages of the group that begins with `page`, is given back as one and ends by `last`; 0 if there is none.

    Such a group has the pages that one page of descriptors describes, so it lies in one section.
    """
    shift = run["group_shift"]
    if page >> shift << shift != page:
        return 0
    end = min(page + (1 << shift), run["page_count"])
    return end - page if end <= last else 0


@hot
def free(run, core, offset, end, done):
    """Give back the whole pages within [offset + done, end)."""
    first = (offset + done + PAGE_BYTES - 1) >> PAGE_SHIFT
    last = end >> PAGE_SHIFT
    page, code = min(_next_touched(run, first), last), OK
    left = PAUSE_PAGES_TMPFS if run["tmpfs"] else PAUSE_PAGES
    holes, adjacent = 0, -1
    # A kill between a descriptor and the hole would leave bytes behind a page that reads as zeros.
    intent = core["intent"]
    intent[TRIM_FIRST] = page
    while page < last:
        if left <= 0:
            code = PAUSE
            break
        if not run["tmpfs"]:
            at = policies.where(run, page)[AT]
            holes += at != adjacent
            adjacent = at + PAGE_BYTES
            if holes > PAUSE_HOLES:
                code = PAUSE
                break
        count = _whole_group(run, page, last) if run["give_back"] else 0
        publish(intent, TRIM_END, page + max(count, 1))
        code = call_at(run["give_back"], (run, core, page)) if count else onepage.trim(run, core, page)
        if code:
            break
        left -= max(count, 1)
        page = _next_touched(run, page + max(count, 1))
    punched = _punch(run, first, min(page, last))
    publish(intent, TRIM_END, 0)
    intent[TRIM_FIRST] = 0
    if code == OK or (code == PAUSE and punched):
        code = punched
    return _stopped(max(0, (page << PAGE_SHIFT) - offset), code) if code else OK


@hot
def _punch(run, page, last):
    """Punch the medium's bytes of pages `page` to last - 1, adjacent ones at once; OK or a stop code.

    Only now, when the descriptors are stored: storing them moves frames.
    """
    held_at, held, code = 0, 0, OK
    page = _next_touched(run, page)
    while page < last:
        held_at, held, code = onepage.punch(run, page, held_at, held)
        if code:
            return code
        page = _next_touched(run, page + 1)
    return media.punch(run, held_at, held) if held else OK


@hot
def trim(device, offset, end, done):
    """Give back the whole pages within [offset + done, end); parts of pages stay as they are."""
    run, core = device[0][0], device[1][0]
    result = call_at(run["free"], (run, core, offset, end, done))
    if result == OK:
        held = media.begin_count(core)
        core["tally"]["trims"] += 1
        core["tally"]["trimmed_bytes"] += end - offset
        media.end_count(core, held, 1 + end - offset)
    return result


@hot
def zero(device, offset, end, may_trim, done):
    """Make [offset + done, end) read as zeros: whole pages are freed if `may_trim`, everything else is written."""
    run, core = device[0][0], device[1][0]
    blank = u8_at(run["scratch"] + PAGE_BYTES, PAGE_BYTES)
    media.begin_write(run, end - offset)
    left = PAUSE_PAGES
    while offset + done < end:
        page, at = (offset + done) >> PAGE_SHIFT, (offset + done) & (PAGE_BYTES - 1)
        count = min(PAGE_BYTES - at, end - offset - done)
        if count == PAGE_BYTES and may_trim:
            stop = (end >> PAGE_SHIFT) << PAGE_SHIFT
            result = call_at(run["free"], (run, core, offset, stop, done))
            if result:
                return result
            done = stop - offset
            continue
        sections, section = onepage.section_of(run, page)
        if sections[section] & (SECTION_TOUCHED | SECTION_DIRTY) or not may_trim:
            if left <= 0:
                return _stopped(done, PAUSE)
            left -= 1
            clear_bytes(blank, 0, PAGE_BYTES)
            code = _write_page(run, core, page, at, blank, 0, count)
            order_streams()
            if code:
                return _stopped(done, code)
        done += count
    held = media.begin_count(core)
    core["tally"]["zeros"] += 1
    core["tally"]["zeroed_bytes"] += end - offset
    media.end_count(core, held, 1 + end - offset)
    return OK


@hot
def extents(device, offset, end, runs):
    """Fill runs (int64[n, 2]: end offset, 1 where data) from `offset` on; how many were filled."""
    run = device[0][0]
    sections = u8_at(run["sections"], run["section_count"])
    count = 0
    while offset < end:
        page = offset >> PAGE_SHIFT
        section = page >> run["section_shift"]
        if not sections[section] & (SECTION_TOUCHED | SECTION_DIRTY):
            stop, holds = ((section + 1) << run["section_shift"]) << PAGE_SHIFT, 0
        elif not run["descriptor_bytes"]:
            stop, holds = ((section + 1) << run["section_shift"]) << PAGE_SHIFT, 1
        else:
            status = onepage.load_descriptor(run, page)
            unknown = status == descriptor.EMPTY and run["descriptors"] != 0
            stop, holds = (page + 1) << PAGE_SHIFT, 1 if unknown or not descriptor.is_free(run, status) else 0
        stop = min(stop, end)
        if count and runs[count - 1, 1] == holds:
            runs[count - 1, 0] = stop
        else:
            if count == runs.shape[0]:
                return count
            runs[count, 0] = stop
            runs[count, 1] = holds
            count += 1
        offset = stop
    return count
