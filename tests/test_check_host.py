# SPDX-License-Identifier: MIT
"""What the host refuses is no damage; and where the journal is lost, what the state says is not believed blindly."""

import errno
import os
import random
import shutil
import subprocess
import textwrap

import lmdb
import pytest
from test_check import PLANS, SEED, Made, a_page, flip, hashes, kinds, lose_page_cache, make, put

from pmem_core import journal as journal_
from pmem_core.check import Kind, check, probe
from pmem_core.check import run as check_run
from pmem_core.device import Device
from pmem_core.errors import DamagedImage, HostError, HostFull
from pmem_core.journal import Journal

PAGE = 4096
REAL = "import resource, sys\nfrom pmem_core import journal\nfrom pmem_core.check import probe\n"
FULL = """
from pmem_core.errors import HostFull
def refuse(self): raise HostFull(self.path, "no room for the journal", "free space on the host")
journal.Journal._look_over = refuse
"""
MEMORY = """
def refuse(self): raise MemoryError
journal.Journal._look_over = refuse
"""
LIMITED = "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))\n"
RUN = "probe.main(sys.argv[1])\n"
# What the program that reads the journal does, and what is said then.
REFUSALS = {
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
    "hangs": ("import time; time.sleep(60)", "not read within"),
    "does not run": ("raise ImportError('no such module')", "no such module"),
    "no room": (REAL + FULL + RUN, "no room for a copy of the journal"),
    "no memory": (REAL + MEMORY + RUN, "no memory"),
    "little memory": (REAL + LIMITED + RUN, "address space"),
}


@pytest.fixture
def cut(tmp_path):
    """An image after a power cut, whose journal alone knows where frames are."""
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    device = Device(made.path)
    made.use(device, random.Random(SEED))
    device.flush()
    device.abandon()
    lose_page_cache(made.path)
    return made


def replace_program(monkeypatch, tmp_path, text):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(text))
    monkeypatch.setattr(probe, "PROGRAM", program)


@pytest.mark.parametrize("how", REFUSALS)
def test_journal_that_the_host_does_not_let_be_read_is_kept(cut, tmp_path, monkeypatch, how):
    text, words = REFUSALS[how]
    replace_program(monkeypatch, tmp_path, text)
    monkeypatch.setattr(probe, "SECONDS_MAX", 0.3 if how == "hangs" else 60)
    before = hashes(cut.path)
    with pytest.raises((HostError, HostFull), match=words):
        check(cut.path, repair=True)
    assert hashes(cut.path) == before


@pytest.mark.parametrize(
    ("owner", "name", "number", "kind"),
    [
        (shutil, "copy", errno.ENOSPC, HostFull),
        (shutil, "copy", errno.EIO, HostError),
        (subprocess, "run", errno.EAGAIN, HostError),
    ],
)
def test_journal_that_cannot_be_copied_is_kept(cut, monkeypatch, owner, name, number, kind):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    before = hashes(cut.path)
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(kind):
        check(cut.path, repair=True)
    assert hashes(cut.path) == before


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGBUS", "SIGABRT"])
def test_crash_is_damage_unless_memory_is_limited(cut, tmp_path, monkeypatch, signal):
    replace_program(monkeypatch, tmp_path, f"import os, signal; os.kill(os.getpid(), signal.{signal})")
    assert signal in probe.read_journal(cut.path / "journal").problem
    monkeypatch.setattr(probe.resource, "getrlimit", lambda what: (3 << 30, 3 << 30))
    with pytest.raises(HostError, match=signal):
        probe.read_journal(cut.path / "journal")


def test_hard_limit_below_our_own_is_kept_to(cut, tmp_path, monkeypatch):
    limited = LIMITED.replace("900 << 20", "3 << 30")
    replace_program(monkeypatch, tmp_path, REAL + limited + RUN)
    assert probe.read_journal(cut.path / "journal").problem == ""


def test_check_without_room_for_its_own_state_says_so(cut, monkeypatch):
    def refuse(fd, at, count):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(HostFull):
        check(cut.path)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.MemoryError("j: Cannot allocate memory"), HostError),
        (lmdb.Error("j: Too many open files", errno.EMFILE), HostError),
        (lmdb.CorruptedError("j: MDB_CORRUPTED"), DamagedImage),
        (lmdb.InvalidError("j: MDB_INVALID"), DamagedImage),
    ],
)
def test_error_of_the_journal_says_whose_it_is(cut, monkeypatch, error, kind):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(journal_.lmdb, "open", refuse)
    with pytest.raises(kind, match="the journal cannot be opened") as caught:
        Journal(cut.path / "journal")
    assert type(caught.value) is kind


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOMEM])
def test_journal_whose_file_cannot_be_read_is_no_damage(cut, monkeypatch, number):
    def refuse(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(journal_.Path, "read_bytes", refuse)
    with pytest.raises(HostError):
        Journal(cut.path / "journal")


def test_repair_that_fails_leaves_no_half_made_journal(cut, monkeypatch):
    put(cut.path / "journal" / "data.mdb", 0, bytes(20_000))

    def refuse(self, uuid):
        raise HostFull(self.path, "no room for the journal", "free space on the host")

    before = hashes(cut.path)
    monkeypatch.setattr(Journal, "initialise", refuse)
    with pytest.raises(HostFull):
        check(cut.path, repair=True)
    assert hashes(cut.path) == before


# ---- the state of another session ----


@pytest.fixture
def stale(tmp_path):
    """An image after a power cut: the state is as it was at first, and the journal is gone bad as well."""
    parameters = {"interval": 1, "region_frames": 64, "gap_frames": 4}
    made = Made(tmp_path / "a.pmem", 1 << 20, leveling_name="start_gap", parameters=parameters)
    state = (made.path / "state").read_bytes()
    with Device(made.path) as device:
        for _ in range(4):
            for page in range(made.plan.info.page_count):
                made.bytes[page * PAGE : (page + 1) * PAGE] = page.to_bytes(4, "little") * (PAGE // 4)
                device.write(made.bytes[page * PAGE : (page + 1) * PAGE], page * PAGE)
    (made.path / "state").write_bytes(state)
    put(made.path / "journal" / "data.mdb", 0, bytes(20_000))
    return made


def test_state_that_most_pages_contradict_is_not_repaired_by(stale):
    before = hashes(stale.path)
    for repair in (False, True):
        report = check(stale.path, repair=repair)
        assert kinds(report) == {Kind.JOURNAL_DAMAGED, Kind.MAP_DOUBTFUL}
        assert not report.clean and not report.repairs and "move the folder 'journal'" in report.unchecked[0]
    assert hashes(stale.path) == before


def test_pages_that_the_state_misplaces_are_refused_not_rebuilt(stale):
    shutil.rmtree(stale.path / "journal")
    mended = check(stale.path, repair=True)
    assert mended.repairs == mended.counts
    refused, differing = stale.compare()
    assert len(refused) > 100 and not differing
    assert check(stale.path).clean


def test_repair_by_the_state_that_was_cut_short_goes_on_refusing(stale, monkeypatch):
    shutil.rmtree(stale.path / "journal")
    monkeypatch.setattr(check_run, "_mend", lambda *arguments: None)
    check(stale.path, repair=True)
    monkeypatch.undo()
    check(stale.path, repair=True)
    refused, differing = stale.compare()
    assert len(refused) > 100 and not differing
    # It is over: a descriptor that is damaged now is rebuilt again.
    page = a_page(stale)
    with Device(stale.path) as device:
        device.write(stale.bytes[page * PAGE : (page + 1) * PAGE], page * PAGE)
    flip(stale.path / "media", stale.offsets(page)[1] + 9)
    assert check(stale.path, repair=True).repairs == {Kind.DESCRIPTOR_DAMAGED: 1}
    assert stale.compare() == ([other for other in refused if other != page], [])
