# SPDX-License-Identifier: MIT
"""The contract of a leveling policy, tried out: run.py starts it, driven.py is the process that does it."""

from .run import Result, run

__all__ = ["Result", "run"]
