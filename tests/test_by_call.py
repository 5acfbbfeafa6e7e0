# SPDX-License-Identifier: MIT
"""Data for an image on a disk goes to the medium by calls, not by stores to its map, while that is quicker."""

import contextlib
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from independent_reader import Reader

from pmem_core import geometry, host, image, jit, layout, media, upkeep
from pmem_core.check import check
from pmem_core.device import Device

MIB = 1 << 20
PAGE = layout.PAGE_BYTES
SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
UUID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"  # what policies draw follows from it

PLANS = {
    "interleaved": {"parameters": {"interval": 3}},
    "large frames": {"frame_bytes": 16384, "parameters": {"interval": 7}},
    "no descriptors": {"placement_name": "none", "parameters": {"interval": 5}},
    "pending descriptors": {"descriptor_writes": "coalesced"},
    "swapped by a table": {"leveling_name": "table_swap", "parameters": {"interval": 40}},
    "linear": {"placement_name": "linear", "parameters": {"interval": 3}},
    "no checksums": {"checksums": False},
    "descriptors that count": {"descriptor_bytes": 128, "parameters": {"interval": 9}},
    "stopped by moves": {"parameters": {"interval": 1, "region_frames": 16, "gap_frames": 1}},
    "descriptors brought up": {"initialise": "buddy"},
    "wide descriptors": {"descriptor_bytes": 4096, "frame_bytes": 8192, "parameters": {"interval": 4}},
}
CONTRACT = ("interleaved",)  # in plain code, and with bounds checked
TURNS = 10 if jit.PLAIN else 100


def made(path: Path, *, large: int = 1, size: int = 24 * MIB, **plan: object) -> Device:
    """A new device, whose writes of so many bytes go by calls; 0: none."""
    image.create(path, geometry.plan(size, uuid=UUID, **plan))
    device = Device(path)
    device.mapping.run["large"] = large
    device.mapping.run["session"] = 1  # descriptors tell of it
    return device


def medium_at(device: Device, page: int) -> int:
    return int(upkeep.medium_address(device.handle, upkeep.page_address(device.handle, page)))


def held_frames(device: Device) -> np.ndarray:
    """The frames of the medium that hold something, descriptors among them, uint8[frames, bytes]."""
    plan = device.plan
    frames = device.mapping.media[layout.FRAMES_AT :][: plan.medium_frames * plan.info.frame_bytes]
    spare = plan.leveling.spare_frames(plan.leveling_state, device.mapping.table[: len(plan.table)])
    return np.delete(frames.reshape(plan.medium_frames, -1), np.asarray(spare, np.int64), axis=0)


def write_calls() -> int:
    """How often this process asked the kernel to write to a file."""
    return int(Path("/proc/self/io").read_text().partition("syscw:")[2].split()[0])


def calls_of(device: Device, data: bytes, page: int) -> int:
    """The calls that writing `data` takes."""
    before = write_calls()
    device.write(data, page * PAGE)
    return write_calls() - before


@pytest.fixture
def filled(tmp_path):
    """A device whose first 128 pages were written and synced; and no frame moves."""
    with made(tmp_path / "disk.pmem", leveling_name="none") as device:
        device.write(os.urandom(128 * PAGE), 0)
        device.flush()
        yield device


# ---- it is the same device ----


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.contract] if name in CONTRACT else []) for name in PLANS]
)
def test_device_is_the_same_by_calls_and_by_stores(tmp_path, name):
    chance = random.Random(f"{SEED} {name}")
    devices = [made(tmp_path / f"{large}.pmem", large=large, **PLANS[name]) for large in (1, 2 * PAGE, 0)]
    held = bytearray(300 * PAGE)
    for _ in range(TURNS):
        at = chance.randrange(300) * PAGE + chance.choice((0, 0, 0, 512))
        data = chance.randbytes(min(chance.choice((9, PAGE, PAGE, 3 * PAGE, 40 * PAGE)), len(held) - at))
        held[at : at + len(data)] = data
        for device in devices:
            device.write(data, at)
        if chance.random() < 0.1:
            for device in devices:
                device.flush()
    assert all(device.read(len(held), 0) == held for device in devices), f"seed {SEED}"
    for device in devices:
        assert np.array_equal(device.mapping.wear, devices[0].mapping.wear), f"seed {SEED}"
        assert device.mapping.core.tobytes() == devices[0].mapping.core.tobytes()
        for part in ("table", "ticks", "sections"):
            assert np.array_equal(getattr(device.mapping, part), getattr(devices[0].mapping, part)), part
        assert np.array_equal(held_frames(device), held_frames(devices[0])), f"seed {SEED}"
    for device in devices:
        device.close()
        assert check(device.path).clean


# ---- when ----


@pytest.mark.parametrize(("in_memory", "frame_bytes", "calls"), [(False, 4096, 1), (True, 4096, 0), (False, 512, 0)])
def test_only_large_writes_to_a_disk_go_by_calls(tmp_path, monkeypatch, in_memory, frame_bytes, calls):
    monkeypatch.setattr(host, "is_tmpfs", lambda fd: in_memory)
    image.create(tmp_path / "disk.pmem", geometry.plan(24 * MIB, frame_bytes=frame_bytes, leveling_name="none"))
    with Device(tmp_path / "disk.pmem") as device:
        device.write(os.urandom(128 * PAGE), 0)
        device.flush()
        assert calls_of(device, bytes(4 * PAGE), 40) == calls
        assert calls_of(device, bytes(PAGE), 60) == 0
        assert calls_of(device, bytes(4 * PAGE), 80) == calls


def test_page_is_one_call_and_its_descriptor_none(filled):
    assert calls_of(filled, bytes(PAGE), 40) == 1
    assert calls_of(filled, bytes(512), 40) == 1


@pytest.mark.parametrize(("pages", "calls"), [(2, 1), (layout.TOGETHER_MAX, 1), (layout.TOGETHER_MAX + 2, 2)])
def test_adjacent_pages_are_one_call(filled, pages, calls):
    """Pages 40 to 63 lie side by side."""
    assert calls_of(filled, bytes(pages * PAGE), 40) == calls


def test_pages_with_descriptors_in_between_are_not_adjacent(filled):
    assert calls_of(filled, bytes(8 * PAGE), 60) == 2
    assert calls_of(filled, bytes(8 * PAGE + 1000), 59) == 3


def test_pages_that_the_host_does_not_have_in_memory_are_a_call_each(tmp_path):
    """It would keep those of one call in one piece, and write all of it back for each store to a part."""
    with made(tmp_path / "disk.pmem", leveling_name="none") as device:
        device.write(os.urandom(128 * PAGE), 0)
    with (device.path / "media").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Device(device.path) as device:
        device.mapping.run["large"] = 1
        device.write(bytes(PAGE), 0)  # the journal has the section marked then
        assert calls_of(device, bytes(8 * PAGE), 40) == 8
        device.flush()
        assert calls_of(device, bytes(8 * PAGE), 40) == 1


def test_pages_written_again_and_again_are_stored_to_until_they_were_synced(filled):
    counts = [calls_of(filled, bytes(PAGE), 40 + i % 4) for i in range(100)]
    assert counts == sorted(counts, reverse=True)
    assert 2 * 16 - 4 < sum(counts) < 2 * 2 * 16  # two for each page of one reservation or two
    filled.flush()
    assert calls_of(filled, bytes(PAGE), 40) == 1


def test_reservation_is_not_taken_for_one_because_of_a_call(filled):
    """Where the host had room for a page and not for what is around it."""
    filled.mapping.kept[0][:] = 0
    filled.mapping.run["by_call"] = 1
    assert media.goes_by_call(filled.handle[0][0], medium_at(filled, 40))
    assert not filled.mapping.kept[0].any()


def test_zeros_that_are_written_go_by_calls_where_they_are_many(filled):
    filled.mapping.run["large"] = 4 * PAGE

    def calls_of_zeros(pages: int) -> int:
        before = write_calls()
        filled.zero(pages * PAGE, 40 * PAGE, may_trim=False)
        return write_calls() - before

    calls_of_zeros(1)  # where this is compiled, that is kept in a file
    assert calls_of_zeros(8) == 8
    assert calls_of_zeros(2) == 0


@pytest.mark.parametrize("pages", [1, 3])
def test_page_written_whole_over_a_damaged_descriptor_has_a_new_one(tmp_path, pages):
    with made(tmp_path / "disk.pmem", leveling_name="none") as device:
        device.write(os.urandom(8 * PAGE), 0)
        place = layout.FRAMES_AT + 2 * 64 + 12  # how often page 2 was written, in its descriptor
        device.mapping.media[place] = 99
        device.write(bytes(pages * PAGE), 2 * PAGE)
        path = device.path
    assert Reader(path).descriptor(2)["writes"] == 1


def test_frames_that_move_go_by_calls(tmp_path):
    parameters = {"interval": 1, "region_frames": 64, "gap_frames": 8}
    with made(tmp_path / "disk.pmem", size=4 * MIB, parameters=parameters) as device:
        device.write(os.urandom(64 * PAGE), 0)
        device.flush()
        moves = int(device.mapping.core["tally"]["moves"][0])
        calls = calls_of(device, bytes(PAGE), 5)
        assert calls == 1 + device.mapping.core["tally"]["moves"][0] - moves > 1


def test_flush_after_a_call_to_a_page_that_moved_makes_the_move_durable(tmp_path):
    """The old frame no longer holds the same."""
    parameters = {"interval": 20, "region_frames": 64, "gap_frames": 8}
    with made(tmp_path / "disk.pmem", size=4 * MIB, placement_name="none", parameters=parameters) as device:
        device.write(os.urandom(64 * PAGE), 0)
        device.commit_moves()
        where, moved = [medium_at(device, page) for page in range(64)], []
        while not moved:
            device.write(os.urandom(PAGE), 30 * PAGE)
            moved = [page for page in range(64) if page != 30 and medium_at(device, page) != where[page]]
        device.flush()
        at, durable = medium_at(device, moved[0]), device.mapping.table[: len(device.plan.table)].tobytes()
        assert device.journal.load_checkpoint()[1] != durable
        assert calls_of(device, os.urandom(PAGE), moved[0]) == 1 and medium_at(device, moved[0]) == at
        device.flush()
        assert device.journal.load_checkpoint()[1] == durable


# ---- what a call does not take ----


@contextlib.contextmanager
def largest_file(count: int) -> Iterator[None]:
    """No write call reaches past that byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("beyond", [0, 1, 1000, PAGE, 20 * PAGE + 77])
def test_call_that_writes_less_loses_nothing(tmp_path, beyond):
    with made(tmp_path / "disk.pmem", leveling_name="none") as device:
        device.write(os.urandom(64 * PAGE), 1024 * PAGE)
        data = os.urandom(40 * PAGE)
        with largest_file(medium_at(device, 1030) + beyond):
            device.write(data, 1030 * PAGE)
        assert device.read(len(data), 1030 * PAGE) == data
    assert check(device.path).clean


def test_what_a_cache_request_covers_is_asked_of_the_host_where_it_lies_adjacent_pages_at_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("pmem_core.device.PREFETCH_PAGES", 100)
    with made(tmp_path / "disk.pmem", **PLANS["interleaved"]) as device:
        for page in random.Random(SEED).choices(range(256), k=200):
            device.write(bytes(PAGE), page * PAGE)  # frames move
        monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, size, advice: asked.append((fd, at, size, advice)))
        device.prefetch(256 * PAGE, 3 * PAGE + 1)
        expected = {medium_at(device, page) for page in range(3, 260)}
        assert {fd for fd, _, _, _ in asked} == {device.mapping.files["media"]}
    assert {advice for _, _, _, advice in asked} == {os.POSIX_FADV_WILLNEED}
    pages = [place for _, at, size, _ in asked for place in range(at, at + size, PAGE)]
    assert len(pages) == 257 and set(pages) == expected
    assert len(asked) < 257 // 2
