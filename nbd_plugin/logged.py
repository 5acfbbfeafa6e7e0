# SPDX-License-Identifier: MIT
"""The callbacks of a server that logs its writes (logwrites=FILE), in place of pmem.py's of the same names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbdkit

from nbd_plugin import pace
from nbd_plugin.faults import may_trim, reported
from pmem_core.device import Device
from pmem_core.errors import UsageError
from pmem_core.layout import PAGE_BYTES
from pmem_core.logwrites import record
from pmem_core.logwrites.logged import LoggedDevice

VERSION = record.VERSION

_device: LoggedDevice
_open: Callable[..., Any]
_has_descriptors: bool


def begin(device: Device, path: str, open_unlogged: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Begin a log of `device`, and return the callbacks that keep it; open_unlogged: the one without a log."""
    global _device, _open, _has_descriptors
    _device, _open, _has_descriptors = LoggedDevice(device, Path(path)), open_unlogged, device.plan.has_descriptors
    return {
        "open": open_,
        "block_size": block_size,
        "pwrite": pwrite,
        "flush": flush,
        "trim": trim,
        "zero": zero,
    }


def end() -> None:
    """The device is closed, and so all of it durable."""
    if "_device" in globals():
        _device.close()


@reported
def open_(readonly):
    try:
        name = nbdkit.export_name()
    except UnicodeDecodeError as error:  # which has the bytes; nbdkit gives Python a str or nothing
        if error.object.startswith(record.MARK_PREFIX.encode()):
            raise UsageError("mark", "is not UTF-8", "a text that is") from error
        name = ""
    if name.startswith(record.MARK_PREFIX):
        _device.mark(name.removeprefix(record.MARK_PREFIX))
    return _open(readonly)


def block_size(h):
    return (record.SECTOR_BYTES, PAGE_BYTES, 32 << 20)


@reported
def pwrite(h, buf, offset, flags):
    pace.look(len(buf))
    _device.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@reported
def flush(h, flags):
    _device.flush()


@reported
def trim(h, count, offset, flags):
    _device.trim(count, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@reported
def zero(h, count, offset, flags):
    trims = may_trim(flags, _has_descriptors)
    _device.zero(count, offset, may_trim=trims, fua=bool(flags & nbdkit.FLAG_FUA))
