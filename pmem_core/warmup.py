# SPDX-License-Identifier: MIT
"""Compiling ahead: nothing may compile on a request.

What is in the cache is loaded from it.  The first time nothing is, and then as many processes as there are processors
share the work: each takes the next part from a pipe, and finds what others compiled before in the cache.  Parts that
others have compiled into them come first.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial

import numpy as np

from . import binding, bringup, codecache, datapath, descriptor, jit, layout, media, onepage, statefile, upkeep
from .geometry import Geometry

PROCESSES_MAX = 8  # more would wait for each other's parts

Part = Callable[[], object]


def warm_up(plan: Geometry) -> None:
    """Compile (or load from the cache) everything a request may need, for a device of this plan."""
    run, core = np.zeros(1, layout.RUN), statefile.fresh_core(plan)
    needed = _needed(plan, (run, layout.common(core)))
    if not codecache.is_warm("datapath"):
        _share_out([*_inner(plan, run, core), *needed])
    binding.bind_requests(binding.bind(run, core, plan))
    for compile_it in needed:
        compile_it()


def _needed(plan: Geometry, handle: binding.Handle) -> list[Part]:
    """What Python calls."""
    numbers = np.empty(0, np.int64)
    needed: list[Part] = [
        partial(jit.compile_for, datapath.trim, handle, 0, 0, 0),
        partial(jit.compile_for, datapath.zero, handle, 0, 0, False, 0),
        partial(jit.compile_for, upkeep.heal, handle, 0),
        partial(jit.compile_for, upkeep.drain, handle, 0),
        partial(jit.compile_for, upkeep.finish_trim, handle),
        partial(jit.compile_for, datapath.extents, handle, 0, 0, np.empty((1, 2), np.int64)),
        partial(jit.compile_for, datapath.read, handle, 0, 0, 0, 0),
        partial(jit.compile_for, datapath.write, handle, 0, 0, 0, 0),
        partial(jit.compile_for, upkeep.flush, handle, 0, 0),
        partial(jit.compile_for, upkeep.take_moves, handle, numbers, numbers),
        partial(jit.compile_for, upkeep.clear_dirty, handle, False, numbers),
        partial(jit.compile_for, upkeep.restore_dirty, handle, numbers),
        partial(jit.compile_for, upkeep.places, handle, 0, numbers),
        partial(jit.compile_for, upkeep.medium_address, handle, 0),
    ]
    if plan.info.initialise != "zeros":
        needed.append(partial(jit.compile_for, bringup.finish, handle, 0))
    return needed


def _inner(plan: Geometry, run: np.ndarray, core: np.ndarray) -> list[Part]:
    """What is compiled into that, and what is called by its address."""
    common = layout.common(core)
    both, data, road = (run[0], common[0]), np.empty(0, np.uint8), (0, 0, 0, 0)
    return [
        partial(jit.compile_inside, media.put_data, run[0], 0, data, 0, 0),
        partial(jit.compile_inside, media.store, *both, 0, 0, data, 0, 0),
        partial(jit.compile_inside, descriptor.note_write, run[0], 0, 0, 0, 0),
        partial(binding.move_address, run, common),
        partial(jit.compile_inside, onepage.load_descriptor_from, run[0], 0, road),
        partial(binding.bind, run, core, plan),
        partial(jit.compile_inside, onepage.look, *both, 0, road),
        partial(jit.compile_inside, onepage.prepare, *both, 0, True),
        partial(jit.compile_inside, onepage.judge, *both, 0, road),
        partial(jit.compile_inside, onepage.write, *both, 0, 0, data, 0, 0),
        partial(jit.compile_inside, onepage.read, *both, 0, 0, data, 0, 0),
        partial(jit.compile_inside, onepage.trim, *both, 0),
        *[
            partial(binding.request_address, what, (run, common), numbers)
            for what, numbers in binding.REQUESTS.values()
        ],
    ]


def _share_out(parts: list[Part]) -> None:
    """Share `parts` out among several processes.  One that is not finished is compiled later, when it is needed."""
    taken, given = os.pipe()
    os.write(given, bytes(range(len(parts))))
    os.close(given)
    parent, helpers = os.getpid(), []
    try:
        for _ in range(min(PROCESSES_MAX, len(os.sched_getaffinity(0))) - 1):
            helper = os.fork()
            if helper == 0:
                try:
                    _do(parts, taken, lambda: os.getppid() == parent)
                finally:
                    os._exit(0)  # whatever went wrong: the parent sees it when it does that part itself
            helpers.append(helper)
        _do(parts, taken, lambda: True)
    finally:
        os.read(taken, len(parts))  # where this was interrupted: let nobody begin what is left
        os.close(taken)
        for helper in helpers:
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
                os.waitpid(helper, 0)


def _do(parts: list[Part], taken: int, wanted: Callable[[], bool]) -> None:
    while wanted() and (number := os.read(taken, 1)):
        parts[number[0]]()
