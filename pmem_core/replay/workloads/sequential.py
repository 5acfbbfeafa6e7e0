# SPDX-License-Identifier: MIT
"""From the first page to the last, again and again."""

from collections.abc import Iterator

import numpy as np

from . import BATCH

SOURCE = "a copy, a log, a backup"
PARAMETERS: dict[str, tuple[int, int, int, str]] = {}


def pages(page_count: int, parameters: dict[str, int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """See the package."""
    first = 0
    while True:
        yield (first + np.arange(BATCH)) % page_count
        first = (first + BATCH) % page_count
