# SPDX-License-Identifier: MIT
"""Descriptors that became zeros, as ddrescue leaves sectors that it could not read: what they were of is not free."""

import random

import pytest
from test_check import PLANS, SEED, Made, check, hashes, kinds, lose_page_cache, put, repaired

from pmem_core.check import Kind
from pmem_core.convert import convert, convert_into
from pmem_core.device import Device
from pmem_core.errors import BadData

PAGE = 4096
INITIALISE = ["zeros", "eager", "section", "subsection", "buddy"]


def make(tmp_path, **plan):
    """A closed image whose first 300 pages hold data."""
    made = Made(tmp_path / "a.pmem", **plan)
    made.bytes[: 300 * PAGE] = random.Random(SEED).randbytes(300 * PAGE)
    with Device(made.path) as device:
        device.write(made.bytes[: 300 * PAGE], 0)
    return made


def lose(made, count):
    """Zeros in place of `count` bytes of descriptors; the pages they were of."""
    _, at = made.offsets(128)
    put(made.path / "media", at, bytes(count))
    return list(range(128, 128 + count // made.plan.info.descriptor_bytes))


@pytest.mark.parametrize(
    ("initialise", "count"), [("zeros", 512), ("buddy", 512), *((initialise, 4096) for initialise in INITIALISE)]
)
def test_descriptors_that_became_zeros_are_rebuilt(tmp_path, initialise, count):
    made = make(tmp_path, initialise=initialise, descriptor_bytes=64)
    pages = lose(made, count)
    found = check(made.path)
    assert not found.clean and [f.page for f in found.of(Kind.DESCRIPTOR_LOST)] == pages
    mended = check(made.path, repair=True)
    assert "could not be verified" in mended.of(Kind.DESCRIPTOR_LOST)[0].repaired
    assert not check(made.path).findings and made.reads() == []


@pytest.mark.parametrize("name", ["linear", "shuffled"])
def test_one_descriptor_that_became_zeros_is_rebuilt(tmp_path, name):
    made = make(tmp_path, **PLANS[name])
    pages = lose(made, made.plan.info.descriptor_bytes)
    found, _ = repaired(made, Kind.DESCRIPTOR_LOST)
    assert [f.page for f in found.findings] == pages


def test_bytes_in_a_section_never_written_are_not_given_back(tmp_path):
    made = Made(tmp_path / "a.pmem")
    at, _ = made.offsets(5)
    put(made.path / "media", at, b"something")
    made.bytes[5 * PAGE : 5 * PAGE + 9] = b"something"
    repaired(made, Kind.SECTION_UNMARKED, Kind.DESCRIPTOR_LOST)


def test_data_without_a_descriptor_is_given_back_where_a_power_cut_may_have_left_it(tmp_path):
    made = make(tmp_path)
    device = Device(made.path)
    device.write(bytes(PAGE), 0)
    made.bytes[:PAGE] = bytes(PAGE)
    device.abandon()
    lose_page_cache(made.path)
    [page] = lose(made, 64)
    report = check(made.path, repair=True)
    assert [f.page for f in report.of(Kind.LEAKED_DATA)] == [page] and Kind.DESCRIPTOR_LOST not in kinds(report)
    made.bytes[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    assert made.reads() == []


@pytest.mark.parametrize("initialise", ["zeros", "buddy"])
def test_bytes_behind_pages_given_back_are_no_loss(tmp_path, initialise):
    """Such a page is free by its own descriptor, or by the head of its group."""
    made = make(tmp_path, initialise=initialise, descriptor_bytes=64)
    with Device(made.path) as device:
        device.trim(64 * PAGE, 128 * PAGE)
    made.bytes[128 * PAGE : 192 * PAGE] = bytes(64 * PAGE)
    for page in (128, 150):
        put(made.path / "media", made.offsets(page)[0], b"left behind")
    report = check(made.path)
    assert report.clean and kinds(report) == {Kind.LEAKED_DATA}
    repaired(made, Kind.LEAKED_DATA)


def test_conversion_of_an_image_that_lost_descriptors_is_refused(tmp_path):
    made = make(tmp_path, descriptor_bytes=64)
    pages = lose(made, 512)
    before = hashes(made.path)
    words = f"8 pages are damaged, and a conversion would hide it: {', '.join(map(str, pages))}"
    with pytest.raises(BadData, match=words):
        convert_into(made.path, tmp_path / "b.pmem", 32)
    assert hashes(made.path) == before and not (tmp_path / "b.pmem").exists()
    with pytest.raises(BadData, match=words):
        convert(made.path, 32)
    check(made.path, repair=True)
    convert(made.path, 32)
    assert made.reads() == []
