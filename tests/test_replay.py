# SPDX-License-Identifier: MIT
"""A replay wears the very lines that a device wears, and its figures follow from the counters."""

import itertools
import random
import uuid

import numpy as np
import pytest
from conftest import one_worker
from pairs import PAIRS, THOROUGH

from pmem_core import geometry, image, leveling, offline, tracescan
from pmem_core.counters import KINDS as LINE_KINDS
from pmem_core.device import Device
from pmem_core.errors import UsageError
from pmem_core.replay import lives, workloads
from pmem_core.replay.endurance import Endurance
from pmem_core.replay.memory import Memory

PAGE = 4096
PAGES = 60
KINDS = (tracescan.WRITE, tracescan.TRIM, tracescan.ZERO, tracescan.ZERO_KEEP, tracescan.FLUSH)
NEVER = Endurance(1 << 31)


def small(name):
    """Parameters of a leveling under which a small medium moves much."""
    parameters = leveling.family.modules[name].PARAMETERS
    return {
        key: min(max(3 if key == "interval" else 2, least), most) for key, (_, least, most, _) in parameters.items()
    }


def plan_of(placing, levelling, **choices):
    """A device of about PAGES pages; more for a placement whose alignment takes them."""
    size = (PAGES * 9 // 8 + 20) * PAGE + ((4 << 20) if placing in ("linear", "ram") else 0)
    return geometry.plan(size, placement_name=placing, leveling_name=levelling, parameters=small(levelling), **choices)


def requests(count, device_bytes, seed):
    """Random requests of every kind, aligned and not."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        kind = draw.choices(KINDS, [12, 2, 1, 1, 2])[0]
        size = draw.choice([PAGE, PAGE, PAGE, 512, 100, 3 * PAGE, 5000, 1])
        first = draw.randrange(device_bytes - size)
        if draw.random() < 0.6:
            first -= first % PAGE
        found.append((kind, first, size) if kind != tracescan.FLUSH else (kind, 0, 0))
    return found


def perform(device, request):
    """One request, on a device."""
    kind, offset, count = request
    if kind == tracescan.WRITE:
        device.write(bytes(count), offset)
    elif kind == tracescan.TRIM:
        device.trim(count, offset)
    elif kind in (tracescan.ZERO, tracescan.ZERO_KEEP):
        device.zero(count, offset, may_trim=kind == tracescan.ZERO)
    else:
        device.flush()


SIZES = ((4096, 256, 64), (512, 64, 16), (16384, 4096, 128))


@pytest.mark.slow
@pytest.mark.parametrize(("placing", "levelling"), [pytest.param(*pair, marks=one_worker(*pair)) for pair in PAIRS])
def test_replay_wears_what_a_device_wears(tmp_path, placing, levelling):
    """Line by line, with the totals, after the same requests."""
    seed = 7
    print(f"seed {seed}")
    both = ("each", "coalesced")[: 1 + (levelling in THOROUGH and placing not in ("none", "ram"))]
    for (frame_bytes, line_bytes, descriptor_bytes), writes in itertools.product(SIZES, both):
        plan = plan_of(
            placing,
            levelling,
            descriptor_writes=writes,
            frame_bytes=frame_bytes,
            line_bytes=line_bytes,
            descriptor_bytes=descriptor_bytes,
        )
        made = requests(400, plan.device_bytes, seed)
        path = tmp_path / f"{frame_bytes}-{writes}.pmem"
        image.create(path, plan)
        with Device(path) as device:
            for request in made:
                perform(device, request)
        memory = Memory(plan, NEVER)
        kinds, offsets, counts = (np.array(column) for column in zip(*made, (tracescan.DRAIN, 0, 0), strict=True))
        assert offline.replay(memory.handle, kinds, offsets, counts, 0, 1) == len(kinds)
        assert np.array_equal(memory.counters(), np.fromfile(path / "wear", "<u4"))
        with Device(path, read_only=True) as device:
            tally = device.mapping.core["tally"][0]
            for name in ("page_writes", "moves", "hottest"):
                assert memory.tally[name] == tally[name], name
            assert memory.tally["worn"].tolist() == tally["worn"].tolist()


def test_trim_of_what_was_never_written_teaches_a_replay_no_more_than_a_device(tmp_path):
    """Descriptors in memory: a section never written is passed over, and its pages stay unknown."""
    plan = geometry.plan(40 << 20, placement_name="ram", leveling_name="start_gap", parameters=small("start_gap"))
    image.create(tmp_path / "disk.pmem", plan)
    made = [(tracescan.TRIM, 17 << 20, PAGE), (tracescan.WRITE, (17 << 20) + 7, 100)]
    memory, columns = Memory(plan, NEVER), [np.array(column) for column in zip(*made, strict=True)]
    offline.replay(memory.handle, *columns, 0, 1)
    with Device(tmp_path / "disk.pmem") as device:
        for request in made:
            perform(device, request)
        worn = device.mapping.core["tally"][0]["worn"].tolist()
    assert memory.tally["worn"].tolist() == worn and worn[0] == 1


@pytest.mark.parametrize("levelling", leveling.family.modules)
def test_whole_pages_are_written_alike_one_way_and_the_other(levelling):
    plan = plan_of("interleaved", levelling)
    pages = np.random.default_rng(3).integers(0, plan.info.page_count, 500)
    one, other = Memory(plan, NEVER), Memory(plan, NEVER)
    assert offline.write_pages(one.handle, pages, 0, 1, 0) == len(pages)
    kinds = np.full(len(pages), tracescan.WRITE)
    offline.replay(other.handle, kinds, pages * PAGE, np.full(len(pages), PAGE), 0, 1)
    assert np.array_equal(one.counters(), other.counters())


# ---- deaths ----


def test_first_death_is_the_write_that_reaches_the_endurance():
    """Without leveling and descriptors the hottest page dies, at a count that can be foreseen."""
    plan = geometry.plan(32 * PAGE, placement_name="none", leveling_name="none")
    memory = Memory(plan, Endurance(5), deaths=3)
    pages = np.array([1, 2, 2, 3, 2, 2, 1, 2, 2, 1])
    assert offline.write_pages(memory.handle, pages, 0, 1, 0) == 8
    first = 2 * PAGE // plan.info.line_bytes + 2 * PAGE // plan.info.line_bytes
    assert memory.deaths() == [{"page_writes": 7, "line": first + line} for line in range(3)]
    assert memory.dead == PAGE // plan.info.line_bytes


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_lines_die_at_their_own_endurance(kind):
    """The naive way: after each write, every counter is compared with what its line survives."""
    plan = geometry.plan(16 * PAGE, placement_name="interleaved", leveling_name="none", line_bytes=1024)
    endurance, seed = Endurance(40, kind, 0.3), 5
    survives = endurance.drawn(plan.line_count, seed)
    memory = Memory(plan, endurance, deaths=20, seed=seed)
    pages = np.random.default_rng(1).integers(0, plan.info.page_count, 400)
    expected, dead = [], np.zeros(plan.line_count, bool)
    for number in range(len(pages)):
        offline.write_pages(memory.handle, pages[number : number + 1], 0, 1 << 30, 0)
        now = memory.counters() >= survives
        expected += [line for line in np.flatnonzero(now & ~dead).tolist() if line >= 8]
        dead |= now
    assert sorted(death["line"] for death in memory.deaths()) == sorted(expected[:20])
    assert memory.dead == len(expected) > 5


def test_endurances_have_the_mean_and_the_spread_asked_for():
    for kind in ("normal", "lognormal"):
        drawn = Endurance(100_000, kind, 0.2).drawn(200_000, 1)
        assert drawn.mean() == pytest.approx(100_000, rel=0.01) and drawn.std() == pytest.approx(20_000, rel=0.02)
    assert Endurance(5).drawn(10, 1) is None


@pytest.mark.parametrize("choice", [{"kind": "even"}, {"mean": 0}, {"mean": 1 << 32}, {"spread": 0.0}])
def test_endurance_that_cannot_be_is_refused(choice):
    with pytest.raises(UsageError):
        Endurance(**({"mean": 10} | choice))


# ---- workloads ----


def batch_of(name, page_count, given=None, seed=1):
    """The first pages of a workload."""
    module = workloads.family.modules[name]
    chosen = {key: spec[0] for key, spec in module.PARAMETERS.items()} | (given or {})
    return next(module.pages(page_count, chosen, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", workloads.family.modules)
@pytest.mark.parametrize("page_count", [1, 2, 1000])
def test_workload_stays_on_the_device_and_repeats_by_seed(name, page_count):
    pages = batch_of(name, page_count)
    assert len(pages) == workloads.BATCH and pages.min() >= 0 and pages.max() < page_count
    assert np.array_equal(pages, batch_of(name, page_count))


def test_zipf_has_the_shares_of_its_formula():
    """Unscattered, page r - 1 gets 1 / r**theta."""
    count = 50
    found = np.bincount(batch_of("zipf", count, {"theta": 99, "scattered": 0}), minlength=count)
    share = np.arange(1, count + 1) ** -0.99
    assert found / workloads.BATCH == pytest.approx(share / share.sum(), rel=0.15)


def test_hot_pages_get_their_share():
    counts = np.sort(np.bincount(batch_of("hot_cold", 1000, {"hot_pages": 10, "hot_writes": 90}), minlength=1000))
    assert counts[-100:].sum() / counts.sum() == pytest.approx(0.9, abs=0.01)


def test_birthday_stays_on_a_page_for_its_residence():
    pages = batch_of("birthday", 1 << 30, {"residence": 100})
    changes = np.flatnonzero(np.diff(pages)) + 1
    assert np.array_equal(changes, np.arange(100, len(pages), 100))


# ---- whole lives ----


@pytest.mark.parametrize(("unit", "ratio"), [(4096, "32.50"), (256, "3.82"), (64, "1.00")])
def test_hottest_over_mean_is_that_of_the_layout(unit, ratio):
    """Each page written once: 64 descriptors share a page of 4096 bytes, 4 a line of 256, none a line of 64."""
    plan = geometry.plan(8192 + 65 * PAGE * 4, placement_name="interleaved", leveling_name="none", line_bytes=unit)
    source = lives.Synthetic("sequential", {}, plan, 1)
    life = lives.live(plan, source, NEVER, page_writes_max=plan.info.page_count)
    wear = lives.figures(life, source, NEVER)["wear"]["all"]
    assert f"{wear['max'] / wear['mean']:.2f}" == ratio


def test_life_repeats_to_the_last_digit_and_changes_with_the_seed():
    plan = plan_of("interleaved", "start_gap")

    def life(seed):
        source = lives.Synthetic("zipf", {}, plan, seed)
        found = lives.figures(lives.live(plan, source, Endurance(500)), source, Endurance(500))
        return {key: value for key, value in found.items() if key != "seconds"}

    assert life(1) == life(1) and life(1)["page_writes"] != life(2)["page_writes"]


def test_figures_are_those_of_the_counters():
    plan, endurance = plan_of("interleaved", "start_gap"), Endurance(300)
    source = lives.Synthetic("uniform", {}, plan, 1)
    life = lives.live(plan, source, endurance, deaths=5)
    found = lives.figures(life, source, endurance)
    counters = life.memory.counters()[8192 // plan.info.line_bytes :]
    causes = found["wear"]["by_cause"]
    assert counters.sum() == causes["host"] + causes["descriptor"] + causes["move"]
    assert found["wear"]["all"]["max"] == counters.max() >= 300
    assert found["dead_lines"] == np.count_nonzero(counters >= 300) >= 5
    assert found["ended"] == "death" and found["first_death"]["kind"] in LINE_KINDS
    share = found["deaths"][0]["page_writes"] / found["page_writes"]
    borne = causes["host"] + causes["descriptor"]
    assert found["normalized_life"] == pytest.approx(borne * share / (len(counters) * 300))
    assert found["extra_writes"] == pytest.approx(causes["move"] / borne)


@pytest.mark.parametrize("ends", ["writes", "source", "interrupted"])
def test_life_says_what_ended_it(ends):
    plan = plan_of("interleaved", "none")
    requests = np.array([(tracescan.WRITE, 0, PAGE)], tracescan.REQUEST)

    def watch(share, memory):
        if ends == "interrupted":
            raise KeyboardInterrupt

    source = lives.Recorded("one write", lambda: iter([requests]), plan, passes=3)
    if ends != "source":
        source = lives.Synthetic("uniform", {}, plan, 1)
    life = lives.live(plan, source, Endurance(1 << 20), page_writes_max=100 if ends == "writes" else 0, watch=watch)
    assert life.ended == ends
    assert life.memory.page_writes == {"source": 3, "writes": 100, "interrupted": workloads.BATCH}[ends]
    assert lives.figures(life, source, Endurance(1 << 20))["extrapolated"]


def test_requests_beyond_the_device_are_left_out_and_counted():
    plan = plan_of("interleaved", "none")
    made = [(tracescan.WRITE, 0, PAGE), (tracescan.WRITE, plan.device_bytes - 100, 200), (tracescan.WRITE, 1 << 60, 1)]
    source = lives.Recorded("some", lambda: iter([np.array(made, tracescan.REQUEST)]), plan, passes=1)
    life = lives.live(plan, source, Endurance(10))
    assert life.memory.page_writes == 1 and source.describe()["beyond_device"] == 2


# ---- levelings under attack ----


def test_table_swap_spreads_one_hot_page_over_the_device():
    """No block is chosen again and again: a repeated page lives as balls thrown into bins say."""
    plan = geometry.plan(
        8192 + 2048 * PAGE, placement_name="none", leveling_name="table_swap", parameters={"block_frames": 1}
    )
    source = lives.Synthetic("repeated", {}, plan, 1)
    life = lives.live(plan, source, Endurance(20_000))
    # 20 visits of 1000 writes to one frame of 2000 take thousands of visits.
    assert life.memory.page_writes > 2_000_000


def test_hot_frames_of_large_blocks_are_moved_too():
    """A place that a hot frame has left stays worn; that alone is no reason to move what lies there now."""
    parameters = {"interval": 20, "block_frames": 16}
    plan = geometry.plan(
        8192 + 4096 * 1056,
        leveling_name="sampled_swap",
        parameters=parameters,
        line_bytes=4096,
        uuid=str(uuid.UUID(int=1)),
    )
    source, survives = lives.Synthetic("uniform", {}, plan, 1), Endurance(10_000)
    assert lives.figures(lives.live(plan, source, survives), source, survives)["normalized_life"] > 0.8
