# SPDX-License-Identifier: MIT
"""Huge pages under a medium in tmpfs: where they come, and that nothing but time is different with them."""

import os
import random
import re
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import needs
from kills import SEED

from pmem_core import geometry, hugepages, image
from pmem_core.device import Device
from pmem_core.housekeeping import Housekeeper

MIB = 1 << 20
HUGE = 2 * MIB

pytestmark = needs("huge pages")


@pytest.fixture
def path():
    """An image of 16 MiB in tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        image.create(Path(folder) / "disk.pmem", geometry.plan(16 * MIB))
        yield Path(folder) / "disk.pmem"


def collapser(device: Device) -> hugepages.Collapser:
    return hugepages.Collapser(device.mapping.files["media"], *device.medium)


def huge(device: Device) -> int:
    """How many bytes of the medium lie in huge pages."""
    return huge_at(device.medium[0])


def huge_at(address: int) -> int:
    """How many bytes of the map at `address` lie in huge pages (proc(5), smaps)."""
    found = -1
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
        elif line.startswith("ShmemPmdMapped:") and start <= address < end:
            found = int(line.split()[1]) << 10
    return found


def blocks(path: Path) -> int:
    return (path / "media").stat().st_blocks


def fill(device: Device, chance: random.Random) -> bytes:
    data = chance.randbytes(device.plan.device_bytes)
    for at in range(0, len(data), MIB):
        device.write(data[at : at + MIB], at)
    return data


def test_medium_that_is_full_gets_huge_pages_and_keeps_its_bytes(path):
    with Device(path) as device:
        data, used = fill(device, random.Random(SEED)), blocks(path)
        assert huge(device) == 0
        assert collapser(device).turn(60)
        assert huge(device) >= 6 * HUGE  # the gaps at their ends are not written
        assert device.read(len(data), 0) == data and blocks(path) == used
    with Device(path) as device:
        assert device.read(len(data), 0) == data


def test_holes_are_not_filled(path):
    with Device(path) as device:
        for at in range(0, device.plan.device_bytes - MIB, MIB):
            device.write(b"x" * (MIB - 64 * 4096), at)
        used = blocks(path)
        assert collapser(device).turn(60)
        assert huge(device) == 0 and blocks(path) == used


def test_trim_of_a_part_gives_its_room_back(path):
    with Device(path) as device:
        fill(device, random.Random(SEED))
        assert collapser(device).turn(60)
        before, used = huge(device), blocks(path)
        device.trim(64 * 4096, 5 * MIB)
        assert used - blocks(path) == 64 * 8
        assert huge(device) < before
        device.write(b"y" * 64 * 4096, 5 * MIB)
        assert collapser(device).turn(60)
        assert huge(device) == before


def test_writes_beside_it_are_not_lost(path):
    chance = random.Random(SEED)
    with Device(path) as device:
        expected, ended = bytearray(fill(device, chance)), threading.Event()
        turns = 0

        def collapse() -> None:
            nonlocal turns
            while not ended.is_set():
                collapser(device).turn(0.002)
                turns += 1

        thread = threading.Thread(target=collapse)
        thread.start()
        try:
            for _ in range(20_000):
                at, piece = chance.randrange(len(expected) - 5000), chance.randbytes(chance.randrange(1, 5000))
                device.write(piece, at)
                expected[at : at + len(piece)] = piece
                if chance.random() < 0.001:  # small pages again
                    first = chance.randrange(len(expected) // 4096)
                    device.trim(4096, 4096 * first)
                    expected[4096 * first : 4096 * (first + 1)] = bytes(4096)
        finally:
            ended.set()
            thread.join()
        assert device.read(len(expected), 0) == expected and turns > 10


def test_turn_ends_when_its_time_is_over_and_the_next_one_goes_on(path):
    with Device(path) as device:
        fill(device, random.Random(SEED))
        step = collapser(device)
        assert not step.turn(0)
        assert huge(device) == 0
        turns = 0
        while not step.turn(0.0005):
            turns += 1
        assert turns and huge(device) >= 6 * HUGE


def test_turn_looks_no_further_than_it_goes(path, monkeypatch):
    """On a full medium the next hole is at its end, and the kernel would pass every page before it, at each turn."""
    with Device(path) as device:
        fill(device, random.Random(SEED))
        looked, real = [], os.lseek
        monkeypatch.setattr(os, "lseek", lambda fd, at, whence: (looked.append(whence), real(fd, at, whence))[1])
        assert collapser(device).turn(60) and huge(device) >= 6 * HUGE
        assert looked and set(looked) == {os.SEEK_DATA}


def test_last_page_of_a_file_gets_one():
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(b"x" * 2 * HUGE)
        file.flush()
        held, view = hugepages.map_aligned(file.fileno(), 2 * HUGE)
        assert hugepages.Collapser(file.fileno(), view.ctypes.data, 2 * HUGE).turn(60)
        assert huge_at(view.ctypes.data) == 2 * HUGE
        del view
        held.close()


def test_pages_behind_a_hole_get_them(path):
    with Device(path) as device:
        fill(device, random.Random(SEED))
        device.trim(3 * MIB, 2 * MIB)
        used = blocks(path)
        assert collapser(device).turn(60)
        assert huge(device) >= 3 * HUGE and blocks(path) == used


def test_served_device_gets_them_by_itself(path, monkeypatch):
    monkeypatch.setattr("pmem_core.housekeeping.QUIET_SECONDS", 0.01)
    with Device(path) as device:
        fill(device, random.Random(SEED))
        housekeeper = Housekeeper(device)
        try:
            deadline = time.monotonic() + 60
            while huge(device) < 6 * HUGE:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            housekeeper.stop()
        assert not housekeeper.problem


def test_file_that_cannot_be_mapped_keeps_no_addresses(tmp_path):
    def taken() -> int:
        return int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10

    with (tmp_path / "file").open("wb") as file:  # not for reading
        file.truncate(1 << 30)
        before = taken()
        with pytest.raises(PermissionError):
            hugepages.map_aligned(file.fileno(), 1 << 30)
        assert taken() < before + (1 << 29)


def test_kernel_without_them_is_asked_once(path, monkeypatch):
    with Device(path) as device:
        fill(device, random.Random(SEED))
        monkeypatch.setattr(hugepages, "_MADV_COLLAPSE", 0x7FFF)  # EINVAL, as of Linux before 6.1
        step = collapser(device)
        assert step.turn(60)
        monkeypatch.undo()
        assert step.turn(60) and huge(device) == 0
