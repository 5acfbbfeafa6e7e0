# SPDX-License-Identifier: MIT
"""The page of rank r, counted from 1, is written in proportion to 1 / r**theta; ranks are scattered unless told not to.

Source: the skew of Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010, whose theta is 0.99.
Drawn by Walker's alias method (ACM TOMS 3, 1977): exact, and one look into a table a page.
"""

from collections.abc import Iterator

import numpy as np

from ...errors import UsageError
from ...jit import hot
from . import BATCH

SOURCE = "Cooper et al., SoCC 2010 (YCSB)"
PARAMETERS = {
    "theta": (99, 1, 300, "the exponent, in hundredths"),
    "scattered": (1, 0, 1, "0: the page of rank r is page r - 1, so that hot pages are neighbours"),
}
PAGES_MAX = 1 << 27  # the tables are 12 bytes a page


def pages(page_count: int, parameters: dict[str, int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """See the package.  UsageError for a device whose tables would be too large."""
    if page_count > PAGES_MAX:
        raise UsageError(f"zipf: {page_count} pages", "too many for its tables", f"at most {PAGES_MAX}")
    weights = np.arange(1, page_count + 1, dtype=np.float64) ** (-parameters["theta"] / 100)
    share = weights * (page_count / weights.sum())
    if parameters["scattered"]:
        share = random.permutation(share)
    other = np.arange(page_count)
    _pair_up(share, other, np.empty(page_count, np.int64))
    share = share.astype(np.float32)
    while True:
        drawn = random.integers(0, page_count, BATCH)
        yield np.where(random.random(BATCH, np.float32) < share[drawn], drawn, other[drawn])


@hot  # type: ignore[untyped-decorator]
def _pair_up(share: np.ndarray, other: np.ndarray, stack: np.ndarray) -> None:
    """Fill every place up to a share of 1 with the surplus of another: Vose's construction of the alias table."""
    small, large = 0, share.size
    for i in range(share.size):
        if share[i] < 1.0:
            stack[small] = i
            small += 1
        else:
            large -= 1
            stack[large] = i
    while small > 0 and large < share.size:
        small -= 1
        poor, rich = stack[small], stack[large]
        other[poor] = rich
        share[rich] -= 1.0 - share[poor]
        if share[rich] < 1.0:
            large += 1
            stack[small] = rich
            small += 1
