# SPDX-License-Identifier: MIT
"""Recordings of real workloads on a device of 28 MiB, NAME.rec, made by scripts/record: docs/recorded-workloads.md."""
