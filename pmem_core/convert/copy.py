# SPDX-License-Identifier: MIT
"""A conversion into a new image: the data is written to it as a client would, and read again.

The new image has the old one's policies and parameters, descriptors of another size or format, and, if that is asked
for, another size; its wear begins with these writes.  It appears whole or not at all.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import geometry, host, image, layout
from ..device import Device
from ..errors import BadData, DoesNotFit, PmemError, UnsupportedImage
from . import filesystems
from .steps import require_settled, require_whole, shape

CHUNK_BYTES = 4 << 20


def convert_into(
    path: Path,
    output: Path,
    descriptor_bytes: int,
    descriptor_format: int | None = None,
    *,
    size: int | None = None,
    watch: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Write what the image at `path` holds into a new image `output`; a summary, for JSON.

    size: of the new medium, in bytes; None: that of the old one.  The old image is not changed.  Errors as for
    run.convert; UsageError where `output` exists.
    """
    started = time.monotonic()
    image.require_new(output)
    source = Device(path, read_only=True)
    try:
        info = source.plan.info
        if source.recovery:
            raise UnsupportedImage(path, "it was not closed properly", f"'pmem-nbd check --repair {path}' first")
        if not source.plan.has_descriptors:
            raise UnsupportedImage(
                path, f"placement {info.placement} has no descriptors on the medium", "interleaved or linear"
            )
        require_settled(source)
        require_whole(source, [], 0)
        plan = geometry.plan(
            size or info.size,
            placement_name=info.placement,
            leveling_name=info.leveling,
            parameters=info.parameters["leveling"],
            descriptor_bytes=descriptor_bytes,
            descriptor_format=descriptor_format,
            descriptor_writes=info.descriptor_writes,
            checksums=info.checksums,
            frame_bytes=info.frame_bytes,
            line_bytes=info.line_bytes,
            initialise=info.initialise,
        )
        filesystems.require_room(source, plan.device_bytes)
        with host.host_errors(output), image.work_folder(output, "converting") as work:
            with _named(output, work):
                with host.host_errors(work):
                    image.fill(work, plan)
                with Device(work) as target:
                    held = _copy(source, target, watch)
            image.put_in_place(work, output)
    finally:
        source.abandon()
    return {
        "path": str(path),
        "output": str(output),
        "from": shape(info),
        "to": shape(plan.info),
        "changed": True,
        "device_bytes_before": source.plan.device_bytes,
        "device_bytes": plan.device_bytes,
        "pages_with_data": held,
        "seconds": round(time.monotonic() - started, 3),
    }


@contextlib.contextmanager
def _named(output: Path, work: Path) -> Iterator[None]:
    """Let errors name `output`: nobody knows the folder it is made in."""
    try:
        yield
    except PmemError as error:
        parts = (part.replace(str(work), str(output)) for part in (error.subject, error.what, error.expected))
        raise type(error)(*parts) from error


def _copy(source: Device, target: Device, watch: Callable[[float], None]) -> int:
    """Copy and compare every page that holds data; how many."""
    end, at, held = source.plan.device_bytes, 0, 0
    while at < end:
        for offset, count, holds in source.extents(min(end - at, CHUNK_BYTES), at):
            if holds and offset + count > target.plan.device_bytes:
                what = f"its data ends beyond the {target.plan.device_bytes} bytes that would be left"
                raise DoesNotFit(source.path, what, f"shrink the filesystem to {target.plan.device_bytes} bytes first")
            if holds:
                data = source.read(count, offset)
                target.write(data, offset)
                if target.read(count, offset) != data:
                    raise BadData(target.path, f"{count} bytes at {offset} are not what was written", "a sound disk")
                held += count // layout.PAGE_BYTES
            at = offset + count
        watch(at / end)
    return held
