# SPDX-License-Identifier: MIT
"""The sections' bits: which parts of the device may hold writes that were not flushed.

A byte a section (layout.SECTION_*), uint8[]; the journal keeps them in rows.  The order of steps that keeps it sound:

* a write waits until its section is DIRTY in the journal, then marks it RECENT;
* clearing takes DIRTY away from the mapped byte first (upkeep.clear_dirty), then drains pending descriptors and
  syncs the medium, then commits: a write that comes in between finds its section unmarked and waits for the lock;
* a kill between the two leaves a mark in the journal only, so an open after a kill takes the union.
"""

import numpy as np

from . import layout
from .journal import ROW_SECTIONS
from .statefile import section_rows

_MARK = np.uint8(layout.SECTION_DIRTY | layout.SECTION_TOUCHED)


def row_if_marked(sections: np.ndarray, at: int) -> dict[int, bytes]:
    """The journal's row of section `at` as it will be once that section is marked."""
    wanted = sections.copy()
    wanted[at] |= _MARK
    return dict(section_rows(wanted, {at // ROW_SECTIONS}))


def mark(sections: np.ndarray, at: int) -> None:
    """Mark section `at` as written and dirty."""
    sections[at] |= _MARK


def rows_of(sections: np.ndarray, which: np.ndarray) -> dict[int, bytes]:
    """The journal's rows that hold the sections `which`."""
    return dict(section_rows(sections, set((which // ROW_SECTIONS).tolist()))) if len(which) else {}
