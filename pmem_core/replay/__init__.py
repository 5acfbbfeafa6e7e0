# SPDX-License-Identifier: MIT
"""Replay offline: the compiled policies of a device under a workload, without data and without NBD."""
