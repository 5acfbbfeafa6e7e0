# SPDX-License-Identifier: MIT
"""Compiling ahead: nothing may compile on a request."""

import numpy as np

from . import datapath, jit, layout, statefile
from .geometry import Geometry


def warm_up(plan: Geometry) -> None:
    """Compile (or load from the cache) everything a request may need, for a device of this plan."""
    handle = (np.zeros(1, layout.RUN), statefile.fresh_core(plan))
    jit.compile_for(datapath.read, handle, memoryview(bytearray()), 0, 0)
    jit.compile_for(datapath.write, handle, memoryview(b""), 0, 0)
    jit.compile_for(datapath.trim, handle, 0, 0, 0)
    jit.compile_for(datapath.zero, handle, 0, 0, False, 0)
    jit.compile_for(datapath.drain, handle, 0)
    jit.compile_for(datapath.extents, handle, 0, 0, np.empty((1, 2), np.int64))
    for function in (datapath.heal, datapath.page_address, datapath.medium_address):
        jit.compile_for(function, handle, 0)
