# SPDX-License-Identifier: MIT
"""What tests of kills share: choices of policies, an oracle of each answered request, the judge, a child to kill.

A killed process leaves what it had stored: files mapped shared are whole in the page cache.  So the files of an image
at any instant are what a SIGKILL at that instant leaves.
"""

import contextlib
import dataclasses
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pairs import PAIRS, THOROUGH
from tally_reader import kept_and_added

from pmem_core import geometry, image, layout, leveling, placement
from pmem_core.check import check
from pmem_core.device import Device

MIB = 1 << 20
PAGE = layout.PAGE_BYTES
SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
KILLS = int(os.environ.get("PMEM_NBD_KILLS", "0"))  # 0: as many as a run of all tests has time for
SIZE = 4 * MIB

# ---- choices ----


@dataclasses.dataclass(frozen=True)
class Choice:
    """A placement, a leveling with its parameters, and when descriptors are written."""

    placement: str
    leveling: str
    parameters: tuple[tuple[str, int], ...]
    writes: str
    frame_bytes: int

    def __str__(self) -> str:
        parameters = ",".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.placement}-{self.leveling}({parameters})-{self.writes}-{self.frame_bytes}"

    def create(self, path: Path, size: int = SIZE) -> None:
        """Create an image of this choice."""
        plan = geometry.plan(
            size,
            placement_name=self.placement,
            leveling_name=self.leveling,
            parameters=dict(self.parameters),
            descriptor_writes=self.writes,
            frame_bytes=self.frame_bytes,
        )
        image.create(path, plan)


# So busy that kills land in moves: a move every store or two, in regions as small as can be.
BUSY: dict[str, list[dict[str, int]]] = {
    "start_gap": [
        {"interval": 1, "region_frames": 16, "gap_frames": 1},
        {"interval": 2, "region_frames": 32, "gap_frames": 8, "randomize": 1},
    ],
    "security_refresh": [{"interval": 2, "sub_regions": 4, "outer_interval": 3, "block_frames": 2, "spare_blocks": 2}],
    "optane": [{"threshold": 8, "block_frames": 2, "spare_blocks": 2}],
    "table_swap": [{"interval": 2, "block_frames": 1, "candidates": 2, "spare_blocks": 2}],
    "sampled_swap": [{"interval": 1, "sample": 1, "block_frames": 2, "spare_blocks": 1}],
}


def busiest(module: Any) -> list[dict[str, int]]:
    """For a leveling that is not in BUSY: as often as it can, and as little at once."""
    least = {name: minimum for name, (_, minimum, _, _) in module.PARAMETERS.items()}
    return [{name: least[name] for name in ("interval", "block_frames") if name in least}]


def choices() -> list[Choice]:
    """Every pair, with every way of writing descriptors, or with one; frames of three sizes by turns."""
    found = []
    for place, level in PAIRS:
        module = placement.family.modules[place]
        # What memory held is no loss: one choice is enough.
        for parameters in (BUSY.get(level) or busiest(leveling.family.modules[level]))[
            : 1 if module.IN_MEMORY else None
        ]:
            ways = list(layout.DESCRIPTOR_WRITES) if module.ON_MEDIUM else ["each"]
            for writes in ways if level in THOROUGH else ways[len(found) % len(ways) :][:1]:
                frame = (4096, 65536, 256)[len(found) % 3]
                found.append(Choice(place, level, tuple(parameters.items()), writes, frame))
    return found


CHOICES = choices()

# ---- the oracle ----


@dataclasses.dataclass(frozen=True)
class Request:
    """write (data), trim or zero (count bytes), or flush."""

    name: str
    offset: int = 0
    data: bytes = b""
    may_trim: bool = True

    def ask(self, device: Device) -> None:
        """Do it on a device."""
        if self.name == "write":
            device.write(self.data, self.offset)
        elif self.name == "trim":
            device.trim(len(self.data), self.offset)
        elif self.name == "zero":
            device.zero(len(self.data), self.offset, may_trim=self.may_trim)
        else:
            device.flush()

    def apply(self, held: bytearray) -> None:
        """Do it on the bytes that a device should hold."""
        first, end = self.offset, self.offset + len(self.data)
        if self.name == "trim":
            first, end = -(-first // PAGE) * PAGE, end // PAGE * PAGE
        if first < end:
            held[first:end] = self.data if self.name == "write" else bytes(end - first)


_POOL = random.Random(SEED).randbytes(2 * MIB)


def some_bytes(chance: random.Random, count: int) -> bytes:
    """`count` bytes, 1 MiB at most: quick to have, so that a child spends its time in requests."""
    at = chance.randrange(len(_POOL) - count)
    return _POOL[at : at + count]


def requests(seed: str, device_bytes: int) -> Iterator[Request]:
    """An endless workload, the same for the same seed: a few hot pages, runs, parts of pages, trims, zeros, flushes."""
    chance = random.Random(seed)
    pages = device_bytes // PAGE
    while True:
        page = chance.randrange(pages if chance.random() < 0.5 else min(40, pages))
        kind = chance.random()
        count = min(chance.choice((1, 1, 1, 2, 16, 64)), pages - page) * PAGE
        if kind < 0.65:
            yield Request("write", page * PAGE, some_bytes(chance, count))
        elif kind < 0.8:
            at = chance.randrange(PAGE)
            size = min(chance.choice((1, 512, 3000, 9000)), device_bytes - page * PAGE - at)
            yield Request("write", page * PAGE + at, some_bytes(chance, size))
        elif kind < 0.9:
            yield Request("trim", page * PAGE, bytes(count))
        elif kind < 0.97:
            at = chance.choice((0, 512))
            size = min(count, device_bytes - page * PAGE - at)
            yield Request("zero", page * PAGE + at, bytes(size), may_trim=chance.random() < 0.5)
        else:
            yield Request("flush")


class Oracle:
    """What a device has to hold: `sure`, but for one request that was not answered."""

    def __init__(self, device_bytes: int) -> None:
        self.sure = bytearray(device_bytes)
        self.writes = 0  # answered

    def answered(self, request: Request) -> None:
        """Note a request that was answered."""
        request.apply(self.sure)
        self.writes += request.name == "write"

    def accept(self, found: bytes, flying: Request | None) -> None:
        """Compare; where a request was not answered each of its bytes is old or new, and is sure from now on."""
        if found == self.sure:
            return
        new = bytearray(self.sure)
        if flying:
            flying.apply(new)
        is_new = np.frombuffer(found, np.uint8) == np.frombuffer(new, np.uint8)
        wrong = np.flatnonzero(~is_new & (np.frombuffer(found, np.uint8) != np.frombuffer(self.sure, np.uint8)))
        where = (
            f"{len(wrong)} bytes from {wrong[0] if len(wrong) else 0} on, page {wrong[0] // PAGE if len(wrong) else 0}"
        )
        assert not len(wrong), (
            f"{where}: neither what was answered nor what was asked; in flight: {flying and flying.name}"
        )
        self.sure[:] = found


# ---- the judge ----


def require_exact_totals(device: Device) -> None:
    """Promise 5: what the totals say of the wear counters, these say too."""
    tally = device.mapping.core["tally"][0].copy()
    wear = device.mapping.wear
    assert int(tally["worn"].sum()) == int(wear.sum(dtype=np.int64)), "totals by cause, and the sum of the counters"
    assert int(tally["hottest"]) == int(wear.max()), "the hottest line"
    kept, added = kept_and_added(device.mapping.core.tobytes())
    assert kept == added, "the sum kept of the other totals"


def judge(
    path: Path, oracle: Oracle, flying: Request | None, *, read_only: bool = False, ended: str = "killed"
) -> Device:
    """Open after a kill and compare everything; the device, still open."""
    device = Device(path, read_only=read_only)
    try:
        assert device.recovery == ended
        require_exact_totals(device)
        oracle.accept(device.read(len(oracle.sure), 0), flying)
        counted = int(device.mapping.core["tally"][0]["writes"])
        assert counted >= oracle.writes, "writes answered and not counted"
        oracle.writes = counted  # and one that was counted just before its answer
    except BaseException:
        device.abandon()
        raise
    return device


def require_clean(path: Path) -> None:
    """`check` finds nothing."""
    report = check(path)
    assert report.clean, [str(finding) for finding in report.findings] + report.unchecked


def core_now(path: Path) -> Any:
    """A copy of the counters of an image as they are, while a server counts in them or after it was killed."""
    plan = image.load_geometry(path, read_only=True)
    core_type = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    with (path / "state").open("rb") as file:
        return np.frombuffer(os.pread(file.fileno(), core_type.itemsize, plan.zones()["core"][0]), core_type)[0]


def interrupted(path: Path) -> bool:
    """Whether a killed image says that a page, or several together, or a count was in the middle."""
    core = core_now(path)
    words = (core["intent"][0], core["intent"][layout.TOGETHER], core["unit"][layout.UNIT_CAUSE])
    return any(int(word) for word in words)


# ---- a child to kill ----


class Child:
    """A forked process that runs `work(child)`; `counts` is int64[] that both see.  It never returns into the test."""

    def __init__(self, work: Callable[["Child"], Any]) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.counts = np.frombuffer(self._shared, np.int64)
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                work(self)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self._status: int | None = None

    def wait_for(self, index: int, value: int = 1, seconds: float = 60) -> None:
        """Wait until the child has counted that far."""
        deadline = time.monotonic() + seconds
        while self.counts[index] < value:
            assert not self.ended(), "the child ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.0002)

    def ended(self) -> bool:
        """True where it is no more; collects it."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def kill(self) -> None:
        """End it now, and wait until it is gone."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._status = os.waitpid(self.pid, 0)[1]

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
