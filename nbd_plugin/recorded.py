# SPDX-License-Identifier: MIT
"""A server that records its requests (record=FILE): its device, and the one callback that would go past it."""

import contextlib
import sys
from pathlib import Path

import nbdkit

from nbd_plugin.faults import reported
from pmem_core.traces import record
from pmem_core.traces.recorded import RecordedDevice

VERSION = record.VERSION

_device: RecordedDevice


def open_device(image: Path, path: str) -> RecordedDevice:
    """Open the image, and begin the recording."""
    global _device
    _device = RecordedDevice(image, Path(path), tell=_tell)
    return _device


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: no reason for a request to fail
        print(f"pmem-nbd: {line}", file=sys.stderr, flush=True)


@reported
def pwrite(h, buf, offset, flags):
    _device.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))
