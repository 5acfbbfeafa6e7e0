# SPDX-License-Identifier: MIT
# long: every row of the journal in one place
"""What must be true after a crash, in LMDB: the only module that imports it.

Databases of the environment ``journal/``, keys and what lies behind them:

=========== ========================= =====================================================================
meta        schema, uuid, session     JSON; `session` says who has the image open, or that it was closed
meta        conversion                JSON: how far a conversion has come; only while one is under way
meta        remade                    JSON: true while a repair that made this journal anew has not come to its end
checkpoint  core                      the core record's bytes (layout.core_dtype)
checkpoint  table/NNNNNNNN            4096 bytes of the leveling's table
sections    NNNNNNNN                  1024 sections' bytes: TOUCHED, DIRTY and SUSPECT bits
retired     page number               JSON: a page whose data was given up, why and when
history     time in ns                JSON: wear figures, for plots
events      time in ns                JSON: created, opened, closed, unclean, recovered, remade, repaired
=========== ========================= =====================================================================

Behind each value are four bytes of CRC-32 (`seal`), and `meta` also has `transaction`, LMDB's number of the transaction
that wrote last: LMDB has no checksums of its own.  journalscan looks over the file before it is opened.

Default flags: a commit is two fdatasyncs and atomic.  Without WRITEMAP a full host disk is an error, not a SIGBUS.
"""

import contextlib
import errno
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb

from . import journalscan, room
from .errors import DamagedImage, HostError, HostFull, UnsupportedImage

SCHEMA = 2
UNSEALED = 1  # the schema before: the same rows without checksums
SEAL_BYTES = 4
MAP_BYTES = 1 << 30
CHUNK_BYTES = 4096
ROW_SECTIONS = 1024
HISTORY_MAX = 8192
EVENTS_MAX = 8192
READERS_MAX = 64
READERS_BYTES = 64 * READERS_MAX + 128  # of lock.mdb: a cache line for each, two before them
_MEMORY = f"{MAP_BYTES >> 20} MiB of address space, and memory ('ulimit -v')"
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_OF_THE_HOST = (
    lmdb.DiskError,
    lmdb.LockError,
    lmdb.PanicError,  # what LMDB answers after a failed write
    lmdb.ReadersFullError,
    lmdb.ReadonlyError,
    lmdb.TlsFullError,
)
_NAMES = (b"meta", b"checkpoint", b"sections", b"retired", b"history", b"events")


def seal(name: bytes, key: bytes, value: bytes) -> bytes:
    """The checksum of a row: CRC-32 (that of zlib), little-endian, of ``database/key=value``."""
    return zlib.crc32(b"%b/%b=%b" % (name, key, value)).to_bytes(SEAL_BYTES, "little")


def _record(value: bytes) -> dict[str, Any]:
    """A row of JSON that is an object; ValueError."""
    found = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(value)
    if not isinstance(found, dict):
        raise ValueError("a row that is no JSON object")
    return found


class Journal:
    """The environment, opened.  Every method is one transaction; errors: HostFull, HostError, DamagedImage."""

    def __init__(self, path: Path, *, read_only: bool = False, create: bool = False) -> None:
        self.path = path
        if not create:
            self._look_over()
        if not read_only:
            self._make_room_for_readers(create)
        try:
            self._env = lmdb.open(
                os.fsencode(path),
                map_size=MAP_BYTES,
                max_dbs=len(_NAMES),
                readonly=read_only,
                create=create,
                lock=not read_only,
                max_readers=READERS_MAX,
            )
            try:
                self._db = {name: self._env.open_db(name, create=create) for name in _NAMES}
            except BaseException:
                self._env.close()
                raise
        except lmdb.Error as error:
            raise _translated(error, path, "opened") from error
        self._sealed = True
        if not create:
            try:
                self._require_schema(read_only)
            except BaseException:
                self._env.close()
                raise

    def _make_room_for_readers(self, create: bool) -> None:
        """LMDB stores to a map of its table of readers, for which a full host has no room: that would be a SIGBUS."""
        try:
            if create:
                self.path.mkdir(exist_ok=True)
            fd = os.open(self.path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.fstat(fd).st_size < READERS_BYTES:
                    os.ftruncate(fd, READERS_BYTES)
                room.take(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(self.path) from error
            raise HostError(self.path / "lock.mdb", (error.strerror or str(error)).lower()) from error

    def _look_over(self) -> None:
        file = self.path / "data.mdb"
        try:
            problem = journalscan.find_problem(file.read_bytes())
        except MemoryError as error:
            raise HostError(self.path, "no memory to read the journal", _MEMORY) from error
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise HostError(file, (error.strerror or str(error)).lower()) from error
            problem = f"data.mdb: {(error.strerror or str(error)).lower()}"
        if problem:
            raise DamagedImage(self.path, f"the journal cannot be opened ({problem})", "a healthy LMDB environment")

    def _require_schema(self, read_only: bool) -> None:
        with self._reading(b"meta") as transaction:
            told = bytes(transaction.get(b"schema") or b"")
        # Rows without checksums are as long as their text.
        self._sealed = not told.isdigit()
        schema = self._meta("schema")
        is_old = schema == UNSEALED and not self._sealed
        if not is_old and schema != SCHEMA:
            raise UnsupportedImage(self.path, f"journal schema {schema}", f"schema {SCHEMA}")
        # All rows: one whose name has changed is not where it is looked for, and fails its checksum.
        named = dict(self._rows(b"meta"))
        for name in (b"uuid", b"session"):
            if name not in named:
                raise DamagedImage(self.path, f"no {name.decode()} in the journal", "one written at creation")
        if is_old and not read_only:
            self._upgrade()

    def _upgrade(self) -> None:
        """Give every row its checksum."""
        with self._write() as transaction:
            for name in _NAMES:
                rows = [(bytes(key), bytes(value)) for key, value in transaction.cursor(self._db[name])]
                for key, value in rows:
                    self._put(transaction, name, key, value)
            self._put_meta(transaction, "schema", SCHEMA)
        self._sealed = True

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _write(self) -> "_Transaction":
        return _Transaction(self._env, self.path, self._finish)

    def _finish(self, transaction: Any) -> None:
        """Say in the rows which transaction wrote them: a meta page that lies about its age is found out."""
        self._put_meta(transaction, "transaction", transaction.id())

    def _put(self, transaction: Any, name: bytes, key: bytes, value: bytes) -> None:
        transaction.put(key, value + seal(name, key, value), db=self._db[name])

    def _opened(self, name: bytes, key: bytes, row: bytes) -> bytes:
        """The value of a row; ValueError where its checksum says that it is not what was written."""
        if not self._sealed:
            return row
        value = row[:-SEAL_BYTES]
        if row[-SEAL_BYTES:] != seal(name, key, value):
            raise ValueError(f"a row of {name.decode()} fails its checksum")
        return value

    def _rows(
        self,
        name: bytes,
        parse: Callable[[bytes, bytes], Any] = lambda key, value: (key, value),
        damaged: list[bytes] | None = None,
    ) -> list[Any]:
        """What `parse` makes of all keys of a database and their values, or ValueError.

        Where a row is damaged its key goes to `damaged`; None: DamagedImage.
        """
        found = []
        with self._reading(name) as transaction:
            for key, row in [(bytes(key), bytes(row)) for key, row in transaction.cursor()]:
                try:
                    found.append(parse(key, self._opened(name, key, row)))
                except ValueError:
                    if damaged is None:
                        raise
                    damaged.append(key)
        return found

    @contextlib.contextmanager
    def _reading(self, name: bytes) -> Iterator[Any]:
        """A read transaction on database `name`; what cannot be read is DamagedImage, if the host did not refuse."""
        try:
            with self._env.begin(db=self._db[name]) as transaction:
                yield transaction
        except (lmdb.Error, ValueError) as error:
            raise _translated(error, self.path, "read") from error

    def _meta(self, key: str, parse: Callable[[bytes], Any] = json.loads) -> Any:
        with self._reading(b"meta") as transaction:
            value = transaction.get(key.encode())
            return None if value is None else parse(self._opened(b"meta", key.encode(), bytes(value)))

    def _put_meta(self, transaction: Any, key: str, value: Any) -> None:
        self._put(transaction, b"meta", key.encode(), json.dumps(value).encode())

    def initialise(self, uuid: str) -> None:
        """Write the schema and whose journal this is."""
        with self._write() as transaction:
            self._put_meta(transaction, "schema", SCHEMA)
            self._put_meta(transaction, "uuid", uuid)
            self._put_meta(transaction, "session", {"open": False})

    @property
    def uuid(self) -> str:
        """The uuid of the image this journal belongs to."""
        return str(self._meta("uuid"))

    @property
    def session(self) -> dict[str, Any]:
        """The last session: {"open": False}, or who holds (or held) the image and on which mount and boot."""
        return dict(self._meta("session", _record))

    def begin_session(self, session: dict[str, Any], event: dict[str, Any] | None = None) -> None:
        """Record durably that the image is open, before anything of it changes."""
        with self._write() as transaction:
            self._put_meta(transaction, "session", {"open": True, **session})
            self._put_event(transaction, event)

    def note_failed_sync(self) -> None:
        """Record in the session, which is open, that a sync of the image failed."""
        with self._write() as transaction:
            self._put_meta(transaction, "session", {**self.session, "sync_failed": True})

    @property
    def remade(self) -> bool:
        """True while a repair that made this journal anew has not come to its end: how sessions ended is not known."""
        return bool(self._meta("remade"))

    def note_remade(self, under_way: bool) -> None:
        """Note durably what `remade` says from now on."""
        with self._write() as transaction:
            self._put_meta(transaction, "remade", under_way)

    # ---- checkpoints and sections ----

    def checkpoint(
        self,
        core: bytes,
        chunks: dict[int, bytes],
        rows: dict[int, bytes],
        *,
        closing: bool = False,
        event: dict[str, Any] | None = None,
    ) -> None:
        """Commit the core record, the changed chunks of the table and the changed rows of sections, at once."""
        with self._write() as transaction:
            self._put(transaction, b"checkpoint", b"core", core)
            self._put_chunks(transaction, chunks)
            self._put_rows(transaction, rows)
            if closing:
                self._put_meta(transaction, "session", {"open": False})
            self._put_event(transaction, event)

    def put_table(self, chunks: dict[int, bytes]) -> None:
        """Commit changed chunks of the table alone."""
        with self._write() as transaction:
            self._put_chunks(transaction, chunks)

    def _put_chunks(self, transaction: Any, chunks: dict[int, bytes]) -> None:
        for index, chunk in chunks.items():
            self._put(transaction, b"checkpoint", b"table/%08d" % index, chunk)

    def load_checkpoint(self) -> tuple[bytes, bytes]:
        """The core record and the whole table of the last checkpoint."""
        rows = dict(self._rows(b"checkpoint"))
        core = rows.get(b"core")
        table = b"".join(value for key, value in rows.items() if key.startswith(b"table/"))
        if core is None:
            raise self._no_checkpoint()
        return core, table

    def load_core(self) -> bytes:
        """The core record of the last checkpoint, without the table."""
        with self._reading(b"checkpoint") as transaction:
            row = transaction.get(b"core")
            if row is None:
                raise self._no_checkpoint()
            return self._opened(b"checkpoint", b"core", bytes(row))

    def _no_checkpoint(self) -> DamagedImage:
        return DamagedImage(self.path, "no checkpoint in the journal", "one written at creation")

    def _put_rows(self, transaction: Any, rows: dict[int, bytes]) -> None:
        for index, row in rows.items():
            self._put(transaction, b"sections", b"%08d" % index, row)

    def put_sections(self, rows: dict[int, bytes]) -> None:
        """Commit rows of sections."""
        with self._write() as transaction:
            self._put_rows(transaction, rows)

    def load_sections(self) -> bytes:
        """All sections' bytes."""
        return b"".join(value for _, value in self._rows(b"sections"))

    # ---- conversions ----

    @property
    def conversion(self) -> dict[str, Any] | None:
        """How far a conversion has come, as `put_conversion` was told; None: there is none."""
        found = self._meta("conversion")
        return None if found is None else dict(found)

    def put_conversion(self, record: dict[str, Any] | None) -> None:
        """Note durably how far a conversion has come; None: it is over."""
        with self._write() as transaction:
            self._put_meta(transaction, "conversion", record)

    def put_shape(
        self,
        core: bytes,
        chunks: dict[int, bytes],
        rows: dict[int, bytes],
        record: dict[str, Any],
        event: dict[str, Any],
    ) -> None:
        """Commit core, table, sections (all of them anew), how far the conversion is, and that the image is closed."""
        with self._write() as transaction:
            transaction.drop(self._db[b"sections"], delete=False)
            self._put(transaction, b"checkpoint", b"core", core)
            self._put_chunks(transaction, chunks)
            self._put_rows(transaction, rows)
            self._put_meta(transaction, "conversion", record)
            self._put_meta(transaction, "session", {"open": False})
            self._put_event(transaction, event)

    # ---- records for people ----

    def _put_event(self, transaction: Any, event: dict[str, Any] | None) -> None:
        if event is not None:
            self._put(transaction, b"events", self._next_key(transaction, b"events"), json.dumps(event).encode())
            self._thin(transaction, b"events", EVENTS_MAX, slice(EVENTS_MAX // 2))

    def event(self, event: dict[str, Any]) -> None:
        """Append an event: {"event": "repaired", ...}."""
        with self._write() as transaction:
            self._put_event(transaction, event)

    def sample(self, figures: dict[str, Any]) -> None:
        """Append figures to the history; when it is long every second one is dropped, but neither end."""
        with self._write() as transaction:
            self._put(transaction, b"history", self._next_key(transaction, b"history"), json.dumps(figures).encode())
            self._thin(transaction, b"history", HISTORY_MAX, slice(1, None, 2))

    def _next_key(self, transaction: Any, name: bytes) -> bytes:
        """The time in ns, or what follows the last key: a clock that was set back changes no order."""
        cursor, last = transaction.cursor(self._db[name]), 0
        if cursor.last() and bytes(cursor.key()).isdigit():
            last = int(cursor.key())
        return b"%020d" % max(time.time_ns(), last + 1)

    def _thin(self, transaction: Any, name: bytes, most: int, dropped: slice) -> None:
        """Where a database has more than `most` rows, drop these of them, in order of their keys."""
        database = self._db[name]
        if transaction.stat(database)["entries"] <= most:
            return
        keys = [bytes(key) for key, _ in transaction.cursor(database)]
        for key in keys[dropped]:
            transaction.delete(key, db=database)

    def retire(self, page: int, record: dict[str, Any]) -> None:
        """Note that the data of `page` was given up."""
        with self._write() as transaction:
            self._put(transaction, b"retired", b"%020d" % page, json.dumps(record).encode())

    def _records(self, name: bytes, damaged: list[bytes] | None) -> list[tuple[int, dict[str, Any]]]:
        return self._rows(name, lambda key, value: (int(key), _record(value)), damaged)

    def events(self, damaged: list[bytes] | None = None) -> list[dict[str, Any]]:
        """Events, oldest first, each with "time_ns".

        Here and below: keys of rows that are damaged go to `damaged`, and the others are told; None: DamagedImage.
        """
        return [{"time_ns": key, **value} for key, value in self._records(b"events", damaged)]

    def history(self, damaged: list[bytes] | None = None) -> list[dict[str, Any]]:
        """Figures over time, oldest first, each with "time_ns"."""
        return [{"time_ns": key, **value} for key, value in self._records(b"history", damaged)]

    def retired(self, damaged: list[bytes] | None = None) -> dict[int, dict[str, Any]]:
        """Pages whose data was given up."""
        return dict(self._records(b"retired", damaged))

    def drop_damaged_records(self) -> None:
        """Delete the damaged rows that only people read, at once; what opens an image needs none of them."""
        damaged: dict[bytes, list[bytes]] = {b"events": [], b"history": [], b"retired": []}
        for name, keys in damaged.items():
            self._records(name, keys)
        with self._write() as transaction:
            for name, keys in damaged.items():
                for key in keys:
                    transaction.delete(key, db=self._db[name])


class _Transaction:
    """A write transaction whose failures are errors of ours."""

    def __init__(self, env: Any, path: Path, finish: Callable[[Any], None]) -> None:
        self._env, self._path, self._finish = env, path, finish

    def __enter__(self) -> Any:
        try:
            self._transaction = self._env.begin(write=True)
        except lmdb.Error as error:
            raise _translated(error, self._path, "written") from error
        return self._transaction

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._transaction.abort()
            if isinstance(error, lmdb.Error):
                raise _translated(error, self._path, "written") from error
            return
        try:
            self._finish(self._transaction)
            self._transaction.commit()
        except lmdb.Error as failure:
            self._transaction.abort()  # nothing to do where the commit was tried
            raise _translated(failure, self._path, "written") from failure


def _translated(error: Exception, path: Path, verb: str) -> Exception:
    """The error of ours for one that LMDB answered; a refusal of the host's says nothing of the journal."""
    if full := _full(error, path):
        return full
    told = str(error).removeprefix(f"{path}: ")
    if isinstance(error, lmdb.MemoryError):
        return HostError(path, f"the journal cannot be {verb} ({told.lower()})", _MEMORY)
    # An error number of the system's has no class of its own.
    if type(error) is lmdb.Error or isinstance(error, _OF_THE_HOST):
        return HostError(path, f"the journal cannot be {verb} ({told.lower()})", "a host that lets it")
    return DamagedImage(path, f"the journal cannot be {verb} ({told})", "a healthy LMDB environment")


def _full(error: Exception, path: Path) -> HostFull | None:
    """Who has no room for the journal, the host or its own map; None where neither is what `error` says."""
    if isinstance(error, lmdb.MapFullError):
        return HostFull(path, f"has reached its limit of {MAP_BYTES >> 20} MiB", "a leveling with a smaller table")
    full = isinstance(error, lmdb.DiskError)
    if "Input/output error" in str(error):
        # LMDB's word for a write that ended early too, as one does where the room ends within it.
        full = full or os.statvfs(path).f_bavail == 0
    return _no_room(path) if full or "No space left" in str(error) or errno.ENOSPC in error.args else None


def _no_room(path: Path) -> HostFull:
    return HostFull(path, "no room for the journal", "free space on the host")
