# SPDX-License-Identifier: MIT
"""What an image is and was when last seen, from outside: a served image is not locked, and nothing is written."""

import contextlib
import dataclasses
import fcntl
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import host, image, layout, statefile, wearscan
from .errors import DamagedImage, HostError, PmemError
from .geometry import Geometry
from .journal import Journal

SNAPSHOTS_MAX = 16
META_BYTES = 8192  # the two pages at the start of LMDB's file; one of them is written last in each transaction
FRAMES_MAX = 1 << 24  # frames whose map is checked; of a larger device a sample
WINDOW_FRAMES = 1 << 14
WINDOWS = 64
Told = TypeVar("Told")


# ---- the state, as of one moment ----


@dataclasses.dataclass
class Look:
    """What is known of an image besides its wear counters.

    session: served, closed, killed, power cut or unknown; damaged: how many rows of events and retired pages are, which
    are left out.
    """

    plan: Geometry
    core: np.ndarray
    table: np.ndarray
    session: str
    holder: dict[str, Any]
    cut: bool = False
    retired: int | None = None
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    damaged: int = 0

    @property
    def tally(self) -> Any:
        """The device's totals."""
        return self.core["tally"][0]

    @functools.cached_property
    def free_frames(self) -> np.ndarray:
        """Medium frames that no placed frame is mapped to, int64[], ascending.

        They are the leveling's own and those behind its last region.
        """
        plan = self.plan
        own = np.asarray(plan.leveling.spare_frames(plan.leveling_state, self.table), np.int64)
        rest = np.arange(plan.placed_frames + len(own), plan.medium_frames, dtype=np.int64)
        # A large device has millions: they are copied only where they are not ours to sort.
        ours = not len(rest) and not np.may_share_memory(own, self.table)
        free = own if ours else np.concatenate([own, rest])
        free.sort(kind="stable")  # quick where they are in order but for a gap that goes round
        return free

    def handle(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `device` of wearscan, on the copied table."""
        run = np.zeros(1, layout.RUN)
        run["table"], run["table_words"] = self.table.ctypes.data, len(self.table)
        run["durable"] = run["ticks"] = self.table.ctypes.data
        for name, value in self.plan.for_compiled_code().items():
            run[name] = value
        return run, self.plan.placement_state.reshape(1).copy(), self.plan.leveling_state.reshape(1).copy()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield None and keep writers out, or, where there is one, what it says of itself."""
    fd = os.open(path / "media", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield host.writer_of(path)
            return
        yield None
    finally:
        os.close(fd)


def _read_core(fd: int, plan: Geometry) -> np.ndarray:
    dtype = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    return np.frombuffer(os.pread(fd, dtype.itemsize, plan.zones()["core"][0]), dtype).copy()


def _snapshot(fd: int, plan: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Core and table with no move in between, unless the server moves frames faster than we can copy."""
    at, size = plan.zones()["table"]
    core, held = _read_core(fd, plan), b""
    for _ in range(SNAPSHOTS_MAX):
        before, held = held, os.pread(fd, size, at)
        again = _read_core(fd, plan)
        # Twice the same: a move that switches several words was not read half done.
        same = before == held and core["tally"]["moves"][0] == again["tally"]["moves"][0]
        core = again
        if same:
            break
    table = np.frombuffer(held, np.int64)[: len(plan.table)].copy()
    if plan.leveling.table_is_sane(plan.leveling_state, table):
        plan.finish_moves(table)
    return core, table


def look(path: Path) -> Look:
    """Read what an image is and what its last session left, without disturbing a server.

    Errors: NotAnImage, DamagedImage, UnsupportedImage, HostError.
    """
    plan, looks = image.load_geometry(path), 0
    image.require_parts(path)
    while True:
        found = _look(path, plan)
        # A conversion that ended meanwhile has made other files; and what is served is not locked.
        plan = image.reload_geometry(path, found.plan)
        if plan is not found.plan:
            continue
        wrong, looks = plan.find_impossible(found.core, found.table), looks + 1
        if not wrong:
            return found
        # Of a server that moves frames all the time it may be half of a move.
        if found.session != "served" or looks == SNAPSHOTS_MAX:
            raise DamagedImage(path / "state", f"an impossible value in {wrong}", "'pmem-nbd check --repair'")


def _look(path: Path, plan: Geometry) -> Look:
    with host.host_errors(path), _reading(path) as holder:
        whole = statefile.state_is_whole(path / "state", plan)
        with (path / "state").open("rb") as file:
            core, table = _snapshot(file.fileno(), plan) if whole else (statefile.fresh_core(plan), plan.table)
        found = Look(plan, core, table, "served" if holder is not None else "unknown", holder or {})
        if holder is None:
            # A journal that cannot be read costs the history of the image, not its wear.
            with contextlib.suppress(PmemError):
                _read_journal(path, found, whole)
    return found


def _read_journal(path: Path, found: Look, whole: bool) -> None:
    """Only where nobody serves the image: a second LMDB environment would take part in the server's locks."""
    journal = Journal(path / "journal", read_only=True)
    try:
        session = journal.session
        found.session = "closed"
        if session["open"]:
            found.session = "killed" if host.cache_was_kept(path, session) else "power cut"
        if not whole:
            found.session = "power cut"  # the journal has all that can be told
        if found.session == "power cut":
            # The mapped state may be any mix of old and new pages; the device recovers from the checkpoint as well.
            core, table = journal.load_checkpoint()
            found.core = np.frombuffer(core, found.core.dtype).copy()
            found.table = np.frombuffer(table, np.int64)[: len(found.table)].copy()
        found.events, found.retired, found.damaged = _past(journal)
        cuts = [event for event in found.events if event.get("how") == "power cut"]
        # What is damaged may have told of one.
        found.cut = bool(cuts or found.damaged) or found.session == "power cut"
    finally:
        journal.close()


def _copy_of_journal(file: Path) -> bytes:
    """LMDB's file as of one moment: it never writes to a page that its last transaction needs."""
    with host.host_errors(file), file.open("rb", buffering=0) as opened:
        for _ in range(SNAPSHOTS_MAX):
            before = os.pread(opened.fileno(), META_BYTES, 0)
            copy = file.read_bytes()
            if before == copy[:META_BYTES] == os.pread(opened.fileno(), META_BYTES, 0):
                return copy
    raise HostError(file, "changes faster than it can be copied", "a pause in the server's work")


def history(path: Path) -> list[dict[str, Any]]:
    """The journal's samples of the wear totals, oldest first, of a served image too; see Journal.history.

    Those that are damaged are left out.  Errors: DamagedImage, UnsupportedImage, HostError.
    """
    return _of_copy(path, lambda journal: journal.history([]))


def read_past(path: Path, found: Look) -> None:
    """Fill in events and retired pages of an image that is served; errors as above."""
    found.events, found.retired, found.damaged = _of_copy(path, _past)


def _past(journal: Journal) -> tuple[list[dict[str, Any]], int, int]:
    damaged: list[bytes] = []
    return journal.events(damaged), len(journal.retired(damaged)), len(damaged)


def _of_copy(path: Path, told: Callable[[Journal], Told]) -> Told:
    """What `told` reads in a copy of the journal: a second LMDB environment would take part in the server's locks."""
    folder = path / "journal"
    copy = _copy_of_journal(folder / "data.mdb")
    with tempfile.TemporaryDirectory(prefix="pmem-nbd-") as name:
        work = Path(name)
        with host.host_errors(work):
            (work / "data.mdb").write_bytes(copy)
        try:
            journal = Journal(work, read_only=True)
            try:
                return told(journal)
            finally:
                journal.close()
        except PmemError as error:
            raise type(error)(folder, error.what, error.expected) from None


def core_now(path: Path, found: Look) -> np.ndarray:
    """The core record as it is by now; that of `found` where the state file is not to be believed."""
    if found.session in ("power cut", "unknown"):
        return found.core
    with host.host_errors(path / "state"), (path / "state").open("rb") as file:
        return _read_core(file.fileno(), found.plan)


def describe(path: Path, found: Look) -> dict[str, Any]:
    """What the image is, ready for JSON: sizes in bytes, policies by name."""
    info = found.plan.info
    return {
        "path": str(path),
        "uuid": info.uuid,
        "created": info.created,
        "size": info.size,
        "device_bytes": found.plan.device_bytes,
        "page_count": info.page_count,
        "data_at": info.data_at,
        "placement": info.placement,
        "leveling": info.leveling,
        "parameters": info.parameters,
        "descriptors": found.plan.descriptors,
        "descriptor_bytes": info.descriptor_bytes if found.plan.descriptors else 0,
        "descriptor_format": info.descriptor_format if found.plan.descriptors else 0,
        "descriptor_writes": info.descriptor_writes if found.plan.has_descriptors else None,
        "checksums": info.checksums and bool(found.plan.descriptors),
        "initialise": info.initialise if found.plan.has_descriptors else None,
        "frame_bytes": info.frame_bytes,
        "line_bytes": info.line_bytes,
        "section_pages": info.section_pages,
        "linux": info.linux,
    }


def memory(found: Look) -> dict[str, int | None]:
    """What the descriptors that are kept in memory take, ready for JSON.

    bytes: of memory at most, 0 where none are kept; resident_bytes: now, in the server; None where that is not known.
    """
    pid, most = found.holder.get("pid"), found.plan.kept_bytes
    return {"bytes": most, "resident_bytes": host.resident_bytes(pid, most) if most and pid else None}


def check_map(found: Look) -> tuple[bool, bool, int]:
    """Is the leveling's map one-to-one, does it avoid the spare frames, and of how many frames is that known."""
    plan, device, free = found.plan, found.handle(), found.free_frames
    if plan.placed_frames <= FRAMES_MAX:
        hit, wrong = np.zeros(plan.medium_frames, np.uint8), np.zeros(3, np.int64)
        hit[free] = wearscan.HIT_SPARE
        once = np.count_nonzero(hit) == len(free)
        wearscan.check_frames(device, 0, plan.placed_frames, hit, wrong)
        one_to_one = not wrong[wearscan.TWICE] and not wrong[wearscan.OUTSIDE]
        return one_to_one, once and not wrong[wearscan.IN_SPARE], plan.placed_frames
    # Whole windows, aligned, so that regions of a power of two are checked from end to end.
    last = plan.placed_frames // WINDOW_FRAMES - 1
    starts = np.unique(np.linspace(0, last, WINDOWS).astype(np.int64)) * WINDOW_FRAMES
    frames = np.zeros((len(starts), WINDOW_FRAMES), np.int64)
    for start, window in zip(starts.tolist(), frames, strict=True):
        wearscan.translate_frames(device, start, window)
    # Nearly in order: quick for this kind of sort.
    used, wrong = np.sort(frames, axis=None, kind="stable"), np.zeros(3, np.int64)
    wearscan.compare_frames(used, free, wrong)
    one_to_one = not wrong[wearscan.TWICE] and bool(used[0] >= 0 and used[-1] < plan.medium_frames)
    return one_to_one, not wrong[wearscan.IN_SPARE], frames.size
