# SPDX-License-Identifier: MIT
"""What a telling of state or journal says that cannot be, and what is left of it without that."""

import dataclasses
from typing import Any

import numpy as np

from .. import layout, recovery
from ..geometry import Geometry
from .trust import DURABLE_BITS, Belief


def find_problems(belief: Belief, plan: Geometry, *, closed: bool) -> None:
    """Fill in belief.problems, all but those of the map.  closed: nothing may be in flight."""
    core, tally = belief.core[0], belief.core[0]["tally"]
    found = belief.problems
    for name, planned in (("placement", plan.placement_state), ("leveling", plan.leveling_state)):
        if core[name].tobytes() != planned.tobytes():
            found.append(f"the {name}'s parameters are not those of the info block")
    negative = [name for name in layout.TALLY.names or () if name != "uncheckpointed" and np.any(tally[name] < 0)]
    if negative:
        found.append(f"negative totals: {', '.join(negative)}")
    found += _in_flight_problems(core, plan, closed)
    if np.any(belief.sections & ~np.uint8(DURABLE_BITS | layout.SECTION_RECENT)):
        found.append("unknown bits of sections")
    if len(belief.ticks) and (belief.ticks.min() < 0 or belief.ticks.max() > max(0, int(tally["worn"].sum()))):
        found.append("ticks that no store made")
    found += _pending_problems(belief, plan, closed)


def _in_flight_problems(core: Any, plan: Geometry, closed: bool) -> list[str]:
    intent, unit = core["intent"], core["unit"]
    cause = int(unit[layout.UNIT_CAUSE])
    if closed and (np.any(intent) or cause):
        return ["something in flight though the image was closed"]
    found = []
    wrong = recovery.intent_problems(intent, plan)
    if "page" in wrong:
        found.append("a page in flight that does not exist")
    if "trim" in wrong:
        found.append("a trim in flight of pages that do not exist")
    if cause:
        first, lines = int(unit[layout.UNIT_FIRST]), int(unit[layout.UNIT_LINES])
        inside = first >= 0 and lines > 0 and first + lines <= plan.line_count
        if (
            not 0 < cause <= len(layout.CAUSES)
            or not inside
            or unit[layout.UNIT_SUM] < 0
            or unit[layout.UNIT_TOTAL] < 0
        ):
            found.append("lines in flight that do not exist")
    return found


def _pending_problems(belief: Belief, plan: Geometry, closed: bool) -> list[str]:
    if not len(_wrong_slots(belief, plan, closed)):
        return []
    return [f"pending descriptors {'though the image was closed' if closed else 'of pages that are not theirs'}"]


def _wrong_slots(belief: Belief, plan: Geometry, closed: bool) -> np.ndarray:
    """The slots with a pending descriptor that cannot be there."""
    return (recovery.pending_slots if closed else recovery.misplaced_slots)(belief.pending, plan)


def _without(belief: Belief, slots: np.ndarray) -> np.ndarray:
    """The pending descriptors but for those in `slots`: one flipped bit is no word against the others."""
    pending = belief.pending.copy()
    if len(slots):
        pending.reshape(layout.PENDING_SLOTS, -1)[slots] = 0
    return pending


def cleaned(belief: Belief, plan: Geometry, *, closed: bool) -> Belief:
    """A telling with problems, made possible again: what cannot be right is dropped.  closed: see find_problems."""
    core = belief.core.copy()
    core["placement"], core["leveling"] = plan.placement_state, plan.leveling_state
    if _in_flight_problems(core[0], plan, closed):
        core["intent"], core["unit"] = 0, 0
    for name in layout.TALLY.names or ():
        if name != "uncheckpointed":
            core["tally"][name] = np.maximum(core["tally"][name], 0)
    return dataclasses.replace(
        belief,
        source=f"{belief.source}, as far as it can be right",
        core=core,
        sections=(belief.sections & np.uint8(DURABLE_BITS)) | np.uint8(layout.SECTION_TOUCHED),
        ticks=np.zeros_like(belief.ticks),
        pending=_without(belief, _wrong_slots(belief, plan, closed)),
    )
