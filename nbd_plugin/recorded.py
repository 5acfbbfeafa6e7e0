# SPDX-License-Identifier: MIT
"""A server that records its requests (record=FILE): the device it serves."""

import contextlib
import sys
from pathlib import Path

from pmem_core.traces import record
from pmem_core.traces.recorded import RecordedDevice

VERSION = record.VERSION


def open_device(image: Path, path: str) -> RecordedDevice:
    """Open the image, and begin the recording."""
    return RecordedDevice(image, Path(path), tell=_tell)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: no reason for a request to fail
        print(f"pmem-nbd: {line}", file=sys.stderr, flush=True)
