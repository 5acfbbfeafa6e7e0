# SPDX-License-Identifier: MIT
"""Files that a verb leaves: none is overwritten unless told to, and each is there as a whole or not at all."""

import os
import tempfile
from pathlib import Path

from pmem_core.errors import UsageError


def require_free(path: Path, force: bool) -> None:
    """Refuse a file that must not be written, one of an image too: UsageError, HostError."""
    from pmem_core.host import require_outside_images

    require_outside_images(path)
    if os.path.lexists(path):
        if not path.is_file():
            raise UsageError(path, "is no regular file", "a new file")
        if not force:
            raise UsageError(path, "exists already", "a new name, or --force")


def require_folder(folder: Path) -> None:
    """Refuse what is there and is no folder: UsageError."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(folder, "is no directory", "a directory, or a new name")


def require_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made: HostError."""
    from pmem_core.host import host_errors

    with host_errors(folder):
        tempfile.TemporaryFile(dir=folder).close()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that files can be made in; UsageError, HostError."""
    from pmem_core.host import host_errors

    require_folder(folder)
    with host_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder)


def write_whole(path: Path, content: bytes) -> None:
    """All of it, or what was there before; where `path` is a link, there.  HostError."""
    from pmem_core.host import host_errors

    whole = path.resolve()
    new = whole.with_name(f"{whole.name}.{os.getpid()}.new")
    with host_errors(path):
        try:
            new.write_bytes(content)
            new.replace(whole)
        finally:
            new.unlink(missing_ok=True)
