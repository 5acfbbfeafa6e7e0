# SPDX-License-Identifier: MIT
"""Recorded workloads: docs/traces.md.

``recorded`` is a device whose requests are recorded, ``writer`` appends to a recording, ``record`` is its format.  A
format that can be read is one module: ``recording`` (our own), ``fio``, ``blkparse``; ``trace`` is what they share, and
``summary`` says what is in one.  Whoever wants the requests of a file needs what is named here:

    with open_trace(path) as trace:
        for requests in trace:      # REQUEST[], at most CHUNK of them
            ...
"""

from pathlib import Path

from pmem_core.errors import BadTrace, UsageError
from pmem_core.tracescan import DRAIN, FLUSH, REQUEST, TRIM, WRITE, ZERO, ZERO_KEEP

from . import blkparse, fio, recording
from .trace import CHUNK, KINDS, Trace, head_of

__all__ = [
    "CHUNK",
    "DRAIN",
    "FLUSH",
    "FORMATS",
    "KINDS",
    "REQUEST",
    "TRIM",
    "WRITE",
    "ZERO",
    "ZERO_KEEP",
    "Trace",
    "open_trace",
]

FORMATS: dict[str, type[Trace]] = {one.format: one for one in (recording.Recording, fio.FioLog, blkparse.BlkparseText)}


def open_trace(path: Path, format: str | None = None) -> Trace:
    """Open a trace; its format is found by looking at it, unless it is named.  BadTrace, HostError, UsageError."""
    if format is not None:
        if format not in FORMATS:
            raise UsageError(format, "is no format of traces", ", ".join(FORMATS))
        return FORMATS[format](path)
    head = head_of(path)
    for one in FORMATS.values():
        if one.recognises(head):
            return one(path)
    raise BadTrace(path, "is no trace", "a recording of ours, an iolog of fio's, or what blkparse prints")
