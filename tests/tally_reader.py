# SPDX-License-Identifier: MIT
"""The totals of a core record and the sum kept of them, by docs/media-format.md alone."""

import struct

WORN, HOTTEST = range(10, 14), 15
KEPT_AT = 264  # word 5 of `unit`


def kept_and_added(core: bytes) -> tuple[int, int]:
    """The sum that a core record keeps (0: it is not known), and what it should be; both modulo 2**64."""
    words = struct.unpack_from("<20Q", core)
    added = 1 + sum(word for at, word in enumerate(words) if at not in WORN and at != HOTTEST)
    return struct.unpack_from("<Q", core, KEPT_AT)[0], added % 2**64
