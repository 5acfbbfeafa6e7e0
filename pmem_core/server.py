# SPDX-License-Identifier: MIT
"""Servers of images: start an nbdkit with our plugin in it, find those that run, stop them.

Each running server has one record in the runtime directory.  nbdkit always runs in its own foreground (``-f``), in a
session of its own, with stderr in a log file beside the record: an nbdkit that forks would send what goes wrong after
the fork to syslog, and nobody would be told.  launch.spawn says how it outlives the process that started it.
"""

import contextlib
import dataclasses
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pmem_core import launch, listen, runtime, serverlog
from pmem_core.errors import HostError, ImageBusy, NotAnImage, ServerError, UsageError

START_S_MAX = 180  # the first start compiles
STOP_S_MAX = 60  # a stop takes a checkpoint
UNREAD_S_MAX = 8  # for clients to read what they were answered before it

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server, as its record tells it."""

    image: str  # real path; of one that servers() finds, as it is by now
    pid: int
    birth: str  # of the process, see runtime.birth
    socket: str | None  # of a Unix socket; else address and port
    address: str | None
    port: int | None
    read_only: bool
    started: float  # seconds since 1970
    log: str  # what nbdkit writes on stderr
    tls: bool = False  # clients without TLS are refused
    log_told: int = dataclasses.field(default=0, compare=False)  # bytes of it that start() has relayed
    name: str = ""  # of its files in the runtime directory

    @property
    def uri(self) -> str:
        """The NBD URI that a client connects to."""
        return listen.uri(self.socket, self.address, self.port, tls=self.tls)

    @property
    def alive(self) -> bool:
        return runtime.alive(self.pid, self.birth)


# --- the registry -----------------------------------------------------------------------------------------------------


def servers() -> list[Server]:
    """Return the servers of this user that run, and clear away what dead ones left."""
    running = []
    for record in runtime.read_records(".server.json"):
        try:
            server = Server(**record)
            server = dataclasses.replace(server, name=server.name or runtime.key(server.image))
        except TypeError:
            continue  # of another version of this program
        if server.alive:
            running.append(dataclasses.replace(server, image=runtime.image_now(server.pid, server.image)))
        else:
            _forget(server)
    return running


def find(image: str | Path) -> Server | None:
    """Return the server of ``image``, or None; the image may have been moved, and its old name be another's."""
    real = os.path.realpath(image)
    media = Path(real) / "media"
    return next((one for one in servers() if runtime.is_at(one.image, real) or runtime.has_open(one.pid, media)), None)


def settled(image: str | Path) -> Server | None:
    """Return the server of ``image``, or None; waits for one that is about to be started to serve or to fail."""
    with runtime.lock(runtime.key(str(image))):
        return find(image)


def usage(running: Sequence[Server], interval_s: float = 0.1) -> list[dict[str, Any]]:
    """Return what each server costs: bytes of memory, seconds and percent of CPU, bytes of disks, threads, connections.

    The percentage is measured over ``interval_s``.  A server that ended meanwhile gives {}.
    """
    import psutil

    processes: list[Any] = []
    for server in running:
        processes.append(None)
        with contextlib.suppress(psutil.Error):
            if server.alive:
                processes[-1] = psutil.Process(server.pid)
                processes[-1].cpu_percent()
    time.sleep(interval_s if running else 0)

    def measure(server: Server, process: Any) -> dict[str, Any]:
        with process.oneshot():
            memory, cpu, io = process.memory_info(), process.cpu_times(), process.io_counters()
            kind = "unix" if server.socket else "tcp"
            links = [link for link in process.net_connections(kind) if kind == "unix" or link.status != "LISTEN"]
            return {
                "memory_bytes": memory.rss,
                "cpu_s": round(cpu.user + cpu.system, 2),
                "cpu_percent": process.cpu_percent(),
                "disk_read_bytes": io.read_bytes,
                "disk_written_bytes": io.write_bytes,
                "threads": process.num_threads(),
                "connections": len(links) - (kind == "unix"),  # one of them listens
            }

    figures: list[dict[str, Any]] = []
    for server, process in zip(running, processes, strict=True):
        figures.append({})
        with contextlib.suppress(psutil.Error, AttributeError):
            figures[-1] = measure(server, process)
    return figures


def _forget(server: Server, *, recorded: bool = True) -> None:
    """Remove what a server that is gone left behind; recorded: False where it may not have had a record yet."""
    name = server.name or runtime.key(server.image)
    record = runtime.read_record(f"{name}.server.json")
    if record is None and recorded:
        return  # somebody has done this, and a successor may be about to write its own
    if record is not None and record.get("pid") != server.pid:
        return  # its successor's
    runtime.remove(f"{name}.server.json", f"{name}.log", f"{name}.pid")
    if server.socket is not None and not listen.answers(server.socket):
        with contextlib.suppress(OSError):
            Path(server.socket).unlink()


# --- start, follow, stop ----------------------------------------------------------------------------------------------


def start(
    image: str | Path,
    *,
    socket: str | Path | None = None,
    port: int | None = None,
    bind: str = "127.0.0.1",
    read_only: bool = False,
    threads: int = launch.THREADS,
    parameters: Mapping[str, str] | None = None,
    nbdkit_args: Sequence[str] = (),
    plugin: str | Path | None = None,
    tell: Tell = lambda line: None,
    exit_with_parent: bool = False,
    timeout_s: float = START_S_MAX,
) -> Server:
    """Start a server of ``image`` and return it once it answers; where it does not, nothing of it is left.

    Without ``socket`` and ``port`` it listens on a socket in the runtime directory.  ``tell`` is given the lines in
    which the plugin reports progress.  Raises ImageBusy where the image is served already, MissingProgram, HostError
    (the port or the socket is taken), UsageError, and whatever the plugin says: an error of its own class where the
    plugin raised one of ours, else ServerError.
    """
    if socket is not None and port is not None:
        raise UsageError("server", "was given a socket and a port", "one of them")
    real = os.path.realpath(image)
    if not Path(real).exists():
        raise NotAnImage(image, "does not exist", "an image (pmem-nbd create makes one)")
    launch.require_nbdkit()
    folder = runtime.directory()
    with runtime.lock(runtime.key(real)):
        if running := find(real):
            raise ImageBusy(image, f"is served already, by process {running.pid} on {running.uri}", "stop that one")
        name = runtime.free_name(real, ".server.json")
        path = listen.claim(socket or folder / f"{name}.sock", bind, port)
        command = launch.nbdkit_command(
            real,
            socket=path,
            port=port,
            bind=bind,
            pidfile=folder / f"{name}.pid",
            read_only=read_only,
            threads=threads,
            parameters=parameters,
            nbdkit_args=[*(["--exit-with-parent"] if exit_with_parent else []), *nbdkit_args],
            plugin=plugin or launch.PLUGIN,
        )
        log = folder / f"{name}.log"
        address, tls = None if port is None else bind, launch.requires_tls(nbdkit_args)
        with launch.uninterrupted() as go_on:
            pid = launch.spawn(command, log, outlive=not exit_with_parent)
            born, now = runtime.birth(pid), time.time()
            server = Server(real, pid, born, path, address, port, read_only, now, str(log), tls, name=name)
            try:
                with log.open(errors="replace") as said:  # before its record: where it fails, `servers` removes the log
                    runtime.write_record(f"{name}.server.json", dataclasses.asdict(server))
                    go_on()
                    server = dataclasses.replace(server, log_told=_await(server, said, tell, timeout_s))
                if path is not None:
                    Path(path).chmod(0o600)  # nbdkit's umask is 022: others could not connect, and need not see it
            except BaseException:
                _kill(server)
                raise
        return server


def _await(server: Server, log: TextIO, tell: Tell, timeout_s: float) -> int:
    """Wait until the server greets a client, relaying what it says; returns how many bytes of its log that was.

    Raises what it died of, or ServerError."""
    deadline = time.monotonic() + timeout_s
    held: list[str] = []
    with listen.Greeting(server.socket or (server.address or "", server.port or 0)) as greeting:
        ready = False
        while not ready:
            ready = greeting.received(0.05)
            for line in log.readlines():
                # Progress ends in dots; what does not may be its last words, and then becomes an exception.
                tell(line.rstrip()) if line.rstrip().endswith("...") else held.append(launch.clean(line))
            if not ready and not server.alive:
                raise launch.failure(server.image, _all_of(log), _reap(server.pid))
            if not ready and time.monotonic() > deadline:
                raise ServerError(server.image, f"the server did not answer within {timeout_s:.0f} s", "try again")
        for line in filter(None, held):
            tell(line)
        return log.tell()


def _all_of(log: TextIO) -> str:
    log.seek(0)
    return log.read()


def follow(server: Server, tell: Tell) -> None:
    """Relay what a server says until it ends; raises ServerError where it ended by anything but a stop."""
    with Path(server.log).open(errors="replace") as log:
        size = log.seek(server.log_told)
        while server.alive:
            before, size = size, os.fstat(log.fileno()).st_size
            if size < before:
                log.seek(0)  # the server has cut it back
            for line in log.readlines():
                tell(launch.clean(line))
            time.sleep(0.1)
        said = _all_of(log)
    status = _reap(server.pid)
    _forget(server)
    if status:
        raise launch.failure(server.image, said, status)


def stop(server: Server, timeout_s: float = STOP_S_MAX) -> None:
    """Stop a server and wait until its checkpoint is taken and it is gone; no matter if it is gone already.

    Clients are answered what they have asked, and then hung up on; after UNREAD_S_MAX also those that read no answers.
    Raises ServerError where it has not ended after ``timeout_s``, HostError where it is another user's, and what it
    says when the image is not closed well (behind NOT_CLOSED: not all of it may be durable).
    """
    told = len(serverlog.read(server.log))
    with contextlib.suppress(ProcessLookupError):
        # A pidfd stays with the process: no other one can get its signal, whatever becomes of the number.
        handle = os.pidfd_open(server.pid)
        try:
            if server.alive:
                for number in (signal.SIGTERM, signal.SIGCONT):  # a process that is stopped has to go on for it
                    signal.pidfd_send_signal(handle, number)
                begun = time.monotonic()
                while not select.select([handle], [], [], 0.3)[0]:
                    if (waited := time.monotonic() - begun) > timeout_s:
                        what = f"its server, process {server.pid}, has not ended after {timeout_s:.0f} s"
                        raise ServerError(server.image, what, f"see {server.log}")
                    listen.hang_up(server.pid, handle, unread=waited > UNREAD_S_MAX)
        except PermissionError as error:
            raise HostError(server.image, f"process {server.pid} is another user's", "that user, or root") from error
        finally:
            os.close(handle)
    _reap(server.pid)
    said = [line for line in serverlog.read(server.log)[told:] if serverlog.tells_of_a_bad_end(line)]
    _forget(server)
    if said:
        raise launch.failure(server.image, said[-1], None)


def _kill(server: Server) -> None:
    """End a server that nobody has been served by."""
    while server.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.01)
    _reap(server.pid)
    _forget(server, recorded=False)


def _reap(pid: int) -> int | None:
    """Take the exit status of a child that ended: negative for a signal, None where it is no child of ours."""
    with contextlib.suppress(ChildProcessError):
        return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])
    return None
