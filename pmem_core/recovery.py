# SPDX-License-Identifier: MIT
"""Opening after an unclean end: what is rebuilt from the journal, and what a kill left half done.

device.py's table says when.  Nothing here reads the medium, so the time it takes does not depend on the device's size.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from . import host, layout, statefile
from .errors import DamagedImage
from .geometry import Geometry
from .journal import Journal
from .mapping import Mapping


@dataclasses.dataclass
class Recovered:
    """What an open after an unclean end found and did.

    how: killed or power cut; suspect: of `sections`, those whose checksums are not compared; pages:
    those in flight; healed: how many descriptors of theirs had to be brought into line; lines: of the count that was
    finished; trimmed: pages whose space a trim in flight was still to give back; group: descriptors of a group were in
    flight; sync_failed: no power was cut, but a sync failed, which is as bad.
    """

    how: str
    suspect: int = 0
    sections: int = 0
    pages: range = range(0)
    healed: int = 0
    lines: int = 0
    trimmed: int = 0
    group: bool = False
    sync_failed: bool = False

    def __str__(self) -> str:
        if self.how == "power cut":
            told = ["the state is that of the last checkpoint, and lines counted since then may be lost"]
            if self.sync_failed:
                told.insert(0, "a sync had failed, so what was not flushed before may be lost, as by a power cut")
        else:
            told = [self._in_flight()]
        if self.lines:
            told.append(f"the count of {self.lines} lines was finished")
        if self.group:
            told.append("the descriptors of a group were in flight: storing them was finished")
        if self.trimmed:
            told.append(f"a trim was in flight: the space of {self.trimmed} pages was given back")
        if self.suspect:
            of = f"{self.suspect} of {self.sections} sections"
            told.append(
                f"{of} held writes not flushed at a power cut: checksums there are not compared until check --repair"
            )
        return "; ".join(told)

    def _in_flight(self) -> str:
        if not self.pages:
            return "no page was in flight"
        if len(self.pages) == 1:
            return f"page {self.pages[0]} was in flight" + (": its descriptor was made anew" if self.healed else "")
        anew = f": {self.healed} of their descriptors were made anew" if self.healed else ""
        return f"pages {self.pages[0]} to {self.pages[-1]} were in flight{anew}"

    def note(self, mapping: Mapping, journal: Journal | None) -> None:
        """Count suspect sections, and tell the journal of it all."""
        self.suspect = int(np.count_nonzero(mapping.sections & layout.SECTION_SUSPECT))
        if journal is not None:
            journal.event({"event": "recovered", "how": self.how, "what": str(self)})


def find_end(path: Path, plan: Geometry, session: dict[str, Any]) -> str:
    """How the last session ended: "" (closed), killed or power cut.  DamagedImage: no power cut, and no whole state."""
    if session["open"] and not host.cache_was_kept(path, session):
        return "power cut"
    if statefile.state_is_whole(path / "state", plan):
        return "killed" if session["open"] else ""
    # Of a killed session the journal is behind, and writes that were answered would be lost.  Of a closed one it should
    # be as good; but what hurt the state may have brought an older journal too, and its map would be written over this.
    how = "was killed" if session["open"] else "was closed"
    what = f"it is incomplete, and the last session {how}, which cannot cause that"
    raise DamagedImage("state", what, "'pmem-nbd check --repair'")


def last_checkpoint(plan: Geometry, journal: Journal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Core (core[1]), table and sections as the last checkpoint has them; dirty sections become suspect."""
    core_bytes, table_bytes = journal.load_checkpoint()
    dtype = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    sections = np.frombuffer(journal.load_sections(), np.uint8).copy()
    table = np.frombuffer(table_bytes, np.int64)
    if len(core_bytes) != dtype.itemsize or len(table) != len(plan.table):
        raise DamagedImage(journal.path, "the checkpoint does not fit the image", "one of its own")
    if len(sections) != plan.section_count:
        raise DamagedImage(journal.path, "the sections do not fit the image", f"{plan.section_count} of them")
    core = np.frombuffer(core_bytes, dtype).copy()
    core["intent"] = 0
    core["unit"] = 0
    core["tally"]["cuts"] += 1
    dirty = sections & layout.SECTION_DIRTY != 0
    sections[dirty] |= np.uint8(layout.SECTION_SUSPECT | layout.SECTION_TOUCHED)
    return core, table, sections


def rebuild_state(path: Path, plan: Geometry, journal: Journal) -> None:
    """After a power cut: write the state file anew from the journal."""
    core, table, sections = last_checkpoint(plan, journal)
    journal.put_sections(dict(statefile.section_rows(sections)))
    for name in ("media", "wear"):
        host.drop_cache(path / name)  # after a failed sync it may have what the disk has not
    with host.host_errors(path / "state"):
        statefile.write_state(path / "state", plan, core, table, sections)


def recall(mapping: Mapping, plan: Geometry, journal: Journal) -> None:
    """The same in memory only, for a reader of an image that was not closed."""
    core, table, sections = last_checkpoint(plan, journal)
    mapping.core[:] = core
    mapping.table[: len(table)] = table
    mapping.sections[: len(sections)] = sections
    mapping.ticks[:] = 0
    if plan.pending_bytes:
        mapping.pending[:] = 0


def lines_in_flight(mapping: Mapping) -> int:
    """How many lines were being counted when the session was killed."""
    unit = mapping.core[0]["unit"]
    return int(unit[layout.UNIT_LINES]) if unit[layout.UNIT_CAUSE] else 0


def pages_in_flight(intent: np.ndarray) -> range:
    """The pages that a killed process was writing; intent: CORE's, int64[INTENT_WORDS]."""
    together, page = int(intent[layout.TOGETHER]), int(intent[0]) - 1
    if together:  # the page, if there is one, is of these: an open was healing it
        first = together >> layout.TOGETHER_SHIFT
        return range(first, first + together % (1 << layout.TOGETHER_SHIFT))
    return range(page, page + 1) if page >= 0 else range(0)


def pages_in_trim(intent: np.ndarray) -> range:
    """The pages that a killed process was trimming; intent: CORE's, int64[INTENT_WORDS]."""
    return range(int(intent[layout.TRIM_FIRST]), int(intent[layout.TRIM_END]))


def intent_problems(intent: np.ndarray, plan: Geometry) -> list[str]:
    """What cannot be of what a kill interrupted: "page", "trim"; intent: CORE's, int64[INTENT_WORDS]."""
    found, pages, together = [], plan.info.page_count, pages_in_flight(intent)
    few = not intent[layout.TOGETHER] or 0 < len(together) <= layout.TOGETHER_MAX
    if not (0 <= int(intent[0]) <= pages and few and together.start >= 0 and together.stop <= pages):
        found.append("page")
    rest = intent[1 : layout.TOGETHER]
    if np.any((rest < 0) | (rest > pages)):
        found.append("trim")
    return found


def finish_count(mapping: Mapping) -> None:
    """After a kill: finish the count of the run of lines in flight."""
    core = mapping.core[0]
    unit = core["unit"]
    if unit[layout.UNIT_CAUSE]:
        first, lines = int(unit[layout.UNIT_FIRST]), int(unit[layout.UNIT_LINES])
        counters = mapping.wear[first : first + lines]
        # Each is counted once or not yet; what is beyond that is damage, and check finds it in the sum.
        delta = min(max(0, int(counters.sum(dtype=np.int64)) - int(unit[layout.UNIT_SUM])), lines)
        core["tally"]["worn"][unit[layout.UNIT_CAUSE] - 1] = unit[layout.UNIT_TOTAL] + delta
        core["tally"]["hottest"] = max(int(core["tally"]["hottest"]), int(counters.max()))
        unit[layout.UNIT_CAUSE] = 0


def tally_sum(core: np.ndarray) -> int:
    """What UNIT_TALLY of core[1] has to be, by the totals."""
    return int(np.array([1, *(int(core[0]["tally"][name]) for name in layout.SUMMED)], np.int64).sum())


def is_ahead(core: np.ndarray, other: np.ndarray) -> bool:
    """True where `core` counts more page writes and more worn lines than `other`, and the sum of its totals is right.

    Nothing ever counts down, so the other one is older.  One flipped bit does not make it so.
    """
    now, then = core[0]["tally"], other[0]["tally"]
    counted = core[0]["unit"][layout.UNIT_TALLY] == tally_sum(core)
    return bool(counted and now["page_writes"] > then["page_writes"] and now["worn"].sum() > then["worn"].sum())


def sum_is_wrong(core: np.ndarray) -> bool:
    """True where the sum of the totals is known, and they add up to another."""
    return int(core[0]["unit"][layout.UNIT_TALLY]) not in (0, tally_sum(core))


def know_sum(core: np.ndarray) -> None:
    """Add the totals up where their sum is not known.  One that is wrong stays so, for check to find."""
    if core[0]["unit"][layout.UNIT_TALLY] == 0:
        core[0]["unit"][layout.UNIT_TALLY] = tally_sum(core)


def complete_state(mapping: Mapping, plan: Geometry, journal: Journal) -> None:
    """After a kill: a move is switched wholly; a section is dirty where either the state or the journal says so."""
    plan.finish_moves(mapping.table)
    durable = np.frombuffer(journal.load_sections(), np.uint8)
    held = mapping.sections[: len(durable)]
    held[:] = united(held, durable[: len(held)])


def united(held: np.ndarray, durable: np.ndarray) -> np.ndarray:
    """The sections' bits of a killed session's state and of the journal, which alone knows which are suspect."""
    return (held & np.uint8(~layout.SECTION_SUSPECT & 0xFF)) | durable


def require_newer(mapping: Mapping, journal: Journal) -> None:
    """After a kill: refuse a state of before the checkpoint.  DamagedImage."""
    if is_ahead(np.frombuffer(journal.load_core(), mapping.core.dtype), mapping.core):
        raise DamagedImage("state", "it is older than the journal", "'pmem-nbd check --repair'")


def require_agreement(mapping: Mapping, plan: Geometry, journal: Journal) -> None:
    """After a close: refuse a state that is not what the journal has.  DamagedImage."""
    core, table = journal.load_checkpoint()
    durable = np.uint8(~layout.SECTION_RECENT & 0xFF)
    same = (
        mapping.core.tobytes() == core
        and mapping.table[: len(plan.table)].tobytes() == table
        and (mapping.sections[: plan.section_count] & durable).tobytes() == journal.load_sections()
        and not len(pending_slots(mapping.pending, plan))
    )
    if not same:
        raise DamagedImage(
            "state", "it and the journal differ though the image was closed", "'pmem-nbd check --repair'"
        )


def require_sane(mapping: Mapping, plan: Geometry) -> None:
    """Refuse a state whose values compiled code could not bear: DamagedImage."""
    wrong = plan.find_impossible(mapping.core[0], mapping.table) or _find_impossible_work(mapping, plan)
    if wrong:
        raise DamagedImage("state", f"an impossible value in {wrong}", "'pmem-nbd check --repair'")


def _find_impossible_work(mapping: Mapping, plan: Geometry) -> str:
    """Which of what is in flight, due or pending cannot be, in words; "": nothing."""
    core, unit, ticks = mapping.core[0], mapping.core[0]["unit"], mapping.ticks[: plan.tick_words]
    flying = intent_problems(core["intent"], plan)
    if flying:
        return f"the {flying[0]} in flight"
    if unit[layout.UNIT_CAUSE] and not (
        1 <= unit[layout.UNIT_CAUSE] <= len(layout.CAUSES)
        and 0 < unit[layout.UNIT_LINES] <= plan.line_count
        and 0 <= unit[layout.UNIT_FIRST] <= plan.line_count - unit[layout.UNIT_LINES]
    ):
        return "the lines in flight"
    if np.any((ticks < 0) | (ticks > max(0, int(core["tally"]["worn"].sum())))):
        return "the leveling's ticks"
    return "a pending descriptor" if len(misplaced_slots(mapping.pending, plan)) else ""


def pending_slots(pending: np.ndarray, plan: Geometry) -> np.ndarray:
    """The slots in which a descriptor is pending, int64[]; pending: the state's zone."""
    return np.flatnonzero(_pending_heads(pending, plan))


def misplaced_slots(pending: np.ndarray, plan: Geometry) -> np.ndarray:
    """Those of them whose page does not exist or has another slot."""
    slots = pending_slots(pending, plan)
    pages = _pending_heads(pending, plan)[slots] - 1
    return slots[(pages < 0) | (pages >= plan.info.page_count) | (pages % layout.PENDING_SLOTS != slots)]


def _pending_heads(pending: np.ndarray, plan: Geometry) -> np.ndarray:
    """Of each slot, a page and 1 where that page's descriptor is pending, int64[]; none where they never are."""
    if not plan.pending_bytes:
        return np.zeros(0, np.int64)
    return pending.view(np.int64).reshape(layout.PENDING_SLOTS, -1)[:, 0]
