# SPDX-License-Identifier: MIT
"""What is in a trace: requests and bytes by kind, how large they are, how many pages they write."""

from typing import Any

import numpy as np

from pmem_core import tracescan
from pmem_core.layout import PAGE_BYTES

from .trace import KINDS, Trace

SIZES = 63  # sizes are counted by the power of two that holds them
PAGES_MAX = 1 << 33  # a bit each: 1 GiB, of which the host gives what is touched


class Summary:
    """Counts over chunks of requests.  end: behind the last byte that any of them touches."""

    def __init__(self) -> None:
        self.end = 0
        self.pages: int | None = 0  # distinct pages written; None: too far apart to be counted
        self._bits = np.zeros(1 << 16, np.uint8)
        self._counts = np.zeros((len(KINDS) + 1, SIZES + 1), np.int64)  # by kind and power
        self._bytes = np.zeros(len(KINDS) + 1, np.int64)

    def add(self, requests: np.ndarray) -> None:
        """Count these too."""
        kinds, counts = requests["kind"], requests["count"]
        self.end = max(self.end, int((requests["offset"] + counts).max(initial=0)))
        powers = np.searchsorted(1 << np.arange(SIZES), counts)
        np.add.at(self._counts, (kinds, powers), 1)
        np.add.at(self._bytes, kinds, counts)
        pages = -(-self.end // PAGE_BYTES)
        if self.pages is not None and pages > PAGES_MAX:
            self.pages = None
        if self.pages is not None:
            if pages > 8 * len(self._bits):
                grown = np.zeros(max(2 * len(self._bits), -(-pages // 8)), np.uint8)
                grown[: len(self._bits)] = self._bits
                self._bits = grown
            self.pages += int(tracescan.touch_pages(requests, self._bits))

    def kinds(self) -> dict[str, dict[str, int]]:
        """Requests and bytes of each kind, by name."""
        totals = self._counts.sum(axis=1)
        return {name: {"count": int(totals[kind]), "bytes": int(self._bytes[kind])} for kind, name in KINDS.items()}

    def sizes(self) -> dict[str, dict[int, int]]:
        """How many requests of each kind have at most so many bytes, and more than half as many."""
        return {
            name: {1 << int(power): int(self._counts[kind, power]) for power in np.flatnonzero(self._counts[kind])}
            for kind, name in KINDS.items()
            if kind < tracescan.FLUSH
        }


def describe(trace: Trace, summary: Summary) -> dict[str, Any]:
    """All that is known of a trace gone through, ready for JSON."""
    return {
        "trace": str(trace.path),
        "format": trace.format,
        "size_bytes": trace.size_bytes,
        "device_bytes": trace.device_bytes,
        "header": trace.header,
        "requests": sum(kind["count"] for kind in summary.kinds().values()),
        "kinds": summary.kinds(),
        "sizes": summary.sizes(),
        "written_pages": summary.pages,
        "end": summary.end,
        "seen": dict(trace.seen),
        "whole": trace.whole,
        "torn_bytes": trace.torn_bytes,
    }
