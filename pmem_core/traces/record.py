# SPDX-License-Identifier: MIT
"""The format of a recording: docs/traces.md.  What follows the header is in tracescan, which decodes it.

A file begins with HEADER, and then `about_bytes` of JSON that says what was recorded.  Little-endian.
"""

import json
import struct
import zlib
from typing import Any, NamedTuple

MAGIC = b"PMEMREC\0"
VERSION = 1

HEADER = struct.Struct("<8sIIQII")
CHECKSUM = struct.Struct("<I")  # behind the head of a check: zlib's crc32 of the records since the last one
CHECK_BYTES = 1 + CHECKSUM.size

ABOUT_BYTES_MAX = 1 << 20
DEVICE_BYTES_MAX = 1 << 62  # so that no sum of a decoder passes 63 bits


class Header(NamedTuple):
    """The header; crc32: of all of it but for this field, and of the JSON."""

    magic: bytes
    version: int
    page_bytes: int
    device_bytes: int
    about_bytes: int
    crc32: int


def pack_header(device_bytes: int, page_bytes: int, about: dict[str, Any]) -> bytes:
    """The header of a recording, and its JSON."""
    text = json.dumps(about, separators=(",", ":")).encode()
    fields = (MAGIC, VERSION, page_bytes, device_bytes, len(text))
    return HEADER.pack(*fields, header_checksum(HEADER.pack(*fields, 0), text)) + text


def header_checksum(packed: bytes, text: bytes) -> int:
    """The checksum of a packed header and its JSON."""
    return zlib.crc32(text, zlib.crc32(packed[: -CHECKSUM.size]))
