# SPDX-License-Identifier: MIT
"""The sockets of connections, which nbdkit tells nobody of: found among this process's descriptors.

The kernel gives a Unix socket 208 KiB (net.core.wmem_default) for what its client has not read yet.  The thread that
answers a read of 1 MiB sleeps there until the client has read a part of it, and is woken, several times.  With room for
an answer it goes on to the next request: 1.3 times as many such reads a second (docs/performance-choices.md).  TCP
sockets grow by themselves.
"""

import contextlib
import socket
import stat
import threading
from pathlib import Path
from typing import Any, NamedTuple

ANSWERS_BYTES = 2 << 20  # what net.core.wmem_max does not allow the kernel leaves out
_looking = threading.Lock()  # or one connection's look would find the duplicates of another's


class _Socket(NamedTuple):
    fd: int
    listens: bool
    is_unix: bool
    name: Any


def connected() -> list[int]:
    """The descriptors of the sockets that are not listened on: of the clients.  Errors: OSError."""
    with _looking:
        return [one.fd for one in _all() if not one.listens]


def widen() -> None:
    """Give the Unix sockets that this process has accepted room for ANSWERS_BYTES.

    Where it cannot be done the connection is slower.
    """
    with contextlib.suppress(OSError), _looking:
        found = [one for one in _all() if one.is_unix]
        names = {one.name for one in found if one.listens}
        for one in found:
            # What was accepted has the name of the socket that it was accepted from.
            if not one.listens and one.name in names:
                with _duplicate(one.fd) as duplicate:
                    duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWERS_BYTES)


def _all() -> list[_Socket]:
    """Each socket but the standard streams, which the server was begun with."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            fd = int(entry.name)
            if fd > 2 and stat.S_ISSOCK(entry.stat().st_mode):
                with _duplicate(fd) as one:
                    listens, domain = (
                        one.getsockopt(socket.SOL_SOCKET, which) for which in (socket.SO_ACCEPTCONN, socket.SO_DOMAIN)
                    )
                    found.append(_Socket(fd, bool(listens), domain == socket.AF_UNIX, one.getsockname()))
    return found


def _duplicate(fd: int) -> socket.socket:
    return socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM)
