# SPDX-License-Identifier: MIT
"""A flush that waits long for the disk holds up nobody who needs no disk; and what a flush costs."""

import contextlib
import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import needs
from test_plugin import refused, serving

from pmem_core import geometry, host, image, layout
from pmem_core.device import Device
from pmem_core.journal import Journal, _Transaction

MIB = 1 << 20
PAGE = layout.PAGE_BYTES


def make(path: Path, size: int = 16 * MIB, **options) -> Path:
    """An image that leveling leaves alone."""
    image.create(path, geometry.plan(size, leveling_name="none", **options))
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


FLUSHES = """
import os, sys
from pathlib import Path
from pmem_core.device import Device
with Device(Path(sys.argv[1])) as device:
    device.write(b"x" * 4096, 0)
    device.flush()
    os.write(2, b"begin")
    for page in range(5):
        device.write(b"y" * 4096, page * 4096)
        device.flush()
    os.write(2, b"end")
"""


@needs("strace")
def test_flush_without_a_move_is_one_system_call(tmp_path):
    """What the test above says of our calls, said by the kernel: nothing else is written, synced or mapped."""
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(16 * MIB, parameters={"interval": 10_000}))
    calls = (
        "fdatasync,fsync,msync,sync,syncfs,sync_file_range,write,writev,pwrite64,pwritev,mmap,ftruncate,rename,openat"
    )
    command = ["strace", "-f", "-y", "-e", f"trace={calls}", "-e", "signal=none", "-o", tmp_path / "calls"]
    subprocess.run([*command, sys.executable, "-c", FLUSHES, path], check=True, cwd=Path(__file__).parents[1])
    lines = (tmp_path / "calls").read_text().splitlines()
    begin, end = (next(i for i, line in enumerate(lines) if f'"{word}"' in line) for word in ("begin", "end"))
    done = [re.match(r"\d+ +(\w+)\(\d+<.*/(\w+)>\) = 0", line) for line in lines[begin + 1 : end]]
    assert [one and one.groups() for one in done] == [("fdatasync", "media")] * 5, lines[begin : end + 1]


@contextlib.contextmanager
def traced(
    tmp_path: Path, *words: str, threads: int = 1, size: int = 16 * MIB
) -> Iterator[tuple[Any, Callable[[], list[tuple[str, ...] | None]]]]:
    """A server under strace, and what syncs and calls for its files there were since, with their results.

    It has a client, whose first request was a write: with one thread, flushes are compiled code's.
    """
    calls = tmp_path / "calls"
    command = ["strace", "-f", "-y", "-I", "1", "-e", "trace=fdatasync,fsync,msync,sync_file_range,pwrite64", *words]
    command += ["-e", "signal=none", "-o", calls]
    path = make(tmp_path / "disk.pmem", size)
    with serving(path, options=["-t", str(threads)], prefix=command) as server:
        server.connect().pwrite(b"x" * PAGE, 0)
        before = len(calls.read_text().splitlines())

        def done() -> list[tuple[str, ...] | None]:
            found = [
                re.match(r"\d+ +(\w+)\(\d+<.*/(\w+)>.*\) = (-1 \w+|\w+)", line)
                for line in calls.read_text().splitlines()[before:]
            ]
            return [one and one.groups() for one in found]

        yield server, done


def of_medium(tmp_path: Path, what: str) -> list[str]:
    """strace's words for something to be done to syncs of the medium."""
    return ["-P", str(tmp_path / "disk.pmem" / "media"), "-e", f"inject=fdatasync:{what}"]


@needs("strace", "nbdkit", "libnbd")
@pytest.mark.parametrize("how", ["flush", "fua"])
@pytest.mark.parametrize("threads", [1, 3])
def test_reads_go_on_while_a_flush_of_a_server_waits(tmp_path, how, threads):
    """Of another connection; and with several threads, of its own."""
    import nbd

    with traced(tmp_path, *of_medium(tmp_path, "delay_enter=3000000"), threads=threads) as (server, _):
        one, *_ = server._clients
        other = one if threads > 1 else server.connect()
        begun = time.monotonic()
        waits = one.aio_flush() if how == "flush" else one.aio_pwrite(bytes(PAGE), PAGE, flags=nbd.CMD_FLAG_FUA)
        one.poll(0)
        time.sleep(0.3)
        for _ in range(50):
            assert other.pread(PAGE, 0) == b"x" * PAGE
        other.trim(PAGE, 2 * PAGE)
        assert not one.aio_command_completed(waits), "it was to wait until now"
        while not one.aio_command_completed(waits):
            assert one.poll(30_000) == 1
        assert time.monotonic() - begun > 3


@needs("strace", "nbdkit", "libnbd")
def test_flush_and_fua_of_a_server_are_one_system_call(tmp_path):
    import nbd

    with traced(tmp_path) as (server, done):
        (client,) = server._clients
        for page in range(3):
            client.pwrite(b"y" * PAGE, page * PAGE)
            client.flush()
            client.pwrite(b"z" * PAGE, page * PAGE, nbd.CMD_FLAG_FUA)
        assert done() == [("fdatasync", "media", "0")] * 6


@needs("strace", "nbdkit", "libnbd")
def test_write_with_fua_that_python_ends_is_synced_too(tmp_path):
    """As one to a section that was never written is."""
    import nbd

    with traced(tmp_path, size=256 * MIB) as (server, done):
        (client,) = server._clients
        client.pwrite(b"y" * PAGE, client.get_size() - PAGE, nbd.CMD_FLAG_FUA)
        assert done()[-1] == ("fdatasync", "media", "0")


@needs("strace", "nbdkit", "libnbd")
def test_sync_that_a_signal_interrupts_is_done_again(tmp_path):
    with traced(tmp_path, *of_medium(tmp_path, "error=EINTR:when=2")) as (server, done):
        (client,) = server._clients
        client.flush()
        client.flush()
        assert done() == [("fdatasync", "media", result) for result in ("0", "-1 EINTR", "0")]


@needs("strace", "nbdkit", "libnbd")
@pytest.mark.parametrize("how", ["flush", "fua"])
def test_client_is_told_that_its_sync_failed_and_no_later_one_is_answered(tmp_path, how):
    import nbd

    with traced(tmp_path, *of_medium(tmp_path, "error=ENOSPC:when=2")) as (server, _):
        (client,) = server._clients
        requests = {"flush": client.flush, "fua": lambda: client.pwrite(b"y" * PAGE, PAGE, nbd.CMD_FLAG_FUA)}
        requests[how]()
        assert refused(requests[how]) == errno.ENOSPC
        assert [refused(request) for request in requests.values()] == [errno.EIO] * 2
        assert client.pread(PAGE, 0) == b"x" * PAGE
        # The next open is told, in two places.
        path = tmp_path / "disk.pmem"
        journal = Journal(path / "journal", read_only=True)
        assert journal.session["sync_failed"] and host._mark_of(path / "media") == host._FAILED
        journal.close()
