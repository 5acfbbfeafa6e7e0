# SPDX-License-Identifier: MIT
"""The files of an image, mapped, and their addresses for compiled code."""

import contextlib
import dataclasses
import mmap
import os
from pathlib import Path

import numpy as np

from . import arena, host, hugepages, layout, reservations, room
from .errors import DamagedImage, HostError
from .geometry import Geometry

# A write that is quicker by calls: its pages are adjacent on the disk, as those of many small ones are not.
LARGE = 4 * layout.PAGE_BYTES
MOVED_ROOM = 1 << 15  # moves between two checkpoints whose frames are synced one by one, not with all the medium


@dataclasses.dataclass
class Mapping:
    """The files of an image, mapped; arrays are views, and `run` holds their addresses for compiled code."""

    run: np.ndarray
    core: np.ndarray
    table: np.ndarray
    ticks: np.ndarray
    sections: np.ndarray
    durable: np.ndarray
    wear: np.ndarray
    media: np.ndarray
    maps: dict[str, mmap.mmap]
    files: dict[str, int]
    pending: np.ndarray
    kept: tuple[np.ndarray, ...]

    def keep_descriptors(self, plan: Geometry) -> None:
        """Have descriptors kept in memory from now on; none is known yet.  HostError.

        Only what is touched costs memory: no room is set aside, and no page of 2 MiB filled for one descriptor.
        """
        count = host.whole_pages(plan.kept_bytes)
        try:
            kept = arena.anonymous(count)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            wanted = "a larger limit (ulimit -v, vm.overcommit_memory), or descriptors on the medium"
            raise HostError("descriptors", f"{count} bytes of memory: {why}", wanted) from error
        # No more than a mark (host.resident_bytes): a map that is unlike others is never joined with one beside it.
        kept.madvise(mmap.MADV_RANDOM)
        self.maps["descriptors"] = kept
        self.run["descriptors"] = np.frombuffer(kept, np.uint8).ctypes.data
        self.run["descriptor_bytes"] = plan.info.descriptor_bytes
        self.run["checksums"] = int(plan.info.checksums)

    def close(self) -> None:
        """Unmap and close; the arrays and `run` must not be used any more."""
        self.run[:] = 0
        for name in ("core", "table", "ticks", "sections", "wear", "media", "pending"):
            setattr(self, name, np.zeros(1, np.uint8))
        for fd in self.files.values():
            os.close(fd)
        for mapped in self.maps.values():
            # A view that somebody still holds keeps its map until it goes.
            with contextlib.suppress(BufferError):
                mapped.close()
        self.maps.clear()


def map_image(path: Path, plan: Geometry, *, read_only: bool) -> Mapping:
    """Map media, wear and state.

    read_only: nothing is written; state and wear are private copies, so that counters may change in memory.
    """
    files: dict[str, int] = {}
    maps: dict[str, mmap.mmap] = {}
    views: dict[str, np.ndarray] = {}
    try:
        with host.host_errors(path):
            for name, size in (
                ("media", plan.info.size),
                ("wear", 4 * plan.line_count),
                ("state", plan.zones()["end"][0]),
            ):
                files[name] = os.open(path / name, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
                found = os.fstat(files[name]).st_size
                if found < size:
                    raise DamagedImage(path / name, f"truncated to {found} bytes", f"{size} bytes")
                if name == "media" and not read_only and hugepages.suits(files[name], size):
                    maps[name], views[name] = hugepages.map_aligned(files[name], size)
                    continue
                private = read_only and name != "media"
                flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
                protection = mmap.PROT_READ if read_only and not private else mmap.PROT_READ | mmap.PROT_WRITE
                maps[name] = mmap.mmap(files[name], size, flags | arena.MAP_NORESERVE, protection)
                views[name] = np.frombuffer(maps[name], np.uint8)
            # Of a write that failed the kernel tells each open file once: flushes hear of it by one of their own.
            files["flushes"] = os.open(path / "media", os.O_RDONLY | os.O_CLOEXEC)
        if not read_only:
            with host.host_errors(path):
                room.take(files["state"])  # who stores to it asks for no room
        # Single-page folios: a stored byte must not make a flush write 2 MiB.
        maps["media"].madvise(mmap.MADV_RANDOM)
        maps["wear"].madvise(mmap.MADV_RANDOM)
    except BaseException:
        views.clear()
        for mapped in maps.values():
            mapped.close()
        for fd in files.values():
            os.close(fd)
        raise
    mapping = _arrange(plan, files, maps, views, read_only)
    mapping.run["allocation"] = host.KEEP_SIZE if read_only else room.allocation(files["media"])
    # Of a file that may not be written mincore(2) says that all of it is in memory.
    if mapping.run["tmpfs"][0]:
        mapping.run["looks"] = os.access(f"/proc/self/fd/{files['media']}", os.W_OK, effective_ids=True)
    return mapping


def _arrange(
    plan: Geometry, files: dict[str, int], maps: dict[str, mmap.mmap], views: dict[str, np.ndarray], read_only: bool
) -> Mapping:
    zones, info = plan.zones(), plan.info
    media, wear, state = views["media"], views["wear"].view(np.uint32), views["state"]
    part = {name: state[at : at + size] for name, (at, size) in zones.items() if name != "end"}
    core_type = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    core = part["core"][: core_type.itemsize].view(core_type)
    table, ticks = part["table"].view(np.int64), part["ticks"].view(np.int64)
    durable = table.copy()
    # A byte for each reservation, touched as sparsely as the medium is.
    reserved = np.frombuffer(arena.anonymous((info.size >> reservations.RESERVE_SHIFT) + 1), np.uint8)
    scratch = np.zeros(4 * layout.PAGE_BYTES, np.uint8)
    moved = np.zeros(MOVED_ROOM, np.int64)
    fresh = np.frombuffer(arena.anonymous(8 * (info.size // info.frame_bytes // 64 + 1)), np.int64)
    run = np.zeros(1, layout.RUN)
    addresses: dict[str, np.ndarray] = {
        "media": media,
        "wear": wear,
        "table": table,
        "durable": durable,
        "ticks": ticks,
        "sections": part["sections"],
        "pending": part["pending"] if plan.pending_bytes else scratch,
        "reserved": reserved,
        "scratch": scratch,
        "moved": moved,
        "fresh": fresh,
    }
    for name, array in addresses.items():
        run[name] = array.ctypes.data
    in_memory = host.is_tmpfs(files["media"])
    figures = plan.for_compiled_code() | {
        "table_words": len(table),
        "tick_words": len(ticks),
        "reserved_count": len(reserved),
        "moved_room": len(moved),
        "fresh_words": len(fresh),
        "media_fd": files["media"],
        "wear_fd": files["wear"],
        "checksums": int(info.checksums and plan.has_descriptors),
        "read_only": int(read_only),
        "large": 0 if in_memory or info.frame_bytes < layout.PAGE_BYTES else LARGE,
        "epoch": 1,
        "tmpfs": int(in_memory),
    }
    for name, value in figures.items():
        run[name] = value
    kept = (reserved, scratch, moved, fresh)
    return Mapping(run, core, table, ticks, part["sections"], durable, wear, media, maps, files, part["pending"], kept)
