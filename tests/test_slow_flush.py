# SPDX-License-Identifier: MIT
"""A flush that waits long for the disk holds up nobody who needs no disk; and what a flush costs."""

import os
import threading
from pathlib import Path

import pytest
from conftest import needs
from test_plugin import serving

from pmem_core import geometry, image, launch, layout
from pmem_core.device import Device
from pmem_core.journal import _Transaction

MIB = 1 << 20
PAGE = layout.PAGE_BYTES
# The plugin, in whose process a sync of the medium lasts until the file `go` appears; `begun` says that one waits.
SLOW = """
import os, pathlib, time
real, here = os.fdatasync, pathlib.Path({folder!r})

def fdatasync(fd):
    if os.readlink(f"/proc/self/fd/{{fd}}").endswith("/media"):
        (here / "begun").touch()
        while not (here / "go").exists():
            time.sleep(0.01)
    real(fd)

os.fdatasync = fdatasync
__file__ = {plugin!r}
exec(compile(pathlib.Path(__file__).read_text(), __file__, "exec"))
"""


def make(path: Path, **options) -> Path:
    """An image that leveling leaves alone."""
    image.create(path, geometry.plan(16 * MIB, leveling_name="none", **options))
    return path


def test_reads_go_on_while_a_flush_waits_for_the_disk(tmp_path, monkeypatch):
    begun, go, real = threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(fd):
        begun.set()
        assert go.wait(30)
        real(fd)

    with Device(make(tmp_path / "disk.pmem")) as device:
        device.write(b"x" * PAGE, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fdatasync)
            flusher = threading.Thread(target=device.flush)
            flusher.start()
            try:
                assert begun.wait(30)
                assert device.read(PAGE, 0) == b"x" * PAGE
                device.write(b"y" * PAGE, 0)
                assert flusher.is_alive()
            finally:
                go.set()
                flusher.join(30)
        assert device.read(PAGE, 0) == b"y" * PAGE


@needs("nbdkit", "libnbd")
def test_reads_of_another_connection_go_on_while_a_flush_waits(tmp_path):
    plugin = tmp_path / "slow.py"
    plugin.write_text("# SPDX-License-Identifier: MIT" + SLOW.format(folder=str(tmp_path), plugin=str(launch.PLUGIN)))
    path = make(tmp_path / "disk.pmem")
    with serving(path, plugin=plugin) as server:
        one, other = server.connect(), server.connect()
        try:
            one.pwrite(b"x" * PAGE, 0)
            flusher = threading.Thread(target=one.flush)
            flusher.start()
            while not (tmp_path / "begun").exists():
                assert flusher.is_alive()
            for _ in range(100):
                assert other.pread(PAGE, 0) == b"x" * PAGE
            other.pwrite(b"y" * PAGE, PAGE)
            assert flusher.is_alive(), "the flush was to wait until now"
        finally:
            (tmp_path / "go").touch()
            flusher.join(30)
        assert not flusher.is_alive()


@pytest.mark.parametrize("writes", ["each", "coalesced"])
@pytest.mark.parametrize("leveling", ["none", "start_gap"])
def test_flush_without_a_move_is_one_sync_and_nothing_else(tmp_path, monkeypatch, leveling, writes):
    options = {"parameters": {"interval": 10_000}} if leveling == "start_gap" else {}
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(16 * MIB, leveling_name=leveling, descriptor_writes=writes, **options))
    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
        device.flush()
        done = []
        for name in ("fdatasync", "fsync", "pwrite", "sync"):
            real = getattr(os, name)

            def counted(*arguments, name=name, real=real):
                file = Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).name if arguments else ""  # noqa: PTH115
                done.append((name, file))
                return real(*arguments)

            monkeypatch.setattr(os, name, counted)
        monkeypatch.setattr(_Transaction, "__enter__", lambda self: pytest.fail("the journal was written"))
        for page in range(5):
            device.write(b"y" * PAGE, page * PAGE)
            device.flush()
        assert done == [("fdatasync", "media")] * 5
        monkeypatch.undo()
