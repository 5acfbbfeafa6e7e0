# SPDX-License-Identifier: MIT
"""The kernel's nbd devices: connected to a server by nbd-client, and disconnected."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlsplit

from pmem_core import blockdev, launch, runtime
from pmem_core.blockdev import CONNECTIONS, by_number, last_line, run, wait
from pmem_core.errors import HostError, MissingProgram


def is_there() -> bool:
    """Whether this kernel has the nbd driver (loaded now, if it had to be) and nbd-client is there to set it up."""
    with contextlib.suppress(MissingProgram):
        runtime.program("nbd-client", "nbd-client")
        if not Path("/sys/module/nbd").exists():
            subprocess.run([runtime.program("modprobe", "kmod"), "-q", "nbd"], check=False, stderr=subprocess.DEVNULL)
        return (blockdev.SYSFS / "nbd0").exists()
    return False


def connect(uri: str, *, read_only: bool, sector_bytes: int, note: Callable[[str], object]) -> str:
    """Connect a free nbd device to the server at ``uri`` and return the device.

    ``note`` is told which device is going to be connected, and "" where it is not after all: where this fails or is
    interrupted, none is left that is not noted.
    No timeout: the kernel then waits for a slow server for ever, as it does for a slow disk.  Two connections, so that
    reads go on while one of them waits for a flush, or one where the server or the kernel allows no more.
    """
    free = [path for path in by_number("nbd") if not (path / "pid").exists()]
    if not free:
        raise HostError("nbd", "no device is free", "one to be detached, or modprobe nbd nbds_max=64")
    target = urlsplit(uri)
    socket = parse_qs(target.query, errors="surrogateescape").get("socket")
    where = ["-unix", socket[0]] if socket else [target.hostname or "", str(target.port or 10809)]
    options = ["-block-size", str(sector_bytes), *(["-readonly"] if read_only else [])]
    for index, node in enumerate(free):
        device, clients = f"/dev/{node.name}", list[subprocess.Popen[str]]()
        note(device)
        try:
            try:
                _run_client(clients, [*where, device, *options, "-connections", str(CONNECTIONS)])
            except HostError:
                _run_client(clients, [*where, device, *options])
            if not wait(partial(_number, node / "size")):
                raise HostError(device, "did not become ready", "a look at the kernel's log")
            return device
        except BaseException as error:
            if any(_has_connected(client, device) for client in clients):
                disconnect(device)
            elif isinstance(error, HostError) and is_connected(device) and index + 1 < len(free):
                continue  # somebody else has taken it since we looked
            note("")
            raise
    raise AssertionError("the last device either connects or raises")


def _run_client(clients: list[subprocess.Popen[str]], words: list[str]) -> None:
    """Run nbd-client, added to ``clients`` before a signal may come; it has ended on return.  Raises HostError."""
    path, pipe = runtime.program("nbd-client", "nbd-client"), subprocess.PIPE
    with launch.uninterrupted() as go_on:
        process = subprocess.Popen([path, *words], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        clients.append(process)
        with process:
            try:
                go_on()
                said, complaint = process.communicate()
            except BaseException:
                process.kill()
                process.wait()  # `with` would not, after a KeyboardInterrupt
                raise
    if process.returncode:
        raise HostError("nbd-client", last_line(complaint or said) or f"failed with status {process.returncode}")


def _has_connected(client: subprocess.Popen[str], device: str) -> bool:
    """Whether it is this nbd-client, which has ended, that the device was connected by, and nobody else."""
    holder = _number(blockdev.SYSFS / Path(device).name / "pid")
    words: list[bytes] = []
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{holder}/cmdline").read_bytes().split(b"\0")[1:-1]
    # A kernel without netlink has a child of nbd-client's hold the device, with the same words.
    return (
        client.returncode == 0
        or holder == client.pid
        or words == list(map(os.fsencode, cast(list[str], client.args)[1:]))
    )


def is_connected(device: str) -> bool:
    """Whether an nbd device is connected to a server."""
    return (blockdev.SYSFS / Path(device).name / "pid").exists()


def disconnect(device: str) -> None:
    """Disconnect an nbd device, and wait until it is free; no matter if it is."""
    if is_connected(device):
        run(["nbd-client", "-d", device], "nbd-client")
    if not wait(lambda: not is_connected(device)):
        raise HostError(device, "is still connected", "whoever holds it to let go")


def _number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0
