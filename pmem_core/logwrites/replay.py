# SPDX-License-Identifier: MIT
"""Apply a log to a file or a block device, up to a chosen entry.

What is wrong with the log or the target is found before the first byte is written.
"""

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from pmem_core import host
from pmem_core.errors import BadLog, HostError, UsageError

from . import record
from .reader import Entry, Log

PIECE_BYTES = 1 << 20
_ZERO_RANGE = 0x11  # with FALLOC_FL_KEEP_SIZE
_NO_SUCH_THING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENODEV)


@dataclasses.dataclass(frozen=True)
class Stop:
    """Where to stop: at whichever of these comes first, else at the end.  flags: at the next entry with one of them."""

    entry: int | None = None
    limit: int | None = None
    flags: int = 0
    mark: str | None = None

    def at(self, entry: Entry, done: int) -> bool:
        """Whether to stop behind `entry`, the `done`th."""
        marked = entry.has(record.MARK) and entry.mark == self.mark
        return entry.number == self.entry or done == self.limit or entry.has(self.flags) or marked

    def __str__(self) -> str:
        wanted = [] if self.entry is None else [f"entry {self.entry}"]
        wanted += [name for flag, name in record.FLAGS.items() if self.flags & flag]
        wanted += [] if self.mark is None else [f"mark {self.mark!r}"]
        wanted += [] if self.limit is None else [f"{self.limit} entries"]
        return " or ".join(wanted)


@dataclasses.dataclass(frozen=True)
class Span:
    """The entries to be replayed: `first` to `last`, both included, from byte `at` of the log on."""

    first: int
    last: int
    at: int
    target_bytes: int  # what they need of the target
    largest: int  # the entry that needs it


def find(log: Log, *, first: int = 0, after_mark: str | None = None, stop: Stop | None = None) -> Span:
    """Find the entries from number `first`, or from behind a mark, to where to `stop`; BadLog where there are none."""
    entries = log.entries(first)
    if after_mark is not None:
        if not any(entry.has(record.MARK) and entry.mark == after_mark for entry in entries):
            raise BadLog(log.path, f"no mark {after_mark!r}", "a mark that pmem-nbd log shows")
        first = -1
    span: Span | None = None
    needed, largest, stopped = 0, -1, False
    for done, entry in enumerate(entries, 1):
        if entry.count and entry.offset + entry.count > needed:
            needed, largest = entry.offset + entry.count, entry.number
        begun = (entry.number, entry.at) if span is None else (span.first, span.at)
        span = Span(begun[0], entry.number, begun[1], needed, largest)
        if stop is not None and stop.at(entry, done):
            stopped = True
            break
    if span is None:
        where = "behind that mark" if first < 0 else f"from number {first} on"
        raise BadLog(log.path, f"no entry {where}", f"one of {log.count} entries")
    if stop is not None and str(stop) and not stopped and stop.limit is None:
        raise BadLog(log.path, f"no {stop} from entry {span.first} on", f"an entry up to {log.count - 1}")
    return span


class Target:
    """What is replayed onto: a file, made of `device_bytes` if it is not there, or a block device not in use."""

    def __init__(self, path: Path, span: Span, log: Log) -> None:
        self.path = path
        size = max(log.device_bytes, span.target_bytes)
        with host.host_errors(path):
            made = not path.exists()
            if made and span.first > 0:
                what = f"does not exist, and entry {span.first} is not the first"
                raise HostError(path, what, "what the entries before it were replayed onto")
            if not made and path.is_block_device():
                os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))  # EBUSY where it is mounted
            # Not held exclusively: a check will want the device too.
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT * made | os.O_CLOEXEC, 0o666)
        try:
            self._require(span, log, size if made else 0)
        except BaseException:
            os.close(self.fd)
            if made:
                path.unlink()
            raise
        self._methods = [host.PUNCH_HOLE, _ZERO_RANGE]

    def _require(self, span: Span, log: Log, size: int) -> None:
        status = os.fstat(self.fd)
        kind = status.st_mode
        if os.path.samestat(status, os.fstat(log.fd)):
            raise UsageError(self.path, "is the log itself", "another file, or a block device")
        if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
            raise UsageError(self.path, "is neither a file nor a block device", "one of these")
        with host.host_errors(self.path):
            if size:
                os.ftruncate(self.fd, size)
            found = os.lseek(self.fd, 0, os.SEEK_END)
        if found < span.target_bytes:
            what = f"too small: {found} bytes"
            raise HostError(self.path, what, f"{span.target_bytes} bytes, where entry {span.largest} ends")

    def write(self, data: bytes, at: int) -> None:
        """Write `data` at byte `at`."""
        with host.host_errors(self.path):
            view = memoryview(data)
            while view:
                written = os.pwrite(self.fd, view, at)
                view, at = view[written:], at + written

    def zero(self, at: int, count: int) -> None:
        """Make a range read as zeros, with holes if the target can have them."""
        while self._methods and count:
            try:
                host.fallocate(self.fd, self._methods[0], at, count)
            except OSError as error:
                if error.errno not in _NO_SUCH_THING:
                    with host.host_errors(self.path):
                        raise
                del self._methods[0]
            else:
                return
        for start in range(at, at + count, PIECE_BYTES):
            self.write(bytes(min(PIECE_BYTES, at + count - start)), start)

    def sync(self) -> None:
        """Make all of it durable."""
        with host.host_errors(self.path):
            os.fsync(self.fd)

    def __enter__(self) -> "Target":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)


def replay(
    log: Log, span: Span, target: Target, *, discard: bool = True, without: Collection[int] = ()
) -> Iterator[Entry]:
    """Replay the entries of a span, yielding each when it is applied.

    A discard makes zeros, as `replay-log` has it; without `discard` it does nothing.  Entries `without` are left out.
    """
    for entry in log.entries(span.first, span.at):
        if entry.count and entry.number not in without:
            if not entry.has(record.DISCARD):
                _copy(log, entry, target)
            elif discard:
                target.zero(entry.offset, entry.count)
        yield entry
        if entry.number == span.last:
            return


def _copy(log: Log, entry: Entry, target: Target) -> None:
    at, shift = entry.data_at, entry.offset - entry.data_at
    for start, stop in _data_ranges(log.fd, entry):
        target.zero(at + shift, start - at)
        for piece in range(start, stop, PIECE_BYTES):
            target.write(log.read(piece, min(PIECE_BYTES, stop - piece)), piece + shift)
        at = stop
    target.zero(at + shift, entry.end - at)


def _data_ranges(fd: int, entry: Entry) -> Iterable[tuple[int, int]]:
    # A block device has no holes to tell of, and where there is little it is not worth asking.
    if entry.data_bytes < PIECE_BYTES // 16 or not stat.S_ISREG(os.fstat(fd).st_mode):
        return [(entry.data_at, entry.end)]
    return host.data_ranges(fd, entry.end, entry.data_at)


def copy_sparse(source: Path, copy: Path) -> None:
    """Make `copy` the same as the file `source`; it shares its blocks where the filesystem can.

    Always a new file: where a loop device has the old one yet, as while another mount namespace keeps it mounted,
    ``mount -o loop`` would take that device, and show what was.
    """
    with host.host_errors(copy):
        copy.unlink(missing_ok=True)
    with host.host_errors(copy), source.open("rb") as old, copy.open("xb") as new:
        size = os.fstat(old.fileno()).st_size
        os.ftruncate(new.fileno(), size)
        with contextlib.suppress(OSError):
            host.clone(old.fileno(), new.fileno())
            return
        for start, end in host.data_ranges(old.fileno(), size):
            for at in range(start, end, PIECE_BYTES):
                piece = os.pread(old.fileno(), min(PIECE_BYTES, end - at), at)
                os.pwrite(new.fileno(), piece, at)
