# SPDX-License-Identifier: MIT
"""Attachments: made, used, refused while in use, and undone whole, also when a step of the making fails."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import needs
from serving import runtime_directory, tiny

from pmem_core import attach, blockdev, launch, runtime, server
from pmem_core.cli.serve import signals_as_interrupt
from pmem_core.errors import HostError, ImageBusy, PmemError, UsageError

pytestmark = [pytest.mark.kernel, needs("root", "nbdkit", "nbdfuse", "fuse", "loop", "ext4")]

SIZE = 32 << 20


@pytest.fixture
def folder():
    """A runtime directory in which nothing may be left, nor any device on it."""
    with runtime_directory() as path:
        try:
            yield path
            left = attach.attachments()
            assert not left, f"left behind: {left}"
        finally:
            for one in attach.attachments():
                with contextlib.suppress(PmemError, OSError):
                    attach.detach(attach.unmount(one))


@pytest.fixture
def running(folder, tmp_path):
    (tmp_path / "disk.pmem").mkdir()
    return server.start(tmp_path / "disk.pmem", plugin=tiny(tmp_path), parameters={"size": str(SIZE)})


@pytest.fixture
def attached(running):
    return attach.attach(running.image, running.uri, way="loop")


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    # A test that failed half way must not leave a mount to the next.
    subprocess.run(["umount", "-q", path], check=False, capture_output=True)


def sectors(device: str) -> int:
    return int(Path("/sys/block", Path(device).name, "size").read_text())


def test_device_has_the_size_of_the_export(attached):
    assert sectors(attached.device) * 512 == SIZE
    attach.detach(attached)


def test_what_is_written_is_read_again_after_detach(running, attached):
    data = os.urandom(65536)
    with Path(attached.device).open("r+b") as device:
        device.write(data)
    attach.detach(attached)
    again = attach.attach(running.image, running.uri, way="loop")
    with Path(again.device).open("rb") as device:
        assert device.read(len(data)) == data
    attach.detach(again)


def test_detach_leaves_nothing(attached, folder):
    attach.detach(attached)
    assert not blockdev.loops_of(f"{attached.fuse}/nbd")
    assert not runtime.birth(attached.fuse_pid)
    assert not list(folder.glob("*.fuse*")) and not list(folder.glob("*.attach*"))


def test_attachment_is_found_by_image_and_by_device(attached):
    assert attach.find(attached.image) == attach.find(attached.device) == attached
    attach.detach(attached)
    assert attach.find(attached.image) is None


def test_second_attach_is_refused(running, attached):
    with pytest.raises(ImageBusy, match=f"is attached already, as {attached.device}"):
        attach.attach(running.image, running.uri, way="loop")
    attach.detach(attached)


def test_another_process_can_detach(attached):
    code = "import sys; from pmem_core import attach; attach.detach(attach.find(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, attached.image], check=True, env=launch.nbdkit_environment())
    assert not blockdev.loops_of(f"{attached.fuse}/nbd") and not attach.attachments()


def test_read_only_attachment_refuses_writes(running):
    attached = attach.attach(running.image, running.uri, way="loop", read_only=True)
    with pytest.raises(OSError), Path(attached.device).open("r+b") as device:
        device.write(b"x" * 4096)
    attach.detach(attached)


def test_uri_without_an_image_can_be_attached(running):
    attached = attach.attach(running.uri, running.uri, way="loop")
    assert sectors(attached.device) * 512 == SIZE
    attach.detach(attach.find(running.uri))


# --- mount ------------------------------------------------------------------------------------------------------------


def test_mounted_filesystem_keeps_files(attached, directory):
    mounted = attach.mount(attached, directory, mkfs=True)
    assert attach.find(directory) == mounted
    (directory / "file").write_text("kept")
    unmounted = attach.unmount(mounted)
    again = attach.mount(unmounted, directory)
    assert (directory / "file").read_text() == "kept"
    attach.detach(attach.unmount(again))
    assert attach.find(directory) is None and not directory.is_mount()


def test_directory_is_made_and_removed(attached, tmp_path):
    mounted = attach.mount(attached, tmp_path / "new", mkfs=True)
    assert (tmp_path / "new").is_mount()
    attach.detach(attach.unmount(mounted))
    assert not (tmp_path / "new").exists()


def test_directory_with_a_space_is_understood(attached, tmp_path):
    mounted = attach.mount(attached, tmp_path / "a b", mkfs=True)
    assert blockdev.mounts(attached.device) == [str(tmp_path / "a b")]
    attach.detach(attach.unmount(mounted))


def test_options_reach_mount(attached, directory):
    mounted = attach.mount(attached, directory, mkfs=True, options="noatime")
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(directory) in line)
    assert "noatime" in line
    attach.detach(attach.unmount(mounted))


def test_busy_mount_names_its_user_and_stays(attached, directory):
    mounted = attach.mount(attached, directory, mkfs=True)
    with subprocess.Popen(["sleep", "60"], cwd=directory) as user:
        try:
            with pytest.raises(ImageBusy, match=rf"is in use by sleep \(process {user.pid}\)"):
                attach.unmount(mounted)
            assert directory.is_mount() and attach.find(directory) == mounted
        finally:
            user.kill()
    attach.detach(attach.unmount(mounted))


def test_mounted_device_is_not_detached(attached, directory):
    mounted = attach.mount(attached, directory, mkfs=True)
    with pytest.raises(ImageBusy, match=f"is mounted on {directory}"):
        attach.detach(mounted)
    (directory / "file").write_text("still works")
    attach.detach(attach.unmount(mounted))


def test_open_device_names_its_user_and_stays(attached):
    with Path(attached.device).open("rb") as device, subprocess.Popen(["sleep", "60"], stdin=device) as user:
        device.close()  # now only the child holds it
        try:
            with pytest.raises(ImageBusy, match=rf"is in use by sleep \(process {user.pid}\)"):
                attach.detach(attached)
            assert sectors(attached.device)
        finally:
            user.kill()
    attach.detach(attached)


@pytest.mark.serial  # the other namespace would hold the mounts of other tests too
@needs("unshare")
def test_mount_in_another_namespace_is_noticed(attached, directory):
    attach.make_filesystem(attached.device, "ext4")
    command = ["unshare", "--mount", "sh", "-c", f"mount {attached.device} {directory} && echo up && read x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"up\n"
        with pytest.raises(ImageBusy, match="another device or mount namespace"):
            attach.detach(attached)
        other.communicate(b"\n")
    attach.detach(attached)


def test_filesystem_unmounted_by_hand_is_no_obstacle(attached, directory):
    mounted = attach.mount(attached, directory, mkfs=True)
    subprocess.run(["umount", directory], check=True)
    attach.detach(attach.unmount(mounted))


def test_existing_filesystem_is_not_overwritten(attached):
    attach.make_filesystem(attached.device, "ext4")
    with pytest.raises(HostError, match="holds ext4 already"):
        attach.make_filesystem(attached.device, "ext4")
    attach.make_filesystem(attached.device, "ext4", force=True)
    attach.detach(attached)


def test_device_without_a_filesystem_says_so(attached, directory):
    with pytest.raises(HostError, match=rf"{attached.image}: holds no filesystem: --mkfs to make one"):
        attach.mount(attached, directory)
    attach.detach(attached)


def test_unreadable_device_is_not_taken_for_an_empty_one(folder, tmp_path, directory):
    (tmp_path / "disk.pmem").mkdir()
    parameters = {"size": str(SIZE), "fail": "read"}
    running = server.start(tmp_path / "disk.pmem", plugin=tiny(tmp_path), parameters=parameters)
    attached = attach.attach(running.image, running.uri, way="loop")
    for mkfs in (False, True):
        with pytest.raises(HostError, match=rf"{attached.device}: cannot be read: input/output error"):
            attach.mount(attached, directory, mkfs=mkfs)
    attach.detach(attached)


def test_failing_requests_do_not_make_the_log_of_nbdfuse_grow(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(attach, "LOG_BYTES_MAX", 4096, raising=False)
    (tmp_path / "disk.pmem").mkdir()
    parameters = {"size": str(SIZE), "fail": "read"}
    running = server.start(tmp_path / "disk.pmem", plugin=tiny(tmp_path), parameters=parameters)
    attached = attach.attach(running.image, running.uri, way="loop")
    file = os.open(f"{attached.fuse}/nbd", os.O_RDONLY)
    for _ in range(500):
        with pytest.raises(OSError, match="Input/output"):
            os.pread(file, 4096, 0)
    os.close(file)
    (log,) = folder.glob("*.fuselog")
    assert 0 < log.stat().st_size <= 4096 and runtime.alive(attached.fuse_pid, attached.fuse_birth)
    attach.detach(attached)


def test_two_signatures_are_not_taken_for_none(attached):
    attach.make_filesystem(attached.device, "ext4")
    with Path(attached.device).open("r+b") as device:
        device.seek(65600)
        device.write(b"_BHRfS_M")  # of btrfs
    assert blockdev.signature(attached.device) == "several filesystems"
    attach.detach(attached)


def test_impossible_directory_spares_the_filesystem(attached, tmp_path):
    attach.make_filesystem(attached.device, "ext4")
    before = Path(attached.device).read_bytes()
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "a" / "b", tmp_path / "file", tmp_path / "file" / "a", "/proc/none"):
        with pytest.raises((HostError, OSError)):
            attach.mount(attached, directory, mkfs=True, force=True)
    assert Path(attached.device).read_bytes() == before
    attach.detach(attached)


def test_directory_with_something_mounted_is_refused(attached, directory):
    attach.make_filesystem(attached.device, "ext4")
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    with pytest.raises(HostError, match=f"{directory}: something is mounted there already: a directory of its own"):
        attach.mount(attached, directory)
    assert attach.find(attached.image) == attached
    attach.detach(attached)


def test_read_only_attachment_gets_no_filesystem(running, directory):
    attached = attach.attach(running.image, running.uri, way="loop", read_only=True)
    with pytest.raises(HostError, match="is read-only, and no filesystem can be made"):
        attach.mount(attached, directory, mkfs=True, force=True)
    attach.detach(attached)


def test_pointer_to_the_kernels_log_is_not_what_went_wrong():
    said = "mount: /mnt: wrong fs type.\n       dmesg(1) may have more information after failed mount system call.\n"
    assert blockdev.last_line(said) == "/mnt: wrong fs type"


def test_unknown_filesystem_is_a_usage_error(attached):
    with pytest.raises(UsageError, match=r"zfs: is no filesystem that .*: ext4, xfs, btrfs"):
        attach.make_filesystem(attached.device, "zfs")
    attach.detach(attached)


# --- steps that fail --------------------------------------------------------------------------------------------------


def test_dead_server_is_told_and_leaves_nothing(running, folder):
    server.stop(running)
    with pytest.raises(HostError, match="nbdfuse could not make a file of it"):
        attach.attach(running.image, running.uri, way="loop")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("step", ["make_loop", "sync"])
def test_failing_step_leaves_nothing(running, folder, monkeypatch, step):
    def fails(*_, **__):
        raise HostError("losetup", "cannot find an unused loop device")

    monkeypatch.setattr(blockdev, "make_loop", fails)
    if step == "sync":  # and one of the steps that undo it fails too
        monkeypatch.setattr(blockdev, "sync", fails)
    with pytest.raises(HostError, match="unused loop device"):
        attach.attach(running.image, running.uri, way="loop")
    assert not list(folder.glob("*.fuse*")) and not attach.attachments()
    assert not any(str(folder) in path for path in blockdev.mountpoints())


def test_failing_mount_leaves_the_attachment_as_it_was(attached, tmp_path):
    attach.make_filesystem(attached.device, "ext4")
    with pytest.raises(HostError, match=r"mount: .*wrong fs type"):
        attach.mount(attached, tmp_path / "new", fs="xfs")
    assert not (tmp_path / "new").exists()
    assert attach.find(attached.image) == attached
    attach.detach(attached)


def test_interrupted_attach_can_be_undone(running, folder, monkeypatch):
    """Its maker is killed once the loop device is there, and before that could be written down."""
    real = runtime.write_record

    def killed(name, record):
        if record.get("device"):
            os._exit(9)
        real(name, record)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(runtime, "write_record", killed)
        attach.attach(running.image, running.uri, way="loop")
    os.waitpid(child, 0)
    half = attach.find(running.image)
    assert half is not None and not half.device and blockdev.loops_of(f"{half.fuse}/nbd")
    attach.detach(half)
    assert not blockdev.loops_of(f"{half.fuse}/nbd")
    for left in folder.glob("*.lock"):  # its maker's; a lock of the dead holds nobody up
        left.unlink()


def test_attach_interrupted_while_nbdfuse_starts_leaves_nothing(running, folder, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, command, **named):
            super().__init__(command, **named)
            if "nbdfuse" in command[0]:
                started.append(self.pid)
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with signals_as_interrupt(), pytest.raises(KeyboardInterrupt):
        attach.attach(running.image, running.uri, way="loop")
    assert len(started) == 1 and not psutil.pid_exists(started[0])
    assert not attach.attachments() and not list(folder.glob("*.fuse"))


def test_killed_nbdfuse_can_be_detached(attached):
    os.kill(attached.fuse_pid, signal.SIGKILL)
    time.sleep(0.1)
    with contextlib.suppress(HostError):  # what was not written is lost, and may be told
        attach.detach(attached)
    assert not blockdev.loops_of(f"{attached.fuse}/nbd") and not attach.attachments()


def test_killed_server_can_be_detached(running, attached):
    os.kill(running.pid, signal.SIGKILL)
    with contextlib.suppress(HostError):
        attach.detach(attached)
    assert not blockdev.loops_of(f"{attached.fuse}/nbd") and not attach.attachments()


def test_attachment_of_an_earlier_boot_is_forgotten(folder, tmp_path):
    old = attach.Attachment(str(tmp_path / "i.pmem"), "nbd://x:1", "nbd", False, False, device="/dev/nbd0", boot="then")
    runtime.write_record(f"{runtime.key(old.image)}.attach.json", dataclasses.asdict(old))
    assert attach.attachments() == [] and not list(folder.iterdir())


def test_attach_without_root_says_so(running, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="only root can attach"):
        attach.attach(running.image, running.uri)
    monkeypatch.undo()
