# SPDX-License-Identifier: MIT
"""The device is what its naive twin says: data, extents, wear of every line, tallies, and the bytes of the medium."""

import dataclasses
import itertools
import random
import shutil
import uuid

import hypothesis.strategies as st
import naive
import numba
import numpy as np
import pytest
from conftest import one_worker
from hypothesis import HealthCheck, given, settings
from pairs import PAIRS

from pmem_core import geometry, image, layout, leveling, placement, policies
from pmem_core.device import Device
from pmem_core.errors import UsageError

pytestmark = pytest.mark.contract

PAGE = 4096
SIZE_MAX = 48 << 20
MAP_CHECKS = 300  # frames of the map compared, evenly spread


# ---- both sides of a comparison ----


class Pair:
    """A device and its twin, driven together: `do_NAME` does operation NAME on both and compares the answers."""

    def __init__(self, path, plan):
        self.path, self.info = path, plan.info
        image.create(path, plan)
        self.device = Device(path)
        info, parameters = plan.info, dict(plan.info.parameters["leveling"])
        if parameters.pop("randomize", 0):
            parameters["keys"] = [int(key) for key in plan.leveling_state["keys"]]
        # What a leveling draws by, whatever it calls it.
        for name in plan.leveling.STATE.names:
            if name.endswith("_key"):
                parameters["key"] = int(plan.leveling_state[name])
        if info.leveling == "optane":
            parameters["line_bytes"] = info.line_bytes
        self.twin = naive.Naive(
            (path / "media").read_bytes()[: layout.FRAMES_AT],
            size=info.size,
            placement=info.placement,
            leveling=info.leveling,
            frame_bytes=info.frame_bytes,
            line_bytes=info.line_bytes,
            descriptor_bytes=info.descriptor_bytes,
            coalesced=info.descriptor_writes == "coalesced",
            checksums=info.checksums,
            section_pages=info.section_pages,
            leveling_parameters=parameters,
            descriptor_format=info.descriptor_format,
            session=int(self.device.mapping.run["session"][0]),
            initialise=info.initialise,
        )
        self.used = set()  # pages that some operation named
        assert self.twin.page_count == info.page_count

    def run(self, operation):
        """Do one operation on both sides, and compare what it answers and what it cost."""
        name, *arguments = operation
        getattr(self, "do_" + name)(*arguments)
        self.compare_tallies()

    def range_of(self, page, at, count):
        """A range of the device: `page` wraps around, negative counts from the end; the end is cut off."""
        offset = page % self.info.page_count * PAGE + at
        count = min(count, self.info.page_count * PAGE - offset)
        self.used.update(range(offset // PAGE, -(-(offset + count) // PAGE)))
        return offset, count

    def do_write(self, page, at, count, seed, fua):
        offset, count = self.range_of(page, at, count)
        data = random.Random(seed).randbytes(count)
        self.device.write(data, offset, fua=fua)
        self.twin.write(data, offset, fua=fua)

    def do_fill(self, page, pages, seed):
        self.do_write(page, 0, pages * PAGE, seed, False)

    def do_hammer(self, page, pages, times):
        for i in range(times):
            self.do_write(page + i % pages, i * 97 % PAGE, 1, i, False)

    def do_read(self, page, at, count):
        offset, count = self.range_of(page, at, count)
        assert self.device.read(count, offset) == self.twin.read(count, offset)

    def do_trim(self, page, at, count):
        offset, count = self.range_of(page, at, count)
        self.device.trim(count, offset)
        self.twin.trim(count, offset)

    def do_zero(self, page, at, count, may_trim):
        offset, count = self.range_of(page, at, count)
        self.device.zero(count, offset, may_trim=may_trim)
        self.twin.zero(count, offset, may_trim=may_trim)

    def do_extents(self, page, at, count):
        offset, count = self.range_of(page, at, count)
        assert self.device.extents(count, offset) == self.twin.extents(count, offset)
        assert self.device.extents(count, offset, one=True) == self.twin.extents(count, offset)[:1]

    def do_flush(self):
        self.device.flush()
        self.twin.flush()

    def do_checkpoint(self, settle_sections):
        # Housekeeping takes one at any time; but for pending descriptors of quiet sections nothing of it may show.
        self.device.checkpoint(settle_sections=settle_sections)
        if settle_sections:
            self.twin.settle_sections()

    def do_reopen(self):
        self.device.close()
        self.twin.close()
        self.open_again("")

    def do_kill(self):
        self.device.abandon()
        self.twin.forget()
        self.open_again("killed")

    def open_again(self, recovery):
        """In a session of its own."""
        self.device = Device(self.path)
        assert self.device.recovery == recovery
        self.twin.session = int(self.device.mapping.run["session"][0])

    def compare_tallies(self):
        """Every figure that the device keeps."""
        tally, twin = self.device.mapping.core["tally"][0], self.twin
        assert dict(zip(layout.CAUSES, tally["worn"].tolist(), strict=True)) == twin.worn
        assert (int(tally["moves"]), int(tally["page_writes"])) == (twin.moves, twin.page_writes)
        assert {name: int(tally[name]) for name in twin.requests} == twin.requests

    def compare_all(self):
        """Everything observable."""
        self.compare_tallies()
        for page in sorted(self.used):
            self.do_read(page, 0, PAGE)
            self.do_extents(page, 0, 3 * PAGE)
        self.do_extents(0, 0, 80 * PAGE)
        wear = np.zeros(self.info.size // self.info.line_bytes, np.uint32)
        for line, count in self.twin.wear.items():
            wear[line] = count
        found = np.fromfile(self.path / "wear", "<u4")
        assert np.flatnonzero(found != wear).tolist() == []
        assert int(self.device.mapping.core["tally"][0]["hottest"]) == found.max()
        self.compare_map()
        self.compare_media()

    def compare_media(self):
        """The bytes of the medium, but for frames that hold nothing: what is left there is nobody's."""
        expected, found = self.twin.medium, bytearray((self.path / "media").read_bytes())
        for frame in self.twin.leveling.spare():
            at = layout.FRAMES_AT + frame * self.info.frame_bytes
            found[at : at + self.info.frame_bytes] = expected[at : at + self.info.frame_bytes]
        if found != expected:
            differ = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8))
            raise AssertionError(f"{len(differ)} bytes of the medium differ, from {differ[0]} to {differ[-1]}")

    def compare_map(self):
        """Where leveling has the frames, and that no two are at one place."""
        frames = self.twin.leveling.frames
        sample = range(0, frames, max(1, frames // MAP_CHECKS))
        found = [int(translated(self.device.handle, frame)) for frame in sample]
        assert found == [self.twin.leveling.where(frame) for frame in sample]
        assert len(set(found)) == len(found)

    def close(self):
        """Close the device and remove its image."""
        self.device.close()
        shutil.rmtree(self.path)


@numba.njit
def translated(handle, frame):
    """The medium frame of placed frame `frame`."""
    return policies.translate(handle[0][0], frame)


# ---- what is drawn ----

POWERS = {name: [1 << n for n in range(*bits)] for name, bits in {"frame": (8, 17), "line": (6, 13)}.items()}


@st.composite
def start_gap_parameters(draw, regions, gaps, randomize):
    """Parameters with which moves happen all the time; the others than `interval` by their limits."""
    return {
        "interval": draw(st.integers(1, 10)),
        "region_frames": draw(st.sampled_from(regions)),
        "gap_frames": draw(st.sampled_from(gaps)),
        "randomize": randomize,
    }


@st.composite
def exchange_parameters(draw, spare_blocks, **others):
    """Parameters of levelings that exchange blocks, so that it happens all the time."""
    fixed = {"block_frames": draw(st.sampled_from([1, 2, 4])), "spare_blocks": draw(st.integers(1, spare_blocks))}
    return fixed | {name: draw(values) for name, values in others.items()}


ONE_REGION = [1 << 20]
LEVELINGS = {
    "none": ("none", st.just({})),
    "paper": ("start_gap", start_gap_parameters(ONE_REGION, [1], 0)),
    "wide-gap": ("start_gap", start_gap_parameters(ONE_REGION, [2, 3, 6], 0)),
    "regions": ("start_gap", start_gap_parameters([1, 2, 4, 16], [1, 2, 3], 0)),
    "randomized": ("start_gap", start_gap_parameters([2, 8, 64, 1 << 20], [1, 2], 1)),
    "table-swap": ("table_swap", exchange_parameters(3, interval=st.integers(1, 10), candidates=st.integers(1, 4))),
    "sampled-swap": ("sampled_swap", exchange_parameters(3, interval=st.integers(1, 6), sample=st.integers(1, 4))),
}
BLOCKS = {"block_frames": st.sampled_from([1, 2, 4]), "spare_blocks": st.integers(1, 3)}
REFRESHES = {
    "interval": st.integers(1, 10),
    "outer_interval": st.integers(1, 10),
    "sub_regions": st.sampled_from([1, 2, 8]),
}
LEVELINGS["refresh"] = ("security_refresh", st.fixed_dictionaries(REFRESHES | BLOCKS))
LEVELINGS["optane"] = ("optane", st.fixed_dictionaries({"threshold": st.integers(1, 100)} | BLOCKS))


ZEROS = st.just("zeros")


@st.composite
def plans(draw, placement_name, leveling_variant, initialise=ZEROS):
    """A small device of any geometry; now and then one so large that descriptors evict each other."""
    leveling_name, parameters = LEVELINGS[leveling_variant]
    frame_bytes = draw(st.sampled_from(POWERS["frame"]))
    # In front of linear's pages a descriptor of 4096 bytes would take as much as the pages themselves.
    largest = 12 if placement_name == "linear" else 13
    options = {
        "placement_name": placement_name,
        "leveling_name": leveling_name,
        "parameters": draw(parameters),
        "descriptor_bytes": 1 << draw(st.integers(4, largest - 1)),
        "descriptor_writes": draw(st.sampled_from(["each", "coalesced"])),
        "checksums": draw(st.booleans()),
        "frame_bytes": frame_bytes,
        "line_bytes": draw(st.sampled_from([line for line in POWERS["line"] if line <= frame_bytes])),
        "initialise": draw(initialise),
    }
    if options["initialise"] == "buddy":
        options["descriptor_bytes"] = max(64, options["descriptor_bytes"])
    wanted = naive.PENDING_SLOTS + 40 if draw(st.integers(0, 7)) == 7 else draw(st.integers(6, 100))
    plan = planned(wanted, draw(st.integers(0, 15)), options)
    # The keys of `randomize` come from the uuid: drawn too, or a failure could not be run again.
    drawn_uuid = str(uuid.UUID(int=draw(st.integers(0, 99))))
    return geometry.derive(dataclasses.replace(plan.info, uuid=drawn_uuid))


def planned(pages_wanted, extra_pages, options):
    """The smallest plan, but for `extra_pages`, with at least `pages_wanted` pages that stays small."""
    size, step = (extra_pages + 2) * PAGE, 16 * PAGE
    plan = None
    while size <= SIZE_MAX or plan is None:
        try:
            plan = geometry.plan(size, **options)
        except UsageError:  # no room yet for what the policies take
            size += 4 * step
            continue
        if plan.info.page_count >= pages_wanted:
            break
        size += max(step, (pages_wanted - plan.info.page_count) * PAGE // step * step)
    return plan


# Pages next to each other, at both ends, a group or a section apart, and in one slot of the pending descriptors.
PAGES = st.one_of(st.sampled_from([0, 1, 2, 3, 64, 65, -1, -2, 4095, 4096, 4097, 4098]), st.integers(0, 5000))
AT = st.one_of(st.just(0), st.just(0), st.integers(0, PAGE - 1), st.sampled_from([255, 256, PAGE - 1]))
COUNT = st.one_of(st.just(PAGE), st.integers(1, 700), st.integers(1, 3 * PAGE), st.sampled_from([1, 2 * PAGE]))
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PAGES, AT, COUNT, st.integers(0, 99), st.sampled_from([False, False, True])),
    st.tuples(st.just("write"), PAGES, st.just(0), st.just(PAGE), st.integers(0, 99), st.just(False)),
    st.tuples(st.just("fill"), st.sampled_from([0, 0, 3, 64, -20]), st.integers(4, 20), st.integers(0, 99)),
    st.tuples(st.just("hammer"), PAGES, st.integers(1, 3), st.integers(1, 25)),
    st.tuples(st.just("read"), PAGES, AT, COUNT),
    st.tuples(st.just("trim"), PAGES, AT, st.sampled_from([1, PAGE, 3 * PAGE + 1, 9 * PAGE, 20 * PAGE])),
    st.tuples(st.just("zero"), PAGES, AT, COUNT, st.booleans()),
    st.tuples(st.just("extents"), PAGES, AT, st.sampled_from([1, PAGE, 7 * PAGE])),
    st.tuples(st.just("flush")),
    st.tuples(st.just("checkpoint"), st.just(False)),  # settling drains pending descriptors: test_recovery
    st.tuples(st.just("reopen")),
    st.tuples(st.just("kill")),
)


def require_agreement(pair, operations):
    """Device and twin do the same, and are the same after it and after a close."""
    try:
        for operation in operations:
            pair.run(operation)
        pair.compare_all()
        pair.do_reopen()
        pair.compare_all()
    finally:
        pair.close()


NUMBER = itertools.count()


# ---- the contract ----


@pytest.mark.parametrize(
    ("placement_name", "variant"),
    [
        pytest.param(place, variant, marks=one_worker(place, level))
        for variant, (level, _) in LEVELINGS.items()
        for place in naive.PLACEMENTS
        # With descriptors in memory one way of turning is as good as another.
        if (place, level) in PAIRS and (place != "ram" or variant == "regions")
    ],
)
@given(data=st.data())
@settings(suppress_health_check=list(HealthCheck))
def test_device_is_what_its_twin_says(tmp_path_factory, placement_name, variant, data):
    plan = data.draw(plans(placement_name, variant), "plan")
    operations = data.draw(st.lists(OPERATIONS, min_size=1, max_size=30), "operations")
    pair = Pair(tmp_path_factory.getbasetemp() / f"contract-{next(NUMBER)}.pmem", plan)
    require_agreement(pair, operations)


# Groups of descriptors are given back where a trim covers them wholly.
LARGE_TRIMS = st.tuples(st.just("trim"), PAGES, st.just(0), st.integers(8, 200).map(lambda pages: pages * PAGE))


@pytest.mark.parametrize(
    ("placement_name", "variant"),
    [
        pytest.param(place, variant, marks=one_worker(place, LEVELINGS[variant][0]))
        for place in ("interleaved", "linear")
        for variant in ("none", "wide-gap")
    ],
)
@given(data=st.data())
@settings(suppress_health_check=list(HealthCheck), max_examples=min(24, settings().max_examples))
def test_descriptors_come_into_being_as_the_twin_says(tmp_path_factory, placement_name, variant, data):
    """With every strategy: which descriptors there are when, heads of free groups, and what it all wears."""
    strategies = st.sampled_from(["buddy", "buddy", "section", "subsection", "eager"])
    plan = data.draw(plans(placement_name, variant, strategies), "plan")
    operations = data.draw(st.lists(st.one_of(OPERATIONS, LARGE_TRIMS), min_size=1, max_size=30), "operations")
    pair = Pair(tmp_path_factory.getbasetemp() / f"groups-{next(NUMBER)}.pmem", plan)
    require_agreement(pair, operations)


@pytest.mark.parametrize(
    ("placement_name", "leveling_name"), [pytest.param(*pair, marks=one_worker(*pair)) for pair in PAIRS]
)
def test_any_pair_of_policies_keeps_the_data(tmp_path, placement_name, leveling_name):
    """Also of a policy that has no twin yet: reads, one frame a place, and totals that agree with the counters."""
    parameters = {
        # As small as they may be, or 2: moves then come thick and fast.
        name: min(max(2, least), most)
        for name, (_, least, most, _) in leveling.family.modules[leveling_name].PARAMETERS.items()
    }
    options = {"placement_name": placement_name, "leveling_name": leveling_name, "parameters": parameters}
    plan = planned(30, 1, options)
    image.create(tmp_path / "pair.pmem", plan)
    expected, draw = bytearray(plan.device_bytes), random.Random(65)
    for _ in range(3):
        with Device(tmp_path / "pair.pmem") as device:
            for _ in range(40):
                count = draw.choice([1, 100, PAGE, 3 * PAGE])
                # The second half of the device is left alone, so that frames of two kinds move.
                offset = draw.randrange(plan.device_bytes // 2 - count)
                expected[offset : offset + count] = data = draw.randbytes(count)
                device.write(data, offset)
            page = draw.randrange(8)
            device.trim(2 * PAGE, page * PAGE)
            expected[page * PAGE : (page + 2) * PAGE] = bytes(2 * PAGE)
            assert device.read(plan.device_bytes, 0) == expected
            places = [int(translated(device.handle, frame)) for frame in range(plan.placed_frames)]
            assert len(set(places)) == len(places) and set(places) <= set(range(plan.medium_frames))
            tally = device.mapping.core["tally"][0]
            assert int(tally["worn"].sum()) == int(device.mapping.wear.sum(dtype=np.int64))
            assert bool(tally["moves"]) == plan.leveling.MOVES


# ---- behaviours by name, in numbers worked out by hand ----

SMALL = {"placement_name": "interleaved", "leveling_name": "none"}


@pytest.fixture
def pair(tmp_path, request):
    """A small device, its options given by `pytest.mark.parametrize(..., indirect=True)` or the plainest."""
    options = dict(getattr(request, "param", SMALL))
    made = Pair(tmp_path / "small.pmem", planned(options.pop("pages", 30), 0, options))
    yield made
    made.close()


def worn(pair):
    """What was worn since creation, by cause: host, descriptor, move."""
    return tuple(pair.device.mapping.core["tally"][0]["worn"].tolist()[:3])


def test_first_byte_of_a_page_stores_all_of_it(pair):
    pair.run(("write", 5, 100, 1, 0, False))
    assert worn(pair) == (16, 1, 0)
    pair.compare_all()


def test_unaligned_write_wears_both_lines(pair):
    pair.run(("write", 5, 0, PAGE, 0, False))
    pair.run(("write", 5, 255, 2, 1, False))
    assert worn(pair) == (16 + 2, 2, 0)
    pair.compare_all()


def test_write_over_two_pages_writes_two_descriptors(pair):
    pair.run(("write", 5, 0, 2 * PAGE, 0, False))
    pair.run(("write", 5, PAGE - 1, 2, 1, False))
    assert worn(pair) == (32 + 2, 4, 0)
    pair.compare_all()


def test_trim_wears_only_the_descriptor_and_only_once(pair):
    pair.run(("write", 5, 0, PAGE, 0, False))
    pair.run(("trim", 5, 0, PAGE))
    pair.run(("trim", 5, 0, PAGE))
    assert worn(pair) == (16, 2, 0)
    pair.compare_all()


def test_trim_of_parts_of_pages_does_nothing(pair):
    pair.run(("write", 5, 0, 2 * PAGE, 0, False))
    pair.run(("trim", 5, 1, 2 * PAGE - 2))
    assert worn(pair) == (32, 2, 0)
    pair.compare_all()


@pytest.mark.parametrize("pair", [SMALL | {"descriptor_writes": "coalesced"}], indirect=True)
def test_coalesced_descriptor_is_written_once_for_many_writes(pair):
    pair.run(("hammer", 5, 1, 10))
    assert worn(pair)[1] == 0
    pair.run(("kill",))
    pair.run(("flush",))
    assert worn(pair)[1] == 1
    pair.compare_all()


@pytest.mark.parametrize("pair", [SMALL | {"descriptor_writes": "coalesced"}], indirect=True)
def test_settling_quiet_sections_writes_their_pending_descriptors(pair):
    pair.run(("write", 5, 0, PAGE, 0, False))
    pair.run(("checkpoint", True))
    assert worn(pair)[1] == 0  # it was written lately
    pair.run(("checkpoint", False))
    assert worn(pair)[1] == 0
    pair.run(("checkpoint", True))
    assert worn(pair)[1] == 1
    pair.compare_all()


EVICTING = {
    "pages": naive.PENDING_SLOTS + 40,
    "placement_name": "interleaved",
    "descriptor_writes": "coalesced",
    "leveling_name": "start_gap",
    "parameters": {"interval": 2, "region_frames": 16, "gap_frames": 2},
}


@pytest.mark.parametrize("pair", [EVICTING], indirect=True)
def test_descriptors_in_one_slot_evict_each_other(pair):
    """The frame that the evicted one goes to is settled, and no other of descriptors."""
    for i in range(6):
        for page in (0, 4096, 1, 4097, 64, 4096 + 64):
            pair.run(("write", page, 0, PAGE, i, False))
        if i % 2:
            pair.run(("trim", 4096, 0, PAGE))
            pair.run(("kill",))
    pair.compare_all()


@pytest.mark.parametrize("pair", [EVICTING], indirect=True)
def test_flush_writes_the_descriptors_of_all_slots(pair):
    for page in (0, 1, 4094, 4095, 4096 + 2):
        pair.run(("write", page, 0, 1, 0, False))
    pair.run(("flush",))
    assert worn(pair)[1] == 5
    pair.compare_all()


@pytest.mark.parametrize(
    "pair",
    [SMALL | {"leveling_name": "start_gap", "parameters": {"interval": 1, "region_frames": 4, "gap_frames": 2}}],
    indirect=True,
)
def test_trimmed_pages_are_zeros_where_leveling_moved_them_to(pair):
    """A trim writes descriptors, which moves frames: also those of the pages that it has just given back."""
    for i in range(12):
        pair.run(("fill", 0, 30, i))
        pair.run(("hammer", i, 1, i))
        pair.run(("trim", i, 0, 9 * PAGE))
        pair.compare_media()


# ---- how descriptors come into being, in numbers worked out by hand: 64 descriptors of 64 bytes in 16 lines ----

BUDDY = SMALL | {"initialise": "buddy", "pages": 512}
COALESCED = {"descriptor_writes": "coalesced"}


@pytest.mark.parametrize("pair", [BUDDY], indirect=True)
def test_new_device_is_covered_by_one_head_for_each_bit_of_its_size(pair):
    assert worn(pair) == (0, bin(pair.info.page_count // 64).count("1") + (pair.info.page_count % 64 > 0), 0)
    pair.compare_all()


@pytest.mark.parametrize("pair", [BUDDY], indirect=True)
def test_first_write_halves_the_group_around_its_page(pair):
    before = worn(pair)[1]
    pair.run(("write", 70, 0, PAGE, 0, False))
    # Heads of the halves of 256, 128 and 64 pages, 64 descriptors of the page's own group, and then its own once more.
    assert worn(pair)[1] - before == 3 + 16 + 1
    assert pair.twin.heads[0] == 6 and pair.twin.heads[128] == 7 and pair.twin.heads[256] == 8
    pair.run(("write", 71, 0, PAGE, 0, False))
    assert worn(pair)[1] - before == 3 + 16 + 2
    pair.compare_all()


@pytest.mark.parametrize("pair", [BUDDY], indirect=True)
def test_trim_of_a_group_gives_its_descriptors_back_in_one_store_and_joins_buddies(pair):
    pair.run(("fill", 64, 64, 0))
    before = worn(pair)[1]
    pair.run(("trim", 64, 0, 64 * PAGE))
    # The page of descriptors; the head of all 512 pages; the heads at 128 and 256 cleared.
    assert worn(pair)[1] - before == 16 + 1 + 2
    assert pair.twin.heads[0] == 9
    pair.compare_all()


@pytest.mark.parametrize("pair", [BUDDY], indirect=True)
def test_trim_of_a_part_of_a_group_keeps_its_descriptors(pair):
    pair.run(("write", 64, 0, PAGE, 0, False))
    before = worn(pair)[1]
    pair.run(("trim", 64, 0, 63 * PAGE))
    assert worn(pair)[1] - before == 1
    pair.compare_all()


@pytest.mark.parametrize("pair", [BUDDY | COALESCED], indirect=True)
def test_pending_descriptors_of_a_group_given_back_are_dropped(pair):
    pair.run(("fill", 64, 64, 0))
    before = worn(pair)[1]
    pair.run(("trim", 64, 0, 64 * PAGE))
    pair.run(("kill",))
    pair.run(("flush",))
    assert worn(pair)[1] - before == 16 + 1 + 2
    pair.compare_all()


@pytest.mark.parametrize(
    ("pair", "pages"), [(SMALL | {"pages": 600, "initialise": "subsection"}, 512)], indirect=["pair"]
)
def test_first_write_initialises_the_subsection(pair, pages):
    pair.run(("write", 5, 0, PAGE, 0, False))
    assert worn(pair)[1] == pages // 64 * 16 + 1
    pair.run(("write", 500, 0, PAGE, 0, False))
    assert worn(pair)[1] == pages // 64 * 16 + 2
    pair.compare_all()


@pytest.mark.parametrize("pair", [SMALL | {"pages": 640, "initialise": "eager"}], indirect=True)
def test_eager_initialises_all_pages_before_the_first_request(pair):
    pages = pair.info.page_count
    assert worn(pair)[1] == pages // 64 * 16 + -(-(pages % 64) // 4)
    pair.run(("reopen",))
    assert worn(pair)[1] == pages // 64 * 16 + -(-(pages % 64) // 4)
    pair.compare_all()


@pytest.mark.parametrize("placement_name", [name for name, one in placement.family.modules.items() if one.ON_MEDIUM])
def test_descriptors_of_a_page_of_them_lie_side_by_side(placement_name):
    """What bringing up a group takes for granted of every placement."""
    plan = planned(700, 3, SMALL | {"placement_name": placement_name})
    state, pages = plan.placement_state, plan.info.page_count
    placed = [int(plan.placement.descriptor_at(state, page)) for page in range(pages)]
    assert all(placed[page] == placed[page - page % 64] + 64 * (page % 64) for page in range(pages))
    assert all(at % PAGE == 0 for at in placed[::64])
