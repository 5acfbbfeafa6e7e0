# SPDX-License-Identifier: MIT
"""One page map on one device, to be measured or put under stress."""

import ctypes
import time
from types import ModuleType
from typing import Any

import numpy as np

from .. import maploops, pagemaps
from ..arena import Arena
from ..errors import PmemError
from ..layout import DESCRIPTOR

assert DESCRIPTOR.fields is not None
_FLAGS, _REFERENCES = (DESCRIPTOR.fields[name][1] for name in ("flags", "refcount"))
_NO_PAGES = np.zeros(0, np.int64)
_NO_EXTENTS = np.zeros((0, 2), np.int64)
COUNTERS = ("initialised", "initialised_bytes", "stores", "medium_bytes", "descriptor_bytes", "structure_bytes")


class NoRoom(PmemError):
    """A page map could not hold what it was asked to."""


class Subject:
    """A map of `page_count` pages, just discovered; its memory goes with it.

    It is what pagebench.stress calls Seen.  Times are nanoseconds of the processor's: nothing here
    waits, but for its turn.
    """

    def __init__(self, name: str, page_count: int) -> None:
        self.name, self.page_count = name, page_count
        self.module: ModuleType = pagemaps.family.modules[name]
        self.arena = Arena()
        parameters = {key: spec[0] for key, spec in self.module.PARAMETERS.items()}
        self.states: np.ndarray = self.module.plan(page_count, parameters, self.arena)
        self.held = np.zeros(1, np.int64)
        self.page = np.zeros(1, np.int64)
        self.extent = np.zeros((1, 2), np.int64)

    def counters(self) -> dict[str, int]:
        """What it has counted so far."""
        return {name: int(self.states[name][0]) for name in COUNTERS}

    @property
    def ram_bytes(self) -> int:
        """Memory that it takes now."""
        return int(self.states["descriptor_bytes"][0] + self.states["structure_bytes"][0])

    def perform(
        self, what: int, pages: np.ndarray = _NO_PAGES, extents: np.ndarray = _NO_EXTENTS, held: np.ndarray = _NO_PAGES
    ) -> tuple[int, int]:
        """Run a loop of maploops; what it answers, and how long it took."""
        begin = time.thread_time_ns()
        found = maploops.perform(self.states, what, pages, extents, held)
        return int(found), time.thread_time_ns() - begin

    def map_all(self, extents: np.ndarray) -> int:
        """Map extents, int64[n, 2]; how long it took.  NoRoom."""
        found, taken = self.perform(maploops.MAP, extents=extents)
        if found != len(extents):
            raise NoRoom(self.name, f"has room for {found} extents", f"{len(extents)}")
        return taken

    # ---- as its parties see it ----

    def map(self, first: int, count: int) -> None:
        """See stress.Seen."""
        self.map_all(np.array([[first, count]], np.int64))

    def unmap(self, first: int, count: int) -> None:
        """See stress.Seen."""
        self.perform(maploops.UNMAP, extents=np.array([[first, count]], np.int64))

    def get(self, page: int, io: bool) -> int:
        """See stress.Seen."""
        self.page[0] = page
        self.perform(maploops.BEGIN if io else maploops.GET, self.page, held=self.held)
        if self.held[0] == pagemaps.NO_ROOM:
            raise NoRoom(self.name, "has no room for a descriptor", "more in its plan")
        return int(self.held[0])

    def put(self, page: int, descriptor: int, io: bool) -> None:
        """See stress.Seen."""
        self.page[0], self.held[0] = page, descriptor
        self.perform(maploops.END if io else maploops.PUT, self.page, held=self.held)

    def look(self, page: int) -> int:
        """See stress.Seen."""
        self.page[0] = page
        return self.perform(maploops.WHERE, self.page)[0]

    def references(self, descriptor: int) -> int:
        """See stress.Seen."""
        return ctypes.c_uint32.from_address(descriptor + _REFERENCES).value

    def flags(self, descriptor: int) -> int:
        """See stress.Seen."""
        return ctypes.c_uint32.from_address(descriptor + _FLAGS).value

    def set_flags(self, descriptor: int, flags: int) -> None:
        """See stress.Seen."""
        ctypes.c_uint32.from_address(descriptor + _FLAGS).value = flags


def compile_all(names: list[str], watch: Any = lambda name: None) -> float:
    """Compile the loops for these maps, or load them; seconds."""
    begin = time.perf_counter()
    one = np.zeros(1, np.int64)
    maploops.alone(one, maploops.WHERE)
    for name in names:
        watch(name)
        Subject(name, 1).perform(maploops.WHERE, one)
    return time.perf_counter() - begin
