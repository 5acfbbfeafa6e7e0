# SPDX-License-Identifier: MIT
"""The cold half of how descriptors come into being (bringup.py): all of them at once, and what a kill cut short."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import bringup, layout

if TYPE_CHECKING:
    from .device import Device

Watch = Callable[[float], None]
STEP_PAGES = 1 << 18  # between two looks at how far it has come


def complete(device: "Device", watch: Watch | None) -> None:
    """With `eager`, give every page of the device a descriptor, and note that in the info block, unless that was done.

    watch is told the share done.  What a kill or a power cut leaves undone the next open does: a page that has its
    descriptor is passed over.
    """
    info, watch = device.plan.info, watch or (lambda share: None)
    if device.read_only or info.initialise != "eager" or info.initialised:
        return
    pages = info.page_count
    for first in range(0, pages, STEP_PAGES):
        watch(first / pages)
        device.complete(bringup.fill, first << layout.PAGE_SHIFT, first, first + STEP_PAGES)
    device.checkpoint()
    info = dataclasses.replace(info, initialised=True, generation=info.generation + 1)
    for at in layout.INFO_OFFSETS:
        device.store_info(info, at)
        device.checkpoint()  # one copy is whole at every instant
    device.plan = dataclasses.replace(device.plan, info=info)
    watch(1.0)


def finish_interrupted(device: "Device") -> bool:
    """After a kill: bring up, or give back, the group that was in flight; True if there was one."""
    intent = device.mapping.core["intent"][0]
    if device.plan.info.initialise == "zeros" or not (intent[layout.RAISED] or intent[layout.RETURNED]):
        return False
    if not device.read_only:
        device.complete_page(bringup.finish, 0)
    elif intent[layout.RETURNED]:
        # A descriptor of it may be half gone; its data is not.
        at = (int(intent[layout.RETURNED]) - 1) // device.plan.info.section_pages
        device.mapping.sections[at] |= np.uint8(layout.SECTION_SUSPECT)
    return True
