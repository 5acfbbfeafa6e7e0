# SPDX-License-Identifier: MIT
"""The records of a log, with the kernel's names for their fields (drivers/md/dm-log-writes.c).

Everything is little-endian.  Sector 0 holds the superblock, and then each entry takes one sector, with the data of a
write in the sectors behind it.  What a record leaves of its sector is zero.
"""

import struct
from typing import NamedTuple

MAGIC = 0x6A736677736872
VERSION = 1
SECTOR_BYTES = 512

FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
FLAGS = {FLUSH: "flush", FUA: "fua", DISCARD: "discard", MARK: "mark", METADATA: "metadata"}

SUPER = struct.Struct("<QQQI")
HEADER = struct.Struct("<QQQQ")
DEVICE_BYTES_MAX = 2**63 - 1  # no offset in a file or a block device is larger
MARK_BYTES_MAX = SECTOR_BYTES - HEADER.size - 1  # readers want a zero behind it

# replay-log skips a discard of more than 128 MiB where the target cannot discard, and it takes the data of a write
# into memory in one piece.
DISCARD_BYTES_MAX = 128 << 20
WRITE_BYTES_MAX = 32 << 20

MARK_START, MARK_END = "pmem-nbd-start", "pmem-nbd-end"
MARK_PREFIX = "mark:"  # a client that asks a logging server for an export of such a name puts a mark into its log


class Super(NamedTuple):
    """The superblock."""

    magic: int
    version: int
    nr_entries: int
    sectorsize: int


class Header(NamedTuple):
    """The head of an entry; a mark has `data_len` bytes of text behind it, in the same sector."""

    sector: int
    nr_sectors: int
    flags: int
    data_len: int

    @property
    def data_sectors(self) -> int:
        """Sectors of data behind the head's own."""
        return 0 if self.flags & DISCARD else self.nr_sectors


def super_sector(entries: int) -> bytes:
    """The first sector of a log of so many entries."""
    return SUPER.pack(MAGIC, VERSION, entries, SECTOR_BYTES).ljust(SECTOR_BYTES, b"\0")


def header_sector(sector: int, sectors: int, flags: int, text: bytes = b"") -> bytes:
    """The sector that an entry begins with; `text` is a mark's."""
    return (HEADER.pack(sector, sectors, flags, len(text)) + text).ljust(SECTOR_BYTES, b"\0")


def flag_names(flags: int) -> list[str]:
    """The flags by name; what nobody knows as a number."""
    known = [name for flag, name in FLAGS.items() if flags & flag]
    rest = flags & ~sum(FLAGS)
    return known + ([hex(rest)] if rest else [])
