# SPDX-License-Identifier: MIT
"""An emulated persistent-memory device whose wear can be read: image, data path, policies, journal, command."""

__version__ = "0.1.0"
