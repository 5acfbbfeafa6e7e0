# SPDX-License-Identifier: MIT
"""Our own traces, as `serve --record` makes them."""

import json
import os
import zlib
from collections.abc import Iterator

import numpy as np

from pmem_core import tracescan
from pmem_core.errors import BadTrace
from pmem_core.layout import PAGE_BYTES
from pmem_core.tracescan import REQUEST

from . import record
from .trace import BLOCK_BYTES, CHUNK, Trace


class Recording(Trace):
    """A recording.  whole: it has the mark of a clean end; seen: "fua", flushes that a write with FUA brought along."""

    format = "recording"

    @staticmethod
    def recognises(head: bytes) -> bool:
        return head.startswith(record.MAGIC)

    def _begin(self) -> None:
        packed = self._file.read(record.HEADER.size)
        if len(packed) < record.HEADER.size or not packed.startswith(record.MAGIC):
            raise BadTrace(self.path, "is no recording", "a file that serve --record has made")
        header = record.Header(*record.HEADER.unpack(packed))
        if header.version != record.VERSION:
            raise BadTrace(self.path, f"is a recording of version {header.version}", f"version {record.VERSION}")
        text = self._file.read(min(header.about_bytes, record.ABOUT_BYTES_MAX + 1))
        if len(text) != header.about_bytes or record.header_checksum(packed, text) != header.crc32:
            raise BadTrace(self.path, "its header is damaged", f"checksum {header.crc32:#010x}")
        if header.page_bytes != PAGE_BYTES or header.device_bytes >= record.DEVICE_BYTES_MAX:
            what = f"{header.device_bytes} bytes in pages of {header.page_bytes}"
            raise BadTrace(self.path, f"is of a device of {what}", f"pages of {PAGE_BYTES}")
        self.device_bytes, self.header = header.device_bytes, json.loads(text)
        self._records_at = record.HEADER.size + len(text)

    def _chunks(self) -> Iterator[np.ndarray]:
        self._file.seek(self._records_at)
        self.position, self.whole, self._checksum = self._records_at, False, 0
        state = np.zeros(tracescan.STATE_WORDS, np.int64)
        rest = b""
        while block := self._file.read(BLOCK_BYTES):
            raw = rest + block
            at = 0
            while at < len(raw):
                if self.whole:
                    raise BadTrace(self.path, f"byte {self.position}: there is more behind its end", "nothing")
                requests = np.empty(CHUNK, REQUEST)
                stop = int(
                    tracescan.decode(np.frombuffer(raw, np.uint8), at, len(raw), self.device_bytes, state, requests)
                )
                self._checksum = zlib.crc32(memoryview(raw)[at:stop], self._checksum)
                self.position += stop - at
                at = stop
                self.seen["fua"] = int(state[tracescan.FUAS])
                if state[tracescan.FILLED]:
                    yield requests[: state[tracescan.FILLED]]
                if state[tracescan.STATUS] == tracescan.CHECK_DUE and len(raw) - at >= record.CHECK_BYTES:
                    self._check(raw[at : at + record.CHECK_BYTES])
                    at += record.CHECK_BYTES
                    self.position += record.CHECK_BYTES
                elif state[tracescan.STATUS] == tracescan.BAD:
                    self._end_in_zeros(raw[at:])
                    return
                elif state[tracescan.STATUS] != tracescan.GOES_ON:
                    break
            rest = raw[at:]
        self._tear(len(rest))

    def _check(self, raw: bytes) -> None:
        if record.CHECKSUM.unpack_from(raw, 1)[0] != self._checksum:
            what = f"byte {self.position}: the records before it do not have its checksum"
            raise BadTrace(self.path, what, f"checksum {self._checksum:#010x}")
        self._checksum = 0
        self.whole = bool(raw[0] & tracescan.LAST)

    def _end_in_zeros(self, raw: bytes) -> None:
        """What makes no sense is all right where it is zeros up to the end, which a power cut may leave."""
        at, torn = self.position, 0
        while raw:
            if raw.count(0) != len(raw):
                raise BadTrace(self.path, f"byte {at}: there is no such record", "one of a recording")
            torn += len(raw)
            raw = self._file.read(BLOCK_BYTES)
        self._tear(torn)

    def _tear(self, torn: int) -> None:
        self.torn_bytes = torn
        if torn:
            self.position, self.whole = os.fstat(self._file.fileno()).st_size, False
