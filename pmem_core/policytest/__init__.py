# SPDX-License-Identifier: MIT
"""The contract of a leveling policy, tried out: processes.py starts them, driven.py is what they do."""

from .processes import Result, run

__all__ = ["Result", "run"]
