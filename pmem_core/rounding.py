# SPDX-License-Identifier: MIT
"""Numbers with some of their digits dropped: a figure gets worse by that, never better.

better: "low" or "high", what would be good news: then it is rounded the other way; else to the nearest.
"""

import decimal
import math

NOTHING = "–"
MODES = {"low": decimal.ROUND_CEILING, "high": decimal.ROUND_FLOOR}


def significant(value: float, digits: int, better: str = "") -> str:
    """`value`, no zero, with so many significant digits."""
    exact = _exact(value)
    return _cut(exact, exact.adjusted() - digits + 1, better)


def fixed(value: float | None, digits: int, better: str = "") -> str:
    """`value` with so many digits behind the point; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return _cut(_exact(value), -digits, better)


def percent(share: float | None, digits: int, better: str = "", sign: str = " %") -> str:
    """A share as a percentage, with so many digits behind the point."""
    return NOTHING if share is None else f"{fixed(hundred_times(share), digits, better)}{sign}"


def hundred_times(share: float) -> float:
    """0.07 times 100 is 7, though floats have a little more, and a little more would be rounded up."""
    return float(_exact(share).scaleb(2))


def _exact(value: float) -> decimal.Decimal:
    # From its shortest text: 1.1 shall stay 1.1, though the float is a little more.
    return decimal.Decimal(repr(float(value)))


def _cut(exact: decimal.Decimal, exponent: int, better: str) -> str:
    return f"{exact.quantize(decimal.Decimal(1).scaleb(exponent), MODES.get(better, decimal.ROUND_HALF_EVEN)):f}"
