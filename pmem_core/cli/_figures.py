# SPDX-License-Identifier: MIT
"""A page of Markdown with figures as files beside it."""

import importlib
import os
from pathlib import Path
from typing import Any

import click

from pmem_core.cli._files import require_folder, require_free, write_whole
from pmem_core.errors import UsageError


def folder_of(page: Path) -> Path:
    """Where the figures of `page` are."""
    return page.parent / f"{page.stem}-figures"


def require_free_page(page: Path, force: bool) -> None:
    """Refuse a page that must not be written, or whose figures must not: UsageError."""
    require_free(page, force)
    require_folder(folder_of(page))
    if os.path.lexists(folder_of(page)) and not force:
        raise UsageError(folder_of(page), "exists already", "a new name, or --force")


def draw(page: Path, module: str, found: Any) -> list[tuple[str, str, str]]:
    """Write the figures of `found` into a folder beside `page`; path, alternative text and caption of each.

    module: of pmem_core.report, whose `drawings` draws them.  None are drawn where matplotlib is missing; it says so.
    """
    from pmem_core.host import host_errors

    try:
        pages = importlib.import_module("pmem_core.report.page")
        drawings = importlib.import_module(f"pmem_core.report.{module}").drawings(found)
    except ModuleNotFoundError as error:
        click.echo(f"no figures: module {error.name} is missing: pip install 'pmem-nbd[plot]'", err=True)
        return []
    folder = folder_of(page)
    with host_errors(folder):
        folder.mkdir(exist_ok=True)
    told = []
    for drawing in drawings:
        write_whole(folder / f"{drawing.name}.svg", pages.as_file(drawing, "svg"))
        told.append((f"{folder.name}/{drawing.name}.svg", drawing.alt, drawing.caption))
    return told
