# SPDX-License-Identifier: MIT
"""Room on the host for what is stored: known, looked for or asked for before the first byte goes there.

A store through the map to a hole on a full filesystem would be a SIGBUS, not an ENOSPC, and so would one to its wear
counters.  Room is asked for 64 KiB at a time, a reservation each.  run["reserved"] has a byte for each one:

| byte | what is known |
| --- | --- |
| 0 | nothing |
| NOT_THERE | it was looked at, and the host does not have all of it |
| epoch << CALLS_BITS and calls | the host has room for all of it; that many calls stored to it in that epoch |

An epoch is the time between two syncs of the medium, 1 to EPOCHS and then 1 again.
"""

from errno import EDQUOT, ENOSPC

from .jit import do_at, fallocate, hot, int64, mincore, u8_at
from .layout import ERRNO_SHIFT, HOST, OK, PAGE_BYTES, PAGE_SHIFT

RESERVE_SHIFT = 16
CALLS_BITS, EPOCHS = 5, 7
CALLS_MAX = (1 << CALLS_BITS) - 1  # no more than these are counted
NOT_THERE = 1
RESERVED = 1 << CALLS_BITS  # the least byte of what the host has room for
LOOK_SHIFT = 20  # what is there already is looked at 1 MiB at a time
SEEN = PAGE_BYTES // 2  # bytes in scratch for what mincore finds, of the medium and of counters
SEEN_AT, COUNTERS_SEEN_AT = 3 * PAGE_BYTES, 3 * PAGE_BYTES + SEEN


@hot
def is_reserved(run, at):
    """True where the host is known to have room for all of the reservation around `at` and for its wear counters."""
    reserved, chunk = u8_at(run["reserved"], run["reserved_count"]), at >> RESERVE_SHIFT
    if reserved[chunk] == 0 and run["looks"]:
        do_at(run["look"], (run, chunk))
    return reserved[chunk] >= RESERVED


@hot
def has_counters(run, at, count):
    """True where the wear counters of `count` bytes at `at` can be read without the host having to find room for them.

    On tmpfs it has to find some for what is in a hole, and where there is none, that is a SIGBUS.
    """
    if not run["looks"] or is_reserved(run, at):
        return True
    counters, end = _counters(run, at, at + count)
    if mincore(run["wear"] + counters, end - counters, u8_at(run["scratch"] + COUNTERS_SEEN_AT, SEEN)):
        return False
    return _are_seen(run["scratch"] + COUNTERS_SEEN_AT, 0, end - counters)


@hot
def look(run, chunk):
    """Find out which reservations in the MiB around reservation `chunk` the host has room for since an earlier session.

    That is so on tmpfs where all of one is in memory, and so are its counters.  Elsewhere what is in memory may be a
    copy of a hole.
    """
    reserved = u8_at(run["reserved"], run["reserved_count"])
    pages, counters_pages = u8_at(run["scratch"] + SEEN_AT, SEEN), u8_at(run["scratch"] + COUNTERS_SEEN_AT, SEEN)
    at = chunk << RESERVE_SHIFT
    if mincore(run["media"] + at, PAGE_BYTES, pages) or not pages[0] & 1:
        reserved[chunk] = NOT_THERE  # of a sparse medium most is not, and a MiB takes five times as long
        return
    start = at >> LOOK_SHIFT << LOOK_SHIFT
    end = min(start + (1 << LOOK_SHIFT), run["medium_bytes"])
    around = range(start >> RESERVE_SHIFT, ((end - 1) >> RESERVE_SHIFT) + 1)
    for i in around:
        if reserved[i] == 0:
            reserved[i] = NOT_THERE
    counters, counters_end = _counters(run, start, end)
    if mincore(run["media"] + start, end - start, pages):
        return
    if mincore(run["wear"] + counters, counters_end - counters, counters_pages):
        return
    for i in around:
        first, last = i << RESERVE_SHIFT, min(end, (i + 1) << RESERVE_SHIFT)
        of_wear, wear_end = _counters(run, first, last)
        if (
            reserved[i] == NOT_THERE
            and _are_seen(run["scratch"] + SEEN_AT, first - start, last - start)
            and _are_seen(run["scratch"] + COUNTERS_SEEN_AT, of_wear - counters, wear_end - counters)
        ):
            reserved[i] = run["epoch"] << CALLS_BITS


@hot
def _counters(run, at, end):
    """Where the pages with the wear counters of bytes `at` to `end` begin and end, in bytes of the counters."""
    first, last = 4 * (at >> run["line_shift"]), 4 * ((end - 1) >> run["line_shift"])
    return first >> PAGE_SHIFT << PAGE_SHIFT, ((last >> PAGE_SHIFT) + 1) << PAGE_SHIFT


@hot
def _are_seen(found_at, at, end):
    """True where what mincore left at `found_at` says so of every page with bytes `at` to `end` in it."""
    found = u8_at(found_at, SEEN)
    for page in range(at >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1):
        if not found[page] & 1:
            return False
    return True


@hot
def is_cached(run, at, count):
    """True where the host has all of these pages, TOGETHER_MAX at most, in memory."""
    if mincore(run["media"] + at, count, u8_at(run["scratch"] + SEEN_AT, SEEN)):
        return False
    return _are_seen(run["scratch"] + SEEN_AT, 0, count)


@hot
def reserve(run, at, count):
    """Make sure that the host has room for `count` bytes at `at` and for their wear counters; OK or HOST."""
    reserved = u8_at(run["reserved"], run["reserved_count"])
    for chunk in range(at >> RESERVE_SHIFT, ((at + count - 1) >> RESERVE_SHIFT) + 1):
        first = chunk << RESERVE_SHIFT
        if is_reserved(run, first):
            continue
        end = min(first + (1 << RESERVE_SHIFT), run["medium_bytes"])
        error = allocate(run, first, end)
        if error == 0:
            reserved[chunk] = run["epoch"] << CALLS_BITS
        elif error == ENOSPC or error == EDQUOT:
            # There is no room for all of it; what this store needs may be there already.
            error = allocate(run, max(first, at), min(end, at + count))
        if error:
            return error << ERRNO_SHIFT | HOST
    return OK


@hot
def reserve_exactly(run, at, count):
    """`reserve`, and take no more than that: around it may be a hole."""
    error = allocate(run, at, at + count)
    return error << ERRNO_SHIFT | HOST if error else OK


@hot
def allocate(run, first, end):
    """Allocate the pages with the medium's bytes from `first` to `end` and with their wear counters; 0, or the errno.

    Whole pages: a store to a map asks for all blocks of its page, and a filesystem's may be smaller.
    """
    counters, counters_end = _counters(run, first, end)
    first, end = first >> PAGE_SHIFT << PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1 << PAGE_SHIFT
    error = fallocate(run["media_fd"], run["allocation"], first, end - first)
    if error:
        return error
    return fallocate(run["wear_fd"], run["allocation"], counters, counters_end - counters)


@hot
def forget(run, at, count):
    """The host was given back the room for `count` bytes at `at`."""
    reserved = u8_at(run["reserved"], run["reserved_count"])
    for chunk in range(at >> RESERVE_SHIFT, ((at + count - 1) >> RESERVE_SHIFT) + 1):
        reserved[chunk] = NOT_THERE if run["looks"] else 0


@hot
def note_call(run, at):
    """Note a call more that stores to the reservation around `at`; False where CALLS_MAX did in this epoch."""
    reserved, chunk = u8_at(run["reserved"], run["reserved_count"]), at >> RESERVE_SHIFT
    if reserved[chunk] < RESERVED:
        return True  # room for this alone was found: there is no reservation to note it in
    calls = int64(reserved[chunk]) & CALLS_MAX
    if int64(reserved[chunk]) >> CALLS_BITS != run["epoch"]:
        calls = 0
    reserved[chunk] = run["epoch"] << CALLS_BITS | min(CALLS_MAX, calls + 1)
    return calls < CALLS_MAX
