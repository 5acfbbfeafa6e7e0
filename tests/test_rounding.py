# SPDX-License-Identifier: MIT
"""A figure with fewer digits is no better than the figure."""

from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import given

from pmem_core import rounding

SHARES = st.floats(0, 10)


@given(SHARES, st.integers(0, 6))
def test_percentage_is_no_better_than_the_share(share, digits):
    exact = Fraction(repr(share)) * 100
    low, high = (Fraction(rounding.percent(share, digits, better, "")) for better in ("low", "high"))
    assert high <= exact <= low and low - high in (0, Fraction(1, 10**digits))


@given(st.integers(0, 1000))
def test_whole_percentage_stays_as_it_is(percent):
    for better in ("", "low", "high"):
        assert rounding.percent(percent / 100, 2, better) == f"{percent}.00 %"


@given(st.floats(1e-9, 1e9), st.integers(1, 6))
def test_significant_digits_are_no_better_either(value, digits):
    low, high = (Fraction(rounding.significant(value, digits, better)) for better in ("low", "high"))
    assert high <= Fraction(repr(value)) <= low <= high * (1 + Fraction(1, 10 ** (digits - 1)))


def test_what_is_no_number_is_a_dash():
    assert rounding.percent(None, 2) == rounding.fixed(float("nan"), 1) == rounding.fixed(None, 1) == rounding.NOTHING
