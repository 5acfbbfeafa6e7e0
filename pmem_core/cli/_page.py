# SPDX-License-Identifier: MIT
"""What `info --page` prints: the descriptor of one page."""

import datetime
from pathlib import Path
from typing import Any

import click

from pmem_core.cli._common import emit, working


def show_page(image: Path, page: int, as_json: bool) -> None:
    """Print what the descriptor of a page says."""
    with working(f"reading {image}"):
        from pmem_core.pagelook import look_at_page

        found = look_at_page(image, page)
    if as_json:
        return emit(found)
    pending = ", not on the medium yet" if found["pending"] else ""
    click.echo(f"{image}: page {page}: {found['status']}")
    click.echo(f"  data              {found['data_at']} in media")
    size = f"{found['descriptor_bytes']} bytes, format {found['descriptor_format']}"
    click.echo(f"  descriptor        {found['descriptor_at']} in media, {size}{pending}")
    for name, value in (found["descriptor"] or {}).items():
        click.echo(f"  {name:18}{_shown(name, value)}")
    return None


def _shown(name: str, value: int) -> str:
    if name in ("checksum", "data_checksum", "flags"):
        return f"{value:#x}"
    if name == "session" and value:
        moment: Any = datetime.datetime.fromtimestamp(value // 10**9)
        return f"{value} ({moment.isoformat(' ', 'seconds')})"
    return str(value)
