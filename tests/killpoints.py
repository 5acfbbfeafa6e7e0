# SPDX-License-Identifier: MIT
"""Kills at every store of a request, one by one; judged by the naive oracle.

    NUMBA_DISABLE_JIT=1 python tests/killpoints.py --leveling NAME [--placement NAME] [--seed N] [--rounds N]
    ... --choice CHOICE --only ROUND.OPERATION.POINT     one kill again, as a failure prints it
    ... --plant BUG                                      with a bug from tests/planted.py

A device so small and busy that every write moves frames does one operation of each sort, while tracing.py writes down
every store.  For each of them the files are made anew as a kill just before it, or halfway through it, would leave
them; then the image is opened, judged, asked for the interrupted operation again, used further, and now and then closed
and checked.  Of some operations one kill is chosen, the opening after it traced in turn, and killed at every store too.

Stores by the same line of code, reached by the same calls, are one: of those a random one is tried, unless --every.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from cuts import judge, judge_checked, opened
from oracle import Broken, Oracle, Version
from planted import AT_KILLS, AT_KILLS_IN_GROUPS, PLANTED
from recorded import KIB, content, do, small
from tally_reader import kept_and_added
from tracing import Files, Trace, write_files

from pmem_core import geometry, host, image, layout, leveling, placement, upkeep
from pmem_core.check import Report, groups
from pmem_core.device import Device
from pmem_core.errors import PmemError, UsageError
from pmem_core.placement import linear, ram

PAGE = layout.PAGE_BYTES
BUGS = {**PLANTED, **AT_KILLS, **AT_KILLS_IN_GROUPS}
WITNESS = {"boot": "0", "mount": 1, "device": 1, "inode": 1}
INTENT_AT = layout.ZONE_BYTES + layout.core_dtype(np.dtype("<i8"), np.dtype("<i8")).fields["intent"][1]
PAGES_MIN, WARM_WRITES, GROUPED_PAGES_MIN = 16, 300, 36
# Strategies that bring descriptors into being, by leveling and placement.  They cost time: two of them, unless all are
# asked for; the sorts of groups and the ways to write descriptors are in these.
INITIALISED = {
    ("none", "interleaved"): ("buddy", "each"),
    ("start_gap", "linear"): ("subsection", "coalesced"),
}
INITIALISED_TOO = {
    ("none", "linear"): ("section", "each"),
    ("start_gap", "interleaved"): ("buddy", "coalesced"),
}
CLOSED, REOPENED = 0.01, 0.25  # of the kills: closed and checked later; of the operations: the opening killed too

# ---- choices ----


@dataclasses.dataclass(frozen=True)
class Choice:
    """A placement, a leveling with its parameters, when descriptors are written, and the sizes."""

    placement: str
    leveling: str
    parameters: tuple[tuple[str, int], ...]
    writes: str
    frame_bytes: int
    initialise: str = "zeros"

    def __str__(self) -> str:
        parameters = ",".join(f"{name}={value}" for name, value in self.parameters)
        told = f"{self.placement}-{self.leveling}({parameters})-{self.writes}-{self.frame_bytes}"
        return told if self.initialise == "zeros" else f"{told}-{self.initialise}"

    def plan(self) -> geometry.Geometry:
        """Of an image as small as can be with so many pages; UsageError where these parameters cannot be."""
        for kib in (128, 192, 256, 512, 1024):
            with contextlib.suppress(UsageError):
                made = self._plan(kib * KIB)
                if made.info.page_count >= (PAGES_MIN if self.initialise == "zeros" else GROUPED_PAGES_MIN):
                    return made
        return self._plan(2048 * KIB)

    def _plan(self, size: int) -> geometry.Geometry:
        return geometry.plan(
            size,
            placement_name=self.placement,
            leveling_name=self.leveling,
            parameters=dict(self.parameters),
            descriptor_writes=self.writes,
            frame_bytes=self.frame_bytes,
            line_bytes=1024,
            initialise=self.initialise,
            descriptor_bytes=64 if self.initialise == "zeros" else 1024,  # so that groups are small
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


def choices(level: str, place: str, *, all_of_them: bool) -> Iterator[list[Choice]]:
    """Lists of choices, of each of which the first that moves is to be tried; half of them, unless `all_of_them`."""
    module, turn = placement.family.modules[place], list(placement.family.modules).index(place)
    tried = parameters_of(level)
    alternatives = [[one] for one in tried] if level == "start_gap" else [tried]
    for i, writes in enumerate(layout.DESCRIPTOR_WRITES if module.ON_MEDIUM else ["each"]):
        for j, some in enumerate(alternatives):
            if all_of_them or not (module.ON_MEDIUM or module.IN_MEMORY) or (turn + i + j) % 2 == 0:
                yield [Choice(place, level, tuple(given.items()), writes, frame) for given, frame in some]
    initialised = INITIALISED | INITIALISED_TOO if all_of_them else INITIALISED
    if (level, place) in initialised:
        strategy, writes = initialised[level, place]
        given, frame = tried[0]
        yield [Choice(place, level, tuple(given.items()), writes, frame, strategy)]


# ---- the device at work ----


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
        if self.device.plan.info.initialise != "zeros":
            # Most groups are left alone, for the operations to bring up.
            for _ in range(WARM_WRITES):
                self.ask(self.write(0))
                if self.moves or not self.device.plan.leveling.MOVES:
                    break
            return self.moves
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
        if self.device.plan.info.initialise != "zeros":
            yield from self._operations_on_groups()
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
        yield self.write(last, 0, 3 * PAGE)
        yield "trim", last * PAGE, 3 * PAGE, True, ""
        yield self.write(last, 0, 3 * PAGE)
        yield ("commit",)
        yield ("flush",)
        yield self.write(last, fua="fua")
        yield ("settle",)
        yield ("settle",)
        yield self.write(other)
        yield ("close",)

    def _operations_on_groups(self) -> Iterator[tuple]:
        """First writes into groups, and trims of whole ones, which give them back and join them."""
        size = PAGE // self.device.plan.info.descriptor_bytes
        group = self.chance.randrange(2, self.pages // size - 1) * size
        yield self.write(group + 1)
        yield self.write(group ^ size, 100, 2000)
        yield "trim", group * PAGE, size * PAGE, True, ""
        yield "trim", 0, (self.pages // size) * size * PAGE, True, ""
        yield self.write(group, 0, (size + 1) * PAGE)


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


def require_nothing_behind(device: Device) -> None:
    """Broken where bytes lie behind a page whose descriptor says that it holds none: a torn write would show them."""
    media, size = device.mapping.media, device.plan.info.frame_bytes
    for at, count, holds in device.extents(device.plan.device_bytes, 0):
        for page in [] if holds else range(at // PAGE, (at + count) // PAGE):
            placed = int(upkeep.page_address(device.handle, page))
            for part in range(placed, placed + PAGE, min(size, PAGE)):
                first = int(upkeep.medium_address(device.handle, part))
                if media[first : first + min(size, PAGE)].any():
                    raise Broken(f"page {page} reads as zeros, and bytes lie behind it")


def require_figures(device: Device) -> None:
    """Broken unless totals are exact."""
    tally, wear = device.mapping.core["tally"][0], device.mapping.wear
    if int(tally["worn"].sum()) != int(wear.sum(dtype=np.int64)):
        raise Broken(f"{int(tally['worn'].sum())} line writes by the totals: {int(wear.sum(dtype=np.int64))} counted")
    if int(tally["hottest"]) != int(wear.max()):
        raise Broken(f"the hottest line has {int(tally['hottest'])} by the totals: {int(wear.max())} counted")
    kept, added = kept_and_added(device.mapping.core.tobytes())
    if kept != added:
        raise Broken(f"{kept} is the sum kept of the totals: {added} is what they add up to")


def require_groups(device: Device) -> None:
    """Broken unless each page is up, or covered by the head of one free group."""
    if not groups.can_be_told(device.plan):
        return
    report, held = Report(), np.full((device.plan.placed_bytes >> 15) + 1, 255, np.uint8)
    groups.examine(report, device.plan, device.handle, held)
    if report.findings:
        raise Broken(f"groups: {[str(finding) for finding in report.findings]}")


def require_newest(device: Device, oracle: Oracle, pages: set[int]) -> None:
    """Broken where one of `pages` is not as it was written last."""
    for page in sorted(pages):
        if device.read(PAGE, page * PAGE) != oracle.newest(page):
            raise Broken(f"page {page} is not as it was written last")


def pages_of(operation: tuple) -> range:
    """The pages that it changes, wholly or in part."""
    if operation[0] not in ("write", "trim", "zero"):
        return range(0)
    return range(operation[1] // PAGE, -(-(operation[1] + operation[2]) // PAGE))


def pages_in_flight(left: Files) -> range:
    """The pages that the killed process was changing."""
    intent = left["state"][INTENT_AT : INTENT_AT + 8 * layout.INTENT_WORDS].view(np.int64)
    if intent[layout.TOGETHER]:
        first, count = divmod(int(intent[layout.TOGETHER]), 1 << layout.TOGETHER_SHIFT)
        return range(first, first + count)
    return range(int(intent[0]) - 1, int(intent[0])) if intent[0] else range(0)


def require_whole(found: dict[int, bytes], oracle: Oracle, in_flight: range) -> None:
    """Broken where a page is a mixture that was not in flight: a move changes none, a write those that it names."""
    for page, data in found.items():
        held = oracle.versions.get(page, [Version(0, bytes(PAGE))])
        if page not in in_flight and data not in [one.data for one in held[-2:]]:
            raise Broken(f"page {page} is a mixture, and in flight were {list(in_flight)}")


def judge_kill(
    folder: Path, left: Files, oracle: Oracle, operation: tuple, chance: random.Random, *, once: bool
) -> None:
    """Open what a kill in `operation` has left, compare, and go on; Broken.  once: nothing was killed before."""
    write_files(folder, left)
    device = opened(folder)
    try:
        # A close may have been all but answered.
        if device.recovery != "killed" and (device.recovery, operation) != ("", ("close",)):
            raise Broken(f"opened as {device.recovery!r}")
        found = judge(device, oracle, torn=False)
        require_figures(device)
        require_map(device)
        require_nothing_behind(device)
        require_groups(device)
        if once and (operation[0] == "write" or (operation[0] == "zero" and not operation[3])):
            require_whole(found, oracle, pages_in_flight(left))
        # The client asks again, and goes on.
        if operation[0] in ("write", "trim", "zero"):
            do(device, operation)
        page = chance.randrange(device.plan.info.page_count)
        data = bytes([chance.randrange(1, 5)]) * PAGE
        device.write(data, page * PAGE)
        if device.read(PAGE, page * PAGE) != data:
            raise Broken(f"page {page} is not as it was written after the kill")
        require_newest(device, oracle, (set(pages_of(operation)) | {*chance.sample(sorted(found), 4)}) - {page})
        require_figures(device)
        require_groups(device)
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

    def __init__(self, folder: Path, choice: Choice, seed: str, number: int, *, every: bool, only: str = "") -> None:
        self.folder, self.choice, self.number, self.every, self.only = folder, choice, number, every, only
        self.seen: set[tuple] = set()
        self.point = ""
        self.seed = f"{seed} {choice} {number}"
        self.moves, self.kills = 0, collections.Counter[str]()

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
        """Kill at every point, or at every new one; the files of one kill, where an opening is to be killed too."""
        chance, found = random.Random(f"{self.seed} {name}"), None
        again = pages_of(operation) and chance.random() < REOPENED
        picked = self._picked(trace, random.Random(f"{self.seed} {name} picked"))
        for point, kill in enumerate(trace.kills()):
            if again and (found is None or not pages_in_flight(found) or chance.random() < 0.1):
                found = kill.files()
            self.point = f"{name}.{point}"
            if self.point != self.only if self.only else point not in picked:
                continue
            self.kills[kill.step.name] += 1
            try:
                left, after = kill.files(), random.Random(f"{self.seed} {self.point}")
                judge_kill(self.folder / "killed", left, oracle, operation, after, once="+" not in name)
            except Broken as error:
                told = " ".join(str(one) for one in operation if not isinstance(one, bytes))
                raise Broken(f"{error}\n  killed in {told}: {kill}") from None
        return found

    def _picked(self, trace: Trace, chance: random.Random) -> set[int]:
        """The points to be judged: all of them, or one for each store that no earlier operation made."""
        same: dict[tuple, list[int]] = {}
        for point, kill in enumerate(trace.kills()):
            same.setdefault(kill.store, []).append(point)
        chosen = {store: points if self.every else [chance.choice(points)] for store, points in same.items()}
        fresh = {point for store, points in chosen.items() if store not in self.seen for point in points}
        if not self.every:
            self.seen |= chosen.keys()
        return fresh

    def _open_again(self, name: str, left: Files, oracle: Oracle, operation: tuple) -> None:
        folder = self.folder / "opened"
        write_files(folder, left)
        with Trace(folder) as trace:
            device = Device(folder)
        device.abandon()
        self._judge(name, trace, oracle, operation)


def first_that_moves(alternatives: list[Choice], folder: Path, seed: str, number: int) -> tuple[Choice, Work]:
    """The first of the choices under which frames move, and a device, warm; UsageError where there is none."""
    for at, choice in enumerate(alternatives):
        with contextlib.suppress(UsageError):
            work = Work(folder / f"work{number}.{at}", choice, random.Random(f"{seed} {choice} {number}"))
            if work.warm() or not work.device.plan.leveling.MOVES:
                return choice, work
            work.device.abandon()
    raise UsageError(alternatives[0].leveling, "nothing moves", "parameters in killpoints.parameters_of that make it")


ROUNDS_MORE = 5  # at most, where no frame moved by chance


def kill_everywhere(
    alternatives: list[Choice], folder: Path, seed: str, rounds: range, *, every: bool, only: str = ""
) -> str:
    """All rounds of one list of choices; what was done.  Broken tells how to see it again."""
    moves, kills = 0, collections.Counter[str]()
    must_move = leveling.family.modules[alternatives[0].leveling].MOVES
    for number in range(rounds.start, rounds.stop + ROUNDS_MORE):
        if number >= rounds.stop and (moves or not must_move):
            break
        choice, work = first_that_moves(alternatives, folder, seed, number)
        round_ = Round(folder, choice, seed, number, every=every, only=only)
        try:
            round_.run(work)
        except Broken as error:
            again = f"--choice '{choice}' --seed {seed} --rounds {number + 1} --only {round_.point}"
            raise Broken(
                f"{error}\nagain: NUMBA_DISABLE_JIT=1 .venv/bin/python tests/killpoints.py "
                f"--leveling {choice.leveling} --placement {choice.placement} {again}"
            ) from None
        finally:
            if work.device.mapping.maps:
                work.device.abandon()
        kills, moves = kills + round_.kills, moves + round_.moves
    if must_move and not moves:
        raise Broken(f"{choice}: no frame moved while it was looked at")
    told = ", ".join(f"{count} at {name}" for name, count in sorted(kills.items()))
    return f"{choice}: {kills.total()} kills ({told}), {moves} moves"


# ---- the command ----


@contextlib.contextmanager
def settings(bug: str = "") -> Iterator[None]:
    """Devices are small, stay the same when their files are copied, and have a bug perhaps."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(small())
        for module in (linear, ram):
            stack.enter_context(mock.patch.object(module, "ALIGN", 64 * KIB))
        stack.enter_context(mock.patch.object(host, "witness", return_value=WITNESS))
        stack.enter_context(mock.patch.object(host, "is_tmpfs", return_value=False))
        stack.enter_context(mock.patch.object(host, "sync_ranges"))
        if bug:
            stack.enter_context(BUGS[bug]())
        yield


def main() -> int:
    """Trace, kill, judge; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leveling", required=True, choices=leveling.family.modules)
    parser.add_argument("--placement", choices=placement.family.modules, help="all of them, unless given")
    parser.add_argument("--seed", default=os.environ.get("PMEM_NBD_SEED", "20150507"))
    parser.add_argument("--rounds", type=int, default=1, help="each with other pages, and a map turned elsewhere")
    parser.add_argument("--every", action="store_true", help="every point, not just one for each store in the code")
    parser.add_argument("--choice", default="", help="one of them, as a failure prints it")
    parser.add_argument("--only", default="", help="ROUND.OPERATION.POINT, as a failure prints it")
    parser.add_argument("--plant", default="", choices=BUGS, help="a bug to have")
    given = parser.parse_args()
    memory, plant = Path("/dev/shm"), f" --plant '{given.plant}'" if given.plant else ""
    rounds = range(int(given.only.split(".")[0]), given.rounds) if given.only else range(given.rounds)
    for place in [given.placement] if given.placement else placement.family.modules:
        for alternatives in choices(given.leveling, place, all_of_them=given.every or bool(given.choice)):
            if given.choice and given.choice not in map(str, alternatives):
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="kills", dir=memory if memory.is_dir() else None) as folder:
                try:
                    with settings(given.plant):
                        done = kill_everywhere(
                            alternatives, Path(folder), given.seed, rounds, every=given.every, only=given.only
                        )
                except Broken as error:
                    print(f"{error}{plant}")
                    return 1
            print(f"{done}, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
