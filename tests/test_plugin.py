# SPDX-License-Identifier: MIT
"""The nbdkit plugin, from a client's side: libnbd speaks to a real nbdkit that serves a real image."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs
from independent_reader import FRAMES_AT, Reader

from pmem_core import geometry, image, launch, layout, snapshot
from pmem_core.check import check
from pmem_core.device import Device
from pmem_core.journal import Journal

pytestmark = needs("nbdkit", "libnbd")

SIZE = 48 << 20
PAGE = 4096
# Small enough for many moves during a test.
MOVING = {"interval": 10, "region_frames": 1024, "gap_frames": 16}


def make(path: Path, size: int = SIZE, **options) -> Path:
    """An image at `path`; leveling that moves, unless told otherwise."""
    options = {"leveling_name": "start_gap", **options}
    if options["leveling_name"] == "start_gap":
        options.setdefault("parameters", MOVING)
    image.create(path, geometry.plan(size, **options))
    return path


class Server:
    """nbdkit in its foreground, on a socket in a folder of its own; `said` is what it wrote to stderr."""

    def __init__(
        self, folder: Path, path: Path, *words: str, plugin: Path = launch.PLUGIN, options=(), prefix=()
    ) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        self._clients = []
        self._log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                *prefix,
                "nbdkit",
                "-f",
                "--exit-with-parent",
                *options,
                "-U",
                self.socket,
                "python",
                plugin,
                f"image={path}",
                *words,
            ],
            env=launch.nbdkit_environment(),
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            cwd=folder,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def connect(self):
        """A new connection, with block status; waits until the server is ready."""
        import nbd

        deadline = time.monotonic() + 120  # the first start on a machine compiles
        while True:
            client = nbd.NBD()
            client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            # The server is to be asked, also what a client could know to be wrong.
            client.set_strict_mode(0)
            try:
                client.connect_unix(str(self.socket))
                self._clients.append(client)
                return client
            except nbd.Error:
                assert self.process.poll() is None, self.said
                assert time.monotonic() < deadline, self.said
                time.sleep(0.01)

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End the server; its exit status."""
        if how != signal.SIGKILL:
            # A terminated nbdkit waits until its clients have gone.
            self.leave()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(30)

    def leave(self) -> None:
        """Close every connection made here."""
        import nbd

        while self._clients:
            with contextlib.suppress(nbd.Error):
                self._clients.pop().shutdown()


@contextlib.contextmanager
def serving(path: Path, *words: str, **options) -> Iterator[Server]:
    """A server of the image at `path`, gone at the end whatever happens."""
    # A socket's path may have 107 bytes, and pytest's folders are long.
    folder = Path(tempfile.mkdtemp(prefix="pn-"))
    server = Server(folder, path.absolute(), *words, **options)
    try:
        yield server
        server.stop()
    finally:
        server.stop(signal.SIGKILL)
        server._log.close()
        shutil.rmtree(folder)


def refused(request, *arguments, **options) -> int:
    """The errno with which a request fails."""
    import nbd

    with pytest.raises(nbd.Error) as caught:
        request(*arguments, **options)
    return caught.value.errnum


def extents(client, count: int, offset: int, flags: int = 0) -> list[tuple[int, int]]:
    """(bytes, 0 where data, 3 where a hole that reads as zeros) from `offset` on."""
    found = []
    client.block_status(
        count,
        offset,
        lambda context, at, entries, error: found.extend(zip(entries[::2], entries[1::2], strict=True)),
        flags=flags,
    )
    return found


def tally_of(path: Path):
    """The tally of an image that nobody writes to."""
    with Device(path, read_only=True) as device:
        return device.mapping.core["tally"][0].copy()


def digest(path: Path) -> dict[str, bytes]:
    """Every file of an image, but for the lock."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("lock", "lock.mdb")
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for every test that needs none of its own; each test keeps to bytes of its own."""
    with serving(make(tmp_path_factory.mktemp("shared") / "disk.pmem")) as running:
        yield running


@pytest.fixture
def client(server):
    yield server.connect()
    server.leave()


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "disk.pmem")


COMPILED = ", ".join(f"{name}: builtin_function_or_method" for name in ("pread", "pwrite", "flush"))


@pytest.mark.parametrize("place", ["/var/tmp", "/dev/shm"])
def test_requests_go_to_compiled_code(place):
    with tempfile.TemporaryDirectory(dir=place) as folder:
        path = make(Path(folder) / "disk.pmem")
        with serving(path, options=["-v"]) as server:
            server.connect().pwrite(bytes(PAGE), 0)
            assert COMPILED in server.said


def test_flush_of_a_read_only_server_has_nothing_to_do(path):
    with serving(path, "readonly=true", options=["-v"]) as server:
        server.connect().flush()
        assert COMPILED.replace("flush: builtin_function_or_method", "flush: function") in server.said


MIB = 1 << 20
HOLE = 3  # NBD_STATE_HOLE | NBD_STATE_ZERO


# ---- what the client is told ----


def test_size_is_what_placement_and_leveling_leave(server, client, tmp_path):
    plan = geometry.plan(SIZE, parameters=MOVING)
    assert client.get_size() == plan.device_bytes
    assert plan.device_bytes % PAGE == 0


def test_block_sizes_are_told(client):
    import nbd

    sizes = [client.get_block_size(which) for which in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
    assert sizes == [1, PAGE, 32 * MIB]


@pytest.mark.parametrize("what", ["flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn"])
def test_client_is_told_that_it_can(client, what):
    assert getattr(client, f"can_{what}")()


def test_client_is_told_what_it_is_not(client):
    assert not client.is_read_only()
    assert not client.is_rotational()


@pytest.mark.parametrize(("placement", "words"), [("none", []), ("ram", ["logwrites=writes"])], ids=str)
def test_without_descriptors_on_the_medium_fast_zero_is_refused_and_does_nothing(tmp_path, placement, words):
    import nbd

    with serving(make(tmp_path / "disk.pmem", placement_name=placement), *words) as running:
        client = running.connect()
        client.pwrite(b"k" * PAGE, 0)
        assert refused(client.zero, PAGE, 0, nbd.CMD_FLAG_FAST_ZERO) == errno.EOPNOTSUPP
        assert client.pread(PAGE, 0) == b"k" * PAGE
        client.zero(PAGE, 0)
        assert client.pread(PAGE, 0) == bytes(PAGE)


@pytest.mark.parametrize("words", [[], ["readonly=true"]], ids=str)
def test_no_flag_of_any_request_ends_a_server(tmp_path, words):
    import nbd

    with serving(make(tmp_path / "disk.pmem", placement_name="none"), *words) as running:
        client = running.connect()
        requests = [
            lambda flags: client.pread(PAGE, 0, flags),
            lambda flags: client.pwrite(bytes(PAGE), 0, flags),
            lambda flags: client.trim(PAGE, 0, flags),
            lambda flags: client.zero(PAGE, 0, flags),
            lambda flags: client.cache(PAGE, 0, flags),
            lambda flags: client.flush(flags),
            lambda flags: client.block_status(PAGE, 0, lambda *_: 0, flags),
        ]
        for request, flags in itertools.product(requests, range(32)):
            with contextlib.suppress(nbd.Error):
                request(flags)
        assert client.pread(PAGE, 0) == bytes(PAGE)


# ---- requests ----


def test_never_written_device_reads_as_zeros(client):
    assert client.pread(3 * PAGE + 5, 40 * MIB + 77) == bytes(3 * PAGE + 5)


@pytest.mark.parametrize("count", [1, 511, 4095, 4096, 4097, 100_000, 4 * MIB])
@pytest.mark.parametrize("offset", [0, 1, 4095, 64 * PAGE - 1])
def test_write_reads_back_and_touches_nothing_else(client, count, offset):
    start, stop = offset, offset + count + PAGE
    before = client.pread(stop, 0)
    data = random.Random(count ^ offset).randbytes(count)
    client.pwrite(data, start)
    assert client.pread(stop, 0) == before[:start] + data + before[start + count :]


def test_request_of_32_mib(path):
    data = random.Random(32).randbytes(32 * MIB)
    with serving(path) as running:
        client = running.connect()
        client.pwrite(data, 12345)
        assert client.pread(len(data), 12345) == data


def test_last_byte_can_be_written(client):
    last = client.get_size() - 1
    client.pwrite(b"!", last)
    assert client.pread(2, last - 1) == b"\0!"


def test_beyond_the_end_is_refused_and_the_server_lives(client):
    size = client.get_size()
    assert refused(client.pread, 2, size - 1) in (22, 28)
    assert refused(client.pwrite, b"xy", size - 1) in (22, 28)
    assert len(client.pread(1, size - 1)) == 1


@pytest.mark.parametrize(
    ("placement", "leveling"),
    [*itertools.product(["interleaved", "linear", "none"], ["none", "start_gap"]), ("ram", "start_gap")],
)
def test_random_requests_against_a_shadow(tmp_path, placement, leveling):
    import nbd

    chance = random.Random(f"{placement} {leveling}")
    path = make(tmp_path / "disk.pmem", 12 * MIB, placement_name=placement, leveling_name=leveling)
    with serving(path) as running:
        client = running.connect()
        can_fast = placement in ("interleaved", "linear")
        shadow = bytearray(client.get_size())
        for _ in range(400):
            count = chance.choice((1, 2, 512, 4096, chance.randint(1, 9000), 65536, chance.randint(1, 1 << 19)))
            offset = chance.choice((chance.randrange(len(shadow)), chance.randrange(1 << 17)))
            offset = min(offset, len(shadow) - count)
            what = chance.choice(
                ("read", "read", "write", "write", "write", "write", "zero", "no_hole", "trim", "flush")
            )
            if what == "read":
                assert client.pread(count, offset) == shadow[offset : offset + count]
            elif what == "write":
                data = chance.randbytes(count)
                client.pwrite(data, offset, chance.choice((0, 0, 0, nbd.CMD_FLAG_FUA)))
                shadow[offset : offset + count] = data
            elif what == "zero":
                client.zero(count, offset, chance.choice((0, nbd.CMD_FLAG_FAST_ZERO)) if can_fast else 0)
                shadow[offset : offset + count] = bytes(count)
            elif what == "no_hole":
                client.zero(count, offset, nbd.CMD_FLAG_NO_HOLE)
                shadow[offset : offset + count] = bytes(count)
            elif what == "trim":
                client.trim(count, offset)
                first, last = -(-offset // PAGE) * PAGE, (offset + count) // PAGE * PAGE
                shadow[first:last] = bytes(max(0, last - first))
            else:
                client.flush()
        assert client.pread(len(shadow), 0) == shadow
    assert Reader(path).content() == shadow
    tally = tally_of(path)
    assert tally["worn"].sum() == sum_of_wear(path)
    assert tally["moves"] > 0 or leveling == "none"


def sum_of_wear(path: Path) -> int:
    """The sum of the wear file's counters."""
    return sum(memoryview((path / "wear").read_bytes()).cast("I"))


def test_fua_makes_a_write_durable_by_itself(path):
    import nbd

    data = os.urandom(5000)
    with serving(path) as running:
        client = running.connect()
        client.pwrite(data, 4000, nbd.CMD_FLAG_FUA)
        client.trim(PAGE, 2 * MIB, nbd.CMD_FLAG_FUA)
        client.zero(PAGE, 3 * MIB, nbd.CMD_FLAG_FUA)
        assert client.pread(5000, 4000) == data
    assert tally_of(path)["flushes"] == 0, "a FUA is no flush of the client's"


@pytest.mark.parametrize("how", ["pwrite", "trim", "zero", "flush"])
def test_fua_syncs_through_the_server(tmp_path, how):
    """With pending descriptors a FUA shows: afterwards they are on the medium."""
    import nbd

    path = make(tmp_path / "disk.pmem", 8 << 20, leveling_name="none", descriptor_writes="coalesced")
    # One thread, whose first request is another: compiled code has the second, if it takes it.
    with serving(path, options=["-t", "1"]) as server:
        client = server.connect()
        client.pwrite(b"x" * PAGE, 0)
        assert snapshot.look(path).tally["worn"][layout.CAUSE_DESCRIPTOR] == 0
        request = [b"y"] if how == "pwrite" else [PAGE]
        if how == "flush":
            client.flush()
        else:
            getattr(client, how)(*request, 0, nbd.CMD_FLAG_FUA)
        assert snapshot.look(path).tally["worn"][layout.CAUSE_DESCRIPTOR] == 1


def test_flush_is_counted(path):
    with serving(path) as running:
        client = running.connect()
        client.pwrite(b"x", 0)
        client.flush()
        client.flush()
    assert tally_of(path)["flushes"] == 2


def test_trim_frees_whole_pages_only(client):
    at = 8 * MIB
    client.pwrite(b"t" * 4 * PAGE, at)
    client.trim(2 * PAGE, at + 100)
    assert client.pread(4 * PAGE, at) == b"t" * PAGE + bytes(PAGE) + b"t" * 2 * PAGE


def test_trim_gives_the_host_its_space_back(path):
    with serving(path) as running:
        client = running.connect()
        client.pwrite(os.urandom(16 * MIB), 0)
        client.flush()
        full = (path / "media").stat().st_blocks
        client.trim(16 * MIB, 0)
        assert (path / "media").stat().st_blocks * 512 < full * 512 - 12 * MIB


def test_zero_frees_pages(client):
    at = 9 * MIB
    client.pwrite(b"z" * 4 * PAGE, at)
    client.zero(3 * PAGE, at + 1)
    assert client.pread(4 * PAGE, at) == b"z" + bytes(3 * PAGE) + b"z" * (PAGE - 1)
    assert extents(client, 4 * PAGE, at) == [(PAGE, 0), (2 * PAGE, HOLE), (PAGE, 0)]


def test_zero_without_holes_keeps_the_pages(client):
    import nbd

    at = 10 * MIB
    client.zero(4 * PAGE, at, nbd.CMD_FLAG_NO_HOLE)
    assert client.pread(4 * PAGE, at) == bytes(4 * PAGE)
    assert extents(client, 4 * PAGE, at) == [(4 * PAGE, 0)]


def test_fast_zero_frees_pages(client):
    import nbd

    at = 11 * MIB
    client.pwrite(b"f" * 2 * PAGE, at)
    client.zero(2 * PAGE, at, nbd.CMD_FLAG_FAST_ZERO)
    assert client.pread(2 * PAGE, at) == bytes(2 * PAGE)
    assert extents(client, 2 * PAGE, at) == [(2 * PAGE, HOLE)]


def test_fast_zero_without_holes_is_refused_and_does_nothing(client):
    import nbd

    at = 12 * MIB
    client.pwrite(b"k" * PAGE, at)
    assert refused(client.zero, PAGE, at, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE) == 95
    assert client.pread(PAGE, at) == b"k" * PAGE


def test_extents_follow_writes_and_trims(client):
    at = 16 * MIB
    client.pwrite(b"e", at + 3 * PAGE + 17)
    client.pwrite(b"e" * 4 * PAGE, at + 8 * PAGE)
    client.trim(PAGE, at + 9 * PAGE)
    wanted = [(3 * PAGE, HOLE), (PAGE, 0), (4 * PAGE, HOLE), (PAGE, 0), (PAGE, HOLE), (2 * PAGE, 0), (4 * PAGE, HOLE)]
    assert extents(client, 16 * PAGE, at) == wanted


def test_extents_can_be_asked_for_one_by_one(client):
    import nbd

    at = 17 * MIB
    client.pwrite(b"1" * PAGE, at + PAGE)
    assert extents(client, 4 * PAGE, at, nbd.CMD_FLAG_REQ_ONE) == [(PAGE, HOLE)]
    assert extents(client, 3 * PAGE, at + PAGE + 5, nbd.CMD_FLAG_REQ_ONE) == [(PAGE - 5, 0)]


def test_extents_of_the_whole_device_add_up(client):
    size, at = client.get_size(), 0
    while at < size:
        found = extents(client, size - at, at)
        assert found
        at += sum(count for count, _ in found)
    assert at == size


def test_cache_changes_nothing(client):
    at = 18 * MIB
    client.pwrite(b"c" * 10000, at + 50)
    client.cache(3 * PAGE + 1, at + 1)
    client.cache(client.get_size() - at, at)
    assert client.pread(10000, at + 50) == b"c" * 10000


# ---- several connections ----


def test_flush_on_one_connection_serves_them_all(server, client):
    other = server.connect()
    client.pwrite(b"one for all", 20 * MIB)
    other.flush()
    assert other.pread(11, 20 * MIB) == b"one for all"


def test_connections_at_once_do_not_disturb_each_other(server):
    failures = []

    def hammer(number: int) -> None:
        chance = random.Random(number)
        client = server.connect()
        shadow = bytearray(MIB)
        client.zero(MIB, (24 + number) * MIB)
        for turn in range(300):
            count = chance.choice((1, 1000, 4096, 20000))
            at = chance.randrange(MIB - count)
            if turn % 3:
                shadow[at : at + count] = data = chance.randbytes(count)
                client.pwrite(data, (24 + number) * MIB + at)
            elif client.pread(count, (24 + number) * MIB + at) != shadow[at : at + count]:
                failures.append((number, turn))
            if turn % 50 == 0:
                client.flush()
        if client.pread(MIB, (24 + number) * MIB) != shadow:
            failures.append((number, "end"))

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.leave()
    assert not failures


def test_connections_that_have_gone_leave_nothing_in_memory(tmp_path):
    def resident() -> int:
        return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * PAGE

    def come_and_go(times: int) -> None:
        for _ in range(times):
            client = server.connect()
            for at in range(4):
                client.pwrite(b"x" * PAGE, at * PAGE)
            server.leave()

    with serving(make(tmp_path / "disk.pmem"), options=["-t", "3"]) as server:
        come_and_go(20)
        before = resident()
        come_and_go(300)
        assert resident() - before < 4 * MIB


def test_connections_that_come_and_go_at_once_do_not_harm_the_server(tmp_path, monkeypatch):
    """A thread's state in Python is given back after its end, and never that of a thread that has just begun."""
    monkeypatch.setenv("PYTHONMALLOC", "debug")  # what is used after it was given back is a crash, not luck
    failures = []

    def come_and_go(number: int) -> None:
        import nbd

        try:
            for _ in range(150):
                client = nbd.NBD()
                client.connect_unix(str(server.socket))
                for at in range(3):
                    client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(PAGE)), at * PAGE)
                client.pwrite(bytes([number]) * PAGE, number * PAGE)
                assert client.pread(PAGE, number * PAGE) == bytes([number]) * PAGE
                client.shutdown()
        except (nbd.Error, AssertionError) as error:
            failures.append(error)

    with serving(make(tmp_path / "disk.pmem"), options=["-t", "3"]) as server:
        server.connect()
        threads = [threading.Thread(target=come_and_go, args=(4 + number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.process.poll() is None, server.said
    assert not failures


@needs("unshare")
def test_threads_are_known_by_the_kernel_where_proc_is_of_another_pid_namespace(tmp_path):
    """In a container with the host's /proc its threads' numbers are other ones there, or none."""
    prefix = ["unshare", "--pid", "--fork", "--kill-child"]
    with serving(make(tmp_path / "disk.pmem"), prefix=prefix) as server:
        writer = server.connect()
        for turn in range(40):
            writer.pwrite(bytes([turn]) * PAGE, 0)
            server.connect().pread(PAGE, 0)
            assert writer.pread(PAGE, 0) == bytes([turn]) * PAGE
        assert server.process.poll() is None, server.said
        server.stop(signal.SIGKILL)  # the one signal that unshare hands on


def test_room_in_sockets_is_no_reason_to_refuse_a_client():
    """Where no file may be opened any more, connections that are there go on, and so does this one."""
    lines = "import resource; from nbd_plugin import sockets; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"
    done = subprocess.run(
        [sys.executable, "-c", f"{lines}; sockets.widen()"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_writers_of_one_page_never_mix_within_it(server):
    """Both write the same whole page again and again: a reader sees one or the other."""
    at = 30 * MIB
    stop = threading.Event()

    def paint(colour: bytes) -> None:
        client = server.connect()
        while not stop.is_set():
            client.pwrite(colour * PAGE, at)

    threads = [threading.Thread(target=paint, args=(colour,)) for colour in (b"a", b"b")]
    client = server.connect()
    client.pwrite(b"a" * PAGE, at)
    for thread in threads:
        thread.start()
    try:
        seen = {bytes(client.pread(PAGE, at)) for _ in range(300)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        server.leave()
    assert seen <= {b"a" * PAGE, b"b" * PAGE}


def test_captive_server_on_standard_input(path):
    import nbd

    client = nbd.NBD()
    command = ["nbdkit", "-s", "--exit-with-parent", "python", str(launch.PLUGIN), f"image={path}"]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = launch.nbdkit_environment()["PYTHONPATH"]
    try:
        client.connect_command(command)
        client.pwrite(b"captive", 5)
        assert client.pread(7, 5) == b"captive"
        client.shutdown()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


# ---- read-only ----


@pytest.fixture
def written(path):
    with Device(path) as device:
        device.write(memoryview(b"kept" * PAGE), 3 * PAGE)
    return path


@pytest.mark.parametrize("how", ["readonly=true", "-r"])
def test_read_only_server_reads_and_refuses(written, how):
    words, options = ([], ["-r"]) if how == "-r" else ([how], [])
    with serving(written, *words, options=options) as running:
        client = running.connect()
        assert client.is_read_only()
        assert client.pread(4 * PAGE, 3 * PAGE) == b"kept" * PAGE
        assert refused(client.pwrite, b"x", 0) == 1
        assert refused(client.trim, PAGE, 3 * PAGE) == 1
        assert refused(client.zero, PAGE, 3 * PAGE) == 1
        assert client.pread(4 * PAGE, 3 * PAGE) == b"kept" * PAGE
        assert extents(client, 8 * PAGE, 0) == [(3 * PAGE, HOLE), (4 * PAGE, 0), (PAGE, HOLE)]


def test_read_only_image_is_untouched_byte_for_byte(written):
    before = digest(written)
    with serving(written, "readonly=true") as running:
        client = running.connect()
        client.pread(MIB, 0)
        refused(client.pwrite, b"x", 0)
    assert digest(written) == before


def test_read_only_servers_share_an_image(written):
    with serving(written, "readonly=true") as one, serving(written, "readonly=true") as other:
        assert one.connect().pread(4, 3 * PAGE) == other.connect().pread(4, 3 * PAGE) == b"kept"


# ---- --dump-plugin ----


def test_dump_plugin_says_what_it_is():
    done = subprocess.run(
        ["nbdkit", "python", launch.PLUGIN, "--dump-plugin"],
        capture_output=True,
        text=True,
        check=True,
        env=launch.nbdkit_environment(),
    )
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("pmem_"))
    assert set(told) >= {"pmem_version", "pmem_info_version", "pmem_descriptor_formats"}
    assert told["pmem_placements"] == "interleaved,linear,none,ram"
    assert told["pmem_logwrites_version"] == told["pmem_record_version"] == "1"
    assert set(told["pmem_levelings"].split(",")) >= {"none", "start_gap"}


# ---- damaged data ----


def flip(path: Path, page: int) -> None:
    """Turn one bit of a page around, on the medium of a stopped image."""
    reader = Reader(path)
    at = reader.address(reader.placed_page(page))
    assert at >= FRAMES_AT
    with (path / "media").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def damaged(written):
    flip(written, 4)
    return written


def test_damaged_page_is_eio_and_its_neighbours_are_served(damaged):
    with serving(damaged) as running:
        client = running.connect()
        assert refused(client.pread, PAGE, 4 * PAGE) == 5
        assert refused(client.pread, 3 * PAGE, 3 * PAGE) == 5
        assert client.pread(PAGE, 3 * PAGE) == client.pread(PAGE, 5 * PAGE) == b"kept" * (PAGE // 4)


def test_reads_refused_are_counted(damaged):
    with serving(damaged) as running:
        client = running.connect()
        for _ in range(3):
            refused(client.pread, 1, 4 * PAGE)
    assert tally_of(damaged)["checksum_errors"] == 3


def test_damaged_descriptor_is_eio(tmp_path):
    path = make(tmp_path / "disk.pmem", 8 << 20)
    with Device(path) as device:
        device.write(b"d" * 2 * PAGE, 0)
    reader = Reader(path)
    with (path / "media").open("r+b") as file:
        os.pwrite(file.fileno(), b"\xff", reader.address(reader.placed_descriptor(1)) + 12)
    with serving(path) as server:
        client = server.connect()
        assert client.pread(PAGE, 0) == b"d" * PAGE
        assert refused(client.pread, PAGE, PAGE) == errno.EIO
        assert refused(client.pwrite, b"x", PAGE) == errno.EIO
        assert "page 1: its descriptor fails the checksum" in server.said
    assert tally_of(path)["checksum_errors"] == 2


def test_part_of_a_damaged_page_cannot_be_written(damaged):
    with serving(damaged) as running:
        client = running.connect()
        assert refused(client.pwrite, b"x", 4 * PAGE) == 5


def test_damaged_page_is_whole_again_when_written_whole(damaged):
    with serving(damaged) as running:
        client = running.connect()
        client.pwrite(b"n" * PAGE, 4 * PAGE)
        assert client.pread(PAGE, 4 * PAGE) == b"n" * PAGE


def test_damage_is_said_in_the_log(damaged):
    with serving(damaged) as running:
        refused(running.connect().pread, 1, 4 * PAGE)
        assert "page 4: its data fails the checksum" in running.said


# ---- starts and ends ----


def test_second_start_compiles_nothing(path):
    with serving(path) as running:
        running.connect()
    with serving(path) as running:
        running.connect()
        assert running.said == ""


SPY = """# SPDX-License-Identifier: MIT
import sys
plugin = {plugin!r}
__file__ = plugin
exec(compile(open(plugin).read(), plugin, "exec"), globals())

_ready = get_ready


def get_ready():
    from numba.core import event

    class Spy(event.Listener):
        def on_start(self, found):
            print("COMPILED", found.data["dispatcher"], file=sys.stderr, flush=True)

        def on_end(self, found):
            pass

    _ready()
    event.register("numba:compile", Spy())
"""


def test_nothing_compiles_on_a_request(path, tmp_path):
    import nbd

    spy = tmp_path / "spy.py"
    spy.write_text(SPY.format(plugin=str(launch.PLUGIN)))
    with serving(path, plugin=spy) as running:
        client = running.connect()
        client.pwrite(b"w" * 9000, 5, nbd.CMD_FLAG_FUA)
        client.pread(9000, 5)
        client.zero(3 * PAGE, 7, nbd.CMD_FLAG_FAST_ZERO)
        client.zero(3 * PAGE, 7, nbd.CMD_FLAG_NO_HOLE)
        client.trim(3 * PAGE, 0)
        client.cache(9000, 5)
        client.flush()
        extents(client, MIB, 0)
        running.stop()
        assert "COMPILED" not in running.said, running.said


def test_killed_server_loses_no_completed_write(path):
    chance = random.Random(9)
    with serving(path) as running:
        client = running.connect()
        shadow = bytearray(4 * MIB)
        for _ in range(300):
            count = chance.randint(1, 20000)
            at = chance.randrange(len(shadow) - count)
            shadow[at : at + count] = data = chance.randbytes(count)
            client.pwrite(data, at)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    with serving(path) as running:
        assert running.connect().pread(len(shadow), 0) == shadow
        assert len([line for line in running.said.splitlines() if "recovered" in line]) == 1
    tally = tally_of(path)
    assert tally["moves"] > 0
    assert tally["worn"].sum() == sum_of_wear(path)


def test_terminated_server_closes_the_image(path):
    with serving(path) as running:
        client = running.connect()
        client.pwrite(b"bye", 0)
        assert running.stop(signal.SIGTERM) == 0
    journal = Journal(path / "journal", read_only=True)
    assert [event["event"] for event in journal.events()] == ["created", "opened", "closed"]
    assert journal.session == {"open": False}
    journal.close()
    with serving(path) as running:
        assert running.connect().pread(3, 0) == b"bye"
        assert "recovered" not in running.said


def test_captive_server_closes_the_image_when_its_client_leaves(path):
    done = subprocess.run(
        ["nbdkit", "-U", "-", "python", launch.PLUGIN, f"image={path}", "--run", 'nbdinfo --json "$uri"'],
        capture_output=True,
        text=True,
        check=True,
        env=launch.nbdkit_environment(),
    )
    assert json.loads(done.stdout)["exports"][0]["export-size"] == geometry.plan(SIZE, parameters=MOVING).device_bytes
    journal = Journal(path / "journal", read_only=True)
    assert journal.events()[-1]["event"] == "closed"
    journal.close()


# ---- how descriptors come into being ----


@pytest.mark.parametrize("initialise", ["eager", "section", "subsection", "buddy"])
def test_initialised_image_is_served(tmp_path, initialise):
    """The server compiles nothing once it is ready, and requests still bring descriptors up and give them back."""
    path = make(tmp_path / "disk.pmem", initialise=initialise)
    data = os.urandom(3 * PAGE + 100)
    with serving(path) as running:
        one = running.connect()
        one.pwrite(data, 5 * MIB + 7)
        assert one.pread(len(data), 5 * MIB + 7) == data
        one.trim(MIB, 5 * MIB)
        assert one.pread(len(data), 5 * MIB + 7) == bytes(len(data))
        one.pwrite(data, 40 * MIB)
    assert check(path).clean
    reader = Reader(path)
    assert b"".join(reader.page(page) for page in range(10240, 10244)).startswith(data)


def test_socket_has_room_for_more_than_the_kernel_gives_it(path):
    """That is 208 KiB; with net.core.wmem_max as the kernel has it twice that can be had."""
    with serving(path) as server:
        server.connect()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server.socket))
            client.recv(18)  # NBDMAGIC, IHAVEOPT, flags
            client.sendall(struct.pack(">I8sII", 1, b"IHAVEOPT", 1, 0))  # NBD_OPT_EXPORT_NAME, the default export
            client.recv(134, socket.MSG_WAITALL)  # size, flags, zeros
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 1 << 20))  # NBD_CMD_READ
            deadline, unread = time.monotonic() + 10, 0
            while unread < 256 << 10 and time.monotonic() < deadline:
                (unread,) = struct.unpack("i", fcntl.ioctl(client, termios.FIONREAD, bytes(4)))
                time.sleep(0.01)
    assert unread >= 256 << 10
