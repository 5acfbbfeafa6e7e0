# SPDX-License-Identifier: MIT
"""Is the state that of the last session?  After a power cut it may be older than the medium is.

Only the journal can tell.  Where that is lost, the pages are asked: by the map of another session many of them fail
their checksums.  To repair by it would give good checksums to what is other pages' data.
"""

import numpy as np

from .. import checkscan, layout
from ..binding import Handle
from ..geometry import Geometry
from .findings import Kind, Report
from .trust import Belief, Stage

# More than a page of descriptors, and more than one page of so many with data.
FAILING_MAX, FAILING_SHARE = layout.PAGE_BYTES // 64, 8


def find(report: Report, stage: Stage, belief: Belief) -> bool:
    """True, and reported, where too many pages fail by the map that is believed."""
    stage.load(belief)
    bad, pages = _failing(stage.plan, stage.handle, belief.held)
    if bad <= FAILING_MAX or FAILING_SHARE * bad <= pages:
        return False
    report.add(Kind.MAP_DOUBTFUL, "state", f"{bad} of {pages} with data")
    report.unchecked.append(
        "descriptors and data: put the journal of the last session back; or move the folder 'journal' out of the "
        "image, and --repair marks the pages that fail as damaged, where the state says they are"
    )
    return True


def _failing(plan: Geometry, handle: Handle, held: np.ndarray) -> tuple[int, int]:
    """Of the pages of all sections, how many fail a checksum, and how many there are with data, these among them."""
    bad, pages, size = 0, 0, plan.info.section_pages
    holds = np.zeros(size, np.uint8)
    for first in range(0, plan.info.page_count if plan.has_descriptors else 0, size):
        at, last = first, min(first + size, plan.info.page_count)
        while at < last:
            at, verdict = checkscan.touched(handle, at, last, held, holds[at - first :])
            bad += verdict in (checkscan.DAMAGED, checkscan.MISMATCHED)
            at += 1
        pages += int(np.count_nonzero(holds[: last - first] == 1))
    return bad, pages
