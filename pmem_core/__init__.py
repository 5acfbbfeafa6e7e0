# SPDX-License-Identifier: MIT
"""An emulated persistent-memory device whose wear can be read: image, data path, policies, journal, command."""

import os

# Nothing here does linear algebra; without this numpy starts a thread a processor for it, which costs 40 ms of each.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
