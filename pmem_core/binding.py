# SPDX-License-Identifier: MIT
"""Put the addresses of what compiled code calls by them into `run`: policies, bringup, requests, what seldom runs."""

from types import ModuleType
from typing import Any

import numba
import numpy as np

from . import bringup, datapath, jit, layout, media, onepage, reservations, roads, together, upkeep
from .geometry import Geometry

# By name in `run`: the function, and how many numbers it takes.
REQUESTS = {
    "together": (together.write, 4),
    "free": (datapath.free, 3),
    "write_at": (datapath.write_at, 4),
    "read_at": (datapath.read_at, 4),
    "flush_at": (upkeep.flush_at, 2),
}

Handle = tuple[np.ndarray, np.ndarray]  # what compiled code calls `device`: RUN[1], CORE[1]


def bind(run: np.ndarray, core: np.ndarray, plan: Geometry) -> Handle:
    """Let requests call what a device of this plan needs, and compile that if it is not; the device's handle.

    run: RUN[1]; core: the core record, core[1], whose states are used where they lie.
    """
    common, place, level = layout.common(core), core["placement"], core["leveling"]
    run["placement"], run["leveling"] = jit.record_address(place), jit.record_address(level)
    for name in ("page_at", "descriptor_at"):
        run[name] = jit.address_of(getattr(plan.placement, name), place)
    run["translate"] = translate_address(plan.leveling, level, run)
    run["tick"] = tick_address(plan.leveling, level, run)
    run["settle"] = jit.address_of(roads.settle, level, run, common, numbers=2)
    run["settle_page"] = jit.address_of(roads.settle_page, place, level, run, common)
    run["where"] = jit.address_of(roads.where, place, level, run, answer=jit.FOUR)
    run["ensure"] = run["give_back"] = 0
    if plan.info.initialise in ("section", "subsection", "buddy"):
        run["ensure"] = jit.address_of(bringup.ensure, run, common)
    if plan.info.initialise == "buddy":
        run["give_back"] = jit.address_of(bringup.give_back, run, common)
    run["move"] = move_address(run, common)
    run["scrub"] = jit.address_of(onepage.scrub, run)
    run["meet"] = jit.address_of(onepage.meet, run, common)
    run["look"] = jit.address_of(reservations.look, run, answer=numba.void)
    run["drain_slot"] = jit.address_of(onepage.drain_slot, run, common, answer=numba.void)
    return run, common


def bind_requests(handle: Handle) -> None:
    """Let `handle` serve the requests of datapath too."""
    for name, (function, numbers) in REQUESTS.items():
        handle[0][name] = request_address(function, handle, numbers)


def request_address(function: Any, handle: Handle, numbers: int = 4) -> int:
    """The address of one of REQUESTS, which has so many arguments beside the records."""
    return jit.address_of(function, *handle, numbers=numbers)


def translate_address(module: ModuleType, state: np.ndarray, run: np.ndarray) -> int:
    """The address of the `translate` of a leveling, compiled for such records: STATE[1], RUN[1]."""
    return jit.address_of(module.translate, state, run)


def tick_address(module: ModuleType, state: np.ndarray, run: np.ndarray) -> int:
    """That of its `tick`."""
    return jit.address_of(module.tick, state, run, numbers=2, answer=numba.void)


def move_address(run: np.ndarray, core: np.ndarray) -> int:
    """That of media.move_bytes, which moves call; core: CORE[1]."""
    return jit.address_of(media.move_bytes, run, core, numbers=2)


def settle_address(module: ModuleType, state: np.ndarray, run: np.ndarray, core: np.ndarray) -> int:
    """That of its `settle`, which devices have compiled into roads.settle; core: CORE[1]."""
    return jit.address_of(module.settle, state, run, core)
