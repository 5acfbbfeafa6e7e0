# SPDX-License-Identifier: MIT
"""Groups of descriptors: each page is up or covered by one head, and what is up is so as a whole (bringup.py)."""

from typing import TYPE_CHECKING

import numpy as np

from .. import bringup, checkscan, groupscan, layout
from ..binding import Handle
from ..geometry import Geometry
from .findings import Finding, Kind, Report

if TYPE_CHECKING:
    from ..device import Device

KINDS = {groupscan.GAP: Kind.GROUP_GAP, groupscan.OVERLAP: Kind.GROUP_OVERLAP}


def can_be_told(plan: Geometry) -> bool:
    """True where descriptors of zeros are not all there is, and nothing of them is still to come."""
    return plan.info.initialise != "zeros" and (plan.info.initialise != "eager" or plan.info.initialised)


def _note(report: Report, handle: Handle, page: int, verdict: int, end: int) -> Finding:
    at = int(checkscan.descriptor_offset(handle, page))
    return report.add(KINDS[verdict], "media", f"pages {page} to {end - 1}", page=page, offset=at)


def examine(report: Report, plan: Geometry, handle: Handle, held: np.ndarray) -> None:
    """Report what is wrong; held: as in checkscan."""
    claim, page, last = np.zeros(groupscan.CLAIM_WORDS, np.int64), 0, plan.info.page_count
    while page < last:
        page, verdict = groupscan.groups(handle, page, last, held, claim)
        if verdict != checkscan.FINE:
            _note(report, handle, page, verdict, int(claim[groupscan.GAP_END]))
            page = int(claim[groupscan.GAP_END])


def repair(report: Report, device: "Device", held: np.ndarray) -> None:
    """Report and mend.  Where a free group is split, its parts are looked at once more."""
    last = device.plan.info.page_count
    claim, page = np.zeros(groupscan.CLAIM_WORDS, np.int64), 0
    while page < last:
        page, verdict = groupscan.groups(device.handle, page, last, held, claim)
        if verdict == checkscan.FINE:
            continue
        head, order, _, end = claim.tolist()
        finding = _note(report, device.handle, page, verdict, end)
        what = page, head, order if verdict == groupscan.OVERLAP else -1, end
        device.complete(lambda handle, *rest: bringup.mend(handle, *rest[:-1]), page << layout.PAGE_SHIFT, *what)
        report.done(finding, "initialised, or covered by heads")
        if verdict == groupscan.OVERLAP:
            for at in range(device.plan.group_pages.bit_length() - 1, order):
                groupscan.note_head(device.handle, ((page >> at) ^ 1) << at, held)
            page, claim[:] = head, 0
        else:
            page = end
