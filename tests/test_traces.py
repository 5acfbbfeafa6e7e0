# SPDX-License-Identifier: MIT
"""Recordings and the readers of traces: what is written is read, and what is damaged or torn is told."""

import errno
import json
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import recording_reader
from hypothesis import example, given
from hypothesis import strategies as st
from recording_reader import CHECK
from test_plugin import flip, make

from pmem_core import cli, device, layout, traces, tracescan
from pmem_core.device import Device
from pmem_core.errors import BadData, BadTrace, HostError, HostFull, UsageError
from pmem_core.traces import DRAIN, FLUSH, REQUEST, TRIM, WRITE, ZERO, ZERO_KEEP, open_trace, record, recording
from pmem_core.traces import writer as writer_
from pmem_core.traces.recorded import RecordedDevice
from pmem_core.traces.writer import Writer

SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
DEVICE_BYTES = 1 << 40
PAGE = 4096


@pytest.fixture(autouse=True)
def seed():
    print(f"PMEM_NBD_SEED={SEED}")


def pairs(trace) -> list[tuple[int, int, int]]:
    """All requests of a trace."""
    return [tuple(map(int, one)) for chunk in trace for one in chunk.tolist()]


def read(path: Path) -> list[tuple[int, int, int]]:
    with open_trace(path) as trace:
        return pairs(trace)


def recording_of(path: Path, noted, *, saves=(), device_bytes=DEVICE_BYTES, tell=print, close=True) -> Writer:
    """A recording of (kind, offset, count, fua), with a save before some."""
    path.unlink(missing_ok=True)
    writer = Writer(path, device_bytes=device_bytes, about={"program": "test"}, tell=tell)
    with writer.lock:
        for at, (kind, offset, count, fua) in enumerate(noted):
            if at in saves:
                writer.save()
            writer.note(kind, offset, count, fua=fua)
        writer.save()
    if close:
        writer.close()
    return writer


# ---- our own ----

positions = st.one_of(
    st.integers(0, DEVICE_BYTES // PAGE).map(lambda page: page * PAGE),
    st.integers(0, DEVICE_BYTES),
    st.integers(0, 8).map(lambda page: page * PAGE),
)
sized = st.tuples(st.integers(WRITE, ZERO_KEEP), positions, positions).filter(
    lambda one: one[1] + one[2] <= DEVICE_BYTES
)
plain = st.tuples(st.sampled_from([FLUSH, DRAIN]), st.just(0), st.just(0))
requests = st.lists(st.one_of(sized, sized, plain), max_size=60)


@given(requests, st.sets(st.integers(0, 60), max_size=5), st.sampled_from([1, 40, 1 << 16]))
def test_what_is_recorded_is_read_by_both_readers(tmp_path_factory, noted, saves, every):
    path = tmp_path_factory.getbasetemp() / "round"
    before, writer_.CHECK_EVERY_BYTES = writer_.CHECK_EVERY_BYTES, every
    try:
        recording_of(path, [(*one, one[0] == FLUSH and bool(i % 2)) for i, one in enumerate(noted)], saves=saves)
    finally:
        writer_.CHECK_EVERY_BYTES = before
    second = recording_reader.read(path)
    assert (second.requests, second.whole, second.torn) == (noted, True, 0)
    with open_trace(path) as trace:
        assert trace.format == "recording" and trace.device_bytes == second.device_bytes == DEVICE_BYTES
        assert trace.header == second.about == {"program": "test"}
        for _ in range(2):
            assert pairs(trace) == noted
            assert (trace.whole, trace.torn_bytes, trace.seen["fua"]) == (True, 0, second.fua)
            assert trace.position == trace.size_bytes


def test_requests_take_a_few_bytes_each(tmp_path):
    random_ = random.Random(SEED)
    noted = [(WRITE, random_.randrange(1 << 18) * PAGE, PAGE, False) for _ in range(10000)]
    recording_of(tmp_path / "random", noted)
    recording_of(tmp_path / "sequential", [(WRITE, i * PAGE, PAGE, False) for i in range(10000)])
    assert (tmp_path / "random").stat().st_size < 4.1 * 10000
    assert (tmp_path / "sequential").stat().st_size < 1.1 * 10000


def raw_recording(path: Path, records: bytes, device_bytes: int = DEVICE_BYTES) -> Path:
    path.write_bytes(record.pack_header(device_bytes, PAGE, {}) + records)
    return path


heads = st.sampled_from([0x31, 0x71, 0x51, 0x11, 0x01, 0x64, 0x05, 0x0D, 0x06, 0x07, 0x0F, 0x00, 0x80])
some_bytes = st.lists(st.one_of(heads, heads, st.integers(0, 255)), max_size=40).map(bytes)


@pytest.mark.contract
@given(some_bytes, st.sampled_from([1, 7, 64]), st.sampled_from([1, 3, 64]), st.sampled_from([9000, DEVICE_BYTES]))
@example(b"\x01" + b"\xff" * 10, 1, 1, DEVICE_BYTES)
@example(b"\x11" + b"\xff" * 8 + b"\x7f" + b"\xff" * 8 + b"\x7f", 7, 1, DEVICE_BYTES)
@example(b"\x07\0\0\0\0\x05\x00\x00", 64, 3, 9000)
def test_any_bytes_are_read_as_the_second_reader_reads_them(tmp_path_factory, raw, block, chunk, device_bytes):
    path = raw_recording(tmp_path_factory.getbasetemp() / "any", raw, device_bytes)
    second, at, said = recording_reader.Found(), None, ""
    try:
        recording_reader.records(raw, device_bytes, second)
    except ValueError as error:
        at = path.stat().st_size - len(raw) + int(str(error).split()[1])
    before = recording.BLOCK_BYTES, recording.CHUNK
    recording.BLOCK_BYTES, recording.CHUNK = block, chunk
    found = []
    try:
        with open_trace(path) as trace:
            for one in trace:
                assert 0 < len(one) <= chunk
                found += [tuple(request) for request in one.tolist()]
    except BadTrace as error:
        said = str(error)
    finally:
        recording.BLOCK_BYTES, recording.CHUNK = before
    assert found == second.requests
    if at is None:
        assert (said, trace.torn_bytes, trace.seen["fua"]) == ("", second.torn, second.fua)
        assert trace.whole == (second.whole and not second.torn)
    else:
        assert f"byte {at}: " in said


def test_torn_recording_is_read_up_to_its_last_whole_record(tmp_path):
    noted = [
        (WRITE, 5000, 70000, False),
        (TRIM, 1 << 30, 1 << 20, False),
        (FLUSH, 0, 0, True),
        (ZERO, 4096, 4096, False),
    ]
    recording_of(tmp_path / "whole", noted)
    raw = (tmp_path / "whole").read_bytes()
    first = raw.index(b"}") + 1
    lengths = []
    for cut in range(first, len(raw)):
        (tmp_path / "torn").write_bytes(raw[:cut])
        with open_trace(tmp_path / "torn") as trace:
            found = pairs(trace)
            assert found == [one[:3] for one in noted][: len(found)]
            assert not trace.whole and trace.position == cut
            lengths.append((len(found), trace.torn_bytes))
    assert lengths[0] == (0, 0) and lengths[-1] == (4, record.CHECK_BYTES - 1)
    (tmp_path / "zeros").write_bytes(raw[: first + 2] + bytes(5000))
    with open_trace(tmp_path / "zeros") as trace:
        pairs(trace)
        assert not trace.whole


def test_no_flipped_bit_goes_unseen_in_a_whole_recording(tmp_path):
    recording_of(tmp_path / "whole", [(WRITE, i * 999, 4096, False) for i in range(8)] + [(FLUSH, 0, 0, False)])
    raw = (tmp_path / "whole").read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            with open_trace(tmp_path / "damaged") as trace:
                pairs(trace)
                assert not trace.whole, f"bit {bit}"
        except BadTrace:
            pass


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "is no trace: a recording of ours, an iolog of fio's, or what blkparse prints"),
        (b"x" * 5000, "is no trace"),
        (bytes(5000), "is no trace"),
        (record.MAGIC, "is no recording: a file that serve --record has made"),
        (record.HEADER.pack(record.MAGIC, 2, 4096, 0, 0, 0), "is a recording of version 2: version 1"),
        (record.HEADER.pack(record.MAGIC, 1, 4096, 0, 1 << 31, 0), "its header is damaged"),
        (record.HEADER.pack(record.MAGIC, 1, 4096, 0, 0, 0), "its header is damaged"),
        (record.pack_header(1 << 63, 4096, {}), "bytes in pages of 4096"),
        (record.pack_header(4096, 512, {}), "4096 bytes in pages of 512: pages of 4096"),
        (record.pack_header(4096, 4096, {}) + b"\x81", "byte 34: there is no such record"),
        (record.pack_header(4096, 4096, {}) + b"\x11\1\1", "byte 34: there is no such record"),
        (record.pack_header(4096, 4096, {}) + bytes([CHECK]) + b"abcd", "byte 34: the records before it do not have"),
        (
            record.pack_header(4096, 4096, {}) + bytes([CHECK | 8, 0, 0, 0, 0, 5, CHECK, 0, 0, 0, 0]),
            "more behind its end",
        ),
    ],
)
def test_what_is_no_trace_is_told_in_one_line(tmp_path, capfd, raw, text):
    (tmp_path / "trace").write_bytes(raw)
    status = cli.main(["trace", str(tmp_path / "trace")])
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"{tmp_path / 'trace'}: ") and text in err


def test_command_offers_every_format():
    from pmem_core.cli.trace import FORMATS

    assert tuple(traces.FORMATS) == FORMATS


def test_unknown_format_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="recording, fio, blkparse"):
        open_trace(tmp_path, "spc")


# ---- a disk that is full ----


class FullDisk:
    """os.write for the writer: it takes so many bytes more, then it is full."""

    def __init__(self, monkeypatch, room: int) -> None:
        self.room, self._write = room, os.write
        monkeypatch.setattr(writer_.os, "write", self)
        monkeypatch.setattr(writer_, "SAVE_SECONDS", 0.0)

    def __call__(self, fd, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        written = self._write(fd, memoryview(data)[: self.room])
        self.room -= written
        return written


def noise(count: int) -> list[tuple[int, int, int, bool]]:
    random_ = random.Random(SEED)
    return [(WRITE, random_.randrange(1 << 38), random_.randrange(1 << 20), False) for _ in range(count)]


def test_recording_waits_for_room_and_then_lacks_nothing(tmp_path, monkeypatch):
    said, noted = [], noise(3000)
    disk = FullDisk(monkeypatch, 1 << 30)
    writer = Writer(tmp_path / "rec", device_bytes=DEVICE_BYTES, about={}, tell=said.append)
    with writer.lock:
        for at, one in enumerate(noted):
            disk.room = {1000: 777, 1500: 1 << 30, 2000: 5000}.get(at, disk.room)
            writer.note(*one[:3])
            if at % 50 == 0:
                writer.save()
    disk.room = 1 << 30
    writer.close()
    assert read(tmp_path / "rec") == [one[:3] for one in noted]
    assert recording_reader.read(tmp_path / "rec").whole
    assert len(said) == 4
    assert all(line.endswith("another filesystem; what is recorded waits in memory") for line in said[::2])
    assert all(line.endswith("there is room again: nothing of the recording is missing") for line in said[1::2])


def test_recording_that_finds_no_room_ends_and_says_so(tmp_path, monkeypatch):
    said, noted = [], noise(3000)
    monkeypatch.setattr(writer_, "WAITING_BYTES_MAX", 10000)
    disk = FullDisk(monkeypatch, 1 << 30)
    writer = Writer(tmp_path / "rec", device_bytes=DEVICE_BYTES, about={}, tell=said.append)
    disk.room = 5000
    with writer.lock:
        for one in noted:
            writer.note(*one[:3])
            writer.save()
    assert writer.ended and len(said) == 2
    assert said[1].endswith("no room left on the host: free space, or another filesystem; the recording ends here, and "
                            "the device goes on")  # fmt: skip
    disk.room = 1 << 30
    writer.close()
    found = read(tmp_path / "rec")
    assert 100 < len(found) < 1000 and found == [one[:3] for one in noted][: len(found)]
    assert not recording_reader.read(tmp_path / "rec").whole


def test_full_disk_at_the_end_is_an_error_of_close(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 1 << 30)
    writer = Writer(tmp_path / "rec", device_bytes=DEVICE_BYTES, about={}, tell=print)
    disk.room = 0
    with writer.lock:
        writer.note(FLUSH)
    with pytest.raises(HostFull, match="rec: no room left"):
        writer.close()


def test_what_waits_is_in_the_file_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_, "SAVE_SECONDS", 0.05)
    writer = Writer(tmp_path / "rec", device_bytes=DEVICE_BYTES, about={}, tell=print)
    with writer.lock:
        writer.note(WRITE, 0, 4096)
        assert read(tmp_path / "rec") == []
    deadline = time.monotonic() + 10
    while not read(tmp_path / "rec"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.close()


# ---- a device that is recorded ----

COALESCED = {"descriptor_writes": "coalesced"}
CHOICES = {"each": {}, "coalesced": COALESCED, "fixed": {"leveling_name": "none", **COALESCED}}


def replay(path: Path, found: list[tuple[int, int, int]]) -> None:
    """Do on an image what was recorded, as the documentation says it is to be done."""
    with Device(path) as replayed:
        for kind, offset, count in found:
            if kind == WRITE:
                replayed.write(bytes(count), offset)
            elif kind == TRIM:
                replayed.trim(count, offset)
            elif kind in (ZERO, ZERO_KEEP):
                replayed.zero(count, offset, may_trim=kind == ZERO)
            else:  # a flush too: the rest of it wears nothing
                replayed._drain()


@pytest.mark.parametrize("choice", CHOICES)
def test_replayed_recording_wears_every_line_alike(tmp_path, choice):
    """Requests, and housekeeping's drains between them."""
    random_ = random.Random(SEED)
    path = make(tmp_path / "disk.pmem", **CHOICES[choice])
    with RecordedDevice(path, tmp_path / "rec", tell=print) as disk:
        for _ in range(1200):
            kind, count = random_.choices(range(6), (200, 4, 4, 4, 2, 5))[0], random_.choice([512, 4096, 20000])
            offset = random_.randrange(1 << 20) // 512 * 512
            fua = random_.random() < 0.01
            if kind == 0:
                disk.write(bytes(count), offset, fua=fua)
            elif kind == 1:
                disk.trim(4 * count, offset, fua=fua)
            elif kind in (2, 3):
                disk.zero(count, offset, may_trim=kind == 2, fua=fua)
            elif kind == 4:
                disk.flush()
            else:
                for _ in range(2):  # the second finds that nothing was written since the first
                    disk.checkpoint(settle_sections=True, due=False)
    found = read(tmp_path / "rec")
    kinds = {kind for kind, _, _ in found}
    assert kinds == {WRITE, TRIM, ZERO, ZERO_KEEP, FLUSH} | ({DRAIN} if choice != "each" else set())
    again = make(tmp_path / "again.pmem", **CHOICES[choice])
    replay(again, found)
    one, other = (np.fromfile(image / "wear", np.uint32) for image in (path, again))
    assert one.sum() > 1200 and np.array_equal(one, other)
    # It is the instants that do it.
    if choice != "each":
        late = make(tmp_path / "late.pmem", **CHOICES[choice])
        replay(late, [one for one in found if one[0] != DRAIN])
        assert np.fromfile(late / "wear", np.uint32).sum() != one.sum()


def test_done_part_of_a_failed_write_is_recorded(tmp_path):
    path = make(tmp_path / "disk.pmem", leveling_name="none")
    with Device(path) as disk:
        disk.write(b"a" * 8 * PAGE, 0)
    flip(path, 3)
    with RecordedDevice(path, tmp_path / "rec", tell=print) as disk, pytest.raises(BadData, match="page 3"):
        disk.write(b"b" * (3 * PAGE + 100), 0)
    assert read(tmp_path / "rec") == [(WRITE, 0, 3 * PAGE)]


def test_request_between_two_parts_of_another_is_recorded_between_them(tmp_path, monkeypatch):
    """The second page of a write lies in the next section, whose mark the disk is waited for."""
    path = make(tmp_path / "disk.pmem")
    resume, stops = Device._resume, []

    def resume_slowly(self, result, offset):
        stops.append(result >> layout.STOP_SHIFT)
        if meanwhile and stops[-1]:
            other = threading.Thread(target=meanwhile.pop())
            other.start()
            other.join(20)
            assert not other.is_alive()
        resume(self, result, offset)

    monkeypatch.setattr(device.Device, "_resume", resume_slowly)
    with RecordedDevice(path, tmp_path / "rec", tell=print) as disk:
        section = disk.plan.info.section_pages * PAGE
        meanwhile = [lambda: disk.write(b"b" * 512, 0)]
        disk.write(b"a" * 2 * PAGE, section - PAGE)
        disk.write(b"c" * 2 * PAGE, 2 * section - PAGE)
        assert stops == [0, PAGE, PAGE]
    assert read(tmp_path / "rec")[:4] == [
        (WRITE, section - PAGE, PAGE),
        (WRITE, 0, 512),
        (WRITE, section, PAGE),
        (WRITE, 2 * section - PAGE, 2 * PAGE),
    ]


def test_parts_of_two_requests_are_recorded_in_the_order_they_were_done(tmp_path, monkeypatch):
    """Both have to wait for the disk after their first page, and the one that waited first is done first."""
    path = make(tmp_path / "disk.pmem")
    resume, waits, is_done = Device._resume, threading.Event(), threading.Event()

    def resume_slowly(self, result, offset):
        if result >> layout.STOP_SHIFT:
            if threading.current_thread() is other:
                waits.set()
                assert is_done.wait(20)
            else:
                other.start()
                assert waits.wait(20)
        resume(self, result, offset)

    monkeypatch.setattr(device.Device, "_resume", resume_slowly)
    with RecordedDevice(path, tmp_path / "rec", tell=print) as disk:
        section = disk.plan.info.section_pages * PAGE
        other = threading.Thread(target=lambda: disk.write(b"b" * 2 * PAGE, 2 * section - PAGE))
        disk.write(b"a" * 2 * PAGE, section - PAGE)
        is_done.set()
        other.join(20)
    pages = [section - PAGE, 2 * section - PAGE, section, 2 * section]
    assert read(tmp_path / "rec")[:4] == [(WRITE, offset, PAGE) for offset in pages]


@pytest.mark.parametrize("choice", ["each", "coalesced"])
def test_clients_flushes_and_housekeeping_do_not_wait_for_each_other(tmp_path, choice):
    """Everybody wants the recording's lock and the disk's; every byte that was written is recorded once."""
    path = make(tmp_path / "disk.pmem", **CHOICES[choice])
    with RecordedDevice(path, tmp_path / "rec", tell=print) as disk:

        def write(first: int) -> None:
            random_ = random.Random(SEED + first)
            for i in range(400):
                disk.write(bytes(PAGE * 3), PAGE * random_.randrange(8000), fua=i % 40 == 0)
                if i % 50 == 0:
                    disk.flush()

        def keep() -> None:
            for _ in range(30):
                disk.checkpoint(settle_sections=True)
                disk.commit_moves()

        threads = [threading.Thread(target=write, args=(i,), daemon=True) for i in range(3)]
        threads.append(threading.Thread(target=keep, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert disk._tally["written_bytes"] == 1200 * 3 * PAGE
    found = read(tmp_path / "rec")
    assert sum(count for kind, _, count in found if kind == WRITE) == 1200 * 3 * PAGE
    assert sum(kind == FLUSH for kind, _, _ in found) == 3 * (8 + 10)


def test_recording_that_cannot_be_made_leaves_the_image_closed(tmp_path):
    path = make(tmp_path / "disk.pmem")
    (tmp_path / "rec").write_text("precious")
    with pytest.raises(HostError, match="file exists"):
        RecordedDevice(path, tmp_path / "rec", tell=print)
    with Device(path) as disk:
        assert disk.recovery == ""
    assert (tmp_path / "rec").read_text() == "precious"


# ---- the summary ----


def test_touched_pages_are_counted_once():
    found = np.array([(WRITE, 100, 4096), (WRITE, 0, 1), (TRIM, 0, 1 << 20), (WRITE, 9 * PAGE, 0)], REQUEST)
    bits = np.zeros(2, np.uint8)
    assert tracescan.touch_pages(found, bits) == 2
    assert tracescan.touch_pages(found, bits) == 0
    assert bits.tolist() == [3, 0]


def test_trace_is_shown_for_people_and_for_programs(tmp_path, capfd):
    noted = [(WRITE, 0, 4096, False), (WRITE, 4096, 4097, False), (WRITE, 0, 8192, False), (TRIM, 0, 1 << 20, False)]
    recording_of(tmp_path / "rec", [*noted, (FLUSH, 0, 0, True), (FLUSH, 0, 0, False)])
    assert cli.main(["trace", "-j", str(tmp_path / "rec")]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["kinds"]["write"] == {"count": 3, "bytes": 4096 + 4097 + 8192}
    assert told["kinds"]["flush"]["count"] == 2 and told["seen"] == {"fua": 1}
    assert told["sizes"]["write"] == {"4096": 1, "8192": 2} and told["sizes"]["trim"] == {str(1 << 20): 1}
    assert (told["written_pages"], told["requests"], told["end"], told["whole"]) == (3, 6, 1 << 20, True)
    assert cli.main(["trace", str(tmp_path / "rec")]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["write", "3", "16", "KiB"] in lines and ["trim", "1", "1", "MiB"] in lines
    assert ["up", "to", "writes", "trims"] in lines and ["8", "KiB", "2", "0"] in lines
