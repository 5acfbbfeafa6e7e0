# SPDX-License-Identifier: MIT
"""A comparison of page maps: what is chosen, run in rounds in which all maps take turns, and put together."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from .. import pagemaps
from ..errors import UsageError
from ..host import machine
from ..layout import PAGE_BYTES
from . import claims, measure, stress, subject
from .words import bytes_of

Watch = Callable[[int, int, str], None]

SIZES = (1 << 30, 64 << 30, 1 << 40, 16 << 40)
SIZES_QUICK = (64 << 20, 1 << 30)
EXTENTS_MAX = 1 << 20
TOUCHED = 1 << 16
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is compared.  sizes: bytes of pages that hold data; extents_max: of the fragmented file."""

    sizes: tuple[int, ...] = SIZES
    maps: tuple[str, ...] = ()
    rounds: int = ROUNDS
    touched: int = TOUCHED
    extents_max: int = EXTENTS_MAX
    quick: bool = False
    seed: int = 1


def choose(*, sizes: list[int] | None, maps: list[str] | None, quick: bool, seed: int) -> Choice:
    """What was asked for, and of the rest what is the default; UsageError."""
    known = list(pagemaps.family.modules)
    for name in maps or []:
        if name not in known:
            raise UsageError(f"--maps {name or repr(name)}", "no such page map", f"one of {', '.join(known)}")
    for size in sizes or []:
        if size % PAGE_BYTES or not PAGE_BYTES <= size <= pagemaps.PAGES_MAX * PAGE_BYTES:
            most = pagemaps.PAGES_MAX * PAGE_BYTES >> 40
            raise UsageError(f"--sizes {size}", "not a size that can be", f"whole pages of 4096 bytes, up to {most}T")
    chosen = tuple(dict.fromkeys(maps or known))
    at = tuple(sorted(set(sizes or (SIZES_QUICK if quick else SIZES))))
    if quick:
        return Choice(at, chosen, rounds=2, touched=1 << 11, extents_max=1 << 12, quick=True, seed=seed)
    return Choice(at, chosen, seed=seed)


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the figures of some rounds: the median, the least and the most; None where there is none."""
    found: dict[str, Any] = {}
    for mode in measure.MODES:
        values = [one[mode] for one in rounds]
        if None in values:
            found[mode] = None
        else:
            found[mode] = {"ns": statistics.median(values), "ns_min": min(values), "ns_max": max(values)}
    return found


def _mapping(drawn: measure.Pattern, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    extents, pages = len(drawn.extents), int(drawn.extents[:, 1].sum())
    found: dict[str, Any] = {"extents": extents, "pages": pages}
    for what in ("map", "unmap"):
        taken = statistics.median(one[f"{what}_ns"] for one in rounds)
        found |= {f"{what}_ns_extent": taken / extents, f"{what}_ns_page": taken / pages}
    return found


class _Comparison:
    def __init__(self, chosen: Choice, watch: Watch) -> None:
        self.chosen, self.watch = chosen, watch
        self.steps = len(chosen.maps) * (1 + len(chosen.sizes) * (2 + len(measure.PATTERNS) * chosen.rounds))
        self.done = 0
        self.rows: dict[tuple[int, str], dict[str, Any]] = {
            (size, name): {"map": name, "size": size, "page_count": size // PAGE_BYTES, "lookups": {}}
            for size in chosen.sizes
            for name in chosen.maps
        }
        self.alone: list[dict[str, Any]] = []

    def step(self, text: str) -> None:
        self.watch(self.done, self.steps, text)
        self.done += 1

    def sharing(self) -> dict[str, Any]:
        found = {}
        for name in self.chosen.maps:
            self.step(f"who sees which descriptor: {name}")
            rounds = 100 if self.chosen.quick else 500
            outcome = stress.run(subject.Subject(name, 512), rounds=rounds, seed=self.chosen.seed)
            found[name] = {"verdict": outcome.verdict, **dataclasses.asdict(outcome)}
        return found

    def beginnings(self, size: int) -> None:
        page_count = size // PAGE_BYTES
        for name in self.chosen.maps:
            row = self.rows[size, name]
            self.step(f"{bytes_of(size)}, first use: {name}")
            row["initialise"] = measure.first_use(name, page_count)
            self.step(f"{bytes_of(size)}, first I/O: {name}")
            row["first_io"] = measure.first_ios(name, page_count, measure.far_apart(page_count))

    def pattern(self, size: int, name: str) -> None:
        chosen = self.chosen
        drawn = measure.pattern(name, size // PAGE_BYTES, chosen.touched, chosen.extents_max, chosen.seed)
        rounds: dict[str, list[dict[str, Any]]] = {which: [] for which in chosen.maps}
        for number in range(chosen.rounds):
            self.alone.append(measure.alone(drawn.pages))
            turn = number % len(chosen.maps)
            for which in (*chosen.maps[turn:], *chosen.maps[:turn]):
                self.step(f"{bytes_of(size)}, {name}: {which}, round {number + 1}")
                rounds[which].append(measure.cell(which, size // PAGE_BYTES, drawn))
        for which, cells in rounds.items():
            row = self.rows[size, which]
            row["lookups"][name] = _medians(cells)
            if name != "fragmented":
                continue
            row["mapping"] = _mapping(drawn, cells)
            row["io"] = {
                "ns": statistics.median(one["io_ns"] for one in cells),
                "descriptor_writes": cells[0]["io_stores"],
            }
            row["figures"] = cells[0]["figures"]
            rest = row["initialise"]["at_rest"]
            row["space"] = {
                "ram_bytes": rest["descriptor_bytes"] + rest["structure_bytes"],
                "mapped_ram_bytes": cells[0]["mapped_ram_bytes"],
                "medium_bytes": rest["medium_bytes"],
                "medium_share": rest["medium_bytes"] / (rest["medium_bytes"] + size),
            }


def compare(chosen: Choice, watch: Watch = lambda done, of, text: None) -> dict[str, Any]:
    """Run it all; everything that was found, ready for JSON.  watch: steps done, how many there are, what comes now."""
    begin = time.perf_counter()
    compiling = subject.compile_all(list(chosen.maps), lambda name: watch(0, 0, f"compiling: {name}"))
    run = _Comparison(chosen, watch)
    sharing = run.sharing()
    for size in chosen.sizes:
        run.beginnings(size)
        for name in measure.PATTERNS:
            run.pattern(size, name)
    watch(run.steps, run.steps, "done")
    modules = {name: pagemaps.family.modules[name] for name in chosen.maps}
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "seed": chosen.seed,
        "quick": chosen.quick,
        "rounds": chosen.rounds,
        "touched": chosen.touched,
        "extents_max": chosen.extents_max,
        "sizes": list(chosen.sizes),
        "seconds": round(time.perf_counter() - begin, 1),
        "compile_seconds": round(compiling, 1),
        "maps": {
            name: {"title": module.TITLE, "source": module.SOURCE, "where": module.WHERE}
            for name, module in modules.items()
        },
        "loop": {mode: statistics.median(one[mode] for one in run.alone) for mode in measure.MODES},
        "sharing": sharing,
        "rows": list(run.rows.values()),
    }
    return result | {"claims": claims.claims(result)}
