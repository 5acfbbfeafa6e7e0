# SPDX-License-Identifier: MIT
"""The info block: read, judged, written.  Its bytes are declared in layout.INFO.

Two copies; each is written whole and synced before the other is begun, and the valid one with the larger generation
wins, so a torn write costs nothing.
"""

import dataclasses
import json
import os
import uuid as uuid_
from pathlib import Path
from typing import Any

import numpy as np

from . import layout
from .errors import DamagedImage, NotAnImage, UnsupportedImage


@dataclasses.dataclass(frozen=True)
class Info:
    """What an image is, as created.  Sizes in bytes; `parameters` as {"placement": {...}, "leveling": {...}}."""

    uuid: str
    size: int
    placement: str
    leveling: str
    parameters: dict[str, dict[str, int]]
    descriptor_bytes: int
    descriptor_writes: str
    checksums: bool
    frame_bytes: int
    line_bytes: int
    section_pages: int
    page_count: int
    data_at: int
    created: int
    linux: bool
    in_memory: bool = False  # descriptors are kept in memory: Linux's mode
    generation: int = 1
    descriptor_format: int = 1
    converting: bool = False
    initialise: str = "zeros"
    initialised: bool = False


def pack(info: Info) -> bytes:
    """The block of `info`, 4096 bytes."""
    block = np.zeros((), layout.INFO)
    block["signature"] = layout.LINUX_SIGNATURE if info.linux else layout.OUR_SIGNATURE
    block["uuid"] = uuid_.UUID(info.uuid).bytes
    block["version_major"], block["version_minor"] = layout.VERSION
    block["dataoff"] = info.data_at
    block["npfns"] = info.page_count
    block["mode"] = layout.MODE_RAM if info.in_memory else layout.MODE_PMEM
    block["align"] = 2 << 20 if info.linux else layout.PAGE_BYTES
    block["page_size"] = layout.PAGE_BYTES
    block["page_struct_size"] = info.descriptor_bytes
    block["extension"] = layout.EXTENSION_SIGNATURE
    block["extension_version"] = layout.EXTENSION_VERSION
    block["features_compatible"] = layout.FEATURES_COMPATIBLE
    block["features_read_only"] = (layout.FEATURE_INITIALISE if info.initialise != "zeros" else 0) | (
        layout.READ_ONLY_DESCRIPTOR_2 if info.descriptor_format == 2 else 0
    )
    block["features_incompatible"] = layout.INCOMPATIBLE_CONVERTING if info.converting else 0
    block["generation"] = info.generation
    block["medium_bytes"] = info.size
    block["created"] = info.created
    block["frame_bytes"] = info.frame_bytes
    block["line_bytes"] = info.line_bytes
    block["descriptor_bytes"] = info.descriptor_bytes
    block["descriptor_format"] = info.descriptor_format
    block["descriptor_writes"] = layout.DESCRIPTOR_WRITES[info.descriptor_writes]
    block["checksums"] = int(info.checksums)
    block["section_pages"] = info.section_pages
    block["placement"] = info.placement.encode()
    block["leveling"] = info.leveling.encode()
    block["parameters"] = json.dumps(info.parameters, sort_keys=True, separators=(",", ":")).encode()
    block["initialise"] = layout.INITIALISE[info.initialise]
    block["initialised"] = int(info.initialised)
    block["checksum"] = layout.fletcher64(block.tobytes())
    return block.tobytes()


def unpack(data: bytes) -> Info | None:
    """The info in a block of 4096 bytes, or None where signature or checksum are wrong."""
    if len(data) != layout.INFO_BYTES:
        return None
    block = np.frombuffer(data, layout.INFO)[0]
    signature = bytes(block["signature"])
    if signature not in (layout.LINUX_SIGNATURE, layout.OUR_SIGNATURE):
        return None
    if bytes(block["extension"]) != layout.EXTENSION_SIGNATURE:
        return None
    if layout.fletcher64(data[:-8] + bytes(8)) != int(block["checksum"]):
        return None
    try:
        return _info(block, signature == layout.LINUX_SIGNATURE)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None  # its parameters are no JSON of ours


def _info(block: Any, linux: bool) -> Info:
    names = {number: name for name, number in layout.DESCRIPTOR_WRITES.items()}
    strategies = {number: name for name, number in layout.INITIALISE.items()}
    return Info(
        uuid=str(uuid_.UUID(bytes=bytes(block["uuid"]))),
        size=int(block["medium_bytes"]),
        placement=bytes(block["placement"]).decode(errors="replace"),
        leveling=bytes(block["leveling"]).decode(errors="replace"),
        parameters=_parameters(bytes(block["parameters"])),
        descriptor_bytes=int(block["descriptor_bytes"]),
        descriptor_writes=names.get(int(block["descriptor_writes"]), "unknown"),
        checksums=bool(block["checksums"]),
        frame_bytes=int(block["frame_bytes"]),
        line_bytes=int(block["line_bytes"]),
        section_pages=int(block["section_pages"]),
        page_count=int(block["npfns"]),
        data_at=int(block["dataoff"]),
        created=int(block["created"]),
        linux=linux,
        in_memory=int(block["mode"]) == layout.MODE_RAM,
        generation=int(block["generation"]),
        descriptor_format=int(block["descriptor_format"]),
        converting=bool(int(block["features_incompatible"]) & layout.INCOMPATIBLE_CONVERTING),
        initialise=strategies.get(int(block["initialise"]), "unknown"),
        initialised=bool(block["initialised"]),
    )


def _parameters(data: bytes) -> dict[str, dict[str, int]]:
    found = json.loads(data)
    families = {family: dict(found[family]) if family in found else {} for family in ("placement", "leveling")}
    if any(type(value) is not int for given in families.values() for value in given.values()):
        raise ValueError("a parameter that is no whole number")
    return families


def judge(path: Path, data: bytes, *, read_only: bool, converting: bool = False) -> None:
    """Refuse a valid block of a version or with features that this program does not know: UnsupportedImage.

    And one whose conversion is under way, but for `converting`, who goes on with it.
    """
    block = np.frombuffer(data, layout.INFO)[0]
    version = (int(block["version_major"]), int(block["version_minor"]))
    known = f"{layout.VERSION[0]}.{layout.VERSION[1]}, extension {layout.EXTENSION_VERSION}"
    if version != layout.VERSION or int(block["extension_version"]) != layout.EXTENSION_VERSION:
        found = f"{version[0]}.{version[1]}, extension {int(block['extension_version'])}"
        raise UnsupportedImage(path, f"format {found}", f"{known}; use a newer pmem-nbd")
    if int(block["descriptor_format"]) not in layout.DESCRIPTOR_FORMATS:
        formats = " or ".join(map(str, layout.DESCRIPTOR_FORMATS))
        raise UnsupportedImage(path, f"descriptor format {int(block['descriptor_format'])}", f"format {formats}")
    strange = int(block["features_incompatible"]) & ~layout.FEATURES_INCOMPATIBLE
    if strange:
        raise UnsupportedImage(path, f"unknown incompatible features {strange:#x}", "use a newer pmem-nbd")
    strange = int(block["features_read_only"]) & ~layout.FEATURES_READ_ONLY
    if strange and not read_only:
        raise UnsupportedImage(path, f"unknown features {strange:#x}", "open it read-only, or use a newer pmem-nbd")
    if int(block["features_incompatible"]) & layout.INCOMPATIBLE_CONVERTING and not converting:
        image = path.parent
        raise UnsupportedImage(image, "a conversion is under way", f"finish it with 'pmem-nbd convert {image}'")


def read(media: Path, *, read_only: bool = True, converting: bool = False) -> Info:
    """The newest valid info block of the medium at `media`.

    Errors: NotAnImage (another program's file), DamagedImage (both copies are torn), UnsupportedImage.
    """
    with media.open("rb") as file:
        blocks = [os.pread(file.fileno(), layout.INFO_BYTES, offset) for offset in layout.INFO_OFFSETS]
    valid = [(info, block) for info, block in ((unpack(block), block) for block in blocks) if info]
    if not valid:
        ours = any(layout.EXTENSION_SIGNATURE in block for block in blocks)
        if ours:
            raise DamagedImage(media, "both info blocks fail their checksums", "one that is whole")
        raise NotAnImage(media, "no info block", "a medium made by 'pmem-nbd create'")
    info, block = max(valid, key=lambda pair: pair[0].generation)
    judge(media, block, read_only=read_only, converting=converting)
    return info


def write(media: Path, info: Info, copies: tuple[int, ...] = (0, 1)) -> None:
    """Write the copies of `info`, one durable before the next is begun."""
    block = pack(info)
    with media.open("r+b") as file:
        for copy in copies:
            os.pwrite(file.fileno(), block, layout.INFO_OFFSETS[copy])
            os.fdatasync(file.fileno())
