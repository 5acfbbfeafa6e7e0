# SPDX-License-Identifier: MIT
"""Real power cuts: the host's filesystem is shut down under the image, and what was not synced is really gone.

The image lies on ext4 or xfs on a loop device; ``xfs_io -x -c shutdown`` makes that filesystem forget everything that
it has not written, mapped stores too.  Unmounted, mounted again, the image is opened as after a cut.
"""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from conftest import needs

from pmem_core import geometry, image, layout
from pmem_core.check import check
from pmem_core.device import Device
from pmem_core.durability import Durability

pytestmark = [pytest.mark.kernel, needs("loop", "ext4", "xfs", "xfs_io")]

MIB = 1 << 20
PAGE = layout.PAGE_BYTES
SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
CUTS = 6
POLICIES = {
    "gap of one": {"interval": 1, "region_frames": 64, "gap_frames": 1},
    "gap of four": {"interval": 2, "region_frames": 64, "gap_frames": 4},
    "randomized": {"interval": 3, "region_frames": 128, "gap_frames": 2, "randomize": 1},
}


class Host:
    """A filesystem that can lose its power."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.disk = folder / "host", folder / "disk"
        self.folder.mkdir()
        with self.disk.open("wb") as file:
            file.truncate(320 * MIB)  # xfs takes 300 at least
        subprocess.run([f"mkfs.{kind}", "-q", self.disk], check=True, capture_output=True)

    def mount(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            subprocess.run(["mount", "-o", "loop", self.disk, self.folder], check=True)
            try:
                (self.folder / "alive").touch()
            except OSError:
                # A mount namespace that another test has made may hold what was shut down; it is then mounted again.
                self.unmount()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                return

    def cut(self) -> None:
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", self.folder], check=True, capture_output=True)

    def unmount(self) -> None:
        # Not ismount(): it cannot look into a filesystem that was shut down.
        if f" {self.folder} " in Path("/proc/self/mounts").read_text():
            subprocess.run(["umount", self.folder], check=True)


@pytest.fixture(params=["ext4", "xfs"])
def host(request, tmp_path):
    made = Host(tmp_path, request.param)
    made.mount()
    try:
        yield made
    finally:
        made.unmount()


def is_torn_mix(found: bytes, versions: list[bytes]) -> bool:
    """True where each sector of 512 bytes is that of some version."""
    return all(any(found[at : at + 512] == one[at : at + 512] for one in versions) for at in range(0, PAGE, 512))


@pytest.mark.parametrize("writes", ["each", "coalesced"])
@pytest.mark.parametrize("name", POLICIES)
def test_what_was_flushed_is_there_and_nothing_else_changed(host, name, writes):
    """Promises 1, 3 and 4, with leveling so busy that it has to commit its moves many times between two flushes."""
    print(f"seed {SEED}")
    chance = random.Random(f"{SEED} {name} {writes}")
    path = host.folder / "disk.pmem"
    image.create(path, geometry.plan(8 * MIB, parameters=POLICIES[name], descriptor_writes=writes))
    committed = 0
    device = Device(path)
    held: dict[int, list[bytes]] = {}  # versions of each page since the last flush, that one's first
    for _ in range(CUTS):
        pages = device.plan.info.page_count
        for _ in range(chance.randrange(1, 4)):
            for _ in range(chance.randrange(50, 250)):
                page = chance.randrange(pages if chance.random() < 0.5 else 40)
                data = chance.randbytes(8) * (PAGE // 8)
                device.write(data, page * PAGE)
                held.setdefault(page, [bytes(PAGE)]).append(data)
            if chance.random() < 0.6:
                device.flush()
                held = {page: versions[-1:] for page, versions in held.items()}
        committed += int(device.mapping.core["tally"]["moves"][0])
        host.cut()
        device.abandon()
        host.unmount()
        host.mount()
        device = Device(path)
        assert device.recovery == "power cut"
        for page, versions in held.items():
            found = device.read(PAGE, page * PAGE)
            assert is_torn_mix(found, versions), f"page {page}"
            if len(versions) == 1:
                assert found == versions[0], f"page {page} was flushed"
        device.flush()
        held = {page: [device.read(PAGE, page * PAGE)] for page in held}
    assert committed > 1000
    device.close()
    report = check(path)
    assert report.clean, report.findings


def test_moves_that_are_not_synced_lose_data(host, monkeypatch):
    """The test above can fail: without waiting for the moved frames, what was flushed is gone."""
    monkeypatch.setattr(Durability, "_sync_frames", lambda self, frames: None)
    path = host.folder / "disk.pmem"
    image.create(path, geometry.plan(8 * MIB, parameters=POLICIES["gap of one"]))
    device = Device(path)
    for page in range(0, 200, 2):
        device.write(bytes([page + 1]) * PAGE, page * PAGE)
    device.flush()
    for page in range(1, 200, 2):
        device.write(bytes(PAGE), page * PAGE)
    device.abandon()
    host.cut()
    host.unmount()
    host.mount()
    with Device(path) as device:
        found = [device.read(PAGE, page * PAGE) for page in range(0, 200, 2)]
        assert found != [bytes([page + 1]) * PAGE for page in range(0, 200, 2)]
