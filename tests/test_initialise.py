# SPDX-License-Identifier: MIT
"""Images whose descriptors are initialised: what they refuse, what check finds in them, what an early end leaves."""

import json
import os
import random

import pytest
from independent_reader import Reader

from pmem_core import geometry, image, initialisation, layout
from pmem_core.check import Kind, check
from pmem_core.cli import main
from pmem_core.device import Device
from pmem_core.errors import HostFull, UnsupportedImage, UsageError

PAGE = 4096
SIZE = 12 << 20
SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
STRATEGIES = ("eager", "section", "subsection", "buddy")


def make(folder, initialise, **more):
    """An image, never used; start_gap moves frames all the time, or none does."""
    path = folder / f"{initialise}.pmem"
    image.create(path, geometry.plan(SIZE, leveling_name="none", initialise=initialise, **more))
    return path


def use(path):
    """Write here and there, give a few groups back; all that the device then holds."""
    print("seed", SEED)
    chance = random.Random(SEED)
    with Device(path) as device:
        pages = device.plan.info.page_count
        for _ in range(12):
            page = chance.randrange(pages // 64) * 64 + chance.randrange(64)
            device.write(chance.randbytes(PAGE), min(page, pages - 1) * PAGE)
        device.trim(5 * 64 * PAGE, 3 * 64 * PAGE)
        device.write(b"here", 7 * PAGE)
        device.write(b"and here", 700 * PAGE)
        return device.read(device.plan.device_bytes, 0)


def read(path):
    """All that the device holds."""
    with Device(path, read_only=True) as device:
        return device.read(device.plan.device_bytes, 0)


def descriptor_at(page):
    """Where the descriptor of a page is in `media`, with interleaved and without leveling."""
    return layout.FRAMES_AT + page // 64 * 65 * PAGE + page % 64 * 64


def put(path, at, data):
    """Change bytes of the medium."""
    with (path / "media").open("r+b") as file:
        file.seek(at)
        file.write(data)


def get(path, at, count):
    """Bytes of the medium."""
    with (path / "media").open("rb") as file:
        file.seek(at)
        return file.read(count)


def require_mended(path, kind, held):
    """Check finds just this, repair mends it, and costs no byte."""
    report = check(path)
    assert set(report.counts) == {kind} and not report.clean, [str(one) for one in report.findings]
    assert check(path, repair=True).repairs[kind] > 0
    report = check(path)
    assert report.clean and not report.findings, [str(one) for one in report.findings]
    assert read(path) == held


@pytest.mark.parametrize("initialise", STRATEGIES)
def test_image_in_use_stays_clean(tmp_path, initialise):
    path = make(tmp_path, initialise)
    assert check(path).clean
    held = use(path)
    report = check(path)
    assert report.clean and not report.findings, [str(one) for one in report.findings]
    assert read(path) == held


def test_lost_head_is_found_and_stored_again(tmp_path):
    path = make(tmp_path, "buddy")
    held = use(path)
    heads = [page for page in range(0, 2816, 64) if get(path, descriptor_at(page) + 8, 1) == bytes([layout.PG_BUDDY])]
    put(path, descriptor_at(heads[-1]), bytes(64))
    require_mended(path, Kind.GROUP_GAP, held)


def test_head_that_claims_pages_in_use_is_split(tmp_path):
    path = make(tmp_path, "buddy")
    whole = get(path, descriptor_at(0), 64)
    with Device(path) as device:
        device.write(b"x" * PAGE, 700 * PAGE)
        held = device.read(device.plan.device_bytes, 0)
    put(path, descriptor_at(0), whole)
    require_mended(path, Kind.GROUP_OVERLAP, held)


def test_split_of_a_head_that_claims_too_much_spares_a_page_in_use(tmp_path):
    """A power cut may leave such a head."""
    path = make(tmp_path, "buddy")
    whole = get(path, descriptor_at(0), 64)
    with Device(path) as device:
        device.write(b"x" * PAGE, 64 * PAGE)  # the first of the group beside that of page 0
    put(path, descriptor_at(0), whole)
    with Device(path) as device:
        device.write(b"y" * PAGE, 0)
        assert device.read(PAGE, 64 * PAGE) == b"x" * PAGE


def test_head_within_a_free_group_is_cleared(tmp_path):
    path = make(tmp_path, "buddy")
    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
        head = bytes(device.mapping.media[descriptor_at(64) : descriptor_at(64) + 64])
        device.trim(64 * PAGE, 0)
        held = device.read(device.plan.device_bytes, 0)
    assert any(head)
    put(path, descriptor_at(64), head)
    require_mended(path, Kind.GROUP_OVERLAP, held)


@pytest.mark.parametrize("initialise", ["eager", "section", "subsection"])
def test_lost_free_descriptors_are_found_and_stored_again(tmp_path, initialise):
    path = make(tmp_path, initialise)
    with Device(path) as device:
        device.write(b"x" * PAGE, 7 * PAGE)
        held = device.read(device.plan.device_bytes, 0)
    put(path, descriptor_at(128), bytes(PAGE))
    require_mended(path, Kind.GROUP_GAP, held)


@pytest.mark.parametrize("kept", [4, 8, 12, 40, 60])
def test_half_of_a_head_or_free_descriptor_reads_as_zeros(tmp_path, kept):
    """Nothing but what a torn store leaves, and it is no reason to refuse a read or a write."""
    path = make(tmp_path, "buddy")
    with Device(path) as device:
        device.write(b"x" * PAGE, 7 * PAGE)
    for page in (8, 64):
        put(path, descriptor_at(page) + kept, bytes(64 - kept))
    with Device(path) as device:
        for page in (8, 64):
            assert device.read(PAGE, page * PAGE) == bytes(PAGE)
            device.write(b"part", page * PAGE + 9)
            assert device.read(PAGE, page * PAGE) == bytes(9) + b"part" + bytes(PAGE - 13)
        assert device.read(PAGE, 7 * PAGE) == b"x" * PAGE


def test_damaged_descriptor_of_data_is_still_damaged(tmp_path):
    path = make(tmp_path, "buddy")
    with Device(path) as device:
        device.write(b"x" * PAGE, 7 * PAGE)
    put(path, descriptor_at(7) + 8, bytes(1))
    report = check(path)
    assert set(report.counts) == {Kind.DESCRIPTOR_DAMAGED}


def test_write_whose_section_cannot_be_marked_brings_nothing_up(tmp_path, monkeypatch):
    with Device(make(tmp_path, "buddy")) as device:

        def fail(rows):
            raise HostFull("journal", "could not be written")

        with monkeypatch.context() as patch:
            patch.setattr(device.journal, "put_sections", fail)
            before = device.mapping.media.tobytes()
            with pytest.raises(HostFull):
                device.write(b"x" * PAGE, 0)
            assert device.mapping.media.tobytes() == before


def test_room_is_asked_for_before_a_head_or_descriptor_is_stored(tmp_path):
    """64 KiB at a time, around each; a store to a hole on a full host would end the server."""
    with Device(make(tmp_path, "buddy")) as device:
        before = (device.path / "media").stat().st_blocks
        device.write(b"x" * PAGE, 0)
        new = [page for page in (0, 64, 128, 256, 512, 1024) if device.mapping.media[descriptor_at(page)]]
        assert len(new) == 6
        assert 512 * ((device.path / "media").stat().st_blocks - before) >= (len(new) - 1) * 65536


def test_group_is_given_back_in_a_marked_section_only(tmp_path):
    with Device(make(tmp_path, "buddy")) as device:
        device.write(b"x" * PAGE * 64, 0)
        for settled in (False, True):
            assert device.checkpoint(settle_sections=True, due=False) == settled
        assert not device.has_dirty()
        device.trim(64 * PAGE, 0)
        assert device.has_dirty()
        # That was a change of late, as a write is.
        assert not device.checkpoint(settle_sections=True, due=False)


@pytest.mark.parametrize("word", [layout.RAISED, layout.RETURNED], ids=["brought up", "given back"])
def test_last_group_cut_off_by_the_end_is_finished_after_a_kill(tmp_path, word):
    path = make(tmp_path, "buddy")
    device = Device(path)
    pages = device.plan.info.page_count
    last = pages // 64 * 64
    assert last < pages
    if word == layout.RETURNED:
        device.write(b"x" * PAGE, last * PAGE)
    for one, value in ((word, last + 1), (layout.HEAD_PAGE, last), (layout.HEAD_ORDER, 6)):
        device.mapping.core["intent"][0, one] = value
    device.abandon()
    with Device(path) as device:
        assert device.recovered.group
    flags = Reader(path).descriptor(last)["flags"]
    assert flags == (layout.PG_RESERVED if word == layout.RAISED else layout.PG_BUDDY)


@pytest.mark.parametrize("word", [layout.RAISED, layout.RETURNED], ids=["brought up", "given back"])
@pytest.mark.parametrize(("head", "order"), [(0, 35), (0, 64 + 6), (64, 6), (1, 6)])
def test_group_in_flight_that_cannot_be_is_left_alone(tmp_path, word, head, order):
    path = make(tmp_path, "buddy")
    device = Device(path)
    before = device.mapping.media.tobytes()
    for one, value in ((word, 1), (layout.HEAD_PAGE, head), (layout.HEAD_ORDER, order)):
        device.mapping.core["intent"][0, one] = value
    device.abandon()
    with Device(path) as device:
        assert device.mapping.media.tobytes() == before


class EndedError(Exception):
    """The process is no more."""


def test_eager_that_was_cut_short_goes_on_at_the_next_open(tmp_path, monkeypatch):
    monkeypatch.setattr(initialisation, "STEP_PAGES", 64)
    path = make(tmp_path, "eager")

    def end(share):
        if share > 0.5:
            raise EndedError

    with pytest.raises(EndedError):
        Device(path, watch=end)
    assert not image.load_geometry(path).info.initialised
    with Device(path) as device:
        assert device.recovery == "killed"
        pages = device.plan.info.page_count
        # Nothing was done twice.
        assert int(device.mapping.core["tally"][0]["worn"][layout.CAUSE_DESCRIPTOR]) == -(-pages * 64 // 256)
    assert image.load_geometry(path).info.initialised
    assert check(path).clean


def test_program_that_knows_nothing_of_it_may_read_only(tmp_path, monkeypatch):
    path = make(tmp_path, "buddy")
    held = use(path)
    monkeypatch.setattr(layout, "FEATURES_READ_ONLY", 0)
    with pytest.raises(UnsupportedImage, match="unknown features 0x1"):
        Device(path)
    assert read(path) == held


def test_image_of_zeros_says_nothing_new(tmp_path):
    block = get(make(tmp_path, "zeros"), 0, PAGE)
    assert block[2192:2196] == bytes(4) and block[1048:1052] == bytes(4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"initialise": "buddy", "descriptor_bytes": 32}, "initialise=buddy: not with descriptor-bytes=32"),
        ({"initialise": "section", "placement_name": "none"}, "initialise=section: not where no descriptors lie"),
        ({"initialise": "eager", "descriptor_bytes": 128, "descriptor_format": 2}, "descriptor-format=2: not with"),
        ({"initialise": "soon"}, "initialise=soon: no such choice: one of zeros, eager"),
    ],
)
def test_choice_that_cannot_be_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        geometry.plan(SIZE, **options)


@pytest.mark.parametrize("initialise", ["eager", "buddy"])
def test_create_takes_the_choice_and_info_shows_it(tmp_path, capsys, initialise):
    path = str(tmp_path / "a.pmem")
    assert main(["create", path, "--size", "2M", "--leveling", "none", "--initialise", initialise]) == 0
    capsys.readouterr()
    assert main(["info", path, "-j"]) == 0
    assert json.loads(capsys.readouterr().out)["image"]["initialise"] == initialise
    assert main(["info", path]) == 0
    assert f"initialised     {initialise}" in capsys.readouterr().out
