# SPDX-License-Identifier: MIT
"""What compiled code takes by itself, in this process, with no server: writes and reads of devices in memory.

Six devices take turns, so that what disturbs the machine disturbs all of them alike.
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchlib.workloads import in_turn
from pmem_core import datapath, geometry, hugepages, image, layout
from pmem_core.crc32c import page_crc
from pmem_core.device import Device
from pmem_core.jit import copy_bytes, hot

MANY, NEAR_PAGES = 20_000, 8
# What is timed, by what it is of and what it is, with how many times it does that; and ns of one time.
Works = dict[tuple[str, str], tuple[Callable[[], Any], int]]
Figures = dict[str, dict[str, float]]


@hot
def copies(source: Any, target: Any, places: Any) -> None:
    """Copy `source` to each of `places`."""
    for place in places:
        copy_bytes(target, place, source, 0, source.size)


@hot
def checksums(words: Any, places: Any) -> bool:
    """The checksum of the page at each of `places`, added up to something that cannot be left out."""
    total = 0
    for place in places:
        total ^= page_crc(words, place >> 3)
    return total == 1


@hot
def requests(function: Any, device: Any, address: int, size: int, places: Any) -> int:
    """One request after another, with no Python in between; the first stop code, or 0."""
    for place in places:
        code = function(device, address, size, place, 0)
        if code:
            return code
    return 0


def all_in_turn(works: Works, rounds: int) -> Figures:
    """ns of one of the things that each of `works` does: medians over rounds, in each of which all are done."""
    took: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for number in range(rounds + 1):
        for key, (work, times) in in_turn(list(works.items()), number):
            started = time.perf_counter()
            assert not work(), "a request was stopped"
            took[key].append((time.perf_counter() - started) / times * 1e9)
    found: Figures = {}
    for (kind, name), values in took.items():
        found.setdefault(kind, {})[name] = statistics.median(values[1:])
    return found


def filled(folder: str, size: int, **options: Any) -> Device:
    """A device of which every page was written."""
    path, mib = Path(folder) / "image.pmem", memoryview(bytes(1 << 20))
    image.create(path, geometry.plan(size, leveling_name="none", **options))
    device = Device(path)
    for start in range(0, device.plan.device_bytes - len(mib), len(mib)):
        device.write(mib, start)
    device.write(mib, device.plan.device_bytes - len(mib))
    return device


def alone(rounds: int, size: int, seed: int) -> Figures:
    """ns of what compiled code does by itself: by what it is of, and what it is."""
    page, chance = layout.PAGE_BYTES, np.random.default_rng(seed)
    source, target = np.frombuffer(chance.bytes(page), np.uint8), np.zeros(page, np.uint8)
    works: Works = {}
    devices: list[Device] = []
    with contextlib.ExitStack() as held:
        for line, checksum in itertools.product((64, 256, 4096), (True, False)):
            folder = held.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
            device = held.enter_context(filled(folder, size, line_bytes=line, checksums=checksum))
            devices.append(device)
            near, far = (chance.integers(0, most, MANY) * page for most in (NEAR_PAGES, device.plan.info.page_count))
            kind = f"lines of {line}" + ("" if checksum else ", no checksums")
            for name, function, memory, places in (
                ("write, near", datapath.write, source, near),
                ("write, far", datapath.write, source, far),
                ("read, near", datapath.read, target, near),
                ("read, far", datapath.read, target, far),
                ("write of 512 bytes, near", datapath.write, source[:512], near),
            ):
                work = partial(requests, function, device.handle, memory.ctypes.data, memory.size, places)
                works[kind, name] = work, len(places)
        found = all_in_turn(works | bare(size, chance), rounds)
        for device in devices:
            hugepages.Collapser(device.mapping.files["media"], *device.medium).turn(60)
        again: Works = {
            (kind, f"{name}, huge pages"): work
            for (kind, name), work in works.items()
            if name in ("write, far", "read, far")
        }
        for kind, figures in all_in_turn(again, rounds).items():
            found[kind] |= figures
    return found


def bare(size: int, chance: np.random.Generator) -> Works:
    """A copy and a checksum of 4096 bytes, and nothing else."""
    page = layout.PAGE_BYTES
    memory, source = np.ones(size, np.uint8), np.ones(page, np.uint8)
    near, far = (chance.integers(0, most, MANY) * page for most in (NEAR_PAGES, size // page))
    return {
        ("bare", "copy, near"): (partial(copies, source, memory, near), MANY),
        ("bare", "copy, far"): (partial(copies, source, memory, far), MANY),
        ("bare", "checksum, near"): (partial(checksums, memory.view(np.int64), near), MANY),
    }
