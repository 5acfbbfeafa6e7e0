# SPDX-License-Identifier: MIT
"""Files of an image that are not of one moment, and two that are hurt at once: what was whole stays so, or is named.

A part of a backup put back beside newer parts fits itself, and every checksum in it is right.
"""

import os
import random
import shutil

import numpy as np
import pytest
from test_check import GAP, PAGE, Made, core_at, flip, lose_page_cache, put

from pmem_core import layout
from pmem_core.check import Kind, check
from pmem_core.device import Device
from pmem_core.errors import DamagedImage

SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
MIB = 1 << 20
PAGES = 200
LEVELINGS = {
    "start_gap": {"parameters": GAP},
    "table_swap": {"parameters": {"interval": 5}},
    "sampled_swap": {"parameters": {"interval": 5}},
}
EACH_LEVELING = pytest.mark.parametrize("leveling", LEVELINGS)

pytestmark = pytest.mark.usefixtures("same_boot")


def write(made, device, page, random_):
    data = random_.randbytes(PAGE)
    device.write(data, page * PAGE)
    made.bytes[page * PAGE : (page + 1) * PAGE] = data
    made.versions.setdefault(page, set()).add(data)


def filled(tmp_path, leveling, **plan):
    """An image whose first PAGES pages hold data, closed, and a source of chance."""
    made = Made(tmp_path / "a.pmem", 4 * MIB, leveling_name=leveling, **LEVELINGS.get(leveling, {}), **plan)
    made.versions, random_ = {}, random.Random(SEED)
    with Device(made.path) as device:
        for page in range(PAGES):
            write(made, device, page, random_)
    return made, random_


def keep(made, name):
    """Put a part of an image aside; called, it puts that back."""
    part, aside = made.path / name, made.path.with_name(f"old {name}")

    def back():
        if part.is_dir():
            shutil.rmtree(part)
            shutil.copytree(aside, part)
        else:
            shutil.copyfile(aside, part)

    shutil.copytree(part, aside) if part.is_dir() else shutil.copyfile(part, aside)
    return back


def write_more(made, random_, count=400, *, kill=False):
    device = Device(made.path)
    for _ in range(count):
        write(made, device, random_.randrange(PAGES), random_)
    device.abandon() if kill else device.close()


def assert_versions(made, pages):
    """Each of these pages is read as something that was once written to it."""
    with Device(made.path, read_only=True) as device:
        assert not [page for page in pages if device.read(PAGE, page * PAGE) not in made.versions[page]], f"seed {SEED}"


def assert_whole(made):
    assert check(made.path).clean, f"seed {SEED}"
    assert made.compare() == ([], []), f"seed {SEED}"


# ---- an older journal ----


@EACH_LEVELING
@pytest.mark.parametrize("descriptor_writes", ["each", "coalesced"])
@pytest.mark.parametrize("kill", [False, True])
def test_older_journal_is_not_believed_against_the_state(tmp_path, leveling, descriptor_writes, kill):
    made, random_ = filled(tmp_path, leveling, descriptor_writes=descriptor_writes)
    back = keep(made, "journal")
    write_more(made, random_, kill=kill)
    back()
    with pytest.raises(DamagedImage):
        Device(made.path)
    report = check(made.path, repair=True)
    assert "of an earlier session" in str(report.of(Kind.JOURNAL_DAMAGED)[0])
    assert_whole(made)


@pytest.mark.parametrize("leveling", ["start_gap", "table_swap"])
@pytest.mark.parametrize("hurt", ["head", "core", "core zeroed", "longer", "ticks", "sections"])
def test_older_journal_is_not_believed_because_the_state_is_hurt(tmp_path, leveling, hurt):
    made, random_ = filled(tmp_path, leveling)
    back, zones, state = keep(made, "journal"), made.plan.zones(), made.path / "state"
    write_more(made, random_)
    back()
    if hurt == "core zeroed":
        put(state, zones["core"][0], bytes(576))
    elif hurt == "longer":
        os.truncate(state, state.stat().st_size + 1)
    else:
        flip(state, zones[hurt][0] + 5, 3)
    with pytest.raises(DamagedImage):
        Device(made.path)
    check(made.path, repair=True)
    assert_whole(made)


@pytest.mark.parametrize("leveling", ["start_gap", "table_swap"])
def test_older_journal_that_passes_for_a_power_cut_is_doubted(tmp_path, leveling):
    """By its map pages are other pages' data, and after a power cut no checksum would say so."""
    made, random_ = filled(tmp_path, leveling)
    device = Device(made.path)
    for _ in range(10):
        write(made, device, random_.randrange(PAGES), random_)
    device.flush()
    device.checkpoint()
    back = keep(made, "journal")
    for _ in range(600):
        write(made, device, random_.randrange(PAGES), random_)
    device.close()
    back()
    lose_page_cache(made.path)
    files = {made.path / name: (made.path / name).read_bytes() for name in ("media", "wear", "state")}
    report = check(made.path, repair=True)
    assert report.has(Kind.MAP_DOUBTFUL) and report.unchecked, f"seed {SEED}"
    assert {file: file.read_bytes() for file in files} == files
    shutil.rmtree(made.path / "journal")  # what it says one may do
    check(made.path, repair=True)
    assert_whole(made)


@EACH_LEVELING
@pytest.mark.parametrize("placement", ["interleaved", "linear"])
def test_journal_that_is_only_behind_at_a_power_cut_is_not_doubted(tmp_path, leveling, placement):
    """All that was written since had reached the disk: by the state's map everything fits, and by the journal's not."""
    plan = {"parameters": {"interval": 100, "gap_frames": 128}} if leveling == "start_gap" else LEVELINGS[leveling]
    plan = {"placement_name": placement, "leveling_name": leveling, **plan}
    made, random_ = Made(tmp_path / "a.pmem", 16 * MIB, **plan), random.Random(SEED)
    made.versions = {}
    device = Device(made.path)
    for page in range(2000):
        write(made, device, page, random_)
    device.flush()
    device.checkpoint()
    for _ in range(6000):
        write(made, device, random_.randrange(2000), random_)
    device.abandon()
    lose_page_cache(made.path)
    report = check(made.path, repair=True)
    assert not report.has(Kind.MAP_DOUBTFUL) and not report.unchecked, f"seed {SEED}"
    assert check(made.path).clean
    assert_versions(made, [page for page in made.compare()[1] if page < 2000])


# ---- an older state, an older medium ----


@EACH_LEVELING
def test_older_state_of_a_killed_image_is_not_served(tmp_path, leveling):
    made, random_ = filled(tmp_path, leveling)
    back = keep(made, "state")
    write_more(made, random_)
    write_more(made, random_, 40, kill=True)
    back()
    with pytest.raises(DamagedImage, match="older than the journal"):
        Device(made.path)
    assert check(made.path, repair=True).has(Kind.STATE_DAMAGED)
    assert_versions(made, made.compare()[1])  # by the last checkpoint, where one was written and moved since


@pytest.mark.parametrize("leveling", ["start_gap", "table_swap"])
def test_older_medium_gets_no_new_checksums(tmp_path, leveling):
    """By the map of a later session most pages fail, and what lies there is other pages' data."""
    made, random_ = filled(tmp_path, leveling)
    back = keep(made, "media")
    write_more(made, random_)
    back()
    before = set(made.compare()[1])
    report = check(made.path, repair=True)
    assert not [one for one in report.findings if "could not be verified" in one.repaired], f"seed {SEED}"
    assert set(made.compare()[1]) <= before, f"seed {SEED}: what was refused is read as something else"


# ---- a lost state, and what was pending ----


@pytest.mark.parametrize("hurt", ["lost", "short", "longer"])
def test_pages_whose_descriptors_were_pending_outlive_the_state(tmp_path, hurt):
    made, random_ = filled(tmp_path, "none", placement_name="linear", descriptor_writes="coalesced")
    device, state = Device(made.path), made.path / "state"
    for page in range(PAGES, PAGES + 50):
        write(made, device, page, random_)
    device.abandon()
    if hurt == "lost":
        state.unlink()
    else:
        os.truncate(state, state.stat().st_size + (1 if hurt == "longer" else -PAGE))
    report = check(made.path, repair=True)
    assert report.counts.get(Kind.DESCRIPTOR_LOST, 0) == (0 if hurt == "longer" else 50)
    assert_whole(made)


def test_descriptor_page_lost_beside_the_state_gives_no_data_back(tmp_path):
    made, _ = filled(tmp_path, "none")
    _, described = made.offsets(64)
    Device(made.path).abandon()
    (made.path / "state").unlink()
    put(made.path / "media", described, bytes(PAGE))
    assert check(made.path, repair=True).counts[Kind.DESCRIPTOR_LOST] == 64
    assert_whole(made)


@pytest.mark.parametrize("placement", ["linear", "interleaved"])
def test_pending_descriptors_tell_of_sections_whose_marks_are_lost(tmp_path, placement):
    plan = {"placement_name": placement, "leveling_name": "none", "descriptor_writes": "coalesced"}
    made, random_ = Made(tmp_path / "a.pmem", 40 * MIB, **plan), random.Random(SEED)
    made.versions, device = {}, Device(made.path)
    for page in range(5000, 5040):
        write(made, device, page, random_)
    device.abandon()
    shutil.rmtree(made.path / "journal")
    put(made.path / "state", made.plan.zones()["sections"][0], bytes(made.plan.section_count))
    assert not check(made.path, repair=True).unchecked
    assert_whole(made)


def slot_at(made, number):
    size = made.plan.pending_bytes // layout.PENDING_SLOTS
    return made.plan.zones()["pending"][0] + number * size


@EACH_LEVELING
def test_one_wrong_pending_descriptor_costs_no_other(tmp_path, leveling):
    made, random_ = filled(tmp_path, leveling, descriptor_writes="coalesced")
    write_more(made, random_, 10, kill=True)
    heads = np.fromfile(made.path / "state", "<i8", offset=made.plan.zones()["pending"][0])
    heads = heads.reshape(-1, made.plan.pending_bytes // layout.PENDING_SLOTS // 8)[: layout.PENDING_SLOTS, 0]
    empty = [int(slot) for slot in np.flatnonzero(heads == 0) if slot % 8 != 7]
    flip(made.path / "state", slot_at(made, random_.choice(empty)), 3)  # "page 7 is pending", in another one's slot
    assert check(made.path, repair=True).has(Kind.STATE_DAMAGED)
    assert_whole(made)


def test_pending_descriptor_of_a_closed_image_is_not_served(tmp_path):
    made, _ = filled(tmp_path, "none", descriptor_writes="coalesced")
    (made.path / "state").unlink()  # one made anew has zeros in its slots
    check(made.path, repair=True)
    flip(made.path / "state", slot_at(made, 7), 3)  # page 7, in its own slot
    for read_only in (True, False):
        with pytest.raises(DamagedImage, match="differ"):
            Device(made.path, read_only=read_only)
    check(made.path, repair=True)
    assert_whole(made)


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("leveling", ["start_gap", "none"])
def test_one_bit_of_the_head_costs_nothing_where_the_journal_is_lost(tmp_path, leveling, end):
    made, random_ = filled(tmp_path, leveling, descriptor_writes="coalesced")
    write_more(made, random_, 40, kill=end == "killed")
    shutil.rmtree(made.path / "journal")
    flip(made.path / "state", 3)
    assert set(check(made.path, repair=True).counts) == {Kind.JOURNAL_LOST, Kind.STATE_HEAD}
    assert_whole(made)


@pytest.mark.parametrize("plan", [{}, {"descriptor_bytes": 128}, {"initialise": "eager"}], ids=str)
def test_zeroed_table_of_a_killed_image_makes_no_page_of_garbage(tmp_path, plan):
    """A page never written, whose descriptor the wrong map has in a hole, fails by that map as any other does."""
    made, random_ = filled(tmp_path, "start_gap", **plan)
    device = Device(made.path)
    for count in (60, 30):
        device.flush()
        device.checkpoint()
        for _ in range(count):
            write(made, device, random_.randrange(PAGES), random_)
    device.abandon()
    at, size = made.plan.zones()["table"]
    put(made.path / "state", at, bytes(size))
    check(made.path, repair=True)
    wrong = made.compare()[1]
    assert not [page for page in wrong if page >= PAGES], f"seed {SEED}"
    assert_versions(made, wrong)


def test_refused_open_leaves_word_of_how_the_session_ended(tmp_path):
    """It would be believed of the state that it is right and ahead of the journal, as after a kill."""
    made, _ = filled(tmp_path, "start_gap")
    flip(made.path / "state", made.plan.zones()["table"][0], 2)
    for _ in range(2):
        with pytest.raises(DamagedImage):
            Device(made.path)
    report = check(made.path, repair=True)
    assert report.session == "closed properly" and report.has(Kind.STATE_DIFFERS)
    assert_whole(made)


@pytest.mark.parametrize("leveling", ["start_gap", "none"])
@pytest.mark.parametrize("descriptor_writes", ["each", "coalesced"])
def test_junk_in_a_page_of_descriptors_is_no_word_against_a_killed_state(tmp_path, leveling, descriptor_writes):
    """By the checkpoint they fail as well; and it is behind."""
    made, random_ = filled(tmp_path, leveling, descriptor_writes=descriptor_writes)
    device = Device(made.path)
    for page in range(PAGES, PAGES + 100):
        write(made, device, page, random_)
    device.abandon()
    _, described = made.offsets(64)
    put(made.path / "media", described, random_.randbytes(PAGE))
    flip(made.path / "state", core_at(made, "tally", "flushes") + 7, 7)  # below zero
    assert set(check(made.path, repair=True).counts) == {Kind.STATE_DAMAGED, Kind.DESCRIPTOR_DAMAGED}
    assert_whole(made)


@pytest.mark.parametrize("placement", ["interleaved", "linear"])
def test_descriptor_made_anew_where_no_group_was_leaves_none_to_be_mended(tmp_path, placement):
    plan = {"placement_name": placement, "leveling_name": "none", "initialise": "subsection"}
    made = Made(tmp_path / "a.pmem", 40 * MIB, **plan)
    with Device(made.path) as device:
        device.write(b"x" * PAGE, 0)
    data, _ = made.offsets(made.plan.info.section_pages // 2)
    flip(made.path / "media", data + 9)
    check(made.path, repair=True)
    assert check(made.path).clean
