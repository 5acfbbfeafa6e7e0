# SPDX-License-Identifier: MIT
"""Check finds what was done to an image, and nothing where nothing was; repair does what it says."""

import contextlib
import hashlib
import os
import random
import shutil
import time

import numpy as np
import pytest
from conftest import damage_row, one_worker
from independent_reader import Reader
from naive import crc32c_raw

from pmem_core import checkscan, datapath, geometry, host, image, infoblock, layout, statefile
from pmem_core.check import Kind, Report, Severity, check, probe
from pmem_core.device import Device
from pmem_core.errors import BadData, DamagedImage, ImageBusy, NotAnImage, UnsupportedImage
from pmem_core.journal import Journal

PAGE = 4096
SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
GAP = {"interval": 3, "region_frames": 64, "gap_frames": 4}
PLANS = {
    "interleaved": {"placement_name": "interleaved", "leveling_name": "start_gap", "parameters": GAP},
    "linear": {"placement_name": "linear", "leveling_name": "none"},
    "shuffled": {
        "placement_name": "linear",
        "leveling_name": "start_gap",
        "parameters": {**GAP, "randomize": 1},
        "descriptor_writes": "coalesced",
        "frame_bytes": 256,
    },
    "pfn": {"placement_name": "none", "leveling_name": "start_gap", "parameters": GAP},
}


class Made:
    """An image and the bytes a reader should get."""

    def __init__(self, path, size=4 << 20, **plan):
        self.path, self.plan = path, geometry.plan(size, **plan)
        image.create(path, self.plan)
        self.bytes = bytearray(self.plan.device_bytes)

    def use(self, device, random_, requests=60, most=30_000):
        """Write, trim and zero here and there; whole pages stay free at the end of the device."""
        end = len(self.bytes) * 3 // 4 // PAGE * PAGE
        for _ in range(requests):
            what = random_.random()
            at = random_.randrange(end)
            count = min(random_.randrange(1, most), end - at)
            if what < 0.75:
                data = random_.randbytes(count)
                device.write(data, at)
                self.bytes[at : at + count] = data
            elif what < 0.85 and self.plan.has_descriptors:
                device.trim(count, at)
                first, last = -(-at // PAGE) * PAGE, (at + count) // PAGE * PAGE
                self.bytes[first:last] = bytes(max(0, last - first))
            elif what < 0.95:
                device.zero(count, at, may_trim=what < 0.9)
                self.bytes[at : at + count] = bytes(count)
            else:
                device.flush()

    def copy(self, name):
        """A copy of the image, to be damaged; holes stay holes."""
        other = object.__new__(Made)
        other.path, other.plan, other.bytes = self.path.with_name(name), self.plan, bytearray(self.bytes)
        shutil.rmtree(other.path, ignore_errors=True)
        (other.path / "journal").mkdir(parents=True)
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                target = other.path / file.relative_to(self.path)
                with file.open("rb") as source, target.open("wb") as sink:
                    os.truncate(target, file.stat().st_size)
                    for first, end in host.data_ranges(source.fileno(), file.stat().st_size):
                        sink.seek(first)
                        sink.write(os.pread(source.fileno(), end - first, first))
        return other

    def offsets(self, page):
        """Where in `media` the data and the descriptor of a page are."""
        with Device(self.path, read_only=True) as device:
            handle = device.handle
            found = int(checkscan.page_offset(handle, page)), int(checkscan.descriptor_offset(handle, page))
            del handle
        return found

    def reads(self):
        """Compare every page; the numbers of those that are refused."""
        refused, differing = self.compare()
        assert not differing
        return refused

    def compare(self):
        """The pages whose reads are refused, and those that are not what they should be."""
        refused, differing = [], []
        with Device(self.path, read_only=True) as device:
            with contextlib.suppress(BadData):
                if device.read(len(self.bytes), 0) == self.bytes:
                    return [], []
            for page in range(self.plan.info.page_count):
                try:
                    if device.read(PAGE, page * PAGE) != self.bytes[page * PAGE : (page + 1) * PAGE]:
                        differing.append(page)
                except BadData:
                    refused.append(page)
        return refused, differing


def make(tmp_path, seed, name="a.pmem", **plan):
    """A small image with random content, closed."""
    made = Made(tmp_path / name, **plan)
    random_ = random.Random(seed)
    for _ in range(2):
        with Device(made.path) as device:
            made.use(device, random_)
    assert not check(made.path).findings
    return made


def a_page(made, holds=True):
    """A page in use that holds data, or one that does not."""
    with Device(made.path, read_only=True) as device:
        for page in range(3, made.plan.info.page_count):
            _, _, data = device.extents(PAGE, page * PAGE, one=True)[0]
            if data == holds:
                return page
    raise AssertionError("no such page")


def flip(path, at, bit=0):
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)


def put(path, at, data):
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, at)


def kinds(report):
    return set(report.counts)


def hashes(path):
    """A digest of every byte of the image that check must not change."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("lock", "lock.mdb")
    }


def lose_page_cache(path):
    """Make the journal believe that the image was last open before a reboot."""
    journal = Journal(path / "journal")
    journal.begin_session({**host.witness(path), "boot": "another"})
    journal.close()


def readings(made):
    """What a server's reads find, page by page; None: refused."""
    found = []
    with Device(made.path) as device:
        for page in range(made.plan.info.page_count):
            try:
                found.append(device.read(PAGE, page * PAGE))
            except BadData:
                found.append(None)
    return found


def repaired(made, *expected, lost=()):
    """Check finds the kinds expected, repair mends them, and then all is well but for the pages that are lost."""
    before = hashes(made.path)
    found = check(made.path)
    assert kinds(found) == set(expected)
    assert hashes(made.path) == before
    mended = check(made.path, repair=True)
    assert set(expected) <= kinds(mended)
    assert mended.repairs == mended.counts, [str(finding) for finding in mended.findings]
    after = check(made.path)
    assert after.clean, [str(finding) for finding in after.findings]
    assert [finding.page for finding in after.findings] == list(lost)
    assert kinds(after) <= {Kind.CONDEMNED}
    assert made.reads() == list(lost)
    return found, mended


# ---- nothing was done to it ----

# Each pair of policies is compiled anew: every value with every other value of one column, not all products; where
# bounds are checked, one.
EVERY = [
    pytest.param(
        "interleaved",
        "start_gap",
        "coalesced",
        256,
        marks=[pytest.mark.contract, one_worker("interleaved", "start_gap")],
    ),
    pytest.param("interleaved", "start_gap", "each", 4096, marks=one_worker("interleaved", "start_gap")),
    pytest.param("interleaved", "start_gap", "coalesced", 65536, marks=one_worker("interleaved", "start_gap")),
    pytest.param("interleaved", "none", "coalesced", 256, marks=one_worker("interleaved", "none")),
    pytest.param("linear", "none", "each", 4096, marks=one_worker("linear", "none")),
    pytest.param("linear", "start_gap", "each", 65536, marks=one_worker("linear", "start_gap")),
    pytest.param("none", "start_gap", "each", 65536, marks=one_worker("none", "start_gap")),
]


@pytest.mark.parametrize(("placement", "leveling", "writes", "frame"), EVERY)
def test_image_in_use_stays_clean(tmp_path, placement, leveling, writes, frame):
    parameters = {"interval": 2, "region_frames": 8, "gap_frames": 2} if leveling == "start_gap" else {}
    plan = {"placement_name": placement, "leveling_name": leveling, "descriptor_writes": writes, "frame_bytes": frame}
    made = Made(tmp_path / "a.pmem", **plan, parameters=parameters)
    assert check(made.path).findings == []
    random_ = random.Random(f"{SEED} {placement} {leveling} {writes} {frame}")
    for _ in range(2):
        with Device(made.path) as device:
            made.use(device, random_, requests=15)
        before = hashes(made.path)
        report = check(made.path)
        assert report.clean and not report.findings, [str(finding) for finding in report.findings]
        assert hashes(made.path) == before
    report = check(made.path, repair=True)
    assert report.clean and not report.findings and not report.repairs
    assert made.reads() == []


@pytest.mark.parametrize("end", ["killed", "power cut"])
@pytest.mark.parametrize("name", PLANS)
def test_image_that_was_not_closed_is_clean(tmp_path, name, end):
    made = make(tmp_path, SEED, **PLANS[name])
    device = Device(made.path)
    made.use(device, random.Random(SEED + 1))
    device.flush()
    made.use(device, random.Random(SEED + 2), requests=5)
    device.abandon()
    if end == "power cut":
        lose_page_cache(made.path)
    before = hashes(made.path)
    report = check(made.path)
    assert report.clean, [str(finding) for finding in report.findings]
    assert kinds(report) <= {Kind.WEAR_UNCHECKPOINTED, Kind.UNSETTLED, Kind.LEAKED_DATA}
    assert "not closed" in report.session and ("opening goes back" in report.session) == (end == "power cut")
    assert hashes(made.path) == before
    report = check(made.path, repair=True)
    assert report.clean and report.repairs == report.counts
    report = check(made.path)
    assert report.clean and not report.findings and report.session == "closed properly"
    if end == "killed":
        assert made.reads() == []
    else:
        with Device(made.path, read_only=True) as device:
            assert not np.any(device.mapping.sections & layout.SECTION_SUSPECT)


def test_wear_after_a_power_cut_is_noted_until_it_is_recorded(tmp_path):
    made = make(tmp_path, SEED, **PLANS["linear"])
    device = Device(made.path)
    made.use(device, random.Random(SEED))
    device.abandon()
    lose_page_cache(made.path)
    first = check(made.path)
    assert kinds(first) >= {Kind.WEAR_UNCHECKPOINTED}
    Device(made.path).close()  # recovers; the surplus stays
    second = check(made.path)
    assert second.clean and Kind.WEAR_UNCHECKPOINTED in kinds(second)
    check(made.path, repair=True)
    with Device(made.path, read_only=True) as device:
        tally = device.mapping.core["tally"][0].copy()
    assert tally["uncheckpointed"] > 0
    counters = np.fromfile(made.path / "wear", "<u4")
    assert counters.sum(dtype=np.int64) == tally["worn"].sum() + tally["uncheckpointed"]
    assert not check(made.path).findings
    # From here on a surplus has no excuse.
    flip(made.path / "wear", 4 * 5, 3)
    assert Kind.WEAR_SUM in kinds(check(made.path))


def test_image_in_use_is_refused(tmp_path):
    made = make(tmp_path, SEED, **PLANS["linear"])
    with Device(made.path), pytest.raises(ImageBusy, match=r"in use by pid .*\): stop it first"):
        check(made.path)
    with Device(made.path, read_only=True):
        assert check(made.path).clean
        with pytest.raises(ImageBusy):
            check(made.path, repair=True)
    assert check(made.path, repair=True).clean


def test_image_in_use_by_another_user_is_theirs_to_stop(tmp_path, monkeypatch):
    made = make(tmp_path, SEED, **PLANS["linear"])
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with Device(made.path), pytest.raises(ImageBusy, match="another user's: that user has to stop it"):
        check(made.path)


def test_sparse_image_costs_what_is_in_it(tmp_path):
    made = Made(tmp_path / "a.pmem", size=4 << 30)
    made.bytes = bytearray(0)
    pages = made.plan.info.page_count
    with Device(made.path) as device:
        device.write(b"x" * PAGE, (pages // 2) * PAGE)
    report = check(made.path)
    assert report.clean and not report.findings
    assert (report.checked["sections_in_use"], report.checked["pages_with_data"]) == (1, 1)


# ---- info blocks and files ----


@pytest.mark.parametrize("copy", [0, 1])
def test_torn_info_block_is_written_again(tmp_path, copy):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    put(made.path / "media", copy * 4096 + 512, bytes(3584))
    found, _ = repaired(made, Kind.INFO_TORN)
    assert found.findings[0].offset == copy * 4096
    data = (made.path / "media").read_bytes()[:8192]
    assert infoblock.unpack(data[:4096]) and data[:4096] == data[4096:]


def test_newer_info_block_replaces_the_older(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    info = infoblock.read(made.path / "media")
    newer = geometry.dataclasses.replace(info, generation=7)
    infoblock.write(made.path / "media", newer, copies=(1,))
    found, _ = repaired(made, Kind.INFO_DIFFERS)
    assert found.findings[0].offset == 0
    assert infoblock.read(made.path / "media").generation == 7


def test_without_an_info_block_nothing_is_checked(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    flip(made.path / "media", 60)
    flip(made.path / "media", 4096 + 60)
    for repair in (False, True):
        before = hashes(made.path)
        report = check(made.path, repair=repair)
        assert kinds(report) == {Kind.INFO_LOST} and not report.clean and report.unchecked
        assert hashes(made.path) == before


def test_medium_cut_short_is_left_alone(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    os.truncate(made.path / "media", (4 << 20) - 4096)
    for repair in (False, True):
        report = check(made.path, repair=repair)
        assert kinds(report) == {Kind.MEDIA_SHORT} and report.unchecked
    os.truncate(made.path / "media", (4 << 20) + 4096)
    assert kinds(check(made.path)) == {Kind.MEDIA_LONG}


@pytest.mark.parametrize("how", ["missing", "short"])
def test_lost_wear_file_is_made_anew(tmp_path, how):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    with Device(made.path, read_only=True) as device:
        worn = int(device.mapping.core["tally"][0]["worn"].sum())
    if how == "missing":
        (made.path / "wear").unlink()
    else:
        os.truncate(made.path / "wear", 4000)
    _, mended = repaired(made, Kind.WEAR_LOST)
    assert "line writes are forgotten" in str(mended.findings[0])
    counters = np.fromfile(made.path / "wear", "<u4")
    with Device(made.path, read_only=True) as device:
        tally = device.mapping.core["tally"][0].copy()
    assert tally["worn"].sum() == worn
    assert tally["uncheckpointed"] == counters.sum(dtype=np.int64) - worn < 0
    assert tally["hottest"] == counters.max()


def test_strange_files_are_noted(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    (made.path / "notes.txt").write_text("mine")
    (made.path / "journal" / "old").write_text("mine")
    report = check(made.path)
    assert report.clean and [finding.subject for finding in report.findings] == ["notes.txt", "journal/old"]


def test_other_folders_and_newer_journals_are_refused(tmp_path, monkeypatch):
    with pytest.raises(NotAnImage):
        check(tmp_path)
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    journal = Journal(made.path / "journal")
    with journal._write() as transaction:
        journal._put_meta(transaction, "schema", 99)
    journal.close()
    with pytest.raises(UnsupportedImage, match="journal schema 99"):
        check(made.path, repair=True)


# ---- state and journal ----


def core_at(made, *names):
    """Where in the state file a field of the core record is."""
    at, kind = made.plan.zones()["core"][0], layout.core_dtype(made.plan.placement.STATE, made.plan.leveling.STATE)
    for name in names:
        kind, offset = kind.fields[name][:2]
        at += offset
    return at


@pytest.mark.parametrize("name", ["interleaved", "linear", "shuffled"])
@pytest.mark.parametrize("how", ["missing", "short", "head"])
def test_lost_state_is_taken_from_the_journal(tmp_path, name, how):
    made = make(tmp_path, SEED, **PLANS[name])
    if how == "missing":
        (made.path / "state").unlink()
    elif how == "short":
        os.truncate(made.path / "state", 4096)
    else:
        put(made.path / "state", 0, random.Random(SEED).randbytes(layout.HEAD.itemsize))
    repaired(made, Kind.STATE_LOST)


def killed(made):
    """Write some of the first pages of an image and let go of it as a kill does; what each of them held before."""
    before = bytes(made.bytes)
    device, random_ = Device(made.path), random.Random(SEED)
    for page in range(12):
        data = random_.randbytes(PAGE)
        device.write(data, page * PAGE)
        made.bytes[page * PAGE : (page + 1) * PAGE] = data
    device.abandon()
    return [before[at : at + PAGE] for at in range(0, 12 * PAGE, PAGE)]


@pytest.mark.parametrize("at", layout.HEAD.fields, ids=str)
@pytest.mark.parametrize("name", ["interleaved", "shuffled"])
def test_state_of_a_killed_image_is_believed_though_its_head_is_damaged(tmp_path, name, at):
    """The journal is behind it: to go back to that would lose writes that were answered."""
    made = make(tmp_path, SEED, **PLANS[name])
    killed(made)
    flip(made.path / "state", layout.HEAD.fields[at][1], 1)
    for read_only in (False, True):
        with pytest.raises(DamagedImage, match="--repair"):
            Device(made.path, read_only=read_only)
    repaired(made, Kind.STATE_HEAD)


@pytest.mark.parametrize("name", ["interleaved", "shuffled"])
def test_state_of_a_killed_image_lost_costs_no_page(tmp_path, name):
    """What the journal's map leads to was not flushed, so it may be old or new, and is no damage."""
    made = make(tmp_path, SEED, **PLANS[name])
    before = killed(made)
    (made.path / "state").unlink()
    mended = check(made.path, repair=True)
    assert not mended.has(Kind.DATA_DAMAGED, Kind.DESCRIPTOR_DAMAGED), [str(finding) for finding in mended.findings]
    assert check(made.path).clean
    refused, differing = made.compare()
    assert not refused
    with Device(made.path, read_only=True) as device:
        for page in differing:
            now, new = device.read(PAGE, page * PAGE), made.bytes[page * PAGE : (page + 1) * PAGE]
            for at in range(0, PAGE, 256):
                part = slice(at, at + 256)
                assert now[part] in (before[page][part], new[part], bytes(256)), f"seed {SEED}: page {page} at {at}"


def test_state_that_cannot_be_right_is_taken_from_the_journal(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    faults = {
        "the leveling's parameters": (core_at(made, "leveling", "frames"), 3),
        "the placement's parameters": (core_at(made, "placement", "group_shift"), 1),
        "negative totals: writes": (core_at(made, "tally", "writes") + 7, 7),
        "something in flight": (core_at(made, "intent") + 1, 0),
        "unknown bits of sections": (made.plan.zones()["sections"][0], 6),
        "ticks that no store made": (made.plan.zones()["ticks"][0] + 6, 0),
        "a table that cannot be": (made.plan.zones()["table"][0] + 6, 4),
    }
    for number, (words, (at, bit)) in enumerate(faults.items()):
        other = made.copy(f"{number}.pmem")
        flip(other.path / "state", at, bit)
        found, _ = repaired(other, Kind.STATE_DAMAGED)
        assert words in found.findings[0].detail


@pytest.mark.usefixtures("same_boot")
@pytest.mark.parametrize(("name", "field"), [("swapped", "swap_key"), ("shuffled", "interval")])
def test_killed_images_state_is_mended_and_not_replaced(tmp_path, name, field):
    """The journal is behind it, and by that map some pages would read as they were, without a word."""
    swapped = {"leveling_name": "table_swap", "parameters": {"interval": 1}, "descriptor_writes": "coalesced"}
    made, random_ = make(tmp_path, SEED, **PLANS.get(name, swapped)), random.Random(SEED)
    device = Device(made.path)
    for _ in range(300):
        page, data = random_.randrange(40), random_.randbytes(PAGE)
        device.write(data, page * PAGE)
        made.bytes[page * PAGE : (page + 1) * PAGE] = data
    device.abandon()
    flip(made.path / "state", core_at(made, "leveling", field), 2)
    mended = check(made.path, repair=True)
    assert mended.repairs[Kind.STATE_DAMAGED] == 1 and check(made.path).clean
    assert made.reads() == [], f"seed {SEED}"


@pytest.mark.usefixtures("same_boot")
def test_repair_of_a_lost_journal_is_not_forgotten_with_its_records(tmp_path):
    """Else a later repair takes the map for a doubtful one, and gives up what it could have mended."""
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    shutil.rmtree(made.path / "journal")
    assert check(made.path, repair=True).repairs[Kind.JOURNAL_LOST] == 1
    device = Device(made.path)
    device.write(made.bytes[: 20 * PAGE], 0)
    device.flush()
    flushed = bytes(made.bytes)
    for page in range(10):
        made.bytes[page * PAGE : (page + 1) * PAGE] = bytes([page + 1]) * PAGE
        device.write(bytes([page + 1]) * PAGE, page * PAGE)
    device.abandon()
    lose_page_cache(made.path)
    put(made.path / "media", made.offsets(15)[0], b"newer")
    made.bytes[15 * PAGE : 15 * PAGE + 5] = b"newer"
    journal = Journal(made.path / "journal")
    damage_row(journal, b"events", b'"repaired"')
    journal.close()
    repairs = check(made.path, repair=True).repairs
    assert repairs[Kind.JOURNAL_RECORDS] == 1 and repairs[Kind.UNSETTLED] >= 1, f"seed {SEED}"
    refused, differing = made.compare()
    assert not refused, f"seed {SEED}"
    with Device(made.path, read_only=True) as device:
        for page in differing:  # its frame moved after the last checkpoint, and a cut goes back to where it was
            old = flushed[page * PAGE : (page + 1) * PAGE]
            assert page < 10 and device.read(PAGE, page * PAGE) == old, f"seed {SEED}: page {page}"


def test_events_stay_in_order_though_the_clock_is_set_back(tmp_path, monkeypatch):
    made = make(tmp_path, SEED, **PLANS["linear"])
    journal, now = Journal(made.path / "journal"), time.time_ns()
    for number, moment in enumerate((now + 10**15, now, now - 10**15)):
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
        journal.event({"event": "trial", "number": number})
    assert [event["number"] for event in journal.events() if event["event"] == "trial"] == [0, 1, 2]
    journal.close()


def test_pending_descriptors_that_cannot_be_are_dropped(tmp_path):
    made = make(tmp_path, SEED, **PLANS["shuffled"])
    put(made.path / "state", made.plan.zones()["pending"][0], (2**40).to_bytes(8, "little"))
    repaired(made, Kind.STATE_DAMAGED)


def differing(made, change):
    """Let state and journal differ: `change` is applied to the journal's core and table."""
    journal = Journal(made.path / "journal")
    core_bytes, table_bytes = journal.load_checkpoint()
    core = np.frombuffer(core_bytes, layout.core_dtype(made.plan.placement.STATE, made.plan.leveling.STATE)).copy()
    table, sections = (
        np.frombuffer(table_bytes, np.int64).copy(),
        np.frombuffer(journal.load_sections(), np.uint8).copy(),
    )
    change(core, table, sections)
    rows = dict(statefile.section_rows(sections))
    journal.checkpoint(core.tobytes(), dict(statefile.table_chunks(table)), rows)
    journal.close()


def turn(table):
    """Another map that is one-to-one: a region turned by one."""
    table[0] ^= 1


def test_map_that_the_descriptors_agree_with_is_kept(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    journal_wrong = made.copy("j.pmem")
    differing(journal_wrong, lambda core, table, sections: turn(table))
    found, mended = repaired(journal_wrong, Kind.STATE_DIFFERS)
    assert found.findings[0].detail == "table"
    assert "kept what the state" in str(mended.findings[0])
    state_wrong = made.copy("s.pmem")
    at = made.plan.zones()["table"][0]
    flip(state_wrong.path / "state", at)
    _, mended = repaired(state_wrong, Kind.STATE_DIFFERS)
    assert "kept what the journal" in str(mended.findings[0])


def test_totals_that_the_counters_agree_with_are_kept(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])

    def more(core, table, sections):
        core["tally"]["worn"][0, 0] += 5

    differing(made, more)
    _, mended = repaired(made, Kind.STATE_DIFFERS)
    assert "kept what the state" in str(mended.findings[0])
    other = make(tmp_path, SEED, "b.pmem", **PLANS["interleaved"])
    flip(other.path / "state", core_at(other, "tally", "worn") + 1)
    _, mended = repaired(other, Kind.STATE_DIFFERS)
    assert "kept what the journal" in str(mended.findings[0])


def test_section_that_one_of_the_two_knows_is_in_use(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    flip(made.path / "state", made.plan.zones()["sections"][0])  # TOUCHED
    repaired(made, Kind.STATE_DIFFERS)
    flip(made.path / "state", made.plan.zones()["sections"][0], 2)  # SUSPECT
    repaired(made, Kind.STATE_DIFFERS)


@pytest.mark.parametrize("name", PLANS)
def test_data_in_an_untouched_section_is_found(tmp_path, name):
    made = make(tmp_path, SEED, **PLANS[name])
    put(made.path / "state", made.plan.zones()["sections"][0], b"\0")
    differing(made, lambda core, table, sections: sections.fill(0))
    found, _ = repaired(made, Kind.SECTION_UNMARKED)
    assert "section 0" in found.findings[0].detail


@pytest.mark.parametrize("name", ["interleaved", "linear", "shuffled"])
@pytest.mark.parametrize("how", ["missing", "foreign", "garbage", "short", "core", "table"])
def test_journal_is_made_anew_from_the_state(tmp_path, name, how):
    made = make(tmp_path, SEED, **PLANS[name])
    data = made.path / "journal" / "data.mdb"
    kind = Kind.JOURNAL_DAMAGED
    events = []
    if how == "missing":
        shutil.rmtree(made.path / "journal")
        kind = Kind.JOURNAL_LOST
    elif how == "foreign":
        other = make(tmp_path, SEED + 1, "b.pmem", **PLANS[name])
        shutil.copy(other.path / "journal" / "data.mdb", data)
        kind = Kind.JOURNAL_FOREIGN
    elif how == "garbage":
        put(data, 0, random.Random(SEED).randbytes(20_000))
    elif how == "short":
        os.truncate(data, 12_000)
    else:
        journal = Journal(made.path / "journal")
        core = journal.load_checkpoint()[0]
        events = journal.events()
        journal.checkpoint(core[:-8] if how == "core" else core, {} if how == "core" else {77: bytes(16)}, {})
        journal.close()
    found = check(made.path)
    assert kinds(found) == {kind}
    mended = check(made.path, repair=True)
    assert mended.repairs[kind] == 1
    after = check(made.path)
    assert after.clean and kinds(after) <= {Kind.STRANGE_FILE}
    assert [finding.subject for finding in after.findings] == ([] if how == "missing" else ["journal.damaged.0"])
    assert made.reads() == []
    journal = Journal(made.path / "journal")
    kept = journal.events()
    journal.close()
    assert kept[: len(events)] == events
    assert [event["event"] for event in kept][-2:] == ["repaired", "closed"]
    assert [event for event in kept if event["event"] == "repaired"][-1]["counts"] == {kind.word: 1}


def records(journal):
    """What people read of a journal: {database: [(number, record)]}."""
    events, history = journal.events([]), journal.history([])
    numbered = {
        "events": [(row["time_ns"], row) for row in events],
        "history": [(row["time_ns"], row) for row in history],
    }
    return numbered | {"retired": list(journal.retired([]).items())}


@pytest.mark.usefixtures("same_boot")
@pytest.mark.parametrize("database", ["events", "history", "retired"])
@pytest.mark.parametrize("end", ["closed", "killed", "cut"])
def test_damaged_record_of_the_past_costs_only_itself(tmp_path, end, database):
    """Opening needs none of them; a journal made anew would not know of a cut, nor what it made suspect."""
    made = make(tmp_path, SEED, **PLANS["shuffled"])
    device = Device(made.path)
    for page in (1000, 1001):
        device.journal.retire(page, {"why": "a test"})
    device.sample()
    made.use(device, random.Random(SEED + 1))
    if end == "closed":
        device.close()
    else:
        device.flush()
        device.checkpoint()
        for page in range(12):
            device.write(bytes([page]) * PAGE, page * PAGE)
        device.abandon()
    if end == "cut":
        lose_page_cache(made.path)
    before = readings(made.copy("opened.pmem"))
    journal = Journal(made.path / "journal")
    session, rows = journal.session, records(journal)
    damage_row(journal, database.encode())
    with pytest.raises(DamagedImage, match="checksum"):
        getattr(journal, database)()
    journal.close()
    assert readings(made.copy("opened.pmem")) == before, f"seed {SEED}"
    found, mended = check(made.path), check(made.path, repair=True)
    for report in (found, mended):
        assert not report.has(*(kind for kind in Kind if kind.severity is Severity.DAMAGE)), f"seed {SEED}"
        assert [finding.detail for finding in report.of(Kind.JOURNAL_RECORDS)] == [f"1 of {database}"]
    assert mended.repairs[Kind.JOURNAL_RECORDS] == 1 and not found.clean and check(made.path).clean
    assert readings(made) == before, f"seed {SEED}"
    journal = Journal(made.path / "journal")
    now = records(journal)
    journal.close()
    assert session["open"] == (end != "closed")
    for name, held in rows.items():
        kept = held[name == database :]
        assert now[name][: len(kept)] == kept
    assert "remade" not in [event["event"] for _, event in now["events"]]


def test_state_and_journal_both_lost(tmp_path):
    made = make(tmp_path, SEED, **PLANS["linear"])
    fixed = made.copy("fixed.pmem")
    for path in (made.path, fixed.path):
        (path / "state").unlink()
        shutil.rmtree(path / "journal")
    repaired(fixed, Kind.STATE_LOST, Kind.JOURNAL_LOST, Kind.WEAR_SUM, Kind.HOTTEST_WRONG)
    moved = make(tmp_path, SEED, "moved.pmem", **PLANS["interleaved"])
    (moved.path / "state").unlink()
    shutil.rmtree(moved.path / "journal")
    for repair in (False, True):
        report = check(moved.path, repair=repair)
        assert kinds(report) == {Kind.STATE_LOST, Kind.JOURNAL_LOST, Kind.MAP_LOST}
        assert not report.repairs and report.unchecked


def test_killed_image_with_a_damaged_journal_keeps_everything(tmp_path):
    made = make(tmp_path, SEED, **PLANS["shuffled"])
    device = Device(made.path)
    made.use(device, random.Random(SEED + 1))
    device.abandon()
    put(made.path / "journal" / "data.mdb", 0, bytes(20_000))
    assert kinds(check(made.path)) == {Kind.JOURNAL_DAMAGED}
    check(made.path, repair=True)
    assert check(made.path).clean
    assert made.reads() == []


# ---- wear ----


def test_wrong_counter_is_found_and_noted(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    flip(made.path / "wear", 4 * 100 + 3, 2)
    repaired(made, Kind.WEAR_SUM, Kind.HOTTEST_WRONG)
    with Device(made.path, read_only=True) as device:
        assert abs(int(device.mapping.core["tally"][0]["uncheckpointed"])) == 1 << 26


def test_wrong_totals_in_both_places_are_noted(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])

    def fewer(core, table, sections):
        core["tally"]["worn"][0, 2] -= 1000
        core["tally"]["hottest"][0] += 1

    differing(made, fewer)
    (made.path / "state").unlink()
    repaired(made, Kind.STATE_LOST, Kind.WEAR_SUM, Kind.HOTTEST_WRONG)


# ---- descriptors and data ----

WITH_DESCRIPTORS = ["interleaved", "linear", "shuffled"]


@pytest.mark.parametrize("name", WITH_DESCRIPTORS)
def test_damaged_data_is_named_and_refused_until_written_whole(tmp_path, name):
    made = make(tmp_path, SEED, **PLANS[name])
    page = a_page(made)
    at, _ = made.offsets(page)
    flip(made.path / "media", at + 200, 5)
    found, _ = repaired(made, Kind.DATA_DAMAGED, lost=[page])
    assert [(f.subject, f.page, f.offset) for f in found.findings] == [("media", page, at)]
    journal = Journal(made.path / "journal")
    assert journal.retired()[page]["offset"] == at
    assert {"event": "repaired", "counts": {"data_damaged": 1}}.items() <= journal.events()[-2].items()
    journal.close()
    with Device(made.path) as device:
        with pytest.raises(BadData, match=f"page {page}"):
            device.write(b"part", page * PAGE + 9)
        made.bytes[page * PAGE : (page + 1) * PAGE] = b"n" * PAGE
        device.write(b"n" * PAGE, page * PAGE)
    assert made.reads() == [] and not check(made.path).findings


@pytest.mark.parametrize("name", WITH_DESCRIPTORS)
@pytest.mark.parametrize("holds", [True, False])
def test_damaged_descriptor_is_rebuilt(tmp_path, name, holds):
    made = make(tmp_path, SEED, **PLANS[name])
    page = a_page(made, holds)
    at, descriptor_at = made.offsets(page)
    flip(made.path / "media", descriptor_at + 9, 1)
    found, mended = repaired(made, Kind.DESCRIPTOR_DAMAGED)
    assert [(f.page, f.offset, f.detail) for f in found.findings] == [(page, at, f"the descriptor at {descriptor_at}")]
    assert "could not be verified" in mended.findings[0].repaired


def test_part_of_a_page_whose_descriptor_was_torn_makes_that_anew(tmp_path):
    """Nothing of it can be believed."""
    made = make(tmp_path, SEED, leveling_name="none")
    page = a_page(made)
    device = Device(made.path)
    device.write(b"x" * PAGE, page * PAGE)
    device.abandon()
    lose_page_cache(made.path)
    put(made.path / "media", made.offsets(page)[1] + 12, bytes([99]))  # how often it was written
    with Device(made.path) as device:
        device.write(b"part", page * PAGE + 9)
        assert device.read(PAGE, page * PAGE) == b"x" * 9 + b"part" + b"x" * (PAGE - 13)
    assert Reader(made.path).descriptor(page)["writes"] == 1


def test_write_that_was_refused_is_not_in_flight(tmp_path):
    """Or the open after a kill would believe the damaged data."""
    made = make(tmp_path, SEED, leveling_name="none")
    page = a_page(made)
    flip(made.path / "media", made.offsets(page)[0])
    device = Device(made.path)
    with pytest.raises(BadData):
        device.write(b"part", page * PAGE + 9)
    device.abandon()
    with Device(made.path) as device:
        assert (device.recovery, device.recovered.pages) == ("killed", range(0))
        with pytest.raises(BadData):
            device.read(PAGE, page * PAGE)


@pytest.fixture
def marked(tmp_path):
    """An image, a page whose descriptor says that it is damaged and nothing else, and where its data is."""
    made = make(tmp_path, SEED, leveling_name="none")
    page = a_page(made)
    at, descriptor_at = made.offsets(page)
    record = np.zeros(1, layout.DESCRIPTOR)
    record["flags"] = layout.PG_ERROR
    record["checksum"] = crc32c_raw(page, record.tobytes())
    put(made.path / "media", descriptor_at, record.tobytes())
    return made, page, at


def test_page_that_is_marked_as_damaged_is_refused_and_named(marked):
    made, page, _ = marked
    assert made.reads() == [page]
    assert [(finding.kind, finding.page) for finding in check(made.path).findings] == [(Kind.CONDEMNED, page)]
    with Device(made.path) as device:
        assert device.extents(PAGE, page * PAGE) == [(page * PAGE, PAGE, True)]


def test_page_that_is_marked_as_damaged_can_be_given_back(marked):
    made, page, _ = marked
    with Device(made.path) as device:
        device.trim(PAGE, page * PAGE)
        assert device.read(PAGE, page * PAGE) == bytes(PAGE)


@pytest.mark.parametrize("end", ["killed in a trim", "power cut"])
def test_what_is_left_of_a_page_that_is_marked_as_damaged_is_not_taken_for_free(marked, end):
    made, page, at = marked
    device = Device(made.path)
    left = bytes(device.mapping.media[at : at + PAGE])
    device.write(b"x", 0)
    if end == "killed in a trim":
        device.mapping.core["intent"][0, layout.TRIM_FIRST] = page
        device.mapping.core["intent"][0, layout.TRIM_END] = page + 1
    device.abandon()
    if end == "power cut":
        lose_page_cache(made.path)
    with Device(made.path) as device:
        with pytest.raises(BadData):
            device.write(b"part", page * PAGE + 9)
        assert device.recovered.trimmed == 0 and bytes(device.mapping.media[at : at + PAGE]) == left


def test_many_damaged_pages_are_all_named(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    random_ = random.Random(SEED)
    with Device(made.path, read_only=True) as device:
        holding = [p for p in range(600) if device.extents(PAGE, p * PAGE, one=True)[0][2]]
    lost = sorted(random_.sample(holding, 40))
    for page in lost:
        flip(made.path / "media", made.offsets(page)[0] + random_.randrange(PAGE), random_.randrange(8))
    found, _ = repaired(made, Kind.DATA_DAMAGED, lost=lost)
    assert [finding.page for finding in found.findings] == lost


@pytest.mark.parametrize("name", WITH_DESCRIPTORS)
def test_bytes_behind_a_free_page_are_given_back(tmp_path, name):
    made = make(tmp_path, SEED, **PLANS[name])
    page = a_page(made)
    at, _ = made.offsets(page)
    with Device(made.path) as device:
        device.trim(PAGE, page * PAGE)
    made.bytes[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    put(made.path / "media", at + 100, b"left behind")
    report = check(made.path)
    assert report.clean and [(f.kind, f.page) for f in report.findings] == [(Kind.LEAKED_DATA, page)]
    repaired(made, Kind.LEAKED_DATA)
    with (made.path / "media").open("rb") as file:
        assert os.pread(file.fileno(), 256, at) == bytes(256)


@pytest.mark.parametrize("name", WITH_DESCRIPTORS)
def test_pages_in_flight_at_a_power_cut_are_brought_into_line(tmp_path, name):
    made = make(tmp_path, SEED, **PLANS[name])
    device = Device(made.path)
    page = next(p for p in range(3, 600) if device.extents(PAGE, p * PAGE, one=True)[0][2])
    device.write(b"z" * PAGE, page * PAGE)  # marks the section
    made.bytes[page * PAGE : (page + 1) * PAGE] = b"z" * PAGE
    device.flush()
    device.checkpoint()
    device.abandon()
    lose_page_cache(made.path)
    at, _ = made.offsets(page)
    put(made.path / "media", at, b"newer")
    made.bytes[page * PAGE : page * PAGE + 5] = b"newer"
    report = check(made.path)
    assert report.clean and [f.page for f in report.findings if f.kind is Kind.UNSETTLED] == [page]
    report = check(made.path, repair=True)
    assert report.repairs[Kind.UNSETTLED] == 1
    assert not check(made.path).findings and made.reads() == []
    # Now it is settled: damage is damage again.
    flip(made.path / "media", made.offsets(page)[0])
    assert kinds(check(made.path)) == {Kind.DATA_DAMAGED}


@pytest.mark.parametrize("name", WITH_DESCRIPTORS)
def test_page_in_flight_at_a_kill_is_brought_into_line(tmp_path, name):
    made = make(tmp_path, SEED, **PLANS[name])
    page = a_page(made)
    at, _ = made.offsets(page)
    device = Device(made.path)
    device.mapping.core["intent"][0, 0] = page + 1
    device.abandon()
    put(made.path / "media", at, b"newer")
    made.bytes[page * PAGE : page * PAGE + 5] = b"newer"
    report = check(made.path)
    assert report.clean and [(f.kind, f.page) for f in report.findings] == [(Kind.UNSETTLED, page)]
    check(made.path, repair=True)
    assert not check(made.path).findings and made.reads() == []


def test_extents_that_say_something_else_are_found(tmp_path, monkeypatch):
    made = make(tmp_path, SEED, **PLANS["interleaved"])

    def lying(handle, offset, end, runs):
        runs[0] = end, 1
        return 1

    monkeypatch.setattr(datapath, "extents", lying)
    assert kinds(check(made.path)) == {Kind.EXTENTS_DIFFER}


# ---- the probe ----


def test_probe_survives_a_journal_that_crashes_its_reader(tmp_path, monkeypatch):
    made = make(tmp_path, SEED, **PLANS["linear"])
    assert probe.read_journal(made.path / "journal").problem == ""
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(probe, "PROGRAM", crash)
    assert "SIGSEGV" in probe.read_journal(made.path / "journal").problem


def test_every_kind_has_its_own_words():
    assert len({kind.word for kind in Kind}) == len({kind.sentence for kind in Kind}) == len(Kind)
    report = Report()
    for kind in Kind:
        report.add(kind, "media", page=1, offset=2)
        assert str(report.findings[-1]).startswith(kind.severity.value)
    assert not report.clean


@pytest.mark.contract
def test_map_that_is_not_one_to_one_is_found(tmp_path):
    made = Made(tmp_path / "a.pmem", **PLANS["interleaved"])
    plan = made.plan
    with Device(made.path, read_only=True) as device:
        blocks, held = np.zeros(plan.info.size >> 14, np.uint8), np.zeros(plan.placed_bytes >> 14, np.uint8)
        frames = plan.placed_frames

        def follow(medium_frames, seen):
            return checkscan.map_frames(device.handle, 0, frames, medium_frames, seen, blocks, held)

        seen = np.zeros(plan.medium_frames // 8 + 1, np.uint8)
        assert follow(plan.medium_frames, seen) == frames
        assert np.unpackbits(seen).sum() == frames
        assert follow(plan.medium_frames, seen) == 0, "every frame is taken"
        assert follow(100, np.zeros_like(seen)) < frames, "not every frame exists"
