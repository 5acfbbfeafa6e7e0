# SPDX-License-Identifier: MIT
"""Whom to believe, of state and journal; by how the last session ended, and by what the medium says."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import recovery, statefile
from ..geometry import Geometry
from . import amend, doubt, pages, sanity, trust
from .findings import Kind, Report
from .probe import Record
from .trust import Belief, Stage

Watch = Callable[[float], None]
HEAD_BITS_MAX = 8  # wrong ones, in the head of a state that is believed all the same
OLDER = "it is of an earlier session"
MISSING = "missing"
CLOSED, KILLED, CUT, UNKNOWN = "closed", "killed", "power cut", "unknown"
SESSIONS = {
    CLOSED: "closed properly",
    KILLED: "not closed, its process was killed: opening finishes what was interrupted",
    CUT: "not closed, and the page cache was lost: opening goes back to the last checkpoint",
    UNKNOWN: "unknown: the journal does not say",
}


@dataclasses.dataclass
class Image:
    """What is known of the image being checked.

    sure: the map that is believed is that of the last session; contested: too many pages fail by the best there is;
    behind: what is believed is a checkpoint of a session that was killed later; older: the journal is no checkpoint of
    the session that a power cut ended.
    """

    path: Path
    plan: Geometry
    record: Record
    end: str
    wear_is_whole: bool
    sure: bool = True
    contested: bool = False
    behind: bool = False
    older: bool = False


def is_doubtful(found: Image, belief: Belief, report: Report, stage: Stage) -> bool:
    """True where the medium contradicts what is believed, and nothing better is known; fills in found.sure."""
    if found.older:
        return doubt.find_older(report)
    untold = found.end == UNKNOWN or (found.end == CUT and belief.source.startswith("state"))
    found.sure = not len(found.plan.table) or not (untold or found.contested or found.record.remade)
    if found.sure or not (untold or found.contested) or found.record.problem == MISSING:
        return False
    return doubt.find(report, stage, belief)


def believe(found: Image, report: Report, stage: Stage, watch: Watch) -> Belief | None:
    """What is to be believed, and in the report what cannot be; None: nothing.  watch is told the share done."""
    belief = _believe(found, report, stage, watch)
    found.behind = belief is not None and found.end == KILLED and belief.source.startswith("journal")
    return belief


def _tellings(found: Image, report: Report) -> tuple[Belief | None, Belief | None]:
    """What state and journal tell; None where that is missing, damaged, or of an earlier session than the other's."""
    plan, end = found.plan, found.end
    # It may be more than the journal knows, or can tell.  Uuids of two images differ in far more bits.
    state = trust.from_state(found.path / "state", plan, HEAD_BITS_MAX if end != CUT else 0)
    journal = None if found.record.problem else trust.from_journal(found.record, plan)
    if state is None and (end != CUT or not (found.path / "state").exists()):
        report.add(Kind.STATE_LOST, "state")
    if state is not None and not statefile.state_is_whole(found.path / "state", plan):
        report.add(Kind.STATE_HEAD, "state")
    if journal is None and not found.record.problem:
        report.add(Kind.JOURNAL_DAMAGED, "journal", "its checkpoint does not fit the image")
    if state is None or journal is None:
        return state, journal
    if end == CLOSED and recovery.is_ahead(state.core, journal.core):
        report.add(Kind.JOURNAL_DAMAGED, "journal", _older(journal, state))
        found.record, found.end = dataclasses.replace(found.record, problem=OLDER), UNKNOWN
        report.session = SESSIONS[UNKNOWN]
        return state, None
    if end == KILLED and recovery.is_ahead(journal.core, state.core):
        report.add(Kind.STATE_DAMAGED, "state", _older(state, journal))
        return None, journal
    return state, journal


def _older(one: Belief, other: Belief) -> str:
    behind, ahead = (int(belief.core[0]["tally"]["page_writes"]) for belief in (one, other))
    return f"{OLDER}: it counts {behind} writes of pages, the {other.source} {ahead}"


def _believe(found: Image, report: Report, stage: Stage, watch: Watch) -> Belief | None:
    state, journal = _tellings(found, report)
    plan, end = found.plan, found.end
    blocks = pages.blocks_in_use(found.path / "media", plan.info.size)
    problem, held = "", blocks
    for belief in (state, journal):
        if belief is None:
            continue
        sanity.find_problems(belief, plan, closed=end == CLOSED)
        if belief is state or state is None or not np.array_equal(state.table, belief.table):
            problem, held = stage.survey(belief, blocks, watch)
        belief.maps_well, belief.held = not problem, held
        belief.problems += [problem] if problem else []
    if journal is not None and journal.problems:
        report.add(Kind.JOURNAL_DAMAGED, "journal", "; ".join(journal.problems))
    report.checked["frames"] = plan.placed_frames
    if state is not None and journal is not None and end == KILLED:
        # As opening does: a checkpoint cut short may have cleared marks that the journal still has.
        state.sections = recovery.united(state.sections, journal.sections)
        amended = amend.table(stage, state, journal, blocks, watch)
        state, found.contested = amended.belief, amended.doubtful
        if amended.problem:
            state.problems = [*state.problems, amended.problem]
    if state is not None and state.problems and end != CUT:
        report.add(Kind.STATE_DAMAGED, "state", "; ".join(state.problems))
    if journal is not None and end != CLOSED:
        trust.after_a_cut(journal)
    if state is not None and journal is not None and end == CUT:
        found.older = doubt.is_older(stage, journal, state)
    if state is None and journal is None and not len(plan.table):
        belief = trust.untold(plan)
        _, belief.held = stage.survey(belief, blocks, watch)
        return belief
    return _choose(found, report, stage, state, journal)


def _choose(found: Image, report: Report, stage: Stage, state: Belief | None, journal: Belief | None) -> Belief | None:
    """The better of the two, or what can be made of it."""
    order = [journal, state] if found.end == CUT else [state, journal]
    told = [belief for belief in order if belief is not None and belief.maps_well]
    sane = [belief for belief in told if not belief.problems]
    if found.end == CLOSED and len(sane) == 2:
        differing = sane[0].differences(sane[1])
        if differing:
            report.add(Kind.STATE_DIFFERS, "state", ", ".join(differing))
            return doubt.settled(found.path, stage, sane[0], sane[1], wear_is_whole=found.wear_is_whole)
    if found.end == CLOSED and len(told) == 2 and len(sane) < 2 and not np.array_equal(told[0].table, told[1].table):
        # An impossible value says nothing against a table, and a checksum nothing for a journal of another day.
        told = [sanity.cleaned(belief, found.plan, closed=True) if belief.problems else belief for belief in told]
        return doubt.settled(found.path, stage, told[0], told[1], wear_is_whole=found.wear_is_whole)
    if told and told[0] is state and found.end == KILLED and state.problems:
        # Rather than the journal, which is behind it: by that, writes that were answered would be lost without a word.
        made = sanity.cleaned(state, found.plan, closed=False)
        if not sane or not doubt.fits_better(stage, sane[0], made):
            return made
    if sane:
        return sane[0]
    return sanity.cleaned(told[0], found.plan, closed=found.end == CLOSED) if told else None
