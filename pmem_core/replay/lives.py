# SPDX-License-Identifier: MIT
"""A device's life under a workload: run until lines die, and the figures of it."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from .. import counters, layout, offline, stats
from ..choices import parameters_of, policy
from ..errors import UsageError
from ..geometry import Geometry
from . import workloads
from .endurance import Endurance
from .memory import Memory

Watch = Callable[[float, Memory], None]


class Source(Protocol):
    """What is replayed: `run` performs a part of it, and is False where there is no more."""

    def describe(self) -> dict[str, Any]:
        """What it is, for the figures."""
        ...

    def run(self, memory: Memory, goal: int, most: int) -> bool:
        """Perform a part, of whole pages at most `most` (0: any number); stop when `goal` lines have died."""
        ...


class Synthetic:
    """Workload `name` with `given` parameters over its defaults: whole pages, and a flush behind each flush_every.

    UsageError.
    """

    def __init__(self, name: str, given: dict[str, int], plan: Geometry, seed: int, flush_every: int = 0) -> None:
        module = policy(workloads.family, "workload", name)
        self._parameters = parameters_of(module, given, name)
        self._name, self._seed, self._flush_every = name, seed, flush_every
        random = np.random.default_rng([seed, plan.info.page_count])
        self._batches: Iterator[np.ndarray] = module.pages(plan.info.page_count, self._parameters, random)
        self._batch, self._at = np.zeros(0, np.int64), 0

    def describe(self) -> dict[str, Any]:
        """See Source."""
        return {
            "name": self._name,
            "parameters": self._parameters,
            "seed": self._seed,
            "flush_every": self._flush_every,
        }

    def run(self, memory: Memory, goal: int, most: int) -> bool:
        """See Source: one batch."""
        if self._at == len(self._batch):
            self._batch, self._at = next(self._batches).astype(np.int64, copy=False), 0
        batch = self._batch[: self._at + most] if most else self._batch
        self._at = int(offline.write_pages(memory.handle, batch, self._at, goal, self._flush_every))
        return True


class Recorded:
    """Requests (tracescan.REQUEST[] from each call of `opened`), again and again, `passes` times; 0: without end.

    What lies beyond the device, which may be another than was recorded, is left out.  torn: how many bytes at the end
    of it could not be read, known behind a pass.  UsageError where no pass would wear anything, without end.
    """

    def __init__(
        self,
        name: str,
        opened: Callable[[], Iterator[np.ndarray]],
        plan: Geometry,
        passes: int = 0,
        torn: Callable[[], int] = lambda: 0,
    ) -> None:
        self._name, self._opened, self._plan, self._passes, self._torn = name, opened, plan, passes, torn
        self._chunks: Iterator[np.ndarray] = iter(())
        self._columns: tuple[np.ndarray, ...] = (np.zeros(0, np.int64),) * 3
        self._at = self._begun = self._worn = self.requests = self.read = self.beyond = self.torn_bytes = 0

    def describe(self) -> dict[str, Any]:
        """See Source.  beyond_device: of requests_read, which a death may have left undone in part."""
        return {
            "name": self._name,
            "passes": self._begun,
            "requests": self.requests,
            "requests_read": self.read,
            "beyond_device": self.beyond,
            "torn_bytes": self.torn_bytes,
        }

    def run(self, memory: Memory, goal: int, most: int) -> bool:
        """See Source: one array of requests, whatever `most` is."""
        if self._at == len(self._columns[0]) and not self._next(memory):
            return False
        at = self._at
        self._at = int(offline.replay(memory.handle, *self._columns, at, goal))
        self.requests += self._at - at
        return True

    def _next(self, memory: Memory) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            if self._begun:
                self._end_pass(memory)
            if self._passes and self._begun == self._passes:
                return False
            self._chunks, self._begun = self._opened(), self._begun + 1
            self._worn = int(memory.tally["worn"].sum())
            chunk = next(self._chunks, None)
            if chunk is None:
                raise UsageError(self._name, "no requests in it", "a trace of something")
        inside = (chunk["offset"] >= 0) & (chunk["offset"] + chunk["count"] <= self._plan.device_bytes)
        self.read += len(chunk)
        self.beyond += len(chunk) - int(np.count_nonzero(inside))
        self._columns = tuple(np.ascontiguousarray(chunk[name][inside]) for name in ("kind", "offset", "count"))
        self._at = 0
        return True

    def _end_pass(self, memory: Memory) -> None:
        self.torn_bytes = max(self.torn_bytes, self._torn())
        if int(memory.tally["worn"].sum()) == self._worn and not self._passes:
            device = f"the device of {self._plan.device_bytes} bytes"
            raise UsageError(self._name, f"writes nothing within {device}", "a larger size, or another trace")


@dataclasses.dataclass
class Life:
    """What ended a run: death, writes (page_writes_max reached), source (no more requests) or interrupted."""

    memory: Memory
    ended: str
    seconds: float
    first_kind: str | None = None


def live(
    plan: Geometry,
    source: Source,
    endurance: Endurance,
    *,
    deaths: int = 1,
    page_writes_max: int = 0,
    seed: int = 0,
    watch: Watch = lambda share, memory: None,
) -> Life:
    """Run `source` until `deaths` lines have died, or all, or page_writes_max pages are written (0: no limit).

    watch is told, after each part, about how much of it is done (0 to 1) and the device.  KeyboardInterrupt ends the
    run, not the program: the figures are those so far.
    """
    deaths = min(deaths, (plan.info.size - layout.FRAMES_AT) // plan.info.line_bytes)  # info blocks do not wear
    memory = Memory(plan, endurance, deaths=deaths, seed=seed)
    begun, ended, first_kind = time.perf_counter(), "death", None
    try:
        goal = 1
        while memory.dead < deaths:
            if not source.run(memory, goal, max(0, page_writes_max - memory.page_writes)):
                ended = "source"
                break
            if memory.dead and goal == 1:
                first_kind, goal = _kind_of(memory, memory.deaths()[0]["line"]), deaths
            if page_writes_max and memory.page_writes >= page_writes_max:
                ended = "writes"
                break
            watch(_share(memory, endurance, deaths, page_writes_max), memory)
        else:
            watch(1.0, memory)
    except KeyboardInterrupt:
        ended = "interrupted"
    if ended in ("source", "writes") and plan.pending_bytes:
        offline.drain(memory.handle)
    return Life(memory, ended, time.perf_counter() - begun, first_kind)


def _share(memory: Memory, endurance: Endurance, deaths: int, page_writes_max: int) -> float:
    shares = [min(1.0, int(memory.tally["hottest"]) / endurance.mean), memory.dead / deaths]
    if page_writes_max:
        shares.append(memory.page_writes / page_writes_max)
    return max(shares)


def _kind_of(memory: Memory, line: int) -> str:
    """What `line` holds now."""
    plan = memory.plan
    at = line * plan.info.line_bytes
    slot = np.zeros(plan.line_count, np.uint32)
    slot[line] = 1
    found = counters.scan_counters(slot, memory.look()).histograms
    for kind in counters.KINDS:
        if len(found[kind][0]) and found[kind][0][-1]:
            return kind
    return "info" if at < layout.FRAMES_AT else "spare"


def _geometry(plan: Geometry) -> dict[str, Any]:
    info = plan.info
    return {
        "size": info.size,
        "device_bytes": plan.device_bytes,
        "line_bytes": info.line_bytes,
        "frames": plan.medium_frames,
        "frame_bytes": info.frame_bytes,
        "placement": info.placement,
        "descriptor_bytes": info.descriptor_bytes if plan.has_descriptors else 0,
        "descriptor_writes": info.descriptor_writes if plan.has_descriptors else "none",
    }


def figures(life: Life, source: Source, endurance: Endurance, *, histogram: bool = False) -> dict[str, Any]:
    """Every figure of a life, ready for JSON.

    normalized_life: line writes by the host, data and descriptors, until the first line died / (lines * W); where none
    died (extrapolated: true) W is the largest counter.  data_life: the same of data alone.  extra_writes: line writes
    by moves / those by the host.  The rest as in `stats -j`.
    """
    memory, plan = life.memory, life.memory.plan
    info, tally = plan.info, memory.tally
    done = memory.scan()
    causes = dict(zip(layout.CAUSES, tally["worn"].tolist(), strict=True))
    wear: dict[str, Any] = {kind: stats.figures(*done.histograms[kind]) for kind in (*counters.KINDS, "all")}
    noted = memory.deaths()
    lines = wear["all"]["lines"]
    host = causes["host"] + causes["descriptor"]
    # Deaths after the first one do not lengthen its life: scale the totals back to it.
    share = noted[0]["page_writes"] / memory.page_writes if noted and memory.page_writes else 1.0
    ideal = lines * (endurance.mean if noted else wear["all"]["max"])
    result: dict[str, Any] = {
        "geometry": {"lines": lines, **_geometry(plan)},
        "leveling": {"name": info.leveling, "moves": int(tally["moves"]), "parameters": info.parameters["leveling"]},
        "workload": source.describe(),
        "endurance": dataclasses.asdict(endurance),
        "ended": life.ended,
        "page_writes": memory.page_writes,
        "dead_lines": memory.dead,
        "deaths": noted,
        "first_death": {**noted[0], "kind": life.first_kind} if noted else None,
        "normalized_life": host * share / ideal if ideal else None,
        "data_life": causes["host"] * share / ideal if ideal else None,
        "extrapolated": not noted,
        "extra_writes": causes["move"] / host if host else None,
        "write_amplification": (host + causes["move"]) / causes["host"] if causes["host"] else None,
        "wear": {**wear, "line_bytes": info.line_bytes, "by_cause": causes},
        "seconds": life.seconds,
    }
    if hasattr(plan.leveling, "stall_nanoseconds"):
        state, table = plan.leveling_state, memory.look().table
        result["leveling"]["stall_seconds"] = plan.leveling.stall_nanoseconds(state, table) / 1e9
    if histogram:
        result["histogram"] = {kind: np.stack(pair, axis=1).tolist() for kind, pair in done.histograms.items()}
    return result
