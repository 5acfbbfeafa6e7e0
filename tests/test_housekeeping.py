# SPDX-License-Identifier: MIT
"""What goes wrong beside requests is said once, and tried again."""

import errno
import os
import sys
import threading
import time
import types

import pytest

from pmem_core import geometry, housekeeping, image, serverlog
from pmem_core.device import Device
from pmem_core.errors import HostError, HostFull

BROKEN = HostError("disk.pmem/journal", "the journal could not be written (EIO)", "a healthy disk")
FULL = HostFull("disk.pmem/journal", "no room for the journal", "free space on the host")


@pytest.fixture
def device(tmp_path, monkeypatch):
    monkeypatch.setattr(housekeeping, "TURN_SECONDS", 0.01)
    for name in ("QUIET_SECONDS", "CHECKPOINT_SECONDS", "HISTORY_SECONDS"):
        monkeypatch.setattr(housekeeping, name, 0.05)
    image.create(tmp_path / "disk.pmem", geometry.plan(16 << 20))
    opened = Device(tmp_path / "disk.pmem")
    yield opened
    opened.abandon()


@pytest.fixture
def keeper(device):
    started = housekeeping.Housekeeper(device)
    yield started
    started.stop()


def until(seen):
    """Wait until `seen` says so; fails after 10 seconds."""
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def failing(monkeypatch, device, name, error):
    """Make the method raise `error`; returns the calls so far, and a function that makes it work again."""
    calls, real = [], getattr(device, name)

    def fails(*arguments, **named):
        calls.append(arguments)
        raise error

    monkeypatch.setattr(device, name, fails)
    return calls, lambda: monkeypatch.setattr(device, name, real)


@pytest.mark.parametrize("error", [BROKEN, FULL], ids=["error", "full"])
def test_transient_error_is_said_once_and_tried_again(device, keeper, monkeypatch, capsys, error):
    calls, mend = failing(monkeypatch, device, "checkpoint", error)
    device.write(b"x", 0)
    until(lambda: len(calls) >= 3)
    assert keeper.problem == str(error)
    assert capsys.readouterr().err == f"pmem-nbd: housekeeping: the checkpoint fails, and is tried again: {error}\n"
    mend()
    until(lambda: not device.has_dirty() and not keeper.problem)
    assert capsys.readouterr().err == "pmem-nbd: housekeeping: the checkpoint works again\n"


def test_error_in_one_task_does_not_keep_the_others_from_being_done(device, keeper, monkeypatch, capsys):
    calls, _ = failing(monkeypatch, device, "sample", ZeroDivisionError("worn / 0"))
    device.write(b"x", 0)
    until(lambda: len(calls) >= 3 and not device.has_dirty())
    what = "ZeroDivisionError('worn / 0'): a bug in pmem-nbd"
    assert capsys.readouterr().err == f"pmem-nbd: housekeeping: the history fails, and is tried again: {what}\n"


def test_sample_that_failed_is_taken_later(device, keeper, monkeypatch, capsys):
    calls, mend = failing(monkeypatch, device.journal, "sample", BROKEN)
    device.write(b"x", 0)
    until(lambda: len(calls) >= 2)
    mend()
    until(device.journal.history)


def test_failed_sync_ends_it_and_is_said(device, keeper, monkeypatch, capsys):
    def fdatasync(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    device.write(b"x", 0)
    until(lambda: not keeper._thread.is_alive())
    what = f"{device.path}: input/output error"
    assert capsys.readouterr().err == f"pmem-nbd: housekeeping: has ended, for a sync failed: {what}\n"
    assert keeper.problem == what


def test_sync_that_failed_in_a_request_ends_it_too(device, keeper, monkeypatch, capsys):
    def fdatasync(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(HostError):
        device.flush()
    until(lambda: not keeper._thread.is_alive())
    assert capsys.readouterr().err.startswith("pmem-nbd: housekeeping: has ended, for a sync failed: ")


def test_failed_sync_does_not_end_the_bounding_of_the_log(device, keeper, monkeypatch):
    def fdatasync(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    bounded = []
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    device.write(b"x", 0)
    until(lambda: not keeper._thread.is_alive())
    monkeypatch.setattr(serverlog, "bound", lambda: bounded.append(True))
    until(lambda: len(bounded) >= 3)
    keeper.stop()
    bounded.clear()
    time.sleep(0.05)
    assert not bounded


def test_disk_that_hangs_does_not_hold_up_the_bounding_of_the_log(device, keeper, monkeypatch):
    hanging, free, bounded = threading.Event(), threading.Event(), []
    monkeypatch.setattr(device, "checkpoint", lambda **_: (hanging.set(), free.wait(10)))
    device.write(b"x", 0)
    assert hanging.wait(10)
    monkeypatch.setattr(serverlog, "bound", lambda: bounded.append(True))
    until(lambda: len(bounded) >= 3)
    free.set()


def test_of_a_device_that_is_only_read_nothing_but_the_log_is_kept(monkeypatch, capsys):
    bounded = []
    monkeypatch.setattr(housekeeping, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(serverlog, "bound", lambda: bounded.append(True))
    keeper = housekeeping.Housekeeper(types.SimpleNamespace(read_only=True))  # what else it was asked would be an error
    until(lambda: len(bounded) >= 3)
    keeper.stop()
    assert capsys.readouterr().err == ""


def test_what_ends_it_by_a_bug_is_said(device, monkeypatch, capsys):
    def has_dirty():
        raise IndexError("sections")

    monkeypatch.setattr(device, "has_dirty", has_dirty)
    keeper = housekeeping.Housekeeper(device)
    until(lambda: not keeper._thread.is_alive())
    what = "IndexError('sections'): a bug in pmem-nbd"
    assert capsys.readouterr().err == f"pmem-nbd: housekeeping: has ended: {what}\n"


def test_standard_error_without_room_does_not_end_it(device, keeper, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    calls, _ = failing(monkeypatch, device, "checkpoint", BROKEN)
    device.write(b"x", 0)
    until(lambda: len(calls) >= 2)
