# SPDX-License-Identifier: MIT
"""Compiling ahead: nothing may compile on a request."""

import numpy as np

from . import binding, bringup, datapath, jit, layout, statefile, upkeep
from .geometry import Geometry


def warm_up(plan: Geometry) -> None:
    """Compile (or load from the cache) everything a request may need, for a device of this plan."""
    handle = binding.bind(np.zeros(1, layout.RUN), statefile.fresh_core(plan), plan)
    jit.compile_for(datapath.read, handle, 0, 0, 0, 0)
    jit.compile_for(datapath.write, handle, 0, 0, 0, 0)
    jit.compile_for(datapath.trim, handle, 0, 0, 0)
    jit.compile_for(datapath.zero, handle, 0, 0, False, 0)
    jit.compile_for(upkeep.begin_flush, handle, False)
    jit.compile_for(upkeep.drain, handle, 0)
    jit.compile_for(upkeep.take_moves, handle, np.empty(0, np.int64), np.empty(0, np.int64))
    jit.compile_for(upkeep.clear_dirty, handle, False, np.empty(0, np.int64))
    jit.compile_for(upkeep.restore_dirty, handle, np.empty(0, np.int64))
    jit.compile_for(datapath.extents, handle, 0, 0, np.empty((1, 2), np.int64))
    jit.compile_for(upkeep.finish_trim, handle)
    for function in (upkeep.heal, upkeep.page_address, upkeep.medium_address):
        jit.compile_for(function, handle, 0)
    if plan.info.initialise != "zeros":
        jit.compile_for(bringup.finish, handle, 0)
