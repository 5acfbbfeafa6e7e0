# SPDX-License-Identifier: MIT
"""Where a server listens: NBD URIs, whether a socket or a port is free, and whether somebody answers there."""

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import struct
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from pmem_core.errors import HostError, ServerError, UsageError

SOCKET_PATH_BYTES_MAX = 107  # sun_path has 108, one of them a zero
SYS_PIDFD_GETFD = 438  # on every architecture
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # whoever listens on all addresses answers on this one


def uri(path: str | None, address: str | None, port: int | None, *, tls: bool = False) -> str:
    """Return the NBD URI of a Unix socket, or of an address and a port."""
    scheme = "nbds" if tls else "nbd"
    if path is not None:
        return f"{scheme}+unix:///?socket={quote(os.fsencode(path))}"
    host = ANY_ADDRESS.get(address or "", address or "")
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def claim(where: str | Path, bind: str, port: int | None) -> str | None:
    """Make sure that a server can listen there; return the socket's full path, None with a port."""
    if port is not None:
        require_port(bind, port)
        return None
    path = str(Path(where).absolute())
    claim_socket(path)
    return path


def claim_socket(path: str) -> None:
    """Make sure that a server can listen on the Unix socket ``path``: remove the one a dead server left.

    Raises UsageError where the path is too long, HostError where it is taken or its directory is not there.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES_MAX:
        raise UsageError(path, f"is {length} bytes long", f"a socket path of at most {SOCKET_PATH_BYTES_MAX} bytes")
    if not Path(path).parent.is_dir():
        raise HostError(path, "its directory does not exist", "an existing directory")
    if not os.access(Path(path).parent, os.W_OK | os.X_OK):
        raise HostError(path, "its directory cannot be written", "a directory of this user")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError(path, "exists and is no socket", "a path for a new socket")
    if answers(path):
        raise HostError(path, "another server listens on this socket", "a socket of its own")
    Path(path).unlink(missing_ok=True)


def answers(path: str) -> bool:
    """Whether anybody listens on the Unix socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError as error:
            # Only these two mean that nobody does: a full queue is a busy server, not a dead one.
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def require_port(address: str, port: int) -> None:
    """Make sure that a server can listen on the TCP ``port`` of ``address``.  Raises HostError, UsageError."""
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port}", "is no port", "1 to 65535")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(address, "is no address of this machine", "an address to listen on") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
            probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise HostError(f"port {port}", f"is in use{_holder(port)}", "a free port") from error
            what = (error.strerror or "cannot be used").lower()
            raise HostError(f"port {port} of {address}", what, "a port that this user may listen on") from error


def _holder(port: int) -> str:
    """Name the process that listens on ``port``, where this user may know it."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for link in psutil.net_connections("tcp"):
            if link.status == "LISTEN" and link.laddr.port == port and link.pid:
                return f" by {psutil.Process(link.pid).name()} (process {link.pid})"
    return ""


def hang_up(pid: int, pidfd: int, *, unread: bool = False) -> None:
    """Let the server ``pid`` see the end of what each of its clients sends; replies still reach them.

    With ``unread`` they do not where a client has left so many unread that no more fit: the server would wait as long.

    nbdkit ends on SIGTERM, but not before its last client has left, and an idle client has no reason to.  The kernel
    lends us the server's sockets (pidfd_getfd, Linux 5.6); where it may not, nothing happens.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if not str(link.readlink()).startswith("socket:"):
                    continue
                copy = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(link.name), 0)
                if copy >= 0:
                    with socket.socket(fileno=copy) as lent:
                        if not lent.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                            stuck = unread and not select.select([], [lent], [], 0)[1]
                            lent.shutdown(socket.SHUT_RDWR if stuck else socket.SHUT_RD)


class Greeting:
    """One patient client that waits to be greeted, and leaves politely.

    A server takes connections as soon as it listens, and greets once its plugin is ready: so the greeting, and nothing
    less, says that it serves.
    """

    def __init__(self, where: str | tuple[str, int]) -> None:
        self.where = where if isinstance(where, str) else (ANY_ADDRESS.get(where[0], where[0]), where[1])
        self.socket: socket.socket | None = None
        self.said = b""

    def __enter__(self) -> "Greeting":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.socket is None:
            return
        # NBD_OPT_ABORT: without it, the server would write an error to its log.
        with contextlib.suppress(OSError):
            self.socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0))
            self.socket.settimeout(1)
            self.socket.recv(64)
        self.socket.close()

    def received(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` for the greeting; say whether it is here.  Raises ServerError if it is no NBD."""
        if self.socket is None and not self._connect():
            time.sleep(timeout_s)
            return False
        assert self.socket is not None
        self.socket.settimeout(timeout_s)
        try:
            received = self.socket.recv(18 - len(self.said))
        except TimeoutError:
            return False
        except OSError:
            received = b""
        if not received:
            self.socket.close()
            self.socket, self.said = None, b""
            time.sleep(timeout_s)  # it may be ending
            return False
        self.said += received
        if not b"NBDMAGIC".startswith(self.said[:8]):
            raise ServerError(str(self.where), "what answers there does not speak NBD", "an NBD server")
        return len(self.said) == 18

    def _connect(self) -> bool:
        try:
            if isinstance(self.where, str):
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.socket.settimeout(1)
                self.socket.connect(self.where)
            else:
                self.socket = socket.create_connection(self.where, timeout=1)
        except OSError:
            if self.socket is not None:
                self.socket.close()
                self.socket = None
            return False
        return True


def visit_export(where: str | tuple[str, int], name: str, timeout_s: float = 10) -> None:
    """Be a client that asks for the export ``name``, and leaves; ServerError where it is not let in."""
    with Greeting(where) as greeting:
        deadline = time.monotonic() + timeout_s
        while not greeting.received(0.05):
            if time.monotonic() > deadline:
                raise ServerError(str(where), f"did not answer within {timeout_s:.0f} s", "try again")
        client, greeting.socket = greeting.socket, None  # no longer to be left as one that is only greeted
    assert client is not None
    data = name.encode()
    with client, contextlib.suppress(OSError):
        client.settimeout(timeout_s)
        # Flags: fixed newstyle, no zeroes.  NBD_OPT_EXPORT_NAME; the answer is the size and flags; NBD_CMD_DISC.
        client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(data)) + data)
        if client.recv(10, socket.MSG_WAITALL):
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
            client.recv(1)  # it hangs up
            return
    raise ServerError(str(where), "refused a client", "a server that takes clients without TLS")
