# SPDX-License-Identifier: MIT
"""Writes, moves, checkpoints, power cuts and kills over a policy in memory, with the rules checked at each."""

import contextlib
import hashlib
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import frametable, layout, media
from ..policyfile import told
from . import memory as memories
from . import rules
from .memory import Memory
from .rules import Fault
from .where import Where

WORKLOADS = ("one frame", "all frames", "one after the other")
CHECKPOINTS_MAX = 3  # asked for in a row, with no move between them
KILLS_MAX = 80  # points of one write


class Drive:
    """One policy with one choice of parameters on one medium, being written to."""

    def __init__(self, where: Where, module: Any, parameters: dict[str, int], medium_frames: int) -> None:
        self.where, self.module, self.parameters = where, module, parameters
        where.at("plan")
        self.memory = Memory(module, parameters, medium_frames, rules.SEED)
        self.write = self.stops = 0
        rules.require_map(self.memory, self.places(), "at creation")
        self.memory.fill()

    @property
    def when(self) -> str:
        """For messages."""
        return f"at write {self.write}"

    def call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call into the policy; whatever it raises is a Fault."""
        self.where.at(doing, self.write)
        try:
            return function(*arguments)
        except (Fault, Killed):
            raise
        except Exception as error:
            raise Fault(f"{doing}: fails {self.when}", told(error, Path(self.module.__file__))) from None

    def places(self) -> np.ndarray:
        """The map."""
        found: np.ndarray = self.call("translate", self.memory.places)
        return found

    def settle(self, frame: int, checked: Callable[[], None] = lambda: None) -> None:
        """Settle `frame`, taking the checkpoints that it asks for; `checked` is called after each call."""
        vain = 0
        while True:
            before = self.memory.moves
            code = self.call("settle", memories.settle, self.memory.handle, frame)
            checked()
            if code == layout.OK:
                return
            if code != layout.CHECKPOINT:
                raise Fault(f"settle answers {code} {self.when}", "OK, CHECKPOINT, or what media.move answered")
            self.stops += 1
            vain = vain + 1 if self.memory.moves == before else 1
            if vain > CHECKPOINTS_MAX:
                raise Fault(f"settle asks for a checkpoint right after a checkpoint {self.when}", "a move")
            self.memory.checkpoint()

    def use(self, frame: int, lines: int, checked: Callable[[], None] = lambda: None) -> None:
        """One write: settle, then a store of `lines` lines."""
        self.write += 1
        self.settle(frame, checked)
        self.call("tick", memories.store, self.memory.handle, frame, lines)

    def check(self) -> None:
        """Map, data, and what a power cut would bring back."""
        places, moves = self.places(), self.memory.moves
        rules.require_map(self.memory, places, self.when)
        rules.require_data(self.memory, places, moves)
        self.where.at("translate", self.write)
        rules.require_durable(self.memory, f"after move {moves}")
        if moves and not self.module.MOVES:
            raise Fault(f"MOVES is False, and settle moved a frame {self.when}", "no move, or MOVES = True")


def frames_of(workload: str, frames: int, draw: random.Random) -> Iterator[tuple[int, int]]:
    """Frame and lines of one store after the other."""
    number = 0
    while True:
        number += 1
        if workload == WORKLOADS[0]:
            frame = 0 if draw.random() < 0.9 else draw.randrange(frames)
        else:
            frame = draw.randrange(frames) if workload == WORKLOADS[1] else number % frames
        yield frame, draw.randint(1, memories.FRAME_BYTES // memories.LINE_BYTES)


def drive(one: Drive, workload: str, writes: int) -> None:
    """Write, with checkpoints now and then and two power cuts; every rule of the map at every write."""
    draw = random.Random(f"{workload} {writes}")
    stores = frames_of(workload, one.memory.frames, draw)
    for number in range(writes):
        one.use(*next(stores), checked=one.check)
        one.check()
        rules.require_ticks(one.memory, one.when)
        if draw.random() < 1 / 16:
            one.memory.checkpoint()
        if number % 16 == 0:
            one.where.at("table_is_sane", one.write)
            rules.require_sane(one.memory, one.when)
            rules.require_stall(one.memory, one.when)
        if number in (writes // 2, writes * 3 // 4):
            one.memory.cut()
            one.memory.finish()
            one.check()


def compare(make: Callable[[], Drive], writes: int) -> str:
    """The same writes four times: as they are, again, with a checkpoint after each, with each settled twice.

    Returns a digest of the maps.
    """
    first = make()
    stores = list(itertools.islice(frames_of(WORKLOADS[0], first.memory.frames, random.Random(4)), writes))
    maps = []
    for frame, lines in stores:
        first.use(frame, lines)
        maps.append(first.places())
    for why in ("the same writes give", "a checkpoint gives", "to settle a frame twice gives"):
        one = make()
        for places, (frame, lines) in zip(maps, stores, strict=True):
            if why.startswith("to settle"):
                one.settle(frame)
            one.use(frame, lines)
            if why.startswith("a checkpoint"):
                one.memory.checkpoint()
            found = one.places()
            for other in np.flatnonzero(found != places).tolist():
                where = f"{one.when} frame {other} is on medium frame {places[other]}, and on {found[other]}"
                raise Fault(f"{why} another map: {where}", "a map that depends on the stores alone")
        if not np.array_equal(one.memory.wear, first.memory.wear):
            raise Fault(f"{why} other wear: after {writes} writes", "wear that depends on the stores alone")
    return hashlib.sha256(np.array(maps).tobytes()).hexdigest()[:16]


def try_nonsense(one: Drive, count: int) -> None:
    """Damaged tables: refused, or borne."""
    fresh, size = one.memory.saved(), one.memory.frames
    if not len(one.memory.table):
        return
    for what, table in rules.nonsense(one.memory.table, np.random.default_rng(5), count):
        one.where.at("table_is_sane", one.write)
        if not rules.asked_sane(one.memory, table, what):
            continue
        one.memory.restore(fresh)
        one.memory.table[:] = table
        one.memory.finish()
        one.memory.checkpoint()
        when = f"table_is_sane accepts {what}, with which"
        rules.require_inside(one.memory, one.places(), when)
        for frame in range(min(size, 8)):
            with_it = f"{when}, after some writes,"
            try:
                one.use(frame, 1)
            except Fault as fault:
                raise Fault(f"{when} {fault.what}", fault.expected) from None
            rules.require_inside(one.memory, one.places(), with_it)
    one.memory.restore(fresh)


# ---- kills: in plain Python only, where a line can be stopped at ----


class Killed(BaseException):
    """The process was killed, as far as the policy knows."""


@contextlib.contextmanager
def moves_watched(drives: list[Drive]) -> Iterator[None]:
    """Make media.move look at its frames (plain Python): a copy that leaves the medium would be an odd error."""
    plain = media.move

    def move(run: Any, core: Any, source: int, target: int) -> Any:
        one = drives[-1]
        for frame in (source, target):
            if not 0 <= frame < one.memory.medium_frames:
                last = one.memory.medium_frames - 1
                raise Fault(f"settle moves medium frame {source} to {target} {one.when}", f"0 to {last}")
        return plain(run, core, source, target)

    media.move = move
    try:
        yield
    finally:
        media.move = plain


def try_kills(one: Drive, writes: int, moves_max: int) -> int:
    """Kill the process at every line of a few moves; returns how many kills there were."""
    draw, kills, tried = random.Random(6), 0, 0
    stores = frames_of(WORKLOADS[0], one.memory.frames, random.Random(6))
    for _ in range(writes):
        frame, lines = next(stores)
        before, moves, stops = one.memory.saved(), one.memory.moves, one.stops
        one.use(frame, lines)
        if one.memory.moves == moves or tried == moves_max:
            continue
        tried += 1
        after, write = one.memory.saved(), one.write
        # Where a checkpoint comes first, the move is behind it.
        one.memory.restore(before)
        if one.stops > stops:
            one.memory.checkpoint()
            before = one.memory.saved()
        lines_run = _stopped(one, frame, 0)
        points = range(1, len(lines_run) + 1)
        for point in points if len(points) <= KILLS_MAX else sorted(draw.sample(points, KILLS_MAX)):
            one.memory.restore(before)
            _stopped(one, frame, point)
            _require_outlived(one, frame, lines_run[point - 1])
            kills += 1
        one.memory.restore(after)
        one.write = write
    return kills


def _stopped(one: Drive, frame: int, point: int) -> list[str]:
    """Settle `frame` up to line number `point` that runs, 0: to the end; returns the lines that ran."""
    files = {one.module.__file__, frametable.__file__, media.__file__}
    ran: list[str] = []

    def trace(where: types.FrameType, event: str, _: Any) -> Any:
        if where.f_code.co_filename not in files:
            return None
        if event == "line":
            ran.append(f"{Path(where.f_code.co_filename).name} line {where.f_lineno}")
            if len(ran) == point:
                raise Killed
        return trace

    sys.settrace(trace)
    try:
        one.call("settle", memories.settle, one.memory.handle, frame)
    except Killed:
        pass
    finally:
        sys.settrace(None)
    return ran


def _require_outlived(one: Drive, frame: int, line: str) -> None:
    when = f"a kill at {line}, {one.when}"
    one.memory.finish()
    for go_on in (False, True):
        if go_on:
            one.settle(frame)
            when += ", and going on,"
        places = one.places()
        rules.require_map(one.memory, places, f"{when}:")
        for lost, there in rules.lost(one.memory, places):
            raise Fault(f"{when.removesuffix(',')}, loses the data of frame {lost}: {there}", "its own")
        rules.require_durable(one.memory, f"{when}:")
