# SPDX-License-Identifier: MIT
"""The verbs log and replay-log, and a server that logs: as a person and as a script meet them."""

import contextlib
import errno
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import log_reader
import psutil
import pytest
from conftest import needs
from log_reader import DISCARD, FLUSH, FUA, MARK
from serving import runtime_directory
from test_plugin import make, refused, serving

from pmem_core import cli, server
from pmem_core.device import Device
from pmem_core.errors import HostFull
from pmem_core.logwrites.writer import Writer

SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
SIZE = 1 << 20


def entry(sector: int, sectors: int, flags: int, content: bytes = b"", size: int = 512) -> bytes:
    """An entry, as dm-log-writes writes it; `content` is a mark's text or a write's data."""
    text = content if flags & MARK else b""
    head = (struct.pack("<QQQQ", sector, sectors, flags, len(text)) + text).ljust(size, b"\0")
    return head + (b"" if flags & MARK else content)


def log_of(path: Path, *entries: bytes, count: int | None = None, size: int = 512, version: int = 1) -> Path:
    """A log at `path`."""
    count = len(entries) if count is None else count
    head = struct.pack("<QQQI", 0x6A736677736872, version, count, size).ljust(size, b"\0")
    path.write_bytes(head + b"".join(entries))
    return path


# As the kernel's would be: without our start mark.
ENTRIES = [
    entry(0, 2, 0, b"a" * 1024),
    entry(0, 0, FLUSH),
    entry(1, 1, FUA, b"b" * 512),
    entry(0, 0, MARK, b"half way"),
    entry(0, 1, DISCARD),
    entry(4, 1, 16, b"c" * 512),
    entry(0, 0, FLUSH),
    entry(0, 0, MARK, b"dm-log-writes-end"),
]
A, B, C, Z = (letter * 512 for letter in (b"a", b"b", b"c", b"\0"))


@pytest.fixture
def log(tmp_path):
    return log_of(tmp_path / "log", *ENTRIES)


@pytest.fixture
def run(capfd):
    def ran(*words):
        status = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert err.count("\n") <= 1 or "the check failed" in err
        return status, out, err

    return ran


# ---- log ----


def test_entries_are_listed_for_people(run, log):
    status, out, _ = run("log", log)
    lines = [line.split(maxsplit=3) for line in out.splitlines()]
    assert status == 0
    assert lines[1:5] == [
        ["0", "0", "2"],
        ["1", "0", "0", "flush"],
        ["2", "1", "1", "fua"],
        ["3", "0", "0", "mark  'half way'"],
    ]
    said = "8 entries: 3 writes (2 KiB), 1 with FUA, 2 flushes, 1 discards (512 B), 2 marks; sectors of 512 bytes"
    assert out.endswith(f"{log}: {said}\n")
    out = run("log", log, "--from", 2, "--to", 3)[1]
    assert out.count("\n") == 4 and "without the mark of an end" in out


def test_entries_are_listed_for_programs(run, log):
    told = json.loads(run("log", log, "-j")[1])
    assert (told["count"], told["sector_bytes"], told["device_bytes"]) == (8, 512, None)
    first, last = told["entries"][0], told["entries"][5]
    assert first == {"number": 0, "sector": 0, "sectors": 2, "flags": [], "mark": None, "data_at": 1024}
    assert last["flags"] == ["metadata"]
    assert [one["number"] for one in told["entries"] if one["mark"]] == [3, 7]
    assert told["totals"]["written_bytes"] == 2048


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is no log of writes: one that serve --log-writes or dm-log-writes has made"),
        (b"x" * 4096, "is no log of writes"),
        (struct.pack("<QQQI", 0x6A736677736872, 2, 0, 512), "has version 2: version 1"),
        (struct.pack("<QQQI", 0x6A736677736872, 1, 0, 500), "has sectors of 500 bytes: a power of two"),
        (None, "no such file or directory"),
    ],
)
def test_what_is_no_log_is_told_in_one_line(run, tmp_path, content, text):
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    for words in (["log", tmp_path / "log"], ["replay-log", tmp_path / "log", "--onto", tmp_path / "target"]):
        status, out, err = run(*words)
        assert (status, out) == (1, "") and text in err
    assert not (tmp_path / "target").exists()


def test_log_that_is_a_pipe_is_refused(run, tmp_path):
    os.mkfifo(tmp_path / "log")
    for words in (["log", tmp_path / "log"], ["replay-log", tmp_path / "log", "--onto", tmp_path / "target"]):
        said = f"{tmp_path / 'log'}: is neither a file nor a block device: one of these\n"
        assert run(*words) == (1, "", said)


@pytest.mark.parametrize(
    ("cut", "text"), [(1, "entry 5 of 8, at byte 4608, ends at byte 5632"), (1000, "entry 5 of 8, at byte 4608")]
)
def test_torn_log_is_replayed_up_to_there_and_not_begun_beyond(run, log, tmp_path, cut, text):
    raw = log.read_bytes()[: 5632 - cut]
    log.write_bytes(raw)
    status, out, err = run("log", log)
    assert status == 1 and len(out.splitlines()) == 6 and f"is torn: {text}" in err
    status, _, err = run("replay-log", log, "--onto", tmp_path / "target")
    assert status == 1 and text in err and not (tmp_path / "target").exists()
    assert run("replay-log", log, "--onto", tmp_path / "target", "--to", 4)[0] == 0


def test_entry_of_zeros_is_refused(run, tmp_path):
    path = log_of(tmp_path / "log", entry(0, 0, FLUSH), bytes(512))
    assert "entry 1 at byte 1024 is empty" in run("log", path)[2]


@pytest.mark.parametrize(
    ("sector", "sectors", "size", "flags"),
    [
        (2**60, 1, 512, DISCARD),
        (2**60, 1, 512, 0),
        (2**54 - 1, 1, 512, DISCARD | FUA),  # ends at 2**63, which no offset reaches
        (2**54 - 1, 1, 512, 0),
        (2**64 - 1, 8, 512, DISCARD),
        (2**64 - 1, 8, 512, FUA),
        (0, 2**60, 512, DISCARD),
        (0, 2**64 - 1, 512, DISCARD),
        (2**50, 2**50, 8192, DISCARD),
    ],
)
def test_entry_that_no_device_could_have_is_refused(run, tmp_path, sector, sectors, size, flags):
    data = b"" if flags & DISCARD else b"x" * sectors * size
    entries = [entry(0, 0, FLUSH, size=size), entry(sector, sectors, flags, data, size)]
    path = log_of(tmp_path / "log", *entries, size=size)
    said = (
        f"{path}: entry 1 at byte {2 * size} ends at byte {(sector + sectors) * size} of the device: one below 2**63\n"
    )
    assert run("replay-log", path, "--onto", tmp_path / "target") == (1, "", said)
    assert not (tmp_path / "target").exists()
    status, _, err = run("log", path)
    assert (status, err) == (1, said)
    assert run("replay-log", path, "--onto", tmp_path / "target", "--to", 0)[0] == 0


def test_sector_of_what_changes_nothing_does_not_matter(run, tmp_path):
    path = log_of(tmp_path / "log", entry(2**64 - 1, 0, FLUSH), entry(1, 1, DISCARD))
    assert run("replay-log", path, "--onto", tmp_path / "target")[0] == 0


@pytest.mark.parametrize("told", [str(2**63), "9" * 400, "9" * 5000])
def test_device_that_is_larger_than_any_is_refused(run, tmp_path, told):
    size = 8192
    text = f"pmem-nbd-start device_bytes={told}".encode()
    path = log_of(tmp_path / "log", entry(0, 0, MARK, text, size), entry(0, 1, 0, b"x" * size, size), size=size)
    status, out, err = run("replay-log", path, "--onto", tmp_path / "target")
    assert (status, out) == (1, "") and "tells of a larger device than there can be: " in err
    assert not (tmp_path / "target").exists()


# ---- replay-log ----


@pytest.mark.parametrize(
    ("words", "image", "last"),
    [
        ([], Z + B + Z + Z + C, 7),
        (["--to", 0], A + A, 0),
        (["--next-flush"], A + A, 1),
        (["--next-fua"], A + B, 2),
        (["--next-fua", "--next-flush"], A + A, 1),
        (["--to-mark", "half way"], A + B, 3),
        (["--limit", 3], A + B, 2),
        (["--no-discard"], A + B + Z + Z + C, 7),
        (["--from", 2, "--next-flush"], None, 6),
        (["--from-mark", "half way", "--to", 4], None, 4),
    ],
)
def test_replay_stops_where_it_is_told(run, log, tmp_path, words, image, last):
    target = tmp_path / "target"
    if image is None:
        target.write_bytes(bytes(4096))
    status, out, err = run("replay-log", log, "--onto", target, *words, "-j")
    assert status == 0, err
    told = json.loads(out)
    assert (told["last"], told["next"], told["count"]) == (last, last + 1, 8)
    if image is not None:
        needed = 2560 if last > 4 else 1024
        assert target.read_bytes() == image.ljust(needed, b"\0")
    assert run("replay-log", log, "--find", *words)[1] == f"{last}\n"


def test_replay_goes_on_where_it_stopped(run, log, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("replay-log", log, "--onto", whole)
    parts.write_bytes(bytes(2560))
    said = run("replay-log", log, "--onto", parts, "--next-flush")[1]
    assert said == f"{parts}: replayed entries 0 to 1; --from 2 goes on\n"
    said = run("replay-log", log, "--onto", parts, "--from", 2)[1]
    assert said.endswith("entries 2 to 7; the end of the log\n")
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--to", 8], "no entry 8 from entry 0 on: an entry up to 7"),
        (["--from", 8], "no entry from number 8 on: one of 8 entries"),
        (["--to-mark", "none"], "no mark 'none' from entry 0 on"),
        (["--from-mark", "none"], "no mark 'none': a mark that pmem-nbd log shows"),
        (["--from", 3, "--next-fua"], "no fua from entry 3 on"),
        (["--from", 2], "does not exist, and entry 2 is not the first"),
        (["--from", 2, "--from-mark", "x"], "--from, --from-mark: both say where to begin"),
        (["--check", "flush"], "--check, --on-copy: have nothing to run: --fsck beside them"),
        (["--fsck", "true", "--check", "often"], "--check often: is no such point"),
        (["--find"], "--onto, --find: both or neither is given: exactly one of them"),
    ],
)
def test_replay_that_cannot_be_is_refused_before_it_begins(run, log, tmp_path, words, text):
    status, out, err = run("replay-log", log, "--onto", tmp_path / "target", *words)
    assert status in (1, 2) and out == "" and text in err
    assert not (tmp_path / "target").exists()


def test_target_that_is_too_small_is_not_touched(run, log, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"x" * 2559)
    status, _, err = run("replay-log", log, "--onto", target)
    assert status == 1 and f"{target}: too small: 2559 bytes: 2560 bytes, where entry 5 ends" in err
    assert target.read_bytes() == b"x" * 2559


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_log_is_not_replayed_onto_itself(run, log, tmp_path, link):
    before, target = log.read_bytes(), log
    if link:
        target = tmp_path / "target"
        link(log, target)
    status, out, err = run("replay-log", log, "--onto", target, "--to", 3)
    assert (status, out, err) == (2, "", f"{target}: is the log itself: another file, or a block device\n")
    assert log.read_bytes() == before


@pytest.mark.parametrize("name", ["media", "new", "journal/new"])
def test_nothing_is_replayed_into_an_image(run, log, tmp_path, name):
    disk = make(tmp_path / "disk.pmem", 16 << 20)
    before = (disk / "media").read_bytes()
    status, out, err = run("replay-log", log, "--onto", disk / name)
    assert (status, out) == (2, "") and f"{disk / name}: lies within the image {disk.resolve()}: " in err
    assert (disk / "media").read_bytes() == before and not (disk / "new").exists()


def test_sectors_of_4096_bytes_are_understood(run, tmp_path):
    """dm-log-writes takes the sector size of the device below."""
    path = log_of(tmp_path / "log", entry(1, 1, 0, b"a" * 4096, 4096), entry(0, 0, FLUSH, size=4096), size=4096)
    run("replay-log", path, "--onto", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes(4096) + b"a" * 4096


@pytest.mark.kernel
@needs("loop")
def test_block_device_is_replayed_onto_unless_somebody_uses_it(run, log, tmp_path):
    (tmp_path / "disk").write_bytes(b"x" * (1 << 20))
    losetup = ["losetup", "--show", "--find", tmp_path / "disk"]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    try:
        held = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            status, _, err = run("replay-log", log, "--onto", device)
            assert status == 1 and "busy" in err
        finally:
            os.close(held)
        assert run("replay-log", log, "--onto", device)[0] == 0
        assert "block device" in run("replay-log", log, "--onto", device, "--fsck", "true", "--on-copy")[2]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert (tmp_path / "disk").read_bytes()[:3072] == Z + B + b"x" * 1024 + C + b"x" * 512


# ---- checks ----


@pytest.mark.parametrize(
    ("when", "points"), [("flush", [1, 6]), (None, [1, 6]), ("fua", [2]), ("mark", [3, 7]), ("3", [2, 5])]
)
def test_check_runs_at_every_chosen_point(run, log, tmp_path, when, points):
    target, seen = tmp_path / "target", tmp_path / "seen"
    words = ["--fsck", f'echo "$ENTRY $TARGET" >> {seen}', *(["--check", when] if when else [])]
    status, out, _ = run("replay-log", log, "--onto", target, *words)
    assert status == 0 and f"{len(points)} times checked" in out
    assert seen.read_text() == "".join(f"{number} {target}\n" for number in points)


def test_first_check_that_fails_ends_it_with_its_entry(run, log, tmp_path):
    target = tmp_path / "target"
    status, out, err = run(
        "replay-log", log, "--onto", target, "--fsck", "exit $((ENTRY == 2 ? 9 : 0))", "--check", "1"
    )
    assert (status, out) == (1, "")
    assert err.endswith(f"{target}: the check failed with status 9 at entry 2: status 0\n")
    assert target.read_bytes()[512:1024] == B, "it is left as it was checked"


def test_check_on_a_copy_may_change_it(run, log, tmp_path):
    target, kept = tmp_path / "target", tmp_path / "kept"
    change = f"cmp $TARGET {target} && echo overwritten > $TARGET && echo $TARGET > {kept}"
    assert run("replay-log", log, "--onto", target, "--fsck", change, "--on-copy")[0] == 0
    assert target.read_bytes() == Z + B + Z + Z + C
    assert not Path(kept.read_text().strip()).exists()


def test_terminated_check_leaves_no_copy(log, tmp_path):
    command = [sys.executable, "-c", "import sys; from pmem_core import cli; sys.exit(cli.main())"]
    words = ["replay-log", log, "--onto", tmp_path / "target", "--on-copy", "--fsck", "kill $PPID; exec sleep 60"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130 and done.stderr.strip() == ""
    assert sorted(one.name for one in tmp_path.iterdir()) == ["log", "target"]


INTERRUPTED = """
import signal, subprocess, sys, time
class Popen(subprocess.Popen):
    def __init__(self, *rest, **named):
        super().__init__(*rest, **named)
        open({pid!r}, "w").write(str(self.pid))
        signal.raise_signal(signal.SIGTERM)
subprocess.Popen = Popen
from pmem_core import cli
sys.exit(cli.main())
"""


def test_check_that_is_interrupted_while_it_starts_does_not_go_on(log, tmp_path):
    pid = tmp_path / "pid"
    words = ["replay-log", log, "--onto", tmp_path / "target", "--fsck", "exec sleep 60"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(pid=str(pid)), *words], stderr=2, check=False, timeout=60
    )
    check = int(pid.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(check, signal.SIGKILL)
        pytest.fail(f"the check goes on, as {check}")
    assert done.returncode == 130


# ---- a server that logs ----


@pytest.fixture
def folder():
    with runtime_directory() as path:
        yield path


@needs("nbdkit", "libnbd")
def test_server_logs_what_two_clients_do(tmp_path, run):
    """Both write, flush, trim and zero the same places; at the end the log gives what the device holds."""
    print(f"seed {SEED}")
    disk, log, failures = make(tmp_path / "disk.pmem", 16 << 20), tmp_path / "log", []
    with serving(disk, f"logwrites={log}") as served:
        clients = [served.connect(), served.connect()]
        assert clients[0].get_block_size(0) == 512  # the smallest

        def work(client, chance):
            try:
                for _ in range(150):
                    offset, count, fua = 512 * chance.randrange(200), 512 * chance.randint(1, 20), chance.randrange(2)
                    what = chance.randrange(8)
                    if what < 5:
                        client.pwrite(chance.randbytes(count), offset + chance.choice((0, 0, 7)), fua)
                    elif what < 6:
                        client.trim(8 * count, offset, fua)
                    elif what < 7:
                        client.zero(count, offset, fua)
                    else:
                        client.flush()
            except Exception as error:
                failures.append(error)

        threads = [
            threading.Thread(target=work, args=(client, random.Random(SEED + number)))
            for number, client in enumerate(clients)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not failures
        clients[0].flush()
        held = clients[1].pread(1 << 20, 0)
        found = log_reader.read(log)
        assert found[-1].flags == FLUSH and log_reader.apply(found, 16 << 20)[: 1 << 20] == held
    assert log_reader.read(log)[-1].text == b"pmem-nbd-end"
    assert run("replay-log", log, "--onto", tmp_path / "target")[0] == 0
    with Device(disk, read_only=True) as device:
        assert (tmp_path / "target").read_bytes() == device.read(device.plan.device_bytes, 0)


@needs("nbdkit", "libnbd")
def test_killed_server_leaves_a_log_of_what_was_flushed(tmp_path):
    disk, log = make(tmp_path / "disk.pmem", 16 << 20), tmp_path / "log"
    with serving(disk, f"logwrites={log}") as served:
        client = served.connect()
        for number in range(1, 30):
            client.pwrite(bytes([number]) * 4096, 4096 * number)
            if number % 3 == 0:
                client.flush()
        client.pwrite(b"x" * 4096, 0)
        served.stop(signal.SIGKILL)
    found = log_reader.read(log)
    assert found[-1].flags == FLUSH and sum(one.flags == FLUSH for one in found) == 9
    image = log_reader.apply(found, 16 << 20)
    assert [image[4096 * number] for number in range(30)] == [number if number <= 27 else 0 for number in range(30)]


@needs("nbdkit", "libnbd")
@pytest.mark.kernel
def test_full_disk_under_the_log_is_enospc_and_the_server_lives(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    disk = make(tmp_path / "disk.pmem", 16 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", small], check=True)
    try:
        with serving(disk, f"logwrites={small / 'log'}") as served:
            client = served.connect()
            client.pwrite(b"a" * (1 << 19), 0)
            client.flush()
            assert refused(client.pwrite, b"b" * (4 << 20), 0) == errno.ENOSPC
            assert client.pread(4096, 0) == b"a" * 4096, "it was refused before it was done"
            client.pwrite(b"c" * 4096, 0)
            client.flush()
            assert log_reader.read(small / "log")[-2].data == b"c" * 4096
            assert "no room left" in served.said
    finally:
        subprocess.run(["umount", small], check=True)


@needs("nbdkit")
def test_mark_is_put_into_a_log_that_is_written(run, folder, tmp_path):
    disk, log = make(tmp_path / "disk.pmem", 16 << 20), tmp_path / "log"
    assert run("serve", disk, "-b", "--log-writes", log)[0] == 0
    assert run("log", log, "--mark", "here, at 1 o'clock") == (0, "", "")
    assert [one.text for one in log_reader.read(log)][1:] == [b"here, at 1 o'clock"]
    told = json.loads(run("log", log, "--mark", "and here", "-j")[1])
    assert told == {"log": str(log), "mark": "and here", "number": 2}
    status, _, err = run("log", log, "--mark", "x" * 480)
    assert status == 2 and "480 bytes" in err
    server.stop(server.servers()[0])
    status, _, err = run("log", log, "--mark", "late")
    assert status == 1 and "no server writes it" in err
    assert [one.text for one in log_reader.read(log)][3:] == [b"pmem-nbd-end"]


def let_in(served, name: bytes) -> bool:
    """Whether a client may have the export of this name; libnbd's Python asks for no name that is not UTF-8."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(served.socket))
        client.recv(18, socket.MSG_WAITALL)
        client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
        return bool(client.recv(10, socket.MSG_WAITALL))


@needs("nbdkit", "libnbd")
def test_export_is_open_to_a_name_that_is_no_utf8_unless_it_is_a_mark(tmp_path):
    disk, log = make(tmp_path / "disk.pmem", 16 << 20), tmp_path / "log"
    with serving(disk, f"logwrites={log}") as served:
        served.connect()
        assert let_in(served, b"caf\xe9") and let_in(served, b"\xffmark:x")
        assert not let_in(served, b"mark:caf\xe9")
        assert "mark: is not UTF-8: a text that is\n" in served.said and "bug" not in served.said
    assert [one.text for one in log_reader.read(log)][1:] == [b"pmem-nbd-end"]


@needs("nbdkit")
def test_log_that_cannot_be_made_is_told_before_it_serves(run, folder, tmp_path):
    disk = make(tmp_path / "disk.pmem", 16 << 20)
    (tmp_path / "log").write_text("precious")
    for words, text in (
        (["--log-writes", tmp_path / "log"], "exists already: a new file"),
        (["--log-writes", tmp_path / "none" / "log"], "there is no such directory"),
        (["--log-writes", tmp_path / "new", "--read-only"], "--log-writes: has nothing to log"),
    ):
        status, _, err = run("serve", disk, "-b", *words)
        assert status in (1, 2) and text in err
    assert (tmp_path / "log").read_text() == "precious" and not (tmp_path / "new").exists()


def test_server_without_a_log_has_the_callbacks_it_always_had():
    """Nothing of it may cost a server that does not log."""
    source = (Path(cli.__file__).parent.parent.parent / "nbd_plugin" / "pmem.py").read_text()
    hot = source[source.index("# ---- requests ----") :]
    assert "log" not in hot


def test_log_that_has_no_room_to_begin_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("pwrite", "pwritev"):
        monkeypatch.setattr(os, name, full)
    with pytest.raises(HostFull):
        Writer(tmp_path / "log", device_bytes=SIZE)
    assert not list(tmp_path.iterdir())


def test_interrupted_check_ends_with_what_it_has_started(log, tmp_path):
    pid = tmp_path / "pid"
    check = f"sleep 60 & echo $! > {pid}; kill $PPID; wait"
    command = [sys.executable, "-c", "import sys; from pmem_core import cli; sys.exit(cli.main())"]
    words = ["replay-log", log, "--onto", tmp_path / "target", "--fsck", check]
    assert subprocess.run([*command, *words], check=False, timeout=60).returncode == 130
    end = time.monotonic() + 10
    while psutil.pid_exists(int(pid.read_text())) and time.monotonic() < end:
        time.sleep(0.01)
    assert not psutil.pid_exists(int(pid.read_text()))


def test_study_and_pagemaps_write_into_no_image(tmp_path, run):
    disk = make(tmp_path / "disk.pmem", 16 << 20)
    state = (disk / "state").read_bytes()
    for words in (
        ["study", "-o", disk],
        ["study", "-o", tmp_path / "study", "--markdown", disk / "state", "--force"],
        ["pagemaps", "-o", disk],
    ):
        code, _, said = run(*words)
        assert code == 2 and "lies within the image" in said, words
    assert (disk / "state").read_bytes() == state
