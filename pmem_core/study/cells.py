# SPDX-License-Identifier: MIT
"""The cells of a study: one device, one workload, one life each."""

import dataclasses
import hashlib
import itertools
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import codecache, layout, leveling, placement
from ..choices import policy
from ..errors import UsageError
from ..geometry import Geometry, plan
from ..replay import lives, workloads
from ..traces import open_trace

RECORDINGS = {path.stem: path for path in sorted((Path(__file__).parent / "workloads").glob("*.rec"))}

# Placed frames of 4096 bytes: synthetic workloads wear out a small device, and recordings need the 28 MiB that they
# were made on.  Under uniform writes W / interval matters, and not the size; under uneven ones the size matters too,
# and lives of larger devices are not these (docs/leveling.md, What Start-Gap lives by W).
FRAMES, FRAMES_RECORDED = 2048, 8192
# The spare frames behind them are such a share of them that each policy is at its best: Start-Gap's ring is a multiple
# of the stripe's 65 frames, and Security Refresh has as many blocks as its keys have values, a power of two.
SPARE_SHARE, SPARE_SHARES = 64, {"security_refresh": 128}
ENDURANCE = 10_000
# Life is not the same at every W, so these workloads are also run at these, interleaved, in units of a line and of a
# frame, with one seed.
ENDURANCES = (20_000, 100_000)
LONGER_LOADS, LONGER_UNITS = ("uniform", "zipf"), (256, 4096)
# About what Optane was sold with, which takes minutes a life: without leveling, with the default, and with the best.
LONGEST, LONGEST_LABELS = 1_000_000, ("none", "start_gap", "sampled_swap")
FLUSH_EVERY = 64
SEED = 1
# What is drawn at random decides too.  Synthetic workloads are run with so many seeds where units are largest, for
# hot descriptors are hottest there, and descriptors are written each time; at the first W only.
SEEDS = 5
UNITS = (64, 256, 4096)
WRITES = ("each", "coalesced")

# What is compared: a label, the policy, and parameters other than its defaults.
# Intervals are such that moves cost about 1 % by frame; optane is as it was measured.
LEVELINGS: dict[str, tuple[str, dict[str, int]]] = {
    "none": ("none", {}),
    "start_gap": ("start_gap", {}),
    "start_gap randomised": ("start_gap", {"randomize": 1}),
    "start_gap 512": ("start_gap", {"region_frames": 512}),
    "security_refresh": ("security_refresh", {"block_frames": 1}),
    "security_refresh 2": (
        "security_refresh",
        {"block_frames": 1, "sub_regions": 512, "interval": 200, "outer_interval": 200},
    ),
    "table_swap random": ("table_swap", {"block_frames": 1, "interval": 200}),
    "table_swap coldest": ("table_swap", {"block_frames": 1, "interval": 200, "candidates": 16}),
    "optane": ("optane", {}),
    "sampled_swap": ("sampled_swap", {}),
}
WORKLOADS: dict[str, dict[str, int]] = {
    "uniform": {},
    "zipf": {},
    "hot_cold": {},
    "sequential": {},
    "repeated": {},
    "birthday": {"residence": 1000},
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is run; `key` names it, and the code that runs it, by content."""

    placement: str
    label: str
    leveling: str
    parameters: tuple[tuple[str, int], ...]
    line_bytes: int
    descriptor_writes: str
    workload: str
    workload_parameters: tuple[tuple[str, int], ...]
    size: int
    endurance: int = ENDURANCE
    flush_every: int = FLUSH_EVERY
    seed: int = SEED

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits."""
        text = json.dumps([dataclasses.asdict(self), codecache.FILES_FOLDER.name])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def group(self) -> tuple[str, str]:
        """Cells of one group run the same compiled code."""
        return self.placement, self.leveling

    def plan(self) -> Geometry:
        """Its device; the same image each time."""
        return plan(
            self.size,
            placement_name=self.placement,
            leveling_name=self.leveling,
            parameters=dict(self.parameters),
            descriptor_writes=self.descriptor_writes,
            line_bytes=self.line_bytes,
            uuid=str(uuid.UUID(int=self.seed % (1 << 128))),
        )

    def source(self, drawn: Geometry) -> lives.Source:
        """Its workload."""
        if self.workload in RECORDINGS:
            path = RECORDINGS[self.workload]
            return lives.Recorded(self.workload, lambda: _requests(path), drawn)
        return lives.Synthetic(self.workload, dict(self.workload_parameters), drawn, self.seed, self.flush_every)


def _requests(path: Path) -> Iterator[np.ndarray]:
    with open_trace(path) as trace:
        yield from trace


def leveling_of(text: str) -> tuple[str, str, tuple[tuple[str, int], ...]]:
    """Label, policy and parameters: of LEVELINGS, or ``name`` or ``name:key=value,key=value``.  UsageError."""
    if text in LEVELINGS:
        name, chosen = LEVELINGS[text]
        return text, name, tuple(sorted(chosen.items()))
    name, _, rest = text.partition(":")
    policy(leveling.family, "leveling", name)
    found = {}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        try:
            found[key.strip()] = int(value, 0)
        except ValueError:
            raise UsageError(f"leveling={text}", f"'{pair}' is no parameter", "name:key=value,key=value") from None
    return text, name, tuple(sorted(found.items()))


def cells(
    *,
    placements: tuple[str, ...] = (),
    levelings: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    writes: tuple[str, ...] = (),
    loads: tuple[str, ...] = (),
    size: int = 0,
    endurance: int = 0,
    seeds: int = SEEDS,
    **common: Any,
) -> list[Cell]:
    """Every combination of what is given; of what is not, all there is.  UsageError for a name that is not known.

    seeds: how many, from `seed` on, for the cells that are run with several.

    Without descriptors a page's lines are written together, at every unit and whenever descriptors would be: such
    cells would be the same, and one of them is run.  Descriptors in memory wear as much as none, so they are run only
    if asked for.
    """
    placements = placements or tuple(name for name, module in placement.family.modules.items() if not module.IN_MEMORY)
    known = [*workloads.family.modules, *RECORDINGS]
    for name in loads:
        if name not in known:
            raise UsageError(f"workload={name}", "no such workload", f"one of {', '.join(known)}")
    chosen = [leveling_of(text) for text in levelings or LEVELINGS]
    found = []
    for where, (label, name, parameters) in itertools.product(placements, chosen):
        of_units, of_writes = units or UNITS, writes or WRITES
        if not policy(placement.family, "placement", where).ON_MEDIUM:
            of_units, of_writes = (max(of_units),), of_writes[:1]
        for unit, each, load in itertools.product(of_units, of_writes, loads or (*WORKLOADS, *RECORDINGS)):
            room = size or suited_size(name, load)
            given = tuple(WORKLOADS.get(load, {}).items())
            survives = endurance or ENDURANCE
            found.append(Cell(where, label, name, parameters, unit, each, load, given, room, survives, **common))
    return found + _again(found, seeds) + ([] if endurance else _longer(found))


def suited_size(policy_name: str, load: str) -> int:
    """Bytes of the medium for this leveling and workload: the info blocks, FRAMES and the policy's spare frames."""
    frames = FRAMES_RECORDED if load in RECORDINGS else FRAMES
    return layout.FRAMES_AT + layout.PAGE_BYTES * (frames + frames // SPARE_SHARES.get(policy_name, SPARE_SHARE))


def _again(cells: list[Cell], seeds: int) -> list[Cell]:
    unit = max((cell.line_bytes for cell in cells), default=0)
    base = [
        cell
        for cell in cells
        if (cell.line_bytes, cell.descriptor_writes) == (unit, "each") and cell.workload not in RECORDINGS
    ]
    return [dataclasses.replace(cell, seed=cell.seed + further) for further in range(1, seeds) for cell in base]


def _longer(cells: list[Cell]) -> list[Cell]:
    base = [
        cell
        for cell in cells
        if (cell.placement, cell.descriptor_writes) == ("interleaved", "each")
        and cell.workload in LONGER_LOADS
        and cell.line_bytes in LONGER_UNITS
    ]
    found = [dataclasses.replace(cell, endurance=longer) for longer in ENDURANCES for cell in base]
    return found + [dataclasses.replace(cell, endurance=LONGEST) for cell in base if cell.label in LONGEST_LABELS]
