# SPDX-License-Identifier: MIT
"""The nbdkit plugin: pmem.py is the script that nbdkit runs."""
