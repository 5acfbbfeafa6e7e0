# SPDX-License-Identifier: MIT
"""Where every byte of a medium goes, by its geometry alone: nothing is compiled, and no image is needed."""

from typing import Any

from . import layout
from .geometry import Geometry

# The uses, in the order in which they are told.
USES = ("info", "data", "descriptor", "spare", "padding", "tail")


def shares(plan: Geometry) -> dict[str, int]:
    """Bytes of the medium by use; their sum is its size.

    info: the info blocks; data: pages the client sees; descriptor: pages of descriptors; spare: free frames of the
    leveling; padding: placed, and held by neither page nor descriptor; tail: what does not fill a frame or a region.
    """
    spans = descriptor_spans(plan)
    spare = plan.spare_count * plan.info.frame_bytes
    return {
        "info": layout.FRAMES_AT,
        "data": plan.device_bytes,
        "descriptor": spans[2] * spans[3],
        "spare": spare,
        "padding": sum(end - first for first, end in padding(plan)),
        "tail": plan.info.size - layout.FRAMES_AT - plan.placed_bytes - spare,
    }


def figures(medium_bytes: int, by_use: dict[str, int]) -> dict[str, Any]:
    """The capacity part of `info`, ready for JSON, of a medium whose bytes are used as `by_use` says."""
    device_bytes = by_use["data"]
    return {
        "medium_bytes": medium_bytes,
        "device_bytes": device_bytes,
        "overhead_bytes": medium_bytes - device_bytes,
        "overhead": 1 - device_bytes / medium_bytes,
        "bytes": by_use,
    }


def lines_by_kind(plan: Geometry) -> dict[str, int]:
    """How many lines are of each kind; see stats.  They stay as many, whatever leveling moves."""
    lines = {name: size // plan.info.line_bytes for name, size in shares(plan).items()}
    lines["spare"] += lines.pop("padding") + lines.pop("tail")
    return lines


def pages_behind_info(plan: Geometry) -> int:
    """Pages of the medium behind the info blocks."""
    return (plan.info.size - layout.FRAMES_AT) // layout.PAGE_BYTES


def descriptor_spans(plan: Geometry) -> tuple[int, int, int, int]:
    """First placed address, stride, size and count of the spans of descriptors; sizes rounded up to whole pages."""
    first, stride, size, count = plan.placement.descriptor_spans(plan.placement_state, plan.info.page_count)
    return first, stride, -(-size // layout.PAGE_BYTES) * layout.PAGE_BYTES, count


def padding(plan: Geometry) -> list[tuple[int, int]]:
    """Placed ranges, first byte and end, that hold neither descriptor nor page."""
    # As plain Python: to compile it for one call would take a hundred times as long.
    page_at = getattr(plan.placement.page_at, "py_func", plan.placement.page_at)
    end = int(page_at(plan.placement_state, plan.info.page_count - 1)) + layout.PAGE_BYTES
    pages = (plan.placement.data_at(plan.placement_state), end)
    first, stride, size, count = descriptor_spans(plan)
    used = [pages, (first, first + (count - 1) * stride + size)] if count else [pages]
    gaps, at = [], 0
    for begin, end in [*sorted(used), (plan.placed_bytes, plan.placed_bytes)]:
        if begin > at:
            gaps.append((at, begin))
        at = max(at, end)
    return gaps
