# SPDX-License-Identifier: MIT
"""Descriptors in memory: what they verify, what they forget, what they cost.  That data is kept: test_contract."""

import json
import os
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest

from pmem_core import arena, check, cli, geometry, image, layout, snapshot, stats
from pmem_core.device import Device
from pmem_core.errors import BadData, HostError

PAGE = 4096
MIB = 1 << 20
OPTIONS = {"placement_name": "ram", "leveling_name": "start_gap"}


@pytest.fixture
def path(tmp_path):
    """An image of 16 MiB."""
    image.create(tmp_path / "disk.pmem", geometry.plan(16 * MIB, **OPTIONS))
    return tmp_path / "disk.pmem"


def damage(device: Device, page: int) -> None:
    """Flip a bit of the page's first byte on the medium.  Nothing has moved."""
    device.mapping.media[device.plan.info.data_at + page * PAGE] ^= 1


# ---- what is verified ----


def test_damage_to_a_page_that_was_written_is_found(path):
    with Device(path) as device:
        device.write(b"x" * PAGE, 5 * PAGE)
        damage(device, 5)
        with pytest.raises(BadData, match=r"page 5: its data fails the checksum: .*a restart forgets the checksum"):
            device.read(1, 5 * PAGE + 100)
        with pytest.raises(BadData):
            device.write(b"y", 5 * PAGE)
        assert int(device.mapping.core["tally"][0]["checksum_errors"]) == 2
        device.write(b"z" * PAGE, 5 * PAGE)  # whole: what was there does not matter
        assert device.read(2, 5 * PAGE) == b"zz"


def test_first_read_makes_the_descriptor_that_later_ones_verify(path):
    with Device(path) as device:
        device.write(b"x" * PAGE, 5 * PAGE)
    with Device(path) as device:
        damage(device, 5)
        assert device.read(2, 5 * PAGE) == b"yx", "nothing is known yet"
        damage(device, 5)
        with pytest.raises(BadData):
            device.read(2, 5 * PAGE)
    with Device(path) as device:
        assert device.read(2, 5 * PAGE) == b"xx", "the new session knows of nothing"


def test_without_checksums_damage_goes_unnoticed(tmp_path):
    image.create(tmp_path / "disk.pmem", geometry.plan(16 * MIB, checksums=False, **OPTIONS))
    with Device(tmp_path / "disk.pmem") as device:
        device.write(b"x" * PAGE, 0)
        damage(device, 0)
        assert device.read(2, 0) == b"yx"


def test_pages_of_a_suspect_section_are_verified_too(path):
    """A power cut made it suspect, and was over before this session's descriptors were made."""
    with Device(path) as device:
        device.mapping.sections[0] |= np.uint8(layout.SECTION_SUSPECT | layout.SECTION_TOUCHED)
        device.write(b"x" * PAGE, 5 * PAGE)
        damage(device, 5)
        with pytest.raises(BadData):
            device.read(1, 5 * PAGE)


def test_nothing_is_scrubbed_behind_a_page_that_is_not_known(path):
    with Device(path) as device:
        device.write(b"x" * PAGE, 5 * PAGE)
        device.mapping.sections[0] |= np.uint8(layout.SECTION_SUSPECT)
    with Device(path) as device:
        assert device.mapping.sections[0] & layout.SECTION_SUSPECT
        device.write(b"y", 5 * PAGE)
        assert device.read(PAGE, 5 * PAGE) == b"y" + b"x" * (PAGE - 1)


def test_damage_to_a_descriptor_in_memory_is_found(path):
    with Device(path) as device:
        device.write(b"x" * PAGE, 5 * PAGE)
        kept = device.mapping.maps["descriptors"]
        kept[5 * 64 + 12] ^= 1
        with pytest.raises(BadData, match="its descriptor fails the checksum"):
            device.read(1, 5 * PAGE)


# ---- what is forgotten ----


def test_page_given_back_is_known_to_be_free_until_the_end_of_the_session(path):
    with Device(path) as device:
        device.write(b"x" * 3 * PAGE, 0)
        device.trim(PAGE, PAGE)
        assert device.extents(3 * PAGE, 0) == [(0, PAGE, True), (PAGE, PAGE, False), (2 * PAGE, PAGE, True)]
        before = int(device.mapping.core["tally"][0]["worn"][layout.CAUSE_HOST])
        device.write(b"y", PAGE + 7)  # what lies there is not the page's: all of it is stored
        assert int(device.mapping.core["tally"][0]["worn"][layout.CAUSE_HOST]) - before == PAGE // 256
        device.trim(PAGE, PAGE)
    with Device(path) as device:
        assert device.extents(3 * PAGE, 0) == [(0, 3 * PAGE, True)], "as with placement none"
        device.trim(PAGE, 2 * PAGE)
        assert device.extents(3 * PAGE, 0) == [(0, 2 * PAGE, True), (2 * PAGE, PAGE, False)]
        assert device.read(3 * PAGE, 0) == b"x" * PAGE + bytes(2 * PAGE)


def test_trim_gives_the_host_its_room_back(path):
    with Device(path) as device:
        device.write(os.urandom(MIB), 0)
        device.flush()
        used = (path / "media").stat().st_blocks * 512
        device.trim(MIB, 0)
        device.flush()
        assert (path / "media").stat().st_blocks * 512 <= used - MIB


@pytest.mark.parametrize("pages", [1, 2, 200])
def test_kill_needs_nothing_of_what_was_in_memory(path, pages):
    data = os.urandom(pages * PAGE)
    device = Device(path)
    device.write(data, 3 * PAGE)
    device.mapping.core["intent"][0, 0] = 3 + pages  # as if the last page had been in flight
    device.abandon()
    device = Device(path)
    assert (device.recovery, device.read(len(data), 3 * PAGE)) == ("killed", data)
    device.abandon()
    assert check.check(path, repair=True).clean
    with Device(path) as device:
        assert device.read(len(data), 3 * PAGE) == data


def test_repair_takes_what_it_does_not_know_for_data(path):
    """A section marked as never written, with data in it: as with none, the mark is mended, and the data stays."""
    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
        device.checkpoint()
        device.mapping.sections[0] = 0
        device.journal.put_sections({0: bytes(512)})
    report = check.check(path, repair=True)
    assert report.counts[check.Kind.SECTION_UNMARKED] == 1
    with Device(path) as device:
        assert device.read(PAGE, 0) == b"x" * PAGE


# ---- what it costs ----


def test_descriptors_in_memory_wear_nothing(path):
    with Device(path) as device:
        for _ in range(100):
            device.write(b"x" * PAGE, 0)
    by_cause = stats.collect(path)["wear"]["by_cause"]
    assert (by_cause["host"], by_cause["descriptor"]) == (100 * PAGE // 256, 0)


def test_only_touched_pages_of_descriptors_take_memory(tmp_path):
    """256 GiB have 4 GiB of descriptors; a page of memory holds 64 of them."""
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(256 << 30, **OPTIONS))
    most = 64 * image.load_geometry(path).info.page_count
    assert snapshot.memory(snapshot.look(path)) == {"bytes": most, "resident_bytes": None}
    with Device(path) as device:
        assert snapshot.memory(snapshot.look(path))["resident_bytes"] == 0
        for group in (0, 1, 1000, 900_000):
            device.write(b"x", group * 64 * PAGE)
            device.write(b"x", (group * 64 + 63) * PAGE)
        assert snapshot.memory(snapshot.look(path))["resident_bytes"] == 4 * PAGE
        device.read(PAGE, 2 * 64 * PAGE)  # of a section in use: its first touch
        assert snapshot.memory(snapshot.look(path))["resident_bytes"] == 5 * PAGE
        device.extents(64 * PAGE, 3 * 64 * PAGE)  # which only looks
        assert snapshot.memory(snapshot.look(path))["resident_bytes"] == 5 * PAGE


def test_memory_of_descriptors_is_told_beside_other_memory_of_its_kind(path, monkeypatch):
    """The kernel joins maps that lie side by side and are alike, and maps lie side by side when it can be had."""
    real, others = arena.anonymous, []

    def surrounded(count):
        # So many that they have filled every gap between other maps, and the next one has to lie beside the last.
        others.extend(real(count) for _ in range(100))
        return real(count)

    monkeypatch.setattr(arena, "anonymous", surrounded)
    with Device(path) as device:
        device.write(b"x", 0)
        assert snapshot.memory(snapshot.look(path))["resident_bytes"] == PAGE


def test_reading_holes_on_tmpfs_takes_no_room():
    """There a look at a hole fills it; so reading alone makes no descriptors, and a write does."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "disk.pmem"
        image.create(path, geometry.plan(16 * MIB, **OPTIONS))
        with Device(path) as device:
            assert not device.waits_for_disk, "this is no tmpfs"
            device.write(b"x" * PAGE, 0)
            used = (path / "media").stat().st_blocks
            assert device.read(8 * MIB, 0) == b"x" * PAGE + bytes(8 * MIB - PAGE)
            assert (path / "media").stat().st_blocks == used
            damage(device, 0)
            with pytest.raises(BadData):
                device.read(1, 0)


def test_too_little_memory_is_told_in_one_line(path):
    with Device(path) as device, pytest.raises(HostError, match=r"^descriptors: .* bytes of memory: cannot allocate"):
        device.mapping.keep_descriptors(types.SimpleNamespace(kept_bytes=1 << 47))


# ---- what the command says ----


def test_command_says_where_descriptors_are_and_what_they_take(path, capsys):
    def said(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    with Device(path) as device:
        device.write(b"x", 0)
        for verb in ("info", "stats"):
            live = json.loads(said(verb, path, "-j"))
            assert live["descriptor_memory"] == {"bytes": 64 * device.plan.info.page_count, "resident_bytes": PAGE}
            assert (live["image"]["descriptors"], live["image"]["checksums"]) == ("memory", True)
            assert "in the server's memory" in (out := said(verb, path)) and "4 KiB now" in out
    assert json.loads(said("info", path, "-j"))["descriptor_memory"]["resident_bytes"] is None
    assert " now" not in said("info", path)


def test_coalesced_is_said_to_mean_nothing(tmp_path, capsys):
    arguments = ["--size", "16M", "--placement", "ram", "--descriptor-writes", "coalesced"]
    assert cli.main(["create", str(tmp_path / "disk.pmem"), *arguments]) == 0
    assert capsys.readouterr().err == "--descriptor-writes coalesced: not used: ram writes no descriptors\n"
    assert image.load_geometry(tmp_path / "disk.pmem").pending_bytes == 0
