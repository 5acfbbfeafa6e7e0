# SPDX-License-Identifier: MIT
"""A log of writes in the on-disk format of the kernel's dm-log-writes: docs/log-writes.md.

``record`` is the format; ``spool`` holds what no flush has covered yet; ``writer`` appends to a log; ``logged`` is a
device that keeps one.  ``reader`` goes through a log, and ``replay`` applies it to a file or a block device.
"""
