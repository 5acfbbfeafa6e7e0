#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A RAM disk in a bytearray: the nbdkit Python plugin that most people write first, a peer in scripts/bench.

Plain on purpose: API version 2, slices, the default thread model, nothing tuned.
"""

import nbdkit

API_VERSION = 2

disk = bytearray()


def config(key: str, value: str) -> None:
    global disk
    if key != "size":
        raise RuntimeError(f"unknown parameter {key}: size=SIZE")
    disk = bytearray(nbdkit.parse_size(value))


def open(readonly: bool) -> int:
    return 1


def get_size(h: int) -> int:
    return len(disk)


def pread(h: int, buf: memoryview, offset: int, flags: int) -> None:
    buf[:] = disk[offset : offset + len(buf)]


def pwrite(h: int, buf: memoryview, offset: int, flags: int) -> None:
    disk[offset : offset + len(buf)] = buf


def flush(h: int, flags: int) -> None:
    pass
