# SPDX-License-Identifier: MIT
"""The file `conversion` of an image: its descriptors as they are to be, while the medium does not have all of them.

A head of 4096 bytes, then a record for each descriptor page (reshape.gather) that says something: which one it is, and
its 4096 bytes.  The head is written last, with a checksum of all records, so a file that is not finished is none.
"""

import contextlib
import os
import uuid as uuid_
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import layout
from ..errors import DamagedImage
from ..host import host_errors, sync_folder

NAME = "conversion"
SIGNATURE = b"PMEM_NBD_CONVERT"
HEAD_BYTES = 4096
HEAD = np.dtype([("signature", "V16"), ("uuid", "V16"), ("count", "<i8"), ("descriptor_bytes", "<i8"), ("crc", "<u4")])
RECORD = np.dtype([("number", "<i8"), ("descriptors", "u1", (layout.PAGE_BYTES,))])
CHUNK = 4096  # records at a time: 16 MiB


class Writer:
    """The file, being written."""

    def __init__(self, image: Path, uuid: str, descriptor_bytes: int) -> None:
        self.path, self._uuid, self._bytes = image / NAME, uuid, descriptor_bytes
        self._crc = self._count = 0
        with host_errors(self.path):
            self._file = self.path.open("wb")
            self._file.seek(HEAD_BYTES)

    def append(self, numbers: np.ndarray, pages: np.ndarray) -> None:
        """Add descriptor pages: int64[n] and uint8[4096 * n].  HostFull, HostError."""
        records = np.empty(len(numbers), RECORD)
        records["number"], records["descriptors"] = numbers, pages.reshape(-1, layout.PAGE_BYTES)
        data = records.tobytes()
        self._crc, self._count = zlib.crc32(data, self._crc), self._count + len(numbers)
        with host_errors(self.path):
            self._file.write(data)

    def finish(self) -> None:
        """Make it durable."""
        head = np.zeros((), HEAD)
        head["signature"], head["uuid"] = SIGNATURE, uuid_.UUID(self._uuid).bytes
        head["count"], head["descriptor_bytes"], head["crc"] = self._count, self._bytes, self._crc
        with host_errors(self.path):
            self._file.seek(0)
            self._file.write(head.tobytes().ljust(HEAD_BYTES, b"\0"))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(OSError):  # what it could not write it tries again
            self._file.close()
        remove(self.path.parent)


def remove(image: Path) -> None:
    """Remove the file of the image at `image`, if there is one."""
    with host_errors(image):
        (image / NAME).unlink(missing_ok=True)
        sync_folder(image)


class Saved:
    """The file, read.

    held, known: a bit for each page of `page_count` that holds data, and that has a descriptor; says: a bit for each
    descriptor page that says something (uint8[] all three).
    """

    def __init__(self, image: Path, uuid: str, descriptor_bytes: int, page_count: int) -> None:
        self._path, self._bytes = image / NAME, descriptor_bytes
        each = layout.PAGE_BYTES // descriptor_bytes
        self.held, self.known = (np.zeros((page_count >> 3) + 1, np.uint8) for _ in range(2))
        self.says = np.zeros((page_count // each >> 3) + 1, np.uint8)
        with host_errors(self._path), self._path.open("rb") as file:
            head = np.frombuffer(file.read(HEAD_BYTES).ljust(HEAD.itemsize, b"\0")[: HEAD.itemsize], HEAD)[0]
        self.count = int(head["count"])
        wanted = (SIGNATURE, uuid_.UUID(uuid).bytes, descriptor_bytes)
        if (bytes(head["signature"]), bytes(head["uuid"]), int(head["descriptor_bytes"])) != wanted:
            raise DamagedImage(self._path, "it is not of this conversion", "the one that was begun")
        crc = 0
        for _, records in self.chunks():
            crc = zlib.crc32(records.tobytes(), crc)
            self._note(records, each)
        if crc != int(head["crc"]):
            raise DamagedImage(self._path, "it fails its checksum", "the descriptors of this image")

    def chunks(self, at: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Records from number `at` on, a chunk at a time: the first one's number, and RECORD[]."""
        with host_errors(self._path), self._path.open("rb") as file:
            file.seek(HEAD_BYTES + at * RECORD.itemsize)
            while at < self.count:
                records = np.fromfile(file, RECORD, min(CHUNK, self.count - at))
                if not len(records):
                    raise DamagedImage(self._path, "it is cut short", f"{self.count} records")
                yield at, records
                at += len(records)

    def _note(self, records: np.ndarray, each: int) -> None:
        numbers = records["number"]
        words = np.ascontiguousarray(records["descriptors"]).view("<u4").reshape(len(records), each, -1)
        pages = numbers[:, None] * each + np.arange(each)
        _set(self.says, numbers)
        _set(self.known, pages[words.any(axis=2)])
        _set(self.held, pages[words[:, :, 2] & layout.PG_UPTODATE != 0])

    def sections(self, count: int, section_pages: int) -> np.ndarray:
        """The bytes of `count` sections of so many pages: TOUCHED where a page is known."""
        touched = np.add.reduceat(self.known != 0, np.arange(0, len(self.known), section_pages >> 3))[:count]
        return np.where(touched, layout.SECTION_TOUCHED, 0).astype(np.uint8)


def _set(bits: np.ndarray, at: np.ndarray) -> None:
    np.bitwise_or.at(bits, at >> 3, (1 << (at & 7)).astype(np.uint8))
