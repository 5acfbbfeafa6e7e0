# SPDX-License-Identifier: MIT
"""Which placements and levelings are tried together.

They know nothing of each other, which import-linter holds; so each policy is tried with the plainest and the busiest of
the other family, not each with each.
ram is tried with the busiest only: what lies on the medium, and what is worn, is what none has there.

Where bounds are checked, each policy is tried once: between the two families goes one number, a placed frame, so that
an index that is out of bounds is so whatever the other one is.  (The busiest leveling meets the stripe.)
"""

import os

from pmem_core import leveling, placement

THOROUGH = ("none", "start_gap")  # levelings that are tried with every placement, and every way of writing descriptors
ALL_PAIRS = [
    (place, level)
    for place in placement.family.modules
    for level in leveling.family.modules
    if place == "interleaved" or (level in THOROUGH and (place, level) != ("ram", "none"))
]
BOUNDS = bool(int(os.environ.get("NUMBA_BOUNDSCHECK") or "0"))
PAIRS = [
    (place, level)
    for place, level in ALL_PAIRS
    if not BOUNDS or place == "interleaved" or level == "none" or place == "ram"
]
