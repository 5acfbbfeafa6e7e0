# SPDX-License-Identifier: MIT
"""The verb pagemaps: where descriptors may be, measured against each other."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmem_core.cli._common import PATH, bar, emit, json_option, on_terminal, parse_size, plain_console
from pmem_core.cli._figures import draw, require_free_page
from pmem_core.cli._files import make_folder, write_whole
from pmem_core.cli._geometry import completes, policies

if TYPE_CHECKING:
    from pmem_core.pagebench.run import Watch

PAGE = "page-maps.md"


@click.command(short_help="Compare where page descriptors may be.")
@click.option("--sizes", metavar="SIZE,...", help="Only devices of these sizes.  [default: 1G,64G,1T,16T]")
@click.option(
    "--maps",
    metavar="NAME,...",
    shell_complete=completes(lambda: policies("pagemaps"), separator=","),
    help="Only these page maps.  [default: all]",
)
@click.option("--quick", is_flag=True, help="Small sizes, few pages and rounds: to see that it runs, not how fast.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Seed for drawing pages, extents and schedules.",
)
@click.option("-o", "--output", metavar="DIR", type=PATH, help=f"Write the page, {PAGE}, and its figures here.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@json_option
def pagemaps(
    sizes: str | None, maps: str | None, output: Path | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Measure page maps against each other: each says where the descriptor of a page is, how it is made, and who shares
    it. On the device, every 65th page or in one array; in RAM; made by hotplug, at mmap() time or for one I/O; in an
    interval tree; or not at all.

    For each: nanoseconds a lookup, RAM held, medium taken, initialisation, map and unmap, descriptor writes of an I/O;
    and whether everybody sees the same descriptor of the same page, by a stress of aliased mappings and I/Os.

    \b
    Examples:
      pmem-nbd pagemaps
      pmem-nbd pagemaps --quick
      pmem-nbd pagemaps --sizes 64G,1T --maps interleaved,linear_dev,interval_tree
      pmem-nbd pagemaps -j | jq '.sharing | map_values(.verdict)'
      pmem-nbd pagemaps -o docs
    """
    from pmem_core.pagebench import run

    chosen = run.choose(
        sizes=[parse_size(text) for text in sizes.split(",")] if sizes is not None else None,
        maps=[name.strip() for name in maps.split(",")] if maps is not None else None,
        **options,
    )
    if output is not None:
        # Now, for what was measured would be lost.
        require_free_page(output / PAGE, force)
        make_folder(output)
    with _watching() as watch:
        result = run.compare(chosen, watch)
    result["command"] = shlex.join(["pmem-nbd", "pagemaps", *_typed()])
    try:
        emit(result) if as_json else _print(result)
    finally:
        # A reader may have seen enough (`| head`), and still want the page.
        if output is not None:
            _write(output / PAGE, result)
    if output is not None and not as_json:
        click.echo(f"{output / PAGE}: the same as a page, with figures")


def _typed() -> list[str]:
    """What was typed behind the verb, without -j and --force."""
    context, found = click.get_current_context(), []
    for parameter in context.command.params:
        name = parameter.name or ""
        is_typed = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if name in ("as_json", "force") or not is_typed:
            continue
        found.append(parameter.opts[0])
        if not (isinstance(parameter, click.Option) and parameter.is_flag):
            found.append(str(context.params[name]))
    return found


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    from pmem_core.pagebench import answer, words, write

    if sys.stdout.isatty():
        shown = Table(box=None, title=f"A device of {words.bytes_of(max(result['sizes']))}")
        for number, head in enumerate(write.OVERVIEW):
            shown.add_column(head, no_wrap=not number, justify="right" if number else "left", overflow="fold")
        for row in write.overview(result):
            shown.add_row(*(cell.strip("`*") for cell in row))
        plain_console().print(shown)
    else:
        for section in (write.maps, write.claims, write.sharing):
            click.echo("\n".join(section(result)))
    for text in answer.paragraphs(result):
        click.echo(text.replace("`", "").replace("**", "") + "\n")


def _write(page: Path, result: dict[str, Any]) -> None:
    from pmem_core.pagebench import write

    write_whole(page, write.as_markdown(result, draw(page, "mapped", result)).encode())


@contextlib.contextmanager
def _watching() -> "Iterator[Watch]":
    """A bar with what is being measured on a terminal; elsewhere a line a stage, so that a log shows life."""
    if not on_terminal():
        told = set()

        def tell(done: int, of: int, text: str) -> None:
            stage = text.partition(":")[0]
            if stage not in told and os.environ.get("PMEM_NBD_QUIET") is None:
                told.add(stage)
                print(f"pagemaps: {stage}" + (f", {done * 100 // of} %" if of else ""), file=sys.stderr, flush=True)

        yield tell
        return
    with bar("compiling", counts=True) as update:

        def watch(done: int, of: int, text: str) -> None:
            update(completed=done, total=of, description=text)

        yield watch
