# SPDX-License-Identifier: MIT
"""Power cuts and kills at every instant of a recorded workload, judged by a naive oracle.

    NUMBA_DISABLE_JIT=1 python tests/cuts.py --policy NAME [--seed N] [--cuts N]
    ... --case CASE     one cut again, as a failure prints it
    ... --plant BUG     with a bug from tests/planted.py

A workload is recorded once, as events of a `faulty_disk.Disk` with the client's calls and answers among them.  A cut
takes the events up to an instant, lets the disk choose what is left of what was not synced, writes that into a fresh
folder, opens it and reads every page.  Half of the images are then used further while that is recorded too, the opening
included, and cut once more.

With NUMBA_DISABLE_JIT=1 the compiled functions are Python, and every single store is an instant; without, only what
stands between two syncs or two requests is.
"""

import argparse
import contextlib
import copy
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import recorded
from faulty_disk import SECTOR, STYLES, Disk, Outcome
from oracle import Broken, Oracle
from planted import PLANTED
from recorded import Recording

from pmem_core import layout
from pmem_core.check import check
from pmem_core.device import Device
from pmem_core.errors import PmemError

PAGE = layout.PAGE_BYTES
DEPTH = 3  # cuts one after another, at most
CUTS_A_ROUND, CALLS_A_ROUND = 50, 70
NUMBERS = 1 << 20  # what a session writes is numbered from a multiple of this
CHECKED = 0.03  # of the images are given to `check` too, which takes its time
SHRINKS = 200  # outcomes tried to make a failing one smaller


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """An image of just these files."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "journal").mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


class Instants:
    """What had happened at each instant of a recording, to be asked for in ascending order."""

    def __init__(self, recording: Recording) -> None:
        self._events = recording.events
        self._disk, self._oracle = copy.deepcopy(recording.start), copy.deepcopy(recording.oracle)
        self._done = 0

    def at(self, instant: int) -> tuple[Disk, Oracle]:
        """Disk and oracle when the first `instant` events had happened; not to be changed."""
        assert instant >= self._done
        for event in self._events[self._done : instant]:
            self._disk.apply(event)
            self._oracle.apply(event)
        self._done = instant
        return self._disk, self._oracle


def chosen_instants(recording: Recording, chance: random.Random, count: int) -> list[tuple[int, bool]]:
    """`count` cuts, by instant, and whether it is a kill.

    Half of them at barriers, mostly power cuts; of the others half before a store to the medium.
    """
    barriers = [at for at, event in enumerate(recording.events) if event[0] in ("begin", "end", "rename", "replace")]
    near = sorted({at + after for at in barriers for after in (0, 1)})
    chosen = [(at, chance.random() < 0.1) for at in chance.sample(near, min(count // 2, len(near)))]
    anywhere = range(len(recording.events) + 1)
    data = [at for at in anywhere[:-1] if recording.events[at][:2] == ("stores", "media")] or anywhere
    chosen += [
        (chance.choice(chance.choice([data, anywhere])), chance.random() < 0.4) for _ in range(len(chosen), count)
    ]
    return sorted(chosen)


# ---- judging what is found ----


def judge(device: Device, oracle: Oracle, *, torn: bool) -> dict[int, bytes]:
    """Read all of the device; every page's content, or Broken."""
    oracle.require_wear(*recorded.figures(device), device.recovery)
    found = {}
    for page in range(device.plan.info.page_count):
        try:
            found[page] = device.read(PAGE, page * PAGE)
        except PmemError as error:
            raise Broken(f"page {page}: {error.what}") from None
        oracle.require(page, found[page], device.recovery, torn=torn)
    for at, size, holds in device.extents(device.plan.device_bytes, 0):
        if not holds and any(any(found[page]) for page in range(at // PAGE, (at + size) // PAGE)):
            raise Broken(f"{size} bytes at {at} are a hole by the extents, and are not zeros")
    return found


def opened(folder: Path, *, read_only: bool = False) -> Device:
    """The device; Broken where it cannot be opened."""
    try:
        return Device(folder, read_only=read_only)
    except PmemError as error:
        raise Broken(f"cannot be opened: {error.what}") from None


def judge_checked(folder: Path) -> None:
    """Broken where `check` finds anything wrong; it changes nothing."""
    report = check(folder)
    if not report.clean:
        raise Broken(f"check: {[str(one) for one in report.findings]}")


class Case:
    """One cut, at an instant of a recording, and what may follow.  Its seed decides everything about it."""

    def __init__(self, seed: str, folder: Path, recording: Recording, cut: tuple[int, bool], depth: int = 1) -> None:
        self.seed, self.folder, self.recording, self.depth = seed, folder, recording, depth
        # Compiled, nobody sees in which order a request stores: then no kill lands within one.
        self.instant, self.killed = cut[0], cut[1] and recorded.PLAIN
        self.chance = random.Random(seed)
        self.style = self.chance.choice(STYLES)
        self.boot = recording.boot if self.killed else f"{recording.boot}+"
        self.outcome: Outcome = {}

    def run(self, disk: Disk, oracle: Oracle) -> None:
        """Cut, open, judge, go on; Broken tells the whole story."""
        left = self._left(disk)
        opening = self.chance.getrandbits(32)
        try:
            recording = self._open(left, oracle, opening)
        except Broken as error:
            shrunk = "" if self.killed else f"\n  in doubt and not new: {self._shrunk(disk, oracle, opening)}"
            raise Broken(f"{error}{self._story()}{shrunk}") from None
        if recording is None:
            return
        try:
            following = self.chance.choice(chosen_instants(recording, self.chance, 4))
            case = Case(f"{self.seed}+", self.folder, recording, following, self.depth + 1)
            case.run(*Instants(recording).at(following[0]))
        except Broken as error:
            raise Broken(f"{error}\n  after{self._story()}") from None

    def _left(self, disk: Disk) -> Disk:
        """What there is when the image is opened: after a kill all of the page cache, and perhaps half of a store."""
        if not self.killed:
            self.outcome = disk.outcome(self.chance, self.style)
            return Disk(disk.after(self.outcome))
        left = copy.deepcopy(disk)
        for event in self.recording.events[self.instant : self.instant + 1]:
            if event[0] == "stores" and not event[3]:
                left.apply((*event[:2], event[2][: self.chance.randint(0, len(event[2]))], False))
        return left

    def _open(self, left: Disk, oracle: Oracle, seed: int) -> Recording | None:
        """Open and judge; where the image is used further, the recording of that."""
        chance = random.Random(seed)
        write_files(self.folder, left.newest())
        if chance.random() < 0.3:
            (self.folder / "state.new").write_bytes(b"half of it")
        recording = Recording(self.folder, left, Oracle(), self.boot)
        with recording.hooks():
            if chance.random() < CHECKED:
                judge_checked(self.folder)
            if chance.random() < 0.2:
                device = opened(self.folder, read_only=True)
                try:
                    judge(device, oracle, torn=self.style == "torn")
                finally:
                    device.abandon()
            device = opened(self.folder)
            recording.look_all()
            try:
                if device.recovery not in oracle.expected(self.boot):
                    raise Broken(f"opened as {device.recovery!r}: {oracle.expected(self.boot)}")
                found = judge(device, oracle, torn=self.style == "torn")
                recording.oracle = oracle.reopened(found, *recorded.figures(device), device.recovery)
                if self.depth >= DEPTH or chance.random() < 0.5:
                    return None
                recording.attach(device)
                # What was lost or found by luck is what the next session stumbles over.
                hot = oracle.doubtful() if chance.random() < 0.7 else []
                count, first = chance.randrange(12), self.depth * NUMBERS
                recording.run(recorded.workload(chance, device.plan.info.page_count, count, hot, first))
                device = recording.device
                closed = chance.random() < CHECKED
                if closed:
                    device.close()
            except PmemError as error:
                raise Broken(f"in use again: {error}{self._story()}") from None
            finally:
                if device.mapping.maps:  # it was not closed
                    device.abandon()
        if closed:
            judge_checked(self.folder)
        return recording

    def _story(self) -> str:
        how = "killed" if self.killed else f"power cut, {self.style}"
        at = f"event {self.instant} of {len(self.recording.events)}"
        return f"\n  {how}, case {self.seed!r}, {at}\n  {self.recording.story(self.instant)}"

    def _shrunk(self, disk: Disk, oracle: Oracle, opening: int) -> str:
        """The smallest part of the outcome, as a greedy look finds it, with which it still fails."""

        def fails(outcome: Outcome) -> bool:
            try:
                self._open(Disk(disk.after(outcome)), oracle, opening)
            except Broken:
                return True
            return False

        left = {doubt: how for doubt, how in self.outcome.items() if how[0] != disk.newest_of(doubt) or how[2]}
        size, tried = max(1, len(left) // 2), 0
        while size and tried < SHRINKS:
            names = list(left)
            for at in range(0, len(names), size):
                fewer = {name: left[name] for name in names[:at] + names[at + size :]}
                tried += 1
                if fails(fewer):
                    left = fewer
                    break
            else:
                size //= 2
        shown = [f"{name} {what if isinstance(what, str) else what * SECTOR}" for name, what in list(left)[:20]]
        return ", ".join(shown) or "nothing"


# ---- the command ----


def cut(policy: str, seed: str, cuts: int, folder: Path, *, only: str = "") -> str:
    """Record workloads under `policy` and cut them `cuts` times; what broke, or "".

    only: the one case ROUND.NUMBER.
    """
    done, round_ = 0, int(only.split(".")[0]) if only else 0
    while done < cuts:
        name = f"{seed} {policy} {round_}"
        recording = recorded.record(folder / "disk.pmem", policy, random.Random(name), CALLS_A_ROUND)
        instants = Instants(recording)
        chosen = chosen_instants(recording, random.Random(f"{name} instants"), CUTS_A_ROUND)
        for number in range(0, len(chosen), 1 if only else max(1, CUTS_A_ROUND // (cuts - done))):
            if only and only != f"{round_}.{number}":
                continue
            case = Case(f"{name}.{number}", folder / "cut.pmem", recording, chosen[number])
            try:
                case.run(*instants.at(chosen[number][0]))
            except Broken as error:
                return f"case {round_}.{number}: {error}"
            done += 1
        round_ += 1
        if only:
            break
    return ""


def main() -> int:
    """Record, cut, judge; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, choices=recorded.POLICIES)
    parser.add_argument("--seed", default=os.environ.get("PMEM_NBD_SEED", "20150507"))
    parser.add_argument("--cuts", type=int, default=int(os.environ.get("PMEM_NBD_CUTS", "100")))
    parser.add_argument("--case", default="", help="ROUND.NUMBER, as a failure prints it")
    parser.add_argument("--plant", choices=PLANTED, help="a bug to have")
    given = parser.parse_args()
    memory = Path("/dev/shm")
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cuts", dir=memory if memory.is_dir() else None) as folder,
        recorded.small(),
        PLANTED[given.plant]() if given.plant else contextlib.nullcontext(),
    ):
        broken = cut(given.policy, given.seed, given.cuts, Path(folder), only=given.case)
    if broken:
        plant = f" --plant {given.plant!r}" if given.plant else ""
        print(f"policy {given.policy}, seed {given.seed}, {broken}")
        case = broken.split(":")[0].split()[1]
        print(
            f"again: NUMBA_DISABLE_JIT={int(recorded.PLAIN)} .venv/bin/python tests/cuts.py "
            f"--policy {given.policy!r} --seed {given.seed} --case {case}{plant}"
        )
        return 1
    print(f"{given.cuts} cuts of {given.policy!r}, seed {given.seed}: {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
