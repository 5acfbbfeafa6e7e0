# SPDX-License-Identifier: MIT
"""A second reader of recordings, written from docs/traces.md; it shares no code with pmem_core."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

WRITE, TRIM, ZERO, ZERO_KEEP, FLUSH, DRAIN, CHECK = range(1, 8)


@dataclasses.dataclass
class Found:
    """What a recording holds: (kind, offset, count) of each request; flushes that are for FUA; bytes of a torn tail."""

    requests: list = dataclasses.field(default_factory=list)
    fua: int = 0
    whole: bool = False
    torn: int = 0
    about: dict = dataclasses.field(default_factory=dict)
    device_bytes: int = 0


class Torn(Exception):
    """The end of the file comes first."""


class TooLong(Exception):
    """A number of more than 63 bits."""


def number(raw: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = 0
    for i in range(9):
        if at + i >= len(raw):
            raise Torn
        value += (raw[at + i] % 128) * 128**i
        if raw[at + i] < 128:
            return value, at + i + 1
    raise TooLong


def records(raw: bytes, device_bytes: int, found: Found) -> None:
    """Go through the records; ValueError where one makes no sense."""
    at = checked = end = count = 0
    while at < len(raw):
        head, first = raw[at], at
        kind, unit = head % 8, 4096 if head & 16 else 1
        if found.whole:
            raise ValueError(f"byte {at}")
        allowed = {FLUSH: (0, 8), CHECK: (0, 8), DRAIN: (0,)}.get(kind, range(0, 128, 16))
        if kind == 0 or head - kind not in allowed:
            if any(raw[at:]):
                raise ValueError(f"byte {at}")
            found.torn = len(raw) - at
            return
        try:
            at += 1
            if kind == CHECK:
                if at + 4 > len(raw):
                    raise Torn
                if struct.unpack_from("<I", raw, at)[0] != zlib.crc32(raw[checked:first]):
                    raise ValueError(f"byte {first}")
                at += 4
                checked = at
                found.whole = bool(head & 8)
                continue
            if kind >= FLUSH:
                found.requests.append((kind, 0, 0))
                found.fua += bool(head & 8)
                continue
            offset, size = end, count
            if not head & 32:
                size, at = number(raw, at)
                size *= unit
            if not head & 64:
                difference, at = number(raw, at)
                difference = -(difference + 1) // 2 if difference % 2 else difference // 2
                offset = (end // unit + difference) * unit
            if offset < 0 or offset + size > device_bytes:
                raise ValueError(f"byte {first}")
            found.requests.append((kind, offset, size))
            end, count = offset + size, size
        except TooLong:
            raise ValueError(f"byte {first}") from None
        except Torn:
            found.torn = len(raw) - first
            return


def read(path: Path) -> Found:
    """All of a recording; ValueError where it is damaged."""
    raw = path.read_bytes()
    magic, version, page_bytes, device_bytes, size, checksum = struct.unpack_from("<8sIIQII", raw)
    assert (magic, version, page_bytes) == (b"PMEMREC\0", 1, 4096)
    assert zlib.crc32(raw[:28] + raw[32 : 32 + size]) == checksum
    found = Found(about=json.loads(raw[32 : 32 + size]), device_bytes=device_bytes)
    records(raw[32 + size :], device_bytes, found)
    return found
