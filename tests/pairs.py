# SPDX-License-Identifier: MIT
"""Which placements and levelings are tried together.

They know nothing of each other, which import-linter holds; so each policy is tried with the plainest and the busiest of
the other family, not each with each: a pair is compiled anew, which takes longer than all that is tested of it.
ram is tried with the busiest only: what lies on the medium, and what is worn, is what none has there.
"""

from pmem_core import leveling, placement

THOROUGH = ("none", "start_gap")  # levelings that are tried with every placement, and every way of writing descriptors
PAIRS = [
    (place, level)
    for place in placement.family.modules
    for level in leveling.family.modules
    if place == "interleaved" or (level in THOROUGH and (place, level) != ("ram", "none"))
]
