# SPDX-License-Identifier: MIT
"""A filesystem on a loop device that can lose its power, for a process that has nothing else to do.

`private_mounts` gives the process mounts of its own, and the loop device lets go of its file with the last that uses
it: when the process and its children are gone, however they went, nothing is left.  Nor does another test's mount
namespace hold what was shut down here.

A shutdown makes the filesystem forget what it has not written: dirty pages of mapped files, and of its log what was
not flushed, or nothing (`flush_log`).  What it has written is in the loop device, whose cache is not lost.
"""

import ctypes
import errno
import fcntl
import os
import random
import signal
import struct
import subprocess
import tempfile
from pathlib import Path

import psutil

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x00020000, 0x4000, 0x40000, 2
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
_LOOP_CONFIG = struct.Struct("<II 52x I 240x")  # linux/loop.h: fd, block size, flags
_SHUTDOWN, _LOGFLUSH, _NOLOGFLUSH = 0x8004587D, 1, 2  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same
_PR_SET_PDEATHSIG = 1
_WRITE_AND_WAIT = 1 | 2 | 4  # sync_file_range(2)
_HOST_PAGE = 4096

MIB = 1 << 20
KINDS = {"ext4": 192 * MIB, "xfs": 320 * MIB}  # xfs takes 300 at least


def _checked(result: int, what: object) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(what))


def private_mounts() -> None:
    """From now on, what this process mounts is seen by it and its children only, and ends with them.

    What other tests have mounted at this moment it lets go of: else they would unmount, and nothing would go.
    """
    _checked(_LIBC.unshare(_CLONE_NEWNS), "unshare")
    _checked(_LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "/")
    for mount in reversed(psutil.disk_partitions(all=True)):
        where = Path(mount.mountpoint)
        if Path(tempfile.gettempdir()) in where.parents and where not in (Path.cwd(), *Path.cwd().parents):
            _LIBC.umount2(os.fsencode(where), _MNT_DETACH)  # one that is gone by now is no matter


def end_with_parent() -> None:
    """For a child: be killed when the parent ends."""
    _checked(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _loop_on(file: int) -> tuple[str, int]:
    """Put an unused loop device on the open file; its path, and a descriptor that holds it.

    losetup cannot ask for one that lets go with its last user: it would have to be told after, and a process that
    is killed in between leaves the device behind.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(file, 0, _LO_FLAGS_AUTOCLEAR))
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # somebody else found it too, and was first
                    raise
            else:
                return device, loop
    finally:
        os.close(control)


class Host:
    """A filesystem of this kind, mounted at folder/host; call it in private mounts.

    Its bytes lie in memory, and the kernel calls them power- and the process's number.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.cuts, self._mounted = kind, folder / "host", 0, False
        self.folder.mkdir()
        disk = os.memfd_create(f"power-{os.getpid()}")
        try:
            os.truncate(disk, KINDS[kind])
            made = [f"mkfs.{kind}", "-q", f"/proc/self/fd/{disk}"]
            subprocess.run(made, check=True, capture_output=True, pass_fds=[disk])
            self._device, self._loop = _loop_on(disk)
        finally:
            os.close(disk)  # the loop device keeps it
        self._mount()

    def _mount(self) -> None:
        source, target = self._device.encode(), os.fsencode(self.folder)
        _checked(_LIBC.mount(source, target, self.kind.encode(), 0, None), self._device)
        self._mounted = True

    def _unmount(self) -> None:
        _checked(_LIBC.umount2(os.fsencode(self.folder), 0), self.folder)
        self._mounted = False

    def cut(self, *, flush_log: bool = False) -> None:
        """The power is gone."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _LOGFLUSH if flush_log else _NOLOGFLUSH))
        finally:
            os.close(folder)

    def restart(self) -> None:
        """Unmount and mount again; nobody may have a file open."""
        self._unmount()
        self._mount()
        self.cuts += 1

    def close(self) -> None:
        """Unmount, and let go of the loop device."""
        if self._mounted:
            self._unmount()
        os.close(self._loop)
        self.folder.rmdir()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_back(path: Path, chance: random.Random) -> None:
    """Let some pages of an image's files reach the disk, as the kernel does at its leisure; it promises nothing."""
    for name in ("media", "wear", "state", "journal/data.mdb"):
        fd = os.open(path / name, os.O_RDWR)
        try:
            at, pages = 0, os.fstat(fd).st_size // _HOST_PAGE
            while (at := at + chance.randrange(64)) < pages:
                count = chance.randrange(1, 64)
                first, size = ctypes.c_int64(at * _HOST_PAGE), ctypes.c_int64(count * _HOST_PAGE)
                if _LIBC.sync_file_range(fd, first, size, _WRITE_AND_WAIT):
                    return  # the power was cut meanwhile
                at += count
        finally:
            os.close(fd)
