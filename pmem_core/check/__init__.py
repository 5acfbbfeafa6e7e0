# SPDX-License-Identifier: MIT
"""Check an image: everything it holds twice is compared, and everything with a checksum is summed.

``findings`` are the words; ``trust`` reads what state and journal tell, ``sanity`` says what of it cannot be, and
``choose`` whom to believe, with ``doubt`` and ``amend``, which ask the medium; ``pages`` goes through descriptors and
data; ``mend`` repairs; ``run`` puts them together.
"""

from .findings import Finding, Kind, Report, Severity
from .run import check

__all__ = ["Finding", "Kind", "Report", "Severity", "check"]
