# SPDX-License-Identifier: MIT
"""The verbs of servers: serve, stop, list."""

import datetime
import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from pmem_core import attach, launch, server
from pmem_core.cli._common import (
    IMAGE,
    PATH,
    emit,
    human_bytes,
    json_option,
    plain_console,
    policy_file_option,
    working,
)
from pmem_core.cli._signals import or_undone, signals_ignored
from pmem_core.errors import ServerError, UsageError

FIGURES_COLUMNS_MIN = 80  # a narrower terminal has room for the images and what they are used as, not for figures


def say(line: str) -> None:
    """Tell the person at the terminal something that is no output."""
    click.echo(line, err=True)


def known_as(image: Path) -> Path:
    """Return the path that an image is served by, which is not the one given where it was moved meanwhile."""
    running = server.find(image)
    return Path(running.image) if running else image


def start(image: Path, **options: Any) -> server.Server:
    """Start a server; on a terminal, show that this takes its time."""
    with working(f"starting the server of {image} (the first start compiles)"):
        return server.start(image, tell=say, **options)


class WithNbdkitArgs(click.Command):
    """A verb whose words behind `--` are nbdkit's; click would take any word that is left for one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        try:
            rest = super().parse_args(ctx, args[:end])
        except click.MissingParameter:
            if end == len(args):
                raise
            ctx.fail("Missing argument 'IMAGE' before `--`: what follows is nbdkit's; ./-a.pmem is a name with a dash")
        if (extra := ctx.params["nbdkit_args"]) and not ctx.resilient_parsing:
            ctx.fail(f"Got unexpected extra argument ({' '.join(extra)})")
        ctx.params["nbdkit_args"] = tuple(args[end + 1 :])
        return rest


@click.command(cls=WithNbdkitArgs)
@IMAGE
@click.option("--socket", metavar="PATH", type=PATH, help="Listen on this Unix socket (default: a private one).")
@click.option("--port", metavar="N", type=int, help="Listen on this TCP port instead.")
@click.option("--bind", metavar="ADDR", help="The address of --port (default: 127.0.0.1).")
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "-t",
    "--threads",
    metavar="N",
    type=click.IntRange(1),
    default=launch.THREADS,
    show_default=True,
    help="Threads of nbdkit for each connection. 1 is safe with every nbdkit, and best where clients have several "
    "connections. With 3 the next request is read while one is worked on: better for one client with one connection "
    "and large writes or flushes. More than 1 wants nbdkit 1.34: before, a client that hangs up early ends the server.",
)
@click.option(
    "--halt-poll/--no-halt-poll",
    default=True,
    help="Keep a processor from halting, by a thread of the lowest class, while small requests come one at a time and "
    "are answered sooner so, which is measured; the server takes more of an otherwise idle processor (default: do).",
)
@click.option("--log-writes", metavar="FILE", type=PATH, help="Log what is written to this new file (dm-log-writes).")
@click.option("--record", metavar="FILE", type=PATH, help="Record the requests in this new file, to be replayed.")
@policy_file_option
@click.option("-b", "--background", is_flag=True, help="Print the URI once it serves, and return.")
@click.argument("nbdkit_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- NBDKIT-ARGS...]")
def serve(
    image: Path,
    socket: Path | None,
    port: int | None,
    bind: str | None,
    read_only: bool,
    threads: int,
    halt_poll: bool,
    log_writes: Path | None,
    record: Path | None,
    background: bool,
    nbdkit_args: tuple[str, ...],
) -> None:
    """Serve an image over NBD until Ctrl-C, which stops it cleanly.

    With --background it is served until `pmem-nbd stop`; the URI alone is printed on standard output.

    What follows `--` is given to nbdkit: TLS, filters, its own options.

    \b
    Examples:
      pmem-nbd serve disk.pmem
      pmem-nbd serve disk.pmem --background
      nbdinfo "$(pmem-nbd serve disk.pmem --background)"
      pmem-nbd serve disk.pmem --port 10809
      pmem-nbd serve disk.pmem --port 10809 --bind 0.0.0.0 -- --tls=require --tls-certificates=pki
      pmem-nbd serve disk.pmem -- --filter=log logfile=requests.log
      pmem-nbd serve disk.pmem --log-writes writes.log
      pmem-nbd serve disk.pmem --record requests.trace
    """
    if socket is not None and port is not None:
        raise UsageError("--socket, --port", "both say where to listen", "one of them")
    if bind is not None and port is None:
        raise UsageError("--bind", "is the address of a port", "--port beside it")
    if word := launch.own_word(nbdkit_args):
        raise UsageError(word, "is set by pmem-nbd itself", "use its own option, see `pmem-nbd serve --help`")
    if log_writes is not None and read_only:
        raise UsageError("--log-writes", "has nothing to log", "a server without --read-only")
    if record is not None and read_only:
        raise UsageError("--record", "has nothing to record", "a server without --read-only")
    if log_writes is not None and record is not None and os.path.realpath(log_writes) == os.path.realpath(record):
        raise UsageError("--log-writes, --record", "both name one file", "two files")
    if warning := launch.threads_warning(threads, nbdkit_args):
        say(warning)
    files = {"logwrites": log_writes, "record": record}
    parameters = {name: str(file.absolute()) for name, file in files.items() if file}
    running = start(
        image,
        socket=socket,
        port=port,
        bind=bind or "127.0.0.1",
        read_only=read_only,
        threads=threads,
        parameters=parameters if halt_poll else parameters | {"halt_poll": "false"},
        nbdkit_args=nbdkit_args,
        exit_with_parent=not background,
    )
    try:
        with or_undone(partial(server.stop, running)):
            say(f"serving {image} on {running.uri} (process {running.pid})")
            if background:
                click.echo(running.uri)
            else:
                server.follow(running, say)
    except KeyboardInterrupt:
        # The next Ctrl-C must not cut the checkpoint short.
        with signals_ignored(), working(f"stopping the server of {image}"):
            server.stop(running)
        say(f"stopped serving {image}")


@click.command()
@IMAGE
def stop(image: Path) -> None:
    """Stop the server of an image, after a checkpoint.

    An image that is attached or mounted is not stopped: what its filesystem still holds would be lost.

    \b
    Examples:
      pmem-nbd stop disk.pmem
    """
    with attach.alone(known_as(image)):
        running = server.find(image)
        if running is None:
            raise ServerError(image, "is not being served", "an image that `pmem-nbd list` shows")
        if attached := attach.of_server(running, attach.attachments()):
            raise attach.busy(image, attached)
        with working(f"stopping the server of {image}"):
            server.stop(running)


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the servers of this user: where they listen, what they are attached to, and what they cost.

    An image that is attached is listed also where its server is gone, so that it can be detached. "disk read" and "disk
    written" are what the server's process read from disks and wrote to them; what clients read and wrote is in stats.

    \b
    Examples:
      pmem-nbd list
      pmem-nbd list -j
    """
    attached = attach.attachments()
    running = server.servers()
    rows = []
    for one, figures in zip(running, server.usage(running), strict=True):
        started = datetime.datetime.fromtimestamp(one.started).astimezone().isoformat(timespec="seconds")
        use = attach.of_server(one, attached)
        rows.append(_row(one, one.pid, started, use) | figures)
        attached = [other for other in attached if other is not use]
    # Some may have been detached since we looked.
    left = {one.name for one in attach.attachments()}
    rows += [_row(one, None, None, one) for one in attached if one.name in left]
    if as_json:
        emit(rows)
        return
    if not rows:
        say("nothing is being served")
        return
    _show(rows)


def _row(
    one: server.Server | attach.Attachment, pid: int | None, started: str | None, use: attach.Attachment | None
) -> dict[str, Any]:
    return {
        "image": one.image,
        "pid": pid,
        "uri": one.uri,
        "read_only": one.read_only,
        "started": started,
        "device": use.device if use else "",
        "directory": use.directory if use else "",
    }


def _show(rows: list[dict[str, Any]]) -> None:
    """Print the servers as a table for people."""
    from rich.table import Table

    console = plain_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = plain_console(width=1000)  # for grep and awk: one line each
    headings = ["memory", "CPU", "disk read", "disk written", "clients"]
    if console.width < FIGURES_COLUMNS_MIN:
        headings = []
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    for heading in ("pid", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("used as", overflow="fold")
    for row in rows:
        where = row["uri"].rpartition("unix:///?socket=")[2]
        use = " on ".join(filter(None, [row["device"], row["directory"]])) or where
        if row["pid"] is None and "://" not in row["image"]:
            use = f"{use} (server gone)"
        figures = ["?"] * 5
        if "memory_bytes" in row:
            figures = [
                human_bytes(row["memory_bytes"]),
                f"{row['cpu_percent']:.0f} %",
                human_bytes(row["disk_read_bytes"]),
                human_bytes(row["disk_written_bytes"]),
                str(row["connections"]),
            ]
        image = row["image"] + (" (read-only)" if row["read_only"] else "")
        table.add_row(image, str(row["pid"] or "-"), *figures[: len(headings)], use)
    console.print(table)
