# SPDX-License-Identifier: MIT
"""The private directory of a user's running servers and attachments: its records, its locks, and who is still alive.

A record is one JSON file, written whole or not at all.  A process is named by its number *and* its birth, because the
number alone is given to somebody else sooner or later.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pmem_core.errors import HostError, MissingProgram
from pmem_core.host import boot, host_errors


def directory() -> Path:
    """Return the runtime directory of this user, made if need be, readable by no one else.

    $PMEM_NBD_RUNTIME_DIR comes first; then /run/pmem-nbd for root, $XDG_RUNTIME_DIR/pmem-nbd for others, and
    /tmp/pmem-nbd-UID where there is none.  Raises HostError where somebody else owns it.
    """
    path = _directory_path()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise HostError(path, (error.strerror or "cannot be made").lower(), "a directory for sockets") from error
    # In /tmp anybody may have made it first, and would then hold our sockets.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise HostError(path, "is not a directory of this user", "remove it, or set PMEM_NBD_RUNTIME_DIR")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def _directory_path() -> Path:
    if chosen := os.environ.get("PMEM_NBD_RUNTIME_DIR"):
        return Path(chosen).absolute()
    # Root's XDG_RUNTIME_DIR comes and goes with sudo and login; its registry must be one and the same.
    if os.geteuid() == 0:
        return Path("/run/pmem-nbd")
    shared = os.environ.get("XDG_RUNTIME_DIR", "")
    if shared and os.access(shared, os.W_OK):
        return Path(shared) / "pmem-nbd"
    return Path(f"/tmp/pmem-nbd-{os.geteuid()}")


def key(name: str) -> str:
    """Return a short file name for the image at ``name`` (or for a URI); the same however the path was spelled."""
    full = name if "://" in name else os.path.realpath(name)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", Path(full).name.removesuffix(".pmem"))[:24]
    return f"{stem}-{hashlib.sha256(os.fsencode(full)).hexdigest()[:10]}"


def birth(pid: int) -> str:
    """Say when process ``pid`` was born, as ``boot id/clock ticks``; "" where it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    # A killed process waits to be reaped while its threads still end, and till then its files are open.
    if len(fields) < 20 or (fields[0] in (b"Z", b"X") and int(fields[17]) <= 1):
        return ""
    return f"{boot()}/{fields[19].decode()}"


def alive(pid: int, born: str) -> bool:
    """Whether process ``pid`` is still the one that was born at ``born``."""
    return bool(born) and birth(pid) == born


def has_open(pid: int, path: Path) -> bool:
    """Whether process ``pid`` has the file at ``path`` open, under whatever name."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), wanted):
                    return True
    return False


GONE = " (deleted)"  # what /proc puts behind the name of an open file that was removed


def image_now(pid: int, image: str) -> str:
    """Return where the image is by now that was at ``image`` when process ``pid`` began to serve it; GONE behind it.

    Where the process has no medium open yet that is ``image``.
    """
    if has_open(pid, Path(image) / "media"):
        return image
    links: list[str] = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(str(link.readlink()))
    moved = [Path(link) for link in links if link.endswith("/media")]
    found = [str(path.parent) for path in moved if has_open(pid, path)]
    found += [link.removesuffix(f"/media{GONE}") + GONE for link in links if link.endswith(f"/media{GONE}")]
    return found[0] if found else image


def is_at(image: str, path: str) -> bool:
    """Whether ``image``, as image_now tells it, is meant by ``path``: one gone only where no new one is there."""
    return image == path or (image == path + GONE and not Path(path).exists())


def free_name(image: str, suffix: str) -> str:
    """Return a name for a record of ``image``: its key, with a number where one that was moved away has that."""
    first = key(image)
    names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (directory() / f"{name}{suffix}").exists())


def write_record(name: str, record: dict[str, Any]) -> None:
    """Write a record durably enough for readers: they see the old one or the new one."""
    folder = directory()
    with host_errors(folder):
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".record-")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(record, file, indent=2)
            Path(temporary).replace(folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_record(name: str) -> dict[str, Any] | None:
    """Return a record, or None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((directory() / name).read_text())
        return record if isinstance(record, dict) else None
    return None


def read_records(suffix: str) -> list[dict[str, Any]]:
    """Return the records whose file names end in ``suffix``."""
    found = [read_record(path.name) for path in sorted(directory().glob(f"*{suffix}"))]
    return [record for record in found if record is not None]


def remove(*names: str) -> None:
    """Remove files of the runtime directory; those that are gone already are no matter."""
    for name in names:
        (directory() / name).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock ``name`` against other processes of this user; waits for it as long as it takes."""
    path = directory() / f"{name}.lock"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Its last holder may have removed the file while we waited: then we hold the lock of nothing.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(handle).st_ino:
                    break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def program(name: str, package: str) -> str:
    """Return the path of a program, also one in sbin, which is not on everybody's PATH.  Raises MissingProgram."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if not found:
        raise MissingProgram(name, "is not installed", f"the package {package}")
    return found
