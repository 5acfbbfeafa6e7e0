# SPDX-License-Identifier: MIT
"""Bugs that lose data, put into pmem_core on purpose: what looks for cuts that lose data must find each of them.

Those of compiled functions take effect in plain Python only.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from pmem_core import (
    bringup,
    datapath,
    descriptor,
    durability,
    host,
    jit,
    layout,
    media,
    onepage,
    recovery,
    sections,
    together,
    upkeep,
)
from pmem_core.durability import Durability
from pmem_core.journal import Journal
from pmem_core.leveling import start_gap


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    with mock.patch.object(owner, name, value):
        yield


def switch_before_copy() -> Any:
    """A move switches the map, then copies."""

    def move(state: Any, run: Any, core: Any, region: int) -> int:
        table = media.table_of(run)
        size, gap_frames = start_gap._region_size(state, region), state["gap_frames"]
        ring = size + gap_frames
        gap, turned = int(table[region]) >> 32, int(table[region]) & start_gap.LOW
        if ((int(media.durable_table_of(run)[region]) >> 32) - gap) % ring >= gap_frames:
            return layout.CHECKPOINT
        first = region * ((1 << state["region_shift"]) + gap_frames)
        source, target = gap - 1 if gap else ring - 1, (gap + gap_frames - 1) % ring
        start_gap.publish(table, region, source << 32 | (turned + 1 if turned + 1 < size else 0))
        return media.move(run, core, first + source, first + target)

    return _replaced(start_gap, "_move", move)


def freed_frame_reused() -> Any:
    """A frame that a move has freed is filled again though the journal still has data there."""
    return _replaced(media, "durable_table_of", media.table_of)


def flush_forgets_the_journal() -> Any:
    """A flush syncs the medium and leaves the table of the frames that moved uncommitted."""
    return _replaced(Durability, "flush", lambda self, counted: self.sync("flushes"))


def rewriting_not_noticed() -> Any:
    """A page is written where it has moved to, and a flush takes its old frame for as good."""
    return _replaced(media, "note_rewritten", lambda run, at, count: None)


def trim_not_noticed() -> Any:
    """The same, where its bytes are given back to the host."""
    real = media.punch

    def punch(run: Any, at: int, count: int) -> int:
        with _replaced(media, "note_rewritten", lambda run, at, count: None):
            return real(run, at, count)

    return _replaced(media, "punch", punch)


def section_marked_late() -> Any:
    """A section's mark is in the state, and in the journal with the next checkpoint only."""

    def mark_section(self: Any, page: int) -> None:
        sections.mark(self._mapping.sections, page // self._plan.info.section_pages)

    return _replaced(Durability, "mark_section", mark_section)


def frames_not_synced() -> Any:
    """The table is committed, and the frames that moved are not synced."""
    return _replaced(Durability, "_sync_frames", lambda self, frames: None)


def moves_not_committed() -> Any:
    """Leveling is told that its moves are durable, and goes on over what they freed; the journal has none of them."""

    def commit_moves(self: Any) -> None:
        with self._lock, self._taken():
            pass

    return _replaced(Durability, "commit_moves", commit_moves)


def table_before_frames() -> Any:
    """The table is committed, then the frames that moved are synced."""

    def commit_moves(self: Any) -> None:
        with self._lock, self._taken() as (table, frames):
            self._journal.put_table(self._changed(table))
            if frames:
                self._sync_frames(frames)

    return _replaced(Durability, "commit_moves", commit_moves)


def journal_before_medium() -> Any:
    """A checkpoint commits to the journal, then syncs medium and wear."""

    def commit(self: Any, cleared: np.ndarray, closing: bool) -> None:
        with self._taken() as (table, _):
            core = bytes(self._mapping.core.data)
            rows = sections.rows_of(self._mapping.sections, cleared)
            self._journal.checkpoint(core, self._changed(table), rows, closing=closing)
            self.sync("media", "wear", "state")

    return _replaced(Durability, "_commit", commit)


def wear_not_synced() -> Any:
    """A checkpoint leaves the wear file to the kernel."""
    real = Durability.sync
    return _replaced(Durability, "sync", lambda self, *names: real(self, *(one for one in names if one != "wear")))


def flush_does_nothing() -> Any:
    """A flush answers at once."""
    real = Durability.sync
    return _replaced(Durability, "sync", lambda self, *names: real(self, *(one for one in names if len(names) > 1)))


def one_range_of_many() -> Any:
    """Of the frames that moved, the first run of adjacent ones is synced."""
    real = durability.runs
    return _replaced(durability, "runs", lambda frames: real(frames)[:1])


def cleared_before_drained() -> Any:
    """A section's mark is cleared while descriptors of its pages are pending."""

    def checkpoint(self: Any, *, closing: bool = False, settle_sections: bool = False, due: bool = True) -> bool:
        drain, self._drain = self._drain, lambda: None
        try:
            return bool(real(self, closing=closing, settle_sections=settle_sections, due=due))
        finally:
            self._drain = drain

    real = Durability.checkpoint
    return _replaced(Durability, "checkpoint", checkpoint)


def mark_restored_in_memory_only() -> Any:
    """A section that was settled passes for marked: its next write does not wait for the journal."""

    def commit(self: Any, cleared: np.ndarray, closing: bool) -> None:
        real(self, cleared, closing)
        if not closing:  # the next open would see that state and journal differ
            self._mapping.sections[cleared] |= layout.SECTION_DIRTY

    real = Durability._commit
    return _replaced(Durability, "_commit", commit)


def cut_taken_for_a_kill() -> Any:
    """The witness says that the page cache was kept."""
    return _replaced(host, "cache_was_kept", lambda path, session: True)


def intent_not_named() -> Any:
    """The page in flight is not named, so nothing brings its descriptor into line after a kill."""
    real = onepage.publish

    def publish(array: Any, index: int, value: int) -> None:
        if array.size != layout.INTENT_WORDS:
            real(array, index, value)

    return _replaced(onepage, "publish", publish)


def recovery_forgets_the_marks() -> Any:
    """After a power cut, dirty sections are not noted as suspect in the journal."""
    return _replaced(Journal, "put_sections", lambda self, rows: None)


def pending_believed_after_a_cut() -> Any:
    """A reader after a power cut takes pending descriptors from the state file."""

    def recall(mapping: Any, plan: Any, journal: Any) -> None:
        pending = mapping.pending.copy()
        real(mapping, plan, journal)
        mapping.pending[:] = pending

    real = recovery.recall
    return _replaced(recovery, "recall", recall)


def leftovers_not_blanked() -> Any:
    """What a lost write left behind a page stays there."""
    return _replaced(onepage, "scrub", lambda run, page: layout.OK)


def groups_filled_over_descriptors() -> Any:
    """Bringing up a group makes all of its pages free, also those that are up."""

    def fill(run: Any, core: Any, first: Any) -> int:
        for page in range(int(first), min(int(first) + bringup._per_page(run), int(run["page_count"]))):
            descriptor.note_free(run, page)
            bringup._store_now(run, core, page)
        return 1

    return _replaced(bringup, "_fill", fill)


PLANTED: dict[str, Callable[[], Any]] = {
    function.__name__.replace("_", " "): function
    for function in (
        switch_before_copy,
        freed_frame_reused,
        flush_forgets_the_journal,
        rewriting_not_noticed,
        trim_not_noticed,
        section_marked_late,
        frames_not_synced,
        moves_not_committed,
        table_before_frames,
        journal_before_medium,
        wear_not_synced,
        flush_does_nothing,
        one_range_of_many,
        cleared_before_drained,
        mark_restored_in_memory_only,
        cut_taken_for_a_kill,
        intent_not_named,
        recovery_forgets_the_marks,
        pending_believed_after_a_cut,
        leftovers_not_blanked,
        groups_filled_over_descriptors,
    )
}


# ---- what only a kill in the middle of a request shows ----


@contextlib.contextmanager
def every_move_switches_before_it_copies() -> Iterator[None]:
    """Whatever the leveling, a move copies when its map has been switched."""
    real, waiting = media.move, []

    def move(*arguments: Any) -> int:
        waiting.append(arguments)
        return layout.OK

    def publish(array: Any, index: int, value: int) -> None:
        jit.publish(array, index, value)
        while waiting:
            real(*waiting.pop(0))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(media, "move", move))
        # What is not on the road of a page, nor beside it, switches maps.
        for module in list(sys.modules.values()):
            ours = module.__name__.startswith("pmem_core.") and hasattr(module, "publish")
            if ours and module not in (jit, media, onepage, datapath, upkeep):
                stack.enter_context(mock.patch.object(module, "publish", publish))
        yield


def count_not_described() -> Any:
    """Lines are counted, and nothing says which."""
    real = media.publish

    def publish(array: Any, index: int, value: int) -> None:
        if array.size != layout.UNIT_WORDS or index != layout.UNIT_CAUSE:
            real(array, index, value)

    return _replaced(media, "publish", publish)


def sum_not_withheld() -> Any:
    """A total is counted, and its sum is believed meanwhile."""
    return _replaced(media, "begin_count", lambda core: core["unit"][layout.UNIT_TALLY])


def holes_forgotten() -> Any:
    """An open after a kill in a trim leaves behind a page what the trim was about to give back."""
    return _replaced(upkeep, "finish_trim", lambda handle: 0)


def pages_together_not_named() -> Any:
    """Those whose data went by one call are not named, so nothing brings their descriptors into line after a kill."""
    return _replaced(together, "publish", lambda array, index, value: None)


def group_not_named() -> Any:
    """The group being brought up or given back is not named, so nothing finishes that after a kill."""
    return _replaced(bringup, "_name", lambda core, word, value, head, order: None)


def heads_forgotten() -> Any:
    """The halves of a group that is split get no heads."""
    return _replaced(bringup, "_store_head", lambda run, core, page, order: None)


AT_KILLS: dict[str, Callable[[], Any]] = {
    function.__name__.replace("_", " "): function
    for function in (
        every_move_switches_before_it_copies,
        count_not_described,
        sum_not_withheld,
        holes_forgotten,
        pages_together_not_named,
    )
}

# The same, of groups of descriptors.
AT_KILLS_IN_GROUPS: dict[str, Callable[[], Any]] = {
    function.__name__.replace("_", " "): function for function in (group_not_named, heads_forgotten)
}
