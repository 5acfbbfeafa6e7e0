# SPDX-License-Identifier: MIT
"""What is slower or faster than it was.  Nothing here measures.

Machines are noisy, so no absolute figure is compared: either both were peers in the same rounds, and the ratio is taken
round by round; or each is divided by the memory plugin of its own rounds, and the two sets of ratios are compared.  The
logarithms of the ratios have a mean and an interval of 99 % by Student's t (Welch's, for two sets); a difference is
named where the interval leaves out 1 and it is at least LEAST.  One comparison in a hundred is named by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchlib.figures import is_ours
from benchlib.workloads import BESIDE, Rounds

LEAST = 0.03
# Quantiles of Student's t at 0.995 for 1 to 30 degrees of freedom.
T: tuple[float, ...] = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169)
T += (3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845)
T += (2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750)


@dataclass(frozen=True)
class Change:
    """One figure of one peer, now / then: the ratio, and the ends of its interval."""

    workload: str
    peer: str
    key: str
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        return (self.low > 1 or self.high < 1) and abs(self.ratio - 1) >= LEAST

    @property
    def verdict(self) -> str:
        """slower, faster, or "" where noise would explain it; for a time, more is slower."""
        if not self.differs:
            return ""
        return "faster" if (self.ratio > 1) == (self.key == "bytes_per_s") else "slower"


def keys_of(workload: str) -> list[str]:
    """The figures of a workload that are compared."""
    return ["bytes_per_s", "cpu_ns", *(["p99_ns"] if workload == BESIDE else [])]


def logs(ours: Sequence[float | None], others: Sequence[float | None]) -> list[float]:
    """The logarithms of the ratios, round by round, where both are there."""
    return [math.log(one / other) for one, other in zip(ours, others, strict=False) if one and other]


def interval(now: Sequence[float], then: Sequence[float] | None = None) -> tuple[float, float, float]:
    """The mean of `now`, less that of `then`, and the ends of its interval; infinite ones where a set has but one."""
    middle = statistics.fmean(now) - (statistics.fmean(then) if then else 0)
    sets = [now] if then is None else [now, then]
    if any(len(one) < 2 for one in sets):
        return middle, -math.inf, math.inf
    errors = [statistics.variance(one) / len(one) for one in sets]
    freedom = 1.0
    if sum(errors):
        parts = (error**2 / (len(one) - 1) for error, one in zip(errors, sets, strict=True))
        freedom = sum(errors) ** 2 / sum(parts)
    half = T[min(max(int(freedom), 1), len(T)) - 1] * math.sqrt(sum(errors))
    return middle, middle - half, middle + half


def change(workload: str, peer: str, key: str, now: Sequence[float], then: Sequence[float] | None = None) -> Change:
    middle, low, high = interval(now, then)
    return Change(workload, peer, key, math.exp(middle), math.exp(low), math.exp(high))


def twin(spec: str, commit: str) -> str:
    """The peer that is `spec` as `commit` has it."""
    kind, at, place = spec.partition("@")
    name, *settings = kind.split(":")
    return ":".join([name, f"rev={commit}", *settings]) + at + place


def with_twins(rounds: Rounds, commit: str) -> list[Change]:
    """This tree against `commit`, where both were peers in the same rounds."""
    found = []
    for name, peers in rounds.items():
        for spec in filter(is_ours, peers):
            for key in keys_of(name):
                other = peers.get(twin(spec, commit), {}).get(key, [])
                if pairs := logs(peers[spec][key], other):
                    found.append(change(name, spec, key, pairs))
    return found


def with_record(now: Rounds, then: Rounds, base: str = "memory") -> list[Change]:
    """Two runs, each peer divided by the `base` of its own run, where both have both."""
    found = []
    for name in now.keys() & then.keys():
        for spec in filter(is_ours, now[name].keys() & then[name].keys()):
            if base not in now[name].keys() & then[name].keys():
                continue
            for key in keys_of(name):
                both = [logs(rounds[name][spec][key], rounds[name][base][key]) for rounds in (now, then)]
                if all(both):
                    found.append(change(name, spec, key, *both))
    order = list(now)
    return sorted(found, key=lambda one: (order.index(one.workload), one.peer, one.key))
