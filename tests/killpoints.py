# SPDX-License-Identifier: MIT
"""Kills at every store of a request, one by one; judged by the naive oracle.

    NUMBA_DISABLE_JIT=1 python tests/killpoints.py --leveling NAME [--placement NAME] [--seed N] [--rounds N]
    ... --choice CHOICE --only ROUND.OPERATION.POINT     one kill again, as a failure prints it
    ... --plant BUG                                      with a bug from tests/planted.py

A device so small and busy that every write moves frames does one operation of each sort, while tracing.py writes down
every store.  For each of them the files are made anew as a kill just before it, or halfway through it, would leave them;
then the image is opened, judged, asked for the interrupted operation again, used further, and now and then closed and
checked.  Of some operations one kill is chosen, the opening after it traced in turn, and killed at every store too.
"""

import argparse
import contextlib
import copy
import dataclasses
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from cuts import judge, judge_checked, opened
from oracle import Broken, Oracle
from planted import AT_KILLS, PLANTED
from recorded import KIB, content, small
from tracing import Files, Trace, read_files, write_files

from pmem_core import geometry, host, image, layout, leveling, placement, upkeep
from pmem_core.device import Device
from pmem_core.errors import PmemError, UsageError

PAGE = layout.PAGE_BYTES
BUGS = {**PLANTED, **AT_KILLS}
WITNESS = {"boot": "0", "mount": 1, "device": 1, "inode": 1}
INTENT_AT = layout.ZONE_BYTES + layout.core_dtype(np.dtype("<i8"), np.dtype("<i8")).fields["intent"][1]
PAGES_MIN, WARM_WRITES = 12, 300
CLOSED, REOPENED = 0.08, 0.2  # of the kills: closed and checked afterwards; of the operations: the opening killed too

# ---- choices ----


@dataclasses.dataclass(frozen=True)
class Choice:
    """A placement, a leveling with its parameters, when descriptors are written, and the sizes."""

    placement: str
    leveling: str
    parameters: tuple[tuple[str, int], ...]
    writes: str
    frame_bytes: int

    def __str__(self) -> str:
        parameters = ",".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.placement}-{self.leveling}({parameters})-{self.writes}-{self.frame_bytes}"

    def plan(self) -> geometry.Geometry:
        """Of an image as small as can be; UsageError where these parameters cannot be."""
        return geometry.plan(
            2304 * KIB if self.placement == "linear" else 128 * KIB,
            placement_name=self.placement,
            leveling_name=self.leveling,
            parameters=dict(self.parameters),
            descriptor_writes=self.writes,
            frame_bytes=self.frame_bytes,
            line_bytes=1024,
        )


def parameters_of(level: str) -> list[tuple[dict[str, int], int]]:
    """Parameters to try a leveling with, and the frame size: it moves as often as it can.

    Of a policy not named here all parameters are as small as it allows; where it does not move then, somewhat larger.
    """
    if level == "start_gap":
        gaps: list[tuple[dict[str, int], int]] = [
            ({"interval": 1, "region_frames": 8, "gap_frames": 1}, 4096),
            ({"interval": 1, "region_frames": 16, "gap_frames": 3, "randomize": 1}, 2048),
        ]
        return gaps
    known = leveling.family.modules[level].PARAMETERS
    if not leveling.family.modules[level].MOVES:
        return [({}, 4096)]
    return [
        (
            {
                name: least if name == "interval" else min(max(switches if most == 1 else value, least), most)
                for name, (_, least, most, _) in known.items()
            },
            4096,
        )
        for value in (1, 2, 4, 8)
        for switches in (0, 1)
    ]


def choices(level: str, place: str) -> Iterator[list[Choice]]:
    """Lists of choices, of each of which the first that moves is to be tried."""
    module = placement.family.modules[place]
    tried = parameters_of(level)
    alternatives = [[one] for one in tried] if level == "start_gap" else [tried]
    for writes in layout.DESCRIPTOR_WRITES if module.ON_MEDIUM else ("each",):
        for some in alternatives:
            yield [Choice(place, level, tuple(given.items()), writes, frame) for given, frame in some]


# ---- the device at work ----


def do(device: Device, operation: tuple) -> None:
    """Do an operation, as recorded.workload has them."""
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
    else:
        getattr(device, kind)()


class Work:
    """A device in use, and its oracle."""

    def __init__(self, folder: Path, choice: Choice, chance: random.Random) -> None:
        self.chance, self.folder, self.number = chance, folder, 0
        plan = choice.plan()
        image.create(folder, plan)
        self.pages = plan.info.page_count
        self.oracle = Oracle()
        self.device = Device(folder)

    def write(self, page: int, at: int = 0, count: int = PAGE, fua: str = "") -> tuple:
        """An operation that writes what nobody wrote before."""
        offset = page * PAGE + at
        return "write", offset, count, content(self.number + 1, offset, count), fua

    def call(self, operation: tuple) -> None:
        """The oracle hears that it is asked for."""
        self.number += 1
        self.oracle.apply(("call", self.number, operation))

    def answer(self) -> None:
        """And that it is answered."""
        self.oracle.apply(("answer", self.number))

    def ask(self, operation: tuple) -> None:
        """All of it."""
        self.call(operation)
        do(self.device, operation)
        self.answer()

    def warm(self) -> int:
        """Write every page, then some until the map has turned a while; the moves made."""
        for page in range(self.pages):
            self.ask(self.write(page))
        for _ in range(self.chance.randrange(2 * self.pages)):
            self.ask(self.write(self.chance.randrange(self.pages)))
        for _ in range(WARM_WRITES):
            if self.moves or not self.device.plan.leveling.MOVES:
                break
            self.ask(self.write(self.chance.randrange(self.pages)))
        return self.moves

    @property
    def moves(self) -> int:
        """Frames moved so far."""
        return int(self.device.mapping.core["tally"][0]["moves"])

    def operations(self) -> Iterator[tuple]:
        """One of each sort."""
        one, other, last = self.chance.sample(range(self.pages - 3), 3)
        # With as many pending slots as `small` leaves, these two are in each other's way.
        rival = one + 8 if one + 8 < self.pages else one - 8
        yield self.write(one)
        yield self.write(other, 1500, 1200)
        yield self.write(rival)
        yield "trim", one * PAGE, PAGE, True, ""
        yield self.write(one, 700, 9)
        yield "zero", other * PAGE, PAGE, False, ""
        yield "zero", last * PAGE, PAGE, True, ""
        yield self.write(last, 3000, 3 * PAGE - 5000)
        yield "trim", last * PAGE, 3 * PAGE, True, ""
        yield ("commit",)
        yield ("flush",)
        yield self.write(last, fua="fua")
        yield ("settle",)
        yield ("settle",)
        yield self.write(other)
        yield ("close",)


# ---- judging a kill ----


def require_map(device: Device) -> None:
    """Broken unless every placed frame has a medium frame of its own, and none of those that hold nothing."""
    plan = device.plan
    size = plan.info.frame_bytes
    places = [int(upkeep.medium_address(device.handle, frame * size)) for frame in range(plan.placed_frames)]
    spare = plan.leveling.spare_frames(plan.leveling_state, device.mapping.table[: len(plan.table)])
    spares = [layout.FRAMES_AT + size * int(frame) for frame in spare]
    if len({*places, *spares}) != len(places) + len(spares):
        raise Broken("the map is not one-to-one")
    if not all(layout.FRAMES_AT <= at <= plan.info.size - size for at in places):
        raise Broken("the map leaves the medium")


def require_figures(device: Device) -> None:
    """Broken unless totals are exact."""
    tally, wear = device.mapping.core["tally"][0], device.mapping.wear
    if int(tally["worn"].sum()) != int(wear.sum(dtype=np.int64)):
        raise Broken(f"{int(tally['worn'].sum())} line writes by the totals: {int(wear.sum(dtype=np.int64))} counted")
    if int(tally["hottest"]) != int(wear.max()):
        raise Broken(f"the hottest line has {int(tally['hottest'])} by the totals: {int(wear.max())} counted")


def require_newest(device: Device, oracle: Oracle) -> None:
    """Broken where a page is not as it was written last."""
    for page in range(device.plan.info.page_count):
        if device.read(PAGE, page * PAGE) != oracle.newest(page):
            raise Broken(f"page {page} is not as it was written last")


def page_in_flight(left: Files) -> int:
    """The page that the killed process was changing, or -1."""
    return int(left["state"][INTENT_AT : INTENT_AT + 8].view(np.int64)[0]) - 1


def require_whole(found: dict[int, bytes], oracle: Oracle, in_flight: int) -> None:
    """Broken where a page is a mixture that was not in flight: a move changes none, a write one at a time."""
    for page, data in found.items():
        if page != in_flight and data not in [one.data for one in oracle.versions.get(page, [])][-2:] + [bytes(PAGE)]:
            raise Broken(f"page {page} is a mixture, and page {in_flight} was in flight")


def judge_kill(folder: Path, left: Files, oracle: Oracle, operation: tuple, chance: random.Random) -> None:
    """Open what a kill in `operation` has left, compare, and go on; Broken."""
    write_files(folder, left)
    device = opened(folder)
    try:
        # A close may have been all but answered.
        if device.recovery != "killed" and (device.recovery, operation) != ("", ("close",)):
            raise Broken(f"opened as {device.recovery!r}")
        found = judge(device, oracle, torn=False)
        require_figures(device)
        require_map(device)
        if operation[0] in ("write", "zero"):
            require_whole(found, oracle, page_in_flight(left))
        # The client asks again, and goes on.
        later = copy.deepcopy(oracle)
        number = max(later.open_requests)
        if operation[0] in ("write", "trim", "zero"):
            do(device, operation)
        for page in chance.sample(range(device.plan.info.page_count), 2):
            number += 1
            following = ("write", page * PAGE, PAGE, content(number, page * PAGE, PAGE), "")
            later.apply(("call", number, following))
            do(device, following)
        require_newest(device, later)
        require_figures(device)
        require_map(device)
        if chance.random() < CLOSED:
            device.close()
            judge_checked(folder)
    except PmemError as error:
        raise Broken(f"in use again: {error}") from None
    finally:
        if device.mapping.maps:  # it was not closed
            device.abandon()


class Round:
    """All operations under one choice, with a kill at every point of each; `only` picks one."""

    def __init__(self, folder: Path, choice: Choice, seed: str, number: int, only: str = "") -> None:
        self.folder, self.choice, self.number, self.only = folder, choice, number, only
        self.seed = f"{seed} {choice} {number}"
        self.kills = self.moves = 0

    def run(self, work: Work) -> None:
        """Go through them; Broken tells where."""
        for number, operation in enumerate(work.operations()):
            before = work.moves
            work.call(operation)
            with Trace(work.folder) as trace:
                do(work.device, operation)
            chosen = self._judge(f"{self.number}.{number}", trace, work.oracle, operation)
            self.moves += work.moves - before if work.device.mapping.maps else 0
            if chosen is not None:
                self._open_again(f"{self.number}.{number}+", chosen, work.oracle, operation)
            work.answer()

    def _judge(self, name: str, trace: Trace, oracle: Oracle, operation: tuple) -> Files | None:
        """Kill at every point; the files of one kill, where an opening is to be killed too."""
        chance, found = random.Random(f"{self.seed} {name}"), None
        again = operation[0] in ("write", "trim", "zero") and chance.random() < REOPENED
        for point, (where, left) in enumerate(trace.kills()):
            this = f"{name}.{point}"
            if again and (not found or page_in_flight(left) >= 0 and chance.random() < 0.2):
                found = {key: data.copy() for key, data in left.items()}
            if self.only and self.only != this:
                continue
            self.kills += 1
            try:
                judge_kill(self.folder / "killed", left, oracle, operation, random.Random(f"{self.seed} {this}"))
            except Broken as error:
                told = [str(one) for one in operation if not isinstance(one, bytes)]
                raise Broken(f"{error}\n  killed in {' '.join(told)}, {this}: {where}") from None
        return found

    def _open_again(self, name: str, left: Files, oracle: Oracle, operation: tuple) -> None:
        folder = self.folder / "opened"
        write_files(folder, left)
        with Trace(folder) as trace:
            device = Device(folder)
        device.abandon()
        self._judge(name, trace, oracle, operation)


def try_choices(alternatives: list[Choice], folder: Path, seed: str, number: int, only: str = "") -> tuple[Round, Any]:
    """The first of the choices under which frames move, warm; UsageError where there is none."""
    for at, choice in enumerate(alternatives):
        round_ = Round(folder, choice, seed, number, only)
        with contextlib.suppress(UsageError):
            if choice.plan().info.page_count < PAGES_MIN:
                continue
            work = Work(folder / f"work{number}.{at}", choice, random.Random(round_.seed))
            if work.warm() or not work.device.plan.leveling.MOVES:
                return round_, work
            work.device.abandon()
    raise UsageError(alternatives[0].leveling, "nothing moves", "parameters in killpoints.parameters_of that make it")


def kill_everywhere(alternatives: list[Choice], folder: Path, seed: str, rounds: range, only: str = "") -> Round:
    """All rounds of one list of choices; the last.  Broken tells how to see it again."""
    for number in rounds:
        round_, work = try_choices(alternatives, folder, seed, number, only)
        try:
            round_.run(work)
            if not (round_.moves or only or not leveling.family.modules[round_.choice.leveling].MOVES):
                raise Broken(f"{round_.choice}: no frame moved while it was looked at")
        finally:
            if work.device.mapping.maps:
                work.device.abandon()
    return round_


# ---- the command ----


@contextlib.contextmanager
def settings(bug: str = "") -> Iterator[None]:
    """Devices are small, stay the same when their files are copied, and have a bug perhaps."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(small())
        stack.enter_context(mock.patch.object(host, "witness", lambda path: WITNESS))
        stack.enter_context(mock.patch.object(host, "is_tmpfs", lambda fd: False))
        stack.enter_context(mock.patch.object(host, "sync_ranges", lambda fd, address, ranges: None))
        if bug:
            stack.enter_context(BUGS[bug]())
        yield


def main() -> int:
    """Trace, kill, judge; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leveling", required=True, choices=leveling.family.modules)
    parser.add_argument("--placement", choices=placement.family.modules, help="all of them, unless given")
    parser.add_argument("--seed", default=os.environ.get("PMEM_NBD_SEED", "20150507"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--choice", default="", help="one of them, as a failure prints it")
    parser.add_argument("--only", default="", help="ROUND.OPERATION.POINT, as a failure prints it")
    parser.add_argument("--plant", default="", choices=BUGS, help="a bug to have")
    given = parser.parse_args()
    memory = Path("/dev/shm")
    rounds = range(int(given.only.split(".")[0]), given.rounds) if given.only else range(given.rounds)
    for place in [given.placement] if given.placement else placement.family.modules:
        for alternatives in choices(given.leveling, place):
            if given.choice and given.choice not in map(str, alternatives):
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="kills", dir=memory if memory.is_dir() else None) as folder:
                try:
                    with settings(given.plant):
                        done = kill_everywhere(alternatives, Path(folder), given.seed, rounds, given.only)
                except Broken as error:
                    print(f"seed {given.seed}, {error}")
                    return 1
            print(f"{done.choice}: {done.kills} kills, {done.moves} moves, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
