# SPDX-License-Identifier: MIT
"""The arrays of a device without a medium, and what is known of it at any moment."""

import contextlib
from collections.abc import Iterator

import numpy as np

from .. import layout
from ..counters import Fold, Scan, scan_counters
from ..errors import HostError
from ..geometry import Geometry
from ..snapshot import Look
from ..statefile import fresh_core
from .endurance import Endurance


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn MemoryError into HostError: the lines of a device need not fit."""
    try:
        yield
    except MemoryError:
        raise HostError("replay", "the lines take more memory than this host has", "a smaller size") from None


class Memory:
    """A device of geometry `plan` to replay on.

    `handle` is what offline.py takes.  deaths: how many of the lines that die are noted one by one.  seed: of the
    endurance, where it varies.
    """

    def __init__(self, plan: Geometry, endurance: Endurance, *, deaths: int = 1, seed: int = 0) -> None:
        self.plan, info = plan, plan.info
        unit_shift = min(info.frame_bytes, layout.PAGE_BYTES).bit_length() - 1
        self.core = fresh_core(plan)
        self._units = np.zeros((info.size >> unit_shift, 2), np.uint32)
        self._unit_lines = (1 << unit_shift) // info.line_bytes
        self._own = np.zeros(plan.line_count, np.uint32)
        self._table = plan.table.copy()
        self._deaths = np.zeros((max(1, deaths), 2), np.int64)
        self._survives = endurance.drawn(plan.line_count, seed)
        self.pending = np.zeros(2 * layout.PENDING_SLOTS if plan.pending_bytes else 1, np.int64)  # see offline.py
        arrays = {
            "wear": self._own,
            "units": self._units,
            "table": self._table,
            "ticks": np.zeros(max(1, plan.tick_words), np.int64),
            "sections": np.zeros(plan.section_count, np.uint8),
            "pending": self.pending,
            "held": np.zeros(info.page_count, np.uint8),
            "deaths": self._deaths,
        }
        self._kept = arrays
        self.run = run = np.zeros(1, layout.RUN)
        for name, array in arrays.items():
            run[name] = array.ctypes.data
        if plan.in_memory:
            arrays["held"][:] = 1  # of a page not touched yet nothing is known: it holds what the medium has
        elif not plan.has_descriptors:
            run["held"] = 0
        # Nothing has to be durable, so the durable table is the table, and no move waits.
        run["durable"] = run["table"]
        weakest = endurance.mean
        if self._survives is not None:
            run["endurance"] = self._survives.ctypes.data
            weakest = int(self._survives.min())
        figures = plan.for_compiled_code() | {
            "unit_count": len(self._units),
            "unit_shift": unit_shift,
            "table_words": len(self._table),
            "tick_words": plan.tick_words,
            "weakest": weakest,
            "deaths_room": len(self._deaths),
        }
        for name, value in figures.items():
            run[name] = value
        # Creation wrote the info blocks once.
        self._own[: layout.FRAMES_AT // info.line_bytes] = 1
        self.core["tally"]["worn"][0][layout.CAUSE_INFO] = layout.FRAMES_AT // info.line_bytes
        self.handle = (run, layout.common(self.core), self.core["placement"], self.core["leveling"])

    @property
    def tally(self) -> np.ndarray:
        """The device's totals."""
        found: np.ndarray = self.core["tally"][0]
        return found

    @property
    def dead(self) -> int:
        """Lines that died."""
        return int(self.run[0]["death_count"])

    @property
    def page_writes(self) -> int:
        """Pages written, whole or in part."""
        return int(self.tally["page_writes"])

    def deaths(self) -> list[dict[str, int]]:
        """Of the first lines that died: the line, and how many pages had been written."""
        return [{"page_writes": writes, "line": line} for writes, line in self._deaths[: self.dead].tolist()]

    def counters(self) -> np.ndarray:
        """The wear of every line, uint32[]: what the wear file of a served device would hold."""
        units = np.repeat(self._units[:, 0], self._unit_lines)
        return np.append(units, np.zeros(len(self._own) - len(units), np.uint32)) + self._own

    def look(self) -> Look:
        """As snapshot.look would see the device."""
        return Look(self.plan, self.core, self._table, "replay", {})

    def scan(self, fold: Fold | None = None) -> Scan:
        """The counters by kind; see counters.scan."""
        return scan_counters(self.counters(), self.look(), fold)
