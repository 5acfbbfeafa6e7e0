# SPDX-License-Identifier: MIT
"""What compiled code calls by address is put into `run` here: the policies, and the strategy for descriptors."""

from types import ModuleType

import numba
import numpy as np

from . import bringup, jit, layout
from .geometry import Geometry

PLACEMENT, LEVELING = ("page_at", "descriptor_at"), ("translate", "tick", "settle")
Handle = tuple[np.ndarray, np.ndarray]  # what compiled code calls `device`: RUN[1], CORE[1]


def bind(run: np.ndarray, core: np.ndarray, plan: Geometry) -> Handle:
    """Let requests call what a device of this plan needs, and compile that if it is not; the device's handle.

    run: RUN[1]; core: the core record, core[1], whose states are used where they lie.
    """
    common, place, level = layout.common(core), core["placement"], core["leveling"]
    run["placement"], run["leveling"] = jit.record_address(place), jit.record_address(level)
    for name in PLACEMENT:
        run[name] = jit.address_of(getattr(plan.placement, name), place)
    for name in LEVELING:
        run[name] = leveling_address(plan.leveling, name, run, common, level)
    run["ensure"] = run["give_back"] = 0
    if plan.info.initialise in ("section", "subsection", "buddy"):
        run["ensure"] = jit.address_of(bringup.ensure, run, common)
    if plan.info.initialise == "buddy":
        run["give_back"] = jit.address_of(bringup.give_back, run, common)
    return run, common


def leveling_address(module: ModuleType, name: str, run: np.ndarray, core: np.ndarray, state: np.ndarray) -> int:
    """The address of one of LEVELING of a policy, compiled for such records: RUN[1], CORE[1], STATE[1]."""
    function = getattr(module, name)
    if name == "settle":
        return jit.address_of(function, state, run, core)
    if name == "tick":
        return jit.address_of(function, state, run, numbers=2, answer=numba.void)
    return jit.address_of(function, state, run)
