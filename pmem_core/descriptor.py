# SPDX-License-Identifier: MIT
"""What an operation does to the descriptor of its page.

A descriptor is worked on in `scratch`, a page of memory seen as uint32[] and as int64[], and then stored like any other
data.
Formats 1 and 2 (layout.DESCRIPTOR, DESCRIPTOR_2); a smaller descriptor has only the first fields, so a field is touched
only where it fits.
"""

import numba

from .crc32c import word_crc
from .jit import hot, i64_at, int64, u32_at
from .layout import INITIALISE_ZEROS, ORDER_MAX, PG_BUDDY, PG_ERROR, PG_RESERVED, PG_UPTODATE

# Indexes of layout.DESCRIPTOR's fields in words of 4 or 8 bytes.
CHECKSUM, DATA_CHECKSUM, FLAGS, WRITES = 0, 1, 2, 3
GENERATION, INDEX = 2, 4
REFCOUNT = 6
DATA_LINES, DESCRIPTOR_LINES, SESSION, FIRST_GENERATION = 8, 9, 10, 11
ORDER = 10

EMPTY = 0  # all zero: the page was never written
VALID = 1
DAMAGED = 2  # its checksum does not match


@hot
def small_words(run):
    """The scratch descriptor as uint32[]."""
    return u32_at(run["scratch"], 1024)


@hot
def large_words(run):
    """The scratch descriptor as int64[]."""
    return i64_at(run["scratch"], 512)


@hot
def checksum(run, page, words):
    """The checksum that a descriptor of `page` should have, int64[]; its own field counts as zero."""
    crc = word_crc(page & 0xFFFFFFFF, (words[0] >> 32) << 32)
    for i in range(1, run["descriptor_bytes"] >> 3):
        crc = word_crc(crc, words[i])
    return crc


@hot
def status(run, page):
    """EMPTY, VALID or DAMAGED, of the scratch descriptor as that of page `page`."""
    words = large_words(run)
    if int64(small_words(run)[CHECKSUM]) == checksum(run, page, words):
        if words[0] == 0 and words[1] == 0:
            return EMPTY
        return VALID
    if run["initialise"] != INITIALISE_ZEROS and _says_nothing(run, page):
        return EMPTY
    for i in range(run["descriptor_bytes"] >> 3):
        if words[i]:
            return DAMAGED
    return EMPTY


@hot
def _says_nothing(run, page):
    """True where each field of the scratch descriptor is one that a page never written may have, whatever its checksum.

    That is what is left where storing free descriptors or heads was cut short: there was no data, and there is none.
    """
    words, small = large_words(run), small_words(run)
    if small[DATA_CHECKSUM] or small[WRITES] or int64(small[FLAGS]) & ~(PG_RESERVED | PG_BUDDY):
        return False
    if run["descriptor_bytes"] >= 32 and (words[GENERATION] or words[REFCOUNT >> 1]):
        return False
    if run["descriptor_bytes"] >= 64 and (
        (words[INDEX] and words[INDEX] != page) or words[ORDER >> 1] > ORDER_MAX or words[ORDER >> 1] < 0
    ):
        return False
    for i in range((ORDER >> 1) + 1, run["descriptor_bytes"] >> 3):
        if words[i]:
            return False
    return True


@hot
def holds_data(run):
    """True where the scratch descriptor says that the page holds data."""
    return int64(small_words(run)[FLAGS]) & PG_UPTODATE != 0


@hot
def is_bad(run):
    """True where the scratch descriptor says that the page's data is damaged."""
    return int64(small_words(run)[FLAGS]) & PG_ERROR != 0


@hot
def is_free(run, status):
    """True where the page holds nothing, by the scratch descriptor and its `status`: it reads as zeros."""
    return status == EMPTY or (status == VALID and not holds_data(run) and not is_bad(run))


@hot
def order_of_head(run):
    """The order of the group that begins with the scratch descriptor's page; -1 where it is no head."""
    small = small_words(run)
    if run["descriptor_bytes"] < 64 or int64(small[FLAGS]) & PG_BUDDY == 0:
        return -1
    order = int64(small[ORDER])
    return order if order <= ORDER_MAX else -1


@hot
def data_checksum(run):
    """The crc32c of the page's data, as the scratch descriptor has it."""
    return int64(small_words(run)[DATA_CHECKSUM])


@hot
def clear(run):
    """Make the scratch descriptor that of a page never written."""
    words = large_words(run)
    for i in range(run["descriptor_bytes"] >> 3):
        words[i] = 0


@hot
def _seal(run, page, flags, crc, generation):
    small = small_words(run)
    small[DATA_CHECKSUM] = crc
    small[FLAGS] = flags
    if run["descriptor_bytes"] >= 32:
        large = large_words(run)
        large[GENERATION] = generation
        small[REFCOUNT] = 1 if flags & PG_UPTODATE else 0
        if run["descriptor_bytes"] >= 64:
            large[INDEX] = page
    if run["descriptor_format"] == 2:
        large = large_words(run)
        large[SESSION] = run["session"]
        if not run["coalesced"]:
            large[DESCRIPTOR_LINES] += lines(run)
    small[CHECKSUM] = checksum(run, page, large_words(run))


@hot
def lines(run):
    """How many lines a store of a descriptor wears: it lies on a multiple of its size."""
    return max(1, run["descriptor_bytes"] >> run["line_shift"])


@hot
def note_drain(run, page, small, large):
    """A pending descriptor, uint32[] and int64[] of the same bytes, is about to be stored on the medium."""
    if run["descriptor_format"] == 2:
        large[DESCRIPTOR_LINES] += lines(run)
        small[CHECKSUM] = checksum(run, page, large)


@hot
def note_free(run, page):
    """The page is one that was never written, and has a descriptor all the same."""
    clear(run)
    _seal(run, page, PG_RESERVED, 0, 0)


@hot
def note_head(run, page, order):
    """With the page begins a group of 2 ** order pages that have no descriptors."""
    clear(run)
    small_words(run)[ORDER] = order
    _seal(run, page, PG_BUDDY, 0, 0)


@hot
def note_write(run, page, crc, generation, data_lines):
    """The page was written: it holds data with checksum `crc`, whose stores wore `data_lines` lines."""
    small = small_words(run)
    if run["descriptor_format"] == 2:
        large = large_words(run)
        large[DATA_LINES] += data_lines
        if small[WRITES] == 0:
            large[FIRST_GENERATION] = generation
    if small[WRITES] != numba.uint32(0xFFFFFFFF):
        small[WRITES] += numba.uint32(1)
    _seal(run, page, PG_UPTODATE, crc, generation)


@hot
def note_trim(run, page, generation):
    """The page was given back: it reads as zeros."""
    _seal(run, page, 0, 0, generation)


@hot
def note_data(run, page, flags, crc):
    """The page's data was looked at and is what `flags` and `crc` say; its writes and generation stay."""
    generation = large_words(run)[GENERATION] if run["descriptor_bytes"] >= 32 else 0
    _seal(run, page, flags, crc, generation)


@hot
def convert(run, to, page):
    """Make the scratch descriptor of `page` one of the size and format of the RUN record `to`; it stays valid.

    What was not kept before is not known: its generation, its lines, its session, its first write.
    """
    small, large = small_words(run), large_words(run)
    kept = 12 if run["descriptor_format"] == 2 and to["descriptor_format"] == 2 else 8
    for i in range(min(kept, run["descriptor_bytes"] >> 3), to["descriptor_bytes"] >> 3):
        large[i] = 0
    if to["descriptor_bytes"] >= 32:
        small[REFCOUNT] = 1 if int64(small[FLAGS]) & PG_UPTODATE else 0
        if to["descriptor_bytes"] >= 64:
            large[INDEX] = page
    small[CHECKSUM] = checksum(to, page, large)
