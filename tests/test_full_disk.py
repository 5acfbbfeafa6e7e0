# SPDX-License-Identifier: MIT
"""A full host disk: an error in words at creation, ENOSPC to a client, and nothing that was flushed is lost."""

import contextlib
import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs
from test_plugin import PAGE, refused, serving

from pmem_core import convert, geometry, image, layout, reservations
from pmem_core import room as blocks
from pmem_core.device import Device
from pmem_core.errors import HostFull

pytestmark = [pytest.mark.kernel, needs("nbdkit", "libnbd", "loop")]

MIB = 1 << 20
SIZE = 256 * MIB
# The smallest filesystems that mkfs.xfs makes, and a short time to fill, for the others.
HOST_MIB = {"ext4": 40, "ext4 of small blocks": 40, "xfs": 320, "tmpfs": 32}
KINDS = [pytest.param("ext4", marks=needs("ext4")), pytest.param("xfs", marks=needs("xfs")), "tmpfs"]


@pytest.fixture(params=KINDS)
def host(request, tmp_path):
    """A small filesystem of its own, mounted; unmounted at the end whatever happens."""
    mounted = tmp_path / "host"
    mounted.mkdir()
    kind = request.param
    size = HOST_MIB[kind] * MIB
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mounted]
    else:
        disk = tmp_path / "disk"
        with disk.open("wb") as file:
            file.truncate(size)
        # Nothing is kept back for root, and no discard takes time.
        ext4 = ["mkfs.ext4", "-q", "-m", "0"]
        mkfs = {"ext4": ext4, "ext4 of small blocks": [*ext4, "-b", "1024"], "xfs": ["mkfs.xfs", "-q", "-K"]}[kind]
        subprocess.run([*mkfs, disk], check=True, capture_output=True)
        command = ["mount", "-o", "loop", disk, mounted]
    subprocess.run(command, check=True)
    try:
        yield mounted
    finally:
        done = subprocess.run(["umount", mounted], check=False, capture_output=True, text=True)
        if done.returncode:
            # Somebody still has a file of it open, which is a failure, but no reason to leave the mount behind.
            subprocess.run(["umount", "--lazy", mounted], check=True)
            pytest.fail(done.stderr)


def fill(ballast: Path, leave: int = 0) -> None:
    """Take all of the filesystem's room but `leave` bytes."""
    with ballast.open("ab") as file:
        for step in (MIB, 64 << 10, PAGE):
            while room(ballast.parent) > leave + step:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:
                    break


def nbd_error() -> type[Exception]:
    import nbd

    return nbd.Error


def room(folder: Path) -> int:
    """Bytes free."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_no_room_to_create_is_one_line_and_leaves_nothing(host):
    fill(host / "ballast")
    before = sorted(host.iterdir())
    with pytest.raises(HostFull) as caught:
        image.create(host / "disk.pmem", geometry.plan(SIZE))
    assert "\n" not in str(caught.value)
    assert "no room" in str(caught.value)
    assert sorted(host.iterdir()) == before


class Filled:
    """An image on the host, served, and a client that wrote until the host was full; `shadow` is what must be there."""

    def __init__(self, server, host: Path) -> None:
        self.chance = random.Random(7)
        self.client = server.connect()
        self.ballast = host / "ballast"
        self.shadow: dict[int, bytes] = {}
        self.flushed = 0
        self.errors: set[int] = set()

    def write(self, size: int = 64 << 10) -> int:
        """Write one block in an unused place; the errno, or 0."""
        import nbd

        at = self.chance.randrange(SIZE // 2 // size) * size
        data = self.chance.randbytes(size)
        try:
            self.client.pwrite(data, at)
        except nbd.Error as error:
            # A request that failed may have written a part.
            self.shadow.pop(at, None)
            return error.errnum
        self.shadow[at] = data
        return 0

    def until_full(self) -> None:
        fill(self.ballast, leave=6 * MIB)
        for turn in range(2000):
            code = self.write()
            if code:
                assert code == errno.ENOSPC
                return
            if turn % 16 == 0:
                self.client.flush()
        raise AssertionError("the host never was full")

    def check(self) -> None:
        for at, data in self.shadow.items():
            assert self.client.pread(len(data), at) == data


@pytest.fixture
def path(host):
    image.create(host / "disk.pmem", geometry.plan(SIZE, parameters={"interval": 20, "region_frames": 1024}))
    return host / "disk.pmem"


def test_client_gets_enospc_and_reads_go_on(path, host):
    with serving(path) as server:
        filled = Filled(server, host)
        filled.until_full()
        filled.check()
        assert server.process.poll() is None
        assert filled.client.pread(PAGE, SIZE * 3 // 4) == bytes(PAGE)


def test_writes_go_on_when_there_is_room_again(path, host):
    with serving(path) as server:
        filled = Filled(server, host)
        filled.until_full()
        filled.ballast.unlink()
        assert [filled.write() for _ in range(50)] == [0] * 50
        filled.client.flush()
        filled.check()
    with Device(path) as device:
        assert all(device.read(len(data), at) == data for at, data in filled.shadow.items())


@pytest.mark.parametrize("host", ["tmpfs"], indirect=True)
@pytest.mark.parametrize("leveling_name", ["start_gap", "security_refresh"])
def test_moves_that_a_full_host_refused_do_not_take_the_room_that_comes_back(host, leveling_name):
    """A move to a hole takes room; if all that fell due meanwhile were made up for, a write would have none."""
    path = host / "sparse.pmem"
    plan = geometry.plan(96 * MIB, leveling_name=leveling_name, parameters={"interval": 2})
    image.create(path, plan)
    with Device(path) as device:
        written, chance = 0, random.Random(65)
        with contextlib.suppress(HostFull):
            for written in range(plan.info.page_count):
                device.write(os.urandom(PAGE), written * PAGE)
        assert 0 < written < plan.info.page_count - 1
        refused_at = int(device.mapping.core["tally"][0]["moves"])
        for _ in range(4000):
            device.write(os.urandom(PAGE), chance.randrange(written) * PAGE)
        assert int(device.mapping.core["tally"][0]["moves"]) == refused_at, "there was no room for any"
        device.trim(written * PAGE, 0)
        device.flush()
        before = room(host)
        device.write(os.urandom(PAGE), 0)
        assert before > 2 * MIB and before - room(host) < before // 4


@pytest.mark.parametrize("host", ["tmpfs"], indirect=True)
@pytest.mark.parametrize("frame_bytes", [256, 1024, 4096, 65536])
def test_repair_reads_no_holes_of_a_full_host(host, frame_bytes):
    """Of a page in small frames some may be in holes and others not."""
    path, chance = host / "sparse.pmem", random.Random(frame_bytes)
    parameters = {"region_frames": 16, "gap_frames": 5} if frame_bytes < PAGE else {}
    image.create(path, geometry.plan(8 * MIB, frame_bytes=frame_bytes, parameters=parameters))
    with Device(path) as device:
        pages = chance.sample(range(device.plan.info.page_count), 200)
        for page in pages:
            device.write(chance.randbytes(PAGE), page * PAGE)
        device.trim(device.plan.device_bytes // 2, 0)
    fill(host / "ballast")
    # In a process of its own, for it would be ended by a SIGBUS.
    done = subprocess.run(
        [sys.executable, "-m", "pmem_core", "check", "--repair", path], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("host", ["tmpfs"], indirect=True)
@pytest.mark.parametrize(
    ("leveling_name", "parameters"),
    [
        ("start_gap", {"interval": 20}),
        ("security_refresh", {"interval": 20}),
        ("sampled_swap", {}),
        ("sampled_swap", {"interval": 20, "block_frames": 16}),
        ("table_swap", {"interval": 20, "candidates": 8}),
        ("optane", {"threshold": 100}),
    ],
)
def test_leveling_reads_no_counters_that_the_full_host_would_have_to_find_room_for(host, leveling_name, parameters):
    """Frames that were never written have none; to read them through the map would end the server."""
    path = host / "sparse.pmem"
    image.create(path, geometry.plan(64 * MIB, leveling_name=leveling_name, parameters=parameters))
    with serving(path) as server:
        client = server.connect()
        for page in range(16):
            client.pwrite(bytes([page]) * PAGE, page * PAGE)
        client.flush()
        fill(host / "ballast")
        for number in range(4000):
            client.pwrite(bytes([number & 255]) * PAGE, number % 16 * PAGE)
        assert server.process.poll() is None
        assert client.pread(PAGE, 15 * PAGE) == bytes([3999 & 255]) * PAGE


def test_trim_makes_room(path, host):
    with serving(path) as server:
        filled = Filled(server, host)
        filled.until_full()
        for at in list(filled.shadow)[:40]:
            filled.client.trim(64 << 10, at)
            del filled.shadow[at]
        assert filled.write() == 0
        filled.check()


def test_nothing_is_lost_when_the_server_ends_on_a_full_disk(path, host):
    with serving(path) as server:
        filled = Filled(server, host)
        filled.until_full()
        fill(filled.ballast)
        filled.client.flush()
        assert server.stop() == 0
        assert "Traceback" not in server.said
    filled.ballast.unlink()
    with Device(path) as device:
        assert device.recovery == ""
        assert all(device.read(len(data), at) == data for at, data in filled.shadow.items())


def test_nothing_is_lost_when_the_server_is_killed_on_a_full_disk(path, host):
    with serving(path) as server:
        filled = Filled(server, host)
        filled.until_full()
        server.stop(9)
    with Device(path) as device:
        assert device.recovery == "killed"
        assert all(device.read(len(data), at) == data for at, data in filled.shadow.items())


def test_copy_that_shares_its_blocks_gets_enospc_too(path, host):
    """`cp` shares blocks on xfs: a store to one takes another block, and where there is none would be a SIGBUS."""
    with Device(path) as device:
        for at in range(0, 8 * MIB, MIB):
            device.write(b"a" * MIB, at)
    copied = host / "copy.pmem"
    subprocess.run(["cp", "--sparse=always", "-r", path, copied], check=True)
    with serving(copied) as server:
        client, codes = server.connect(), []
        client.pwrite(b"b" * PAGE, 0)
        fill(host / "ballast", leave=512 << 10)
        # Page after page of what room is asked for at once, in places far apart.
        for at in (place + PAGE * i for place in range(0, 8 * MIB, 256 << 10) for i in range(16)):
            try:
                client.pwrite(b"c" * PAGE, at)
            except nbd_error() as error:
                codes.append(error.errnum)
        assert set(codes) <= {errno.ENOSPC}
        assert client.pread(PAGE, 7 * MIB + 20 * PAGE) == b"a" * PAGE
        assert server.process.poll() is None


def test_sparse_copy_is_refused_on_a_full_disk_in_words(host):
    """Its state has holes, or shared blocks, and whoever stores to a map cannot be told that there is no room."""
    coalesced = {"descriptor_writes": "coalesced", "leveling_name": "none"}
    image.create(host / "other.pmem", geometry.plan(16 * MIB, **coalesced))
    subprocess.run(["cp", "--sparse=always", "-r", host / "other.pmem", host / "copy.pmem"], check=True)
    fill(host / "ballast")
    with pytest.raises(HostFull):
        Device(host / "copy.pmem")
    (host / "ballast").unlink()
    with Device(host / "copy.pmem") as device:
        device.write(b"x" * PAGE, 0)
        status = (host / "copy.pmem" / "state").stat()
        assert status.st_blocks * 512 >= status.st_size


@pytest.mark.parametrize("host", [pytest.param("ext4 of small blocks", marks=needs("ext4"))], indirect=True)
def test_room_is_asked_for_by_whole_pages_where_blocks_are_smaller(host):
    """A store to a map asks for all blocks of its page."""
    path = host / "disk.pmem"
    image.create(path, geometry.plan(16 * MIB, frame_bytes=512, leveling_name="none"))
    with Device(path) as device:
        before = (path / "media").stat().st_blocks
        assert reservations.reserve_exactly(device.handle[0][0], 8 * MIB + 512, 512) == layout.OK
        assert 512 * ((path / "media").stat().st_blocks - before) >= PAGE


only_xfs = pytest.mark.parametrize("host", [pytest.param("xfs", marks=needs("xfs"))], indirect=True)


def share(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=always", source, target], check=True)


@only_xfs
def test_file_that_shares_blocks_has_room_of_its_own_or_is_refused(host):
    (host / "whole").write_bytes(b"w" * 40 * PAGE)
    share(host / "whole", host / "copy")
    with (host / "copy").open("r+b") as file:
        fill(host / "ballast")
        with pytest.raises(OSError, match="No space left"):
            blocks.take(file.fileno())
        os.truncate(host / "ballast", 0)  # xfs gives back by and by what is unlinked
        blocks.take(file.fileno())
        assert not blocks.shares_blocks(file.fileno())


@only_xfs
def test_block_that_is_shared_is_found_behind_many_that_are_not(host):
    with (host / "whole").open("wb") as file:
        for page in range(40):  # each with a hole behind it
            os.pwrite(file.fileno(), b"w" * PAGE, 2 * page * PAGE)
    share(host / "whole", host / "copy")
    with (host / "copy").open("r+b") as file:
        for page in range(40):
            assert blocks.shares_blocks(file.fileno())
            os.pwrite(file.fileno(), b"c" * PAGE, 2 * page * PAGE)
            os.fsync(file.fileno())
        assert not blocks.shares_blocks(file.fileno())


def test_image_that_was_never_opened_is_served_on_a_full_disk(path, host):
    fill(host / "ballast")
    with serving(path) as server:
        assert server.connect().pread(PAGE, 0) == bytes(PAGE)


@pytest.mark.parametrize("part", ["lock", "none"])
def test_image_that_was_never_opened_is_read_from_a_filesystem_that_is_read_only(path, host, part):
    """Also a copy of it without the file `lock`."""
    (path / part).unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", host], check=True)
    with Device(path, read_only=True) as device:
        assert device.read(PAGE, 0) == bytes(PAGE)


@needs("fio")
def test_fio_ends_with_no_space_and_what_it_wrote_verifies(path, host, tmp_path):
    def fio(server, *words: str) -> subprocess.CompletedProcess:
        command = ["fio", "--name=job", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={server.socket}"]
        common = ["--bs=64k", "--verify=crc32c", "--verify_state_save=0", "--do_verify=1", *words]
        return subprocess.run([*command, *common], capture_output=True, text=True, cwd=tmp_path, check=False)

    with serving(path) as server:
        server.connect()
        server.leave()
        assert fio(server, "--rw=write", "--size=4m", "--end_fsync=1").returncode == 0
        fill(host / "ballast", leave=2 * MIB)
        done = fio(server, "--rw=write", "--offset=8m", "--size=64m")
        assert done.returncode == 1
        assert "No space left on device" in done.stdout + done.stderr
        assert fio(server, "--rw=read", "--verify_only=1", "--size=4m").returncode == 0
        assert refused(server.connect().pwrite, b"x" * MIB, 100 * MIB) == errno.ENOSPC


def test_conversion_waits_for_room(host):
    """It stops in one line, wherever the room ended, and goes on when there is some."""
    path, chance = host / "disk.pmem", random.Random(1)
    image.create(path, geometry.plan(64 * MIB))
    with Device(path) as device:
        for page in range(1000):
            device.write(chance.randbytes(PAGE), page * PAGE)
        wanted = device.read(1000 * PAGE, 0)
    # Room for the file of the conversion, and not for pages that go where nothing was.
    fill(host / "ballast", leave=6 * MIB)
    with pytest.raises(HostFull) as caught:
        convert.convert(path, PAGE)
    assert "\n" not in str(caught.value) and "no room" in str(caught.value)
    with pytest.raises(HostFull):
        convert.convert(path, PAGE)
    (host / "ballast").unlink()
    assert convert.convert(path)["resumed"]
    with Device(path, read_only=True) as device:
        assert device.read(1000 * PAGE, 0) == wanted
