# SPDX-License-Identifier: MIT
"""What a logged device writes into its log, and when; read back by a reader that shares no code with the writer."""

import os
import random
import re
import struct
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import log_reader
import pytest
from log_reader import DISCARD, FLUSH, FUA, MARK, shape

from pmem_core.errors import HostError, HostFull, UsageError
from pmem_core.logwrites import reader, record, spool
from pmem_core.logwrites.logged import LoggedDevice
from pmem_core.logwrites.writer import Writer

SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
SIZE = 1 << 20
START = (MARK, b"pmem-nbd-start device_bytes=%d" % SIZE)
END = (MARK, b"pmem-nbd-end")
FLUSHED = (FLUSH, 0, 0)


class Memory:
    """A device of bytes.  A flush waits for `may_flush`; `refuse` is raised by the next write."""

    def __init__(self, size: int = SIZE) -> None:
        self.plan = SimpleNamespace(device_bytes=size)
        self.data = bytearray(size)
        self.may_flush = threading.Event()
        self.may_flush.set()
        self.flushes = threading.Semaphore(0)
        self.refuse: Exception | None = None

    def write(self, data, offset):
        if self.refuse:
            refuse, self.refuse = self.refuse, None
            raise refuse
        self.data[offset : offset + len(data)] = data

    def read_into(self, buffer, offset):
        buffer[:] = self.data[offset : offset + len(buffer)]

    def trim(self, count, offset):
        first, end = -(-offset // 4096) * 4096, (offset + count) // 4096 * 4096
        if first < end:
            self.data[first:end] = bytes(end - first)

    def zero(self, count, offset, *, may_trim):
        self.data[offset : offset + count] = bytes(count)

    def flush(self, *, counted=True):
        self.flushes.release()
        assert self.may_flush.wait(30)


class Logged(LoggedDevice):
    """The same, and what a test wants to see of it."""

    def __init__(self, folder, size=SIZE):
        self.memory, self.path = Memory(size), folder / "log"
        super().__init__(self.memory, self.path)

    @property
    def found(self):
        return log_reader.read(self.path)

    @property
    def shape(self):
        return shape(self.found)


@pytest.fixture
def logged(tmp_path):
    made = Logged(tmp_path)
    yield made
    made.memory.may_flush.set()


def in_background(function, *arguments, **options):
    thread = threading.Thread(target=function, args=arguments, kwargs=options, daemon=True)
    thread.start()
    return thread


# ---- bytes ----


def test_log_is_the_kernels_format_byte_for_byte(logged):
    logged.write(b"\xaa" * 1024, 2048)
    logged.flush()
    expected = struct.pack("<QQQI484x", 0x6A736677736872, 1, 3, 512)
    text = b"pmem-nbd-start device_bytes=1048576"
    expected += (struct.pack("<QQQQ", 0, 0, 8, len(text)) + text).ljust(512, b"\0")
    expected += struct.pack("<QQQQ480x", 4, 2, 0, 0) + b"\xaa" * 1024
    expected += struct.pack("<QQQQ480x", 0, 0, 1, 0)
    assert logged.path.read_bytes() == expected


# ---- when ----


def test_write_is_logged_once_a_flush_covers_it(logged):
    logged.write(b"a" * 512, 0)
    logged.write(b"b" * 4096, 4096)
    assert logged.shape == [START]
    logged.flush()
    assert logged.shape == [START, (0, 0, 1), (0, 8, 8), FLUSHED]
    logged.flush()
    assert logged.shape == [START, (0, 0, 1), (0, 8, 8), FLUSHED, FLUSHED]


def test_write_with_fua_is_logged_at_its_completion(logged):
    logged.write(b"a" * 512, 0)
    logged.write(b"b" * 512, 512, fua=True)
    assert logged.shape == [START, (FUA, 1, 1)]
    logged.flush()
    assert logged.shape == [START, (FUA, 1, 1), (0, 0, 1), FLUSHED]


def test_flush_covers_what_had_completed_when_it_was_asked_for(logged):
    logged.write(b"a" * 512, 0)
    logged.memory.may_flush.clear()
    flushing = in_background(logged.flush)
    logged.memory.flushes.acquire()
    logged.write(b"b" * 512, 512)
    assert logged.shape == [START], "a flush is logged when it answers"
    logged.memory.may_flush.set()
    flushing.join()
    assert logged.shape == [START, (0, 0, 1), FLUSHED]
    logged.flush()
    assert logged.shape[3:] == [(0, 1, 1), FLUSHED]


def test_flush_logs_what_an_earlier_one_covers_that_has_not_answered(logged):
    logged.write(b"a" * 512, 0)
    logged.memory.may_flush.clear()
    flushing = in_background(logged.flush)
    logged.memory.flushes.acquire()
    logged.write(b"b" * 512, 512)
    held, logged.memory.may_flush = logged.memory.may_flush, threading.Event()
    logged.memory.may_flush.set()
    logged.flush()
    assert logged.shape == [START, (0, 0, 1), (0, 1, 1), FLUSHED]
    logged.write(b"c" * 512, 1024)
    held.set()
    flushing.join()
    assert logged.shape[4:] == [FLUSHED]


def test_flush_whose_writes_another_one_has_logged_logs_none(logged):
    """What waits begins anew in its file when all of it is logged, at least where there were zeros."""
    logged.write(b"a" * 512, 0)
    logged.zero(4096, 4096)
    covered = logged._writer.covered()
    logged.flush()
    logged._writer.log_flush(covered)
    logged.write(b"b" * 512, 0)
    logged._writer.log_flush(covered)
    assert logged.shape == [START, (0, 0, 1), (0, 8, 8), FLUSHED, FLUSHED, FLUSHED]
    logged.flush()
    assert logged.shape[-2:] == [(0, 0, 1), FLUSHED]


def test_failed_write_is_not_logged(logged):
    logged.memory.refuse = HostFull("media", "no room")
    with pytest.raises(HostFull):
        logged.write(b"a" * 512, 0)
    logged.zero(4096, 4096)  # where the refused one's data lay
    logged.flush()
    assert logged.shape == [START, (0, 8, 8), FLUSHED]
    assert logged.found[1].data == bytes(4096)


def test_end_is_marked_behind_what_no_flush_covered(logged):
    logged.write(b"a" * 512, 0)
    logged.close()
    assert logged.shape == [START, (0, 0, 1), END]


def test_mark_comes_behind_what_is_logged(logged):
    logged.write(b"a" * 512, 0)
    logged.mark("here")
    logged.flush()
    assert logged.shape == [START, (MARK, b"here"), (0, 0, 1), FLUSHED]
    for text in ("", "x" * 480, "a\0b"):
        with pytest.raises(UsageError):
            logged.mark(text)
    logged.mark("x" * 479)
    assert logged.found[-1].text == b"x" * 479


# ---- what is left of a write that was overtaken ----


def test_late_write_does_not_hide_the_fua_write_that_overtook_it(logged):
    logged.write(b"a" * 4096, 0)
    logged.write(b"b" * 1024, 1024, fua=True)
    logged.flush()
    assert logged.shape == [START, (FUA, 2, 2), (0, 0, 2), (0, 4, 4), FLUSHED]
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


def test_fua_write_overtaken_by_a_flushed_one_is_whole_but_for_that(logged):
    logged.memory.may_flush.clear()
    slow = in_background(logged.write, b"a" * 4096, 0, fua=True)
    logged.memory.flushes.acquire()
    logged.write(b"b" * 512, 512)
    held, logged.memory.may_flush = logged.memory.may_flush, threading.Event()
    logged.memory.may_flush.set()
    logged.flush()
    held.set()
    slow.join()
    assert logged.shape == [START, (0, 1, 1), FLUSHED, (0, 0, 1), (FUA, 2, 6)]
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


def test_fua_write_hides_what_was_done_before_it(logged):
    logged.write(b"a" * 512, 0)
    logged.memory.may_flush.clear()
    slow = in_background(logged.write, b"b" * 512, 0, fua=True)
    logged.memory.flushes.acquire()
    held, logged.memory.may_flush = logged.memory.may_flush, threading.Event()
    logged.memory.may_flush.set()
    logged.flush()
    held.set()
    slow.join()
    assert logged.shape == [START, (0, 0, 1), FLUSHED, (FUA, 0, 1)]
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


def test_write_is_hidden_also_by_a_fua_write_of_an_earlier_flush(logged):
    logged.write(b"a" * 512, 0)
    logged.memory.may_flush.clear()
    flushing = in_background(logged.flush)
    logged.memory.flushes.acquire()
    held, logged.memory.may_flush = logged.memory.may_flush, threading.Event()
    logged.memory.may_flush.set()
    logged.write(b"b" * 512, 512)
    logged.write(b"c" * 512, 512, fua=True)
    held.set()
    flushing.join()
    logged.flush()
    assert logged.shape == [START, (FUA, 1, 1), (0, 0, 1), FLUSHED, FLUSHED]


def test_fua_write_that_could_not_be_made_durable_is_not_logged(logged, monkeypatch):
    def fails(**_):
        raise HostError("media", "input/output error")

    monkeypatch.setattr(logged.memory, "flush", fails)
    with pytest.raises(HostError):
        logged.write(b"a" * 512, 0, fua=True)
    monkeypatch.undo()
    logged.write(b"b" * 512, 0)
    logged.flush()
    assert logged.shape == [START, (0, 0, 1), FLUSHED] and not logged._writer._forced


def test_two_fua_writes_of_a_place_are_logged_as_they_were_done(logged):
    logged.memory.may_flush.clear()
    slow = in_background(logged.write, b"a" * 512, 0, fua=True)
    logged.memory.flushes.acquire()
    held, logged.memory.may_flush = logged.memory.may_flush, threading.Event()
    logged.memory.may_flush.set()
    logged.write(b"b" * 512, 0, fua=True)
    held.set()
    slow.join()
    assert logged.shape == [START, (FUA, 0, 1), (FUA, 0, 0)]
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


# ---- what ----


def test_parts_of_sectors_are_logged_as_whole_sectors(logged):
    logged.write(b"a" * 1536, 0)
    logged.write(b"b" * 600, 500)
    logged.flush()
    assert logged.shape[2:] == [(0, 0, 3), FLUSHED]
    assert logged.found[2].data == b"a" * 500 + b"b" * 600 + b"a" * 436


def test_trim_is_a_discard_of_the_pages_it_frees(logged):
    logged.write(b"a" * 20480, 0)
    logged.trim(3000, 500)
    logged.trim(10000, 4000)
    logged.trim(4096, 0, fua=True)
    logged.trim(100, 0, fua=True)
    logged.flush()
    assert logged.shape[1:] == [(DISCARD | FUA, 0, 8), (0, 8, 32), (DISCARD, 8, 16), FLUSHED]
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


@pytest.mark.parametrize("fua", [False, True])
def test_zeros_are_a_write_that_takes_no_room(logged, fua):
    logged.write(b"a" * SIZE, 0)
    logged.flush()
    before = logged.path.stat().st_blocks * 512
    logged.zero(SIZE // 2, SIZE // 2, fua=True)
    assert logged.found[-1].data == bytes(SIZE // 2), "also where nothing comes behind"
    logged.zero(SIZE // 2 + 500, 100, may_trim=True, fua=fua)
    logged.flush()
    zeros = FUA if fua else 0
    assert logged.shape[4:-1] == [(0, 0, 1), (0, 1, 1024), (zeros, 1025, 1)]
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data
    assert logged.path.stat().st_blocks * 512 < before + SIZE // 8
    logged.zero(100, 600)
    logged.flush()
    assert logged.shape[-2:] == [(0, 1, 1), FLUSHED]


def test_great_discards_and_zeros_come_in_pieces(tmp_path):
    """replay-log skips a discard of more than 128 MiB onto a file, and takes a write into memory whole."""
    logged = Logged(tmp_path, 1 << 20)
    logged.memory.trim = lambda *_: None
    logged.memory.zero = lambda *_, **__: None
    logged.trim(300 << 20, 0)
    logged.zero(80 << 20, 0)
    logged.flush()
    with logged.path.open("rb") as file:
        raw = os.pread(file.fileno(), 3 * 512, 1024)
        sizes = [struct.unpack_from("<QQQ", raw, at) for at in range(0, 1536, 512)]
    pieces = [(0, 128 << 11), (128 << 11, 128 << 11), (256 << 11, 44 << 11)]
    assert sizes == [(*piece, DISCARD) for piece in pieces]
    assert logged.path.stat().st_size > 80 << 20 and logged.path.stat().st_blocks < 1000


# ---- many requests ----


def test_log_is_what_is_durable_after_every_request(logged):
    """The oracle: a flush makes all of the device durable, a request with FUA what it changed."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    durable = bytearray(SIZE)
    for _ in range(400):
        offset, count = chance.randrange(0, SIZE - 20000), chance.randint(1, 20000)
        fua = chance.random() < 0.3
        first, end = offset // 512 * 512, -(-(offset + count) // 512) * 512
        what = chance.randrange(10)
        if what < 5:
            logged.write(chance.randbytes(count), offset, fua=fua)
        elif what < 6:
            logged.zero(count, offset, may_trim=True, fua=fua)
        elif what < 8:
            logged.trim(count, offset, fua=fua)
            first, end = -(-offset // 4096) * 4096, (offset + count) // 4096 * 4096
        else:
            logged.flush()
            first, end, fua = 0, SIZE, True
        if fua and first < end:
            durable[first:end] = logged.memory.data[first:end]
    assert len(logged.found) > 400
    assert log_reader.apply(logged.found, SIZE) == durable
    logged.close()
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


@pytest.mark.parametrize("call", ["pread", "lseek"])
def test_log_that_grows_while_it_is_opened_is_not_torn(logged, monkeypatch, call):
    real = getattr(os, call)

    def grows(*arguments):
        found = real(*arguments)
        monkeypatch.setattr(os, call, real)
        logged.write(b"a" * 512, 0)
        logged.flush()
        return found

    monkeypatch.setattr(os, call, grows)
    with reader.Log(logged.path) as log:
        assert len(list(log.entries())) == log.count
    assert getattr(os, call) is real


def test_connections_at_once_are_logged_in_the_order_of_the_device(logged):
    """Three clients write the same few pages; whatever they race, the log ends as the device does."""
    print(f"seed {SEED}")
    failures = []

    def client(number):
        chance = random.Random(SEED + number)
        try:
            for step in range(150):
                data = bytes([number, step]) * 256 * chance.randint(1, 8)
                logged.write(data, 512 * chance.randrange(64), fua=chance.random() < 0.3)
                if chance.random() < 0.2:
                    logged.zero(1024, 512 * chance.randrange(64))
                if chance.random() < 0.2:
                    logged.flush()
        except BaseException as error:
            failures.append(error)

    clients = [in_background(client, number) for number in range(3)]
    for one in clients:
        one.join(30)
    assert not failures and not any(one.is_alive() for one in clients)
    logged.close()
    assert log_reader.apply(logged.found, SIZE) == logged.memory.data


# ---- room ----


def test_what_waits_for_a_flush_is_in_no_memory_and_its_room_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "ROOM_BYTES", 1 << 20)
    logged = Logged(tmp_path, 8 << 20)
    waiting = logged._writer._spool

    def room() -> int:
        return os.fstat(waiting.fd).st_blocks * 512

    for at in range(0, 8 << 20, 1 << 20):
        logged.write(bytes(1 << 20), at)
    assert room() >= 8 << 20 and list(tmp_path.iterdir()) == [logged.path]
    logged.flush()
    assert room() == 0
    # Never empty: something always completes while a flush is on its way.
    for _ in range(20):
        covered = logged._writer.covered()
        logged.write(bytes(1 << 20), 0)
        logged._writer.log_flush(covered)
    assert room() < 4 << 20
    logged.close()
    assert [one for one in log_reader.read(logged.path) if one.flags == 0][-1].data == bytes(1 << 20)


@pytest.mark.kernel
def test_full_disk_refuses_what_needs_room_and_loses_nothing(tmp_path, mounted_tmpfs):
    logged = Logged(mounted_tmpfs, 8 << 20)
    logged.write(b"a" * (1 << 20), 0)
    logged.flush()
    logged.write(b"b" * (1 << 20), 1 << 20)
    (mounted_tmpfs / "ballast").write_bytes(bytes(os.statvfs(mounted_tmpfs).f_bavail * 4096))
    before = logged.shape
    with pytest.raises(HostFull, match="no room left"):
        logged.write(b"c" * (1 << 20), 2 << 20)
    assert logged.memory.data[2 << 20] == 0, "it was refused before it was done"
    with pytest.raises(HostFull):
        logged.flush()
    with pytest.raises(HostFull):
        logged.write(b"d" * (1 << 20), 3 << 20, fua=True)
    assert logged.shape == before
    (mounted_tmpfs / "ballast").unlink()
    logged.zero(1 << 20, 0, fua=True)  # a hole where what did not fit had begun
    logged.flush()
    assert logged.shape == [*before, (FUA, 0, 2048), (0, 2048, 2048), FLUSHED]
    assert logged.found[-3].data == bytes(1 << 20)
    logged.close()


@pytest.fixture
def mounted_tmpfs(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6M", "tmpfs", folder], check=True)
    yield folder
    # The log and what waits for it may still be open where a test has failed.
    subprocess.run(["umount", "--lazy", folder], check=True)


# ---- where ----


def test_log_takes_no_file_that_is_there(tmp_path):
    (tmp_path / "log").write_text("precious")
    with pytest.raises(HostError, match="exists already"):
        Writer(tmp_path / "log", device_bytes=SIZE)
    assert (tmp_path / "log").read_text() == "precious"
    with pytest.raises(HostError, match="no such directory"):
        Writer(tmp_path / "none" / "log", device_bytes=SIZE)


def test_flags_have_the_kernels_numbers():
    assert {name: flag for flag, name in record.FLAGS.items()} == {
        "flush": 1,
        "fua": 2,
        "discard": 4,
        "mark": 8,
        "metadata": 16,
    }
    assert record.flag_names(record.FLUSH | record.FUA | 64) == ["flush", "fua", "0x40"]


# ---- docs/log-writes.md ----

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "log-writes.md").read_text()
SIZES = {"le64": 8, "le32": 4}


@pytest.mark.parametrize(
    ("name", "form", "fields"),
    [
        ("log_write_super", record.SUPER, record.Super._fields),
        ("log_write_entry", record.HEADER, record.Header._fields),
    ],
)
def test_documented_table_is_the_record(name, form, fields):
    table = DOCUMENT[DOCUMENT.index(f"`{name}`, at") :].split("\n\n")[1]
    rows = re.findall(r"^\| (\d+) \| (le\d\d) \| `(\w+)` \|", table, re.MULTILINE)
    assert [field for _, _, field in rows] == list(fields)
    assert sum(SIZES[kind] for _, kind, _ in rows) == form.size
    for index, (offset, kind, _) in enumerate(rows):
        packed = form.pack(*[0xC3 if index == other else 0 for other in range(len(rows))])
        first = int(offset)
        assert packed.index(0xC3) == first and packed[first + 1 : first + SIZES[kind]] == bytes(SIZES[kind] - 1)


def test_documented_flags_and_numbers_are_those_of_the_code():
    rows = re.findall(r"^\| `([A-Z]+)` \| (\d+) \|", DOCUMENT, re.MULTILINE)
    assert {name.lower(): int(value) for name, value in rows} == {name: flag for flag, name in record.FLAGS.items()}
    assert f"| `magic` | {record.MAGIC:#x} |" in DOCUMENT and f"| `version` | {record.VERSION} |" in DOCUMENT
    assert f"at most {record.MARK_BYTES_MAX} bytes of text" in DOCUMENT
    assert f"at most {record.DISCARD_BYTES_MAX >> 20} MiB" in DOCUMENT
    assert f"at most {record.WRITE_BYTES_MAX >> 20} MiB" in DOCUMENT
    assert f"`{record.MARK_START} device_bytes=N`" in DOCUMENT and f"`{record.MARK_END}`" in DOCUMENT
