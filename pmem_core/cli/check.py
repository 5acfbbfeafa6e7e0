# SPDX-License-Identifier: MIT
"""The verb check: what was found, line by line, and a summary in words."""

import collections
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._common import IMAGE, STATUS, emit, json_option, policy_file_option, progress

if TYPE_CHECKING:
    from pmem_core.check import Finding, Kind, Report

LINES_MAX = 20  # findings of a kind that are printed one by one


@click.command(short_help="Look for damage in an image, and repair it if told to.")
@IMAGE
@click.option("--repair", is_flag=True, help="Repair what can be repaired; without it not a byte is changed.")
@policy_file_option
@json_option
def check(image: Path, repair: bool, as_json: bool) -> int:
    """Look for damage in IMAGE: info blocks, journal, state, the map of frames, wear counters, every descriptor and the
    data it describes.

    Exit status 0: clean (there may be notes). 1: something was found, repaired or not, or could not be checked; after
    --repair, check again. Data that is lost cannot be repaired: its pages are named, with their place in the file
    'media', and fail to be read until they are written whole. The image must not be served meanwhile.

    \b
    Examples:
      pmem-nbd check disk.pmem
      pmem-nbd check disk.pmem --repair
      pmem-nbd check disk.pmem -j | jq '.findings[] | select(.page != null) | .page'
    """
    from pmem_core import codecache
    from pmem_core import image as images
    from pmem_core.check import check as check_image

    images.find(image)  # what cannot be checked needs no code
    if not codecache.is_warm("checkscan"):
        click.echo("pmem-nbd: compiling for the first check, less than a minute ...", err=True)
    with progress(f"Checking {image}", total=1.0) as watch:
        report = check_image(image, repair=repair, watch=watch)
    status = click.get_current_context().meta[STATUS] = 0 if report.clean else 1
    if as_json:
        emit(report.as_dict())
    else:
        _print(image, report, repair)
    return status


def _print(image: Path, report: "Report", repair: bool) -> None:
    shown: collections.Counter[Kind] = collections.Counter()
    for finding in report.findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= LINES_MAX:
            click.echo(f"{image}: {_line(finding, repair)}")
    for kind, count in report.counts.items():
        if count > LINES_MAX:
            click.echo(f"{image}: {kind.severity.value}: {kind.sentence}: {count - LINES_MAX} more; -j names them")
    for what in report.unchecked:
        click.echo(f"{image}: not checked: {what}")
    for line in _summary(report, repair):
        click.echo(f"{image}: {line}")


def _line(finding: "Finding", repair: bool) -> str:
    from pmem_core.check import Severity

    if repair and not finding.repaired and finding.kind.severity is not Severity.NOTE:
        return f"{finding}; not repaired"
    return str(finding)


def _summary(report: "Report", repair: bool) -> list[str]:
    from pmem_core.check import Severity

    lines = []
    if report.session:
        lines.append(f"last session: {report.session}")
    looked = report.checked
    if "pages" in looked:
        pages = f"{looked['pages']} pages, {looked['pages_with_data']} with data"
        sums = "" if looked["data_checksums"] else ", without data checksums"
        sections = f"{looked['sections_in_use']} of {looked['sections']} sections"
        lines.append(f"checked {looked['frames']} frames, {pages}{sums}, in {sections}, in {looked['seconds']:.1f} s")
    found = sum(count for kind, count in report.counts.items() if kind.severity is not Severity.NOTE)
    notes = report.counts.total() - found
    repaired = sum(count for kind, count in report.repairs.items() if kind.severity is not Severity.NOTE)
    words = "clean" if report.clean else f"{found} finding{'s' * (found != 1)}"
    words += f", {notes} note{'s' * (notes != 1)}" if notes else ""
    if found and repair:
        words += f", {repaired} repaired"
    elif any(kind.mend for kind, count in report.counts.items() if count and kind.severity is not Severity.NOTE):
        words += ": --repair may help"
    return [*lines, words]
