# SPDX-License-Identifier: MIT
"""The extents of a file on a filesystem that has been in use: which pages of the device its pages are.

How they are made: a device is filled with files from its first page on, a random half of the files is deleted, and one
large file is written to the holes in order of address, as an allocator does that takes the first room it finds.
Neighbours that were both deleted are one hole.

Sizes of files are log-normal, ln of the bytes with mean 8.45 and standard deviation 2.35 (Douceur and Bolosky, "A
Large-Scale Study of File-System Contents", SIGMETRICS 1999: 140 million files of 10 568 filesystems, which "on average
are only half full": hence the half).  A hole is then some 35 pages long in the mean, and half of them have one to five.
"""

import numpy as np

from ..layout import PAGE_BYTES

LN_BYTES_MEAN = 8.45
LN_BYTES_SIGMA = 2.35
DELETED = 0.5
FILES_AT_ONCE = 1 << 20


def whole(page_count: int) -> np.ndarray:
    """One extent of all pages, int64[1, 2]."""
    return np.array([[0, page_count]], np.int64)


def fragmented(page_count: int, extents_max: int, seed: int) -> np.ndarray:
    """First page and number of pages of each extent, int64[extents, 2], ascending, at most `extents_max`.

    There are fewer where the device has not that many holes; at least one.
    """
    generator = np.random.default_rng(seed)
    found, count, start = [], 0, 0
    while start < page_count and count < extents_max:
        draw = generator.lognormal(LN_BYTES_MEAN, LN_BYTES_SIGMA, FILES_AT_ONCE)
        files = np.ceil(np.minimum(draw, page_count * float(PAGE_BYTES)) / PAGE_BYTES).astype(np.int64)
        deleted = generator.random(FILES_AT_ONCE) < DELETED
        # Each batch ends in a file that is kept: no hole goes over into the next.
        deleted[-1] = False
        ends = np.cumsum(files) + start
        edges = np.diff(deleted.astype(np.int8), prepend=0)
        firsts = (ends - files)[edges == 1]
        lasts = (ends - files)[edges == -1]
        inside = firsts < page_count
        firsts, lasts = firsts[inside], np.minimum(lasts[inside], page_count)
        found.append(np.stack([firsts, lasts - firsts], axis=1))
        count += len(firsts)
        start = int(ends[-1])
    table = np.concatenate(found)[:extents_max]
    return table if len(table) else whole(page_count)


def pages_of(extents: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The pages of the device that pages `offsets` of the file are, int64[n]."""
    ends = np.cumsum(extents[:, 1])
    which = np.searchsorted(ends, offsets, side="right")
    return np.asarray(extents[which, 0] + offsets - (ends - extents[:, 1])[which])
