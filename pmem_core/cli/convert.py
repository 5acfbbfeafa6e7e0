# SPDX-License-Identifier: MIT
"""The verb convert: descriptors of another size or format, in place or into a new image."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pmem_core.errors import PmemError, UsageError

from ._common import (
    IMAGE,
    PATH,
    SIZE,
    emit,
    human_bytes,
    json_option,
    policy_file_option,
    progress,
)


@click.command()
@IMAGE
@click.option("--descriptor-bytes", type=SIZE, help="New size of a descriptor, in bytes: 16 to 4096, a power of two.")
@click.option(
    "--descriptor-format",
    type=click.IntRange(1, 2),
    help="1 or 2; the default is 2 from 128 bytes on, where initialise is zeros.",
)
@click.option("-o", "--output", type=PATH, help="Write the result to this new image; IMAGE is not changed.")
@click.option("-s", "--size", type=SIZE, help="With --output: the size of the new medium; the old one's by default.")
@policy_file_option
@json_option
def convert(
    image: Path,
    descriptor_bytes: int | None,
    descriptor_format: int | None,
    output: Path | None,
    size: int | None,
    as_json: bool,
) -> None:
    """Give IMAGE descriptors of another size or format: every page moves to where it then has to be.

    In place by default. Whatever cuts that off, be it Ctrl-C, a full host, a kill or a power cut, no data is lost:
    until it is finished nothing else opens the image, and 'pmem-nbd convert IMAGE' goes on with it. Where it had not
    begun to change the image, it says so, and wants --descriptor-bytes again.

    Larger descriptors leave less room for pages, so shrink the filesystem first. Where there is data beyond the new end
    nothing is changed, and it says to which size. The image must be closed and undamaged.

    \b
    Examples:
      pmem-nbd convert disk.pmem --descriptor-bytes 128
      pmem-nbd convert disk.pmem                                   # go on with one that was cut off
      pmem-nbd convert disk.pmem --descriptor-bytes 128 --output new.pmem --size 9G
    """
    if size is not None and output is None:
        raise UsageError("--size", "an image cannot be resized in place", "--output NEW with it")
    if output is not None and descriptor_bytes is None:
        raise UsageError("--output", "no descriptor size is given", "--descriptor-bytes with it")
    if output is not None:
        from pmem_core.host import require_outside_images

        require_outside_images(output)
    with _interruption_told(image), progress(f"Converting {image}", total=1.0) as watch:
        from pmem_core import convert as conversion

        if output is not None and descriptor_bytes is not None:
            found = conversion.convert_into(image, output, descriptor_bytes, descriptor_format, size=size, watch=watch)
        else:
            found = conversion.convert(image, descriptor_bytes, descriptor_format, watch)
    if as_json:
        return emit(found)
    click.echo(_sentence(output or image, found))
    return None


@contextlib.contextmanager
def _interruption_told(image: Path) -> Iterator[None]:
    """Where a conversion is cut off by Ctrl-C and has changed the image, say how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        from pmem_core import infoblock

        with contextlib.suppress(PmemError, OSError):
            if infoblock.read(image / "media", read_only=True, converting=True).converting:
                click.echo(f"{image}: interrupted: 'pmem-nbd convert {image}' goes on", err=True)
        raise


def _sentence(image: Path, found: dict[str, Any]) -> str:
    shape = f"descriptors of {found['to']['descriptor_bytes']} bytes, format {found['to']['descriptor_format']}"
    if not found["changed"]:
        return f"{image}: has {shape} already"
    before, after = human_bytes(found["device_bytes_before"]), human_bytes(found["device_bytes"])
    pages = f", {found['pages_with_data']} pages with data" if "pages_with_data" in found else ""
    return f"{image}: {shape}; the client sees {after}, before {before}{pages}; {found['seconds']:.1f} s"
