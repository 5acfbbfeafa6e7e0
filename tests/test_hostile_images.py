# SPDX-License-Identifier: MIT
"""Images that somebody made up: each is refused with one sentence, and no file outside of it is changed."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import damage_row

from pmem_core import geometry, image, layout, snapshot, stats
from pmem_core.check import Kind, check
from pmem_core.device import Device
from pmem_core.errors import DamagedImage, PmemError
from pmem_core.journal import Journal
from pmem_core.leveling import family

MIB = 1 << 20
PAGE = layout.PAGE_BYTES


@pytest.fixture
def path(tmp_path):
    """An image with a little in it, closed."""
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(16 * MIB, descriptor_writes="coalesced"))
    with Device(path) as device:
        device.write(b"x" * PAGE, 0)
    return path


def kill(path: Path) -> None:
    """Leave the image as a killed process leaves it."""
    device = Device(path)
    device.write(b"y" * PAGE, 0)
    device.abandon()


def lose_cache(path: Path) -> None:
    """Make the journal say that the last session was before a reboot."""
    journal = Journal(path / "journal")
    journal.begin_session({"boot": "another"})
    journal.close()


def refused(path: Path, kind: type[PmemError] = PmemError) -> None:
    """Both ways of opening end in one sentence."""
    for read_only in (True, False):
        with pytest.raises(kind) as caught:
            Device(path, read_only=read_only)
        assert "\n" not in str(caught.value)


# ---- info blocks ----


def forge(path: Path, **fields: object) -> None:
    """Change fields of both info blocks, with the right checksum."""
    with (path / "media").open("r+b") as file:
        block = np.frombuffer(os.pread(file.fileno(), layout.INFO_BYTES, 0), layout.INFO).copy()
        for name, value in fields.items():
            block[name] = value
        block["checksum"] = 0
        block["checksum"] = layout.fletcher64(block.tobytes())
        for at in layout.INFO_OFFSETS:
            os.pwrite(file.fileno(), block.tobytes(), at)


def test_info_block_forged_without_a_change_is_fine(path):
    """Or the tests of forged ones would prove nothing."""
    forge(path)
    with Device(path) as device:
        assert device.read(PAGE, 0) == b"x" * PAGE


SIZES = ("medium_bytes", "frame_bytes", "line_bytes", "descriptor_bytes", "section_pages", "npfns")


@pytest.mark.parametrize("value", [0, 1, 300, 12289, (1 << 31) + 1, (1 << 32) - 1])
@pytest.mark.parametrize("name", SIZES)
def test_absurd_size_is_refused(path, name, value):
    forge(path, **{name: value})
    refused(path)


@pytest.mark.parametrize("value", [1 << 46, (1 << 46) + PAGE, 1 << 63, (1 << 64) - PAGE])
@pytest.mark.parametrize("name", ["medium_bytes", "npfns"])
def test_huge_size_is_refused(path, name, value):
    forge(path, **{name: value})
    refused(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"descriptor_writes": 0},
        {"descriptor_writes": 9},
        {"descriptor_format": 9},
        {"placement": b"nonsense"},
        {"placement": b""},
        {"leveling": b"\xff\xfe"},
        {"leveling": b"../../start_gap"},
        {"version_major": 9},
        {"extension_version": 0},
        {"features_incompatible": 1},
        # A power of two, but more lines than frames.
        {"line_bytes": 4096, "frame_bytes": 256},
    ],
    ids=str,
)
def test_unknown_choice_is_refused(path, fields):
    forge(path, **fields)
    refused(path)


def leveling(text: str) -> bytes:
    head = '{"leveling":{"gap_frames":32,"randomize":0,"region_frames":2048,'
    return f'{head}{text}}},"placement":{{}}}}'.encode()


def test_parameters_written_out_here_are_those_of_an_image(path):
    """Or the tests of forged ones would prove nothing."""
    forge(path, parameters=leveling('"interval":100'))
    with Device(path) as device:
        assert device.read(PAGE, 0) == b"x" * PAGE


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        b"none",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b"\xff\xff",
        b"[" * 1024,
        b'{"leveling":' * 80,
        b'{"leveling":[]}',
        b'{"leveling":[1,2]}',
        b'{"leveling":7}',
        b'{"leveling":null}',
        b'{"leveling":"ab"}',
        b'{"leveling":{},"placement":{}}',
        leveling('"interval":0'),
        leveling('"interval":-1'),
        leveling('"interval":1.5'),
        leveling('"interval":1e400'),
        leveling('"interval":NaN'),
        leveling('"interval":true'),
        leveling('"interval":null'),
        leveling('"interval":"100"'),
        leveling('"interval":[100]'),
        leveling('"interval":9223372036854775808'),
        leveling('"interval":' + "9" * 700),
        leveling('"interval":100,"gap_frames":0'),
        leveling('"interval":100,"gap_frames":1048576'),
        leveling('"interval":100,"region_frames":3'),
        leveling('"interval":100,"region_frames":0'),
        leveling('"interval":100,"randomize":2'),
        leveling('"interval":100,"strange":1'),
    ],
    ids=lambda data: data[:80].decode(errors="replace"),
)
def test_absurd_parameters_are_refused(path, parameters):
    forge(path, parameters=parameters)
    refused(path)


# ---- the state file ----


class State:
    """The zones of a state file that nobody has open; changes are written back at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path / "state"
        self.plan = image.load_geometry(path)
        self._data = np.frombuffer(self._path.read_bytes(), np.uint8).copy()
        kind = layout.core_dtype(self.plan.placement.STATE, self.plan.leveling.STATE)
        self.core = self._zone("core")[: kind.itemsize].view(kind)
        self.table = self._zone("table").view(np.int64)
        self.ticks = self._zone("ticks").view(np.int64)
        self.pending = self._zone("pending").view(np.int64).reshape(layout.PENDING_SLOTS, -1)

    def _zone(self, name: str) -> np.ndarray:
        at, size = self.plan.zones()[name]
        return self._data[at : at + size]

    def __enter__(self) -> "State":
        return self

    def __exit__(self, *_: object) -> None:
        # Into the same inode: another one would be another end of the session.
        with self._path.open("r+b") as file:
            os.pwrite(file.fileno(), self._data.tobytes(), 0)


def _interval(state):
    state.core["leveling"]["interval"] = 0


def _one_frame_more(state):
    state.core["leveling"]["frames"] += 1


def _placement(state):
    state.core["placement"]["group_shift"] = 60


def _table(value):
    def change(state):
        state.table[0] = value

    return change


def _intent(value, word=0):
    def change(state):
        state.core["intent"][0, word] = value

    return change


def _together(past_the_end, pages):
    """Pages together in flight, the last of which lies so many past the last of the device."""

    def change(state):
        first = state.plan.info.page_count + past_the_end - pages
        state.core["intent"][0, layout.TOGETHER] = first << layout.TOGETHER_SHIFT | pages

    return change


def _unit(cause, first, lines):
    def change(state):
        state.core["unit"][0, :3] = cause, first, lines

    return change


def _unit_past_the_end(state):
    state.core["unit"][0, :3] = 1, state.plan.line_count - 1, 2


def _trim_past_the_end(state):
    state.core["intent"][0, layout.TRIM_END] = state.plan.info.page_count + 1


def _ticks(value):
    def change(state):
        state.ticks[0] = value

    return change


def _pending(slot, page):
    def change(state):
        state.pending[slot, 0] = page + 1

    return change


CHANGES = {
    "leveling's interval 0": _interval,
    "leveling's frames": _one_frame_more,
    "placement": _placement,
    "table 2**62": _table(1 << 62),
    "table -1": _table(-1),
    "table with a turn too many": _table(0xFFFFFFFF),
    "intent 2**40": _intent(1 << 40),
    "intent -1": _intent(-1),
    "intent of pages beyond the end": _together(1 << 40, 3),
    "intent of a page too many": _together(1, 16),
    "intent of more pages than go together": _together(0, layout.TOGETHER_MAX + 1),
    "intent of no pages": _together(0, 0),
    "intent of a trim before the start": _intent(-1, layout.TRIM_FIRST),
    "intent of a trim past the end": _trim_past_the_end,
    "intent of pages before the start": _intent(-1, layout.TOGETHER),
    "unit of an unknown cause": _unit(9, 0, 1),
    "unit of a negative cause": _unit(-1, 0, 1),
    "unit beyond the end": _unit(1, 1 << 40, 1),
    "unit before the start": _unit(1, -1, 1),
    "unit of too many lines": _unit(1, 0, 1 << 40),
    "unit that overflows": _unit(1, (1 << 63) - 1, 2),
    "unit of no lines": _unit(1, 0, 0),
    "unit past the end": _unit_past_the_end,
    "ticks before the start": _ticks(-(1 << 62)),
    "ticks that no store made": _ticks(1 << 40),
    "pending beyond the end": _pending(1, (1 << 40) * layout.PENDING_SLOTS + 1),
    "pending in another page's slot": _pending(1, 2),
    "pending before the start": _pending(1, -7),
}


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_absurd_state_is_refused(path, change, end):
    if end == "killed":
        kill(path)
    with State(path) as state:
        change(state)
    refused(path, DamagedImage)


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_state_written_back_without_a_change_is_fine(path, end):
    """Or the tests of changed ones would prove nothing."""
    if end == "killed":
        kill(path)
    with State(path):
        pass
    with Device(path) as device:
        assert device.recovery == ("killed" if end == "killed" else "")


def test_reader_after_a_power_cut_does_not_mind_ticks_that_cannot_be(path):
    """They are not in the journal, and of the state file a cut leaves any mixture."""
    kill(path)
    with State(path) as state:
        _ticks(-1)(state)
    lose_cache(path)
    with Device(path, read_only=True) as device:
        assert device.recovery == "power cut" and device.read(PAGE, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("count", [0, 100, layout.ZONE_BYTES, 3 * layout.ZONE_BYTES])
def test_short_state_file_is_refused_by_a_reader(path, count):
    os.truncate(path / "state", count)
    with pytest.raises(PmemError) as caught:
        Device(path, read_only=True)
    assert "\n" not in str(caught.value)


def test_short_state_file_of_a_closed_image_is_refused_until_it_is_repaired(path):
    os.truncate(path / "state", 100)
    with pytest.raises(DamagedImage, match="state: it is incomplete, and the last session was closed"):
        Device(path)
    assert check(path, repair=True).counts == {Kind.STATE_LOST: 1}
    with Device(path) as device:
        assert device.recovery == ""
        assert device.read(PAGE, 0) == b"x" * PAGE


# ---- the journal ----


@pytest.mark.parametrize("data", [b"", b"x" * 8192, bytes(8192)])
def test_journal_that_is_none_is_refused(path, data):
    (path / "journal" / "data.mdb").write_bytes(data)
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda journal: journal.checkpoint(b"short", {}, {}),
        lambda journal: journal.checkpoint(*_checkpoint(journal, (1 << 62).to_bytes(8, "little")), {}),
        lambda journal: journal.checkpoint(*_checkpoint(journal, b""), {}),
        lambda journal: journal.put_sections({1: b"too many"}),
    ],
    ids=["core", "table word", "table", "sections"],
)
def test_absurd_journal_is_refused_after_a_power_cut(path, change):
    journal = Journal(path / "journal")
    change(journal)
    journal.close()
    lose_cache(path)
    refused(path, DamagedImage)


def _checkpoint(journal: Journal, table: bytes) -> tuple[bytes, dict[int, bytes]]:
    return journal.load_checkpoint()[0], {0: table}


# ---- links ----


@pytest.fixture
def victim(tmp_path):
    """A file outside of the image; unchanged at the end."""
    file = tmp_path / "victim"
    file.write_bytes(b"precious" * 1000)
    yield file
    assert file.read_bytes() == b"precious" * 1000


def test_lock_that_is_a_link_is_refused(path, victim):
    (path / "lock").unlink()
    (path / "lock").symlink_to(victim)
    with pytest.raises(PmemError):
        Device(path)
    Device(path, read_only=True).close()  # a reader has no use for it


def test_lock_that_is_a_link_to_nothing_makes_no_file(path, tmp_path):
    (path / "lock").unlink()
    (path / "lock").symlink_to(tmp_path / "fresh")
    with pytest.raises(PmemError):
        Device(path)
    assert not (tmp_path / "fresh").exists()


def test_new_state_does_not_follow_a_link(path, victim):
    (path / "state.new").symlink_to(victim)
    lose_cache(path)
    with Device(path) as device:
        assert device.recovery == "power cut"
        assert device.read(PAGE, 0) == b"x" * PAGE
    assert not (path / "state.new").is_symlink()


def test_what_fills_the_zone_of_ticks_does_not_matter(tmp_path):
    path = tmp_path / "fixed.pmem"
    image.create(path, geometry.plan(16 * MIB, leveling_name="none"))
    with State(path) as state:
        _ticks(-1)(state)
    Device(path).close()


# ---- what only looks ----


@pytest.mark.parametrize("part", ["placement", "leveling", "table"])
@pytest.mark.parametrize("name", family.modules)
def test_figures_of_a_state_that_cannot_be_are_refused(tmp_path, name, part):
    """Compiled code goes by these records and this table."""
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(16 * MIB, leveling_name=name))
    plan = image.load_geometry(path)
    if part == "table" and not len(plan.table):
        return
    kind = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    at = plan.zones()["core"][0] + kind.fields[part][1] if part != "table" else plan.zones()["table"][0]
    with (path / "state").open("r+b") as file:
        os.pwrite(file.fileno(), b"\x7f" * 8, at)
    for look in (stats.collect, snapshot.look):
        with pytest.raises(DamagedImage, match=rf"state: an impossible value in the {part if part != 'table' else ''}"):
            look(path)


def test_damaged_event_hides_no_other_and_breaks_no_invariant(path):
    """What is damaged may have told of a power cut, so a sum that differs is no fault."""
    kill(path)
    journal = Journal(path / "journal")
    damage_row(journal, b"events")
    count = len(journal.events([]))
    journal.close()
    found = snapshot.look(path)
    assert (len(found.events), found.damaged, found.cut, found.retired) == (count, 1, True, 0)
