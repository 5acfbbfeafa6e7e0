# SPDX-License-Identifier: MIT
"""The loops of a conversion: pages and their descriptors change places (convert/run.py has the order of steps).

`device` is (RUN[1], CORE[1]), as for a request: the image as it is.  `target` is the same with the size and format of
descriptors, and the placement, that it is to have; both see the same files.  `held` (uint8[]) has a bit a
page, set where it holds data.  An answer is ``page << STOP_SHIFT | code``, and the loop goes on from that page.
"""

from . import descriptor, media, onepage, policies, reservations
from .checkscan import has, is_held
from .jit import copy_bytes, hot, u8_at
from .layout import (
    BAD_DATA,
    CAUSE_DESCRIPTOR,
    CAUSE_INFO,
    CAUSE_MOVE,
    INFO_BYTES,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    STOP_SHIFT,
)


@hot
def gather(device, target, first, last, numbers, pages, bad):
    """Make descriptor pages first .. last - 1 of the target, until `numbers` is full.

    Descriptor page n is that of pages n * each .. (n + 1) * each - 1, each = 4096 / descriptor bytes.  Those that say
    something go into `pages` (uint8[4096 * n]), and which they are into `numbers` (int64[n]).  bad (int64[]): pages
    that fail a checksum.  Returns the descriptor page to go on with, how many were made, how many pages are bad (they
    may be more than fit), and how many with data lie beyond the end of the target.
    """
    run, to = device[0][0], target[0][0]
    size = to["descriptor_bytes"]
    each = PAGE_BYTES // size
    scratch = u8_at(run["scratch"], PAGE_BYTES)
    made, bad_count, beyond, number = 0, 0, 0, first
    while number < last and made < numbers.size:
        says = False
        for page in range(number * each, min((number + 1) * each, run["page_count"])):
            status = onepage.load_descriptor(run, page)
            if status == descriptor.EMPTY:
                continue
            if status == descriptor.DAMAGED or _is_wrong(run, page):
                if bad_count < bad.size:
                    bad[bad_count] = page
                bad_count += 1
                continue
            if page >= to["page_count"]:
                beyond += 1 if descriptor.holds_data(run) else 0
                continue
            if not says:
                pages[made * PAGE_BYTES : (made + 1) * PAGE_BYTES] = 0
                says = True
            descriptor.convert(run, to, page)
            copy_bytes(pages, made * PAGE_BYTES + (page - number * each) * size, scratch, 0, size)
        if says:
            numbers[made] = number
            made += 1
        number += 1
    return number, made, bad_count, beyond


@hot
def _is_wrong(run, page):
    """True where the data of `page` is not what the scratch descriptor says."""
    if descriptor.is_bad(run):
        return True
    if not descriptor.holds_data(run) or not run["checksums"]:
        return False
    return onepage.page_checksum(run, policies.page_at(run, page)) != descriptor.data_checksum(run)


@hot
def batch(device, target, held, page, step, most):
    """The next pages to move from `page` on, upwards or downwards by `step`, at most so many.

    Returns the first and the one behind the last, equal where there are none.  No place that a page of the batch goes
    to is one that a page of the batch comes from: until the batch is durable, what it comes from is.
    """
    here, there = device[0][0], target[0][0]
    pages = min(device[0][0]["page_count"], target[0][0]["page_count"])
    while 0 <= page < pages and (not has(held, page) or policies.page_at(here, page) == policies.page_at(there, page)):
        page += step
    first = page
    if not 0 <= page < pages:
        return first, first
    came_from = policies.page_at(here, first)
    while 0 <= page < pages and (page - first) * step < most:
        if (came_from - policies.page_at(there, page)) * step <= 0:
            break
        page += step
    return first, page


@hot
def _reserve(run, placed):
    """Make sure that the host has room for the page at `placed`, and take no more: it may be a page in a hole."""
    done = 0
    while done < PAGE_BYTES:
        size = onepage.piece(run, placed + done, PAGE_BYTES - done)
        at = onepage.medium_at(run, placed + done)
        code = reservations.reserve_exactly(run, at, size)
        if code:
            return code
        done += size
    return OK


@hot
def move(device, target, held, page, end, step):
    """Copy each page with data from `page` to the one before `end`, by `step`, to where the target has it."""
    run, core, there = device[0][0], device[1][0], target[0][0]
    buffer = u8_at(run["scratch"] + PAGE_BYTES, PAGE_BYTES)
    while page != end:
        source, placed = policies.page_at(run, page), policies.page_at(there, page)
        if has(held, page) and source != placed:
            code = policies.settle(run, core, placed, PAGE_BYTES)
            if code == OK:
                code = _reserve(run, placed)
            if code:
                return page << STOP_SHIFT | code
            onepage.load(run, source, buffer, 0, PAGE_BYTES)
            onepage.store(run, core, CAUSE_MOVE, placed, buffer, 0, PAGE_BYTES)
            if onepage.page_checksum(run, placed) != onepage.page_checksum(run, source):
                return page << STOP_SHIFT | BAD_DATA
        page += step
    return OK


@hot
def describe(device, target, numbers, pages, done):
    """Store descriptor pages, as `gather` made them, from the one at `done` on; what is answered counts them."""
    run, core, there = device[0][0], device[1][0], target[0][0]
    each = PAGE_BYTES // there["descriptor_bytes"]
    while done < numbers.size:
        placed = policies.descriptor_at(there, numbers[done] * each)
        code = policies.settle(run, core, placed, PAGE_BYTES)
        if code == OK:
            code = _reserve(run, placed)
        if code:
            return done << STOP_SHIFT | code
        onepage.store(run, core, CAUSE_DESCRIPTOR, placed, pages, done * PAGE_BYTES, PAGE_BYTES)
        done += 1
    return OK


@hot
def _give_back(run, in_file, placed):
    """Punch what of the page at `placed` is in the file (`held` of checkscan); OK or HOST."""
    done, code = 0, OK
    while done < PAGE_BYTES and code == OK:
        size = onepage.piece(run, placed + done, PAGE_BYTES - done)
        if is_held(run, in_file, placed + done):
            code = media.punch(run, onepage.medium_at(run, placed + done), size)
        done += size
    return code


@hot
def sweep_pages(device, target, held, in_file, page, last):
    """Give back what lies where the target has pages without data, `page` to last - 1."""
    there = target[0][0]
    while page < last:
        if not has(held, page):
            code = _give_back(device[0][0], in_file, policies.page_at(there, page))
            if code:
                return page << STOP_SHIFT | code
        page += 1
    return OK


@hot
def sweep_descriptors(device, target, says, in_file, number, last):
    """Give back what lies where the target has descriptor pages that say nothing (no bit in `says`)."""
    there = target[0][0]
    each = PAGE_BYTES // there["descriptor_bytes"]
    while number < last:
        if not has(says, number):
            placed = policies.descriptor_at(there, number * each)
            code = _give_back(device[0][0], in_file, placed)
            if code:
                return number << STOP_SHIFT | code
        number += 1
    return OK


@hot
def sweep_placed(device, in_file, number, last):
    """Give back the placed pages `number` to last - 1."""
    while number < last:
        code = _give_back(device[0][0], in_file, number << PAGE_SHIFT)
        if code:
            return number << STOP_SHIFT | code
        number += 1
    return OK


@hot
def verify(target, numbers, held, bad):
    """Read the pages of descriptor pages `numbers` as the target has them.

    Returns the first page whose descriptor is not what was stored, or -1, and how many before it have data that is not
    what their descriptors say; bad (int64[]): these, as many as fit.
    """
    run = target[0][0]
    each = PAGE_BYTES // run["descriptor_bytes"]
    bad_count = 0
    for i in range(numbers.size):
        for page in range(numbers[i] * each, min((numbers[i] + 1) * each, run["page_count"])):
            status = onepage.load_descriptor(run, page)
            if status == descriptor.DAMAGED or (status == descriptor.EMPTY and has(held, page)):
                return page, bad_count
            if status == descriptor.VALID and descriptor.holds_data(run) != has(held, page):
                return page, bad_count
            if status == descriptor.VALID and _is_wrong(run, page):
                if bad_count < bad.size:
                    bad[bad_count] = page
                bad_count += 1
    return -1, bad_count


@hot
def count_info(device, at):
    """Count the wear of an info block at byte `at`, which is about to be written."""
    run = device[0][0]
    media.wear_lines(run, device[1][0], CAUSE_INFO, at >> run["line_shift"], INFO_BYTES >> run["line_shift"])
