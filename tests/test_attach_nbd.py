# SPDX-License-Identifier: MIT
"""Attachments by the kernel's nbd driver, with stand-ins for nbd-client and sysfs: none is left without a record."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import runtime_directory

from pmem_core import attach, blockdev, nbdclient, runtime
from pmem_core.errors import HostError

# Connects as nbd-client does; what it is asked to do first is in files of the device: `before` and `after` connecting.
CLIENT = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
device = next(word for word in words if word.startswith("/dev/nbd"))
node = Path(os.environ["FAKE_SYSFS"], Path(device).name)
with open(os.environ["FAKE_CALLS"], "a") as calls:
    record = [path.read_text() for path in Path(os.environ["PMEM_NBD_RUNTIME_DIR"]).glob("*.attach.json")]
    print(json.dumps([words, json.loads(record[0])["device"] if record else None, os.getpid()]), file=calls)


def misbehave(when):
    for what in (node / when).read_text().split() if (node / when).exists() else []:
        if what == "interrupt":
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(30)
        elif what == "kill":
            os.kill(os.getppid(), signal.SIGKILL)
        elif what == "unready":
            sys.exit()
        elif what == "taken":
            (node / "pid").write_text("1")
        elif what == "refuse" or what == "refuse-two" and "-connections" in words:
            sys.exit("nbd-client: E: refused")


if "-d" in words:
    (node / "pid").unlink()
    sys.exit()
misbehave("before")
if (node / "pid").exists():
    sys.exit("nbd-client: E: device is busy")
(node / "pid").write_text(str(os.getpid()))
misbehave("after")
(node / "size").write_text("8")
"""


class Nbd:
    """Two devices, and what nbd-client was called with."""

    def __init__(self, folder: Path) -> None:
        self.sysfs, self._calls = folder / "sys", folder / "calls"
        for name in ("nbd0", "nbd1"):
            (self.sysfs / name).mkdir(parents=True)
            (self.sysfs / name / "size").write_text("0")

    def misbehaves(self, name: str, when: str, what: str) -> None:
        (self.sysfs / name / when).write_text(what)

    def connected(self) -> list[str]:
        return sorted(path.parent.name for path in self.sysfs.glob("*/pid"))

    def calls(self) -> list:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []

    def disconnections(self) -> list[str]:
        return [words[1] for words, _, _ in self.calls() if words[0] == "-d"]


@pytest.fixture
def nbd(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nbd-client").write_text(CLIENT)
    (tmp_path / "bin" / "nbd-client").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SYSFS", str(tmp_path / "sys"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(blockdev, "SYSFS", tmp_path / "sys", raising=False)
    monkeypatch.setattr(blockdev, "sync", lambda device: None)
    monkeypatch.setattr(blockdev, "require_unused", lambda device: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with runtime_directory():
        yield Nbd(tmp_path)


def attached(**options):
    return attach.attach("nbd://host:10809", "nbd://host:10809", way="nbd", **options)


def test_device_is_recorded_before_it_is_connected(nbd):
    one = attached()
    ((words, recorded, _),) = nbd.calls()
    assert recorded == one.device == "/dev/nbd0" and words[:3] == ["host", "10809", "/dev/nbd0"]
    assert attach.attachments() == [one]
    attach.detach(one)
    assert not nbd.connected() and not attach.attachments()


def test_one_connection_is_made_where_two_are_refused(nbd):
    nbd.misbehaves("nbd0", "before", "refuse-two")
    one = attached()
    assert ["-connections" in words for words, _, _ in nbd.calls()] == [True, False]
    attach.detach(one)


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_nbd_client_leaves_nothing(nbd, when):
    nbd.misbehaves("nbd0", when, "interrupt")
    with pytest.raises(KeyboardInterrupt):
        attached()
    assert not nbd.connected() and not attach.attachments()
    assert nbd.disconnections() == ([] if when == "before" else ["/dev/nbd0"])
    assert not Path(f"/proc/{nbd.calls()[0][2]}").exists()


def test_interrupt_once_the_device_is_connected_leaves_nothing(nbd, monkeypatch):
    real = nbdclient.wait

    def wait(done, *arguments):
        if nbd.connected() and not nbd.disconnections():
            signal.raise_signal(signal.SIGINT)
        return real(done, *arguments)

    monkeypatch.setattr(nbdclient, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        attached()
    assert not nbd.connected() and not attach.attachments() and nbd.disconnections() == ["/dev/nbd0"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_attachment_whose_maker_was_killed_can_be_undone(nbd, when):
    nbd.misbehaves("nbd0", when, "kill" if when == "after" else "kill refuse")
    if (child := os.fork()) == 0:
        attached()
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (half,) = attach.attachments()
    assert half.device == "/dev/nbd0"
    attach.detach(half)
    assert not nbd.connected() and not attach.attachments()
    assert nbd.disconnections() == ([] if when == "before" else ["/dev/nbd0"])
    for lock in runtime.directory().glob("*.lock"):  # its maker's
        lock.unlink()


def test_device_that_is_taken_meanwhile_is_left_and_another_is_connected(nbd):
    nbd.misbehaves("nbd0", "before", "taken")
    one = attached()
    assert one.device == "/dev/nbd1" and attach.attachments() == [one]
    attach.detach(one)
    assert nbd.connected() == ["nbd0"] and nbd.disconnections() == ["/dev/nbd1"]


@pytest.mark.parametrize("then", ["interrupt", "refuse"])
def test_device_that_somebody_else_connected_is_not_disconnected(nbd, then):
    nbd.misbehaves("nbd0", "before", f"taken {then}")
    nbd.misbehaves("nbd1", "before", "taken")
    with pytest.raises((KeyboardInterrupt, HostError)):
        attached()
    assert "nbd0" in nbd.connected() and not nbd.disconnections() and not attach.attachments()


def test_device_that_does_not_become_ready_is_disconnected(nbd, monkeypatch):
    monkeypatch.setattr(blockdev.wait, "__defaults__", (0.2,))
    nbd.misbehaves("nbd0", "after", "unready")
    with pytest.raises(HostError, match="did not become ready"):
        attached()
    assert not nbd.connected() and not attach.attachments()


def test_no_free_device_is_told_and_leaves_nothing(nbd):
    for name in ("nbd0", "nbd1"):
        (nbd.sysfs / name / "pid").write_text("1")
    with pytest.raises(HostError, match="no device is free"):
        attached()
    assert not nbd.calls() and not attach.attachments()


@pytest.mark.parametrize(("words", "ours"), [(["60"], True), (["61"], False)])
def test_child_of_a_killed_nbd_client_is_known_by_its_words(nbd, words, ours):
    client = subprocess.Popen(["sleep", "60"])
    client.kill()
    client.wait()
    with subprocess.Popen(["sleep", *words]) as holder:
        (nbd.sysfs / "nbd0" / "pid").write_text(str(holder.pid))
        time.sleep(0.1)  # until it is no longer Python
        assert nbdclient._has_connected(client, "/dev/nbd0") == ours
        holder.kill()
