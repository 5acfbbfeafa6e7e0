# SPDX-License-Identifier: MIT
"""Descriptors as bytes in memory, and what every page map counts.

A descriptor is eight words of layout.DESCRIPTOR: flags are in word 1, refcount and mapcount in word 3, the page number
in word 4, the order in word 5.
"""

from ..jit import hot, i64_at
from ..layout import DESCRIPTOR, OK

NONE = -1  # the page has no descriptor (now)
NO_ROOM = -2  # what the plan has room for is used up
PAGES_MAX = 1 << 34

# What every STATE begins with.
FIELDS = [
    ("page_count", "<i8"),
    ("covered", "<i8"),  # pages brought up so far
    ("initialised", "<i8"),  # descriptors initialised so far, again and again where they come and go
    ("initialised_bytes", "<i8"),  # bytes written for it
    ("stores", "<i8"),  # stores to descriptors on the medium so far, the initialising ones too
    ("medium_bytes", "<i8"),  # of the medium that descriptors take, used or not
    ("descriptor_bytes", "<i8"),  # of memory that descriptors take now
    ("structure_bytes", "<i8"),  # of memory that all else takes now: what finds, counts and frees descriptors
]

BYTES_SHIFT = 6
BYTES = 1 << BYTES_SHIFT
WORDS = BYTES // 8
FLAGS_WORD, COUNT_WORD, INDEX_WORD, ORDER_WORD = 1, 3, 4, 5
MAPPED_ONCE = 1 << 32  # mapcount is the upper half of its word
COUNT_MASK = MAPPED_ONCE - 1
assert DESCRIPTOR.itemsize == BYTES
assert [DESCRIPTOR.fields[name][1] for name in ("flags", "refcount", "mapcount", "index", "order")] == [
    8 * FLAGS_WORD,
    8 * COUNT_WORD,
    8 * COUNT_WORD + 4,
    8 * INDEX_WORD,
    8 * ORDER_WORD,
]

# Bits of `flags` beside layout.PG_*, named as include/linux/page-flags.h names them; the values are ours.
PG_RESERVED = 1 << 4  # initialised: Linux sets it in each descriptor of a device's page (__init_zone_device_page)
PG_HEAD = 1 << 5  # of a run of 1 << order pages


@hot
def initialise(state, descriptor, page, flags, order):
    """Write all of a descriptor: nobody holds page `page`."""
    words = i64_at(descriptor, WORDS)
    words[0] = 0
    words[FLAGS_WORD] = flags
    words[2] = 0
    words[COUNT_WORD] = 0
    words[INDEX_WORD] = page
    words[ORDER_WORD] = order
    words[6] = 0
    words[7] = 0
    state["initialised"] += 1
    state["initialised_bytes"] += BYTES


@hot
def initialise_run(state, descriptor, page, count):
    """The same for `count` descriptors in a row, of pages from `page` on."""
    for i in range(count):
        initialise(state, descriptor + (i << BYTES_SHIFT), page + i, PG_RESERVED, 0)


@hot
def refcount_of(descriptor):
    """How many references are held; of an address, not of NONE or NO_ROOM."""
    return i64_at(descriptor, WORDS)[COUNT_WORD] & COUNT_MASK


@hot
def hold(descriptor):
    """One reference more."""
    i64_at(descriptor, WORDS)[COUNT_WORD] += 1


@hot
def release(descriptor):
    """One reference less; how many are left."""
    words = i64_at(descriptor, WORDS)
    words[COUNT_WORD] -= 1
    return words[COUNT_WORD] & COUNT_MASK


@hot
def is_initialised(descriptor):
    """False where nobody has written it since the memory was zero."""
    return i64_at(descriptor, WORDS)[FLAGS_WORD] != 0


# ---- a descriptor a page, at an address that follows from the page number; `medium`: 1 where stores are counted ----


@hot
def ensure(state, descriptor, page, medium):
    """Initialise a descriptor that is not."""
    if not is_initialised(descriptor):
        initialise(state, descriptor, page, PG_RESERVED, 0)
        state["stores"] += medium


@hot
def get(state, descriptor, page, medium):
    """Hold the descriptor of `page`; its address."""
    ensure(state, descriptor, page, medium)
    hold(descriptor)
    state["stores"] += medium
    return descriptor


@hot
def put(state, descriptor, medium):
    """Give a reference back."""
    if descriptor > 0:
        release(descriptor)
        state["stores"] += medium


@hot
def nothing_to_bring_up(state, pages):
    """`bring_up` where discovery makes nothing."""
    state["covered"] = min(state["covered"] + pages, state["page_count"])
    return state["covered"]


@hot
def next_pages(state, pages):
    """The pages that are to be brought up now: the first, and one beyond the last."""
    first = state["covered"]
    return first, min(first + pages, state["page_count"])


@hot
def nothing_to_map(state, first, count):
    """`map_extent` where a mapping changes nothing."""
    return OK


@hot
def nothing_to_unmap(state, first, count):
    """`unmap_extent` where a mapping changes nothing."""


def no_figures(states):
    """`figures` where there are none but the common ones."""
    return {}
