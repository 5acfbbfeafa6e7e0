# SPDX-License-Identifier: MIT
"""One page, again and again: the repeated address attack.

Source: Qureshi et al., MICRO 2009, section 5.
"""

from collections.abc import Iterator

import numpy as np

from . import BATCH

SOURCE = "Qureshi et al., MICRO 2009, section 5"
PARAMETERS: dict[str, tuple[int, int, int, str]] = {}


def pages(page_count: int, parameters: dict[str, int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """See the package."""
    page = random.integers(0, page_count)
    while True:
        yield np.full(BATCH, page)
