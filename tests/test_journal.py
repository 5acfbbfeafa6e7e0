# SPDX-License-Identifier: MIT
"""The journal's own guard: a checksum in each row, a look at the file before LMDB opens it, and the schema before."""

import os
import random
import subprocess

import pytest
from conftest import damage_row

from pmem_core import geometry, image, journalscan
from pmem_core.check import Kind, check
from pmem_core.device import Device
from pmem_core.errors import DamagedImage, HostFull
from pmem_core.journal import READERS_BYTES, SEAL_BYTES, UNSEALED, Journal

MIB = 1 << 20
SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
NAMES = (b"meta", b"checkpoint", b"sections", b"retired", b"history", b"events")


@pytest.fixture
def path(tmp_path):
    """An image with a little in it, closed."""
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(16 * MIB))
    with Device(path) as device:
        device.write(b"x" * 4096, 0)
        device.sample()
        device.journal.retire(7, {"why": "a test"})
    return path


def everything(path, *, read_only=False):
    journal = Journal(path / "journal", read_only=read_only)
    try:
        told = journal.uuid, journal.session, journal.load_checkpoint(), journal.load_sections()
        return *told, journal.events(), journal.history(), journal.retired()
    finally:
        journal.close()


def test_events_that_are_too_many_lose_the_older_half(path, monkeypatch):
    monkeypatch.setattr("pmem_core.journal.EVENTS_MAX", 8)
    journal = Journal(path / "journal")
    for number in range(20):
        journal.event({"event": "a test", "number": number})
        told = [event["number"] for event in journal.events() if event["event"] == "a test"]
        assert len(journal.events()) <= 8
        assert len(told) >= min(4, number) and told == list(range(number + 1))[-len(told) :]
    journal.close()


def test_history_that_is_too_long_loses_every_second_sample_and_neither_end(path, monkeypatch):
    monkeypatch.setattr("pmem_core.journal.HISTORY_MAX", 8)
    journal = Journal(path / "journal")
    first = journal.history()[0]
    for number in range(30):
        journal.sample({"number": number})
        held = journal.history()
        assert len(held) <= 8 and held[0] == first and held[-1]["number"] == number
    journal.close()


def unseal(path):
    """Make the journal one of the schema before: the same rows without checksums."""
    journal = Journal(path / "journal")
    with journal._env.begin(write=True) as transaction:
        for name in NAMES:
            for key, value in [(bytes(key), bytes(row)) for key, row in transaction.cursor(journal._db[name])]:
                transaction.put(key, value[:-SEAL_BYTES], db=journal._db[name])
        transaction.put(b"schema", b"%d" % UNSEALED, db=journal._db[b"meta"])
        transaction.delete(b"transaction", db=journal._db[b"meta"])
    journal.close()


@pytest.mark.parametrize("value", [b"no JSON", b"[1]", b"\xff"])
@pytest.mark.parametrize("name", [b"events", b"history", b"retired"])
def test_sealed_row_that_is_no_record_is_damage(path, name, value):
    journal = Journal(path / "journal")
    with journal._write() as transaction:
        journal._put(transaction, name, b"%020d" % 1, value)
    journal.close()
    with pytest.raises(DamagedImage, match="the journal cannot be read"):
        everything(path)


def test_journal_of_the_schema_before_is_read_and_given_checksums(path):
    before = everything(path)
    unseal(path)
    data = (path / "journal" / "data.mdb").read_bytes()
    assert everything(path, read_only=True) == before
    assert (path / "journal" / "data.mdb").read_bytes() == data
    assert not check(path).findings
    assert everything(path) == before
    assert (path / "journal" / "data.mdb").read_bytes() != data
    with Device(path) as device:
        assert device.recovery == "" and device.read(4096, 0) == b"x" * 4096
    assert not check(path).findings


def fill(journal):
    """Commit a row more each time until there is no room for it; the error."""
    for row in range(4096):
        try:
            journal.checkpoint(b"core", {row: b"x" * 4096}, {})
        except HostFull as error:
            return error
    raise AssertionError("there was room")


def test_journal_that_has_reached_its_limit_says_so(path, monkeypatch):
    monkeypatch.setattr("pmem_core.journal.MAP_BYTES", 2 * MIB)
    journal = Journal(path / "journal")
    error = fill(journal)
    journal.close()
    assert str(error) == f"{path / 'journal'}: has reached its limit of 2 MiB: a leveling with a smaller table"


@pytest.mark.kernel
def test_journal_on_a_full_host_says_so(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", tmp_path], check=True)
    try:
        journal = Journal(tmp_path / "journal", create=True)
        journal.initialise("00000000-0000-0000-0000-000000000000")
        error = fill(journal)
        journal.close()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    assert str(error) == f"{tmp_path / 'journal'}: no room for the journal: free space on the host"


def test_table_of_readers_has_all_of_its_room(path):
    """A copy may have holes in it, and LMDB stores to a map of it: on a full host that would be a SIGBUS."""
    readers = path / "journal" / "lock.mdb"
    readers.unlink()
    with readers.open("wb") as file:
        file.truncate(READERS_BYTES)
    Journal(path / "journal").close()
    status = readers.stat()
    assert status.st_blocks * 512 >= status.st_size >= READERS_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_row_that_is_not_what_was_written_is_refused(path, name):
    journal = Journal(path / "journal")
    damage_row(journal, name)
    journal.close()
    with pytest.raises(DamagedImage, match="fails its checksum"):
        everything(path, read_only=True)
    of_the_past = name in (b"events", b"history", b"retired")
    assert set(check(path).counts) == {Kind.JOURNAL_RECORDS if of_the_past else Kind.JOURNAL_DAMAGED}


@pytest.mark.parametrize("key", [b"session", b"uuid", b"transaction", b"remade", b"conversion"])
def test_row_whose_name_is_not_what_was_written_is_refused(path, key):
    """Without its row `session` an image that nobody closed would pass for one that was."""
    journal = Journal(path / "journal")
    journal.note_remade(True)
    journal.put_conversion({})
    journal.close()
    file = path / "journal" / "data.mdb"
    data = bytearray(file.read_bytes())
    for at in range(len(data)):
        if data.startswith(key, at):  # in older versions of the page too, where nothing leads
            data[at + len(key) - 1] ^= 2
    file.write_bytes(data)
    assert not journalscan.find_problem(bytes(data)), "LMDB itself has nothing to complain of"
    for read_only in (True, False):
        with pytest.raises(DamagedImage, match="fails its checksum"):
            Journal(path / "journal", read_only=read_only)
    assert Kind.JOURNAL_DAMAGED in {finding.kind for finding in check(path).findings}


@pytest.mark.parametrize("at", [0, 1], ids=["older", "newer"])
def test_meta_page_that_lies_about_its_age_is_found(path, at):
    """The journal would be what it was a transaction ago."""
    file = path / "journal" / "data.mdb"
    data = bytearray(file.read_bytes())
    where = sorted((4096 * page + 144 for page in (0, 1)), key=lambda place: data[place : place + 8][::-1])[at]
    number = int.from_bytes(data[where : where + 8], "little")
    for lie in (number - 2, number + 2):
        data[where : where + 8] = lie.to_bytes(8, "little")
        assert journalscan.find_problem(bytes(data)) != ""


def test_journal_long_in_use_has_no_problem(path):
    """With pages of every kind: branches, values too large for a page, free ones; as it is after each commit."""
    random_ = random.Random(SEED)
    journal = Journal(path / "journal")
    try:
        for number in range(400):
            if number % 2:
                journal.retire(random_.randrange(300), {"why": "y" * random_.randrange(6000)})
            else:
                journal.sample({"figure": "z" * random_.randrange(400)})
            problem = journalscan.find_problem((path / "journal" / "data.mdb").read_bytes())
            assert problem == "", f"seed {SEED}: after {number}"
    finally:
        journal.close()


@pytest.mark.parametrize("count", [0, 100, 4096, 8192, 20_000])
def test_journal_cut_short_is_refused(path, count):
    os.truncate(path / "journal" / "data.mdb", count)
    with pytest.raises(DamagedImage, match="cannot be opened"):
        Journal(path / "journal")
