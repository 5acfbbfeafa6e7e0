# SPDX-License-Identifier: MIT
"""Placements: where pages and their descriptors lie.  One module is one placement; docs/adding-a-placement.md.

A placement maps page numbers to *placed* addresses, bytes from 0 to placed_bytes - 1, a space that leveling then maps
to the medium.  Pages are placed on multiples of 4096, descriptors on multiples of their size.
"""

from ..plugins import Family

family = Family(__name__, __path__)


@family.generic
def page_at(state, page):
    """The placed address of page `page`."""


@family.generic
def descriptor_at(state, page):
    """The placed address of the descriptor of page `page`; -1 where there are none."""
