# SPDX-License-Identifier: MIT
"""What was promised across a kill and a power cut, on a full host, and by closing."""

import contextlib
import fcntl
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import needs
from test_full_disk import fill

from pmem_core import datapath, geometry, image, infoblock, layout, recovery, snapshot, upkeep
from pmem_core.check import check
from pmem_core.check.findings import Kind
from pmem_core.device import Device
from pmem_core.durability import Durability
from pmem_core.errors import DamagedImage, HostError, HostFull, PmemError, UsageError
from pmem_core.journal import Journal

MIB = 1 << 20
PAGE = layout.PAGE_BYTES
ROOT = Path(__file__).resolve().parent.parent
TWO_SECTIONS = 40 * MIB  # a section is at least 16 MiB, and descriptors and gaps take their part
NO_ROOM = 28 << layout.ERRNO_SHIFT | layout.HOST
F_SET_RW_HINT = 1036  # fcntl(2)
OLD, NEW = b"old!" * (PAGE // 4), b"new!" * (PAGE // 4)


class Killed(BaseException):
    """The process ends here: no handler of ours would run."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.pmem"


# ---- what a test does to an image ----


def medium_span(device: Device, page: int) -> list[int]:
    """Where each frame-sized or smaller piece of the page's data lies on the medium."""
    placed = int(upkeep.page_address(device.handle, page))
    return [int(upkeep.medium_address(device.handle, placed + at)) for at in range(0, PAGE, 256)]


def put_data(path: Path, span: list[int], data: bytes) -> None:
    """Put the page's data, and nothing but the data, on the medium of an image that nobody has open."""
    with (path / "media").open("r+b") as file:
        for i in range(len(span)):
            os.pwrite(file.fileno(), data[256 * i : 256 * (i + 1)], span[i])


def lose_cache(path: Path, **witness: object) -> None:
    """Make the journal say that the last session was before a reboot, or where other things were so."""
    journal = Journal(path / "journal")
    session = {key: value for key, value in journal.session.items() if key != "open"}
    journal.begin_session(session | (witness or {"boot": "another"}))
    journal.close()


def kill_in_sync(device: Device, monkeypatch) -> None:
    """Stop a settling checkpoint where it would sync, and leave the files as a kill there leaves them."""
    left = []

    def sync(self, *names):
        # Handlers of the exception run on the way out, which those of a killed process do not.
        left.append((device.path / "state").read_bytes())
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Durability, "sync", sync)
        with pytest.raises(Killed):
            device.checkpoint(settle_sections=True)
    device.abandon()
    with (device.path / "state").open("r+b") as file:
        os.pwrite(file.fileno(), left[0], 0)


def fail_to_commit(device: Device, monkeypatch, error: type[PmemError]) -> None:
    """Take a settling checkpoint whose commit the journal refuses."""

    def fail(*_, **__):
        raise error("journal", "could not be written")

    with monkeypatch.context() as patch:
        patch.setattr(device.journal, "checkpoint", fail)
        with pytest.raises(error):
            device.checkpoint(settle_sections=True)


def durable_sections(device: Device) -> np.ndarray:
    return np.frombuffer(device.journal.load_sections(), np.uint8)


# ---- sections' marks ----


@pytest.mark.parametrize("writes", ["each", "coalesced"])
def test_kill_in_a_settling_checkpoint_keeps_the_marks(path, monkeypatch, writes):
    image.create(path, geometry.plan(TWO_SECTIONS, descriptor_writes=writes))
    with Device(path) as device:
        device.write(OLD, 0)
    device = Device(path)
    device.write(NEW, 0)
    device.checkpoint(settle_sections=True)  # now nothing was written since
    span = medium_span(device, 0)
    kill_in_sync(device, monkeypatch)

    device = Device(path)
    assert device.recovery == "killed"
    # Writes the same row of the journal.
    device.write(NEW, device.plan.info.section_pages * PAGE)
    device.abandon()

    put_data(path, span, OLD)
    lose_cache(path)
    with Device(path) as device:
        assert device.recovery == "power cut"
        assert device.read(PAGE, 0) in (OLD, NEW)


def test_kill_in_a_settling_checkpoint_is_reported_dirty_again(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB))
    device = Device(path)
    device.write(NEW, 0)
    device.checkpoint(settle_sections=True)
    kill_in_sync(device, monkeypatch)
    with Device(path) as device:
        assert device.has_dirty()


@pytest.mark.parametrize("error", [HostFull, HostError])
def test_failed_commit_marks_no_section_that_the_journal_lacks(path, monkeypatch, error):
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:
        device.write(NEW, 0)
        device.checkpoint(settle_sections=True)
        fail_to_commit(device, monkeypatch, error)
        mapped = device.mapping.sections & layout.SECTION_DIRTY
        durable = durable_sections(device) & layout.SECTION_DIRTY
        assert np.flatnonzero(mapped & ~durable).tolist() == []
        # Nor is one forgotten that was not made clean.
        assert np.flatnonzero(mapped).tolist() == [0]


def test_section_that_could_not_be_marked_is_marked_before_the_next_write(path, monkeypatch):
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:

        def fail(rows):
            raise HostFull("journal", "could not be written")

        with monkeypatch.context() as patch:
            patch.setattr(device.journal, "put_sections", fail)
            with pytest.raises(HostFull):
                device.write(NEW, 0)
        device.write(NEW, 0)
        assert durable_sections(device)[0] & layout.SECTION_DIRTY


def test_journal_has_no_mark_that_only_a_running_device_wants(path):
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:
        device.write(NEW, 0)
        device.write(NEW, device.plan.info.section_pages * PAGE)  # in the same row
        assert device.mapping.sections[0] & layout.SECTION_RECENT
        assert durable_sections(device)[:2].tolist() == [layout.SECTION_DIRTY | layout.SECTION_TOUCHED] * 2


def test_write_after_a_failed_commit_survives_a_power_cut(path, monkeypatch):
    """The same, seen by a client: the other section's first write has to be marked in the journal."""
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:
        other = device.plan.info.section_pages
        device.write(OLD, other * PAGE)
    device = Device(path)
    device.write(NEW, 0)
    device.checkpoint(settle_sections=True)
    fail_to_commit(device, monkeypatch, HostFull)
    device.write(NEW, other * PAGE)
    span = medium_span(device, other)
    device.abandon()
    put_data(path, span, OLD)
    lose_cache(path)
    with Device(path) as device:
        assert device.read(PAGE, other * PAGE) in (OLD, NEW)


def test_settled_section_has_no_pending_descriptor(path):
    image.create(path, geometry.plan(16 * MIB, descriptor_writes="coalesced"))
    device = Device(path)
    device.write(OLD, 0)
    device.flush()
    device.write(NEW, 0)
    device.checkpoint(settle_sections=True)
    device.checkpoint(settle_sections=True)
    assert not device.has_dirty()
    device.abandon()
    lose_cache(path)
    with Device(path) as device:
        assert device.recovery == "power cut"
        assert device.read(PAGE, 0) in (OLD, NEW)


# ---- the page in flight ----


def kill_between_data_and_descriptor(path: Path, page: int) -> None:
    """Leave the page with its new data, its old descriptor, and INTENT naming it."""
    device = Device(path)
    device.write(OLD, page * PAGE)
    device.flush()
    span = medium_span(device, page)
    device.mapping.core["intent"][0, 0] = page + 1
    for i in range(len(span)):
        device.mapping.media[span[i] : span[i] + 256] = np.frombuffer(NEW[256 * i : 256 * (i + 1)], np.uint8)
    device.abandon()


def test_page_in_flight_is_healed(path):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptor(path, 5)
    with Device(path) as device:
        assert device.recovery == "killed"
        assert device.read(PAGE, 5 * PAGE) == NEW
        assert device.mapping.core["tally"]["healed"][0] == 1


def kill_between_data_and_descriptors(path: Path, first: int, count: int) -> None:
    """Leave pages with new data, old descriptors, and INTENT naming them together."""
    device = Device(path)
    device.write(OLD * count, first * PAGE)
    device.flush()
    spans = [medium_span(device, first + i) for i in range(count)]
    device.mapping.core["intent"][0, layout.TOGETHER] = first << layout.TOGETHER_SHIFT | count
    device.abandon()
    for span in spans:
        put_data(path, span, NEW)


def test_pages_that_were_written_together_are_healed_together(path):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptors(path, 5, 7)
    with Device(path, read_only=True) as device:
        assert device.read(7 * PAGE, 5 * PAGE) == NEW * 7
    with Device(path) as device:
        assert device.recovery == "killed"
        assert "pages 5 to 11 were in flight: 7 of their descriptors were made anew" in str(device.recovered)
        assert device.read(7 * PAGE, 5 * PAGE) == NEW * 7
        assert device.mapping.core["tally"]["healed"][0] == 7
        assert not device.mapping.core["intent"].any()
    assert check(path).clean


def test_pages_in_flight_are_no_damage_to_check(path):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptors(path, 5, 7)
    found = check(path).findings
    assert [(one.kind, one.page) for one in found] == [(Kind.UNSETTLED, page) for page in range(5, 12)]


def test_heal_of_pages_goes_on_after_an_open_that_could_not(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptors(path, 5, 7)
    real = upkeep.heal
    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "heal", lambda handle, page: NO_ROOM if page == 8 else real(handle, page))
        with pytest.raises(HostFull):
            Device(path)
    with Device(path) as device:
        assert device.recovery == "killed"
        assert device.read(7 * PAGE, 5 * PAGE) == NEW * 7


def test_heal_of_pages_goes_on_after_an_open_that_was_killed_in_one(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptors(path, 5, 7)
    real = upkeep.heal

    def heal(handle, page):
        code = real(handle, page)
        if page == 8:
            handle[1]["intent"][0, 0] = page + 1  # as it is until the descriptor is stored
            raise InterruptedError
        return code

    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "heal", heal)
        with pytest.raises(InterruptedError):
            Device(path)
    with Device(path) as device:
        assert str(device.recovered).startswith("pages 5 to 11 were in flight: 3 of their")
        assert device.read(7 * PAGE, 5 * PAGE) == NEW * 7


def test_page_in_flight_is_healed_by_the_open_after_one_that_could_not(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptor(path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "heal", lambda handle, page: NO_ROOM)
        with pytest.raises(HostFull):
            Device(path)
    with Device(path) as device:
        assert device.recovery == "killed"
        assert device.read(PAGE, 5 * PAGE) == NEW


def test_page_in_flight_reads_when_opened_read_only(path):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptor(path, 5)
    with Device(path, read_only=True) as device:
        assert device.read(PAGE, 5 * PAGE) == NEW
    with Device(path) as device:
        assert device.read(PAGE, 5 * PAGE) == NEW


def test_torn_pending_descriptor_hides_nothing_from_a_reader(path):
    """After a power cut the slot may name a page and hold nothing: read so, what was flushed would be zeros."""
    image.create(path, geometry.plan(4 * MIB, descriptor_writes="coalesced"))
    device = Device(path)
    device.write(b"x" * PAGE, 5 * PAGE)
    device.flush()
    device.mapping.pending.view(np.int64).reshape(layout.PENDING_SLOTS, -1)[5] = [6] + [0] * 9
    device.abandon()
    lose_cache(path)
    with Device(path, read_only=True) as device:
        assert device.read(PAGE, 5 * PAGE) == b"x" * PAGE


@pytest.mark.parametrize("writes", ["each", "coalesced"])
@pytest.mark.parametrize("gap", [1, 2, 3])
def test_completed_writes_survive_kills_with_moves_in_between(path, gap, writes):
    parameters = {"interval": 1, "region_frames": 64, "gap_frames": gap}
    image.create(path, geometry.plan(4 * MIB, parameters=parameters, descriptor_writes=writes))
    chance, shadow = random.Random(1000 * gap + len(writes)), {}
    device = Device(path)
    for _ in range(4):
        for _ in range(60):
            page = chance.randrange(100)
            if chance.random() < 0.1:
                device.trim(PAGE, page * PAGE)
                shadow[page] = bytes(PAGE)
            else:
                shadow[page] = chance.randbytes(PAGE)
                device.write(shadow[page], page * PAGE)
        moved = int(device.mapping.core["tally"]["moves"][0])
        device.abandon()
        device = Device(path)
        assert device.recovery == "killed"
        assert moved
        for page, data in shadow.items():
            assert device.read(PAGE, page * PAGE) == data, page
    device.close()


@pytest.mark.parametrize("writes", ["each", "coalesced"])
@pytest.mark.parametrize("gap", [1, 3])
def test_flushed_writes_survive_a_power_cut_with_moves_in_between(path, gap, writes):
    parameters = {"interval": 1, "region_frames": 64, "gap_frames": gap}
    image.create(path, geometry.plan(4 * MIB, parameters=parameters, descriptor_writes=writes))
    chance, shadow = random.Random(1000 * gap + len(writes)), {}
    device = Device(path)
    for _ in range(150):
        page = chance.randrange(100)
        shadow[page] = chance.randbytes(PAGE)
        device.write(shadow[page], page * PAGE)
    device.flush()
    # Moves that no checkpoint has: the durable table must still find whole frames.
    for page in range(100, 103):
        device.write(NEW, page * PAGE)
    device.abandon()
    lose_cache(path)
    with Device(path) as device:
        assert device.recovery == "power cut"
        for page, data in shadow.items():
            assert device.read(PAGE, page * PAGE) == data, page


# ---- what a cut leaves behind a page that holds nothing ----


def on_medium(device: Device, page: int) -> bytes:
    """The bytes of the page's data on the medium, whatever its descriptor says."""
    return b"".join(device.mapping.media[at : at + 256].tobytes() for at in medium_span(device, page))


def test_reader_after_a_power_cut_does_not_believe_pending_descriptors(path):
    """They are in the state file, of which a cut leaves any mixture."""
    image.create(path, geometry.plan(16 * MIB, descriptor_writes="coalesced"))
    device = Device(path)
    device.write(OLD, 0)
    device.flush()
    device.write(NEW, PAGE)
    device.abandon()
    lose_cache(path)
    with Device(path, read_only=True) as device:
        assert device.recovery == "power cut"
        seen = device.read(2 * PAGE, 0)
    with Device(path) as device:
        assert device.read(2 * PAGE, 0) == seen == OLD + bytes(PAGE)


def leave_behind(path: Path, page: int, **options) -> None:
    """Make an image in which a power cut left OLD behind a page, and no descriptor of it."""
    image.create(path, geometry.plan(16 * MIB, **options))
    device = Device(path)
    device.write(OLD, 0)
    span = medium_span(device, page)
    device.abandon()
    put_data(path, span, OLD)
    lose_cache(path)


@pytest.mark.parametrize("part", [slice(None), slice(100, 200)], ids=["whole", "part"])
@pytest.mark.parametrize("leveling", ["none", "start_gap"])
def test_leftovers_of_a_lost_write_are_durably_gone_before_the_next(path, monkeypatch, leveling, part):
    """Data reached the disk and its descriptor did not: the next write, torn, must not show that data."""
    leave_behind(path, 5, leveling_name=leveling)
    with Device(path) as device:
        assert device.read(PAGE, 5 * PAGE) == bytes(PAGE) and on_medium(device, 5) == OLD
        synced, real = [], Durability._sync_frames

        def sync(self, frames):
            synced.append(on_medium(device, 5))
            real(self, frames)

        with monkeypatch.context() as patch:
            patch.setattr(Durability, "_sync_frames", sync)
            patch.setattr(Durability, "sync", lambda self, *names: synced.append(on_medium(device, 5)))
            device.write(NEW[part], 5 * PAGE + (part.start or 0))
            device.write(NEW[part], 5 * PAGE + (part.start or 0))
        assert synced == [bytes(PAGE)]
        expected = bytearray(PAGE)
        expected[part] = NEW[part]
        assert device.read(PAGE, 5 * PAGE) == expected


def test_no_write_passes_one_that_waits_for_leftovers_to_be_gone(path, monkeypatch):
    """What is blank is not durably so yet, and it finds it blank."""
    leave_behind(path, 5)
    data = np.frombuffer(NEW, np.uint8)
    with Device(path) as device:

        def write_beside() -> int:
            return datapath.write(device.handle, data.ctypes.data, 100, 5 * PAGE + 2000, 0)

        beside = []
        with monkeypatch.context() as patch:
            for name in ("_sync_frames", "sync"):
                patch.setattr(Durability, name, lambda self, *what: beside.append(write_beside()))
            device.write(NEW[:100], 5 * PAGE)
        assert [result & layout.STOP_MASK for result in beside] == [layout.CHECKPOINT]
        assert write_beside() == layout.OK
        assert device.read(PAGE, 5 * PAGE) == NEW[:100] + bytes(1900) + NEW[:100] + bytes(PAGE - 2100)


def test_what_is_blanked_during_a_commit_waits_for_the_next(path, monkeypatch):
    leave_behind(path, 5, leveling_name="none")
    data = np.frombuffer(NEW, np.uint8)
    with Device(path) as device:

        def write(page: int) -> int:
            return datapath.write(device.handle, data.ctypes.data, PAGE, page * PAGE, 0) & layout.STOP_MASK

        for at in medium_span(device, 6):
            device.mapping.media[at : at + 256] = 1
        assert write(5) == layout.CHECKPOINT
        with monkeypatch.context() as patch:
            for name in ("_sync_frames", "sync"):
                patch.setattr(Durability, name, lambda self, *what: write(6))
            device.commit_moves()
        assert on_medium(device, 6) == bytes(PAGE) and write(6) == layout.CHECKPOINT
        device.commit_moves()
        assert write(6) == layout.OK


def test_commit_makes_durable_the_frames_that_were_blanked(path, monkeypatch):
    leave_behind(path, 5, leveling_name="none")
    monkeypatch.setattr("pmem_core.host.can_sync_ranges", lambda fd: True)
    frames, real = [], Durability._sync_frames

    def sync(self, which):
        frames.extend(which)
        real(self, which)

    with Device(path) as device:
        device.commit_moves()  # of the whole medium, after a power cut
        monkeypatch.setattr(Durability, "_sync_frames", sync)
        device.write(NEW, 5 * PAGE)
        assert frames == [(medium_span(device, 5)[0] - layout.FRAMES_AT) // PAGE]


def test_kill_in_a_trim_of_what_was_never_written_leaves_an_image_that_opens(path, monkeypatch):
    """The next page that may hold something would lie past the end: the last section does."""
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:
        run, core, seen = device.handle[0][0], device.handle[1][0], []
        monkeypatch.setattr(datapath, "_punch", lambda *range_: seen.append(core["intent"].copy()) or layout.OK)
        monkeypatch.setattr(datapath, "publish", lambda array, at, value: array.__setitem__(at, value))
        plain = getattr(datapath.free, "py_func", datapath.free)
        assert plain(run, core, 0, device.plan.device_bytes, 0) == layout.OK
        assert [recovery.intent_problems(intent, device.plan) for intent in seen] == [[]]


def test_first_write_of_a_page_that_a_kill_cut_short_leaves_nothing(path):
    image.create(path, geometry.plan(16 * MIB))
    device = Device(path)
    device.write(OLD, 0)
    span = medium_span(device, 5)
    device.mapping.core["intent"][0, 0] = 5 + 1
    device.abandon()
    put_data(path, span, NEW)
    with Device(path) as device:
        assert device.recovery == "killed"
        assert device.read(PAGE, 5 * PAGE) == on_medium(device, 5) == bytes(PAGE)


def test_page_in_flight_without_descriptors_keeps_its_data(path):
    image.create(path, geometry.plan(16 * MIB, placement_name="none"))
    device = Device(path)
    device.write(OLD, 5 * PAGE)
    device.mapping.core["intent"][0, 0] = 5 + 1
    device.abandon()
    with Device(path) as device:
        assert device.recovery == "killed"
        assert device.read(PAGE, 5 * PAGE) == OLD


# ---- which end it was ----


@contextlib.contextmanager
def mounted(folder: Path, kind: str, size: int, disk: Path | None = None):
    """A small filesystem at `folder`; ext4 in the file `disk`, made unless it is there."""
    folder.mkdir(exist_ok=True)
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    else:
        if not disk.exists():
            with disk.open("wb") as file:
                file.truncate(size)
            # Nothing is kept back for root.
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True, capture_output=True)
        command = ["mount", "-o", "loop", disk, folder]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        if subprocess.run(["umount", folder], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)
            pytest.fail("a file of the image is still open")


def script(text: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run Python lines in a process of their own."""
    head = "import sys\nfrom pathlib import Path\nfrom pmem_core.device import Device\npath = Path(sys.argv[1])\n"
    command = [*prefix, sys.executable, "-c", head + text, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=200)


@pytest.mark.kernel
@needs("unshare")
def test_kill_seen_from_another_mount_namespace_is_a_kill(path):
    image.create(path, geometry.plan(16 * MIB))
    device = Device(path)
    device.write(NEW, 0)
    mount = device.journal.session["mount"]
    device.abandon()
    text = "from pmem_core import host\nprint(host.witness(path)['mount'])\ndevice = Device(path)\n"
    text += "print(device.recovery)\nprint(device.read(4, 0))\ndevice.abandon()\n"
    done = script(text, path, prefix=("unshare", "-m"))
    assert done.returncode == 0, done.stderr
    elsewhere, *told = done.stdout.split()
    assert int(elsewhere) != mount  # or this tests nothing
    assert told == ["killed", "b'new!'"]


@pytest.mark.parametrize("what", ["boot", "device", "inode"])
def test_image_elsewhere_than_its_session_was_has_lost_its_cache(path, what):
    image.create(path, geometry.plan(16 * MIB))
    Device(path).abandon()
    lose_cache(path, **{what: 0})
    assert snapshot.look(path).session == "power cut"


@pytest.mark.parametrize("lost", ["media", "wear", "state", None])
def test_mount_that_cannot_be_compared_is_trusted_where_every_inode_has_stayed(path, lost):
    image.create(path, geometry.plan(16 * MIB))
    Device(path).abandon()
    lose_cache(path, mount=0)
    if lost:
        with (path / lost).open("rb") as file:
            fcntl.fcntl(file.fileno(), F_SET_RW_HINT, bytes(8))
    assert snapshot.look(path).session == ("power cut" if lost else "killed")


@pytest.mark.serial  # a mount namespace that another test makes meanwhile would keep the mount, and with it the cache
@pytest.mark.kernel
@needs("loop", "ext4")
def test_kill_and_a_mount_anew_is_a_power_cut(tmp_path):
    host, disk = tmp_path / "host", tmp_path / "disk"
    with mounted(host, "ext4", 40 * MIB, disk):
        image.create(host / "disk.pmem", geometry.plan(16 * MIB))
        device = Device(host / "disk.pmem")
        device.write(NEW, 0)
        device.flush()
        device.abandon()
    with mounted(host, "ext4", 40 * MIB, disk), Device(host / "disk.pmem") as device:
        assert device.recovery == "power cut"
        assert device.read(PAGE, 0) == NEW


# ---- a full host ----


@pytest.fixture
def full(tmp_path):
    """An image on an ext4 without any room, its first 64 pages written; the path."""
    with mounted(tmp_path / "host", "ext4", 40 * MIB, tmp_path / "disk") as host:
        path = host / "disk.pmem"
        image.create(path, geometry.plan(TWO_SECTIONS, parameters={"interval": 20}))
        with Device(path) as device:
            for page in range(64):
                device.write(OLD, page * PAGE)
        fill(host / "ballast")
        yield path


on_full_host = [pytest.mark.kernel, needs("loop", "ext4")]


class TestFullHost:
    pytestmark = on_full_host

    def test_overwriting_needs_no_room(self, full):
        with Device(full) as device:
            for page in [*range(64), *range(64)]:
                device.write(NEW, page * PAGE)
            device.flush()
            assert device.read(64 * PAGE, 0) == NEW * 64

    def test_trimming_a_page_needs_no_room(self, full):
        with Device(full) as device:
            device.trim(PAGE, 7 * PAGE)
            assert device.read(PAGE, 7 * PAGE) == bytes(PAGE)
            device.flush()

    def test_trimming_everything_needs_no_room(self, full):
        with Device(full) as device:
            device.trim(device.plan.device_bytes, 0)
            device.flush()
            assert device.read(64 * PAGE, 0) == bytes(64 * PAGE)

    def test_new_write_is_refused_and_reads_go_on(self, full):
        with Device(full) as device:
            at = device.plan.device_bytes - MIB
            with pytest.raises(HostFull):
                device.write(NEW * (MIB // PAGE), at)
            assert device.read(64 * PAGE, 0) == OLD * 64

    @pytest.mark.parametrize("blocks", range(8))
    def test_room_for_the_counters_is_asked_for_too(self, full, blocks):
        """The medium has its room, the wear file has not: a store there would be a SIGBUS, which ends the process.

        blocks: of 1 KiB, free; so small a filesystem has four of them a page, and a store wants all four.
        """
        (full.parent / "ballast").unlink()
        with (full / "media").open("r+b") as file:
            os.posix_fallocate(file.fileno(), TWO_SECTIONS - 4 * MIB, 4 * MIB)
        fill(full.parent / "ballast")
        os.truncate(full.parent / "ballast", (full.parent / "ballast").stat().st_size - (blocks << 10))
        # A page of the wear file counts 256 KiB of the medium.
        text = """
from pmem_core.errors import HostFull
device = Device(path)
refused = 0
for at in range(device.plan.device_bytes - (2 << 20), device.plan.device_bytes, 256 << 10):
    try:
        device.write(b"x" * 4096, at)
    except HostFull:
        refused += 1
        assert device.read(4096, at) == bytes(4096)
print(refused > 2)
device.abandon()
"""
        done = script(text, full)
        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr

    def test_kill_and_reopen_need_no_room(self, full):
        device = Device(full)
        for page in range(64):
            device.write(NEW, page * PAGE)
        device.abandon()
        with Device(full) as device:
            assert device.recovery == "killed"
            assert device.read(64 * PAGE, 0) == NEW * 64

    def test_page_in_flight_is_healed_without_room(self, full):
        kill_between_data_and_descriptor(full, 5)
        with Device(full) as device:
            assert device.read(PAGE, 5 * PAGE) == NEW


@pytest.mark.kernel
@needs("root")
def test_untouched_page_reads_on_a_full_tmpfs(tmp_path):
    with mounted(tmp_path / "host", "tmpfs", 8 * MIB) as host:
        path = host / "disk.pmem"
        image.create(path, geometry.plan(16 * MIB))
        with Device(path) as device:
            device.write(NEW, 0)
        fill(host / "ballast")
        # In a process of its own: what goes wrong here is a SIGBUS.
        text = "device = Device(path)\nend = device.plan.device_bytes\n"
        text += "assert device.read(end - 4096, 4096) == bytes(end - 4096)\n"
        text += "assert device.extents(end, 0) == [(0, 4096, True), (4096, end - 4096, False)]\n"
        text += "device.abandon()\n"
        done = script(text, path)
        assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


# ---- closing ----


def test_close_is_whole_though_the_history_has_no_room(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB))
    device = Device(path)
    device.write(NEW, 0)

    def fail(figures):
        raise HostFull("journal", "no room for the journal")

    monkeypatch.setattr(device.journal, "sample", fail)
    device.close()
    with Device(path) as device:
        assert device.recovery == ""
        assert not device.has_dirty()


def open_files(path: Path) -> list[str]:
    """The files of the image at `path` that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own is gone
            found.append(str(entry.readlink()))
    return sorted(name for name in found if name.startswith(f"{path}/"))


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("end", ["close", "abandon"])
def test_no_file_stays_open(path, end, read_only):
    image.create(path, geometry.plan(16 * MIB))
    device = Device(path, read_only=read_only)
    if not read_only:
        device.write(NEW, 0)
    getattr(device, end)()
    assert open_files(path) == []


@pytest.mark.parametrize("error", [HostFull, HostError])
def test_no_file_stays_open_when_the_journal_fails(path, monkeypatch, error):
    image.create(path, geometry.plan(16 * MIB))
    device = Device(path)
    device.write(NEW, 0)

    def fail(*_, **__):
        raise error("journal", "cannot be written")

    monkeypatch.setattr(device.journal, "sample", fail)
    monkeypatch.setattr(device.journal, "checkpoint", fail)
    with pytest.raises(error):
        device.close()
    assert open_files(path) == []


def test_no_file_stays_open_when_opening_fails(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB))
    kill_between_data_and_descriptor(path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "heal", lambda handle, page: NO_ROOM)
        with pytest.raises(HostFull) as caught:
            Device(path)
    # The error is still held, as by somebody who reports it later.
    assert open_files(path) == []
    Device(path).close()
    assert caught.value.errno == HostFull.errno


# ---- requests that make no sense ----


@pytest.mark.parametrize(("count", "back"), [(1, 0), (PAGE, 1), (2, 1), (PAGE, -PAGE)])
def test_requests_beyond_the_end_are_refused(path, count, back):
    image.create(path, geometry.plan(16 * MIB))
    with Device(path) as device:
        at = device.plan.device_bytes - back
        requests = [
            lambda: device.read(count, at),
            lambda: device.write(bytes(count), at),
            lambda: device.trim(count, at),
            lambda: device.zero(count, at),
            lambda: device.extents(count, at),
            lambda: device.prefetch(count, at),
        ]
        for request in requests:
            with pytest.raises(UsageError):
                request()
        # Up to the end is within.
        device.write(b"x" * PAGE, device.plan.device_bytes - PAGE)


def test_negative_offset_is_refused(path):
    image.create(path, geometry.plan(16 * MIB))
    with Device(path) as device:
        for request in (device.trim, device.zero, device.read, device.extents, device.prefetch):
            with pytest.raises(UsageError):
                request(PAGE, -PAGE)
        with pytest.raises(UsageError):
            device.write(NEW, -PAGE)


def test_changes_through_a_read_only_device_are_refused(path):
    image.create(path, geometry.plan(16 * MIB))
    with Device(path, read_only=True) as device:
        for request in (
            lambda: device.write(NEW, 0),
            lambda: device.trim(PAGE, 0),
            lambda: device.zero(PAGE, 0),
        ):
            with pytest.raises(UsageError):
                request()
        assert device.read(PAGE, 0) == bytes(PAGE)


# ---- what the journal must fit ----


def test_checkpoint_of_another_size_is_refused(path):
    """A journal whose table is short would leave half of the durable table to chance."""
    image.create(path, geometry.plan(16 * MIB))
    journal = Journal(path / "journal")
    core, table = journal.load_checkpoint()
    journal.checkpoint(core, {0: table[:-8]}, {})
    journal.close()
    with pytest.raises(PmemError):
        Device(path)


def test_restored_marks_are_a_union(path):
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:
        device.write(NEW, 0)
        device.mapping.sections[0] = layout.SECTION_TOUCHED
        device.mapping.sections[1] = layout.SECTION_TOUCHED | layout.SECTION_DIRTY
        recovery.complete_state(device.mapping, device.plan, device.journal)
        assert device.mapping.sections[0] == layout.SECTION_TOUCHED | layout.SECTION_DIRTY
        assert device.mapping.sections[1] == layout.SECTION_TOUCHED | layout.SECTION_DIRTY


def test_section_is_suspect_where_the_journal_says_so(path):
    """The journal has it first, so a bit that only the state has was flipped."""
    image.create(path, geometry.plan(TWO_SECTIONS))
    with Device(path) as device:
        device.write(NEW, 0)
        device.mapping.sections[0] |= layout.SECTION_SUSPECT
        recovery.complete_state(device.mapping, device.plan, device.journal)
        assert not device.mapping.sections[0] & layout.SECTION_SUSPECT and device.has_dirty()


def test_what_cannot_be_opened_stays_closed(path):
    image.create(path, geometry.plan(16 * MIB))
    os.truncate(path / "wear", 100)
    before = len(snapshot.look(path).events)
    for _ in range(2):
        with pytest.raises(DamagedImage, match="wear: truncated to 100 bytes"):
            Device(path)
    found = snapshot.look(path)
    assert (found.session, len(found.events)) == ("closed", before)


@pytest.mark.kernel
@needs("root")
def test_no_room_to_create_names_the_image(tmp_path):
    """Wherever the room ends: within a file, between two, within a write of LMDB's."""
    told, left = [], []
    for pages in range(4, 60):
        with mounted(tmp_path / "host", "tmpfs", pages * PAGE) as host:
            try:
                image.create(host / "disk.pmem", geometry.plan(16 * MIB))
            except HostFull as error:
                told.append(str(error))
                left += host.iterdir()
    assert left == []
    assert len(told) > 20
    assert [one for one in told if "disk.pmem: no room" not in one] == []


def killed_in(function, *arguments):
    """Call `function` in a process that is killed when it writes a state file."""
    pid = os.fork()
    if not pid:
        image.write_state = lambda *_, **__: os._exit(9)
        function(*arguments)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    return pid


@pytest.mark.parametrize("same", [False, True])
def test_create_removes_what_a_killed_one_left(path, monkeypatch, same):
    plan = geometry.plan(16 * MIB)
    pid = killed_in(image.create, path, plan)
    assert [one for one in path.parent.iterdir() if str(pid) in one.name]
    if same:
        monkeypatch.setattr(os, "getpid", lambda: pid)
    image.create(path, plan)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert check(path).clean


def test_image_is_durable_before_it_has_its_name_and_its_name_is_then(path, monkeypatch):
    done = []
    for owner, name in ((os, "fsync"), (os, "fdatasync"), (Path, "rename")):
        real = getattr(owner, name)

        def noted(what, *arguments, real=real):
            place = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(arguments[0])  # noqa: PTH115
            done.append("/".join(Path(place).relative_to(path.parent).parts[1:]) if place != str(path) else "named")
            return real(what, *arguments)

        monkeypatch.setattr(owner, name, noted)
    image.create(path, geometry.plan(16 * MIB))
    named = done.index("named")
    # The journal syncs its own file.
    assert {"media", "wear", "state", "journal", ""} <= set(done[:named])
    assert done[named + 1 :] == [""]


def test_copies_of_the_info_block_become_durable_one_after_the_other(path, monkeypatch):
    """So that one is whole at every instant."""
    plan = geometry.plan(16 * MIB)
    image.create(path, plan)
    done, real = [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: (done.append(at), real(fd, data, at))[1])
    monkeypatch.setattr(os, "fdatasync", lambda fd: done.append("sync"))
    infoblock.write(path / "media", plan.info)
    assert done == [layout.INFO_OFFSETS[0], "sync", layout.INFO_OFFSETS[1], "sync"]


def test_create_leaves_alone_what_others_make_and_what_only_looks_so(path):
    names = [f".{path.name}.{os.getppid()}.creating", f".{path.name}.999999999", f".{path.name}.old.creating"]
    for name in names:
        path.with_name(name).mkdir()
    image.create(path, geometry.plan(16 * MIB))
    assert sorted(one.name for one in path.parent.iterdir()) == sorted([*names, path.name])


def test_name_that_is_no_text_is_as_good_as_any(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.pmem")
    image.create(path, geometry.plan(16 * MIB))
    with Device(path) as device:
        device.write(NEW, 0)
    assert snapshot.look(path).session == "closed"
