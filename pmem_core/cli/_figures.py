# SPDX-License-Identifier: MIT
"""Figures as files beside a page of Markdown."""

import importlib
from pathlib import Path
from typing import Any

import click


def draw(page: Path, module: str, found: Any) -> list[tuple[str, str, str]]:
    """Write the figures of `found` into a folder beside `page`; path, alternative text and caption of each.

    module: of pmem_core.report, whose `drawings` draws them.  None are drawn where matplotlib is missing; it says so.
    """
    try:
        pages = importlib.import_module("pmem_core.report.page")
        drawings = importlib.import_module(f"pmem_core.report.{module}").drawings(found)
    except ModuleNotFoundError as error:
        click.echo(f"no figures: module {error.name} is missing: pip install 'pmem-nbd[plot]'", err=True)
        return []
    folder = page.parent / f"{page.stem}-figures"
    folder.mkdir(exist_ok=True)
    told = []
    for drawing in drawings:
        (folder / f"{drawing.name}.svg").write_bytes(pages.as_file(drawing, "svg"))
        told.append((f"{folder.name}/{drawing.name}.svg", drawing.alt, drawing.caption))
    return told
