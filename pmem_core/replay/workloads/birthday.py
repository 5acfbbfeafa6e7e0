# SPDX-License-Identifier: MIT
"""A random page for `residence` writes, then another: the birthday paradox attack.

Who guesses how long a page stays on its frame hits some frame again and again, as people in a room share birthdays.

Source: Seznec, "A Phase Change Memory as a Secure Main Memory", IEEE CAL 9, 2010.
"""

from collections.abc import Iterator

import numpy as np

from . import BATCH

SOURCE = "Seznec, IEEE CAL 2010"
PARAMETERS = {"residence": (10000, 1, 1 << 40, "writes to a page before the next one")}


def pages(page_count: int, parameters: dict[str, int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """See the package."""
    residence, written, page = parameters["residence"], 0, random.integers(0, page_count)
    while True:
        batch, at = np.empty(BATCH, np.int64), 0
        while at < BATCH:
            count = min(BATCH - at, residence - written)
            batch[at : at + count] = page
            at, written = at + count, written + count
            if written == residence:
                written, page = 0, random.integers(0, page_count)
        yield batch
