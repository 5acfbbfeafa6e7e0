# SPDX-License-Identifier: MIT
"""Synthetic workloads: which pages are written, one after the other.  One module is one workload.

A module has SOURCE, PARAMETERS (name: default, least, most, what it is; as of a leveling policy) and
`pages(page_count, parameters, random)`: an endless iterator of arrays of page numbers (int64[BATCH]), random being
a numpy Generator.  The same generator state gives the same pages.
"""

from ...plugins import Family

BATCH = 1 << 16

family = Family(__name__, __path__)
