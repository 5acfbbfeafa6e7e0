# SPDX-License-Identifier: MIT
"""The verb study: placements, levelings, units and workloads against each other."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmem_core.cli._common import PATH, SIZE, bar, emit, json_option, on_terminal, policy_file_option
from pmem_core.cli._figures import draw, require_free_page
from pmem_core.cli._files import make_folder, require_free, require_writable, write_whole
from pmem_core.cli._geometry import completes, levelings, policies

if TYPE_CHECKING:
    from pmem_core.study.run import Row, Watch

TABLES = ("study.csv", "study.json")
PAGE = "study.md"


@click.command(short_help="Compare levelings: placement, unit, descriptor writes, workload.")
@policy_file_option
@click.option(
    "-o", "--output", metavar="DIR", type=PATH, default="study", show_default=True, help="Rows, tables, figures."
)
@click.option("--placement", "placements", multiple=True, type=click.Choice(policies("placement")), help="Only these.")
@click.option(
    "--leveling",
    "levelings",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    shell_complete=completes(levelings),
    help="Only these: labels of the default set, or a policy with parameters.",
)
@click.option("--line-bytes", "units", multiple=True, type=SIZE, help="Only these units of wear.")
@click.option(
    "--descriptor-writes", "writes", multiple=True, type=click.Choice(["each", "coalesced"]), help="Only these."
)
@click.option(
    "--workload",
    "loads",
    multiple=True,
    shell_complete=completes(lambda: [*policies("replay/workloads"), *policies("study/workloads", ".rec")]),
    help="Only these: synthetic ones, or recordings that come with it.",
)
@click.option(
    "-s", "--size", type=SIZE, help="Size of the medium.  [default: 8 MiB, 32 MiB for recordings, and spare frames]"
)
@click.option("-e", "--endurance", type=click.IntRange(1), help="Writes that a line survives, W.  [default: 10000]")
@click.option("--seed", type=click.IntRange(0), help="[default: 1]")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="Seeds of synthetic workloads, in the largest unit, with a descriptor at each write.  [default: 5]",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one a core]")
@click.option("--markdown", metavar="FILE", type=PATH, help="Write the page here too, and its figures beside it.")
@click.option("--force", is_flag=True, help="Overwrite files that exist and are not of the study that goes on.")
@json_option
def study(output: Path, as_json: bool, jobs: int | None, markdown: Path | None, force: bool, **options: Any) -> None:
    """Run every combination of placement, leveling, unit of wear, descriptor writes and workload until its first line
    dies, and say what came out: a table as CSV, JSON and Markdown, figures, and the answer to the question that it
    opens with.

    It uses all cores. Ctrl-C loses nothing that is finished: the same command goes on. A row is run again only where
    the code that made it has changed.

    \b
    Examples:
      pmem-nbd study
      pmem-nbd study --leveling none --leveling start_gap:interval=10 --workload zipf -o zipf
      pmem-nbd study --placement interleaved --line-bytes 4096 -j | jq '.[] | [.leveling, .workload, .normalized_life]'
      pmem-nbd study --policy-file mine.py --leveling mine --leveling start_gap -o mine
      pmem-nbd report study -o study.html
    """
    from pmem_core.study import answer, cells, run, write

    common = {key: options.pop(key) for key in ("size", "endurance", "seed", "seeds")}
    chosen = cells.cells(**options, **{key: value for key, value in common.items() if value is not None})
    # A device that cannot be is found out before hours are spent.
    for cell in {(one.group, one.parameters, one.line_bytes, one.size): one for one in chosen}.values():
        cell.plan()
    _prepare(output, markdown, force)
    try:
        with _watching() as watch:
            rows = run.study(output, chosen, jobs=jobs or 0, watch=watch)
    except KeyboardInterrupt:
        click.echo(f"{output}: interrupted: the same command goes on", err=True)
        raise click.Abort from None  # for a KeyboardInterrupt click would print an empty line too
    command = shlex.join(["pmem-nbd", "study", *_typed()])
    for name, content in zip(TABLES, (write.as_csv(rows), write.as_json(rows)), strict=True):
        write_whole(output / name, content.encode())
    for page in filter(None, (output / PAGE, markdown)):
        write_whole(page, write.as_markdown(rows, command, draw(page, "studied", rows)).encode())
    if as_json:
        emit(rows)
        return
    for text in answer.paragraphs(rows):
        click.echo(text + "\n")
    click.echo(
        f"{output}: {len(rows)} lives; tables and figures are there, and 'pmem-nbd report {output}' makes a page"
    )


def _typed() -> list[str]:
    """What was typed behind the verb, without where it goes."""
    context = click.get_current_context()
    left_out = {"output", "markdown", "jobs", "force", "as_json"}
    found = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in left_out or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            found += [parameter.opts[0] if not parameter.opts[-1].startswith("--") else parameter.opts[-1], str(one)]
    return found


def _prepare(output: Path, markdown: Path | None, force: bool) -> None:
    """Find out what cannot or must not be written before hours are spent; UsageError, HostError."""
    from pmem_core import host
    from pmem_core.study import run

    is_own = (output / run.ROWS).is_file()
    for name in TABLES:
        require_free(output / name, force or is_own)
    require_free_page(output / PAGE, force or is_own)
    if markdown is not None:
        require_free_page(markdown, force)
    make_folder(output)
    if markdown is not None:
        host.require_parent(markdown)
        require_writable(markdown.parent)


@contextlib.contextmanager
def _watching() -> Iterator["Watch"]:
    """A bar with the time left on a terminal; elsewhere a line every hundred rows, so that a log shows life."""
    if not on_terminal():

        def tell(done: int, of: int, row: "Row | None") -> None:
            if row is not None and (done % 100 == 0 or done == of) and os.environ.get("PMEM_NBD_QUIET") is None:
                print(f"study: {done} of {of} lives", file=sys.stderr, flush=True)

        yield tell
        return
    with bar("compiling", counts=True) as update:

        def watch(done: int, of: int, row: "Row | None") -> None:
            told = f"{row['placement']}, {row['leveling']}, {row['workload']}" if row else "compiling"
            update(completed=done, total=of, description=told)

        yield watch
