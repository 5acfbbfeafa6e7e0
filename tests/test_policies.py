# SPDX-License-Identifier: MIT
"""Every policy keeps its family's contract; Start-Gap is the paper's; what a power cut may need is not overwritten."""

import inspect
import random

import naive
import numba
import numpy as np
import pytest

from pmem_core import binding, choices, geometry, layout, leveling, media, placement, reservations
from pmem_core.errors import UsageError

pytestmark = pytest.mark.contract

PAGE = 4096
FRAME = 256


# ---- the family ----

FAMILIES = {
    "placement": (placement.family, ("plan", "data_at", "descriptor_spans"), ("page_at", "descriptor_at")),
    "leveling": (leveling.family, ("plan", "spare_frames"), ("translate", "tick", "settle")),
}
POLICIES = [(kind, name) for kind, (family, _, _) in FAMILIES.items() for name in family.modules]


@pytest.mark.parametrize(("kind", "name"), POLICIES)
def test_policy_is_complete(kind, name):
    family, cold, hot = FAMILIES[kind]
    module = family.modules[name]
    assert "Source: " in module.__doc__ or getattr(module, "SOURCE", ""), "a policy cites where it comes from"
    assert module.STATE.names and all(module.STATE[field].base == np.int64 for field in module.STATE.names)
    for function in (*cold, *hot):
        assert callable(getattr(module, function)), function
    for function in hot:
        stub = inspect.signature(getattr(family_package(kind), function))
        assert list(stub.parameters) == list(inspect.signature(plain(module, function)).parameters), function
    if kind == "placement":
        assert (module.ON_MEDIUM, module.IN_MEMORY) in ((True, False), (False, True), (False, False))
    else:
        assert module.MOVES in (True, False) and module.SOURCE


def family_package(kind):
    """The package of a family."""
    return {"placement": placement, "leveling": leveling}[kind]


def plain(module, function):
    """The Python function behind a hot one."""
    found = getattr(module, function)
    return getattr(found, "py_func", found)


@pytest.mark.parametrize("kind", FAMILIES)
def test_states_select_one_policy_each(kind):
    """The type of a state record picks the code, in numba and in plain Python."""
    family = FAMILIES[kind][0]
    types = {numba.from_dtype(module.STATE) for module in family.modules.values()}
    assert len(types) == len(family.modules)
    for module in family.modules.values():
        assert family.of_dtype(module.STATE) is module


@pytest.mark.parametrize("name", leveling.family.modules)
def test_parameters_are_well_formed(name):
    for parameter, (default, least, most, text) in leveling.family.modules[name].PARAMETERS.items():
        assert parameter.isidentifier() and isinstance(text, str) and text
        assert all(isinstance(value, int) for value in (default, least, most))
        assert least <= default <= most


@pytest.mark.parametrize("name", leveling.family.modules)
def test_plan_gives_the_same_answer_again(name):
    """It runs at every open: another answer would be another map."""
    module = leveling.family.modules[name]
    for parameters in variants(name).values():
        first, second = (module.plan(100, parameters, 12345) for _ in range(2))
        assert first[0].tobytes() == second[0].tobytes() and first[2].tobytes() == second[2].tobytes()
        assert (first[1], first[3]) == (second[1], second[3])


# ---- placements ----


@pytest.mark.parametrize("name", placement.family.modules)
@pytest.mark.parametrize("descriptor_bytes", [1 << n for n in range(4, 13)])
def test_pages_and_descriptors_never_overlap(name, descriptor_bytes):
    """Pages on multiples of 4096, descriptors on multiples of their size, all of them inside, none on another."""
    module = placement.family.modules[name]
    for placed_bytes in (2 * PAGE, 3 * PAGE + 2048, 300 * PAGE, (2 << 20) + 37 * PAGE + 256, (6 << 20) + PAGE):
        state, page_count = module.plan(placed_bytes, descriptor_bytes)
        taken = np.zeros(placed_bytes // 16, np.uint8)
        first, stride, span, spans = module.descriptor_spans(state, page_count)
        pages, descriptors = addresses(state, page_count)
        ranges = [(at, PAGE) for at in pages]
        if module.ON_MEDIUM:
            ranges += [(at, descriptor_bytes) for at in descriptors]
            for at in descriptors:
                number, within = divmod(at - first, stride)
                assert 0 <= number < spans and within + descriptor_bytes <= span
        for at, size in ranges:
            assert at % size == 0 and at >= 0 and at + size <= placed_bytes
            assert not taken[at // 16 : (at + size) // 16].any()
            taken[at // 16 : (at + size) // 16] = 1
        if page_count:
            assert pages[0] == module.data_at(state)
            assert first + (spans - 1) * stride + span <= placed_bytes


@numba.njit
def fill_addresses(states, pages, descriptors):
    """Fill in the placed address of every page and of its descriptor."""
    for page in range(pages.size):
        pages[page] = placement.page_at(states[0], page)
        descriptors[page] = placement.descriptor_at(states[0], page)


def addresses(state, page_count):
    """The placed addresses of every page and of its descriptor, as two lists."""
    pages, descriptors = np.empty(page_count, np.int64), np.empty(page_count, np.int64)
    fill_addresses(state.reshape(1), pages, descriptors)
    return pages.tolist(), descriptors.tolist()


def test_interleaved_descriptor_is_found_by_rounding_modulo_65():
    """As the mail of 2015 has it, for 64-byte descriptors."""
    state, page_count = placement.family.modules["interleaved"].plan(65 * 5 * PAGE, 64)
    assert page_count == 64 * 5
    for page, descriptor in zip(*addresses(state, page_count), strict=True):
        rounded = page // PAGE - page // PAGE % 65
        assert descriptor == rounded * PAGE + (page // PAGE - rounded - 1) * 64


# ---- levelings, in memory ----


def variants(name):
    """Parameters to try a leveling with, whatever they mean: all of them small, one way and the other."""
    module, found = leveling.family.modules[name], {}
    for value in (1, 2, 4, 8):
        for switches in (0, 1):
            chosen = {
                parameter: min(max(switches if most == 1 else value, least), most)
                for parameter, (_, least, most, _) in module.PARAMETERS.items()
            }
            found[",".join(f"{key}={number}" for key, number in chosen.items())] = chosen
    return found


# Regions of unequal size, gaps wider than a region, gaps of one and regions of one.
START_GAP = [
    {"interval": interval, "region_frames": region, "gap_frames": gap, "randomize": randomize}
    for interval, region, gap in [
        (1, 8, 1),
        (3, 8, 3),
        (2, 4, 7),
        (5, 1, 1),
        (1, 1 << 30, 1),
        (2, 1 << 30, 5),
        (1, 16, 8),
    ]
    for randomize in (0, 1)
]
WANTED = [(name, parameters) for name in leveling.family.modules for parameters in variants(name).values()]
WANTED += [("start_gap", parameters) for parameters in START_GAP]
# The other block random, or the coldest of some; spares few enough that checkpoints are needed.
WANTED += [
    ("table_swap", {"interval": interval, "block_frames": size, "candidates": candidates, "spare_blocks": spares})
    for interval, size, candidates, spares in [(1, 1, 1, 1), (3, 2, 1, 2), (1, 1, 5, 3), (4, 2, 3, 1)]
]
WANTED += [
    ("sampled_swap", {"interval": interval, "sample": sample, "block_frames": size, "spare_blocks": spares})
    for interval, sample, size, spares in [(1, 1, 1, 1), (1, 3, 2, 1), (2, 1, 1, 3), (3, 2, 1, 1)]
]


def places_left(name, parameters, medium_frames):
    """How many placed frames there are on so small a medium."""
    return leveling.family.modules[name].plan(medium_frames, parameters, 1)[1]


TRIED = [(name, parameters) for name, parameters in WANTED if places_left(name, parameters, 40) >= 12]
IDS = [f"{name}-{'-'.join(map(str, parameters.values())) or 'plain'}" for name, parameters in TRIED]


@numba.njit
def all_places(handle, places):
    """Fill `places` with the medium frame of every placed frame."""
    run, state = handle[0][0], handle[2][0]
    for frame in range(places.size):
        places[frame] = leveling.translate(state, run, frame)


@numba.njit
def tick(handle, frame):
    """One store of a whole `frame`: levelings look at wear too."""
    run, core, state = handle[0][0], handle[1][0], handle[2][0]
    first = media.frame_at(run, leveling.translate(state, run, frame)) >> run["line_shift"]
    media.wear_lines(run, core, layout.CAUSE_HOST, first, FRAME >> 6)
    leveling.tick(state, run, frame, FRAME >> 6)


@numba.njit
def settle(handle, frame):
    """Settle `frame`."""
    run, core, state = handle[0][0], handle[1][0], handle[2][0]
    return leveling.settle(state, run, core, frame)


class Memory:
    """A leveling over a medium in memory, every placed frame filled with its own number."""

    def __init__(self, name, parameters, medium_frames, seed=65):
        self.module = leveling.family.modules[name]
        self.state, self.frames, table, ticks = self.module.plan(medium_frames, parameters, seed)
        self.medium_frames = medium_frames
        assert self.frames > 0, f"{name} needs more frames than {medium_frames} for {parameters}"
        placed_state = placement.family.modules["none"].STATE
        self.core = np.zeros(1, layout.core_dtype(placed_state, self.module.STATE))
        self.core["leveling"] = self.state
        size = layout.FRAMES_AT + medium_frames * FRAME
        self.media = np.zeros(size, np.uint8)
        self.table, self.durable = table.copy(), table.copy()
        self.arrays = {
            "media": self.media,
            "wear": np.zeros(size // 64, np.uint32),
            "table": self.table,
            "durable": self.durable,
            "ticks": np.zeros(max(1, ticks), np.int64),
            "reserved": np.full((size >> reservations.RESERVE_SHIFT) + 1, reservations.RESERVED, np.uint8),
        }
        self.run = np.zeros(1, layout.RUN)
        for field, array in self.arrays.items():
            self.run[field] = array.ctypes.data
        for field, value in (
            ("medium_bytes", size),
            ("line_count", size // 64),
            ("table_words", len(table)),
            ("tick_words", len(self.arrays["ticks"])),
            ("reserved_count", len(self.arrays["reserved"])),
            ("frame_shift", 8),
            ("line_shift", 6),
        ):
            self.run[field] = value
        self.handle = (self.run, layout.common(self.core), self.core["leveling"])
        self.run["move"] = binding.move_address(*self.handle[:2])
        self.contents = self.media[layout.FRAMES_AT :].view(np.int64).reshape(medium_frames, FRAME // 8)
        self.contents[:] = -1
        self.contents[self.places()] = np.arange(self.frames)[:, None]

    def places(self):
        """The medium frame of every placed frame."""
        found = np.empty(self.frames, np.int64)
        all_places(self.handle, found)
        return found

    def durable_places(self):
        """The same, as a power cut would bring it back."""
        now = self.table.copy()
        self.table[:] = self.durable
        found = self.places()
        self.table[:] = now
        return found

    @property
    def moves(self):
        """Frames moved."""
        return int(self.core["tally"]["moves"][0])

    def checkpoint(self):
        """Make the table durable."""
        self.durable[:] = self.table

    def use(self, frame):
        """One store into `frame`; the stop codes of settling it, each answered with a checkpoint."""
        tick(self.handle, frame)
        codes = [settle(self.handle, frame)]
        while codes[-1] == layout.CHECKPOINT:
            assert len(codes) < 1000
            self.checkpoint()
            codes.append(settle(self.handle, frame))
        assert codes[-1] == layout.OK
        return codes[:-1]


ON_MEDIA = [(*tried, frames) for tried in TRIED for frames in (13, 40) if places_left(*tried, frames)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "medium_frames"), ON_MEDIA)
def test_map_stays_one_to_one_and_every_frame_keeps_its_data(name, parameters, medium_frames):
    memory = Memory(name, parameters, medium_frames)
    draw, before, turns = random.Random(1), memory.places(), 0
    left = np.zeros(memory.frames, bool)
    for step in range(500 if numba.config.DISABLE_JIT else 1500):
        # Mostly one frame, so that its region turns; then all of them.
        frame = 0 if step % 3 else draw.randrange(memory.frames)
        moves = memory.moves
        memory.use(frame)
        if memory.moves == moves:
            continue
        places = memory.places()
        spare = memory.module.spare_frames(memory.core["leveling"][0], memory.table)
        # Frames behind these are too few for a region, and belong to nobody.
        together = np.arange(memory.frames + len(spare))
        assert len(together) <= medium_frames
        assert np.array_equal(np.sort(np.concatenate([places, spare])), together), "each is placed or spare, and once"
        assert (memory.contents[places] == np.arange(memory.frames)[:, None]).all()
        left |= places != before
        turns += int((left & (places == before)).sum())
    assert bool(memory.moves) == memory.module.MOVES
    if memory.moves >= medium_frames**2:
        assert turns, "some frame came back to where it began"


@pytest.mark.parametrize(("name", "parameters"), TRIED, ids=IDS)
def test_power_cut_finds_every_frame_whole(name, parameters):
    """A frame that the durable map still points to is never overwritten, and no checkpoint is asked for in vain."""
    memory = Memory(name, parameters, 40)
    draw = random.Random(2)
    numbers = np.arange(memory.frames)[:, None]
    stops = 0
    for _ in range(400):
        frame = draw.randrange(memory.frames) if draw.random() < 0.3 else 0
        tick(memory.handle, frame)
        code = layout.CHECKPOINT
        while code == layout.CHECKPOINT:
            code = settle(memory.handle, frame)
            durable = memory.durable_places()
            assert (memory.contents[durable] == numbers).all(), "what a power cut brings back is not whole"
            if code != layout.CHECKPOINT:
                break
            stops += 1
            before, moves = memory.places(), memory.moves
            memory.checkpoint()
            # Only with a checkpoint out of the way may the next move go where the last durable map pointed.
            code = settle(memory.handle, frame)
            assert memory.moves > moves
            if memory.moves == moves + 1:
                arrived = set(memory.places().tolist()) - set(before.tolist())
                assert arrived <= set(durable.tolist()), "this move needed no checkpoint"
        assert code == layout.OK
    if memory.module.MOVES:
        assert stops


@pytest.mark.parametrize(("name", "parameters"), TRIED, ids=IDS)
def test_checkpoints_at_random_spare_stops_but_change_no_map(name, parameters):
    """Where frames are depends on the stores alone."""
    often, seldom = (Memory(name, parameters, 40) for _ in range(2))
    draw = random.Random(3)
    stops = [0, 0]
    for _ in range(300):
        frame = draw.randrange(often.frames)
        stops[0] += len(often.use(frame))
        stops[1] += len(seldom.use(frame))
        often.checkpoint()
        assert np.array_equal(often.places(), seldom.places())
    assert stops[0] <= stops[1]


# ---- start_gap ----


@pytest.mark.parametrize("frames", [1, 2, 7, 16])
@pytest.mark.parametrize("interval", [1, 4])
def test_start_gap_is_that_of_the_paper_move_for_move(frames, interval):
    """MICRO 2009, section 4: Start and Gap registers, N lines and one spare, a move every psi writes."""
    parameters = {"interval": interval, "region_frames": 1 << 10, "gap_frames": 1, "randomize": 0}
    memory = Memory("start_gap", parameters, frames + 1)
    start, gap = 0, frames

    def place(line):
        found = (line + start) % frames
        return found + 1 if found >= gap else found

    draw = random.Random(4)
    for writes in range(1, (3 * frames * (frames + 1) + 2) * interval):
        memory.use(draw.randrange(frames))
        if writes % interval == 0:
            # Gap at the bottom: it goes back to the top, and Start advances.
            if gap == 0:
                gap, start = frames, (start + 1) % frames
            else:
                gap -= 1
        assert memory.places().tolist() == [place(line) for line in range(frames)]
        assert memory.moves == writes // interval


def test_start_gap_gap_of_k_needs_a_checkpoint_every_k_moves():
    for gap in (1, 3, 8):
        parameters = {"interval": 1, "region_frames": 16, "gap_frames": gap, "randomize": 0}
        memory = Memory("start_gap", parameters, 16 + gap)
        stops = [move for move in range(10 * gap) if memory.use(move % 16)]
        assert stops == list(range(gap, 10 * gap, gap))


def test_start_gap_regions_do_not_wait_for_each_other():
    """One checkpoint covers a gap's worth of moves in each of them."""
    parameters = {"interval": 1, "region_frames": 8, "gap_frames": 2, "randomize": 0}
    memory = Memory("start_gap", parameters, 10 * 3 + 7)
    assert memory.frames == 8 * 3 + 5
    for region in range(4):
        for _ in range(2):
            assert memory.use(region * 8) == []
    assert memory.use(0) == [layout.CHECKPOINT]
    for region in range(1, 4):
        assert memory.use(region * 8) == []


def test_start_gap_wants_a_checkpoint_before_it_must_have_one():
    parameters = {"interval": 1, "region_frames": 16, "gap_frames": 8, "randomize": 0}
    memory = Memory("start_gap", parameters, 24)
    wanted = []
    for _ in range(8):
        assert memory.use(0) == []
        wanted.append(int(memory.run["wanted"][0]))
    # From the move on that finds three quarters of the gap filled.
    assert wanted == [0, 0, 0, 0, 0, 0, 1, 1]


def test_exchanging_wants_a_checkpoint_before_it_must_have_one():
    memory = Memory("optane", {"threshold": 1, "block_frames": 1, "spare_blocks": 8}, 40)
    wanted = []
    for _ in range(8):
        assert memory.use(0) == []
        wanted.append(int(memory.run["wanted"][0]))
    assert wanted == [0, 0, 0, 0, 0, 0, 1, 1]
    assert memory.use(0) == [layout.CHECKPOINT]


@pytest.mark.parametrize("gap_frames", [1, 3])
def test_start_gap_spare_frames_go_round_the_ring(gap_frames):
    parameters = {"interval": 1, "region_frames": 4, "gap_frames": gap_frames, "randomize": 0}
    module, ring = leveling.family.modules["start_gap"], 4 + gap_frames
    state, _, table, _ = module.plan(ring + gap_frames + 2, parameters, 65)
    for gap in range(ring):
        table[0] = gap << 32
        found = module.spare_frames(state, table)[:gap_frames].tolist()
        assert found == [(gap + i) % ring for i in range(gap_frames)]


def test_start_gap_table_is_sane_up_to_its_bounds_and_no_further():
    parameters = {"interval": 1, "region_frames": 8, "gap_frames": 2, "randomize": 0}
    module = leveling.family.modules["start_gap"]
    state, _, table, _ = module.plan(10 + 7, parameters, 65)
    for region, size in ((0, 8), (1, 5)):
        for gap, turned, sane in ((size + 1, size - 1, True), (size + 2, 0, False), (0, size, False), (-1, 0, False)):
            changed = table.copy()
            changed[region] = gap << 32 | turned
            assert module.table_is_sane(state, changed) == sane, (region, gap, turned)


@pytest.mark.parametrize("medium_frames", range(1, 40))
def test_start_gap_takes_what_it_is_given(medium_frames):
    """Whole regions first; a last one of what is left, if that is more than its gap."""
    parameters = {"interval": 1, "region_frames": 8, "gap_frames": 3, "randomize": 0}
    whole, rest = divmod(medium_frames, 11)
    expected = whole * 8 + max(rest - 3, 0)
    if not expected:
        assert leveling.family.modules["start_gap"].plan(medium_frames, parameters, 0)[1] == 0
        return
    memory = Memory("start_gap", parameters, medium_frames)
    assert memory.frames == expected
    # Frames behind the last region belong to nobody: neither placed nor spare.
    spare = memory.module.spare_frames(memory.core["leveling"][0], memory.table)
    assert len(spare) == 3 * len(memory.table) and set(spare.tolist()).isdisjoint(memory.places().tolist())


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_randomized_is_a_permutation_of_its_own_for_each_image(frames):
    parameters = {"interval": 1, "region_frames": 1 << 30, "gap_frames": 1, "randomize": 1}
    maps = [Memory("start_gap", parameters, frames + 1, seed).places().tolist() for seed in (1, 2)]
    for found in maps:
        assert sorted(found) == list(range(frames))
    if frames >= 16:
        assert maps[0] != maps[1]
        assert maps[0] != list(range(frames))


def test_region_that_is_no_power_of_two_is_a_usage_error():
    with pytest.raises(UsageError, match="power of two"):
        geometry.plan(1 << 20, leveling_name="start_gap", parameters={"region_frames": 6})


@pytest.mark.parametrize(
    ("size", "frame_bytes", "given", "least"),
    [
        (400 << 30, 4096, {"region_frames": 2, "gap_frames": 1}, 8),
        (400 << 30, 4096, {"region_frames": 1, "gap_frames": 4}, 4),
        (choices.SIZE_MAX, 256, {"region_frames": 1}, 16384),
    ],
)
def test_regions_whose_table_the_journal_does_not_hold_are_refused(size, frame_bytes, given, least):
    options = {"placement_name": "none", "leveling_name": "start_gap", "frame_bytes": frame_bytes}
    wanted = f"region_frames={given['region_frames']}: {least} at least, for a table of at most 16777216 regions"
    with pytest.raises(UsageError, match=wanted):
        geometry.plan(size, **options, parameters=given)
    assert len(geometry.plan(size, **options, parameters=given | {"region_frames": least}).table) <= 1 << 24


def test_start_gap_fits_the_largest_medium():
    for frame_bytes in (256, 4096):
        plan = geometry.plan(choices.SIZE_MAX, leveling_name="start_gap", frame_bytes=frame_bytes)
        assert len(plan.table) <= 1 << 24 and plan.placed_bytes > choices.SIZE_MAX * 0.98


def test_state_fits_its_zone_for_every_pair():
    for placing in placement.family.modules.values():
        for levelling in leveling.family.modules.values():
            assert layout.core_dtype(placing.STATE, levelling.STATE).itemsize <= layout.ZONE_BYTES


# ---- blocks that change places through spares ----


@pytest.mark.parametrize("done", range(6))
def test_spare_frames_are_known_in_the_middle_of_a_switch(done):
    """A kill behind the store that switches: some of the words have changed, or none."""
    memory = Memory("optane", {"threshold": 1, "block_frames": 2, "spare_blocks": 3}, 40)
    before = memory.table.copy()
    memory.use(0)
    changed = np.flatnonzero(memory.table[:21] != before[:21])
    assert len(changed) == 5 and not memory.table[-13], "two blocks, two spares, the turn"
    after = memory.module.spare_frames(memory.state, memory.table)
    memory.table[-13] = 5
    memory.table[changed[done:]] = before[changed[done:]]
    assert memory.module.spare_frames(memory.state, memory.table).tolist() == after.tolist()
    assert memory.module.table_is_sane(memory.state, memory.table)


def test_sampled_swap_saves_up_for_16_exchanges_and_no_more():
    """However long the wear was even: else it would do nothing but exchange afterwards."""
    memory = Memory("sampled_swap", {"interval": 10, "sample": 1, "block_frames": 1, "spare_blocks": 3}, 40)
    price, credit = 10 * FRAME // 64, memory.arrays["ticks"][1:2]
    credit[0] = 1 << 40
    while not memory.moves:
        memory.use(0)
    assert credit[0] == (16 - 1) * price


# ---- security_refresh ----


class PaperRefresh:
    """ISCA 2010: keys, a pointer, and frames that are swapped in place."""

    def __init__(self, size, key_of):
        self.size, self.key_of, self.round, self.pointer = size, key_of, 0, 0
        self.frames = list(range(size))  # what each of them holds

    @property
    def keys(self):
        """Those of the round that ends, and of the one that begins."""
        return self.key_of(self.round), self.key_of(self.round + 1)

    def frame_of(self, address):
        """Where an address is, by the paper's formula."""
        was, is_ = self.keys
        refreshed = address < self.pointer or (address ^ was ^ is_) < self.pointer
        return address ^ is_ if refreshed else address ^ was

    def refresh(self):
        """One step; the addresses that change places, or None."""
        was, is_ = self.keys
        address, pair = self.pointer, self.pointer ^ was ^ is_
        if pair > address:
            x, y = address ^ was, address ^ is_
            self.frames[x], self.frames[y] = self.frames[y], self.frames[x]
        self.pointer += 1
        if self.pointer == self.size:
            self.pointer, self.round = 0, self.round + 1
        assert [self.frames[self.frame_of(a)] for a in range(self.size)] == list(range(self.size))
        return (address, pair) if pair > address else None


def refreshing(addresses, **parameters):
    """A leveling of so many frames that have an address, and what tells its keys: level and round → key."""
    parameters = {"outer_interval": 1, "block_frames": 1, "spare_blocks": 2} | parameters
    memory = Memory("security_refresh", parameters, addresses + 4)
    twin = naive.SecurityRefresh(addresses + 4, **parameters, key=int(memory.state["refresh_key"]))
    return memory, twin.round_key


def exchanged(memory, frame):
    """The frames that change places with one store into `frame`."""
    before = memory.places()
    memory.use(frame)
    return tuple(np.flatnonzero(memory.places() != before).tolist())


@pytest.mark.parametrize("addresses", [2, 8, 32])
@pytest.mark.parametrize("interval", [1, 3])
def test_refresh_exchanges_whom_the_paper_swaps_and_when(addresses, interval):
    memory, key = refreshing(addresses, interval=interval, sub_regions=1)
    paper, draw = PaperRefresh(addresses, lambda number: key(1, number)), random.Random(6)
    for stores in range(1, 4 * addresses * interval):
        expected = paper.refresh() if stores % interval == 0 else None
        assert exchanged(memory, draw.randrange(addresses)) == (expected or ())
    assert paper.round == 3 and memory.moves


@pytest.mark.parametrize(("addresses", "sub_regions"), [(8, 2), (32, 4), (32, 16)])
def test_refresh_in_two_levels_exchanges_whom_the_paper_swaps_and_when(addresses, sub_regions):
    """The outer level first; the inner one of the sub-region of the frame that is written, as it is then."""
    memory, key = refreshing(addresses, interval=2, outer_interval=3, sub_regions=sub_regions)
    outer = PaperRefresh(addresses, lambda number: key(0, number))
    size = addresses // sub_regions
    inner = [PaperRefresh(size, lambda number, level=1 + i: key(level, number)) for i in range(sub_regions)]
    counts, draw = [0] * sub_regions, random.Random(7)
    for stores in range(1, 12 * addresses):
        frame, expected = draw.randrange(addresses), set()
        counts[outer.frame_of(frame) // size] += 1
        if stores % 3 == 0:
            expected.update(outer.refresh() or ())
        region = outer.frame_of(frame) // size
        while counts[region] >= 2:
            counts[region] -= 2
            at = {outer.frame_of(address): address for address in range(addresses)}
            expected.update(at[region * size + address] for address in inner[region].refresh() or ())
        assert set(exchanged(memory, frame)) == expected
    assert outer.round >= 3 and sum(one.round for one in inner) >= sub_regions


def test_refresh_passes_over_pairs_of_which_one_is_no_block():
    memory, key = refreshing(5, interval=1, sub_regions=1)
    paper = PaperRefresh(8, lambda number: key(1, number))
    pairs = []
    for _ in range(6 * 8):
        pair = paper.refresh()
        pairs.append(pair)
        assert exchanged(memory, 0) == (pair if pair and max(pair) < 5 else ())
    assert any(pair and max(pair) >= 5 for pair in pairs)


def test_sub_regions_that_are_no_power_of_two_are_a_usage_error():
    with pytest.raises(UsageError, match="power of two"):
        geometry.plan(1 << 20, leveling_name="security_refresh", parameters={"sub_regions": 3})


@pytest.mark.parametrize("damage", [-1, 1 << 60])
def test_refresh_pointer_that_cannot_be_is_found(damage):
    memory, _ = refreshing(8, interval=1, sub_regions=2)
    assert memory.module.table_is_sane(memory.state, memory.table)
    memory.table[8 + 4 + 1] = damage
    assert not memory.module.table_is_sane(memory.state, memory.table)


# ---- optane ----


@numba.njit
def tick_lines(handle, frame, lines):
    """One store of `lines` lines into `frame`."""
    leveling.tick(handle[2][0], handle[0][0], frame, lines)


@pytest.mark.parametrize(
    ("line_bytes", "lines", "stores"),
    [(256, 1, 14336), (256, 16, 896), (64, 1, 14336), (64, 64, 896), (4096, 1, 896), (1024, 4, 896), (64, 5, 7168)],
)
def test_optane_block_migrates_after_14336_writes_of_256_bytes(line_bytes, lines, stores):
    parameters = {"threshold": 14336, "block_frames": 2, "spare_blocks": 1}
    memory = Memory("optane", parameters, 40)
    memory.run["line_shift"] = line_bytes.bit_length() - 1
    for count in range(1, 2 * stores + 1):
        tick_lines(memory.handle, count % 2, lines)
        while settle(memory.handle, 0) == layout.CHECKPOINT:
            memory.checkpoint()
        assert memory.moves == count // stores * 4, "both frames of two blocks"
    assert memory.module.stall_nanoseconds(memory.state, memory.table) == 2 * 51840


def test_optane_block_goes_to_any_place_but_its_own():
    memory = Memory("optane", {"threshold": 1, "block_frames": 1, "spare_blocks": 1}, 8)
    partners = {frame for _ in range(100) for frame in exchanged(memory, 3)}
    assert partners == set(range(6))


def test_optane_of_one_block_stays():
    memory = Memory("optane", {"threshold": 1, "block_frames": 4, "spare_blocks": 1}, 12)
    assert [memory.use(0) for _ in range(3)] == [[], [], []] and memory.moves == 0
