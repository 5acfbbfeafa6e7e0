# SPDX-License-Identifier: MIT
"""A second reader of logs of writes, written from the kernel's dm-log-writes.c; it shares no code with pmem_core."""

import struct
from dataclasses import dataclass
from pathlib import Path

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


@dataclass
class Found:
    """One entry."""

    sector: int
    sectors: int
    flags: int
    text: bytes
    data: bytes


def read(path: Path) -> list[Found]:
    """Every entry of a log that is whole, byte for byte."""
    raw = path.read_bytes()
    magic, version, count, size = struct.unpack_from("<QQQL", raw)
    assert (magic, version, size) == (0x6A736677736872, 1, 512)
    assert not any(raw[28:512])
    at, found = 512, []
    for _ in range(count):
        sector, sectors, flags, text_bytes = struct.unpack_from("<QQQQ", raw, at)
        assert flags or sectors, f"an empty entry at byte {at}"
        text = raw[at + 32 : at + 32 + text_bytes]
        assert len(text) == text_bytes and not any(raw[at + 32 + text_bytes : at + 512])
        assert flags & MARK or not text
        at += 512
        data = b"" if flags & DISCARD else raw[at : at + 512 * sectors]
        assert len(data) == (0 if flags & DISCARD else 512 * sectors)
        at += len(data)
        found.append(Found(sector, sectors, flags, text, data))
    assert at <= len(raw)
    return found


def apply(entries: list[Found], size: int, image: bytearray | None = None) -> bytearray:
    """What a device of zeros (or `image`) holds after these entries."""
    image = bytearray(size) if image is None else image
    for one in entries:
        data = bytes(512 * one.sectors) if one.flags & DISCARD else one.data
        image[512 * one.sector : 512 * one.sector + len(data)] = data
    assert len(image) == size
    return image


def shape(entries: list[Found]) -> list[tuple]:
    """Flags, sector and sectors of each entry; of marks their text."""
    return [(one.flags, one.text) if one.flags & MARK else (one.flags, one.sector, one.sectors) for one in entries]
