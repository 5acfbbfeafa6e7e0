# SPDX-License-Identifier: MIT
"""Room in the sockets of connections for what clients have not read yet.

The kernel gives a Unix socket 208 KiB (net.core.wmem_default).  The thread that answers a read of 1 MiB sleeps there
until the client has read a part of it, and is woken, several times.  With room for an answer it goes on to the next
request: 1.3 times as many such reads a second (docs/performance.md).  TCP sockets grow by themselves.
"""

import contextlib
import socket
import stat
from pathlib import Path

ANSWERS_BYTES = 2 << 20  # what net.core.wmem_max does not allow the kernel leaves out


def widen() -> None:
    """Give the Unix sockets that this process has accepted room for ANSWERS_BYTES.

    nbdkit does not tell which one the connection that begins is on.  Where it cannot be done the connection is slower.
    """
    with contextlib.suppress(OSError):
        _widen()


def _widen() -> None:
    listening, others = set(), []
    with contextlib.ExitStack() as held:
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if not stat.S_ISSOCK(fd.stat().st_mode):
                    continue
                one = held.enter_context(socket.fromfd(int(fd.name), socket.AF_UNIX, socket.SOCK_STREAM))
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_UNIX:
                    continue
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listening.add(one.getsockname())
                else:
                    others.append(one)
        for one in others:
            # What was accepted has the name of the socket that it was accepted from.
            if one.getsockname() in listening:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWERS_BYTES)
