# SPDX-License-Identifier: MIT
"""Real power cuts: ext4 or xfs is shut down under an image in use, and what was not synced is really gone.

    python tests/power_cuts.py --fs xfs [--choice NAME] [--seed N] [--cuts N]
    ... --choice NAME --life LIFE    one image's life again, as a failure prints it
    ... --plant BUG                  with a bug from tests/planted.py

As root.  An image lives for CUTS_A_LIFE cuts: a forked child opens it and works until the cut, the filesystem is
mounted again, the image checked and every byte compared with what a naive oracle says may be there.  A cut is made

between     requests, by the child itself;
at a sync   or commit or rename, before it or after it, by the child itself, the opening's included;
amid        anything: by another process after a number of microseconds, so this alone is never quite the same again.

The same seed has the same requests and the same instants, up to those microseconds and to what the kernel writes by
itself.
"""

import argparse
import collections
import contextlib
import mmap
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import power
from kills import CHOICES, SEED, SIZE, Child, Choice, some_bytes
from planted import PLANTED

from pmem_core import geometry, host, image, journal, layout
from pmem_core.check import Kind, check
from pmem_core.device import Device
from pmem_core.errors import PmemError

PAGE = layout.PAGE_BYTES
SECTOR = 512
WITHIN = 1  # bytes that are whole where a page is written back beside the working code: the kernel waits for no memcpy
CUTS_A_LIFE = 6
CHECKED = 0.07  # of the cuts; a check takes as long as several
HOW = ("between", "at a sync", "amid")
# Of Child.counts.
OPENED, BEGUN, DONE, CUT, COUNTED, COMMITTED, MOVES = range(7)
# What `check` may say after a cut; anything else is a broken promise.
EXPECTED = {Kind.WEAR_UNCHECKPOINTED, Kind.UNSETTLED, Kind.LEAKED_DATA, Kind.STRANGE_FILE}


class Broken(Exception):
    """A promise was."""


# ---- requests, and what they may leave ----


@dataclass(frozen=True)
class Request:
    """write (data), trim or zero (as many bytes as data has), flush; settle and commit are housekeeping's."""

    name: str
    offset: int = 0
    data: bytes = b""
    fua: bool = False
    may_trim: bool = True

    def ask(self, device: Device) -> None:
        """Do it on a device."""
        if self.name == "write":
            device.write(self.data, self.offset, fua=self.fua)
        elif self.name == "trim":
            device.trim(len(self.data), self.offset, fua=self.fua)
        elif self.name == "zero":
            device.zero(len(self.data), self.offset, may_trim=self.may_trim, fua=self.fua)
        elif self.name == "flush":
            device.flush()
        elif self.name == "settle":
            device.checkpoint(settle_sections=True)
        else:
            device.commit_moves()

    def span(self) -> tuple[int, int]:
        """First byte changed, and the end."""
        first, end = self.offset, self.offset + len(self.data)
        return (-(-first // PAGE) * PAGE, end // PAGE * PAGE) if self.name == "trim" else (first, end)


def requests(chance: random.Random, first_page: int, pages: int, *, keeps: bool = True) -> Iterator[Request]:
    """An endless workload on some pages; keeps: housekeeping's too."""
    while True:
        page = chance.randrange(pages if chance.random() < 0.5 else min(24, pages))
        count = min(chance.choice((1, 1, 1, 1, 2, 5, 24)), pages - page) * PAGE
        offset, kind, fua = (first_page + page) * PAGE, chance.random(), chance.random() < 0.06
        if kind < 0.55:
            yield Request("write", offset, some_bytes(chance, count), fua)
        elif kind < 0.75:
            at = chance.randrange(PAGE)
            size = min(chance.choice((1, 512, 3000, 9000)), (pages - page) * PAGE - at)
            yield Request("write", offset + at, some_bytes(chance, size), fua)
        elif kind < 0.82:
            yield Request("trim", offset, bytes(count), fua)
        elif kind < 0.9:
            at = chance.choice((0, 0, 512, 700))
            yield Request("zero", offset + at, bytes(count - at), fua, may_trim=chance.random() < 0.5)
        elif kind < 0.97 or not keeps:
            yield Request("flush")
        else:
            yield Request("settle" if kind < 0.985 else "commit")


@dataclass
class Oracle:
    """What the device may hold.  sure: what it held when this session began; versions: of each page since it is sure.

    grain: bytes that a cut leaves whole.
    """

    sure: bytearray
    grain: int = SECTOR
    versions: dict[int, list[bytes]] = field(default_factory=dict)

    def begun(self, request: Request) -> None:
        """Note a request that was asked for."""
        first, end = request.span()
        data = request.data if request.name == "write" else bytes(max(0, end - first))
        for page in range(first // PAGE, -(-end // PAGE) if first < end else 0):
            start = page * PAGE
            held = self.versions.setdefault(page, [bytes(self.sure[start : start + PAGE])])
            new = bytearray(held[-1])
            left, right = max(first, start), min(end, start + PAGE)
            new[left - start : right - start] = data[left - first : right - first]
            held.append(bytes(new))

    def answered(self, request: Request) -> None:
        """Note that it was answered: a flush covers all that came before it, FUA its own pages."""
        first, end = request.span()
        covered = range(first // PAGE, -(-end // PAGE)) if request.fua else ()
        for page in list(self.versions) if request.name == "flush" else covered:
            if page in self.versions:
                del self.versions[page][:-1]

    def accept(self, found: bytes, grain: int = 0) -> tuple[int, int]:
        """Compare, and be sure of it from now on; how many pages are not the newest, and how many are torn.  Broken.

        grain: bytes that were left whole, if not as many as ever.
        """
        lost = torn = 0
        wanted = bytearray(self.sure)
        for page, held in self.versions.items():
            at = page * PAGE
            data = found[at : at + PAGE]
            wanted[at : at + PAGE] = data
            if data == held[-1]:
                continue
            lost += 1
            torn += data not in held
            same = np.array([np.frombuffer(data, np.uint8) == np.frombuffer(one, np.uint8) for one in held])
            wrong = np.flatnonzero(~same.reshape(len(held), -1, grain or self.grain).all(axis=2).any(axis=0))
            if len(wrong):
                byte = int(wrong[0]) * (grain or self.grain)
                raise Broken(f"page {page}, byte {byte}: {data[byte:][:8].hex()}, one of {len(held)} versions expected")
        if wanted != found:
            bytes_off = np.flatnonzero(np.frombuffer(wanted, np.uint8) != np.frombuffer(found, np.uint8))
            raise Broken(f"page {bytes_off[0] // PAGE}: changed though nobody wrote it; {len(bytes_off)} bytes in all")
        self.sure[:] = found
        self.versions.clear()
        return lost, torn


# ---- the child that works ----


def worn_in(core: bytes) -> int:
    """The lines counted, by a core record."""
    return int(np.frombuffer(core, np.int64, len(layout.CAUSES), layout.TALLY.fields["worn"][1]).sum())


class Worker:
    """In the child: opens, works, and cuts where it is told to."""

    def __init__(self, life: "Life", child: Child, chance: random.Random) -> None:
        self.life, self.child, self.chance = life, child, chance
        self.device: Device | None = None
        self.instants = 0

    def cut(self) -> None:
        """Cut, and be gone."""
        if self.device is not None:
            self._count(bytes(self.device.mapping.core.data))
        if self.life.writes_back:
            power.write_back(self.life.path, self.chance)
        self.child.counts[CUT] = 1
        self.life.host.cut(flush_log=self.life.flushes_log)
        os._exit(0)

    def _count(self, core: bytes) -> None:
        self.child.counts[COUNTED] = worn_in(core)
        self.child.counts[MOVES] = int(self.device.mapping.core["tally"][0]["moves"])

    def _instant(self) -> None:
        self.instants += 1
        if self.life.how == "at a sync" and self.instants > self.life.when:
            self.cut()

    def _hook(self, owner: Any, name: str) -> None:
        """Make the begin and the end of a call instants."""
        real = getattr(owner, name)

        def hooked(*arguments: Any, **named: Any) -> Any:
            self._instant()
            result = real(*arguments, **named)
            self._instant()
            return result

        setattr(owner, name, hooked)

    def work(self) -> None:
        """Open and work until the cut."""
        power.end_with_parent()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        counts, life = self.child.counts, self.life
        counts[COUNTED], counts[COMMITTED] = life.counted, life.committed
        for owner, name in ((os, "fsync"), (os, "fdatasync"), (host, "sync_ranges"), (Path, "rename")):
            self._hook(owner, name)
        self._hook(journal._Transaction, "__exit__")
        real = journal.Journal.checkpoint

        def checkpoint(held: Any, core: bytes, *arguments: Any, **named: Any) -> None:
            real(held, core, *arguments, **named)
            counts[COMMITTED] = worn_in(core)

        journal.Journal.checkpoint = checkpoint
        try:
            self.device = Device(life.path)
            counts[OPENED] = 1
            for request in life.requests():
                counts[BEGUN] += 1
                request.ask(self.device)
                counts[DONE] += 1
                if life.how == "between" and counts[DONE] >= life.when:
                    self.cut()
        except (PmemError, OSError):
            # Without power nothing works any more.
            if not counts[CUT]:
                raise


class StateView:
    """The core record of an image in use, which stays in the page cache when the power is gone."""

    def __init__(self, path: Path) -> None:
        plan = image.load_geometry(path, read_only=True)
        first = plan.zones()["core"][0]
        size = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE).itemsize
        self._at = slice(first, first + size)
        with (path / "state").open("rb") as file:
            self._held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.core()  # a page that was not mapped before cannot be mapped then

    def core(self) -> bytes:
        """What it is now."""
        return self._held[self._at]

    def __enter__(self) -> "StateView":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


# ---- one image's life ----


def warm_up(device: Device) -> None:
    """Load compiled code, once for all children; the device reads as zeros after it, as before."""
    for request in (
        Request("write", 0, b"a" * PAGE, fua=True),
        Request("write", 5, b"a"),
        Request("zero", 0, bytes(5), may_trim=False),
        Request("settle"),
        Request("commit"),
        Request("trim", 0, bytes(device.plan.device_bytes)),
        Request("flush"),
    ):
        request.ask(device)
    device.read(PAGE, 0)
    device.extents(PAGE, 0)


class Life:
    """An image from its creation over CUTS_A_LIFE cuts to its close."""

    def __init__(self, host_: power.Host, choice: Choice, seed: str, told: collections.Counter) -> None:
        self.host, self.choice, self.seed, self.told = host_, choice, seed, told
        self.path = host_.folder / "disk.pmem"
        self.cut = -1
        with mock.patch.object(
            geometry.uuid_, "uuid4", return_value=uuid.UUID(int=random.Random(seed).getrandbits(128))
        ):
            choice.create(self.path, SIZE)
        plan = image.load_geometry(self.path)
        self.pages = plan.info.page_count
        self.oracle = Oracle(bytearray(plan.device_bytes), min(SECTOR, plan.info.frame_bytes))
        with Device(self.path) as device:
            warm_up(device)
            self.committed = self.counted = self._worn(device)
            self.moves = int(device.mapping.core["tally"][0]["moves"])
        self.surplus = 0  # line writes that the wear file has more than the totals, since an earlier cut
        self.closed = True
        self._plan_cut()

    def _plan_cut(self) -> None:
        self.cut += 1
        self.chance = random.Random(f"{self.seed}.{self.cut}")
        self.how = self.chance.choice(HOW)
        self.when = self.chance.choice((self.chance.randrange(1, 12), self.chance.randrange(1, 64)))
        self.delay = self.chance.uniform(0, 0.002)
        self.writes_back, self.flushes_log = self.chance.random() < 0.6, self.chance.random() < 0.4

    def requests(self) -> Iterator[Request]:
        """Those of the session that the next cut ends."""
        return requests(random.Random(f"{self.seed}.{self.cut} requests"), 0, self.pages)

    @staticmethod
    def _worn(device: Device) -> int:
        return int(device.mapping.core["tally"][0]["worn"].sum())

    def __str__(self) -> str:
        at = {"between": "after request", "at a sync": "at instant", "amid": "in or after request"}[self.how]
        log = ", log flushed" if self.flushes_log else ""
        return f"cut {self.cut}, {self.how}: {at} {self.when}{log}"

    def live(self) -> None:
        """All cuts, then a close; Broken."""
        for _ in range(CUTS_A_LIFE):
            self._session()
            self.host.restart()
            self.told[f"cuts {self.how}"] += 1
            self._judge()
            self._plan_cut()
        with Device(self.path) as device:
            self._compare(device)
        require_told(require_clean(self.path), self.surplus)
        if self.chance.random() < 0.25:
            check(self.path, repair=True)
            require_told(require_clean(self.path), 0)
            with Device(self.path, read_only=True) as device:
                self._compare(device)

    def _session(self) -> None:
        """A child works, and the power is cut."""
        with Child(lambda child: Worker(self, child, self.chance).work()) as child:
            if self.how == "amid":
                child.wait_for(BEGUN, self.when)
                self._cut_amid(child)
                child.kill()
            while not child.ended():
                time.sleep(0.0002)
            if not child.counts[CUT]:
                raise Broken("the child ended without a cut")
            begun, done, counted, committed = (int(child.counts[at]) for at in (BEGUN, DONE, COUNTED, COMMITTED))
            self.told["moves"] += max(0, int(child.counts[MOVES]) - self.moves)
            self.told["cuts before the opening's end"] += not child.counts[OPENED]
        self.closed &= not child.counts[OPENED]
        for number, request in zip(range(begun), self.requests(), strict=False):
            self.oracle.begun(request)
            if number < done:
                self.oracle.answered(request)
        self.told["requests"] += begun
        self.told["cuts within a request"] += begun > done
        self.counted, self.committed = max(counted, self.counted), max(committed, self.committed)

    def _cut_amid(self, child: Child) -> None:
        """Cut beside the working child, and read what it has counted from the page cache when it is gone."""
        with StateView(self.path) as state:
            if self.writes_back:
                power.write_back(self.path, self.chance)
            end = time.perf_counter() + self.delay
            while time.perf_counter() < end:
                pass
            # What is answered from here on is no promise: a sync that meets the shutdown may succeed and mean nothing.
            answered = child.counts.copy()
            child.counts[CUT] = 1
            self.host.cut(flush_log=self.flushes_log)
            child.kill()
            child.counts[DONE], child.counts[COMMITTED] = answered[DONE], answered[COMMITTED]
            child.counts[COUNTED] = worn_in(state.core())
            child.counts[MOVES] = int(np.frombuffer(state.core(), layout.TALLY, 1)["moves"][0])

    def _judge(self) -> None:
        """Promises 1, 3, 4 and 5, of what is found after the cut."""
        report = require_clean(self.path) if self.chance.random() < CHECKED else None
        writable = self.chance.random() < 0.3
        device = Device(self.path, read_only=not writable)
        try:
            if device.recovery != "power cut" and not (self.closed and device.recovery == ""):
                raise Broken(f"opened as {device.recovery!r}")
            worn, wear = self._worn(device), int(device.mapping.wear.sum(dtype=np.int64))
            if not self.committed <= worn <= self.counted:
                raise Broken(f"wear: {worn} by the totals, {self.committed} committed, {self.counted} counted")
            if not self.committed + self.surplus <= worn + self.surplus <= wear <= self.counted + self.surplus:
                raise Broken(
                    f"wear: {wear} by the counters, {worn} + {self.surplus} by the totals, {self.counted} counted"
                )
            self.told["cuts that lost wear"] += worn < self.counted
            self.surplus = wear - worn
            if report:
                require_told(report, self.surplus)
            self.told["checked"] += report is not None
            self._compare(device, within=self.how == "amid" and self.writes_back)
            self.committed, self.counted = worn, self._worn(device)
            self.moves = int(device.mapping.core["tally"][0]["moves"])
            self.closed = writable and self.chance.random() < 0.5
            if self.closed:
                device.close()
                self.committed = self.counted
        finally:
            if device.mapping.maps:  # it was not closed
                device.abandon()

    def _compare(self, device: Device, *, within: bool = False) -> None:
        found = device.read(len(self.oracle.sure), 0)
        lost, torn = self.oracle.accept(found, WITHIN if within else 0)
        self.told["cuts that lost data"] += lost > 0
        self.told["pages lost"] += lost
        self.told["pages torn"] += torn
        for at, size, holds in device.extents(len(found), 0):
            if not holds and found[at : at + size] != bytes(size):
                raise Broken(f"{size} bytes at {at} are a hole by the extents, and are not zeros")


def require_clean(path: Path) -> Any:
    """The report of `check`; Broken where it says more than the documents promise."""
    report = check(path)
    strange = [str(one) for one in report.findings if one.kind not in EXPECTED]
    strange += [str(one) for one in report.of(Kind.STRANGE_FILE) if one.subject != "state.new"]
    if strange or not report.clean:
        raise Broken(f"check: {strange or report.unchecked}")
    return report


def require_told(report: Any, surplus: int) -> None:
    """`check` says how many line writes the counters have more than the totals."""
    told = [one.detail for one in report.of(Kind.WEAR_UNCHECKPOINTED)]
    if told != ([f"{surplus} line writes"] if surplus else []):
        raise Broken(f"check: says {told} of {surplus} line writes after the checkpoint")


# ---- the command ----


@contextlib.contextmanager
def host_of(kind: str) -> Iterator[power.Host]:
    with tempfile.TemporaryDirectory(prefix="power") as folder, power.Host(kind, Path(folder)) as made:
        yield made


def cut(kind: str, choices: list[Choice], seed: str, cuts: int, only: int = -1) -> tuple[str, collections.Counter]:
    """At least so many cuts of each choice; what broke and how to see it again, or ""; and figures."""
    told: collections.Counter = collections.Counter()
    with host_of(kind) as made:
        for choice in choices:
            for life in range(-(-cuts // CUTS_A_LIFE)) if only < 0 else [only]:
                lived = None
                try:
                    lived = Life(made, choice, f"{seed} {kind} {choice} {life}", told)
                    lived.live()
                except (Broken, PmemError, AssertionError) as error:
                    return f"{kind}, {choice}, life {life}: {lived}: {type(error).__name__}: {error}", told
                shutil.rmtree(lived.path)
    return "", told


def main() -> int:
    """Cut and judge; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fs", required=True, choices=power.KINDS)
    parser.add_argument(
        "--choice", default="", help="a placement, leveling and way of writing descriptors: all of them"
    )
    parser.add_argument("--seed", default=str(SEED))
    parser.add_argument("--cuts", type=int, default=int(os.environ.get("PMEM_NBD_POWER_CUTS", CUTS_A_LIFE)))
    parser.add_argument("--life", type=int, default=-1, help="this one only, as a failure prints it")
    parser.add_argument("--plant", choices=PLANTED, help="a bug to have")
    given = parser.parse_args()
    choices = [one for one in CHOICES if given.choice in ("", str(one))]
    if not choices:
        parser.error(f"--choice: one of {', '.join(map(str, CHOICES))}")
    power.private_mounts()
    started = time.monotonic()
    with PLANTED[given.plant]() if given.plant else contextlib.nullcontext():
        broken, told = cut(given.fs, choices, given.seed, given.cuts, given.life)
    figures = ", ".join(f"{name}: {count}" for name, count in sorted(told.items()))
    print(f"{given.fs}, seed {given.seed}: {figures}: {time.monotonic() - started:.1f} s")
    if broken:
        choice, life = broken.split(", ")[1:3]
        plant = f" --plant {given.plant!r}" if given.plant else ""
        print(broken)
        print(
            f"again: .venv/bin/python tests/power_cuts.py --fs {given.fs} --choice '{choice}' --seed {given.seed} "
            f"--life {life.split(':')[0].split()[1]}{plant}"
        )
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
