# SPDX-License-Identifier: MIT
"""Every page as likely as any other."""

from collections.abc import Iterator

import numpy as np

from . import BATCH

SOURCE = "the baseline"
PARAMETERS: dict[str, tuple[int, int, int, str]] = {}


def pages(page_count: int, parameters: dict[str, int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """See the package."""
    while True:
        yield random.integers(0, page_count, BATCH)
