# SPDX-License-Identifier: MIT
"""A device whose every store, sync and commit is written down, and the workloads that are done to it.

What it wraps: os.fdatasync and host.sync_ranges (what the cold side syncs with), the journal's commits, the making of a
new state file, and in plain Python also `publish`, `copy_bytes` and `punch`, by which compiled code stores.  LMDB syncs
its pages before it writes the meta page that names them, through a descriptor opened O_DSYNC: a commit is those two
barriers (tests/test_power_model.py looks at LMDB's system calls).
"""

import contextlib
import os
import random
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from faulty_disk import SECTOR, Disk
from oracle import Oracle

from pmem_core import (
    descriptor,
    geometry,
    host,
    image,
    jit,
    journal,
    layout,
    mapping,
    media,
    onepage,
    statefile,
    together,
    upkeep,
)
from pmem_core.device import Device

PAGE = layout.PAGE_BYTES
PLAIN = jit.PLAIN
MAPPED = ("media", "wear", "state")
JOURNAL = "journal/data.mdb"
META_SECTORS = 2 * 4096 // SECTOR
KIB = 1 << 10
SECTION_BYTES = 64 * KIB  # 16 MiB at least, elsewhere: these devices are small, and want more than one section
SLOTS = 8  # of pending descriptors, so that they are in each other's way

_SMALL: dict[str, Any] = {"interval": 1, "region_frames": 16}
POLICIES: dict[str, dict[str, Any]] = {
    "interleaved none": {"leveling_name": "none"},
    "interleaved none coalesced": {"leveling_name": "none", "descriptor_writes": "coalesced"},
    "gap of one": {"parameters": {**_SMALL, "gap_frames": 1}},
    "gap of two coalesced": {"parameters": {**_SMALL, "gap_frames": 2}, "descriptor_writes": "coalesced"},
    "randomized": {
        "parameters": {"interval": 3, "region_frames": 32, "gap_frames": 3, "randomize": 1},
        "line_bytes": 64,
        "descriptor_bytes": 32,
    },
    "small frames": {
        "parameters": {"interval": 2, "region_frames": 128, "gap_frames": 8},
        "frame_bytes": 512,
        "line_bytes": 128,
    },
    "small frames coalesced": {
        "parameters": {"interval": 5, "region_frames": 64, "gap_frames": 12, "randomize": 1},
        "frame_bytes": 256,
        "line_bytes": 256,
        "descriptor_writes": "coalesced",
    },
    "large frames": {
        "size": 640 * KIB,
        "parameters": {"interval": 10, "region_frames": 4, "gap_frames": 1},
        "frame_bytes": 65536,
        "line_bytes": 4096,
        "descriptor_bytes": 4096,
    },
    "linear none": {"placement_name": "linear", "leveling_name": "none", "size": 2304 * KIB},
    "linear": {
        "placement_name": "linear",
        "size": 2304 * KIB,
        "parameters": {"interval": 1, "region_frames": 64, "gap_frames": 2},
        "descriptor_bytes": 16,
    },
    "linear coalesced": {
        "placement_name": "linear",
        "size": 2304 * KIB,
        "parameters": {"interval": 2, "region_frames": 256, "gap_frames": 4, "randomize": 1},
        "frame_bytes": 1024,
        "descriptor_writes": "coalesced",
    },
    "no descriptors": {"placement_name": "none", "leveling_name": "none"},
    "no descriptors, moving": {
        "placement_name": "none",
        "parameters": {"interval": 1, "region_frames": 32, "gap_frames": 3, "randomize": 1},
    },
    "no checksums": {"parameters": {**_SMALL, "gap_frames": 1}, "checksums": False},
    "table swap": {
        "leveling_name": "table_swap",
        "parameters": {"interval": 2, "block_frames": 1, "candidates": 1, "spare_blocks": 1},
    },
    "sampled swap coalesced": {
        "leveling_name": "sampled_swap",
        "parameters": {"interval": 1, "sample": 1, "block_frames": 2, "spare_blocks": 2},
        "frame_bytes": 2048,
        "descriptor_writes": "coalesced",
    },
}
POLICIES["refresh in two levels"] = {
    "leveling_name": "security_refresh",
    "parameters": {"interval": 2, "sub_regions": 2, "outer_interval": 3, "block_frames": 2, "spare_blocks": 2},
}
POLICIES["optane"] = {
    "leveling_name": "optane",
    "parameters": {"threshold": 8, "block_frames": 1, "spare_blocks": 1},
    "descriptor_writes": "coalesced",
}
POLICIES["buddy"] = {"leveling_name": "none", "initialise": "buddy", "descriptor_bytes": 2048}
POLICIES["buddy, moving, coalesced"] = {
    "parameters": {"interval": 2, "region_frames": 16, "gap_frames": 2},
    "descriptor_writes": "coalesced",
    "descriptor_bytes": 1024,
    "initialise": "buddy",
}
POLICIES["sections"] = {"leveling_name": "none", "initialise": "section", "checksums": False}


# ---- requests ----


def content(request: int, offset: int, count: int) -> bytes:
    """Bytes that say, in each word of 8, which request wrote them and where."""
    first, end = offset // 8, -(-(offset + count) // 8)
    words = (np.arange(first, end, dtype=np.int64) & 0xFFFFFFFF) | np.int64(request + 1) << 32
    return words.tobytes()[offset - 8 * first :][:count]


def _span(chance: random.Random, pages: int, hot: list[int]) -> tuple[int, int]:
    """Offset and count: a page, part of one, or a few."""
    page = chance.choice(hot) if chance.random() < 0.7 else chance.randrange(pages)
    kind = chance.random()
    if kind < 0.6:
        return page * PAGE, PAGE
    if kind < 0.8:
        at = chance.randrange(PAGE)
        return page * PAGE + at, chance.randint(1, PAGE - at)
    at = page * PAGE + (chance.randrange(PAGE) if chance.random() < 0.5 else 0)
    return at, min(chance.randint(1, 4 * PAGE), pages * PAGE - at)


def workload(chance: random.Random, pages: int, count: int, hot: list[int], first: int) -> Iterator[tuple]:
    """`count` operations on a device of `pages`, most on the `hot` ones; what they write is numbered from `first`.

    (write, offset, count, data, fua), (trim|zero, offset, count, may trim, fua), and those without arguments: flush,
    settle and commit (housekeeping's), sample, close and kill (and open again), commit.
    """
    hot = hot or [chance.randrange(pages) for _ in range(10)]
    kinds = {
        "write": 60,
        "trim": 6,
        "zero": 6,
        "flush": 10,
        "settle": 10,
        "commit": 4,
        "sample": 1,
        "close": 2,
        "kill": 2,
    }
    for number in range(first, first + count):
        (kind,) = chance.choices(list(kinds), list(kinds.values()))
        if kind in ("write", "trim", "zero"):
            offset, size = _span(chance, pages, hot)
            extra = content(number, offset, size) if kind == "write" else chance.random() < 0.7
            yield kind, offset, size, extra, "fua" if chance.random() < 0.1 else ""
        else:
            yield (kind,)


class WatchedLock:
    """A lock that tells when a thread other than the owner wants it, and makes that one wait for `go`."""

    def __init__(self, lock: Any, blocked: Callable[[], None], go: threading.Event) -> None:
        self._lock, self._blocked, self._go = lock, blocked, go
        self._main = threading.get_ident()

    def __enter__(self) -> None:
        if threading.get_ident() != self._main and not self._lock.acquire(blocking=False):
            self._blocked()
            self._go.wait()
            self._lock.acquire()
        elif threading.get_ident() == self._main:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# ---- the recording ----


def do(device: Device, operation: tuple) -> None:
    """Do an operation, as `workload` has them."""
    kind = operation[0]
    if kind == "write":
        device.write(operation[3], operation[1], fua=operation[4] == "fua")
    elif kind == "trim":
        device.trim(operation[2], operation[1], fua=operation[4] == "fua")
    elif kind == "zero":
        device.zero(operation[2], operation[1], may_trim=operation[3], fua=operation[4] == "fua")
    elif kind == "settle":
        device.checkpoint(settle_sections=True)
    elif kind == "commit":
        device.commit_moves()
    elif kind == "kill":
        device.abandon()
    else:
        getattr(device, kind)()


class Recording:
    """Events of one or more sessions of the image at `folder`, from its start (Disk, Oracle) on."""

    def __init__(self, folder: Path, start: Disk, oracle: Oracle, boot: str) -> None:
        self.folder, self.start, self.oracle, self.boot = folder, start, oracle, boot
        self.events: list[tuple] = []
        self.device: Device | None = None
        self._syncs = self._requests = 0
        self._chance: random.Random | None = None
        self._beside: threading.Thread | None = None
        self._go = threading.Event()
        self._pages: set[int] = set()
        self._alone = False
        self._problem: Exception | None = None
        newest = start.newest()
        self._shadow = {name: np.frombuffer(newest[name], np.uint8).copy() for name in newest}
        self._views: dict[str, Any] = {}

    # ---- looking ----

    def _view(self, name: str) -> np.ndarray:
        if name not in self._views:
            self._views[name] = np.memmap(self.folder / name, np.uint8, "r").view(np.ndarray)
        return self._views[name]

    def look(self, name: str, first: int = 0, end: int | None = None, *, atomic: bool = False) -> None:
        """Write down which sectors of a file changed since the last look."""
        self._note(name, self._view(name), first, end, atomic)

    def _note(self, name: str, data: np.ndarray, first: int, end: int | None, atomic: bool) -> None:
        shadow = self._shadow[name]
        first, end = first // SECTOR * SECTOR, min(len(shadow), -(-(end or len(shadow)) // SECTOR) * SECTOR)
        now, before = data[first:end], shadow[first:end]
        words = len(now) // 8 * 8
        differ = now[:words].view(np.int64) != before[:words].view(np.int64)
        if differ.any():
            sectors = dict.fromkeys(((differ.nonzero()[0] * 8 + first) // SECTOR).tolist())
            stores = [(at, data[at * SECTOR : (at + 1) * SECTOR].tobytes().ljust(SECTOR, b"\0")) for at in sectors]
            before[:] = now
            self.events.append(("stores", name, stores, atomic))

    def look_all(self) -> None:
        """The same, of all mapped files, in the order in which a count of wear is made."""
        for name in MAPPED:
            self.look(name)

    # ---- syncing ----

    def _sync(self, name: str, ranges: list[tuple[int, int]] | None = None) -> None:
        self.look_all()
        self._syncs += 1
        sync = self._syncs
        self.events.append(("begin", sync))
        self._write_beside()
        self.look_all()
        self.events.append(("end", sync, name, ranges))

    def _journal_sync(self) -> None:
        self._syncs += 1
        self.events += [("begin", self._syncs), ("end", self._syncs, JOURNAL, None)]

    def committed(self) -> None:
        """Write down what a transaction of the journal did, in LMDB's order."""
        now = np.fromfile(self.folder / JOURNAL, np.uint8)
        shadow = self._shadow[JOURNAL]
        if len(now) > len(shadow):
            self.events.append(("size", JOURNAL, len(now)))
            self._shadow[JOURNAL] = np.concatenate([shadow, np.zeros(len(now) - len(shadow), np.uint8)])
        meta = META_SECTORS * SECTOR
        self._note(JOURNAL, now, meta, None, False)
        self._journal_sync()
        self._note(JOURNAL, now, 0, meta, True)
        self._journal_sync()

    # ---- hooks ----

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Everything of pmem_core is seen in here."""
        with contextlib.ExitStack() as stack:

            def patch(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
                stack.enter_context(mock.patch.object(owner, name, made(getattr(owner, name))))

            patch(os, "fdatasync", self._hooked_fdatasync)
            patch(host, "sync_ranges", lambda real: lambda fd, address, ranges: self._sync("media", ranges))
            patch(host, "is_tmpfs", lambda real: lambda fd: False)
            patch(host, "witness", lambda real: self._hooked_witness)
            patch(statefile, "write_state", self._hooked_write_state)
            patch(journal._Transaction, "__exit__", self._hooked_commit)
            patch(journal.Journal, "checkpoint", self._hooked_checkpoint)
            patch(journal.Journal, "begin_session", self._hooked_begin)
            if PLAIN:
                self._hook_stores(patch)
            yield

    def _hooked_fdatasync(self, real: Any) -> Any:
        def fdatasync(fd: int) -> None:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            assert path.parent == self.folder and path.name in MAPPED
            self._sync(path.name)

        return fdatasync

    def _hooked_witness(self, path: Path) -> dict[str, Any]:
        return {"boot": self.boot, "mount": 1, "device": 1, "inode": 1}

    def _hooked_write_state(self, real: Any) -> Any:
        def write_state(path: Path, *arguments: Any) -> None:
            real(path, *arguments)
            data = path.read_bytes()
            self.events += [("rename", "state", data), ("replace", "state", data)]
            self._views.pop("state", None)
            self._shadow["state"] = np.frombuffer(data, np.uint8).copy()

        return write_state

    def _hooked_commit(self, real: Any) -> Any:
        def commit(transaction: Any, kind: Any, error: Any, trace: Any) -> None:
            real(transaction, kind, error, trace)
            if error is None:
                self.committed()

        return commit

    def _hooked_checkpoint(self, real: Any) -> Any:
        def checkpoint(held: Any, core: bytes, *arguments: Any, closing: bool = False, **named: Any) -> None:
            at = layout.TALLY.fields["worn"][1]
            told: dict[str, Any] = {"worn": int(np.frombuffer(core, np.int64, 4, at).sum())}
            if closing:
                told["session"] = (False, "")
            self.events.append(("commit", told))
            real(held, core, *arguments, closing=closing, **named)
            self.events.append(("committed", told))

        return checkpoint

    def _hooked_begin(self, real: Any) -> Any:
        def begin_session(held: Any, session: dict[str, Any], *arguments: Any) -> None:
            told = {"session": (True, session["boot"])}
            self.events.append(("commit", told))
            real(held, session, *arguments)
            self.events.append(("committed", told))

        return begin_session

    def _hook_stores(self, patch: Any) -> None:
        def hooked_publish(real: Any) -> Any:
            def publish(array: Any, index: Any, value: Any) -> None:
                self.look("wear")
                self.look("state")
                real(array, index, value)
                self.look("state")

            return publish

        def hooked_bytes(real: Any) -> Any:
            def change(target: Any, at: Any, *rest: Any) -> None:
                real(target, at, *rest)
                if target.size == len(self._shadow["media"]):
                    self.look("media", int(at), int(at + rest[-1]))

            return change

        def hooked_pwrite(real: Any) -> Any:
            def pwrite(fd: Any, source: Any, source_at: Any, count: Any, at: Any) -> int:
                done = real(fd, source, source_at, count, at)
                self.look("media", int(at), int(at + count))
                return done

            return pwrite

        def hooked_punch(real: Any) -> Any:
            def punch(run: Any, at: Any, count: Any) -> int:
                code = real(run, at, count)
                self.look("media", int(at), int(at + count))
                return code

            return punch

        for module in list(sys.modules.values()):
            if module.__name__.startswith("pmem_core.") and module is not jit and hasattr(module, "publish"):
                patch(module, "publish", hooked_publish)
        patch(media, "copy_bytes", hooked_bytes)
        patch(media, "stream_bytes", hooked_bytes)
        patch(media, "clear_bytes", hooked_bytes)
        patch(media, "pwrite", hooked_pwrite)
        patch(media, "punch", hooked_punch)

    # ---- running ----

    def attach(self, device: Device, chance: random.Random | None = None) -> None:
        """Use `device` from now on; with `chance`, other requests come in while it waits for the disk."""
        self.device, self._chance = device, chance
        held = device._durability
        held._lock = WatchedLock(held._lock, self._blocked, self._go)  # type: ignore[assignment]

    def run(self, operations: Iterator[tuple]) -> None:
        """Do operations, one after another."""
        self._operations = operations
        for operation in operations:
            self._pages, self._alone = _pages_of(operation), operation[0] in ("close", "kill")
            self._do(operation)
            if self._beside is not None:
                self._go.set()
                self._beside.join()
                self._beside = None
                if self._problem:
                    raise self._problem

    def _do(self, operation: tuple) -> None:
        self._requests += 1
        request = self._requests
        self.events.append(("call", request, operation))
        kind, device = operation[0], self.device
        assert device is not None
        do(device, operation)
        self.look_all()
        self.events.append(("answer", request))
        if kind in ("close", "kill"):
            device = Device(self.folder)
            self.look_all()
            self.attach(device, self._chance)

    # ---- a request of another connection, while the disk is waited for ----

    def _write_beside(self) -> None:
        if self._chance is None or self._beside is not None or self._alone or self._chance.random() < 0.6:
            return
        operation = next((one for one in self._operations if one[0] in ("write", "trim", "zero")), None)
        if operation is None or _pages_of(operation) & self._pages or operation[4] == "fua":
            return
        self._go.clear()
        self._stopped = threading.Event()
        self._beside = threading.Thread(target=self._do_beside, args=(operation,))
        self._beside.start()
        assert self._stopped.wait(60)

    def _do_beside(self, operation: tuple) -> None:
        try:
            self._do(operation)
        except Exception as error:
            self._problem = error
        finally:
            self._stopped.set()

    def _blocked(self) -> None:
        self._stopped.set()

    # ---- for people ----

    def story(self, instant: int) -> str:
        """The last calls before an instant, and what it lies between."""
        calls = []
        for event in self.events[:instant]:
            if event[0] == "call":
                shown = [str(one) for one in event[2] if not isinstance(one, bytes)]
                calls.append(f"{event[1]}: {' '.join(shown)}")
        around = [
            str(event[:2]) if event[0] != "stores" else f"stores {event[1]}"
            for event in self.events[instant - 1 : instant + 1]
        ]
        return f"calls: {'; '.join(calls[-12:])}\n  between {' and '.join(around)}"


def _pages_of(operation: tuple) -> set[int]:
    if operation[0] not in ("write", "trim", "zero"):
        return set()
    return set(range(operation[1] // PAGE, (operation[1] + operation[2]) // PAGE + 1))


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of an image that a disk keeps."""
    return {name: (folder / name).read_bytes() for name in (*MAPPED, JOURNAL)}


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Sections, and in plain Python the zone of pending descriptors, are small; there, checksums are remembered too."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(geometry, "SECTION_BYTES_MIN", SECTION_BYTES))
        stack.enter_context(mock.patch.object(mapping, "LARGE", PAGE))
        stack.enter_context(mock.patch.dict(geometry.GROUP_PAGES, section=16, subsection=8))
        if PLAIN:
            for module in (layout, onepage, upkeep):
                stack.enter_context(mock.patch.object(module, "PENDING_SLOTS", SLOTS))
            remembered: dict[Any, int] = {}
            page_crc, words_crc, sealed = onepage.page_crc, onepage.words_crc, descriptor.checksum

            def remember(key: Any, made: Callable[[], int]) -> int:
                if key not in remembered:
                    remembered[key] = made()
                return remembered[key]

            def crc_of_page(words: Any, crc: Any) -> int:
                return remember((words.tobytes(), crc), lambda: page_crc(words, crc))

            def crc_of_words(crc: Any, words: Any, first: int, end: int) -> int:
                return remember((int(crc), words.tobytes(), first, end), lambda: words_crc(crc, words, first, end))

            def crc_of_descriptor(run: Any, page: Any, large: Any) -> int:
                words = large[: run["descriptor_bytes"] >> 3]
                held = words[0] >> 32, words[1:].tobytes(), page
                return remember(held, lambda: sealed(run, page, large))

            stack.enter_context(mock.patch.object(onepage, "page_crc", crc_of_page))
            stack.enter_context(mock.patch.object(together, "page_crc", crc_of_page))
            stack.enter_context(mock.patch.object(onepage, "words_crc", crc_of_words))
            stack.enter_context(mock.patch.object(descriptor, "checksum", crc_of_descriptor))
        yield


def record(folder: Path, policy: str, chance: random.Random, count: int) -> Recording:
    """Make an image under `policy`, open it, and record a workload of `count` operations."""
    shutil.rmtree(folder, ignore_errors=True)
    made = uuid.UUID(int=chance.getrandbits(128))  # the keys of randomising come from it
    with mock.patch.object(geometry.uuid_, "uuid4", return_value=made):
        plan = geometry.plan(**{"size": 256 * KIB, **POLICIES[policy]})
    image.create(folder, plan)
    worn = int(np.fromfile(folder / "wear", np.uint32).sum())
    grain = min(SECTOR, plan.info.frame_bytes)
    first = Oracle(grain=grain, sessions={(False, "")}, totals={worn})
    recording = Recording(folder, Disk(read_files(folder)), first, "0")
    with recording.hooks():
        device = Device(folder)
        try:
            recording.attach(device, random.Random(chance.random()))
            recording.run(workload(chance, plan.info.page_count, count, [], 1))
        finally:
            if recording.device is not None:
                recording.device.abandon()
    return recording


def figures(device: Device) -> tuple[int, int]:
    """Line writes by the totals, and by the wear file."""
    return int(device.mapping.core["tally"][0]["worn"].sum()), int(device.mapping.wear.sum(dtype=np.int64))
