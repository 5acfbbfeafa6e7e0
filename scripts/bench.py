#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Speed of pmem-nbd and of its peers, measured in one run: fio's nbd engine over Unix sockets.

In each round every workload visits every peer, in an order that changes from round to round, so that what disturbs the
machine disturbs all of them alike; a figure is the median over the rounds.  Each round has servers of its own, for one
is up to a third quicker than the next of the same program; they stay up, idle, while others are measured.  Each device
is filled after its start, so that nobody pays for first touches; after each fio run the peer's own files are synced,
so that nobody pays for another's dirty pages.  Where throughput depends on how soon an idle processor wakes, the
processor time that a server spends on a request is the steadier figure.

A peer is NAME[:KEY=VALUE ...][@PLACE], several separated by commas.  A KEY of pmem is an option of `pmem-nbd create` or
a policy's parameter (pmem:leveling=start_gap:interval=50), or rev, another commit of this repository; one that begins
with - is an option of the server (memory:-t=4): pmem has one thread a connection, as `serve`, unless it is told, and
nbdkit's other plugins have its 16.  PLACE is where its files lie: tmpfs, or a folder; the disk unless it
is given.  The memory and bytearray plugins keep nothing, so pmem@tmpfs is what compares with them, and pmem with file
and qemu; each is held to every bar.

--compare REV measures this tree and REV in the same rounds; --against REV compares with the record of an earlier full
run.  A full run, one without options but --write-docs, leaves its record in docs/benchmarks.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from benchlib import compare, ext4, records, sizes, workloads
from benchlib.peers import ROOT, checkouts, commit_of, peers_at, revisions, size_of
from benchlib.tables import markdown, tables
from rich.console import Console
from rich.table import Table

PEERS = "memory,bytearray,pmem@tmpfs,file,qemu,pmem"
COMPARED = "memory,pmem@tmpfs,pmem"
SECTIONS = ("rounds", "ext4", "starts", "scale", "cold")
PROGRAMS = {"nbdkit": "nbdkit", "qemu-nbd": "qemu-utils", "fio": "fio", "nbdsh": "python3-libnbd and libnbd-bin"}


def measured(options: dict[str, Any], specs: list[str], names: list[str], folder: Path) -> dict[str, Any]:
    """Run every section that is wanted; the parts of the report."""
    console = Console(stderr=True)
    report: dict[str, Any] = {"rounds": {}, "starts": {}, "scale": {}, "cold": {}, "left_out": []}
    sections, size = options["sections"], size_of(options["size"])
    with checkouts(revisions(specs), folder) as trees, console.status("") as status:

        def tell(what: str) -> None:
            status.update(what) if console.is_terminal else None

        wanted = [(spec, size) for spec in specs]
        if "rounds" in sections:
            with peers_at(wanted, folder, trees) as peers:
                report["rounds"] = workloads.measure(peers, names, options, tell)
        if "ext4" in sections and (why := ext4.missing()):
            report["left_out"].append(f"{ext4.EXT4}: {why}")
        elif "ext4" in sections:
            with peers_at([one for one in wanted if not one[0].startswith("bytearray")], folder, trees) as peers:
                report["rounds"] |= ext4.measure(peers, options, tell)
        if "starts" in sections:
            report["starts"] = sizes.starts(specs, folder, size, tell, trees)
        if "scale" in sections:
            report["scale"] = sizes.scale("pmem@tmpfs", folder, options["seconds"], tell)
        if "cold" in sections:
            report["cold"] = sizes.cold_start(folder, tell)
    return report


def chosen(options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The peers and the names of the workloads asked for; completes the options.  Errors: click.BadParameter."""
    if options["compare"]:
        options["compare"] = commit_of(options["compare"])
    options["peers"] = options["peers"] or (COMPARED if options["compare"] else PEERS)
    options["sections"] = (options["sections"] or ("rounds" if options["compare"] else ",".join(SECTIONS))).split(",")
    for section in set(options["sections"]) - set(SECTIONS):
        raise click.BadParameter(f"{section}: not a section: some of {', '.join(SECTIONS)}")
    specs = []
    for spec in options["peers"].split(","):
        specs += [spec]
        if options["compare"] and spec.startswith("pmem"):
            specs += [compare.twin(spec, options["compare"])]
    words = options["workloads"].split(",")
    return specs, [name for name in workloads.WORKLOADS if any(word.strip() in name for word in words)]


def command(options: dict[str, Any]) -> str:
    """What was typed, but for where files go."""
    words = [f"--{key} {options[key]}" for key in ("rounds", "seconds", "size", "peers")]
    words += [f"--no-{key}" for key in ("prefill", "settle") if not options[key]]
    words += [f"--{key} {options[key]}" for key in ("compare", "against") if options[key]]
    if options["sections"] != list(SECTIONS):
        words.append(f"--sections {','.join(options['sections'])}")
    if options["workloads"]:
        words.append(f"--workloads '{options['workloads']}'")
    return " ".join(["scripts/bench", *words])


def show(report: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, (header, *rows) in tables(report):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*(cell.replace("**", "") for cell in row))
        console.print(table)
    console.print(f"load before the run: {report['machine']['load before the run']}")


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, help="Rounds; figures are medians over them.")
@click.option("--seconds", default=0.6, show_default=True, help="Seconds of each fio run.")
@click.option("--size", default="1G", show_default=True, help="Size of each device.")
@click.option("--peers", help=f"Who is measured: {PEERS}; with --compare {COMPARED}.")
@click.option("--workloads", default="", help="Only workloads with one of these words, comma-separated, in their name.")
@click.option("--sections", help=f"What is measured: {','.join(SECTIONS)}; with --compare the rounds.")
@click.option("--compare", metavar="REV", help="Measure REV in the same rounds, and say what differs.")
@click.option(
    "--against", metavar="REV", help="Say what differs from the record of REV (or from a file that --json wrote)."
)
@click.option("--read", metavar="REV", help="Measure nothing: show the record of REV (or a file that --json wrote).")
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where files lie.")
@click.option("--prefill/--no-prefill", default=True, help="Write each device once before the rounds.")
@click.option("--settle/--no-settle", default=True, help="Sync a peer's files after each of its runs.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--markdown", "page", type=click.Path(path_type=Path), help="Write the tables here.")
@click.option("--write-docs", is_flag=True, help="Write the tables to docs/BENCHMARKS.md.")
def main(json_file: Path | None, page: Path | None, write_docs: bool, read: str | None, **options: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    then = records.load(options["against"]) if options["against"] else None
    if read:
        report = records.load(read)
    else:
        report = measure(options)
    if then is not None:
        found = compare.with_record(report["rounds"], then["rounds"])
        title = f"{options['against']}, each beside the memory plugin of its own run"
        report.setdefault("changes", {})[title] = [dataclasses.astuple(one) for one in found]
    show(report)
    if json_file:
        json_file.write_text(records.text(report))
    for path in [page, ROOT / "docs" / "BENCHMARKS.md" if write_docs else None]:
        if path:
            path.write_text(markdown(report))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Run what the options ask for; the report, which a full run leaves in the history too."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise click.ClickException(f"{program}: not found: install {PROGRAMS[program]}")
    specs, names = chosen(options)
    folder = options.pop("folder") or Path(os.environ.get("TMPDIR", "/var/tmp"))
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[0].replace("\n", " ")
    report: dict[str, Any] = {"command": command(options), "about": about}
    report |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": records.machine()}
    kept = ("rounds", "seconds", "size", "prefill", "settle")
    report["parameters"] = {key: options[key] for key in kept} | {"peers": specs}
    begin = time.monotonic()
    # Attachments and their sockets are this run's own, whoever else has some.
    with tempfile.TemporaryDirectory(prefix="pmem-bench-") as runtime:
        os.environ["PMEM_NBD_RUNTIME_DIR"] = runtime
        report |= measured(options, specs, names, folder)
    report["minutes"] = (time.monotonic() - begin) / 60
    if options["compare"]:
        found = compare.with_twins(report["rounds"], options["compare"])
        title = f"{options['compare']}, in the same rounds"
        report["changes"] = {title: [dataclasses.astuple(one) for one in found]}
    full = ",".join(specs) == PEERS and names == list(workloads.WORKLOADS) and options["sections"] == list(SECTIONS)
    if full and not report["machine"].get("commit", "-changed").endswith("-changed"):
        click.echo(f"record: {records.save(report)}", err=True)
    elif full:
        click.echo("no record: this tree has changes that no commit has", err=True)
    return report


if __name__ == "__main__":
    main()
