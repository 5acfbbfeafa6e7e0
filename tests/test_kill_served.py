# SPDX-License-Identifier: MIT
"""Servers killed with SIGKILL under their clients: fio that verifies, a client with an oracle, ext4 full of fsyncs.

fio and ext4 talk to nbdkit's nbd plugin behind its retry filter: it connects again and asks again, as an nbd-client
with a timeout would, so they never notice.  Every server listens on one socket that the test holds (systemd's
socket activation), so a client that connects while none runs waits for the next.
"""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs
from kills import (
    CHOICES,
    KILLS,
    MIB,
    SEED,
    Choice,
    Oracle,
    Request,
    core_now,
    requests,
    require_clean,
    require_exact_totals,
)
from serving import runtime_directory

from pmem_core import attach, geometry, image, launch
from pmem_core.device import Device
from pmem_core.errors import PmemError

ROUNDS = max(50, KILLS) // len(CHOICES)  # of a choice
FILESYSTEM_ROUNDS = max(3, KILLS // 10)
AT_ONCE = 5
FIO_BYTES = 2 * MIB
PATIENCE = 120  # seconds until a client that connects again must have been served, on a slow machine too


class Served:
    """An image, the server of the moment, and a proxy whose clients do not notice that it is another one."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path, self.recovered = folder, path, 0
        self.proxy_uri = f"nbd+unix:///?socket={folder / 'proxy'}"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / "served"))
        self._listening.listen(16)
        self._log = (folder / "log").open("wb")
        self._server: subprocess.Popen | None = None
        self._proxy = subprocess.Popen(
            [
                *("nbdkit", "-f", "--exit-with-parent", "-U", folder / "proxy", "--filter=retry", "nbd"),
                *(f"socket={folder / 'served'}", "retries=1000", "retry-delay=1", "retry-exponential=no"),
            ],
            stderr=self._log,
        )

    def start(self) -> None:
        """Start the next server."""
        listening = self._listening.fileno()
        self._server = subprocess.Popen(
            [
                *("bash", "-c", 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "bash", str(listening)),
                *("nbdkit", "-f", "--exit-with-parent", "python", launch.PLUGIN, f"image={self.path}"),
            ],
            env=launch.nbdkit_environment(),
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            cwd=self.folder,
            pass_fds=(listening,),
        )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._server.kill()
        self._server.wait()

    def connect(self):
        """A connection to the server itself; waits until it answers."""
        import nbd

        client = nbd.NBD()
        client.connect_unix(str(self.folder / "served"))
        return client

    def stop(self) -> None:
        """End everything; the server by SIGTERM, so that it closes the image."""
        for process in (self._proxy, self._server):
            if process and process.poll() is None:
                process.terminate()
                process.wait(30)
        self._listening.close()
        self._log.close()

    @property
    def said(self) -> str:
        """What servers and proxy wrote to stderr."""
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def served(folder: Path, path: Path) -> Iterator[Served]:
    folder.mkdir(exist_ok=True)
    one = Served(folder, path)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def fio(one: Served) -> Iterator[subprocess.Popen]:
    """Random writes of the first 2 MiB, each read back and verified soon after, for as long as this is open."""
    process = subprocess.Popen(
        [
            *(
                "fio",
                "--name=verified",
                "--ioengine=nbd",
                f"--uri={one.proxy_uri}",
                f"--size={FIO_BYTES}",
                "--loops=1000000",
            ),
            *("--rw=randwrite", "--bs=4k", "--iodepth=4", "--fsync=50", "--verify=crc32c", "--verify_fatal=1"),
            *("--verify_backlog=32", "--verify_state_save=0", f"--randseed={SEED}", "--output-format=json"),
            *("--output=fio.json",),
        ],
        cwd=one.folder,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it ends what it has begun, and reports
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def fio_report(one: Served) -> tuple[int, int]:
    """fio's error, and how many blocks it has read and verified."""
    text = (one.folder / "fio.json").read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    return job["error"], job["read"]["total_ios"]


def send(client, request: Request) -> None:
    """Ask it of a server."""
    if request.name == "write":
        client.pwrite(request.data, request.offset)
    elif request.name == "trim":
        client.trim(len(request.data), request.offset)
    elif request.name == "zero":
        import nbd

        client.zero(len(request.data), request.offset, 0 if request.may_trim else nbd.CMD_FLAG_NO_HOLE)
    else:
        client.flush()


def moved(request: Request, by: int) -> Request:
    return Request(request.name, request.offset + by, request.data, request.may_trim)


class Client:
    """Works behind fio's bytes, sure of what was answered."""

    def __init__(self, one: Served, seed: str) -> None:
        self._one = one
        size = image.load_geometry(one.path, read_only=True).device_bytes - FIO_BYTES
        self._oracle, self._requests = Oracle(size), requests(seed, size)
        self._flying: Request | None = None
        self.answered = 0

    def compare(self, found: bytes) -> None:
        """What the device holds behind fio's bytes, against what it should."""
        self._oracle.accept(found, self._flying)
        self._flying = None

    def work(self, seconds: float) -> None:
        """Compare everything, then work until the server is killed, so many seconds after fio works too."""
        import nbd

        client = self._one.connect()
        self.compare(bytes(client.pread(len(self._oracle.sure), FIO_BYTES)))
        others = self.counted("writes")
        killer: threading.Timer | None = None
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                if killer is None and self.counted("writes") > others:
                    killer = threading.Timer(seconds, self._one.kill)
                    killer.start()
                assert killer or time.monotonic() < deadline, "fio does not come back"
                self._flying = next(self._requests)
                send(client, moved(self._flying, FIO_BYTES))
                self._oracle.answered(self._flying)
                self.answered += 1
                others += self._flying.name == "write"
        except nbd.Error:
            assert killer, "the server ended by itself"
            killer.join()

    def counted(self, name: str) -> int:
        """What the server of the moment has counted since the image was made."""
        return int(core_now(self._one.path)["tally"][name])

    def wait_for_verified(self) -> None:
        """Wait until fio, which alone works now, has read blocks back from this server."""
        before, deadline = self.counted("reads"), time.monotonic() + PATIENCE
        while self.counted("reads") == before:
            assert time.monotonic() < deadline, "fio verifies nothing"
            time.sleep(0.01)

    def look(self) -> None:
        """Compare through the files that the kill has left."""
        with Device(self._one.path, read_only=True) as device:
            assert device.recovery == "killed"
            require_exact_totals(device)
            self.compare(device.read(len(self._oracle.sure), FIO_BYTES))


def kill_and_compare(folder: Path, choice: Choice) -> str:
    """All rounds of one choice; what was done, in words."""
    chance = random.Random(f"{SEED} served {choice}")
    path = folder / "disk.pmem"
    folder.mkdir()
    choice.create(path, 8 * MIB)
    with served(folder, path) as one:
        client = Client(one, f"{SEED} {choice}")
        with fio(one) as verifying:
            for _ in range(ROUNDS - 1):
                client.work(chance.uniform(0.1, 0.9))
                client.look()
                assert verifying.poll() is None, one.said
                one.start()
                if chance.random() < 0.1:
                    time.sleep(chance.uniform(0.3, 0.7))
                    one.kill()
                    client.look()
                    one.start()
            client.work(0.1)
            one.start()
            client.wait_for_verified()
        error, verified = fio_report(one)
        assert (error, verified > 0) == (0, True), one.said
    require_clean(path)
    with Device(path) as device:
        assert device.recovery == ""
        require_exact_totals(device)
        client.compare(device.read(device.plan.device_bytes - FIO_BYTES, FIO_BYTES))
    return f"{choice}: {client.answered} requests answered, {verified} blocks verified by fio"


@pytest.mark.slow
@needs("nbdkit", "libnbd", "fio")
@pytest.mark.parametrize("first", range(0, len(CHOICES), AT_ONCE))
def test_server_killed_under_fio_and_a_client_loses_nothing(tmp_path, first):
    """Promises 2, 4 and 5: no answered write is lost, fio finds every block, totals are exact after each kill."""
    chosen = CHOICES[first : first + AT_ONCE]
    print(f"seed {SEED}, {ROUNDS} kills a choice, {len(chosen)} of {len(CHOICES)} choices")
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for done in pool.map(kill_and_compare, (tmp_path / str(i) for i in range(AT_ONCE)), chosen):
            print(done)


@needs("nbdkit", "libnbd", "fio")
def test_fio_sees_a_write_that_was_lost(tmp_path):
    """The test above can fail: under a server that has no checksums, the medium is made what it was at first.

    What it was a while ago would not do: when fio begins again it writes the same bytes to the same places.
    """
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(8 * MIB, placement_name="none", leveling_name="none"))
    empty = (path / "media").read_bytes()
    with served(tmp_path / "served", path) as one, fio(one) as verifying:
        for _ in range(10):
            if not writes_again(verifying, path, empty):
                break
            time.sleep(0.2)
            one.kill()
            with (path / "media").open("r+b") as file:
                file.write(empty)
            one.start()
    assert fio_report(one)[0] == errno.EILSEQ


def writes_again(process: subprocess.Popen, path: Path, empty: bytes) -> bool:
    """Wait until it does, which is up to the proxy and the machine; False: it has ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if (path / "media").read_bytes() != empty:
            return True
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.01)
    return False


# ---- a filesystem ----


class Files:
    """A thread that writes, replaces and removes files, syncs each, and remembers what was synced."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._folder, self._chance = folder, random.Random(seed)
        self._stopping, self.synced = False, 0
        self._held: dict[str, bytes | None] = {}  # None: removed
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.problem: BaseException | None = None
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it has begun is finished."""
        self._stopping = True
        self._thread.join(60)
        assert not self._thread.is_alive() and self.problem is None, self.problem

    def _work(self) -> None:
        try:
            while not self._stopping:
                self._one()
        except BaseException as error:
            self.problem = error

    def _one(self) -> None:
        name, fresh = f"file{self._chance.randrange(60)}", self._folder / "fresh"
        if self._chance.random() < 0.2:
            (self._folder / name).unlink(missing_ok=True)
            data = None
        else:
            data = self._chance.randbytes(self._chance.randrange(1, 100_000))
            with fresh.open("wb") as file:
                file.write(data)
                os.fsync(file.fileno())
            fresh.rename(self._folder / name)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._held[name] = data
        self.synced += 1

    def compare(self) -> None:
        """Every file is as it was synced last."""
        for name, data in self._held.items():
            file = self._folder / name
            assert (file.read_bytes() if file.exists() else None) == data, name


@pytest.mark.slow
@pytest.mark.kernel
@needs("nbdkit", "nbdfuse", "fuse", "loop", "ext4")
@pytest.mark.parametrize(
    ("placement", "writes", "gap"), [("interleaved", "coalesced", 4), ("linear", "each", 1), ("none", "each", 4)]
)
def test_server_killed_under_ext4_loses_no_synced_file(tmp_path, placement, writes, gap):
    print(f"seed {SEED}, {FILESYSTEM_ROUNDS} kills")
    chance = random.Random(f"{SEED} {placement}")
    path, mnt = tmp_path / "disk.pmem", tmp_path / "mnt"
    parameters = {"interval": 10, "region_frames": 64, "gap_frames": gap}
    made = geometry.plan(32 * MIB, placement_name=placement, descriptor_writes=writes, parameters=parameters)
    image.create(path, made)
    with served(tmp_path / "served", path) as one, runtime_directory():
        one.connect()
        attached = attach.attach(path, one.proxy_uri, way="loop")
        try:
            mounted = attach.mount(attached, mnt, fs="ext4", mkfs=True)
            files = Files(mnt, f"{SEED} {placement}")
            for _ in range(FILESYSTEM_ROUNDS):
                time.sleep(chance.uniform(0.5, 0.9))
                one.kill()
                with Device(path, read_only=True) as device:
                    assert device.recovery == "killed"
                    require_exact_totals(device)
                one.start()
                one.connect()
            files.stop()
            attached = attach.unmount(mounted)
            found = subprocess.run(["e2fsck", "-fn", attached.device], capture_output=True, text=True, check=False)
            assert found.returncode == 0, found.stdout + found.stderr
            # Mounted anew, so that nothing comes from the page cache of before.
            mounted = attach.mount(attached, mnt, fs="ext4")
            files.compare()
            print(f"{files.synced} files synced")
            assert files.synced
        finally:
            for left in attach.attachments():
                with contextlib.suppress(PmemError, OSError):
                    attach.detach(attach.unmount(left))
    require_clean(path)
