# SPDX-License-Identifier: MIT
"""How many writes each line survives.

Source of the spread: process variation of phase change memory, normal with a coefficient of variation of 0.1 to 0.3 in
Ipek et al., "Dynamically Replicated Memory", ASPLOS 2010, and lognormal in the literature on flash and resistive cells.
"""

import dataclasses

import numpy as np

from ..errors import UsageError

KINDS = ("uniform", "normal", "lognormal")
MOST = (1 << 32) - 1


@dataclasses.dataclass(frozen=True)
class Endurance:
    """mean: writes a line survives, W (1 to 2**32 - 1); spread: standard deviation / mean, of the two that vary."""

    mean: int
    kind: str = "uniform"
    spread: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"endurance={self.kind}", "no such distribution", f"one of {', '.join(KINDS)}")
        if not 1 <= self.mean <= MOST:
            raise UsageError(f"endurance={self.mean}", "out of range", f"1 to {MOST}")
        if not 0 < self.spread <= 2:
            raise UsageError(f"spread={self.spread}", "out of range", "above 0, to 2")

    def drawn(self, lines: int, seed: int) -> np.ndarray | None:
        """The writes that each of `lines` lines survives, uint32[]; None where all survive `mean`."""
        if self.kind == "uniform":
            return None
        random = np.random.default_rng([seed, lines])
        if self.kind == "normal":
            found = random.normal(self.mean, self.mean * self.spread, lines)
        else:
            sigma = np.sqrt(np.log1p(self.spread**2))
            found = random.lognormal(np.log(self.mean) - sigma**2 / 2, sigma, lines)
        return np.clip(np.rint(found), 1, MOST).astype(np.uint32)
