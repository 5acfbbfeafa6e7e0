# SPDX-License-Identifier: MIT
"""The verb of recorded workloads: trace."""

from pathlib import Path
from typing import Any

import click

from pmem_core.cli._common import PATH, emit, human_bytes, json_option, progress

FORMATS = ("recording", "fio", "blkparse")  # here, because asking the readers would import numba


@click.command(short_help="Show what is in a recorded workload.")
@click.argument("file", metavar="TRACE", type=PATH)
@click.option("--format", type=click.Choice(FORMATS), help="What TRACE is (default: found by looking at it).")
@json_option
def trace(file: Path, format: str | None, as_json: bool) -> None:
    """Show what is in TRACE: its format and what it was taken from, requests and bytes by kind, how large they are, and
    how many pages are written.

    TRACE is what `serve --record` has made, an iolog of fio's (write_iolog, versions 2 and 3), or what blkparse prints.
    One that is still being written, or whose writer was killed, is read as far as it goes.

    \b
    Examples:
      pmem-nbd trace requests.trace
      pmem-nbd trace fio.iolog -j | jq .kinds.write
      blktrace -d /dev/sdb -o - | blkparse -i - > sdb.txt; pmem-nbd trace sdb.txt
    """
    from pmem_core.traces import open_trace
    from pmem_core.traces.summary import Summary, describe

    with open_trace(file, format) as opened:
        summary = Summary()
        with progress(f"reading {file}", total=opened.size_bytes) as watch:
            for requests in opened:
                summary.add(requests)
                watch(opened.position)
        figures = describe(opened, summary)
    emit(figures) if as_json else _show(figures)


def _show(figures: dict[str, Any]) -> None:
    """Print what is known of a trace, for people."""
    for name, value in [("trace", figures["trace"]), *_facts(figures).items()]:
        click.echo(f"{name:12} {value}")
    click.echo(f"\n{'kind':12} {'requests':>12}  {'bytes':>10}")
    for name, kind in figures["kinds"].items():
        if kind["count"]:
            size = human_bytes(kind["bytes"]) if name in figures["sizes"] else ""
            click.echo(f"{name:12} {kind['count']:>12}  {size:>10}".rstrip())
    shown = {name: sizes for name, sizes in figures["sizes"].items() if sizes}
    if shown:
        click.echo("\n" + f"{'up to':12}" + "".join(f" {name + 's':>12}" for name in shown))
        for size in sorted({size for sizes in shown.values() for size in sizes}):
            click.echo(f"{human_bytes(size):12}" + "".join(f" {sizes.get(size, 0):>12}" for sizes in shown.values()))


def _facts(figures: dict[str, Any]) -> dict[str, str]:
    header, device = figures["header"], figures["device_bytes"]
    image = header.get("image", {})
    origin = ", ".join(f"{name} {value}" for name, value in header.items() if not isinstance(value, dict))
    pages = figures["written_pages"]
    end = "" if figures["whole"] else ", without a clean end"
    torn = f", {figures['torn_bytes']} bytes of a torn tail" if figures["torn_bytes"] else ""
    facts = {
        "format": f"{figures['format']} ({origin})" if origin else figures["format"],
        "device": human_bytes(device) if device is not None else f"not told; used up to {human_bytes(figures['end'])}",
        "image": ", ".join(str(image[name]) for name in ("placement", "leveling") if name in image),
        "file": f"{human_bytes(figures['size_bytes'])}{end}{torn}",
        "requests": str(figures["requests"]),
        "written": "pages too far apart to be counted" if pages is None else f"{pages} distinct pages",
        "also seen": ", ".join(f"{count} {name}" for name, count in figures["seen"].items() if count),
    }
    return {name: value for name, value in facts.items() if value}
