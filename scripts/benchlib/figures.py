# SPDX-License-Identifier: MIT
"""Medians, spreads and ratios of what was measured, and the bars that pmem-nbd is held to.  Nothing here measures."""

from __future__ import annotations

import fnmatch
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from benchlib.ext4 import EXT4
from benchlib.workloads import FOUR, FOUR_OF_ONE, KEYS, Rounds

# Two sets of bars: what must hold, and what a server written in C would reach.
FLOOR, C = "floor", "as fast as C"
SETS = (FLOOR, C)

# Names of workloads, the peer to compare with, and the least ratio of the throughputs in each set.
RATIOS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("*4k depth 1", "memory", {C: 0.95}),
    ("*4k depth 16", "memory", {FLOOR: 0.8, C: 1.0}),
    ("*4k depth 16", "bytearray", {FLOOR: 2.5}),
    ("seq*", "memory", {FLOOR: 0.8, C: 0.95}),
    ("*4k flush", "file", {FLOOR: 0.8, C: 0.9}),
    (EXT4, "memory", {C: 0.95}),
    ("*", "qemu", {C: 1.0}),
)
# One of four connections, and one with as many requests under way as all of them.
ONES: dict[str, dict[str, float]] = {"4k depth 4": {C: 1.0}, "4k depth 16": {}}
SCALE_BARS = {C: 0.8}
START_BAR_S, CREATE_BAR_S, CREATE_BAR_MIB, OPEN_BAR_RATIO = 1.5, 1.0, 64, 1.25


def numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def summary(rounds: Rounds) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the rounds, by workload and peer; spread is (largest - smallest) / median of the throughput."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, peers in rounds.items():
        for spec, figures in peers.items():
            medians = {key: statistics.median(found) for key in KEYS if (found := numbers(figures[key]))}
            rates = numbers(figures["bytes_per_s"])
            spread = (max(rates) - min(rates)) / (medians.get("bytes_per_s") or 1)
            result.setdefault(name, {})[spec] = {**medians, "spread": spread, "rounds": len(rates)}
    return result


def ratio(ours: Sequence[float | None], others: Sequence[float | None]) -> float | None:
    """The median over the rounds of ours / others; None where no round has both."""
    found = [one / other for one, other in zip(ours, others, strict=True) if one is not None and other]
    return statistics.median(found) if found else None


def throughput_ratio(rounds: Rounds, name: str, ours: str, other: str) -> float | None:
    peers = rounds[name]
    if ours not in peers or other not in peers:
        return None
    return ratio(peers[ours]["bytes_per_s"], peers[other]["bytes_per_s"])


def met(line: dict[str, Any], which: str) -> bool | None:
    """Whether a line reaches its bar of the set `which`; None where the set has none for it."""
    if which not in line["bars"]:
        return None
    return line["figure"] >= line["bars"][which] if line["least"] else line["figure"] <= line["bars"][which]


def judge(rounds: Rounds, started: dict[str, Any], scale: dict[str, Any]) -> list[dict[str, Any]]:
    """Every figure that was measured and has a bar: what it is, the figure, and the bar in each set."""
    lines: list[dict[str, Any]] = []

    def line(what: str, figure: float | None, bars: dict[str, float], least: bool = True) -> None:
        if figure is not None:
            lines.append({"what": what, "figure": figure, "bars": bars, "least": least})

    for name, peers in rounds.items():
        for ours, (pattern, other, bars) in itertools.product(filter(is_ours, peers), RATIOS):
            if fnmatch.fnmatchcase(name, pattern):
                if other in ("file", "qemu"):
                    other += "@" * ("@" in ours) + ours.partition("@")[2]  # the same filesystem
                line(f"{name}: {ours} / {other}", throughput_ratio(rounds, name, ours, other), bars)
        for one, bars in ONES.items() if FOUR in name else ():
            alone = rounds.get(name.replace(FOUR_OF_ONE, one).replace(FOUR, one), {})
            for spec in filter(alone.__contains__, peers):
                if is_ours(spec) or not bars:
                    figure = ratio(peers[spec]["bytes_per_s"], alone[spec]["bytes_per_s"])
                    line(f"{name}: {spec} / one of {one.removeprefix('4k ')}", figure, bars)
    for key in ("randwrite_iops", "randread_iops"):
        if scale:
            figure = ratio(scale["1 TiB"][key], scale["1 GiB"][key])
            line(f"{key.removesuffix('_iops')} 4k depth 16: 1 TiB / 1 GiB", figure, SCALE_BARS)
    for name, figures in started.items():
        if is_ours(name):
            line(f"{name}: start to first byte, s", figures["start_s"], {FLOOR: START_BAR_S}, False)
        if name.startswith("1 TiB "):
            small = started[name.replace("1 TiB", "1 GiB")]
            line(f"{name}: creation, s", figures["create_s"], {FLOOR: CREATE_BAR_S}, False)
            line(f"{name}: disk, MiB", figures["disk_bytes"] / (1 << 20), {FLOOR: CREATE_BAR_MIB}, False)
            again = figures["start_s"] / small["start_s"]
            line(f"{name}: start against 1 GiB", again, {FLOOR: OPEN_BAR_RATIO}, False)
    return lines


def is_ours(spec: str) -> bool:
    """Whether a peer is pmem-nbd as it is in this tree, and not in another commit."""
    return spec.startswith("pmem") and ":rev=" not in spec
