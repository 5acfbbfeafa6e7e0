# SPDX-License-Identifier: MIT
"""The loops of recorded workloads: requests out of a recording's bytes, and how many pages they touch.

A record is a byte, the head, and for the first four kinds up to two numbers behind it: the count, unless it is that of
the request before (SAME), and the offset less where that one ended, unless they are equal (NEXT).  With PAGES both are
in pages.  A number has 7 bits a byte, the low ones first, the highest bit set in all bytes but its last: LEB128.  A
difference d is written as 2·d, or -2·d - 1 where it is below zero.
"""

import numpy as np

from .jit import hot
from .layout import PAGE_BYTES, PAGE_SHIFT

WRITE, TRIM, ZERO, ZERO_KEEP, FLUSH, DRAIN = 1, 2, 3, 4, 5, 6
CHECK = 7  # a kind of record, not of request: a checksum of what is before it

# What a head is made of; what is not its kind's is 0.
KIND, PAGES, SAME, NEXT = 7, 16, 32, 64
FLAGS = PAGES | SAME | NEXT  # of a request with an offset
FUA = 8  # of a flush: a request with FUA brought it along
LAST = 8  # of a check: nothing follows it
NUMBER_BYTES_MAX = 9

REQUEST = np.dtype([("kind", "<i8"), ("offset", "<i8"), ("count", "<i8")])

# The state of a decoder: where the last request ended, its count, requests filled in, why it stopped, flushes for FUA.
END, COUNT, FILLED, STATUS, FUAS = range(5)
STATE_WORDS = 5
GOES_ON, TORN, CHECK_DUE, BAD = range(4)


@hot
def _number(raw, at, end):
    """The number at raw[at], and where it ends: -TORN where raw[:end] has not all of it, -BAD where it is too long."""
    value, shift = np.int64(0), 0
    while at < end:
        byte = np.int64(raw[at])
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift == 7 * NUMBER_BYTES_MAX:
            return value, -BAD
    return value, -TORN


@hot
def decode(raw, at, end, device_bytes, state, requests):
    """Decode records of raw[at:end] (uint8) into requests (REQUEST[]); the index of the first that was not.

    state: int64[STATE_WORDS].  It stops where `requests` is full (GOES_ON, as at the end), a record is not all there
    (TORN), a check is next (CHECK_DUE), or a record makes no sense on a device of that size (BAD).
    """
    filled, status, last_end, last_count = 0, GOES_ON, state[END], state[COUNT]
    while at < end and filled < requests.size:
        head = np.int64(raw[at])
        kind, here = head & KIND, at + 1
        if kind == 0 or head & ~KIND & ~(FLAGS if kind <= ZERO_KEEP else FUA if kind != DRAIN else 0):
            status = BAD
            break
        if kind == CHECK:
            status = CHECK_DUE
            break
        offset, count = np.int64(0), np.int64(0)
        if kind <= ZERO_KEEP:
            shift = PAGE_SHIFT if head & PAGES else 0
            count, offset = last_count, last_end
            if not head & SAME:
                count, here = _number(raw, here, end)
                if here < 0:
                    status = -here
                    break
                count = count << shift if count <= device_bytes >> shift else device_bytes + 1
            if not head & NEXT:
                number, here = _number(raw, here, end)
                if here < 0:
                    status = -here
                    break
                offset = (last_end >> shift) + ((number >> 1) ^ -(number & 1))
                offset = offset << shift if 0 <= offset <= device_bytes >> shift else np.int64(-1)
            if offset < 0 or count > device_bytes - offset:
                status = BAD
                break
            last_end, last_count = offset + count, count
        elif head & FUA:
            state[FUAS] += 1
        requests[filled]["kind"] = kind
        requests[filled]["offset"] = offset
        requests[filled]["count"] = count
        filled += 1
        at = here
    state[END], state[COUNT], state[FILLED], state[STATUS] = last_end, last_count, filled, status
    return at


@hot
def touch_pages(requests, bits):
    """Set the bit of each page that a write touches, in bits (uint8[], 8 pages a byte); how many were not set."""
    fresh = 0
    for i in range(requests.size):
        if requests[i]["kind"] == WRITE:
            first, end = requests[i]["offset"], requests[i]["offset"] + requests[i]["count"]
            for page in range(first >> PAGE_SHIFT, (end + PAGE_BYTES - 1) >> PAGE_SHIFT):
                bit = 1 << (page & 7)
                if not bits[page >> 3] & bit:
                    bits[page >> 3] |= bit
                    fresh += 1
    return fresh
