# SPDX-License-Identifier: MIT
"""The verbs of images: create, info."""

import contextlib
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmem_core.cli import _capacity
from pmem_core.cli._common import (
    IMAGE,
    PATH,
    SIZE,
    emit,
    human_bytes,
    json_option,
    plain_console,
    progress,
    refuse,
    working,
)
from pmem_core.cli._geometry import geometry_options, plan_of, plan_options
from pmem_core.errors import PmemError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pmem_core.snapshot import Look

EVENTS_SHOWN = 5


@click.command()
@IMAGE
@click.option("-s", "--size", type=SIZE, required=True, help="Size of the medium; the client sees somewhat less.")
@geometry_options
@click.option(
    "--descriptor-format",
    type=click.IntRange(1, 2),
    help="2 also records line writes, last session and first write of each page; the default from 128 bytes on, with "
    "--initialise zeros.",
)
@click.option(
    "--initialise",
    type=click.Choice(["zeros", "eager", "section", "subsection", "buddy"]),
    default="zeros",
    show_default=True,
    help="How descriptors come into being. zeros: none is needed; eager: all of them now; section, subsection: "
    "128 MiB, 2 MiB at a time, before their first write; buddy: by splitting free groups.",
)
@json_option
def create(image: Path, size: int, descriptor_format: int | None, as_json: bool, **options: Any) -> None:
    """Create an image: a folder of sparse files, which cost nothing until they are written.

    \b
    Examples:
      pmem-nbd create disk.pmem --size 8G
      pmem-nbd create disk.pmem --size 8G --set interval=50 --set gap_frames=1
      pmem-nbd create disk.pmem --size 1T --placement linear --leveling none   # Linux's fsdax layout
      pmem-nbd create disk.pmem --size 1G --descriptor-bytes 128 --descriptor-writes coalesced
    """
    with working(f"creating {image}"):
        from pmem_core import host, snapshot
        from pmem_core import image as images

        host.require_outside_images(image)
        plan = plan_of(size, options, descriptor_format=descriptor_format)
        images.create(image, plan)
        if plan.info.descriptor_writes == "coalesced" and not plan.has_descriptors:
            click.echo(
                f"--descriptor-writes coalesced: not used: {plan.info.placement} writes no descriptors", err=True
            )
    if plan.info.initialise == "eager":
        _initialise(image)
    with working(f"reading {image}"):
        found = snapshot.look(image)
        if as_json:
            emit(report(image, found))
            return
    info = plan.info
    seen = f"{human_bytes(plan.device_bytes)} for the client ({plan.device_bytes / info.size:.2%})"
    click.echo(f"{image}: {human_bytes(info.size)} medium, {seen}, {info.placement}, {info.leveling}")


def _initialise(image: Path) -> None:
    """Give every page a descriptor; where this is cut short, the next that opens the image for writing goes on."""
    from pmem_core.device import Device

    with progress(f"Initialising {image}", total=1.0) as watch:
        Device(image, watch=watch).close()


@click.command()
@click.argument("image", type=PATH, required=False)
@click.option("--plan", "planned", is_flag=True, help="Show the layout that a medium of --size would have.")
@click.option("-s", "--size", type=SIZE, help="With --plan: size of the medium.")
@click.option("--page", type=click.IntRange(min=0), metavar="N", help="Show the descriptor of page N instead.")
@plan_options
@json_option
def info(image: Path | None, planned: bool, size: int | None, page: int | None, as_json: bool, **options: Any) -> None:
    """Show what an image is, and where every byte of its medium goes; or what one page's descriptor says.

    With --plan no image is needed, and the options say what create is to make.  Without --placement all of them are
    shown side by side, beside what Linux's fsdax namespaces and BTT would leave of the same medium.

    \b
    Examples:
      pmem-nbd info disk.pmem
      pmem-nbd info disk.pmem -j | jq .capacity
      pmem-nbd info disk.pmem --page 70
      pmem-nbd info --plan --size 1.5T
      pmem-nbd info --plan --size 1.5T --placement interleaved --descriptor-bytes 128
    """
    if planned:
        if image is not None:
            raise UsageError("--plan", f"and an image: {image}", "one of the two")
        if size is None:
            raise UsageError("--plan", "no size", "--size, such as --size 1.5T")
        if page is not None:
            raise UsageError("--page", "is of an image that is there", "no --plan")
        with working("planning"):
            figures = _capacity.planned(size, options)
        emit(figures) if as_json else _capacity.show(figures)
        return
    refuse("says what an image is to be", "--plan, and no image", "size", *options)
    if image is None:
        raise UsageError("info", "no image", "IMAGE, or --plan with --size")
    if page is not None:
        from pmem_core.cli._page import show_page

        return show_page(image, page, as_json)
    with working(f"reading {image}"):
        from pmem_core import snapshot

        found = snapshot.look(image)
        figures = report(image, found)
    if as_json:
        emit(figures)
    else:
        show(figures)


def report(path: Path, found: "Look") -> dict[str, Any]:
    """What `info` knows of an image, ready for JSON; sizes in bytes."""
    from pmem_core import capacity, snapshot

    plan = found.plan
    if found.session == "served":
        with contextlib.suppress(PmemError):  # as of a journal that cannot be read where nobody serves the image
            snapshot.read_past(path, found)
    return {
        "image": snapshot.describe(path, found),
        "geometry": {
            "lines": plan.line_count,
            "frames": plan.medium_frames,
            "placed_frames": plan.placed_frames,
            "sections": plan.section_count,
        },
        "capacity": capacity.figures(plan.info.size, capacity.shares(plan)),
        "descriptor_memory": snapshot.memory(found),
        "files": files(path),
        "served": found.session == "served",
        "pid": found.holder.get("pid"),
        "session": found.session,
        "retired_pages": found.retired,
        "events": found.events[-EVENTS_SHOWN:],
        "damaged_records": found.damaged,
    }


def files(path: Path) -> dict[str, dict[str, int]]:
    """What the image's files are and cost on the host: apparent bytes and bytes of disk in use, by name."""
    sizes: dict[str, dict[str, int]] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            name = file.relative_to(path).parts[0]
            size = sizes.setdefault(name, {"bytes": 0, "used_bytes": 0})
            size["bytes"] += status.st_size
            size["used_bytes"] += status.st_blocks * 512
    return sizes


def show(figures: dict[str, Any]) -> None:
    """Print what `report` found, for a person."""
    console, image = plain_console(), figures["image"]
    parameters = ", ".join(f"{name}={value}" for name, value in image["parameters"].get("leveling", {}).items())
    checks = "with checksums" if image["checksums"] else "without checksums"
    what = f"{image['descriptor_bytes']} bytes, format {image['descriptor_format']}"
    descriptors = f"{what}, written {image['descriptor_writes']}, {checks}"
    if image["descriptors"] == "memory":
        memory = _capacity.memory_words(figures["descriptor_memory"])
        descriptors = f"{image['descriptor_bytes']} bytes, in the server's memory, {checks}; {memory}"
    elif not image["descriptors"]:
        descriptors = "none"
    session = f"served by process {figures['pid']}" if figures["served"] else figures["session"]
    facts = {
        "uuid": image["uuid"],
        "created": _moment(image["created"]),
        "client sees": f"{human_bytes(image['device_bytes'])}, {image['page_count']} pages",
        "placement": image["placement"],
        "leveling": f"{image['leveling']} ({parameters})" if parameters else image["leveling"],
        "descriptors": descriptors,
        "initialised": image["initialise"] or "-",
        "frame, line": f"{image['frame_bytes']} bytes, {image['line_bytes']} bytes",
        "Linux reads it": "yes, as a fsdax namespace" if image["linux"] else "no",
        "session": session,
    }
    console.print(f"{image['path']}: {human_bytes(image['size'])} medium", soft_wrap=True)
    for name, value in facts.items():
        console.print(f"  {name:15} {value}", soft_wrap=True)
    console.print()
    console.print(_capacity.table_of(figures["capacity"], console))
    console.print()
    console.print(_file_table(figures["files"], console))
    console.print()
    for event in figures["events"]:
        told = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time_ns", "event"))
        when = _moment(event["time_ns"] // 10**9)
        console.print(f"{when}  {event['event']}{': ' if told else ''}{told}", soft_wrap=True)
    if figures["damaged_records"]:
        console.print(
            f"{figures['damaged_records']} damaged records are left out: 'pmem-nbd check --repair' drops them"
        )


def _moment(seconds: int) -> str:
    """Write a time for people; as it is where no calendar knows it."""
    try:
        return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _file_table(sizes: dict[str, dict[str, int]], console: "Console") -> "Table":
    table = _capacity.table(console, "the host's files", "bytes", "on disk")
    for name, size in sizes.items():
        table.add_row(name, human_bytes(size["bytes"]), human_bytes(size["used_bytes"]))
    return table
