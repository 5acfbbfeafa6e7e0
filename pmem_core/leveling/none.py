# SPDX-License-Identifier: MIT
"""No leveling: a placed frame is the medium frame of the same number."""

import numpy as np

from ..jit import hot
from ..layout import OK

SOURCE = "the baseline"
MOVES = False
PARAMETERS = {}
STATE = np.dtype([("fixed", "<i8")])


def plan(medium_frames, parameters, seed):
    """Returns state (STATE[]), placed frames, initial table (int64[]), and the number of tick words."""
    return np.zeros((), STATE), medium_frames, np.zeros(0, np.int64), 0


def spare_frames(state, table):
    """The medium frames that hold nothing, int64[]."""
    return np.zeros(0, np.int64)


def table_is_sane(state, table):
    """True where compiled code can bear `table`, whatever is in it."""
    return True


@hot
def translate(state, run, frame):
    return frame


@hot
def tick(state, run, frame, lines):
    pass


@hot
def settle(state, run, core, frame):
    return OK
