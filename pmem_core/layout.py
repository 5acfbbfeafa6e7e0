# SPDX-License-Identifier: MIT
# long: every record is declared here once
"""Every record that lies on the medium, in the wear file or in the state file, declared once; and where things lie.

All little-endian.  The medium::

    0        info block, copy A
    4096     info block, copy B (where Linux keeps nd_pfn_sb)
    8192     frames: `FRAMES_AT + medium_frame * frame_bytes`; placement and leveling share them out
    ...      to the end, less what does not fill a frame or a group

The state file::

    0        HEAD         whose state this is
    4096     core         TALLY, INTENT, UNIT, the placement's STATE, the leveling's STATE
    8192     table        int64 words of the leveling that a power cut must not lose
             ticks        int64 words that it may lose
             sections     a byte a section: SECTION_* bits
             pending      descriptors not yet on the medium (descriptor_writes = coalesced)
"""

import itertools

import numpy as np

PAGE_BYTES = 4096
PAGE_SHIFT = 12
FRAMES_AT = 8192
INFO_BYTES = 4096
INFO_OFFSETS = (0, 4096)
ZONE_BYTES = 4096

# ---- the info block: struct nd_pfn_sb (drivers/nvdimm/pfn.h, Linux 6.1), minor version 4; ours begins at 1024 ----

LINUX_SIGNATURE = b"NVDIMM_PFN_INFO\0"
OUR_SIGNATURE = b"PMEM_NBD_INFO\0\0\0"
EXTENSION_SIGNATURE = b"PMEM_NBD_DEVICE\0"
MODE_RAM = 1
MODE_PMEM = 2
VERSION = (1, 4)
EXTENSION_VERSION = 1

_INFO_FIELDS = [
    # name, dtype, offset: what it is
    ("signature", "V16", 0),  # LINUX_SIGNATURE where Linux can use the medium as it is, else OUR_SIGNATURE
    ("uuid", "V16", 16),
    ("parent_uuid", "V16", 32),  # not used: zero
    ("flags", "<u4", 48),  # not used: zero
    ("version_major", "<u2", 52),
    ("version_minor", "<u2", 54),
    ("dataoff", "<u8", 56),  # bytes from the medium's start to page 0 (as placed)
    ("npfns", "<u8", 64),  # pages the client sees
    ("mode", "<u4", 72),
    ("start_pad", "<u4", 76),  # minor-version-1 additions; not used: zero
    ("end_trunc", "<u4", 80),
    ("align", "<u4", 84),  # minor-version-2 addition
    ("page_size", "<u4", 88),  # minor-version-4 additions
    ("page_struct_size", "<u2", 92),
    ("extension", "V16", 1024),  # EXTENSION_SIGNATURE
    ("extension_version", "<u4", 1040),
    ("features_compatible", "<u4", 1044),  # unknown bits: go on
    ("features_read_only", "<u4", 1048),  # unknown bits: read, never write
    ("features_incompatible", "<u4", 1052),  # unknown bits: refuse
    ("generation", "<u8", 1056),  # the copy with the larger one wins
    ("medium_bytes", "<u8", 1064),
    ("created", "<u8", 1072),  # seconds since 1970
    ("frame_bytes", "<u4", 1080),
    ("line_bytes", "<u4", 1084),
    ("descriptor_bytes", "<u4", 1088),
    ("descriptor_format", "<u2", 1092),
    ("descriptor_writes", "<u2", 1094),  # DESCRIPTOR_EACH or DESCRIPTOR_COALESCED
    ("checksums", "<u4", 1096),  # 1: crc32c of page data in the descriptor; 0: none
    ("section_pages", "<u4", 1100),
    ("placement", "S32", 1104),
    ("leveling", "S32", 1136),
    ("parameters", "S1024", 1168),  # JSON: {"placement": {...}, "leveling": {...}}
    ("initialise", "<u2", 2192),  # how descriptors come into being: INITIALISE
    ("initialised", "<u2", 2194),  # 1: with INITIALISE_EAGER, all of them have
    ("checksum", "<u8", 4088),  # Fletcher-64 of the block as le32 words, this field as zero
]
INFO = np.dtype(
    {
        "names": [field[0] for field in _INFO_FIELDS],
        "formats": [field[1] for field in _INFO_FIELDS],
        "offsets": [field[2] for field in _INFO_FIELDS],
        "itemsize": INFO_BYTES,
    }
)

FEATURE_INITIALISE = 1 << 0  # of the read-only ones: `initialise` is not INITIALISE_ZEROS
READ_ONLY_DESCRIPTOR_2 = 1 << 1  # descriptors are of format 2: who writes must keep its fields
INCOMPATIBLE_CONVERTING = 1 << 0  # a conversion is under way: pages are neither all here nor all there

FEATURES_COMPATIBLE = 0
FEATURES_READ_ONLY = FEATURE_INITIALISE | READ_ONLY_DESCRIPTOR_2
FEATURES_INCOMPATIBLE = INCOMPATIBLE_CONVERTING
DESCRIPTOR_FORMATS = (1, 2)

DESCRIPTOR_EACH = 1
DESCRIPTOR_COALESCED = 2
DESCRIPTOR_WRITES = {"each": DESCRIPTOR_EACH, "coalesced": DESCRIPTOR_COALESCED}

# How descriptors come into being (bringup.py).
INITIALISE_ZEROS, INITIALISE_EAGER, INITIALISE_SECTION, INITIALISE_SUBSECTION, INITIALISE_BUDDY = range(5)
INITIALISE = {
    "zeros": INITIALISE_ZEROS,
    "eager": INITIALISE_EAGER,
    "section": INITIALISE_SECTION,
    "subsection": INITIALISE_SUBSECTION,
    "buddy": INITIALISE_BUDDY,
}

# ---- the descriptor, formats 1 and 2.  A descriptor of 16 or 32 bytes is the first 16 or 32 bytes of format 1; a
# ---- larger one has zeros behind its fields.  All zero: the page was never written.

_DESCRIPTOR_FIELDS = [
    ("checksum", "<u4", 0),  # crc32c, seeded with the low 32 bits of the page number, of the bytes from 4 on
    ("data_checksum", "<u4", 4),  # crc32c of the page's 4096 bytes; 0 without checksums
    ("flags", "<u4", 8),  # PG_*
    ("writes", "<u4", 12),  # writes to the page; stays at 2**32 - 1
    ("generation", "<u8", 16),  # the device's write sequence number at the last write
    ("refcount", "<i4", 24),  # 1: holds data, 0: free
    ("mapcount", "<i4", 28),  # not used: 0
    ("index", "<u8", 32),  # the page number
    ("order", "u1", 40),  # with PG_BUDDY: log2 of the pages of the group; else 0
]
# Format 2 goes on where format 1 ends.  They count from the page's first write, or from its conversion, on, and a
# trim leaves them alone.
_DESCRIPTOR_2_FIELDS = [
    *_DESCRIPTOR_FIELDS,
    ("data_lines", "<u8", 64),  # line writes that the host's writes of the page's data caused
    ("descriptor_lines", "<u8", 72),  # line writes that stores of this descriptor caused, the one that wrote this too
    ("session", "<u8", 80),  # when the session began that changed the descriptor last, nanoseconds since 1970
    ("first_generation", "<u8", 88),  # `generation` at the page's first write; 0: not known
]


def _descriptor(fields: list[tuple[str, str, int]], size: int) -> np.dtype:
    names, formats, offsets = (list(column) for column in zip(*fields, strict=True))
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


DESCRIPTOR = _descriptor(_DESCRIPTOR_FIELDS, 64)
DESCRIPTOR_2 = _descriptor(_DESCRIPTOR_2_FIELDS, 128)
DESCRIPTOR_BYTES_MIN = 16
DESCRIPTOR_BYTES_MAX = 4096

# Bits of `flags`, named as include/linux/page-flags.h names them; the values are ours.
PG_UPTODATE = 1 << 3  # the page holds data; clear: it reads as zeros
PG_ERROR = 1 << 1  # the data is known to be damaged; reads fail until the whole page is written
PG_RESERVED = 1 << 2  # initialised and never written, which the kernel calls PageReserved in ZONE_DEVICE
PG_BUDDY = 1 << 4  # a head: with it begins a group of pages that have no descriptors yet
ORDER_MAX = 34  # of the largest medium, in pages

# ---- the state file ----

STATE_SIGNATURE = b"PMEM_NBD_STATE\0\0"
HEAD = np.dtype([("signature", "V16"), ("version", "<i8"), ("uuid", "V16")])
STATE_VERSION = 1

# Causes of wear, indexes into TALLY["worn"].
CAUSES = ("host", "descriptor", "move", "info")
CAUSE_HOST, CAUSE_DESCRIPTOR, CAUSE_MOVE, CAUSE_INFO = range(4)

TALLY = np.dtype(
    [
        ("reads", "<i8"),
        ("writes", "<i8"),
        ("read_bytes", "<i8"),
        ("written_bytes", "<i8"),
        ("flushes", "<i8"),
        ("trims", "<i8"),
        ("zeros", "<i8"),
        ("trimmed_bytes", "<i8"),
        ("zeroed_bytes", "<i8"),
        ("page_writes", "<i8"),  # pages written for the host, whole or in part: the device's write sequence number
        ("worn", "<i8", (4,)),  # line writes by cause; their sum is the sum of the wear file
        ("moves", "<i8"),  # frames moved by leveling
        ("hottest", "<i8"),  # the largest counter in the wear file
        ("checksum_errors", "<i8"),  # reads refused because of a checksum
        ("healed", "<i8"),  # descriptors rebuilt from data after a crash
        ("uncheckpointed", "<i8"),  # line writes that the wear file has more than `worn`, as check --repair found
        ("cuts", "<i8"),  # power cuts since then: wear counters may be ahead of `worn`
    ]
)

# What a kill may interrupt.  INTENT[0] is the page being changed, plus one; 0: none.  TRIM_FIRST to TRIM_END - 1 are
# the pages whose space a trim is about to give back, once it has stored their descriptors; TRIM_END = 0: none.
INTENT_WORDS = 8
TRIM_FIRST, TRIM_END = 1, 2
# RAISED is a page whose group is being brought up, plus one; RETURNED the first page of a group whose descriptors are
# being given back, plus one.  HEAD_PAGE and HEAD_ORDER are the free group that it comes from, or becomes part of.
RAISED, RETURNED, HEAD_PAGE, HEAD_ORDER = 3, 4, 5, 6
# TOGETHER is first page << TOGETHER_SHIFT | pages, TOGETHER_MAX at most, of those being written together; 0: none.
TOGETHER, TOGETHER_SHIFT, TOGETHER_MAX = 7, 8, 16
# UNIT describes the run of lines being counted: cause + 1 (0: none), first line, lines, their sum before, the cause's
# total before.  With it a killed process's totals are made exact again.
UNIT_CAUSE, UNIT_FIRST, UNIT_LINES, UNIT_SUM, UNIT_TOTAL = range(5)
# And one more than the sum of the totals in SUMMED, modulo 2**64, which after a kill nothing else can be compared with;
# 0: not known, for one of them is just being counted, or never was.
UNIT_TALLY = 5
SUMMED = tuple(name for name in TALLY.names or () if name not in ("worn", "hottest"))
UNIT_WORDS = 8

# Bits of a section's byte.
SECTION_TOUCHED = 1  # some page of it was written once; clear: all of it reads as zeros
SECTION_DIRTY = 2  # it may hold writes that were not flushed; durable before the first such write
SECTION_SUSPECT = 4  # it held such writes at a power cut: checksums are not compared there
SECTION_RECENT = 8  # written since quiet sections were last settled (never durable)

PENDING_SLOTS = 4096
PENDING_HEAD_WORDS = 2  # page + 1 (0: empty), and one word unused, before the descriptor's bytes


# What the core record begins with, whatever the policies.
CORE = np.dtype([("tally", TALLY), ("intent", "<i8", (INTENT_WORDS,)), ("unit", "<i8", (UNIT_WORDS,))])


def core_dtype(placement_state: np.dtype, leveling_state: np.dtype) -> np.dtype:
    """The record at 4096 of the state file, for a pair of policies."""
    begins = [(name, CORE[name]) for name in CORE.names or ()]
    core = np.dtype([*begins, ("placement", placement_state), ("leveling", leveling_state)])
    assert core.itemsize <= ZONE_BYTES
    return core


def common(core: np.ndarray) -> np.ndarray:
    """What the core record core[1] begins with, CORE[1], at the same place in memory."""
    return np.ndarray(1, CORE, core.data)


# ---- how compiled code answers: the bytes (or items) done << STOP_SHIFT | a stop code.  OK: all is done. ----

OK = 0
CHECKPOINT = 1  # a move would overwrite what only a checkpoint makes free: take one, call again
SECTION = 2  # the section must be marked dirty, durably, before this write: mark it, call again
BAD_DATA = 3  # the page's data does not match its descriptor
BAD_DESCRIPTOR = 4  # the descriptor does not match its own checksum
HOST = 5  # the host refused; the errno is shifted left by ERRNO_SHIFT
SOON = 6  # all is done; leveling would like a checkpoint before it has to stop for one
PAUSE = 7  # a part is done, and others may want the device: call again
STOP_KIND = 7
# Without one a trim or zeroing goes on for as many pages, 4 MiB; a trim on a disk for no more than as many holes, for
# each takes the filesystem some tenths of a millisecond; and a trim on tmpfs, where they take microseconds, for 64 MiB:
# where there is no more room, leveling's next moves would take what each part gives back.
PAUSE_PAGES = 1 << 10
PAUSE_HOLES = 4
PAUSE_PAGES_TMPFS = 1 << 14
ERRNO_SHIFT = 3
STOP_SHIFT = 16
STOP_MASK = (1 << STOP_SHIFT) - 1
BROKE = 5 << ERRNO_SHIFT | HOST  # EIO: compiled code raised, which only a bug makes it do

# ---- what compiled code is handed besides the core: addresses and geometry.  In memory only. ----

RUN = np.dtype(
    [
        ("media", "<i8"),  # addresses
        ("wear", "<i8"),
        ("table", "<i8"),
        ("durable", "<i8"),  # the table as the last checkpoint has it
        ("ticks", "<i8"),
        ("sections", "<i8"),
        ("pending", "<i8"),
        ("reserved", "<i8"),  # a byte a reservation of the host file
        ("scratch", "<i8"),  # four pages
        ("moved", "<i8"),  # medium frames that moves have filled since the last commit of moves
        ("fresh", "<i8"),  # the same frames: a bit a medium frame
        ("medium_bytes", "<i8"),
        ("line_count", "<i8"),
        ("table_words", "<i8"),
        ("tick_words", "<i8"),
        ("section_count", "<i8"),
        ("reserved_count", "<i8"),
        ("moved_room", "<i8"),
        ("moved_count", "<i8"),  # more than moved_room: some are not in `moved`
        ("fresh_words", "<i8"),
        ("blanked", "<i8"),  # how often leftovers behind a page were blanked (onepage.scrub)
        ("blanked_durably", "<i8"),  # how many of these the last commit of moves has waited for
        ("rewritten", "<i8"),  # grows where such a frame is changed, and at each commit of moves (durability.py)
        ("committed", "<i8"),  # what `rewritten` was when all moves so far were committed; -1: unknown
        ("syncs_begun", "<i8"),  # of flushes (durability.py)
        ("syncs_ended", "<i8"),  # the number of the last that ended well
        ("sync_failed", "<i8"),  # the errno of a sync that failed, of whichever file; 0: none has
        ("media_fd", "<i8"),
        ("wear_fd", "<i8"),
        ("page_count", "<i8"),
        ("frame_shift", "<i8"),
        ("line_shift", "<i8"),
        ("section_shift", "<i8"),  # pages to sections
        ("descriptors", "<i8"),  # address of those kept in memory; 0: none are
        ("descriptor_bytes", "<i8"),  # 0: there are none, on the medium or in memory
        ("descriptor_format", "<i8"),
        ("session", "<i8"),  # when it began, nanoseconds since 1970
        ("initialise", "<i8"),  # INITIALISE
        ("group_shift", "<i8"),  # log2 of the pages whose descriptors are brought up together
        # Addresses of what is called by them (binding.py):
        ("placement", "<i8"),  # the states of the policies
        ("leveling", "<i8"),
        ("page_at", "<i8"),  # their functions
        ("descriptor_at", "<i8"),
        ("translate", "<i8"),
        ("tick", "<i8"),
        ("settle", "<i8"),  # functions of roads
        ("settle_page", "<i8"),
        ("where", "<i8"),
        ("ensure", "<i8"),  # functions of bringup; 0: not wanted
        ("give_back", "<i8"),
        ("move", "<i8"),  # functions that seldom run: not compiled into all that may call them
        ("scrub", "<i8"),
        ("meet", "<i8"),
        ("drain_slot", "<i8"),
        ("look", "<i8"),
        ("read_at", "<i8"),  # requests, and parts of them; of a device only
        ("write_at", "<i8"),
        ("flush_at", "<i8"),
        ("together", "<i8"),
        ("free", "<i8"),
        ("checksums", "<i8"),
        ("coalesced", "<i8"),
        ("read_only", "<i8"),
        ("large", "<i8"),  # bytes of a write from which on its data goes by calls (media.goes_by_call); 0: none does
        ("by_call", "<i8"),  # 1: the request in hand is such a one
        ("epoch", "<i8"),  # since the last sync of the medium, 1 to reservations.EPOCHS
        ("tmpfs", "<i8"),  # 1: reading a hole through the map allocates, and on a full host that is a SIGBUS
        ("allocation", "<i8"),  # the mode of fallocate(2) that makes room (room.allocation)
        ("looks", "<i8"),  # 1: the host tells what is there already (reservations.look)
        ("wanted", "<i8"),  # 1: leveling would like a checkpoint soon; 2: and somebody has been told
        # Of a replay, which has no medium (media: 0); see media.count_bytes:
        ("units", "<i8"),  # address
        ("unit_count", "<i8"),
        ("unit_shift", "<i8"),
        ("held", "<i8"),  # address: a byte a page, 1 where it holds data; 0: nothing says so
        ("weakest", "<i8"),  # no line dies before it was written as often as this
        ("endurance", "<i8"),  # address: writes that each line survives, uint32[]; 0: all of them `weakest`
        ("deaths", "<i8"),  # address: page writes, line; page writes, line; ...
        ("deaths_room", "<i8"),
        ("death_count", "<i8"),  # lines dead so far; those beyond deaths_room are only counted
    ]
)

assert INFO.itemsize == INFO_BYTES and _INFO_FIELDS[-1][2] == INFO_BYTES - 8
assert all(
    INFO[field].itemsize + offset <= following
    for (field, _, offset), (_, _, following) in itertools.pairwise(_INFO_FIELDS)
)
assert DESCRIPTOR.itemsize == 64 and _DESCRIPTOR_FIELDS[3][2] + 4 == DESCRIPTOR_BYTES_MIN
assert _DESCRIPTOR_2_FIELDS[: len(_DESCRIPTOR_FIELDS)] == _DESCRIPTOR_FIELDS and _DESCRIPTOR_FIELDS[-1][2] < 64
assert HEAD.itemsize <= ZONE_BYTES


def fletcher64(block: bytes) -> int:
    """Fletcher-64 of little-endian 32-bit words, both sums modulo 2**32 (nd_fletcher64, drivers/nvdimm/core.c)."""
    words = np.frombuffer(block, "<u4").astype(np.uint64)
    low = np.cumsum(words, dtype=np.uint64) & np.uint64(0xFFFFFFFF)
    high = int(np.sum(low, dtype=np.uint64)) & 0xFFFFFFFF
    return high << 32 | int(low[-1])
