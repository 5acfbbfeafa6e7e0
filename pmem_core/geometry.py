# SPDX-License-Identifier: MIT
"""How an image's size is shared out between info blocks, leveling and placement: checked and planned."""

import dataclasses
import time
import uuid as uuid_
from typing import Any

import numpy as np

from . import choices, layout, leveling, placement
from .errors import UnsupportedImage, UsageError
from .infoblock import Info

SECTION_BYTES_MIN = 16 << 20
SECTIONS_MAX = 8192
# Pages whose descriptors are brought up together; but for these, as many as have theirs in one page.
GROUP_PAGES = {"section": 32768, "subsection": 512}  # Linux's section of 128 MiB, and its sub-section of 2 MiB
LINUX_PLACEMENTS = ("linear", "ram")  # as --map=dev and --map=mem


@dataclasses.dataclass(frozen=True)
class Geometry:
    """An Info with its plan: policies' modules and initial states, and the sizes of every zone."""

    info: Info
    placement: Any
    leveling: Any
    placement_state: np.ndarray
    leveling_state: np.ndarray
    table: np.ndarray
    tick_words: int
    medium_frames: int
    placed_frames: int
    placed_bytes: int

    @property
    def line_count(self) -> int:
        """Lines of the medium, the info blocks' included."""
        return self.info.size // self.info.line_bytes

    @property
    def device_bytes(self) -> int:
        """What the client sees."""
        return self.info.page_count * layout.PAGE_BYTES

    @property
    def section_count(self) -> int:
        """Sections of the device."""
        return -(-self.info.page_count // self.info.section_pages)

    @property
    def has_descriptors(self) -> bool:
        """True where descriptors lie on the medium."""
        return bool(self.placement.ON_MEDIUM)

    @property
    def group_pages(self) -> int:
        """Pages whose descriptors are brought up together, a power of two."""
        return max(layout.PAGE_BYTES // self.info.descriptor_bytes, GROUP_PAGES.get(self.info.initialise, 1))

    @property
    def spare_count(self) -> int:
        """Free frames of the leveling."""
        if hasattr(self.leveling, "spare_count"):
            return int(self.leveling.spare_count(self.leveling_state, self.table))
        return len(self.leveling.spare_frames(self.leveling_state, self.table))

    def for_compiled_code(self) -> dict[str, int]:
        """The fields of layout.RUN that follow from the geometry alone."""
        info = self.info
        return {
            "medium_bytes": info.size,
            "line_count": self.line_count,
            "section_count": self.section_count,
            "page_count": info.page_count,
            "frame_shift": info.frame_bytes.bit_length() - 1,
            "line_shift": info.line_bytes.bit_length() - 1,
            "section_shift": info.section_pages.bit_length() - 1,
            "descriptor_bytes": info.descriptor_bytes if self.has_descriptors else 0,
            "descriptor_format": info.descriptor_format,
            "coalesced": int(self.pending_bytes > 0),
            "initialise": layout.INITIALISE[info.initialise],
            "group_shift": self.group_pages.bit_length() - 1,
        }

    @property
    def in_memory(self) -> bool:
        """True where descriptors are kept in memory while the device is open."""
        return bool(self.placement.IN_MEMORY)

    @property
    def descriptors(self) -> str | None:
        """Where descriptors are: medium, memory or None."""
        return "medium" if self.has_descriptors else "memory" if self.in_memory else None

    @property
    def kept_bytes(self) -> int:
        """Size of the array of the descriptors that are kept in memory; 0 where none are."""
        return self.info.page_count * self.info.descriptor_bytes if self.in_memory else 0

    def finish_moves(self, table: np.ndarray) -> None:
        """After a kill: bring the leveling's `table` (changed in place) into line with a move being switched."""
        if hasattr(self.leveling, "finish"):
            self.leveling.finish(self.leveling_state, table[: len(self.table)])

    def find_impossible(self, core: np.ndarray, table: np.ndarray) -> str:
        """Which of what compiled code goes by is not, or cannot be, this geometry's, in words; "": nothing."""
        for name, planned in (("placement", self.placement_state), ("leveling", self.leveling_state)):
            if core[name].tobytes() != planned.tobytes():
                return f"the {name}'s record"
        return (
            "" if self.leveling.table_is_sane(self.leveling_state, table[: len(self.table)]) else "the leveling's table"
        )

    @property
    def pending_bytes(self) -> int:
        """Size of the state file's zone of pending descriptors."""
        if self.info.descriptor_writes != "coalesced" or not self.has_descriptors:
            return 0
        return layout.PENDING_SLOTS * (8 * layout.PENDING_HEAD_WORDS + self.info.descriptor_bytes)

    def zones(self) -> dict[str, tuple[int, int]]:
        """The state file: zone name -> (offset, bytes); "end" -> (its size, 0)."""
        sizes = {
            "head": layout.ZONE_BYTES,
            "core": layout.ZONE_BYTES,
            "table": 8 * max(1, len(self.table)),
            "ticks": 8 * max(1, self.tick_words),
            "sections": max(1, self.section_count),
            "pending": self.pending_bytes,
        }
        zones, at = {}, 0
        for name, size in sizes.items():
            zones[name] = (at, size)
            at += -(-size // layout.ZONE_BYTES) * layout.ZONE_BYTES
        return zones | {"end": (at, 0)}


def plan(
    size: int,
    *,
    placement_name: str = "interleaved",
    leveling_name: str = "start_gap",
    parameters: dict[str, int] | None = None,
    descriptor_bytes: int = 64,
    descriptor_format: int | None = None,
    descriptor_writes: str = "each",
    checksums: bool = True,
    frame_bytes: int = 4096,
    line_bytes: int = 256,
    initialise: str = "zeros",
    uuid: str | None = None,
) -> Geometry:
    """Plan a new image of `size` bytes.  UsageError says what is wrong with a value and what it may be.

    descriptor_format: 2 where its fields fit, unless it is given.  uuid: the new image's, which seeds what a policy
    draws; a random one unless it is given.
    """
    choices.check_sizes(size, descriptor_bytes, frame_bytes, line_bytes)
    if descriptor_writes not in layout.DESCRIPTOR_WRITES:
        raise UsageError(f"descriptor-writes={descriptor_writes}", "no such choice", "each or coalesced")
    choices.check_initialise(
        initialise, descriptor_bytes, choices.policy(placement.family, "placement", placement_name)
    )
    frames = max(size - layout.FRAMES_AT, 0) // frame_bytes
    chosen = choices.parameters_of(
        choices.policy(leveling.family, "leveling", leveling_name), parameters or {}, leveling_name, frames
    )
    info = Info(
        uuid=uuid or str(uuid_.uuid4()),
        size=size,
        placement=placement_name,
        leveling=leveling_name,
        parameters={"placement": {}, "leveling": chosen},
        descriptor_bytes=descriptor_bytes,
        descriptor_writes=descriptor_writes,
        checksums=checksums,
        frame_bytes=frame_bytes,
        line_bytes=line_bytes,
        section_pages=1,
        page_count=0,
        data_at=0,
        created=int(time.time()),
        linux=is_linux(placement_name, leveling_name, descriptor_bytes),
        descriptor_format=choices.suited_format(placement_name, descriptor_bytes, descriptor_format, initialise),
        initialise=initialise,
        in_memory=bool(choices.policy(placement.family, "placement", placement_name).IN_MEMORY),
    )
    return with_sections(derive(info, fresh=True))


def is_linux(placement_name: str, leveling_name: str, descriptor_bytes: int) -> bool:
    """True where Linux can use the medium as it is."""
    # Linux takes a smaller descriptor for one that its struct page does not fit into, and refuses a larger one.
    return placement_name in LINUX_PLACEMENTS and leveling_name == "none" and descriptor_bytes == 64


def with_sections(made: Geometry) -> Geometry:
    """The same geometry, its sections as large as its pages want them to be."""
    pages = made.info.page_count
    wanted = max(SECTION_BYTES_MIN, pages * layout.PAGE_BYTES // SECTIONS_MAX)
    section_pages = 1 << (wanted // layout.PAGE_BYTES - 1).bit_length()
    return dataclasses.replace(made, info=dataclasses.replace(made.info, section_pages=section_pages))


def _check_stored(info: Info) -> None:
    """Refuse an info block with values that creation never writes: compiled code counts on every one of them."""
    try:
        choices.check_sizes(info.size, info.descriptor_bytes, info.frame_bytes, info.line_bytes)
        choices.power_of_two(
            "section-pages", info.section_pages, SECTION_BYTES_MIN // layout.PAGE_BYTES, choices.SIZE_MAX
        )
        if info.descriptor_writes not in layout.DESCRIPTOR_WRITES:
            raise UsageError(f"descriptor-writes={info.descriptor_writes}", "no such choice", "each or coalesced")
        choices.suited_format(info.placement, info.descriptor_bytes, info.descriptor_format, info.initialise)
        choices.check_initialise(info.initialise, info.descriptor_bytes, placement.family.modules[info.placement])
        given, module = info.parameters["leveling"], leveling.family.modules[info.leveling]
        if choices.parameters_of(module, given, info.leveling) != given:
            raise UsageError(info.leveling, "a parameter is missing", ", ".join(module.PARAMETERS))
    except UsageError as error:
        raise UnsupportedImage(error.subject, error.what, error.expected) from None


def _require_that_size_helps(placing: Any, info: Info) -> None:
    """UsageError where no medium has room for a page beside descriptors of that size."""
    sizes = [info.descriptor_bytes >> shift for shift in range(info.descriptor_bytes.bit_length())]
    most = next((size for size in sizes if placing.plan(choices.SIZE_MAX, size)[1]), info.descriptor_bytes)
    if most < info.descriptor_bytes:
        what = f"not with descriptors of {info.descriptor_bytes} bytes"
        expected = f"at most {most}, or they take all of the medium, whatever its size"
        raise UsageError(f"placement={info.placement}", what, expected)


def derive(info: Info, *, fresh: bool = False) -> Geometry:
    """The geometry of an image.  UnsupportedImage for a policy that this program does not have."""
    if not fresh:
        for family, kind, name in (
            (placement.family, "placement", info.placement),
            (leveling.family, "leveling", info.leveling),
        ):
            if name not in family.modules:
                own = f", your own with --policy-file {name}.py" if family.takes_files else ""
                known = f"one of {', '.join(family.modules)}{own}, or a newer pmem-nbd"
                raise UnsupportedImage(f"{kind}={name}", "no such policy", known)
        _check_stored(info)
    placing = choices.policy(placement.family, "placement", info.placement)
    levelling = choices.policy(leveling.family, "leveling", info.leveling)
    seed = uuid_.UUID(info.uuid).int
    medium_frames = max(info.size - layout.FRAMES_AT, 0) // info.frame_bytes
    try:
        leveling_state, placed_frames, table, tick_words = levelling.plan(
            medium_frames, info.parameters["leveling"], seed
        )
    except ValueError as error:
        raise UsageError(f"leveling={info.leveling}", "not with these parameters", str(error)) from None
    if placed_frames < 1:
        chosen = ", ".join(f"{name}={value}" for name, value in info.parameters["leveling"].items())
        what = f"too small for leveling {info.leveling}{f' with {chosen}' if chosen else ''}"
        raise UsageError(f"size={info.size}", what, "a larger size")
    placed_bytes = placed_frames * info.frame_bytes
    if not levelling.MOVES:
        # Nothing moves, so the last frame need not be whole; Linux's layout counts on it.
        placed_bytes = max(info.size - layout.FRAMES_AT, 0)
    placement_state, page_count = placing.plan(placed_bytes, info.descriptor_bytes)
    if page_count < 1:
        _require_that_size_helps(placing, info)
        raise UsageError(f"size={info.size}", f"too small for placement {info.placement}", "room for one page at least")
    if fresh:
        data_at = layout.FRAMES_AT + placing.data_at(placement_state)
        info = dataclasses.replace(info, page_count=page_count, data_at=data_at)
    elif page_count != info.page_count:
        what = "does not match the geometry in this info block"
        raise UnsupportedImage(f"npfns={info.page_count}", what, f"{page_count}")
    return Geometry(
        info,
        placing,
        levelling,
        placement_state,
        leveling_state,
        table,
        tick_words,
        medium_frames,
        placed_frames,
        placed_bytes,
    )
