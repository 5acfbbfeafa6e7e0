# SPDX-License-Identifier: MIT
"""Descriptors of format 2: what they say, what it costs, and what a program says that knows format 1 only."""

import json
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from independent_reader import Reader
from naive import crc32c_raw

from pmem_core import cli, convert, geometry, host, image, infoblock, layout
from pmem_core.check import check
from pmem_core.device import Device
from pmem_core.errors import UnsupportedImage, UsageError

PAGE = layout.PAGE_BYTES


@pytest.fixture
def path(tmp_path):
    """An image with descriptors of format 2."""
    image.create(tmp_path / "disk.pmem", geometry.plan(1 << 20, leveling_name="none", descriptor_bytes=128))
    return tmp_path / "disk.pmem"


def use(path: Path) -> None:
    """Whole pages, parts of pages, a trim."""
    with Device(path) as device:
        device.write(b"a" * PAGE, 0)
        device.write(b"b" * 10, 250)  # in two lines
        device.write(b"c" * PAGE, 5 * PAGE)
        device.trim(PAGE, 5 * PAGE)


def test_format_2_says_what_was_worn_and_when(path):
    before = time.time_ns()
    use(path)
    first, trimmed = Reader(path).descriptor(0), Reader(path).descriptor(5)
    assert (first["data_lines"], first["descriptor_lines"], first["first_generation"]) == (16 + 2, 2, 1)
    assert (trimmed["data_lines"], trimmed["descriptor_lines"], trimmed["first_generation"]) == (16, 2, 3)
    assert before < first["session"] == trimmed["session"] < time.time_ns()
    with Device(path) as device:
        device.write(b"d", 5 * PAGE)
    again = Reader(path).descriptor(5)
    assert (again["data_lines"], again["descriptor_lines"], again["first_generation"]) == (32, 3, 3)
    assert again["session"] > first["session"] == Reader(path).descriptor(0)["session"]


@pytest.mark.parametrize("writes", ["each", "coalesced"])
def test_lines_of_all_descriptors_are_those_of_the_totals(tmp_path, writes):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(1 << 20, descriptor_bytes=512, descriptor_writes=writes))
    for _ in range(2):
        use(path)
    found = [Reader(path).descriptor(page) for page in (0, 5)]
    with Device(path, read_only=True) as device:
        worn = device.mapping.core["tally"][0]["worn"]
        assert sum(one["data_lines"] for one in found) == worn[layout.CAUSE_HOST]
        assert sum(one["descriptor_lines"] for one in found) == worn[layout.CAUSE_DESCRIPTOR]


def test_format_costs_no_wear(tmp_path):
    wear = []
    for of_format in (1, 2):
        path = tmp_path / f"{of_format}.pmem"
        plan = geometry.plan(1 << 20, leveling_name="none", descriptor_bytes=256, descriptor_format=of_format)
        image.create(path, plan)
        use(path)
        wear.append(np.fromfile(path / "wear", "<u4").tolist())
    assert wear[0] == wear[1]


def test_format_1_is_left_as_it_is(tmp_path):
    """As earlier programs made it: 128 bytes, of which only the first 64 say something."""
    path = tmp_path / "disk.pmem"
    plan = geometry.plan(1 << 20, leveling_name="none", descriptor_bytes=128, descriptor_format=1)
    image.create(path, plan)
    use(path)
    block = np.frombuffer((path / "media").read_bytes()[:PAGE], layout.INFO)[0]
    assert (block["descriptor_format"], block["features_read_only"]) == (1, 0)
    at = layout.FRAMES_AT
    assert any((path / "media").read_bytes()[at : at + 64])
    assert not any((path / "media").read_bytes()[at + 64 : at + 128])
    assert "data_lines" not in Reader(path).descriptor(0)
    convert.convert(path, 128)
    found = Reader(path).descriptor(0)
    assert (found["writes"], found["generation"], found["data_lines"], found["session"]) == (2, 2, 0, 0)
    use(path)
    assert check(path).clean


def test_default_is_the_newest_that_fits():
    shapes = {
        size: geometry.plan(1 << 20, descriptor_bytes=size).info.descriptor_format for size in (16, 64, 128, 4096)
    }
    assert shapes == {16: 1, 64: 1, 128: 2, 4096: 2}
    assert geometry.plan(1 << 20, placement_name="none", descriptor_bytes=128).info.descriptor_format == 1


def test_format_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="does not fit 64 bytes: --descriptor-bytes 128 at least"):
        geometry.plan(1 << 20, descriptor_format=2)


# ---- what others say ----


def test_program_of_format_1_refuses_in_one_sentence(path):
    """Its sets of what it knows, in place of ours."""
    with (
        mock.patch.multiple(layout, DESCRIPTOR_FORMATS=(1,), FEATURES_READ_ONLY=0, FEATURES_INCOMPATIBLE=0),
        pytest.raises(UnsupportedImage, match=r"^\S+: descriptor format 2: format 1$"),
    ):
        infoblock.read(path / "media")
    # The feature bit alone would let it read, for format 2 only goes on behind format 1, but not write.
    with mock.patch.multiple(layout, FEATURES_READ_ONLY=0, FEATURES_INCOMPATIBLE=0):
        infoblock.read(path / "media", read_only=True)
        with pytest.raises(UnsupportedImage, match=r"unknown features 0x2: open it read-only"):
            infoblock.read(path / "media", read_only=False)


def test_reader_of_format_1_finds_the_data_and_the_fields_it_knows(path):
    use(path)
    with pytest.raises(AssertionError, match="descriptor format 2"):
        Reader(path, formats=(1,))
    new, old = Reader(path), Reader(path)
    old.info["descriptor_format"] = 1
    assert old.content() == new.content()
    known = old.descriptor(0)
    assert {name: new.descriptor(0)[name] for name in known} == known and "data_lines" not in known


def test_unknown_format_is_refused(path):
    with mock.patch.object(layout, "DESCRIPTOR_FORMATS", (1, 2, 3)):
        plan = image.load_geometry(path)
        infoblock.write(path / "media", infoblock.dataclasses.replace(plan.info, descriptor_format=3))
    with pytest.raises(UnsupportedImage, match="descriptor format 3: format 1 or 2"):
        image.load_geometry(path)


# ---- seen by people, and by check ----


def change(path: Path, page: int, **fields: int) -> None:
    """Change a descriptor, its checksum included."""
    at = Reader(path).address(Reader(path).placed_descriptor(page))
    with (path / "media").open("r+b") as file:
        file.seek(at)
        record = np.frombuffer(file.read(128), layout.DESCRIPTOR_2).copy()
        for name, value in fields.items():
            record[name] = value
        record["checksum"] = 0
        record["checksum"] = crc32c_raw(page, record.tobytes())
        file.seek(at)
        file.write(record.tobytes())


def test_page_written_more_often_than_can_be_said_stays_at_the_most(path):
    use(path)
    change(path, 0, writes=(1 << 32) - 2)
    with Device(path) as device:
        for _ in range(3):
            device.write(b"x", 0)
    assert Reader(path).descriptor(0)["writes"] == (1 << 32) - 1


def test_descriptor_whose_checksums_are_zero_is_one(tmp_path):
    """By chance: its first eight bytes are those of a page never written."""
    path, page = tmp_path / "disk.pmem", 5
    image.create(path, geometry.plan(1 << 20, leveling_name="none", descriptor_bytes=16, checksums=False))
    with Device(path) as device:
        device.write(b"x" * PAGE, page * PAGE)
    head = bytes(8) + layout.PG_UPTODATE.to_bytes(4, "little")
    # What the register is, shifted in, leaves zero.
    forged = head + crc32c_raw(page, head).to_bytes(4, "little")
    assert crc32c_raw(page, forged) == 0
    with (path / "media").open("r+b") as file:
        file.seek(Reader(path).address(Reader(path).placed_descriptor(page)))
        file.write(forged)
    with Device(path) as device:
        assert device.read(PAGE, page * PAGE) == b"x" * PAGE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data_lines": 35}, "host: 51 by the descriptors, 34 by the totals"),
        ({"descriptor_lines": 4}, "descriptor: 6 by the descriptors, 4 by the totals"),
        ({"first_generation": 9}, "its first write is later than its last"),
    ],
    ids=str,
)
def test_check_finds_what_cannot_be(path, fields, words):
    use(path)
    assert check(path).clean
    change(path, 0, **fields)
    report = check(path)
    assert not report.clean and words in str(report.findings[0])


def test_totals_that_a_power_cut_set_back_are_no_fault(path):
    """The descriptors know of writes that the totals of the last checkpoint do not."""
    with mock.patch.object(host, "witness", return_value={"boot": "0", "mount": 1, "device": 1, "inode": 1}):
        device = Device(path)
        for page in (1, 2, 0):
            device.write(b"a" * PAGE, page * PAGE, fua=True)
        device.abandon()
    with Device(path) as device:
        assert device.recovery == "power cut"
        device.write(b"b" * PAGE, 0)  # counted by a generation that the page had before
        first, last = (Reader(path).descriptor(0)[field] for field in ("first_generation", "generation"))
        assert first > last
    for _ in range(2):
        assert "lines_wrong" not in check(path, repair=True).as_dict()["counts"]
    assert check(path).clean


def test_info_shows_the_descriptor_of_a_page(path, capsys):
    use(path)
    assert cli.main(["info", str(path), "--page", "0"]) == 0
    out = capsys.readouterr().out
    assert "page 0: holds data" in out and "  data_lines        18\n" in out and "128 bytes, format 2" in out
    assert cli.main(["info", str(path), "--page", "5", "-j"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "free" and found["descriptor"] == Reader(path).descriptor(5)
    assert (found["descriptor_at"], found["data_at"]) == (8192 + 5 * 128, 8192 + 6 * PAGE)
    assert cli.main(["info", str(path), "--page", "7", "-j"]) == 0
    assert json.loads(capsys.readouterr().out)["descriptor"] is None
    assert cli.main(["info", str(path), "--page", "100000"]) == 2


def test_info_shows_a_descriptor_that_is_not_on_the_medium_yet(tmp_path, capsys):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(1 << 20, descriptor_bytes=16, descriptor_writes="coalesced"))
    with Device(path) as device:
        device.write(b"a" * PAGE, 3 * PAGE)
        assert cli.main(["info", str(path), "--page", "3", "-j"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["pending"] and found["status"] == "holds data"
        assert list(found["descriptor"]) == ["checksum", "data_checksum", "flags", "writes"]
        device.flush()
        assert cli.main(["info", str(path), "--page", "3", "-j"]) == 0
        assert json.loads(capsys.readouterr().out) == found | {"pending": False}
