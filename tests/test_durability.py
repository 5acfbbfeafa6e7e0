# SPDX-License-Identifier: MIT
"""What is made durable when: which files are synced, and what the journal has afterwards."""

import concurrent.futures
import errno
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pmem_core import durability, geometry, host, housekeeping, image, layout, reservations, snapshot
from pmem_core.device import Device
from pmem_core.errors import HostError
from pmem_core.journal import Journal

MIB = 1 << 20
PAGE = layout.PAGE_BYTES
SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
MOVING = {"interval": 1, "region_frames": 64, "gap_frames": 8}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.pmem"


@pytest.fixture
def synced(monkeypatch):
    """The names of the files that are synced, in order."""
    done, real = [], os.fdatasync

    def fdatasync(fd):
        done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)  # noqa: PTH115 (its name, wherever it is)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return done


@pytest.mark.parametrize("how", ["flush", "write", "trim", "zero"])
def test_flush_and_fua_sync_the_medium(path, synced, how):
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
        synced.clear()
        if how == "flush":
            device.flush()
        elif how == "write":
            device.write(b"y", 0, fua=True)
        else:
            getattr(device, how)(PAGE, 0, fua=True)
        assert synced == ["media"]


@pytest.mark.parametrize("where", [None, "/dev/shm"], ids=["disk", "memory"])
def test_move_between_holes_takes_room_for_one_frame(where):
    """Of a large medium most of what moves was never written, and lies in a hole of the file."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        path = Path(folder) / "large.pmem"
        image.create(path, geometry.plan(64 * MIB, parameters={"interval": 1}))
        with Device(path) as device:
            device.write(b"x" * PAGE, 0)
            device.checkpoint()
            before, media = int(device.mapping.core["tally"]["moves"][0]), path / "media"
            taken = media.stat().st_blocks
            for _ in range(3):
                device.write(b"x" * PAGE, 0)
            moves = int(device.mapping.core["tally"]["moves"][0]) - before
            assert moves >= 3
            # A page more, for the filesystem's own record of where they are.
            assert 512 * (media.stat().st_blocks - taken) <= (moves + 1) * PAGE
            assert device.read(PAGE, 0) == b"x" * PAGE


def test_move_of_a_frame_in_use_takes_room_for_those_that_follow(path):
    parameters = {"interval": 1, "region_frames": 256, "gap_frames": 32}
    image.create(path, geometry.plan(64 * MIB, placement_name="none", parameters=parameters))
    with Device(path) as device:
        device.write(b"x" * PAGE, 255 * PAGE)
        taken = (path / "media").stat().st_blocks
        device.write(b"x" * PAGE, 254 * PAGE)  # beside it; before that the other moves to the far end of the gap
        assert device.mapping.core["tally"]["moves"][0] == 1
        assert 512 * ((path / "media").stat().st_blocks - taken) >= 1 << reservations.RESERVE_SHIFT


def journal_has_the_table(device: Device) -> bool:
    return device.journal.load_checkpoint()[1] == device.mapping.table[: len(device.plan.table)].tobytes()


def test_flush_leaves_a_move_uncommitted_while_the_old_frame_holds_the_same(path, synced):
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        device.write(b"x" * PAGE * 3, 0)
        assert device.mapping.core["tally"]["moves"][0] and not journal_has_the_table(device)
        synced.clear()
        device.flush()
        assert not journal_has_the_table(device)
        assert synced == ["media"]


@pytest.mark.parametrize("how", ["write", "trim"])
def test_flush_after_a_change_of_what_moved_makes_the_move_durable_and_no_wear(path, synced, how):
    # Without descriptors nothing but the page itself says that it was trimmed.
    image.create(path, geometry.plan(4 * MIB, placement_name="none", parameters=MOVING))
    with Device(path) as device:
        device.write(b"x" * PAGE * 64, 0)
        device.commit_moves()
        for _ in range(4):
            device.write(b"x" * PAGE, 30 * PAGE)
        device.flush()
        assert device.mapping.run["moved_count"] > 0 and not journal_has_the_table(device)
        if how == "write":
            device.write(b"y" * PAGE * 64, 0)
        else:
            device.trim(PAGE * 64, 0)
        synced.clear()
        device.flush()
        assert journal_has_the_table(device)
        assert synced == ["media"]


FLUSHED = {
    "interleaved": {"parameters": {"interval": 5, "region_frames": 64, "gap_frames": 32}},
    "no descriptors": {"placement_name": "none", "parameters": {"interval": 5, "region_frames": 256, "gap_frames": 64}},
    "large frames": {"frame_bytes": 16384, "parameters": {"interval": 20, "region_frames": 64, "gap_frames": 32}},
    "coalesced": {
        "descriptor_writes": "coalesced",
        "parameters": {"interval": 5, "region_frames": 64, "gap_frames": 32},
    },
    "table_swap": {"leveling_name": "table_swap", "parameters": {"interval": 2, "block_frames": 1, "spare_blocks": 32}},
    "security_refresh": {"leveling_name": "security_refresh", "parameters": {"interval": 9}},
    "optane": {"leveling_name": "optane"},
    "sampled_swap": {"leveling_name": "sampled_swap"},
    "small frames": {"frame_bytes": 512, "parameters": {"interval": 9, "region_frames": 512, "gap_frames": 64}},
}


# Frames smaller than a page are never written by calls.
@pytest.mark.parametrize(("name", "large"), [(name, large) for name in FLUSHED for large in (0, PAGE)][:-1])
def test_after_a_flush_the_journals_table_finds_every_byte(path, name, large):
    print(f"seed {SEED}")
    draw, left = random.Random(f"{SEED} {name} {large}"), 0
    image.create(path, geometry.plan(4 * MIB, **FLUSHED[name]))
    with Device(path) as device:
        device.mapping.run["large"] = large
        size, table = device.plan.device_bytes, device.mapping.table
        expected = bytearray(size)
        for _ in range(120):
            for _ in range(draw.randrange(6)):
                first = draw.randrange(size // PAGE) * PAGE
                count = min(draw.choice([PAGE, 3 * PAGE, 24 * PAGE]), size - first)
                if draw.random() < 0.2:
                    first, count = first + 100, min(count, size - first) - 100
                if draw.random() < 0.8:
                    expected[first : first + count] = data = draw.randbytes(count)
                    device.write(data, first)
                else:
                    expected[first : first + count] = bytes(count)
                    draw.choice([device.trim, device.zero] if first % PAGE == 0 else [device.zero])(count, first)
            device.flush()
            assert device.read(size, 0) == expected
            held = table.copy()
            left += int(np.any(held != device.mapping.durable))
            table[:] = device.mapping.durable
            try:
                found = device.read(size, 0)
            finally:
                table[:] = held
            assert found == expected
    print(f"{left} of 120 flushes left moves uncommitted")
    assert left or "leveling_name" in FLUSHED[name]  # those that exchange hardly leave any


def test_commit_that_is_under_way_is_not_taken_for_done(path):
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        kept, run = device._durability, device.mapping.run[0]
        device.write(b"x" * PAGE * 64, 0)
        device.flush()
        assert run["committed"] == run["rewritten"]
        with kept._taken():
            assert run["committed"] != run["rewritten"]
        assert run["committed"] == run["rewritten"]


def test_flush_after_a_kill_makes_the_moves_of_the_killed_session_durable(path):
    """Which of its pages were written after they had moved, nobody knows any more."""
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    device = Device(path)
    device.write(b"x" * PAGE * 3, 0)
    device.abandon()
    with Device(path) as device:
        assert device.recovery == "killed" and not journal_has_the_table(device)
        device.flush()
        assert journal_has_the_table(device)


def test_flush_after_a_commit_of_moves_commits_nothing(path):
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        device.write(b"x" * PAGE * 64, 0)
        device.commit_moves()
        before = (path / "journal" / "data.mdb").read_bytes()
        device.flush()
        assert (path / "journal" / "data.mdb").read_bytes() == before


def test_flush_without_a_move_commits_nothing(path):
    image.create(path, geometry.plan(4 * MIB, leveling_name="none"))
    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
        before = (path / "journal" / "data.mdb").read_bytes()
        for _ in range(5):
            device.write(b"y" * PAGE, 0)
            device.flush()
        assert (path / "journal" / "data.mdb").read_bytes() == before


def test_commit_of_moves_waits_for_no_other_write(path, synced):
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        device.write(b"x" * PAGE * 3, 0)
        synced.clear()
        device.commit_moves()
        assert synced == []
        assert journal_has_the_table(device)


@pytest.mark.parametrize(
    ("magic", "files"), [(0xEF53, []), (0x58465342, []), (0x9123683E, ["media"])], ids=["ext4", "xfs", "btrfs"]
)
def test_commit_of_moves_syncs_the_medium_where_a_part_of_it_is_not_enough(path, synced, monkeypatch, magic, files):
    monkeypatch.setattr(host, "_filesystem", lambda fd: magic)
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        device.write(b"x" * PAGE * 3, 0)
        synced.clear()
        device.commit_moves()
        assert synced == files and journal_has_the_table(device)


def test_moves_that_cannot_be_listed_are_synced_with_the_medium(path, synced):
    """Those of a session that was killed, and more of them than there is room for."""
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    device = Device(path)
    device.write(b"x" * PAGE * 3, 0)
    device.abandon()
    with Device(path) as device:
        assert device.recovery == "killed"
        synced.clear()
        device.commit_moves()
        assert synced == ["media"]
        device.write(b"x" * PAGE * 3, 0)
        device.commit_moves()
        assert synced == ["media"]


def test_failed_commit_is_made_good_by_the_next(path, synced, monkeypatch):
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        device.write(b"x" * PAGE * 3, 0)

        def fail(chunks):
            raise OSError

        with monkeypatch.context() as patch:
            patch.setattr(device.journal, "put_table", fail)
            with pytest.raises(OSError):
                device.commit_moves()
        synced.clear()
        device.commit_moves()
        assert synced == ["media"] and journal_has_the_table(device)


def test_no_more_moves_are_listed_than_there_is_room_for(path):
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    device, room = Device(path), 3
    device.mapping.run["moved_room"] = room
    listed = device.mapping.kept[2]
    device.write(b"x" * PAGE * 3, 0)
    assert device.mapping.run["moved_count"] > room
    assert listed[:room].all() and not listed[room:].any()
    del listed
    device.abandon()


@pytest.mark.parametrize(
    ("frames", "expected"),
    [([], []), ([5], [(5, 6)]), ([3, 1, 2, 2], [(1, 4)]), ([9, 0, 7, 8], [(0, 1), (7, 10)])],
    ids=str,
)
def test_adjacent_frames_are_one_run(frames, expected):
    assert durability.runs(frames) == expected


def test_count_cut_short_by_a_kill_is_finished(path):
    image.create(path, geometry.plan(4 * MIB, leveling_name="none"))
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    first = 100
    unit, wear = device.mapping.core["unit"][0], device.mapping.wear
    wear[first] += 9
    device.mapping.core["tally"]["worn"][0, layout.CAUSE_HOST] += 9
    unit[layout.UNIT_FIRST], unit[layout.UNIT_LINES] = first, 4
    unit[layout.UNIT_SUM] = wear[first : first + 4].sum()
    unit[layout.UNIT_TOTAL] = device.mapping.core["tally"]["worn"][0, layout.CAUSE_HOST]
    unit[layout.UNIT_CAUSE] = layout.CAUSE_HOST + 1
    wear[first : first + 2] += 1  # two of the four were counted, and one is the hottest now
    del unit, wear
    device.abandon()
    with Device(path) as device:
        tally = device.mapping.core["tally"][0].copy()
        assert int(tally["worn"].sum()) == int(device.mapping.wear.sum(dtype=np.int64))
        assert int(tally["hottest"]) == int(device.mapping.wear.max())


@pytest.mark.parametrize(("more", "counted"), [(0, 0), (1, 1), (4, 4), (100, 4), (-1, 0)])
def test_count_cut_short_by_a_kill_is_finished_by_no_more_than_its_lines(path, more, counted):
    """What the counters have beyond that is damage, and left for check to find."""
    image.create(path, geometry.plan(4 * MIB, leveling_name="none"))
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    unit, wear, worn = device.mapping.core["unit"][0], device.mapping.wear, device.mapping.core["tally"]["worn"][0]
    wear[100:104] = 7
    unit[layout.UNIT_FIRST], unit[layout.UNIT_LINES], unit[layout.UNIT_SUM] = 100, 4, 4 * 7
    unit[layout.UNIT_TOTAL] = before = int(worn[layout.CAUSE_MOVE])
    unit[layout.UNIT_CAUSE] = layout.CAUSE_MOVE + 1
    wear[102] = 7 + more
    del unit, wear, worn
    device.abandon()
    with Device(path) as device:
        assert device.recovered.lines == 4
        assert int(device.mapping.core["tally"]["worn"][0, layout.CAUSE_MOVE]) == before + counted


# ---- housekeeping ----


def until(seen) -> bool:
    """Wait until `seen` says so; False after 10 seconds."""
    deadline = time.monotonic() + 10
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_housekeeping_settles_sections_and_samples(path, monkeypatch):
    monkeypatch.setattr(housekeeping, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(housekeeping, "HISTORY_SECONDS", 0.1)
    image.create(path, geometry.plan(16 * MIB))
    with Device(path) as device:
        keeper = housekeeping.Housekeeper(device)
        device.write(b"x", 0)
        assert device.has_dirty()
        assert until(lambda: not device.has_dirty() and device.journal.history())
        keeper.stop()
        (sample,) = device.journal.history()
        assert sample["writes"] == 1 and sample["worn"]["host"] == 16
        assert keeper.problem == ""


def test_housekeeping_commits_moves_before_a_write_has_to_stop(path, monkeypatch):
    monkeypatch.setattr(housekeeping, "TURN_SECONDS", 100)  # it must be woken
    image.create(path, geometry.plan(4 * MIB, parameters=MOVING))
    with Device(path) as device:
        if not device.waits_for_disk:
            pytest.skip("on tmpfs nothing is waited for")
        keeper = housekeeping.Housekeeper(device)
        for _ in range(5):
            device.write(b"x" * PAGE, 0)
        assert device.mapping.core["tally"]["moves"][0] == MOVING["gap_frames"]
        assert until(lambda: journal_has_the_table(device))
        keeper.stop()


def test_busy_sections_do_not_make_housekeeping_sync_the_medium(path, synced):
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    with Device(path) as device:
        device.write(b"x", 0)
        synced.clear()
        assert not device.checkpoint(settle_sections=True, due=False)
        assert synced == [] and device.has_dirty()
        assert device.checkpoint(settle_sections=True, due=False)
        assert "media" in synced and not device.has_dirty()


@pytest.mark.parametrize("how", ["trim", "zero", "zero without holes"])
@pytest.mark.parametrize("tmpfs", [True, False])
def test_long_trim_lets_others_in_between(tmp_path, monkeypatch, how, tmpfs):
    """Compiled code has the device to itself: gigabytes at once would hold up every other request for as long."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = (Path(folder) if tmpfs else tmp_path) / "disk.pmem"
        image.create(path, geometry.plan(160 * MIB, leveling_name="none", placement_name="linear"))
        with Device(path) as device:
            on_tmpfs = bool(device.mapping.run["tmpfs"][0])
            for at in range(0, 140 * MIB, MIB):
                device.write(b"x" * MIB, at)
            pauses, real = [], device._resume

            def resume(result, offset):
                pauses.append((result & layout.STOP_MASK, result >> layout.STOP_SHIFT))
                real(result, offset)

            monkeypatch.setattr(device, "_resume", resume)
            device.trim(140 * MIB, 0) if how == "trim" else device.zero(140 * MIB, 0, may_trim=how == "zero")
            part = 64 * MIB if on_tmpfs and how != "zero without holes" else 4 * MIB
            assert [done for code, done in pauses if code == layout.PAUSE] == list(range(part, 140 * MIB, part))
            assert device.read(140 * MIB, 0) == bytes(140 * MIB)
            tally = device.mapping.core["tally"][0]
            assert tally["trims" if how == "trim" else "zeros"] == 1
            assert tally["trimmed_bytes" if how == "trim" else "zeroed_bytes"] == 140 * MIB


def test_trim_on_a_disk_lets_others_in_after_a_few_holes(tmp_path, monkeypatch):
    """Each takes the filesystem long, and between adjacent pages of a device there may be other pages of its medium."""
    image.create(tmp_path / "disk.pmem", geometry.plan(32 * MIB))
    with Device(tmp_path / "disk.pmem") as device:
        if device.mapping.run["tmpfs"][0]:
            pytest.skip("on tmpfs holes are quick")
        for at in range(0, 30 * MIB, MIB):
            device.write(b"x" * MIB, at)
        parts, real, before = [], device._resume, 0

        def resume(result, offset):
            nonlocal before
            if result & layout.STOP_MASK == layout.PAUSE:
                parts.append((result >> layout.STOP_SHIFT) - before)
                before = result >> layout.STOP_SHIFT
            real(result, offset)

        monkeypatch.setattr(device, "_resume", resume)
        device.trim(30 * MIB, 0)
        group = 64 * PAGE
        assert len(parts) >= 28 and max(parts) <= layout.PAUSE_HOLES * group
        assert device.read(30 * MIB, 0) == bytes(30 * MIB)


# ---- a sync that fails ----


class FailingDisk:
    """os.fdatasync, whose next call fails where `failing` is set, as the kernel tells of a failure: once."""

    def __init__(self, monkeypatch):
        self.failing, self.told = False, threading.Event()
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)

    def _fdatasync(self, fd):
        if self.failing:
            self.failing = False
            self.told.set()
            time.sleep(0.2)  # another thread may come first to where it is written down
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real(fd)


def fail(device, disk):
    disk.failing = True
    with pytest.raises(HostError, match="input/output error"):
        device.flush()


def test_no_flush_is_answered_after_one_has_failed(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    disk, device = FailingDisk(monkeypatch), Device(path)
    device.write(b"x" * PAGE, 0)
    fail(device, disk)
    for step in (device.flush, device.checkpoint, device.close):
        with pytest.raises(HostError, match="an earlier sync failed"):
            step()


def test_flush_beside_a_failing_one_is_not_answered(path, monkeypatch):
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    disk, device = FailingDisk(monkeypatch), Device(path)
    device.write(b"x" * PAGE, 0)
    disk.failing = True
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(device.flush)
        assert disk.told.wait(30)
        second = pool.submit(device.flush)
        for flush in (first, second):
            assert isinstance(flush.exception(), HostError)
    device.abandon()


def test_flush_during_which_another_sync_failed_is_not_answered(path, monkeypatch):
    """The kernel may have told the other one what was ours too."""
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    begun, go, real = threading.Event(), threading.Event(), os.fdatasync
    device = Device(path)
    device.write(b"x" * PAGE, 0)

    def fdatasync(fd):
        if begun.is_set():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        begun.set()
        assert go.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        flush = pool.submit(device.flush)
        assert begun.wait(30)
        with pytest.raises(HostError):
            device.checkpoint()
        go.set()
        assert isinstance(flush.exception(30), HostError)
    device.abandon()


def test_flush_syncs_by_an_open_file_of_its_own(path, monkeypatch):
    """The kernel tells each open file of a failure once: what a checkpoint is told is not kept from a flush."""
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    with Device(path) as device:
        used, real = [], os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda fd: (used.append(fd), real(fd)))
        device.write(b"x" * PAGE, 0)
        device.flush()
        (flushed,) = used
        device.checkpoint()
        assert os.path.sameopenfile(flushed, used[1]) and flushed not in used[1:]


def test_flush_that_waited_for_another_is_answered_by_one_more_sync(path, monkeypatch):
    """However many wait."""
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    begun, go, syncs, real = threading.Event(), threading.Event(), [], os.fdatasync

    def fdatasync(fd):
        syncs.append(fd)
        begun.set()
        assert go.wait(30)
        real(fd)

    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
        with monkeypatch.context() as patch, concurrent.futures.ThreadPoolExecutor() as pool:
            patch.setattr(os, "fdatasync", fdatasync)
            flushes = [pool.submit(device.flush)]
            assert begun.wait(30)
            flushes += [pool.submit(device.flush) for _ in range(4)]
            time.sleep(0.2)  # all have asked
            go.set()
            for flush in flushes:
                flush.result(30)
        assert len(syncs) == 2


@pytest.mark.parametrize("known", ["by both", "by the inode", "by the journal"])
@pytest.mark.parametrize("read_only", [False, True])
def test_open_after_a_failed_sync_believes_the_last_checkpoint_only(path, monkeypatch, known, read_only):
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    disk, device = FailingDisk(monkeypatch), Device(path)
    device.write(b"x" * PAGE, 0)
    if known == "by the inode":

        def refused(self):
            raise HostError(self.path, "input/output error")

        monkeypatch.setattr(Journal, "note_failed_sync", refused)
    elif known == "by the journal":
        monkeypatch.setattr(host, "mark_failed_sync", lambda files: None)  # the inode left memory since
    fail(device, disk)
    device.abandon()
    assert snapshot.look(path).session == "power cut"
    with Device(path, read_only=read_only) as device:
        assert device.recovery == "power cut" and device.recovered.suspect == 1
        assert str(device.recovered).startswith("a sync had failed")
        device.flush()
    if not read_only:
        with Device(path) as device:
            assert device.recovery == ""


def test_open_after_a_failed_sync_reads_from_the_disk_again(path, monkeypatch):
    """The page cache may have as clean what never got there."""
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    disk, device = FailingDisk(monkeypatch), Device(path)
    device.write(b"x" * PAGE, 0)
    fail(device, disk)
    device.abandon()
    dropped, real = set(), os.posix_fadvise

    def fadvise(fd, at, count, advice):
        if (at, count, advice) == (0, 0, os.POSIX_FADV_DONTNEED):
            dropped.add(Path(os.readlink(f"/proc/self/fd/{fd}")).name)  # noqa: PTH115
        real(fd, at, count, advice)

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    with Device(path):
        assert dropped == {"media", "wear"}
