# SPDX-License-Identifier: MIT
"""A leveling over a medium in memory, every placed frame filled with its own number, and the compiled calls to it."""

from typing import Any

import numba
import numpy as np

from .. import binding, layout, leveling, media, placement, reservations

FRAME_BYTES = 256
LINE_BYTES = 64
FRAME_SHIFT, LINE_SHIFT = FRAME_BYTES.bit_length() - 1, LINE_BYTES.bit_length() - 1
WORDS = FRAME_BYTES // 8
NOTHING = -1  # in a frame that was never filled


@numba.njit
def fill_places(handle, places):  # type: ignore[no-untyped-def]
    """Fill `places` with the medium frame of every placed frame."""
    run, state = handle[0][0], handle[2][0]
    for frame in range(places.size):
        places[frame] = leveling.translate(state, run, frame)


@numba.njit
def settle(handle, frame):  # type: ignore[no-untyped-def]
    """Settle `frame`."""
    run, core, state = handle[0][0], handle[1][0], handle[2][0]
    return leveling.settle(state, run, core, frame)


@numba.njit
def store(handle, frame, lines):  # type: ignore[no-untyped-def]
    """One store of `lines` lines into `frame`: they are worn, and leveling is told."""
    run, core, state = handle[0][0], handle[1][0], handle[2][0]
    at = media.frame_at(run, leveling.translate(state, run, frame))
    media.wear_lines(run, core, layout.CAUSE_HOST, at >> run["line_shift"], lines)
    leveling.tick(state, run, frame, lines)


class Memory:
    """Policy `module` over `medium_frames` frames in memory; `frames` of them are placed.

    `table`, `durable` (what a power cut brings back), `ticks`, `wear` are the arrays that the policy sees; `contents`
    is int64[medium frame, WORDS], filled with the number of the placed frame that is there.
    """

    def __init__(self, module: Any, parameters: dict[str, int], medium_frames: int, seed: int = 65) -> None:
        self.module, self.medium_frames = module, medium_frames
        state, self.frames, table, ticks = module.plan(medium_frames, parameters, seed)
        self.core = np.zeros(1, layout.core_dtype(placement.family.modules["none"].STATE, module.STATE))
        self.core["leveling"] = state
        size = layout.FRAMES_AT + medium_frames * FRAME_BYTES
        self.media = np.zeros(size, np.uint8)
        self.wear = np.zeros(size // LINE_BYTES, np.uint32)
        self.table, self.durable = table.copy(), table.copy()
        self.ticks = np.zeros(ticks, np.int64)
        self._reserved = np.full((size >> reservations.RESERVE_SHIFT) + 1, reservations.RESERVED, np.uint8)
        self.run = np.zeros(1, layout.RUN)
        addresses = {
            "media": self.media,
            "wear": self.wear,
            "table": self.table,
            "durable": self.durable,
            "ticks": self.ticks,
            "reserved": self._reserved,
        }
        figures = {name: array.ctypes.data for name, array in addresses.items()} | {
            "medium_bytes": size,
            "line_count": len(self.wear),
            "table_words": len(table),
            "tick_words": ticks,
            "reserved_count": len(self._reserved),
            "frame_shift": FRAME_SHIFT,
            "line_shift": LINE_SHIFT,
        }
        for name, value in figures.items():
            self.run[name] = value
        self.handle = (self.run, layout.common(self.core), self.core["leveling"])
        self.run["move"] = binding.move_address(*self.handle[:2])
        self.contents = self.media[layout.FRAMES_AT :].view(np.int64).reshape(medium_frames, WORDS)
        self.contents[:] = NOTHING

    @property
    def state(self) -> Any:
        """The policy's state, as its cold functions take it."""
        return self.core["leveling"][0]

    @property
    def moves(self) -> int:
        """Frames moved."""
        return int(self.core["tally"]["moves"][0])

    def places(self) -> np.ndarray:
        """The medium frame of every placed frame."""
        found = np.empty(self.frames, np.int64)
        fill_places(self.handle, found)
        return found

    def durable_places(self) -> np.ndarray:
        """The same, as a power cut would bring it back."""
        now = self.table.copy()
        self.table[:] = self.durable
        found = self.places()
        self.table[:] = now
        return found

    def fill(self) -> None:
        """Give every placed frame its data."""
        self.contents[self.places()] = np.arange(self.frames)[:, None]

    def spares(self) -> np.ndarray:
        """The medium frames that hold nothing, as the policy has it."""
        return np.asarray(self.module.spare_frames(self.state, self.table.copy()))

    def spare_count(self) -> int:
        """How many they are, by the policy's own count where it has one."""
        count = getattr(self.module, "spare_count", None)
        return int(count(self.state, self.table.copy())) if count else len(self.spares())

    def checkpoint(self) -> None:
        """Make the table durable."""
        self.durable[:] = self.table

    def finish(self) -> None:
        """What an open does to the table after a kill."""
        if hasattr(self.module, "finish"):
            self.module.finish(self.state, self.table)

    def cut(self) -> None:
        """What an open finds after a power cut: the durable table, and no ticks."""
        self.table[:] = self.durable
        self.ticks[:] = 0

    def arrays(self) -> list[np.ndarray]:
        """Everything that a call may change."""
        return [self.media, self.wear, self.table, self.durable, self.ticks, self.core, self.run]

    def saved(self) -> list[np.ndarray]:
        """A copy of all of it, for `restore`."""
        return [array.copy() for array in self.arrays()]

    def restore(self, saved: list[np.ndarray]) -> None:
        """Go back to what `saved` returned."""
        for array, before in zip(self.arrays(), saved, strict=True):
            array[...] = before
