# SPDX-License-Identifier: MIT
"""Numbers as people read them.  Where digits are dropped, a figure gets worse, never better."""

import datetime
import math
import os

from pmem_core import rounding
from pmem_core.rounding import NOTHING

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def number(value: float | None, better: str = "", digits: int = 4) -> str:
    """`value` with `digits` significant ones; whole numbers as they are.

    better: "low" or "high", what would be good news: then it is rounded the other way, else to the nearest.
    """
    if value is None or math.isnan(value):
        return NOTHING
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return rounding.significant(value, digits, better)


def percent(share: float | None, better: str = "") -> str:
    """A share as a percentage."""
    return NOTHING if share is None else f"{number(rounding.hundred_times(share), better)} %"


def size(count: int) -> str:
    """A number of bytes: the power-of-two unit, and the exact count where that says less."""
    unit = min((max(count, 1).bit_length() - 1) // 10, len(UNITS) - 1)
    exact = f"{number(count)} B"
    value = count / (1 << 10 * unit)
    short = f"{number(value)} {UNITS[unit]}"
    return short if not unit or value == int(value) else f"{short} ({exact})"


def unit_of(most: float) -> tuple[float, str]:
    """The unit for an axis of bytes that goes up to `most`: its size and its name."""
    unit = min((max(int(most), 1).bit_length() - 1) // 10, len(UNITS) - 1)
    return float(1 << 10 * unit), UNITS[unit]


def when(seconds: float) -> str:
    """A time since 1970, in UTC."""
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # behind the year 9999
        return f"{seconds:g} s since 1970"


def name_of(path: str) -> str:
    """A path as text that any page can hold: bytes that are no UTF-8, and what is not printable, are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
