# SPDX-License-Identifier: MIT
"""What others leave of a medium of the same size, to the byte: Linux's fsdax namespaces, and BTT.

All of it for a namespace that begins at physical address 0 (or at any multiple of 2 MiB), as a file does for ndctl.
"""

import dataclasses
from collections.abc import Callable

from .errors import UsageError
from .layout import PAGE_BYTES

FSDAX_SOURCE = "nd_pfn_init() in drivers/nvdimm/pfn_devs.c, Linux 6.1.y since it took c91d71363084"
FSDAX_RESERVED = 8192  # 4 KiB unused, 4 KiB struct nd_pfn_sb
FSDAX_ALIGN = 2 << 20  # ndctl's default, and the least that memory hotplug takes (a sub-section)
STRUCT_PAGE_BYTES = 64  # MAX_STRUCT_PAGE_SIZE

BTT_SOURCE = "alloc_arena() and create_arenas() in drivers/nvdimm/btt.c, nd_btt_version() in btt_devs.c, Linux 6.1"
BTT_OFFSET = 4096  # BTT 1.1; it is 0 in BTT 2.0, for namespaces with a label of that class
ARENA_BYTES_MIN, ARENA_BYTES_MAX = 16 << 20, 512 << 30
BTT_PAGE_BYTES = 4096
FREE_BLOCKS = 256  # one a lane
FLOG_GROUP_BYTES = 64  # a lane's: four entries of 16 bytes, two of them live
MAP_ENTRY_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to lay out the same medium.

    by_use: bytes of the medium, `data` being what the client sees; memory_bytes: what it takes of the machine's memory
    for descriptors; refused: why there is none of this size, or "".
    """

    name: str
    source: str
    by_use: dict[str, int]
    memory_bytes: int = 0
    refused: str = ""


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def fsdax(size: int, *, on_device: bool) -> dict[str, int]:
    """Bytes by use of an fsdax namespace of `size` bytes, with its struct pages on the device (map=dev) or in memory.

    ::

        npfns0    = (size - 8 KiB) / 4 KiB                  the map's own pages are counted
        end_trunc = size - ALIGN_DOWN(size, 2 MiB)
        dataoff   = ALIGN(8 KiB + 64 * npfns0, 2 MiB)       map=mem: without the 64 * npfns0
        npfns     = (size - dataoff - end_trunc) / 4 KiB

    Source: FSDAX_SOURCE.  UsageError where nothing would be left.
    """
    end_trunc = size % FSDAX_ALIGN
    array = STRUCT_PAGE_BYTES * (max(0, size - FSDAX_RESERVED) // PAGE_BYTES) if on_device else 0
    data_at = _up(FSDAX_RESERVED + array, FSDAX_ALIGN)
    if data_at >= size - end_trunc:
        raise UsageError(f"size={size}", "too small for an fsdax namespace", f"{data_at + FSDAX_ALIGN} at least")
    return {
        "info": FSDAX_RESERVED,
        "data": size - data_at - end_trunc,
        "descriptor": array,
        "padding": data_at - FSDAX_RESERVED - array,
        "tail": end_trunc,
    }


def _arena(size: int, sector_bytes: int) -> dict[str, int]:
    """Bytes by use of one arena: info block, data, map, flog, copy of the info block."""
    flog = _up(FREE_BLOCKS * FLOG_GROUP_BYTES, BTT_PAGE_BYTES)
    available = size // BTT_PAGE_BYTES * BTT_PAGE_BYTES - 2 * BTT_PAGE_BYTES - flog
    # A page is left for rounding the map up.
    blocks = (available - BTT_PAGE_BYTES) // (sector_bytes + MAP_ENTRY_BYTES)
    seen = blocks - FREE_BLOCKS
    used = {
        "info": 2 * BTT_PAGE_BYTES,
        "data": seen * sector_bytes,
        "free": FREE_BLOCKS * sector_bytes,
        "map": _up(seen * MAP_ENTRY_BYTES, BTT_PAGE_BYTES),
        "flog": flog,
    }
    return used | {"padding": size - sum(used.values())}


def btt(size: int, sector_bytes: int) -> dict[str, int]:
    """Bytes by use of a BTT of `sector_bytes` (512 or 4096) on a namespace of `size` bytes.

    The 4 KiB in front of the first arena are padding; a rest of less than 16 MiB behind the last one is the tail.
    Source: BTT_SOURCE.  UsageError for a namespace that is too small.
    """
    rest = size - BTT_OFFSET
    if rest < ARENA_BYTES_MIN:
        raise UsageError(f"size={size}", "too small for BTT", f"{ARENA_BYTES_MIN + BTT_OFFSET} at least")
    total = dict.fromkeys(("info", "data", "free", "map", "flog", "padding"), 0)
    total["padding"] = BTT_OFFSET
    while rest >= ARENA_BYTES_MIN:
        arena = min(rest, ARENA_BYTES_MAX)
        for use, count in _arena(arena, sector_bytes).items():
            total[use] += count
        rest -= arena
    return total | {"tail": rest}


def peers(size: int) -> list[Peer]:
    """Every peer on a medium of `size` bytes."""
    # memremap_pages() is given the whole namespace, the reserved part included.
    in_memory = STRUCT_PAGE_BYTES * (size // FSDAX_ALIGN * FSDAX_ALIGN // PAGE_BYTES)
    return [
        _peer("fsdax, map=dev", FSDAX_SOURCE, lambda: fsdax(size, on_device=True)),
        _peer("fsdax, map=mem", FSDAX_SOURCE, lambda: fsdax(size, on_device=False), in_memory),
        _peer("BTT, 4096 B", BTT_SOURCE, lambda: btt(size, 4096)),
        _peer("BTT, 512 B", BTT_SOURCE, lambda: btt(size, 512)),
    ]


def _peer(name: str, source: str, lay_out: Callable[[], dict[str, int]], memory_bytes: int = 0) -> Peer:
    try:
        return Peer(name, source, lay_out(), memory_bytes)
    except UsageError as error:
        return Peer(name, source, {}, refused=f"{error.what}: {error.expected}")
