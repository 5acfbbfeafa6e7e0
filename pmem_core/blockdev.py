# SPDX-License-Identifier: MIT
"""Block devices of this machine: make and remove loop devices, and say who uses a device or a mount."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pmem_core import runtime
from pmem_core.errors import HostError, ImageBusy

WAIT_S_MAX = 30
LOOK_S_MAX = 1
CONNECTIONS = 2  # to a server that allows it: each is served in order, and one may wait for a flush
SYSFS = Path("/sys/block")
BLKID_AMBIVALENT = 8  # the exit status of blkid where it cannot decide
SIGNATURE_BYTES = 68 << 10  # that of btrfs begins at 64 KiB


def run(command: Sequence[str], package: str) -> str:
    """Run a program of ``package`` and return its stdout; raises HostError with the last line it said."""
    path = runtime.program(command[0], package)
    done = subprocess.run([path, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(command[0], last_line(done.stderr or done.stdout) or f"failed with status {done.returncode}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line of ``text`` that says what is wrong, without the program's name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .") and "dmesg(1) may have" not in line]
    return re.sub(r"^[\w./-]+: (?=\S)", "", lines[-1]).rstrip(".") if lines else ""


def wait(done: Callable[[], object], timeout_s: float = WAIT_S_MAX) -> bool:
    """Wait until ``done`` says so; False where it has not after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- loop -------------------------------------------------------------------------------------------------------------


def make_loop(file: str, *, read_only: bool, sector_bytes: int) -> str:
    """Set up a loop device on ``file`` and return it.

    Direct I/O: a flush of the device is then all that is between a write and the server, and no byte is cached twice.
    """
    options = ["--direct-io=on", "--sector-size", str(sector_bytes), *(["--read-only"] if read_only else [])]
    return run(["losetup", "--show", "--find", *options, file], "mount").strip()


def loops_of(file: str) -> list[str]:
    """Return the loop devices on ``file``."""
    found = []
    for node in by_number("loop"):
        with contextlib.suppress(OSError):
            if (node / "loop/backing_file").read_text().rstrip("\n") == file:
                found.append(f"/dev/{node.name}")
    return found


def remove_loop(device: str) -> None:
    """Remove a loop device, and wait until it is gone; losetup itself only promises to, once nobody uses it."""
    backing = SYSFS / Path(device).name / "loop/backing_file"
    if backing.exists():
        run(["losetup", "--detach", device], "mount")
    if not wait(lambda: not backing.exists()):
        raise HostError(device, "is still in use", "whoever holds it to let go")


# --- any device -------------------------------------------------------------------------------------------------------


def sync(device: str) -> None:
    """Write out what the kernel holds back of ``device``, down to a flush of the server."""
    handle = os.open(device, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def signature(device: str) -> str:
    """Name the filesystem (or other content that says its name) on ``device``; "" where it holds none.

    Raises HostError where the device cannot be read.
    """
    # blkid takes what it cannot read for nothing, and on nothing mkfs may write.
    try:
        with Path(device).open("rb") as content:
            content.read(SIGNATURE_BYTES)
    except OSError as error:
        raise HostError(
            device, f"cannot be read: {(error.strerror or str(error)).lower()}", "pmem-nbd check"
        ) from error
    program = runtime.program("blkid", "util-linux")
    done = subprocess.run(
        [program, "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", device],
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join(done.stdout.split()) or ("several filesystems" if done.returncode == BLKID_AMBIVALENT else "")


def require_unused(device: str) -> None:
    """Raise ImageBusy, which names the mount or the processes, while anybody uses ``device``."""
    if mounted := mounts(device):
        raise ImageBusy(device, f"is mounted on {mounted[0]}", "unmount it first")
    # Whoever only has a look at a device that was just unmounted (udev does) is given the time for it.
    if not wait(lambda: not _users(lambda path: path == device), LOOK_S_MAX):
        raise ImageBusy(device, f"is in use by {', '.join(_users(lambda path: path == device))}", "end that first")
    if not wait(lambda: _can_be_claimed(device), LOOK_S_MAX):
        raise ImageBusy(device, "is in use by another device or mount namespace", "release it first")


def _can_be_claimed(device: str) -> bool:
    """Whether nothing claims the device: a mount of another namespace, a RAID, a volume manager."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return False
    return True


def mountpoints() -> list[str]:
    """Return where anything is mounted, in this mount namespace."""
    return [mountpoint for _, mountpoint, _ in _mountinfo()]


def is_mountpoint(path: str | Path) -> bool:
    """Whether anything is mounted on ``path``, in this mount namespace."""
    return str(path) in mountpoints()


def require_mountable(directory: str | Path) -> Path:
    """Return the real path of a directory that can be mounted on, or made for it.  Raises HostError."""
    where = Path(os.path.realpath(directory))
    if where.exists() and not where.is_dir():
        raise HostError(directory, "is no directory", "a directory to mount on")
    if not where.parent.is_dir():
        raise HostError(directory, "cannot be made: there is no directory to make it in", "a path whose parent exists")
    if is_mountpoint(where):
        raise HostError(directory, "something is mounted there already", "a directory of its own")
    return where


def mounts(device: str) -> list[str]:
    """Return where ``device`` is mounted, in this mount namespace."""
    number = Path(device).stat().st_rdev
    numbers = f"{os.major(number)}:{os.minor(number)}"
    # btrfs gives its mounts numbers of their own, but names the device.
    return [where for its, where, source in _mountinfo() if its == numbers or source == device]


def users_of_mount(directory: str) -> list[str]:
    """Name what keeps the filesystem on ``directory`` busy: processes with their numbers, and mounts inside it."""
    below = directory.rstrip("/") + "/"
    inside = [f"the mount on {path}" for path in mountpoints() if path.startswith(below)]
    return inside + _users(lambda path: path == directory or path.startswith(below))


def _users(uses: Callable[[str], bool]) -> list[str]:
    """Name the processes with a directory, a program, an open or a mapped file whose path ``uses`` takes."""
    found = []
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        links = [process / "cwd", process / "root", process / "exe"]
        for folder in ("fd", "map_files"):
            with contextlib.suppress(OSError):
                links += list((process / folder).iterdir())
        if int(process.name) != os.getpid() and any(uses(_target(link)) for link in links):
            with contextlib.suppress(OSError):
                found.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return found


def _target(link: Path) -> str:
    # Not stat: that would wait for the servers of other people's network filesystems.
    with contextlib.suppress(OSError):
        return str(link.readlink())
    return ""


def _mountinfo() -> Iterator[tuple[str, str, str]]:
    """Yield the device number, the mount point and the source of each mount."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, number, _, where = fields.split(" ")[:5]
        yield number, _plain(where), _plain(rest.split(" ")[1])


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def by_number(kind: str) -> list[Path]:
    """Return the nodes in sysfs of all devices of a kind, in the order of their numbers."""
    return sorted(SYSFS.glob(f"{kind}[0-9]*"), key=lambda path: int(path.name.removeprefix(kind)))
