# SPDX-License-Identifier: MIT
"""A second reader of images, written from docs/media-format.md alone: it shares no code with pmem_core.

Slow and plain on purpose.  It reads an image that was closed: files only, no server, no journal.
"""

import json
import struct
from pathlib import Path

PAGE = 4096
INFO_COPIES = (0, 4096)
FRAMES_AT = 8192
ALIGN = 2 << 20
BARE = ("none", "ram")  # placements without descriptors on the medium
UPTODATE, ERROR, RESERVED, BUDDY = 1 << 3, 1 << 1, 1 << 2, 1 << 4

# name: (offset, struct format)
INFO_FIELDS = {
    "signature": (0, "16s"),
    "uuid": (16, "16s"),
    "version_major": (52, "H"),
    "version_minor": (54, "H"),
    "dataoff": (56, "Q"),
    "npfns": (64, "Q"),
    "mode": (72, "I"),
    "align": (84, "I"),
    "page_size": (88, "I"),
    "page_struct_size": (92, "H"),
    "extension": (1024, "16s"),
    "extension_version": (1040, "I"),
    "features_incompatible": (1052, "I"),
    "generation": (1056, "Q"),
    "medium_bytes": (1064, "Q"),
    "frame_bytes": (1080, "I"),
    "line_bytes": (1084, "I"),
    "descriptor_bytes": (1088, "I"),
    "descriptor_format": (1092, "H"),
    "checksums": (1096, "I"),
    "placement": (1104, "32s"),
    "leveling": (1136, "32s"),
    "parameters": (1168, "1024s"),
    "initialise": (2192, "H"),
    "initialised": (2194, "H"),
    "checksum": (4088, "Q"),
}


def fletcher64(block: bytes) -> int:
    """Two sums modulo 2**32 over little-endian 32-bit words; the second is the sum of the first's values."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", block):
        low = (low + word) % 2**32
        high = (high + low) % 2**32
    return high * 2**32 + low


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc_register(register: int, data: bytes) -> int:
    """Run the CRC-32C register over `data`, with no inversion before or after."""
    for byte in data:
        register = register >> 8 ^ CRC_TABLE[(register ^ byte) & 255]
    return register


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data` as RFC 3720 has it."""
    return crc_register(0xFFFFFFFF, data) ^ 0xFFFFFFFF


def parse_info(block: bytes) -> dict | None:
    """The fields of an info block, or None where it is not a valid one."""
    info = {name: struct.unpack_from("<" + form, block, at)[0] for name, (at, form) in INFO_FIELDS.items()}
    if (
        info["signature"] not in (b"NVDIMM_PFN_INFO\0", b"PMEM_NBD_INFO\0\0\0")
        or info["extension"] != b"PMEM_NBD_DEVICE\0"
    ):
        return None
    if fletcher64(block[:4088] + bytes(8)) != info["checksum"]:
        return None
    for name in ("placement", "leveling", "parameters"):
        info[name] = info[name].rstrip(b"\0").decode()
    info["parameters"] = json.loads(info["parameters"])
    return info


def read_info(media: Path) -> dict:
    """The newer of the two valid info blocks of a medium."""
    with media.open("rb") as file:
        start = file.read(FRAMES_AT)
    copies = [parse_info(start[at : at + 4096]) for at in INFO_COPIES]
    return max((info for info in copies if info), key=lambda info: info["generation"])


class StartGap:
    """Where frames are, from the words that the state file has."""

    def __init__(self, parameters: dict, state: bytes, state_at: int) -> None:
        self.region = parameters["region_frames"]
        self.gap = parameters["gap_frames"]
        words = struct.unpack_from("<11q", state, state_at)
        self.frames, _, _, self.whole, self.last, _, self.randomize, self.half_bits = words[:8]
        self.keys = words[8:]
        regions = self.whole + (self.last > 0)
        self.table = struct.unpack_from(f"<{regions}q", state, 8192)

    def _permuted(self, frame: int) -> int:
        mask = (1 << self.half_bits) - 1
        while True:
            left, right = frame >> self.half_bits, frame & mask
            for key in self.keys:
                left, right = right, left ^ ((right ^ key) * 0x45D9F3B >> 16 & mask)
            frame = left << self.half_bits | right
            if frame < self.frames:
                return frame

    def medium_frame(self, frame: int) -> int:
        if self.randomize:
            frame = self._permuted(frame)
        region, x = divmod(frame, self.region)
        size = self.region if region < self.whole else self.last
        gap, turned = self.table[region] >> 32, self.table[region] & 0xFFFFFFFF
        position = (gap + self.gap + (x + turned) % size) % (size + self.gap)
        return region * (self.region + self.gap) + position


class Reader:
    """An image, closed, as its files have it."""

    def __init__(self, folder: Path, formats: tuple[int, ...] = (1, 2)) -> None:
        self.info = read_info(folder / "media")
        assert self.info["descriptor_format"] in formats, f"descriptor format {self.info['descriptor_format']}"
        assert not self.info["features_incompatible"], "features that it does not know"
        self.media = (folder / "media").read_bytes()
        self.bytes = self.info["descriptor_bytes"]
        self.per_page = PAGE // self.bytes
        self.frame = self.info["frame_bytes"]
        self.start_gap = None
        if self.info["leveling"] == "start_gap":
            # The core record is at 4096; tally, intent, unit and the placement's state come before the leveling's.
            at = 4096 + 160 + 64 + 64 + (8 if self.info["placement"] in BARE else 16)
            state = (folder / "state").read_bytes()
            self.start_gap = StartGap(self.info["parameters"]["leveling"], state, at)

    @property
    def pages(self) -> int:
        return self.info["npfns"]

    def placed_page(self, page: int) -> int:
        """The placed address of a page."""
        if self.info["placement"] == "interleaved":
            return PAGE * (page + page // self.per_page + 1)
        if self.info["placement"] in ("linear", "ram"):
            return self.info["dataoff"] - FRAMES_AT + PAGE * page
        return PAGE * page

    def placed_descriptor(self, page: int) -> int | None:
        """The placed address of a page's descriptor."""
        if self.info["placement"] == "interleaved":
            group, index = divmod(page, self.per_page)
            return PAGE * group * (self.per_page + 1) + self.bytes * index
        return self.bytes * page if self.info["placement"] == "linear" else None

    def address(self, placed: int) -> int:
        """Where a placed byte is on the medium."""
        if self.start_gap is None:
            return FRAMES_AT + placed
        frame, within = divmod(placed, self.frame)
        return FRAMES_AT + self.frame * self.start_gap.medium_frame(frame) + within

    def placed_bytes(self, placed: int, count: int) -> bytes:
        """`count` bytes at a placed address, gathered frame by frame."""
        found = b""
        while len(found) < count:
            here = placed + len(found)
            size = min(count - len(found), self.frame - here % self.frame)
            at = self.address(here)
            found += self.media[at : at + size]
        return found

    def descriptor(self, page: int) -> dict | None:
        """The descriptor of a page, checked; None where it was never written or there are none."""
        at = self.placed_descriptor(page)
        data = bytes(self.bytes) if at is None else self.placed_bytes(at, self.bytes)
        if not any(data):
            return None
        names = ("checksum", "data_checksum", "flags", "writes", "generation", "refcount", "mapcount", "index", "order")
        values = struct.unpack_from("<IIIIQiiQB", data.ljust(64, b"\0"))
        fields = dict(zip(names, values, strict=True))
        if self.info["descriptor_format"] == 2:
            more = ("data_lines", "descriptor_lines", "session", "first_generation")
            fields |= zip(more, struct.unpack_from("<QQQQ", data, 64), strict=True)
        if crc_register(page & 0xFFFFFFFF, bytes(4) + data[4:]) != fields["checksum"]:
            assert self.info["initialise"] and self._says_nothing(page, fields, data), f"descriptor of page {page}"
            return None
        return fields

    def _says_nothing(self, page: int, fields: dict, data: bytes) -> bool:
        """A free descriptor or head that was stored by half."""
        zeros = ("data_checksum", "writes", "generation", "refcount", "mapcount")
        return (
            not any(fields[name] for name in zeros)
            and not fields["flags"] & ~(RESERVED | BUDDY)
            and fields["index"] in (0, page)
            and fields["order"] <= 34
            and not any(data[41:])
        )

    def groups(self) -> list[tuple[int, int]]:
        """First page and end of what covers the device: runs of pages with descriptors, and free groups; in order."""
        found, page = [], 0
        while page < self.pages:
            fields = self.descriptor(page)
            assert fields is not None, f"page {page} has neither a descriptor nor a head"
            size = 2 ** fields["order"] if fields["flags"] & BUDDY else 1
            assert page % size == 0
            for inner in range(page + 1, min(page + size, self.pages)):
                assert self.descriptor(inner) is None, f"page {inner} lies in the group of page {page}"
            found.append((page, page + size))
            page += size
        return found

    def page(self, page: int) -> bytes:
        """The 4096 bytes of a page as a client reads them."""
        data = self.placed_bytes(self.placed_page(page), PAGE)
        if self.info["placement"] in BARE:
            return data
        fields = self.descriptor(page)
        if fields is None or not fields["flags"] & UPTODATE:
            return bytes(PAGE)
        assert not fields["flags"] & ERROR, f"page {page} is marked as damaged"
        assert not self.info["checksums"] or crc32c(data) == fields["data_checksum"], f"data of page {page}"
        return data

    def content(self) -> bytes:
        """All of the device."""
        return b"".join(self.page(page) for page in range(self.pages))
