# SPDX-License-Identifier: MIT
"""What a server says on its standard error while it serves, and the file that `serve` makes for it.

nbdkit writes a line for each request that is refused, and cannot be told not to.  A client that repeats a write on a
full host would have it write a gigabyte an hour, often into memory.  So the server cuts its own file back.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import BinaryIO

from pmem_core.errors import NOT_CLOSED

OURS = "pmem-nbd: "
IN_PASSING = f"{OURS}housekeeping: "  # a line that begins so does not tell how the server ended
ASSERTION = "Assertion"  # in the last line of an nbdkit that aborts
VARIABLE = "PMEM_NBD_LOG"  # of the environment: the file that `launch` made, and that is the server's to cut
LOG_BYTES_MAX = 4 << 20
TAIL_BYTES = 64 << 10  # what is left of it
# How it is opened.  With O_APPEND whoever writes after a cut writes at the new end, and leaves no hole before that.
# A server reads what it leaves by this very descriptor, for it may have no other left.
FLAGS, MODE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600


def say_in_passing(text: str) -> None:
    """Say one line; where it cannot be written it is lost, and nothing else is."""
    with contextlib.suppress(OSError, ValueError):
        # In one piece, for nbdkit writes there too.
        sys.stderr.write(f"{IN_PASSING}{text}\n")
        sys.stderr.flush()


def tells_of_the_image(line: str) -> bool:
    """Whether it is the plugin's word of how the image was opened or closed, or nbdkit's of why it was not closed."""
    return ASSERTION in line or (line.startswith(OURS) and not line.startswith(IN_PASSING))


def tells_of_a_bad_end(line: str) -> bool:
    """Whether it says that the image was not closed well."""
    return ASSERTION in line or line.startswith(NOT_CLOSED)


def read(path: str) -> list[str]:
    """The lines in a server's log that tell of the image, in order; no cut takes one away."""
    with contextlib.suppress(OSError), Path(path).open(errors="replace") as log:
        return list(filter(tells_of_the_image, log))
    return []


def bound() -> None:
    """Cut standard error back where it is longer than LOG_BYTES_MAX, and a file that is this server's own.

    For one thread at a time.
    """
    with contextlib.suppress(OSError):
        if os.fstat(2).st_size > LOG_BYTES_MAX and _is_own():
            with os.fdopen(2, "rb", closefd=False) as log:
                _cut(log)


def _is_own() -> bool:
    return os.path.samestat(Path(os.environ.get(VARIABLE, "")).stat(), os.fstat(2))


def _cut(log: BinaryIO) -> None:
    tail_at, at = os.fstat(log.fileno()).st_size - TAIL_BYTES, 0
    log.seek(0)
    left = [f"{IN_PASSING}earlier lines of this log were dropped\n".encode()]
    for line in log:
        if at >= tail_at or tells_of_the_image(line.decode(errors="replace")):
            left.append(line)
        at += len(line)
    os.ftruncate(2, 0)
    os.write(2, b"".join(left))
