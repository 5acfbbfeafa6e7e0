# SPDX-License-Identifier: MIT
"""The filesystems of the machine's own kernel on an image, through nbdfuse and a loop device."""

import contextlib
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import needs
from serving import runtime_directory

from pmem_core import attach, blockdev, geometry, image, infoblock, server, snapshot
from pmem_core.check import check
from pmem_core.errors import PmemError

pytestmark = [pytest.mark.kernel, needs("root", "nbdkit", "nbdfuse", "fuse", "loop", "fio")]

FILESYSTEMS = [
    pytest.param("ext4", ["e2fsck", "-fn"], marks=needs("ext4")),
    pytest.param("xfs", ["xfs_repair", "-n"], marks=needs("xfs")),
]
SIZE = 512 << 20  # xfs wants 300 MiB


@pytest.fixture
def folder():
    with runtime_directory() as path:
        try:
            yield path
        finally:
            for one in attach.attachments():
                with contextlib.suppress(PmemError, OSError):
                    attach.detach(attach.unmount(one))


@pytest.fixture
def disk(folder, tmp_path):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(SIZE))
    return path


def fio_verified(directory: Path) -> None:
    """Write with fio, read it all back, and let nothing differ."""
    done = subprocess.run(
        [
            *("fio", "--name=verified", "--filename=fio", "--size=48M", "--output-format=json"),
            *("--rw=randwrite", "--bsrange=4k-128k", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--fsync=100"),
            *("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 48 << 20


@pytest.mark.parametrize(("fs", "checker"), FILESYSTEMS)
def test_filesystem_is_clean_after_verified_work(disk, tmp_path, fs, checker):
    running = server.start(disk)
    mounted = attach.mount(attach.attach(disk, running.uri, way="loop"), tmp_path / "mnt", fs=fs, mkfs=True)
    fio_verified(tmp_path / "mnt")
    data = os.urandom(3_000_001)
    (tmp_path / "mnt" / "file").write_bytes(data)
    subprocess.run(["fstrim", tmp_path / "mnt"], check=True)
    attached = attach.unmount(mounted)
    checked = subprocess.run([*checker, attached.device], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    attach.detach(attached)
    server.stop(running)

    # Another server, and all of it is still there.
    running = server.start(disk)
    mounted = attach.mount(attach.attach(disk, running.uri, way="loop"), tmp_path / "mnt", fs=fs)
    assert hashlib.sha256((tmp_path / "mnt" / "file").read_bytes()).digest() == hashlib.sha256(data).digest()
    # What is removed comes back to the host: fstrim arrives as trims.
    wanted = (disk / "media").stat().st_blocks * 512 - (40 << 20)
    (tmp_path / "mnt" / "fio").unlink()

    def given_back() -> bool:
        os.sync()  # xfs frees what is removed a while later
        subprocess.run(["fstrim", tmp_path / "mnt"], check=True)
        return (disk / "media").stat().st_blocks * 512 <= wanted

    assert blockdev.wait(given_back)
    attach.detach(attach.unmount(mounted))
    server.stop(running)
    tally = snapshot.look(disk).tally
    assert tally["trimmed_bytes"] > 40 << 20 and tally["flushes"] > 0
    assert check(disk).clean


@needs("ext4")
def test_ext4_made_through_nbd_mounts_from_the_raw_medium(folder, tmp_path):
    """With Linux's own layout and no leveling the medium is what a kernel with the DIMM would mount."""
    disk, mnt = tmp_path / "disk.pmem", tmp_path / "mnt"
    image.create(disk, geometry.plan(64 << 20, placement_name="linear", leveling_name="none"))
    files = {f"file{number}": bytes([number]) * (1 + 7001 * number) for number in range(20)}
    running = server.start(disk)
    mounted = attach.mount(attach.attach(disk, running.uri, way="loop"), mnt, fs="ext4", mkfs=True)
    for name, data in files.items():
        (mnt / name).write_bytes(data)
    attach.detach(attach.unmount(mounted))
    server.stop(running)
    info = infoblock.read(disk / "media")
    options = f"loop,ro,offset={info.data_at},sizelimit={info.page_count * 4096}"
    mnt.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", options, disk / "media", mnt], check=True)
    try:
        found = {file.name: file.read_bytes() for file in mnt.iterdir() if file.is_file()}
    finally:
        subprocess.run(["umount", mnt], check=True)
    assert found == files


@needs("ext4")
def test_read_only_image_can_be_mounted_read_only(disk, tmp_path):
    running = server.start(disk)
    attached = attach.attach(disk, running.uri, way="loop")
    attach.make_filesystem(attached.device, "ext4")
    attach.detach(attached)
    server.stop(running)
    running = server.start(disk, read_only=True)
    mounted = attach.mount(attach.attach(disk, running.uri, way="loop", read_only=True), tmp_path / "mnt")
    with pytest.raises(OSError, match="Read-only file system"):
        (tmp_path / "mnt" / "file").write_text("x")
    attach.detach(attach.unmount(mounted))
    server.stop(running)
