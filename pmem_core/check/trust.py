# SPDX-License-Identifier: MIT
"""What of state and journal may be believed.

Both say where frames are and what was counted.  After a proper close they are equal, so damage to one shows; what
descriptors and wear counters agree with is right.  After a kill the state is ahead of the journal and right; after a
power cut only the journal is (device.py has the table).
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from .. import checkscan, layout, statefile
from ..binding import Handle, bind
from ..geometry import Geometry
from ..host import host_errors
from ..mapping import map_image
from .probe import Record

MAP_FRAMES = 1 << 22  # frames translated between two looks at the clock
DURABLE_BITS = layout.SECTION_TOUCHED | layout.SECTION_DIRTY | layout.SECTION_SUSPECT
Watch = Callable[[float], None]


@dataclasses.dataclass
class Belief:
    """One telling of where things are.  source: the state or the journal; problems: why it cannot be right, in words.

    maps_well: its map is one-to-one; held: which placed pieces are in no hole of the medium (checkscan).
    """

    source: str
    core: np.ndarray
    table: np.ndarray
    sections: np.ndarray
    ticks: np.ndarray
    pending: np.ndarray
    problems: list[str] = dataclasses.field(default_factory=list)
    maps_well: bool = False
    held: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint8))

    def differences(self, other: "Belief") -> list[str]:
        """What the two tell differently."""
        found = [
            name for name in self.core.dtype.names or () if self.core[name].tobytes() != other.core[name].tobytes()
        ]
        found += [] if np.array_equal(self.table, other.table) else ["table"]
        found += [] if np.array_equal(self.sections & DURABLE_BITS, other.sections & DURABLE_BITS) else ["sections"]
        return found


def from_state(path: Path, plan: Geometry, wrong_bits_max: int = 0) -> Belief | None:
    """What the state file at `path` tells; None where it is missing or its head is not this image's."""
    wrong = statefile.wrong_head_bits(path, plan)
    if wrong is None or wrong > wrong_bits_max:
        return None
    data = np.frombuffer(path.read_bytes(), np.uint8)
    part = {name: data[at : at + size].copy() for name, (at, size) in plan.zones().items()}
    kind = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    table = part["table"].view(np.int64)[: len(plan.table)]
    if plan.leveling.table_is_sane(plan.leveling_state, table):
        plan.finish_moves(table)
    return Belief(
        "state",
        part["core"][: kind.itemsize].view(kind),
        table,
        part["sections"][: plan.section_count],
        part["ticks"].view(np.int64)[: plan.tick_words],
        part["pending"],
    )


def from_journal(record: Record, plan: Geometry) -> Belief | None:
    """What the last checkpoint tells; None where it does not fit the image."""
    kind = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    sizes = len(record.core), len(record.table), len(record.sections)
    if sizes != (kind.itemsize, 8 * len(plan.table), plan.section_count):
        return None
    return Belief(
        "journal",
        np.frombuffer(record.core, kind).copy(),
        np.frombuffer(record.table, np.int64).copy(),
        np.frombuffer(record.sections, np.uint8).copy(),
        np.zeros(plan.tick_words, np.int64),
        np.zeros(plan.pending_bytes, np.uint8),
    )


def after_a_cut(belief: Belief) -> None:
    """What opening makes of a checkpoint after a power cut: nothing is in flight, dirty sections are suspect."""
    belief.core["intent"] = 0
    belief.core["unit"] = 0
    belief.core["tally"]["cuts"] += 1
    dirty = belief.sections & layout.SECTION_DIRTY != 0
    belief.sections[dirty] |= np.uint8(layout.SECTION_SUSPECT | layout.SECTION_TOUCHED)


def untold(plan: Geometry) -> Belief:
    """For a leveling without a table, what can be said when nothing is told: any section may hold data."""
    return Belief(
        "nothing",
        statefile.fresh_core(plan),
        plan.table.copy(),
        np.full(plan.section_count, layout.SECTION_TOUCHED, np.uint8),
        np.zeros(plan.tick_words, np.int64),
        np.zeros(plan.pending_bytes, np.uint8),
        maps_well=True,
    )


# ---- a look at the medium with the eyes of a belief; nothing of the image is written ----


class Stage:
    """The image mapped read-only, with a state of our own: `load` puts a belief into it."""

    def __init__(self, path: Path, plan: Geometry, folder: Path, wear_is_whole: bool) -> None:
        (folder / "media").symlink_to((path / "media").absolute())
        with (folder / "state").open("wb") as file:
            # Not a hole: where it is looked at and there is no room for it, that is a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, plan.zones()["end"][0])
        if wear_is_whole:
            (folder / "wear").symlink_to((path / "wear").absolute())
        else:
            with (folder / "wear").open("wb") as file:
                file.truncate(4 * plan.line_count)
        self.plan = plan
        self.mapping = map_image(folder, plan, read_only=True)
        self.handle: Handle = bind(self.mapping.run, self.mapping.core, plan)

    def load(self, belief: Belief) -> None:
        """See the medium as `belief` tells it; always with the policies that the info block names."""
        mapping, plan = self.mapping, self.plan
        mapping.core[:] = belief.core
        mapping.core["placement"], mapping.core["leveling"] = plan.placement_state, plan.leveling_state
        mapping.table[: len(plan.table)] = belief.table
        mapping.sections[: plan.section_count] = belief.sections
        if plan.pending_bytes:
            mapping.pending[:] = belief.pending

    def survey(self, belief: Belief, blocks: np.ndarray, watch: Watch) -> tuple[str, np.ndarray]:
        """Load a belief and follow its map from end to end."""
        plan = self.plan
        if not plan.leveling.table_is_sane(plan.leveling_state, belief.table):
            return "a table that cannot be", blocks[:0]
        self.load(belief)
        return survey(plan, self.handle, belief.table, blocks, watch)

    def close(self) -> None:
        """Unmap."""
        self.handle = (np.zeros(1, layout.RUN), np.zeros(0, layout.CORE))
        self.mapping.close()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BufferError):
            self.close()


@contextlib.contextmanager
def staged(path: Path, plan: Geometry, *, wear_is_whole: bool) -> Iterator[Stage]:
    """A Stage for the image at `path`."""
    with contextlib.ExitStack() as undo:
        with host_errors(Path(tempfile.gettempdir())):
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="pmem-nbd-"))
            stage = undo.enter_context(Stage(path, plan, Path(folder), wear_is_whole))
        yield stage


def survey(
    plan: Geometry, handle: Handle, table: np.ndarray, blocks: np.ndarray, watch: Watch
) -> tuple[str, np.ndarray]:
    """Follow the map from end to end.

    Returns why it is not one-to-one with nothing but the spare frames left over, "" if it is; and `held` of checkscan.
    """
    seen = np.zeros((plan.medium_frames >> 3) + 1, np.uint8)
    piece = min(layout.PAGE_BYTES, plan.info.frame_bytes)
    held = np.zeros(plan.placed_bytes // piece // 8 + 1, np.uint8)
    for first in range(0, plan.placed_frames, MAP_FRAMES):
        watch(first / plan.placed_frames)
        last = min(first + MAP_FRAMES, plan.placed_frames)
        bad = int(checkscan.map_frames(handle, first, last, plan.medium_frames, seen, blocks, held))
        if bad != last:
            return f"placed frame {bad} is nowhere, or where another one is", held
    # Without moves there may be a part of a frame at the end.
    rest = plan.placed_frames * plan.info.frame_bytes
    checkscan.mark(held, rest // piece, -(-plan.placed_bytes // piece))
    return _spare_problem(plan, table, seen), held


def _spare_problem(plan: Geometry, table: np.ndarray, seen: np.ndarray) -> str:
    spare = plan.leveling.spare_frames(plan.leveling_state, table)
    if len(np.unique(spare)) != len(spare) or np.any((spare < 0) | (spare >= plan.medium_frames)):
        return "spare frames that do not exist, or twice"
    if np.any(seen[spare >> 3] & (1 << (spare & 7)).astype(np.uint8)):
        return "frames that are spare and in use"
    # What is left are frames too few for a region, behind all others: placed and spare frames are the first ones.
    bound = plan.placed_frames + len(spare)
    tail = np.unpackbits(seen[bound >> 3 :], bitorder="little")[bound & 7 :]
    return "frames that are neither spare nor in use" if tail.any() or np.any(spare >= bound) else ""
