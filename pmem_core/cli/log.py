# SPDX-License-Identifier: MIT
"""The verbs of logs of writes: log, replay-log."""

import collections
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import psutil

from pmem_core import host, launch, listen, runtime, server
from pmem_core.cli._common import PATH, emit, human_bytes, json_option, progress, refuse
from pmem_core.errors import CheckFailed, ServerError, UsageError
from pmem_core.logwrites import record, replay
from pmem_core.logwrites.reader import Entry, Log

LOG = click.argument("log", type=PATH)
NUMBER = click.IntRange(0)
POINTS = {"flush": record.FLUSH, "fua": record.FUA, "mark": record.MARK}


@click.command("log", short_help="List a log of writes, or put a mark into it.")
@LOG
@click.option("--from", "first", metavar="N", type=NUMBER, default=0, help="Begin at entry N (default: 0).")
@click.option("--to", "last", metavar="N", type=NUMBER, help="End with entry N (default: the last).")
@click.option("--mark", metavar="NAME", help="List nothing; have the server that writes this log put a mark into it.")
@json_option
def log(log: Path, first: int, last: int | None, mark: str | None, as_json: bool) -> None:
    """List the entries of LOG, which `serve --log-writes` or the kernel's dm-log-writes has made: number, first sector,
    sectors, flags, the text of a mark; and below them what they come to.

    A log can be read while it is written. Sectors are the log's own, mostly of 512 bytes.

    \b
    Examples:
      pmem-nbd log writes.log
      pmem-nbd log writes.log --from 100 --to 120
      pmem-nbd log writes.log --mark before-rename
      pmem-nbd log writes.log -j | jq '.entries[] | select(.mark) | .number'
    """
    if last is not None and last < first:
        raise UsageError(f"--from {first} --to {last}", "no entry lies between", "--to no less than --from")
    if mark is not None:
        refuse("nothing is listed", "--mark without it", "first", "last")
        number = _put_mark(log, mark)
        if as_json:
            emit({"log": str(log), "mark": mark, "number": number})
        return
    with Log(log) as opened:
        totals = Totals()
        if not as_json:
            click.echo(f"{'entry':>9}  {'sector':>12}  {'sectors':>9}  flags")
        rows = []
        for entry in opened.entries(first):
            if last is not None and entry.number > last:
                break
            totals.add(entry)
            row = _row(entry, opened.sector_bytes)
            if as_json:
                rows.append(row)
            else:
                flags = "+".join(row["flags"]) + (f"  {entry.mark!r}" if entry.has(record.MARK) else "")
                line = f"{entry.number:>9}  {row['sector']:>12}  {row['sectors']:>9}  {flags}"
                click.echo(line.rstrip())
        if as_json:
            size = {"sector_bytes": opened.sector_bytes, "device_bytes": opened.device_bytes or None}
            emit({"log": str(log), "count": opened.count, **size, "entries": rows, "totals": totals.counts})
        else:
            click.echo(f"{log}: {totals}; sectors of {opened.sector_bytes} bytes")


class Totals:
    """What entries come to."""

    def __init__(self) -> None:
        names = ("entries", "writes", "written_bytes", "flushes", "fua", "discards", "discarded_bytes", "marks")
        self.counts: collections.Counter[str] = collections.Counter(dict.fromkeys(names, 0))
        self.whole = False

    def add(self, entry: Entry) -> None:
        """Count one more."""
        kind = {record.DISCARD: "discards", record.MARK: "marks"}.get(entry.flags & (record.DISCARD | record.MARK))
        if kind is None and entry.count:
            kind = "writes"
        if kind:
            self.counts[kind] += 1
        if entry.count:
            self.counts["discarded_bytes" if kind == "discards" else "written_bytes"] += entry.count
        self.counts["entries"] += 1
        self.counts["flushes"] += entry.has(record.FLUSH)
        self.counts["fua"] += entry.has(record.FUA)
        self.whole = entry.mark in (record.MARK_END, "dm-log-writes-end")

    def __str__(self) -> str:
        said = self.counts
        words = [
            f"{said['entries']} entries: {said['writes']} writes ({human_bytes(said['written_bytes'])})",
            f"{said['fua']} with FUA",
            f"{said['flushes']} flushes",
            f"{said['discards']} discards ({human_bytes(said['discarded_bytes'])})",
            f"{said['marks']} marks",
        ]
        return ", ".join(words) + ("" if self.whole else "; without the mark of an end")


def _row(entry: Entry, sector_bytes: int) -> dict[str, Any]:
    return {
        "number": entry.number,
        "sector": entry.offset // sector_bytes,
        "sectors": entry.count // sector_bytes,
        "flags": record.flag_names(entry.flags),
        "mark": entry.mark if entry.has(record.MARK) else None,
        "data_at": entry.data_at if entry.data_bytes else None,
    }


def _put_mark(log: Path, mark: str) -> int:
    """Have a mark put into a log by its server: a client that asks for the export `mark:NAME` does that.

    The number of its entry.
    """
    size = len(mark.encode(errors="surrogateescape"))
    if not 0 < size <= record.MARK_BYTES_MAX:
        raise UsageError("--mark", f"{size} bytes", f"1 to {record.MARK_BYTES_MAX}")
    if not launch.is_text(mark):
        raise UsageError("--mark", "is not UTF-8", "a name that is")
    with Log(log) as opened:
        before = opened.count
    one = next((one for one in server.servers() if runtime.has_open(one.pid, log)), None)
    if one is None:
        raise ServerError(log, "no server writes it", "one that `pmem-nbd serve --log-writes` has started")
    listen.visit_export(one.socket or (one.address or "", one.port or 0), f"{record.MARK_PREFIX}{mark}")
    with Log(log) as opened:
        for entry in opened.entries(before):
            if entry.mark == mark:
                return entry.number
    raise ServerError(log, "its server did not put the mark into it", f"see {one.log}")


# --- replay-log -------------------------------------------------------------------------------------------------------


@click.command("replay-log", short_help="Replay a log of writes onto a file or a block device, and check there.")
@LOG
@click.option("--onto", "target", metavar="TARGET", type=PATH, help="The file or block device (a new file is made).")
@click.option("--from", "first", metavar="N", type=NUMBER, help="Begin with entry N (default: 0).")
@click.option("--from-mark", metavar="NAME", help="Begin behind this mark.")
@click.option("--to", "last", metavar="N", type=NUMBER, help="Stop behind entry N.")
@click.option("--to-mark", metavar="NAME", help="Stop at this mark.")
@click.option("--next-flush", is_flag=True, help="Stop at the next flush.")
@click.option("--next-fua", is_flag=True, help="Stop behind the next write with FUA.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Stop after N entries.")
@click.option("--find", is_flag=True, help="Replay nothing; print the number of the entry where it would stop.")
@click.option("--no-discard", is_flag=True, help="Let discards do nothing (default: they make zeros).")
@click.option("--fsck", metavar="CMD", help="Run this shell command at each point that --check chooses.")
@click.option("--check", metavar="WHEN", help="flush (default), fua, mark, or N: after every N entries.")
@click.option("--on-copy", is_flag=True, help="Let the command have a copy of TARGET, which it may change.")
@json_option
def replay_log(
    log: Path,
    target: Path | None,
    first: int | None,
    from_mark: str | None,
    find: bool,
    no_discard: bool,
    fsck: str | None,
    check: str | None,
    on_copy: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Replay LOG onto TARGET up to a chosen entry, or to its end: TARGET is then what the device may have held there
    after a power cut. To go on, say --from with the next number.

    TARGET has to begin as the device did when the log was begun: a new image reads as zeros, as a new file does.

    The command of --fsck finds TARGET (or its copy) in $TARGET and the number of the entry in $ENTRY. The first that
    fails ends it, with the number of its entry and exit status 1. A check that mounts TARGET changes it, so it wants
    --on-copy.

    \b
    Examples:
      pmem-nbd replay-log writes.log --onto scratch --to 120
      pmem-nbd replay-log writes.log --onto scratch --next-flush
      pmem-nbd replay-log writes.log --onto scratch --from 121 --next-flush
      pmem-nbd replay-log writes.log --onto scratch --fsck 'xfs_repair -n $TARGET' --check mark
      pmem-nbd replay-log writes.log --onto scratch --on-copy \\
          --fsck 'mount -o loop $TARGET /mnt && umount /mnt && e2fsck -fn $TARGET'
      pmem-nbd replay-log writes.log --find --to-mark before-rename
    """
    if first is not None and from_mark is not None:
        raise UsageError("--from, --from-mark", "both say where to begin", "one of them")
    if (target is None) != find:
        raise UsageError("--onto, --find", "both or neither is given", "exactly one of them")
    if find:
        refuse("nothing is replayed", "--onto TARGET in place of --find", "fsck", "check", "on_copy")
    if fsck is None and (check or on_copy):
        raise UsageError("--check, --on-copy", "have nothing to run", "--fsck beside them")
    if on_copy and target is not None and target.is_block_device():
        raise UsageError("--on-copy", "would copy a block device", "a file as the target")
    is_due = _due(check or "flush") if fsck else lambda entry, done: False
    with Log(log) as opened:
        span = replay.find(opened, first=first or 0, after_mark=from_mark, stop=_stop(**where))
        found: dict[str, Any] = {"first": span.first, "last": span.last, "next": span.last + 1, "count": opened.count}
        if target is None:
            emit(found) if as_json else click.echo(span.last)
            return
        host.require_outside_images(target)
        with replay.Target(target, span, opened) as onto:
            applied = replay.replay(opened, span, onto, discard=not no_discard)
            found["checks"] = _follow(applied, span, is_due, onto, fsck or "", on_copy)
            onto.sync()
    if as_json:
        emit(found)
        return
    rest = f"--from {found['next']} goes on" if found["next"] < found["count"] else "the end of the log"
    checked = f", {found['checks']} times checked" if fsck else ""
    click.echo(f"{target}: replayed entries {span.first} to {span.last}{checked}; {rest}")


def _stop(*, last: int | None, to_mark: str | None, next_flush: bool, next_fua: bool, limit: int | None) -> replay.Stop:
    flags = record.FLUSH * next_flush | record.FUA * next_fua
    return replay.Stop(entry=last, limit=limit, flags=flags, mark=to_mark)


def _due(when: str) -> Callable[[Entry, int], bool]:
    """Say what tells whether a check is due behind an entry, and behind so many that are done."""
    if when in POINTS:
        return lambda entry, done: entry.has(POINTS[when])
    if when.isdecimal() and len(when) < 19 and int(when):
        return lambda entry, done: done % int(when) == 0
    raise UsageError(f"--check {when}", "is no such point", "flush, fua, mark, or a number above zero")


def _follow(
    applied: Iterable[Entry],
    span: replay.Span,
    is_due: Callable[[Entry, int], bool],
    target: replay.Target,
    command: str,
    on_copy: bool,
) -> int:
    """Let the replay go on, and check where that is due; how many checks there were."""
    checks = 0
    with progress("Replaying", total=span.last - span.first + 1) as watch:
        for done, entry in enumerate(applied, 1):
            watch(done)
            if is_due(entry, done):
                target.sync()
                _check(command, target.path, entry.number, on_copy)
                checks += 1
    return checks


def _check(command: str, target: Path, number: int, on_copy: bool) -> None:
    subject = target
    if on_copy:
        subject = target.with_name(f"{target.name}.{os.getpid()}.copy")
    try:
        if on_copy:
            replay.copy_sparse(target, subject)
        environment = {**os.environ, "TARGET": str(subject), "ENTRY": str(number)}
        with launch.uninterrupted() as go_on:
            # What it prints is for people; our own output may be JSON.
            check = subprocess.Popen(["/bin/sh", "-c", command], env=environment, stdout=2)
            try:
                go_on()
                status = check.wait()
            except BaseException:
                _kill(check)
                raise
    finally:
        if on_copy:
            subject.unlink(missing_ok=True)
    if status:
        raise CheckFailed(target, f"the check failed with status {status} at entry {number}", "status 0")


def _kill(check: "subprocess.Popen[bytes]") -> None:
    """End a check with all that it has started."""
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(check.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                one.kill()
    check.kill()
    check.wait()
