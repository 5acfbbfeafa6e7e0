# SPDX-License-Identifier: MIT
"""The extents of a file: which pages of the device its pages are, where the filesystem has been in use for long.

How fragmented ones are made: a zone of the device is filled with files from its first page on, a random half of the
files is deleted, and one large file is written to the holes in order of address, as an allocator does that takes the
first room it finds.  Neighbours that were both deleted are one hole.  There are ZONES zones, evenly spread, as there
are block groups in ext4 and allocation groups in xfs.

Sizes of files are log-normal, ln of the bytes with mean 8.45 and standard deviation 2.35 (Douceur and Bolosky, "A
Large-Scale Study of File-System Contents", SIGMETRICS 1999: 140 million files of 10 568 filesystems, which "on average
are only half full": hence the half).  Files of more than FILE_PAGES_MAX pages are left out: they make long extents, not
more of them, and a million extents have to fit into memory with their descriptors.  Half of the holes have at most four
pages, and the mean is eleven.
"""

import numpy as np

from ..layout import PAGE_BYTES

LN_BYTES_MEAN = 8.45
LN_BYTES_SIGMA = 2.35
FILE_PAGES_MAX = 64
DELETED = 0.5
FILES_AT_ONCE = 1 << 20
ZONES = 64


def few(page_count: int, extents: int, extent_pages: int, seed: int) -> np.ndarray:
    """Long extents, int64[n, 2], ascending: `extents` of `extent_pages` pages each at random places, or fewer."""
    places = max(1, page_count // extent_pages)
    chosen = np.random.default_rng(seed).choice(places, min(extents, places), replace=False)
    firsts = np.sort(chosen).astype(np.int64) * extent_pages
    return np.stack([firsts, np.minimum(extent_pages, page_count - firsts)], axis=1)


def file_pages(generator: np.random.Generator, count: int) -> np.ndarray:
    """Sizes of `count` files in pages, int64[count]."""
    # More are drawn than are left out (one in 23).
    draw = generator.lognormal(LN_BYTES_MEAN, LN_BYTES_SIGMA, count + count // 4 + 64)
    pages = np.ceil(draw[draw <= FILE_PAGES_MAX * PAGE_BYTES] / PAGE_BYTES)
    return np.asarray(pages[:count], np.int64)


def fragmented(page_count: int, extents_max: int, seed: int) -> np.ndarray:
    """First page and number of pages of each extent, int64[extents, 2], ascending, at most `extents_max`.

    There are fewer where the device has not that many holes; at least one.
    """
    table, used = _holes(page_count, extents_max, seed)
    zone_pages, part_pages = page_count // ZONES, -(-used // ZONES)
    if len(table) and zone_pages > part_pages:
        table[:, 0] += table[:, 0] // part_pages * (zone_pages - part_pages)
    return table if len(table) else np.array([[0, page_count]], np.int64)


def _holes(page_count: int, holes_max: int, seed: int) -> tuple[np.ndarray, int]:
    """The holes from page 0 on, int64[holes, 2]; and the pages up to the end of the last one."""
    generator = np.random.default_rng(seed)
    found, count, start = [], 0, 0
    while start < page_count and count < holes_max:
        files = file_pages(generator, FILES_AT_ONCE)
        deleted = generator.random(len(files)) < DELETED
        # Each batch ends in a file that is kept: no hole goes over into the next.
        deleted[-1] = False
        ends = np.cumsum(files) + start
        edges = np.diff(deleted.astype(np.int8), prepend=0)
        firsts, lasts = (ends - files)[edges == 1], (ends - files)[edges == -1]
        inside = firsts < page_count
        firsts, lasts = firsts[inside], np.minimum(lasts[inside], page_count)
        found.append(np.stack([firsts, lasts - firsts], axis=1))
        count += len(firsts)
        start = int(ends[-1])
    table = np.concatenate(found)[:holes_max]
    return table, int(table[-1].sum()) if len(table) else 0


def pages_of(extents: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The pages of the device that pages `offsets` of the file are, int64[n]."""
    ends = np.cumsum(extents[:, 1])
    which = np.searchsorted(ends, offsets, side="right")
    return np.asarray(extents[which, 0] + offsets - (ends - extents[:, 1])[which])
