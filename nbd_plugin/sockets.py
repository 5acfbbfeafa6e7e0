# SPDX-License-Identifier: MIT
"""The sockets of connections, which nbdkit tells nobody of: found among this process's descriptors.

The kernel gives a Unix socket 208 KiB (net.core.wmem_default) for what its client has not read yet.  The thread that
answers a read of 1 MiB sleeps there until the client has read a part of it, and is woken, several times.  With room for
an answer it goes on to the next request: 1.3 times as many such reads a second (docs/performance.md).  TCP sockets grow
by themselves.
"""

import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

ANSWERS_BYTES = 2 << 20  # what net.core.wmem_max does not allow the kernel leaves out


def connected() -> list[int]:
    """The descriptors of the sockets that this process does not listen on: of its clients.  Errors: OSError."""
    return [fd for fd, one in _all() if not _listens(one)]


def widen() -> None:
    """Give the Unix sockets that this process has accepted room for ANSWERS_BYTES.

    Where it cannot be done the connection is slower.
    """
    with contextlib.suppress(OSError):
        names = {one.getsockname() for _, one in _all() if _is_unix(one) and _listens(one)}
        for _, one in _all():
            # What was accepted has the name of the socket that it was accepted from.
            if _is_unix(one) and not _listens(one) and one.getsockname() in names:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWERS_BYTES)


def _all() -> Iterator[tuple[int, socket.socket]]:
    """Each socket by its descriptor, as a duplicate that is closed when the next one is asked for."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if stat.S_ISSOCK(entry.stat().st_mode):
                with socket.fromfd(int(entry.name), socket.AF_UNIX, socket.SOCK_STREAM) as one:
                    yield int(entry.name), one


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_unix(one: socket.socket) -> bool:
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX
