# SPDX-License-Identifier: MIT
"""Give an image descriptors of another size or format: in place (``run``), or into a new image (``copy``)."""

from .copy import convert_into
from .run import convert

__all__ = ["convert", "convert_into"]
