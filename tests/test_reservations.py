# SPDX-License-Identifier: MIT
"""What the host has room for since an earlier session: on tmpfs that is seen, and nothing is asked for anew."""

import os
import random
import tempfile
from pathlib import Path

import pytest

from pmem_core import geometry, image, reservations
from pmem_core.device import Device

SEED = int(os.environ.get("SEED", "20150507"))
MIB, PAGE, CHUNK = 1 << 20, 4096, 1 << reservations.RESERVE_SHIFT


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "disk.pmem"
        image.create(path, geometry.plan(8 * MIB))
        yield path


def is_full(fd, start, end):
    """True where the file has no hole from `start` to `end`, as lseek(2) says."""
    return os.lseek(fd, start, os.SEEK_HOLE) >= end


def calls_of_reading():
    return int(Path("/proc/self/io").read_text().partition("syscr:")[2].split()[0])


def reserved(device):
    """What is_reserved says of every whole reservation of the medium, and what its two files say."""
    files, run, line = device.mapping.files, device.mapping.run[0], device.plan.info.line_bytes
    found = [bool(reservations.is_reserved(run, i * CHUNK)) for i in range(device.plan.info.size // CHUNK)]
    per_chunk = 4 * CHUNK // line
    holds = [
        is_full(files["media"], i * CHUNK, (i + 1) * CHUNK)
        and is_full(files["wear"], i * per_chunk // PAGE * PAGE, -(-(i + 1) * per_chunk // PAGE) * PAGE)
        for i in range(len(found))
    ]
    return found, holds


def test_what_an_earlier_session_left_there_is_found(path):
    chance = random.Random(SEED)
    with Device(path) as device:
        for _ in range(60):
            device.write(chance.randbytes(chance.choice([PAGE, CHUNK, 4 * CHUNK])), chance.randrange(1600) * PAGE)
        for _ in range(20):
            device.trim(chance.choice([PAGE, 3 * CHUNK]), chance.randrange(1600) * PAGE)
    with Device(path) as device:
        assert not device.waits_for_disk, "this is no tmpfs"
        found, holds = reserved(device)
    assert found == holds, f"seed {SEED}"
    assert 0 < sum(holds) < len(holds), f"seed {SEED}"


def test_data_of_an_earlier_session_is_read_without_a_call_a_page(path):
    held = random.Random(SEED).randbytes(4 * MIB)
    with Device(path) as device:
        device.write(held, 0)
    with Device(path) as device:
        before = calls_of_reading()
        assert device.read(len(held), 0) == held
        assert calls_of_reading() - before < 64, "1024 pages; the last reservation is there in part"


def test_reading_takes_no_room_where_pages_were_given_back(path):
    with Device(path) as device:
        device.write(bytes([1]) * 4 * MIB, 0)
        device.trim(2 * MIB, MIB)
    with Device(path) as device:
        used = (path / "media").stat().st_blocks
        assert device.read(4 * MIB, 0) == bytes([1]) * MIB + bytes(2 * MIB) + bytes([1]) * MIB
        assert (path / "media").stat().st_blocks == used


def test_room_that_was_given_back_is_forgotten_at_once(path):
    """Where no descriptor says that a page reads as zeros, the hole is read; by a call, for a look would fill it."""
    path = path.with_name("bare.pmem")
    image.create(path, geometry.plan(8 * MIB, placement_name="none", leveling_name="none"))
    with Device(path) as device:
        device.write(bytes([1]) * 4 * MIB, 0)
        device.trim(2 * MIB, MIB)
        used = (path / "media").stat().st_blocks
        assert device.read(4 * MIB, 0) == bytes([1]) * MIB + bytes(2 * MIB) + bytes([1]) * MIB
        assert (path / "media").stat().st_blocks == used


def test_counters_that_are_a_hole_are_not_taken_for_room(path):
    with Device(path) as device:
        device.write(bytes([1]) * 4 * MIB, 0)
        at = device.plan.line_count // PAGE * PAGE  # a quarter of the counters, of 4 bytes each
    with (path / "wear").open("r+b") as counters:
        whole = counters.read()
        os.truncate(path / "wear", 0)
        counters.seek(0)
        counters.write(whole[:at])
        counters.truncate(len(whole))
    with Device(path) as device:
        found, holds = reserved(device)
    assert found == holds
    assert any(found) and not all(found[: 4 * MIB // CHUNK])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nothing_is_believed_of_a_file_that_may_not_be_written(path):
    """Of such a file mincore(2) says that all of it is in memory."""
    with Device(path) as device:
        device.write(bytes([1]) * MIB, 0)
    with Device(path, read_only=True) as device:
        assert any(reserved(device)[0])
    for part in (path.parent, path, *path.rglob("*")):
        part.chmod(0o755)
    os.seteuid(65534)
    try:
        with Device(path, read_only=True) as device:
            assert not any(reservations.is_reserved(device.mapping.run[0], i * CHUNK) for i in range(8 * MIB // CHUNK))
            assert device.read(2 * MIB, 0) == bytes([1]) * MIB + bytes(MIB)
    finally:
        os.seteuid(0)
