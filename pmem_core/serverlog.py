# SPDX-License-Identifier: MIT
"""What a server says on its standard error while it serves."""

import contextlib
import sys

OURS = "pmem-nbd: "
IN_PASSING = f"{OURS}housekeeping: "  # a line that begins so does not tell how the server ended


def say_in_passing(text: str) -> None:
    """Say one line; where it cannot be written it is lost, and nothing else is."""
    with contextlib.suppress(OSError, ValueError):
        # In one piece, for nbdkit writes there too.
        sys.stderr.write(f"{IN_PASSING}{text}\n")
        sys.stderr.flush()
