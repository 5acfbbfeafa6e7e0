# SPDX-License-Identifier: MIT
"""The verb report: the wear of an image as a page to send to somebody."""

import json
from pathlib import Path
from typing import Any

import click

from pmem_core.cli._common import IMAGE, PATH, human_bytes, policy_file_option, refuse, working
from pmem_core.cli._files import require_folder, require_free, write_whole
from pmem_core.errors import DamagedImage, MissingProgram, NotAnImage, UsageError
from pmem_core.host import host_errors, require_outside_images, require_parent


@click.command()
@IMAGE
@click.option("-o", "--output", metavar="FILE", type=PATH, default="report.html", show_default=True, help="The page.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option(
    "--by",
    type=click.Choice(["max", "mean"]),
    default="max",
    show_default=True,
    help="A page of the heat map is its hottest line, or the mean of its lines.",
)
@click.option(
    "--over",
    type=click.Choice(["bytes", "time"]),
    default="bytes",
    show_default=True,
    help="Draw life over the bytes that the host wrote, or over time.",
)
@click.option("--figures", "folder", metavar="DIR", type=PATH, help="Write each figure to a file in DIR as well.")
@click.option("--format", "kind", type=click.Choice(["svg", "png"]), help="The format of these files (default: svg).")
@policy_file_option
def report(image: Path, output: Path, force: bool, by: str, over: str, folder: Path | None, kind: str | None) -> None:
    """Write the wear of IMAGE as one HTML file: what the image is, its key figures, a heat map with the columns of the
    stripe side by side, Lorenz curves, a histogram, life over time. It loads nothing from the network. IMAGE may be the
    folder of a study instead: its figures, every life, and the answer.

    A server that has the image open is not disturbed.

    \b
    Examples:
      pmem-nbd report disk.pmem -o disk.html
      pmem-nbd report disk.pmem -o disk.html --force --by mean
      pmem-nbd report disk.pmem -o with-figures.html --figures figures --format png
      pmem-nbd report study -o study.html
    """
    if kind and folder is None:
        raise UsageError("--format", "no figures are written", "--figures DIR beside it")
    output = _checked(output, force)
    if folder is not None:
        require_outside_images(folder, itself=True)
        require_folder(folder)
        require_parent(folder)
    with working(f"reading {image}") as say:
        # First: whoever lacks them shall not wait for the reading.
        try:
            from pmem_core.report import disk, page, studied
        except ModuleNotFoundError as error:
            raise MissingProgram(f"module {error.name}", "is missing", "pip install 'pmem-nbd[plot]'") from None
        rows = _rows_of(image)
        made = disk.report(image, by=by, over=over) if rows is None else studied.report(rows, str(image))
        say("drawing")
        kind = kind or "svg"
        files = {}
        if folder is not None:
            files = {
                _checked(folder / f"{drawing.name}.{kind}", force, is_made=True): page.as_file(drawing, kind)
                for drawing in made.drawings
            }
        files[output] = page.render(made).encode()
    if folder is not None:
        _make(folder)
    for path, content in files.items():
        write_whole(path, content)
    click.echo(
        f"{output}: {human_bytes(len(files[output]))}" + (f", {len(files) - 1} figures in {folder}" if folder else "")
    )


def _rows_of(folder: Path) -> list[dict[str, Any]] | None:
    """The rows of a study; None where `folder` is not that of one.  UsageError, HostError, DamagedImage."""
    path = folder / "study.json"
    with host_errors(folder):
        is_study, is_begun = path.is_file(), (folder / "rows.jsonl").is_file()
    if is_begun and not is_study:
        raise NotAnImage(folder, "is a study that has not ended", "the same 'pmem-nbd study' again, which goes on")
    if not is_study:
        return None
    refuse(f"{folder} is a study", "an image", "by", "over")
    try:
        with host_errors(path):
            rows: list[dict[str, Any]] = json.loads(path.read_text())
        if not rows or not all("normalized_life" in row for row in rows):
            raise ValueError
    except (ValueError, TypeError):
        raise DamagedImage(path, "holds no rows of a study", "'pmem-nbd study' writes it anew") from None
    return rows


def _checked(path: Path, force: bool, is_made: bool = False) -> Path:
    """Refuse a file that cannot be written or must not be; the path without symlinks.  is_made: its parent will be."""
    require_free(path, force)
    if not is_made:
        require_parent(path)
    return path.resolve()


def _make(folder: Path) -> None:
    with host_errors(folder):
        folder.mkdir(exist_ok=True)
