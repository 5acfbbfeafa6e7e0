# SPDX-License-Identifier: MIT
"""A few hot pages, scattered over the device, get most of the writes; within hot and cold all are alike.

Source: Rosenblum, Ousterhout, "The Design and Implementation of a Log-Structured File System", SOSP 1991, section 3.5:
"hot-and-cold", 90 % of the writes to 10 % of the files.
"""

from collections.abc import Iterator

import numpy as np

from . import BATCH

SOURCE = "Rosenblum and Ousterhout, SOSP 1991, section 3.5"
PARAMETERS = {
    "hot_pages": (10, 1, 99, "percent of the pages that are hot"),
    "hot_writes": (90, 1, 99, "percent of the writes that go to them"),
}


def pages(page_count: int, parameters: dict[str, int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """See the package."""
    scattered = random.permutation(page_count)
    hot = min(max(1, page_count * parameters["hot_pages"] // 100), page_count - 1) if page_count > 1 else 1
    while True:
        to_hot = random.integers(0, 100, BATCH) < parameters["hot_writes"]
        chosen = random.integers(0, np.where(to_hot, hot, max(1, page_count - hot)))
        yield scattered[np.where(to_hot, chosen, (hot + chosen) % page_count)]
