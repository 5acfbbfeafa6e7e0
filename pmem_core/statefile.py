# SPDX-License-Identifier: MIT
"""The state file, and the same things as the journal keeps them: core record, table by chunks, sections by rows."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import layout
from .geometry import Geometry
from .host import sync_folder
from .journal import CHUNK_BYTES, ROW_SECTIONS

NO_WORDS = np.zeros(0, np.int64)


def fresh_core(plan: Geometry) -> np.ndarray:
    """A core record (core[1]) of a device never used."""
    core = np.zeros(1, layout.core_dtype(plan.placement.STATE, plan.leveling.STATE))
    core["placement"] = plan.placement_state
    core["leveling"] = plan.leveling_state
    return core


def table_chunks(table: np.ndarray, durable: np.ndarray | None = None) -> Iterator[tuple[int, bytes]]:
    """The chunks of a table, or those in which it differs from `durable`."""
    data = table.tobytes()
    old = durable.tobytes() if durable is not None else None
    for index, at in enumerate(range(0, len(data), CHUNK_BYTES)):
        chunk = data[at : at + CHUNK_BYTES]
        if old is None or chunk != old[at : at + CHUNK_BYTES]:
            yield index, chunk


def section_rows(sections: np.ndarray, only: set[int] | None = None) -> Iterator[tuple[int, bytes]]:
    """The rows of the sections' durable bits, all or those in `only`."""
    durable = sections & np.uint8(~layout.SECTION_RECENT & 0xFF)
    for index, at in enumerate(range(0, len(durable), ROW_SECTIONS)):
        if only is None or index in only:
            yield index, durable[at : at + ROW_SECTIONS].tobytes()


def fresh_head(plan: Geometry) -> bytes:
    """The head of the state file of an image."""
    head = np.zeros((), layout.HEAD)
    head["signature"], head["version"] = layout.STATE_SIGNATURE, layout.STATE_VERSION
    head["uuid"] = bytes.fromhex(plan.info.uuid.replace("-", ""))
    return head.tobytes()


def write_state(
    path: Path,
    plan: Geometry,
    core: np.ndarray,
    table: np.ndarray,
    sections: np.ndarray,
    ticks: np.ndarray = NO_WORDS,
    pending: np.ndarray = NO_WORDS,
) -> None:
    """Write a whole state file, its room reserved, and sync it; `ticks`, `pending` are zero unless they are given."""
    zones = plan.zones()
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with fresh.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, zones["end"][0])
        parts = {"core": core, "table": table, "sections": sections, "ticks": ticks, "pending": pending}
        for name, data in parts.items():
            if data.size:
                os.pwrite(file.fileno(), data.tobytes(), zones[name][0])
        os.pwrite(file.fileno(), fresh_head(plan), zones["head"][0])
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_folder(path.parent)


def wrong_head_bits(path: Path, plan: Geometry) -> int | None:
    """How many bits of the state file's head are not this image's; None where it is missing or has not all zones."""
    if not path.is_file() or path.stat().st_size < plan.zones()["end"][0]:
        return None
    with path.open("rb") as file:
        head = file.read(layout.HEAD.itemsize)
    return (int.from_bytes(head, "little") ^ int.from_bytes(fresh_head(plan), "little")).bit_count()


def state_is_whole(path: Path, plan: Geometry) -> bool:
    """True where the state file has this image's head and size."""
    return wrong_head_bits(path, plan) == 0 and path.stat().st_size == plan.zones()["end"][0]
