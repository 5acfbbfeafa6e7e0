# SPDX-License-Identifier: MIT
# long: all that is asked of the host's kernel and filesystem beyond files is asked here, and nowhere else
"""What an image asks of the host: room, durability, a lock, and whether its page cache was lost."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import HostError, HostFull, ImageBusy, UsageError

_LIBC = ctypes.CDLL(None, use_errno=True)
_STATX_MNT_ID, _STATX_MNT_ID_UNIQUE = 0x1000, 0x4000
_HOST_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def host_errors(path: Path) -> Iterator[None]:
    """Turn OSError into HostFull or HostError, naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostFull(path, "no room left on the host", "free space, or another filesystem") from error
        if error.errno == errno.EFBIG:
            raise HostError(path, "larger than the host's filesystem allows", "a smaller size, or xfs") from error
        raise HostError(path, (error.strerror or str(error)).lower(), "") from error


def require_outside_images(path: Path, *, itself: bool = False) -> None:
    """UsageError where `path`, which is to be written, lies in the folder of an image; itself: or is one."""
    real = Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError where links go round
    with host_errors(path):
        for folder in (real, *real.parents) if itself else real.parents:
            # A folder may have a file of that name without being an image.
            if (folder / "media").is_file() and any((folder / part).exists() for part in ("wear", "state", "journal")):
                raise UsageError(path, f"lies within the image {folder}", "a path outside of it")


def require_parent(path: Path) -> None:
    """HostError where the folder of `path`, which is to be made, is not there."""
    if not path.parent.is_dir():
        raise HostError(path, "cannot be made: there is no such directory", "a path whose parent exists")


def require_new(path: Path, what: str) -> None:
    """Raise unless a new file can be made at `path`, outside of images, for `what`; HostError, UsageError."""
    if os.path.lexists(path):
        raise HostError(path, "exists already", f"a new file: {what} holds one run of a server")
    require_parent(path)
    require_outside_images(path)


def machine() -> dict[str, str]:
    """What figures depend on and a reader elsewhere wants to know: processor, caches, memory, kernel, Python."""
    cpus = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpus = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    caches = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            caches += [f"L{level} {size}"] if kind != "Instruction" else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cpu": f"{len(cpus)} × {cpus[0]}" if cpus else platform.machine(),
        "caches": ", ".join(caches) or "unknown",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def os_error(number: int) -> OSError:
    """The error with this errno, to be raised."""
    return OSError(number, os.strerror(number))


def last_error() -> OSError:
    """What the C library's last call said was wrong, to be raised."""
    return os_error(ctypes.get_errno())


KEEP_SIZE = 1
PUNCH_HOLE = 2 | KEEP_SIZE


def fallocate(fd: int, mode: int, offset: int, count: int) -> None:
    """fallocate(2) with a mode, which os.posix_fallocate does not take; OSError."""
    if _LIBC.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(count)):
        raise last_error()


_FICLONE = 0x40049409


def clone(source: int, target: int) -> None:
    """Let the file `target` share all blocks of `source`, where the filesystem can; OSError (ioctl_ficlone(2))."""
    fcntl.ioctl(target, _FICLONE, source)


def next_data(fd: int, size: int, at: int = 0) -> int:
    """The first byte from `at` on that lies in no hole of the file; `size` where that is not before it."""
    try:
        return min(os.lseek(fd, at, os.SEEK_DATA), size) if at < size else size
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # nothing but a hole from here on
        raise


def data_ranges(fd: int, size: int, at: int = 0) -> Iterator[tuple[int, int]]:
    """First byte and end of each part of the file between `at` and `size` that is no hole."""
    while (at := next_data(fd, size, at)) < size:
        end = min(os.lseek(fd, at, os.SEEK_HOLE), size)
        yield at, end
        at = end


_TMPFS, _EXT4, _XFS = 0x01021994, 0xEF53, 0x58465342


def _filesystem(fd: int) -> int:
    """The magic number of the filesystem that the file lies in (statfs(2)); 0 where it cannot be known."""
    buffer = ctypes.create_string_buffer(256)
    return int.from_bytes(buffer.raw[0:8], sys.byteorder) if _LIBC.fstatfs64(fd, buffer) == 0 else 0


def is_tmpfs(fd: int) -> bool:
    """True where the file lies in tmpfs."""
    return _filesystem(fd) == _TMPFS


def whole_pages(count: int) -> int:
    """`count` bytes, rounded up to whole pages of this machine."""
    return -(-count // _HOST_PAGE_BYTES) * _HOST_PAGE_BYTES


def resident_bytes(pid: int | str, count: int) -> int | None:
    """How much memory the process uses of a map of `count` bytes that is as mapping.keep_descriptors makes it.

    proc(5), smaps.  None where there is none, or where this process may not look.
    """
    size, resident = 0, 0
    with contextlib.suppress(OSError, ValueError), Path(f"/proc/{pid}/smaps").open() as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "Size":
                size = 1024 * int(value.split()[0])
            elif name == "Rss":
                resident = 1024 * int(value.split()[0])
            elif name == "VmFlags" and size == whole_pages(count) and {"nr", "dd", "nh", "rr"} <= set(value.split()):
                return resident
    return None


_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE, _SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4
_MS_SYNC = 4


def can_sync_ranges(fd: int) -> bool:
    """True where `sync_ranges` is enough for the file's filesystem."""
    return _filesystem(fd) in (_TMPFS, _EXT4, _XFS)


def sync_ranges(fd: int, address: int, ranges: list[tuple[int, int]]) -> None:
    """Make parts of a file durable, each a first byte and an end, and no more of it; OSError.

    address: where the file is mapped, whole.  The parts are written and waited for; then msync(2) of one page commits
    what the filesystem's log holds of this file and empties the disk's cache, for all of them.  That is so in ext4 and
    xfs, which write in place and log by file (ext4_sync_file, xfs_file_fsync), and not everywhere: can_sync_ranges.
    """

    def checked(result: int) -> None:
        if result:
            raise last_error()

    write = _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE
    for how in (write, _SYNC_FILE_RANGE_WAIT_AFTER):
        for first, end in ranges:
            checked(_LIBC.sync_file_range(fd, ctypes.c_int64(first), ctypes.c_int64(end - first), how))
    at = address + ranges[0][0] // _HOST_PAGE_BYTES * _HOST_PAGE_BYTES
    checked(_LIBC.msync(ctypes.c_void_p(at), ctypes.c_size_t(_HOST_PAGE_BYTES), _MS_SYNC))


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


LOCK_BYTES = 512  # of who writes an image, in JSON, and spaces


class Lock:
    """An flock on the file `media`, which every image has: exclusive for a writer, shared for readers.

    The file `lock` has no part in that: a writer says there who it is, and ImageBusy tells it.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
        with host_errors(path / "media"):
            # For writing, because over NFS an exclusive lock is granted for that only.
            self._fd = os.open(path / "media", (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            self._take(fcntl.LOCK_SH if read_only else fcntl.LOCK_EX)
            if not read_only:
                self._sign()
        except OSError as error:
            os.close(self._fd)
            if error.errno != errno.EWOULDBLOCK:
                raise HostError(path / "media", str(error.strerror).lower(), "a filesystem with locks") from error
            raise ImageBusy(path, *self._holder()) from None
        except BaseException:
            os.close(self._fd)
            raise

    def _sign(self) -> None:
        with host_errors(self._path / "lock"):
            fd = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        who = {"pid": os.getpid(), "program": Path(sys.argv[0] or "nbdkit").name, "since": int(time.time())}
        # For people only: on a full disk, where a copied image has no block of its own for it, it is not written.
        with contextlib.suppress(OSError):
            os.pwrite(fd, json.dumps(who).encode().ljust(LOCK_BYTES), 0)
        os.close(fd)

    def _take(self, how: int) -> None:
        """flock, waiting half a second: `info` and `stats` hold a shared lock for milliseconds."""
        for _ in range(10):
            try:
                return fcntl.flock(self._fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
        fcntl.flock(self._fd, how | fcntl.LOCK_NB)

    def _holder(self) -> tuple[str, str]:
        """Who has it open, and what is to be done about that."""
        try:
            process = Path(f"/proc/{writer_of(self._path)['pid']}")
            name, owner = (process / "comm").read_text().strip(), process.stat().st_uid
        except (ValueError, OSError, KeyError, TypeError):
            return "in use by another process", "stop it first, or 'pmem-nbd list' to see it"
        said = f"in use by pid {process.name} ({name})"
        if owner != os.geteuid():
            return f"{said}, another user's", "that user has to stop it"
        return said, "stop it first, or 'pmem-nbd list' to see it"

    def release(self) -> None:
        """Give the lock up."""
        os.close(self._fd)


def writer_of(path: Path) -> dict[str, Any]:
    """What the last writer of the image at `path` said of itself; {} where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return dict(json.loads(os.pread(fd, 4096, 0)))
        finally:
            os.close(fd)
    return {}


_F_GET_RW_HINT, _F_SET_RW_HINT, _MARK, _FAILED = 1035, 1036, 5, 2
_MARKED = ("media", "wear", "state")


def mark_cache(files: dict[str, int]) -> None:
    """Leave a mark on the inodes in memory: a write-lifetime hint (fcntl(2)), which nothing writes to the disk.

    An inode with dirty pages is not evicted.  So a mark that is still there says that no dirty page was lost, also
    where the mount cannot be compared: each mount namespace has mount ids of its own.
    """
    for name in _MARKED:
        _mark(files[name], _MARK)


def mark_failed_sync(files: dict[str, int]) -> None:
    """Leave another mark on the medium's inode: a sync failed, so pages that look clean are not on the disk."""
    _mark(files["media"], _FAILED)


def _mark(fd: int, mark: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SET_RW_HINT, mark.to_bytes(8, sys.byteorder))


def _mark_of(path: Path) -> int:
    try:
        with path.open("rb") as file:
            hint = fcntl.fcntl(file.fileno(), _F_GET_RW_HINT, bytes(8))
    except OSError:
        return 0
    return int.from_bytes(hint, sys.byteorder)


def drop_cache(path: Path) -> None:
    """Let what the page cache has of `path`, and what is clean, be read from the disk again."""
    with host_errors(path), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_has_failed(path: Path, session: dict[str, Any]) -> bool:
    """True where a sync of the image at `path` failed in `session`, of its journal."""
    return bool(session.get("sync_failed")) or _mark_of(path / "media") == _FAILED


def cache_was_kept(path: Path, session: dict[str, Any]) -> bool:
    """True where what was written to the image at `path` since `session` was put into its journal is all there."""
    if sync_has_failed(path, session):
        return False
    now = witness(path)
    if any(session.get(key) != now[key] for key in ("boot", "device", "inode")):
        return False
    return bool(session.get("mount") == now["mount"]) or all(_mark_of(path / name) == _MARK for name in _MARKED)


def boot() -> str:
    """What is the same until the kernel starts anew."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def witness(path: Path) -> dict[str, Any]:
    """What is the same at two moments only if the page cache of the image was kept between them.

    The unique mount id needs Linux 6.8 (98d2b43081972, "add unique mount ID"); before, the reused one stands in, and a
    filesystem unmounted and mounted again within one boot may pass for one that stayed.
    """
    status = (path / "media").stat()
    buffer = ctypes.create_string_buffer(256)
    mount = 0
    for mask in (_STATX_MNT_ID_UNIQUE, _STATX_MNT_ID):
        answered = _LIBC.statx(-100, os.fsencode(path / "media"), 0, mask, buffer) == 0
        if answered and int.from_bytes(buffer.raw[0:4], sys.byteorder) & mask:
            mount = int.from_bytes(buffer.raw[0x90:0x98], sys.byteorder)
            break
    return {"boot": boot(), "mount": mount, "device": status.st_dev, "inode": status.st_ino}
