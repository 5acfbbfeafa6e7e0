# SPDX-License-Identifier: MIT
"""Is the state that of the last session?  After a power cut it may be older than the medium is.

Only the journal can tell.  Where that is lost, the pages are asked: by the map of another session many of them fail
their checksums.  To repair by it would give good checksums to what is other pages' data.
"""

from .. import checkscan, layout
from . import pages
from .findings import Kind, Report
from .trust import Belief, Stage

# More than a page of descriptors, and more than one page of so many with data.
FAILING_MAX, FAILING_SHARE = layout.PAGE_BYTES // 64, 8


def find(report: Report, stage: Stage, belief: Belief) -> bool:
    """True, and reported, where too many pages fail by the map that is believed."""
    stage.load(belief)
    told, with_data = pages.verdicts(stage.plan, stage.handle, range(stage.plan.section_count), belief.held)
    bad = told[checkscan.DAMAGED] + told[checkscan.MISMATCHED]
    if bad <= FAILING_MAX or FAILING_SHARE * bad <= with_data:
        return False
    report.add(Kind.MAP_DOUBTFUL, "state", f"{bad} of {with_data} with data")
    report.unchecked.append(
        "descriptors and data: put the journal of the last session back; or move the folder 'journal' out of the "
        "image, and --repair marks the pages that fail as damaged, where the state says they are"
    )
    return True
