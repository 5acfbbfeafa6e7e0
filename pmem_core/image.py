# SPDX-License-Identifier: MIT
"""The files of an image: found, looked at and made.  mapping.py maps them, and host.Lock locks them.

``NAME.pmem/`` holds `media` (just what the DIMM would hold), `wear` (uint32 a line), `state` (layout.py), `journal/`
(LMDB) and `lock`.  The files are sparse where the device was never touched.
"""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import bringup, geometry, infoblock, layout
from .binding import bind
from .errors import DamagedImage, HostError, HostFull, NotAnImage, UnsupportedImage, UsageError
from .geometry import Geometry
from .host import KEEP_SIZE, LOCK_BYTES, fallocate, host_errors, os_error, sync_folder
from .infoblock import Info
from .journal import Journal
from .mapping import map_image
from .statefile import fresh_core, section_rows, table_chunks, write_state

PARTS = ("media", "wear", "state", "journal")
FILES_BESIDE_MEDIA = ("wear", "state", "lock", "journal/data.mdb", "journal/lock.mdb", "conversion")
JOURNAL_ROOM = 1 << 20


def find(path: Path) -> Path:
    """The folder of the image at `path`; NotAnImage says what is missing, DamagedImage which part is no file."""
    with host_errors(path):
        if not path.exists():
            raise NotAnImage(path, "does not exist", "an image made by 'pmem-nbd create'")
        if not path.is_dir():
            raise NotAnImage(path, "is a file", "the folder that 'pmem-nbd create' made")
        if not (path / "media").is_file():
            raise NotAnImage(path, "holds no file 'media'", "the folder that 'pmem-nbd create' made")
        for part in (path / name for name in FILES_BESIDE_MEDIA):
            if part.exists() and not part.is_file():  # to open a pipe may wait for ever
                raise DamagedImage(part, "is no regular file", "one of the image's own")
    return path


def read_info(path: Path, *, read_only: bool, converting: bool = False) -> Info:
    """The newest info block of the image at `path`; see infoblock.read."""
    media = find(path) / "media"
    with host_errors(media):
        return infoblock.read(media, read_only=read_only, converting=converting)


def load_geometry(path: Path, *, read_only: bool = True, converting: bool = False) -> Geometry:
    """The geometry of the image at `path`, from its info block and checked against the files' sizes.

    converting: also where a conversion is under way, and then as it was before.
    """
    info, media = read_info(path, read_only=read_only, converting=converting), path / "media"
    with host_errors(media):
        found = media.stat().st_size
    if found < info.size:
        raise DamagedImage(media, f"truncated to {found} bytes", f"{info.size} bytes")
    try:
        return geometry.derive(info)
    except (UnsupportedImage, UsageError) as error:
        raise UnsupportedImage(media, f"info block: {error.subject}: {error.what}", error.expected) from None


def reload_geometry(path: Path, known: Geometry, *, read_only: bool = True, converting: bool = False) -> Geometry:
    """`known`, as load_geometry has had it before, or the geometry from now on where a conversion has changed it."""
    info = read_info(path, read_only=read_only, converting=converting)
    return known if info == known.info else load_geometry(path, read_only=read_only, converting=converting)


# ---- creation ----


def create(path: Path, plan: Geometry) -> None:
    """Make the image planned in `plan` at `path`, which must not exist.  It appears whole or not at all.

    Errors: UsageError (the path exists), HostFull, HostError.
    """
    require_new(path)
    with host_errors(path), work_folder(path, "creating") as work:
        try:
            fill(work, plan)
        except HostFull as error:
            raise HostFull(path, error.what, error.expected) from None  # nobody knows the folder it is made in
        put_in_place(work, path)


def require_new(path: Path) -> None:
    """UsageError where there is something at `path`, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise UsageError(path, "exists already", "a new name, or remove it first")


def put_in_place(work: Path, path: Path) -> None:
    """Let the image that was made in `work` appear at `path`.  UsageError, OSError."""
    require_new(path)  # another may have made it meanwhile
    work.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def work_folder(path: Path, doing: str) -> Iterator[Path]:
    """Make the folder that `path` is made in, of this process alone, and remove it if it is still there at the end.

    What a kill left of an earlier try is removed.

    doing: how its name ends, so that no image of somebody's is taken for one.  HostError, OSError.
    """
    if not path.parent.is_dir():
        raise HostError(path.parent, "no such folder", "a folder to make the image in")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.{doing}"):
        pid = left.name.removeprefix(f".{path.name}.").removesuffix(f".{doing}")
        # One that has our own number is of a process before us.
        if pid.isdecimal() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            shutil.rmtree(left, ignore_errors=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.{doing}")
    try:  # before it is there: an interrupt may come between
        work.mkdir(mode=0o700)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def fill(work: Path, plan: Geometry) -> None:
    """Make the image planned in `plan` of the empty folder `work`, durably.  HostFull, OSError."""
    info = plan.info
    for name, size in (("media", info.size), ("wear", 4 * plan.line_count)):
        with (work / name).open("xb") as file:
            os.truncate(file.fileno(), size)
    infoblock.write(work / "media", info)
    # With room for who holds it: an image must open also where the disk is full, or is to be read only.
    (work / "lock").write_bytes(b" " * LOCK_BYTES)
    lines = np.zeros(layout.FRAMES_AT // info.line_bytes, "<u4")
    lines += np.uint32(1)
    with (work / "wear").open("r+b") as file:
        file.write(lines.tobytes())
    core = fresh_core(plan)
    core["tally"]["worn"][0][layout.CAUSE_INFO] = len(lines)
    core["tally"]["hottest"] = 1
    write_state(work / "state", plan, core, plan.table, np.zeros(plan.section_count, np.uint8))
    if info.initialise == "buddy":
        core = _cover(work, plan)
    (work / "journal").mkdir()
    journal = Journal(work / "journal", create=True)
    try:
        journal.initialise(info.uuid)
        event = {"event": "created", "size": info.size, "placement": info.placement, "leveling": info.leveling}
        rows = dict(section_rows(np.zeros(plan.section_count, np.uint8)))
        journal.checkpoint(core.tobytes(), dict(table_chunks(plan.table)), rows, event=event)
    finally:
        journal.close()
    with (work / "journal" / "data.mdb").open("r+b") as file:
        # A checkpoint must find room also when the host is full.
        fallocate(file.fileno(), KEEP_SIZE, 0, JOURNAL_ROOM)
    for name in ("media", "wear", "state"):
        with (work / name).open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(work / "journal")
    sync_folder(work)


def _cover(work: Path, plan: Geometry) -> np.ndarray:
    """Store the heads of the groups that cover a new device; the core record from then on."""
    mapping = map_image(work, plan, read_only=False)
    try:
        code = int(bringup.cover(bind(mapping.run, mapping.core, plan), 0, plan.info.page_count))
        if code:
            raise os_error(code >> layout.ERRNO_SHIFT)
        return mapping.core.copy()
    finally:
        mapping.close()


def require_parts(path: Path) -> None:
    """DamagedImage where a file of the image is missing; each can be named and some rebuilt by check --repair."""
    for name in PARTS:
        if not (path / name).exists():
            raise DamagedImage(path, f"its part '{name}' is missing", "'pmem-nbd check --repair' may rebuild it")


def require_wear(path: Path, plan: Geometry) -> None:
    """DamagedImage where the wear file is too short to be mapped."""
    wanted, found = 4 * plan.line_count, (path / "wear").stat().st_size
    if found < wanted:
        raise DamagedImage(path / "wear", f"truncated to {found} bytes", f"{wanted} bytes")
