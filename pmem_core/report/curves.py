# SPDX-License-Identifier: MIT
"""What is drawn of counters.  Counters are given as in stats: ascending `values`, int64[], and `counts`, how many
lines have each.
"""

import numpy as np

BINS_MAX = 64
POINTS_MAX = 1000


def lorenz_curve(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of all wear, y, that the least worn share of the lines, x, has; float64[] from (0, 0) to (1, 1).

    Every corner of the curve is there, so that 1 - 2 · its area is the Gini coefficient of stats.figures, not less.
    Where nothing is worn, all lines are worn evenly: the diagonal.  Empty where there are no lines.
    """
    lines = int(counts.sum())
    if not lines:
        return np.zeros(0), np.zeros(0)
    x = np.concatenate([[0.0], np.cumsum(counts) / lines])
    wear = np.cumsum(values.astype(np.float64) * counts)
    return x, np.concatenate([[0.0], wear / wear[-1]]) if wear[-1] else x


def thin(x: np.ndarray, y: np.ndarray, most: int = POINTS_MAX) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` of the points of a curve, the first and the last among them, evenly spaced along it."""
    if len(x) <= most:
        return x, y
    scale = [float(np.ptp(part)) or 1.0 for part in (x, y)]
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x) / scale[0], np.diff(y) / scale[1]))])
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], most)).clip(0, len(x) - 1))
    kept[-1] = len(x) - 1
    return x[kept], y[kept]


def bin_edges(counters: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Edges of bins for several sets of counters, int64[], ascending; bin i has edges[i] ≤ value < edges[i + 1].

    A value a bin while they are few.  Then bins of one width, or, where the largest value is more than 20 times the
    mean, one bin for 0 and bins that grow by a factor.
    """
    most = max((int(values[-1]) for values, _ in counters.values() if len(values)), default=0)
    if most < BINS_MAX:
        return np.arange(most + 2)
    total = sum(int(values @ counts) for values, counts in counters.values())
    lines = sum(int(counts.sum()) for _, counts in counters.values())
    if most <= 20 * total / lines:
        width = -(-(most + 1) // BINS_MAX)
        return np.arange(0, most + width + 1, width)
    grown = np.unique(np.floor(np.geomspace(1, most + 1, BINS_MAX)).astype(np.int64))
    grown[-1] = most + 1
    return np.concatenate([[0], grown])


def binned(values: np.ndarray, counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many lines are in each bin, int64[len(edges) - 1]."""
    lines = np.zeros(len(edges) - 1, np.int64)
    np.add.at(lines, np.searchsorted(edges, values, side="right") - 1, counts)
    return lines


def quantile(values: np.ndarray, counts: np.ndarray, share: float) -> int:
    """The smallest value that at least `share` (0 to 1) of the lines do not pass.  There must be lines."""
    reached = np.cumsum(counts)
    return int(values[min(np.searchsorted(reached, share * reached[-1]), len(values) - 1)])
