# SPDX-License-Identifier: MIT
"""A table of a killed image of which bits have flipped: what pages hold says so, and the journal has it right."""

import os
import random

import numpy as np
import pytest
from test_check import PAGE, Made, check, flip, hashes, kinds, put

from pmem_core.check import Kind
from pmem_core.device import Device
from pmem_core.journal import Journal

SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
START_GAP = {"leveling_name": "start_gap", "parameters": {"interval": 50}}
MAPS = {
    "optane": {"leveling_name": "optane", "parameters": {"threshold": 200}},
    "table_swap": {"leveling_name": "table_swap", "parameters": {"interval": 20}},
    "sampled_swap": {"leveling_name": "sampled_swap", "parameters": {"interval": 20}},
}
pytestmark = pytest.mark.usefixtures("same_boot")


@pytest.fixture
def killed(tmp_path):
    """Make an image that is killed `late` writes behind a checkpoint."""

    def get(pages, late=0, **plan):
        made, random_ = Made(tmp_path / "a.pmem", **plan), random.Random(SEED)
        made.versions = {}
        device = Device(made.path)
        for number in range(4 * len(pages) + late):
            if number == 4 * len(pages):
                device.checkpoint()
            page, data = pages[number % len(pages)], random_.randbytes(PAGE)
            device.write(data, page * PAGE)
            made.bytes[page * PAGE : (page + 1) * PAGE] = data
            made.versions.setdefault(page, set()).add(data)
        if not late:
            device.checkpoint()
        device.abandon()
        return made

    return get


def table_at(made, word):
    return made.plan.zones()["table"][0] + 8 * word


@pytest.mark.parametrize("count", [1, 4, 64])
def test_flip_in_the_table_is_found_and_costs_nothing(killed, count):
    made = killed(range(100, 100 + count), **START_GAP)
    assert check(made.path).clean
    for bit in (0, 45, *random.Random(SEED).sample(range(64), 6)):
        other = made.copy("flipped.pmem")
        flip(other.path / "state", table_at(made, 0) + bit // 8, bit % 8)
        found = check(other.path)
        assert not found.clean or other.reads() == [], f"seed {SEED}: bit {bit} is not found"
        check(other.path, repair=True)
        assert check(other.path).clean and other.reads() == [], f"seed {SEED}: bit {bit}"


def test_table_of_zeros_is_found_and_costs_nothing(killed):
    made = killed(range(200), **START_GAP)
    put(made.path / "state", table_at(made, 0), bytes(8 * len(made.plan.table)))
    assert kinds(check(made.path)) == {Kind.STATE_DAMAGED}
    assert check(made.path, repair=True).repairs == {Kind.STATE_DAMAGED: 1}
    assert check(made.path).clean and made.reads() == []


@pytest.mark.parametrize("writes", ["each", "coalesced"])
@pytest.mark.parametrize("name", MAPS)
def test_word_of_a_block_that_was_not_moved_is_mended_and_all_else_is_kept(killed, name, writes):
    """Descriptors that are pending, and moves since the last checkpoint, are the state's alone."""
    made = killed(range(40), late=300, descriptor_writes=writes, **MAPS[name])
    flip(made.path / "state", table_at(made, len(made.plan.table) * 3 // 8), 0)
    found = check(made.path)
    assert Kind.STATE_DAMAGED in kinds(found), f"seed {SEED}"
    check(made.path, repair=True)
    assert check(made.path).clean and made.reads() == [], f"seed {SEED}"


def moved(made):
    """The words of the table that are not what the journal has."""
    journal = Journal(made.path / "journal", read_only=True)
    before = np.frombuffer(journal.load_checkpoint()[1], np.int64)
    journal.close()
    now = np.frombuffer((made.path / "state").read_bytes(), np.int64, len(before), table_at(made, 0))
    return np.flatnonzero(now != before).tolist()


@pytest.mark.parametrize("name", ["table_swap", "sampled_swap"])
def test_flip_in_a_word_that_was_moved_costs_nothing(killed, name):
    """The journal's word is another, and leads to where another page is now."""
    made = killed(range(40), late=300, **MAPS[name])
    for word in moved(made)[:6]:
        other = made.copy("flipped.pmem")
        bit = random.Random(SEED).randrange(64)
        flip(other.path / "state", table_at(made, word) + bit // 8, bit % 8)
        told = [str(one) for one in check(other.path).of(Kind.STATE_DAMAGED)]
        check(other.path, repair=True)
        refused, differing = other.compare()
        assert check(other.path).clean and not refused, f"seed {SEED}: word {word}, bit {bit}"
        # Some words lead nowhere: they say what is moved next.
        assert not differing or (told and "may be lost" in told[0]), f"seed {SEED}: word {word}, bit {bit}: {differing}"


@pytest.mark.parametrize("name", [*MAPS, "start_gap"])
def test_page_that_decayed_after_its_frame_was_moved_is_no_damage_to_the_table(killed, name):
    """Where it was before, it is whole, and older."""
    made = killed(range(40), late=400, **({"start_gap": START_GAP} | MAPS)[name])
    page = random.Random(SEED).randrange(40)
    flip(made.path / "media", made.offsets(page)[0] + 77, 3)
    found = check(made.path)
    assert kinds(found) == {Kind.DATA_DAMAGED} and [f.page for f in found.findings] == [page], f"seed {SEED}"
    check(made.path, repair=True)
    assert made.reads() == [page], f"seed {SEED}"


def test_table_that_neither_has_right_gives_no_page_what_is_another_s(killed):
    """Some pages may be what they were, which the report says; or nothing is repaired."""
    made = killed(range(600), late=2000, leveling_name="start_gap", parameters={"interval": 5, "region_frames": 64})
    chance = random.Random(SEED)
    for word in range(len(made.plan.table)):
        flip(made.path / "state", table_at(made, word), chance.randrange(6))
    before = hashes(made.path)
    report = check(made.path, repair=True)
    if Kind.MAP_DOUBTFUL in kinds(report):
        assert hashes(made.path) == before
        return
    assert "moves after the last checkpoint may be lost" in str(report.of(Kind.STATE_DAMAGED)[0]), f"seed {SEED}"
    differing = made.compare()[1]
    with Device(made.path, read_only=True) as device:
        for page in differing:
            assert device.read(PAGE, page * PAGE) in made.versions[page], f"seed {SEED}: page {page}"
