# SPDX-License-Identifier: MIT
"""ext4 and xfs at every flush of an fsync-heavy run: replayed from the log, mounted, which recovers, and checked.

PMEM_NBD_LOG_FILES=N writes N files, in place of ten, and so checks at as many more flushes.
"""

import contextlib
import dataclasses
import os
import random
import subprocess
from pathlib import Path

import pytest
from conftest import needs
from serving import runtime_directory

from pmem_core import attach, geometry, image, server
from pmem_core.errors import PmemError
from pmem_core.logwrites import record, replay
from pmem_core.logwrites.reader import Log

SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
FILES = int(os.environ.get("PMEM_NBD_LOG_FILES", "10"))
MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 336 * MIB}  # xfs takes 300 at least
CHECKERS = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.xdist_group("log_filesystems"),  # one run of each filesystem serves all tests
    needs("root", "nbdkit", "nbdfuse", "fuse", "loop", "ext4", "xfs"),
]


@dataclasses.dataclass
class Run:
    """A run of a filesystem: its log, and what must be there from which entry on."""

    fs: str
    folder: Path
    log: Path
    made: int = 0  # entries that were logged when mkfs ended
    files: list[tuple[str, bytes, int]] = dataclasses.field(default_factory=list)

    def logged(self) -> int:
        with Log(self.log) as opened:
            return opened.count

    def promised(self, entry: int) -> dict[str, bytes]:
        """What had been fsynced when this entry was the last."""
        return {name: data for name, data, count in self.files if count <= entry + 1}


def work(run: Run, mnt: Path, chance: random.Random) -> None:
    """Write files and fsync each, with its folder; others come and go meanwhile, and nobody promises them."""
    for number in range(FILES):
        (mnt / f"unsynced{number % 5}").write_bytes(chance.randbytes(chance.randint(1, 20000)))
        name, data = f"folder{number % 3}/file{number}", chance.randbytes(chance.randint(1, 60000))
        path = mnt / name
        path.parent.mkdir(exist_ok=True)
        with (mnt / "fresh").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (mnt / "fresh").rename(path)
        for folder in (mnt, path.parent):
            handle = os.open(folder, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        run.files.append((name, data, run.logged()))
        if number % 4 == 3:
            (mnt / f"unsynced{chance.randrange(5)}").unlink(missing_ok=True)


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def run(request, tmp_path_factory):
    """One run, from mkfs to unmount; its log stays."""
    print(f"seed {SEED}")
    folder = tmp_path_factory.mktemp(request.param)
    made = Run(request.param, folder, folder / "log")
    disk = folder / "disk.pmem"
    image.create(disk, geometry.plan(SIZES[made.fs]))
    with runtime_directory():
        try:
            running = server.start(disk, parameters={"logwrites": str(made.log)})
            attached = attach.attach(disk, running.uri, way="loop")
            attach.make_filesystem(attached.device, made.fs)
            made.made = made.logged()
            mounted = attach.mount(attached, folder / "mnt", fs=made.fs)
            work(made, folder / "mnt", random.Random(SEED))
            attach.detach(attach.unmount(mounted))
            server.stop(running)
        finally:
            for one in attach.attachments():
                with contextlib.suppress(PmemError, OSError):
                    attach.detach(attach.unmount(one))
    return made


def fault(run: Run, target: Path, entry: int) -> str:
    """Mount a copy of `target`, look for what was promised, unmount and check it; "" or what is wrong."""
    scratch, mnt = run.folder / "scratch", run.folder / "scratch.mnt"
    replay.copy_sparse(target, scratch)
    mnt.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-o", "loop", scratch, mnt], capture_output=True, text=True, check=False)
    if mounted.returncode:
        return f"not mounted: {mounted.stderr}"
    try:
        for name, data in run.promised(entry).items():
            try:
                if (mnt / name).read_bytes() != data:
                    return f"{name}: differs"
            except OSError as error:
                return f"{name}: {error.strerror}"
    finally:
        subprocess.run(["umount", mnt], check=True)
    checked = subprocess.run([*CHECKERS[run.fs], scratch], capture_output=True, text=True, check=False)
    return checked.stdout + checked.stderr if checked.returncode else ""


def test_filesystem_is_whole_at_every_flush(run, tmp_path):
    checked = {}
    with Log(run.log) as log:
        span = replay.find(log)
        with replay.Target(tmp_path / "target", span, log) as target:
            for entry in replay.replay(log, span, target):
                if entry.has(record.FLUSH) and entry.number >= run.made - 1:
                    checked[entry.number] = fault(run, target.path, entry.number)
                    assert not checked[entry.number], f"entry {entry.number}: {checked[entry.number]}"
    print(f"{run.fs}: {len(checked)} flushes of {span.last + 1} entries, mkfs ends at {run.made}")
    assert len(checked) > FILES and len(run.promised(span.last)) == FILES


@pytest.mark.parametrize("which", ["data", "last"])
def test_covered_write_that_is_left_out_is_noticed(run, tmp_path, which):
    """The data of a file that was fsynced, or the last write before the flush, which is its journal's."""
    _, data, logged = next(one for one in run.files[FILES // 2 :] if len(one[1]) > 4096)
    with Log(run.log) as log:
        entries = list(log.entries())
        last = max(one.number for one in entries[:logged] if one.has(record.FLUSH))
        writes = [one for one in entries[:last] if one.data_bytes]
        if which == "data":
            writes = [one for one in writes if log.read(one.data_at, min(4096, one.data_bytes)) == data[:4096]]
        span = replay.find(log, stop=replay.Stop(entry=last))
        for name, without in (("whole", []), ("lacking", [writes[-1].number])):
            with replay.Target(tmp_path / name, span, log) as target:
                for _ in replay.replay(log, span, target, without=without):
                    pass
        assert not fault(run, tmp_path / "whole", logged - 1)
        assert fault(run, tmp_path / "lacking", logged - 1)


def test_copy_shows_what_it_holds_now_while_the_one_before_is_mounted_elsewhere(tmp_path):
    """`mount -o loop` takes a loop device that has the file already, and with it what was."""
    scratch, mnt = tmp_path / "scratch", tmp_path / "mnt"
    mnt.mkdir()
    holder = ["unshare", "--mount", "sh", "-c", "echo; read end"]  # its namespace begins with the mounts of ours
    with contextlib.ExitStack() as holders:
        for name in ("before", "now"):
            disk, holds = tmp_path / f"{name}.disk", tmp_path / name
            (holds / name).mkdir(parents=True)
            with disk.open("xb") as file:
                file.truncate(SIZES["ext4"])
            subprocess.run(["mkfs.ext4", "-q", "-d", holds, disk], check=True)
            replay.copy_sparse(disk, scratch)
            subprocess.run(["mount", "-o", "loop", scratch, mnt], check=True)
            try:
                begun = subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                holders.enter_context(begun)  # its end closes the pipe it reads
                begun.stdout.readline()
                assert (mnt / name).is_dir()
            finally:
                subprocess.run(["umount", mnt], check=True)
