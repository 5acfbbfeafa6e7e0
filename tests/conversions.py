# SPDX-License-Identifier: MIT
"""Kills and power cuts at every step of a conversion, and that what goes on finds every page as it was.

    python tests/conversions.py [--cuts N] [--seed N]
    ... --only CASE.NUMBER     one cut again, as a failure prints it
    ... --plant BUG            with a bug to be found

A child converts a small image and is killed before one of its events: a sync, a commit, a rename, or within a loop over
pages.  After a power cut the files are made anew from what had been synced and a choice of what had not, by sectors of
512 bytes.  Then the same command is given again, and sometimes cut again.
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pmem_core import convert, geometry, host, image, journal, layout, reshape
from pmem_core.check import check
from pmem_core.convert import steps
from pmem_core.device import Device
from pmem_core.errors import PmemError

PAGE, SECTOR = layout.PAGE_BYTES, 512
KILLED = 9
CHECKED = 0.25  # of the images are given to `check`, which takes its time
# Size in KiB, descriptor bytes and format before and after, what else; each with moves at almost every store.
GAP = {"leveling_name": "start_gap", "parameters": {"interval": 2, "region_frames": 32, "gap_frames": 2}}
SWAP = {"leveling_name": "table_swap", "parameters": {"interval": 3}, "descriptor_writes": "coalesced"}
CASES: dict[str, tuple[int, tuple[int, int], tuple[int, int], dict[str, Any]]] = {
    "growth": (640, (64, 1), (128, 2), GAP),
    "shrinking": (640, (128, 2), (64, 1), GAP),
    "small frames": (512, (32, 1), (1024, 2), {**GAP, "frame_bytes": 1024}),
    "format": (512, (128, 1), (128, 2), {"leveling_name": "none"}),
    "linear": (6144, (64, 1), (2048, 2), {"placement_name": "linear", "leveling_name": "none"}),
    "swap": (768, (4096, 2), (16, 1), SWAP),
}


class Broken(Exception):
    """A promise was broken."""


# ---- the disk ----


class Disk:
    """What of the files of an image is durable, by inode, and which names are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.durable = {path.stat().st_ino: path.read_bytes() for path in self._files()}
        self.names = self._names()

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_file()]

    def _names(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self._files()}

    def synced(self, fd: int, ranges: list[tuple[int, int]] | None = None) -> None:
        """A file, parts of it, or the folder, is durable."""
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path == self.folder:
            self.names = self._names()
        elif path.parent == self.folder:
            now, inode = path.read_bytes(), os.fstat(fd).st_ino
            if ranges is None:
                self.durable[inode] = now
            else:
                kept = bytearray(self.durable[inode])
                for first, end in ranges:
                    kept[first:end] = now[first:end]
                self.durable[inode] = bytes(kept)

    def lose(self, left: Path, chance: random.Random) -> None:
        """Write what a power cut leaves into the folder `left`; of the journal, all: its commits are durable."""
        shutil.copytree(self.folder / "journal", left / "journal")
        newest, style = self._names(), chance.random()
        now = {path.stat().st_ino: path.read_bytes() for path in self._files()}
        for name in sorted({*newest, *self.names}):
            entry = chance.choice((newest, self.names))
            if name not in entry:
                continue
            # An inode that lost its name is gone from `now`: its last content was synced before that.
            old = self.durable.get(entry[name], b"")
            new = now.get(entry[name], old)
            if len(old) != len(new):
                (left / name).write_bytes(chance.choice((old, new)))
                continue
            mixed = bytearray(old)
            for at in range(0, len(new), SECTOR):
                if new[at : at + SECTOR] != old[at : at + SECTOR] and chance.random() < style:
                    mixed[at : at + SECTOR] = new[at : at + SECTOR]
            (left / name).write_bytes(mixed)


# ---- one that is cut off ----


class Cutter:
    """Counts events, and ends the process before event number `at`: by a kill, or by a power cut (`left`)."""

    def __init__(self, folder: Path, at: int, left: Path | None, chance: random.Random) -> None:
        self.at, self.left, self.chance, self.count = at, left, chance, 0
        self.disk = Disk(folder)

    def event(self) -> bool:
        """Something is about to happen; True where the end comes while it does."""
        self.count += 1
        return self.count == self.at

    def end(self) -> None:
        """The end."""
        if self.left is not None:
            self.disk.lose(self.left, self.chance)
        os._exit(KILLED)

    def before(self, real: Callable[..., Any], after: Callable[..., None] = lambda *_: None) -> Callable[..., Any]:
        def function(*arguments: Any, **named: Any) -> Any:
            if self.event():
                self.end()
            result = real(*arguments, **named)
            after(*arguments)
            return result

        return function

    def within(self, real: Callable[..., Any], first: int, end: int) -> Callable[..., Any]:
        """A loop of reshape, whose arguments number `first` and `end` are where it begins and ends."""

        def function(*arguments: Any) -> Any:
            if self.event():
                part, at = list(arguments), arguments[first]
                part[end] = at + (-1 if part[end] < at else 1) * self.chance.randint(0, abs(part[end] - at))
                real(*part)
                self.end()
            return real(*arguments)

        return function

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Within this, events are seen."""
        with contextlib.ExitStack() as stack:

            def patch(owner: Any, name: str, made: Any) -> None:
                stack.enter_context(mock.patch.object(owner, name, made))

            patch(os, "fdatasync", self.before(os.fdatasync, self.disk.synced))
            patch(os, "fsync", self.before(os.fsync, self.disk.synced))
            ranges = self.before(host.sync_ranges, lambda fd, _, ranges: self.disk.synced(fd, ranges))
            patch(host, "sync_ranges", ranges)
            patch(journal._Transaction, "__exit__", self.before(journal._Transaction.__exit__))
            patch(Path, "rename", self.before(Path.rename))
            patch(Path, "unlink", self.before(Path.unlink))
            patch(reshape, "move", self.within(reshape.move, 3, 4))
            patch(reshape, "sweep_pages", self.within(reshape.sweep_pages, 4, 5))
            yield


@contextlib.contextmanager
def boot(number: int) -> Iterator[None]:
    """Whose page cache this is."""
    found = {"boot": str(number), "mount": 1, "device": 1, "inode": 1}
    with mock.patch.object(host, "witness", return_value=found):
        yield


def apart(work: Callable[[], None]) -> int:
    """Do it in a child; its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- a case ----


class Case:
    """An image to be converted, and what is in it."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name, self.seed, self.folder = name, seed, folder
        size, before, self.to, more = CASES[name]
        chance = random.Random(f"{name} {seed}")
        self.start, self.path = folder / "start.pmem", folder / "disk.pmem"
        plan, new = (
            geometry.plan(size << 10, descriptor_bytes=one[0], descriptor_format=one[1], line_bytes=256, **more)
            for one in (before, self.to)
        )
        image.create(self.start, plan)
        self.pages = min(plan.info.page_count, new.info.page_count)
        with Device(self.start) as device:
            for page in chance.sample(range(self.pages), self.pages * 9 // 10):
                device.write(chance.randbytes(PAGE), page * PAGE)
                if chance.random() < 0.15:
                    device.trim(PAGE, chance.randrange(self.pages) * PAGE)
            self.content = device.read(self.pages * PAGE, 0)
        self.events = self._measure()

    def _reset(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.start, self.path)

    def _measure(self) -> int:
        """How many events there are."""
        self._reset()
        cutter = Cutter(self.path, 0, None, random.Random(0))
        with boot(0), cutter.hooks():
            convert.convert(self.path, *self.to)
        return cutter.count

    def cut(self, number: int) -> str:
        """Convert, cut off as `number` says, and go on; what happened.  Broken."""
        chance = random.Random(f"{self.name} {self.seed} {number}")
        self._reset()
        story, boots = [], 0
        for _ in range(1 + (chance.random() < 0.4)):
            at, power = chance.randint(1, self.events), chance.random() < 0.6
            left = self.folder / "left.pmem" if power else None
            shutil.rmtree(self.folder / "left.pmem", ignore_errors=True)

            def work(at: int = at, left: Path | None = left, number: int = boots) -> None:
                with boot(number):
                    cutter = Cutter(self.path, at, left, chance)
                    with cutter.hooks():
                        self._again()

            status = apart(work)
            if status not in (0, KILLED):
                raise Broken(f"{', '.join([*story, 'the command given again fails'])}")
            story.append(f"{'cut' if power else 'killed'} before event {at} of {self.events}" if status else "done")
            if status and left is not None:
                shutil.rmtree(self.path)
                left.rename(self.path)
                boots += 1
        with boot(boots):
            try:
                self._again()
                self._judge(chance)
            except (PmemError, Broken) as error:
                raise Broken(f"{', '.join(story)}: {error}") from None
        return ", ".join(story)

    def _again(self) -> None:
        """The command, given again."""
        convert.convert(self.path, *self.to)

    def _judge(self, chance: random.Random) -> None:
        with Device(self.path, read_only=True) as device:
            if device.recovery:
                raise Broken(f"it was not closed: {device.recovery}")
            if steps.shape(device.plan.info) != {"descriptor_bytes": self.to[0], "descriptor_format": self.to[1]}:
                raise Broken("it is not converted")
            for page in range(device.plan.info.page_count):
                found = device.read(PAGE, page * PAGE)
                if found != self.content[page * PAGE : (page + 1) * PAGE].ljust(PAGE, b"\0"):
                    raise Broken(f"page {page} is not what it was")
        names = {entry.name for entry in self.path.iterdir()}
        if not names <= {"media", "wear", "state", "journal", "lock", "state.new"}:
            raise Broken(f"left over: {names}")
        if chance.random() < CHECKED:
            report = check(self.path)
            if not report.clean:
                raise Broken(f"check: {[str(one) for one in report.findings]}")


# ---- bugs to be found ----


def batch_too_long() -> Any:
    """Pages of one batch go where others of it come from."""
    real = reshape.batch

    def batch(device: Any, target: Any, held: Any, page: int, step: int, most: int) -> tuple[int, int]:
        first, end = real(device, target, held, page, step, most)
        pages = min(int(device[0][0]["page_count"]), int(target[0][0]["page_count"]))
        return first, max(-1, min(pages, first + 2 * (end - first)))

    return mock.patch.object(reshape, "batch", batch)


def told_too_early() -> Any:
    """The journal is told how far the conversion is before that is durable."""

    def commit(self: Any, phase: str, at: int | None) -> None:
        self.record = {**self.record, "phase": phase, "at": at}
        self.device.journal.put_conversion(self.record)
        self.device.checkpoint()

    return mock.patch.object(steps.Conversion, "_commit", commit)


PLANTED = {"batch too long": batch_too_long, "told too early": told_too_early}


def main() -> int:
    """Convert, cut, judge; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("PMEM_NBD_SEED", "20150507")))
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--only", default="", help="CASE.NUMBER, as a failure prints it")
    parser.add_argument("--plant", choices=PLANTED)
    given = parser.parse_args()
    started, memory = time.monotonic(), Path("/dev/shm")
    plant = PLANTED[given.plant] if given.plant else contextlib.nullcontext
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        mock.patch.object(host, "is_tmpfs", return_value=False),
        plant(),
    ):
        for turn, name in enumerate(CASES):
            if given.only and given.only.rpartition(".")[0] != name:
                continue
            work = Path(folder) / str(turn)
            work.mkdir()
            case = Case(name, given.seed, work)
            numbers = [int(given.only.rpartition(".")[2])] if given.only else range(-(-given.cuts // len(CASES)))
            for number in numbers:
                try:
                    case.cut(number)
                except Broken as error:
                    print(f"{name}: {error}\nagain: --seed {given.seed} --only '{name}.{number}'")
                    return 1
            print(f"{name}: {len(numbers)} cuts, {case.events} events")
    print(f"seed {given.seed}: {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
