# SPDX-License-Identifier: MIT
"""What the descriptor of one page says, from outside: the image may be served meanwhile, and nothing is written."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from . import checkscan, descriptor, host, layout, snapshot, upkeep
from .binding import Handle, bind
from .errors import UnsupportedImage, UsageError
from .snapshot import Look

TRIES = 16  # a served descriptor may be read while it is stored
STATUS = {descriptor.EMPTY: "never written", descriptor.DAMAGED: "fails its checksum"}


def look_at_page(path: Path, page: int) -> dict[str, Any]:
    """The descriptor of `page` of the image at `path`, ready for JSON; addresses are bytes into the file `media`.

    Errors: UsageError (no such page), UnsupportedImage (no descriptors), and those of snapshot.look.
    """
    found = snapshot.look(path)
    plan, info = found.plan, found.plan.info
    if page >= info.page_count:
        raise UsageError(f"page {page}", "beyond the device", f"0 to {info.page_count - 1}")
    if not plan.has_descriptors:
        raise UnsupportedImage(path, f"placement {info.placement} has no descriptors", "interleaved or linear")
    run = found.handle()[0]
    scratch = np.zeros(4 * layout.PAGE_BYTES, np.uint8)
    run["scratch"] = scratch.ctypes.data
    handle = bind(run, found.core.copy(), plan)
    for _ in range(TRIES):
        data, pending = _read(path, found, handle, page)
        scratch[: len(data)] = np.frombuffer(data, np.uint8)
        status = int(descriptor.status(run[0], page))
        if status != descriptor.DAMAGED or found.session != "served":
            break
    return {
        "path": str(path),
        "page": page,
        "offset": page * layout.PAGE_BYTES,
        "data_at": int(checkscan.page_offset(handle, page)),
        "descriptor_at": int(checkscan.descriptor_offset(handle, page)),
        "descriptor_bytes": info.descriptor_bytes,
        "descriptor_format": info.descriptor_format,
        "pending": pending,
        "status": STATUS.get(status) or _meaning(scratch),
        "descriptor": None if status == descriptor.EMPTY else _fields(data, info.descriptor_format),
    }


def _meaning(scratch: np.ndarray) -> str:
    flags = int(scratch.view("<u4")[descriptor.FLAGS])
    if flags & layout.PG_ERROR:
        return "damaged"
    return "holds data" if flags & layout.PG_UPTODATE else "free"


def _read(path: Path, found: Look, handle: Handle, page: int) -> tuple[bytes, bool]:
    """The bytes of a descriptor, and whether they are not on the medium yet."""
    plan, info = found.plan, found.plan.info
    if plan.pending_bytes and found.session != "power cut":
        at, size = plan.zones()["pending"]
        size //= layout.PENDING_SLOTS
        with host.host_errors(path / "state"), (path / "state").open("rb") as file:
            slot = os.pread(file.fileno(), size, at + size * (page % layout.PENDING_SLOTS))
        if int.from_bytes(slot[:8], "little") == page + 1:
            return slot[8 * layout.PENDING_HEAD_WORDS :], True
    placed, parts = int(checkscan.descriptor_address(handle, page)), []
    with host.host_errors(path / "media"), (path / "media").open("rb") as file:
        for at in range(placed, placed + info.descriptor_bytes, min(info.descriptor_bytes, info.frame_bytes)):
            size = min(info.descriptor_bytes, info.frame_bytes)
            parts.append(os.pread(file.fileno(), size, int(upkeep.medium_address(handle, at))))
    return b"".join(parts), False


def _fields(data: bytes, of_format: int) -> dict[str, int]:
    """The fields of a descriptor, as many as fit into its bytes."""
    kind = layout.DESCRIPTOR_2 if of_format == 2 else layout.DESCRIPTOR
    record = np.frombuffer(data.ljust(kind.itemsize, b"\0")[: kind.itemsize], kind)[0]
    fits = [name for name in kind.names or () if kind.fields and kind.fields[name][1] < len(data)]
    return {name: int(record[name]) for name in fits}
