# SPDX-License-Identifier: MIT
"""Every page map does what its naive twin does: who shares a descriptor, who holds it, and what it costs."""

import ctypes
import functools
import inspect
import os

import naive_pagemaps
import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmem_core import layout, pagemaps
from pmem_core.arena import Arena
from pmem_core.pagemaps import _rbtree as rbtree

MAPS = pagemaps.family.modules
OPERATIONS = (
    "bring_up",
    "map_extent",
    "unmap_extent",
    "lookup",
    "get_page",
    "put_page",
    "begin_io",
    "end_io",
)
# Small devices of uneven sizes, and parameters that make a run of descriptors small.
SIZES = {"two_level": (1, 512, 1300), "hotplug_subsection": (1, 1300), "mmap_time": (1, 150, 4200)}
SMALL = {"shift": 3, "outstanding": 3}
# For a long campaign: a thousand and more.
EXAMPLES = int(os.environ.get("PMEM_NBD_PAGEMAP_EXAMPLES", "30"))
WORDS = {"flags": 1, "count": 3, "index": 4, "order": 5}


def grouped(names):
    """Tests of one page map are for one worker: it is compiled once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(f"pagemaps-{name}")) for name in names]


def defaults(module):
    """Every parameter of a page map."""
    return {name: spec[0] for name, spec in module.PARAMETERS.items()}


def words_at(address, count):
    """`count` int64 words at `address`, without compiled code."""
    return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(int(address)))


class Both:
    """A page map and its twin, told the same things."""

    def __init__(self, name, page_count, parameters):
        self.module, self.name = MAPS[name], name
        chosen = defaults(self.module) | parameters
        self.arena, self.chosen = Arena(), chosen
        self.states = self.module.plan(page_count, chosen, self.arena)
        self.state, self.page_count = self.states[0], page_count
        self.extents, self.holders = [], []

    @functools.cached_property
    def twin(self):
        """Made when it is needed: it is not for large devices."""
        return naive_pagemaps.TWINS[self.name](self.page_count, self.chosen)

    def hot(self, function, *arguments):
        return getattr(self.module, function)(self.state, *map(int, arguments))

    def bring_up(self, pages):
        self.twin.bring_up(pages)
        assert self.hot("bring_up", pages) == self.twin.covered

    def map(self, first, count):
        assert self.hot("map_extent", first, count) == layout.OK
        self.twin.map(first, count)
        self.extents.append((first, count))

    def unmap(self, number):
        if self.extents:
            extent = self.extents.pop(number % len(self.extents))
            self.hot("unmap_extent", *extent)
            self.twin.unmap(*extent)

    def hold(self, page, io):
        address = self.hot("begin_io" if io else "get_page", page)
        key = (self.twin.begin_io if io else self.twin.get)(page)
        assert (address == pagemaps.NONE) == (key is None)
        assert (address == pagemaps.NO_ROOM) == (key == "no room")
        self.holders.append((io, page, address, key))

    def let_go(self, number):
        if self.holders:
            io, page, address, key = self.holders.pop(number % len(self.holders))
            self.hot("end_io" if io else "put_page", page, address)
            (self.twin.end_io if io else self.twin.put)(page, key)

    def look(self, pages):
        """Compare what is seen at `pages`, and every descriptor that is held."""
        seen = {}
        for page in pages:
            key, address = self.twin.key(page), self.hot("lookup", page)
            assert (address == pagemaps.NONE) == (key is None), page
            assert seen.setdefault(key, address) == address
        assert len(set(seen.values())) == len(seen), "different descriptors are at different addresses"
        for _, page, address, key in self.holders:
            if address > 0:
                assert seen.setdefault(key, address) == address, "whoever holds a page has what the others get"
                if self.module.SHARED:
                    assert self.hot("lookup", page) == address
                self.look_at(page, address, key)
        self.compare_figures()

    def look_at(self, page, address, key):
        """The bytes of a descriptor that is held."""
        words = words_at(address, 8)
        assert words[WORDS["count"]] & 0xFFFFFFFF == self.twin.held(key) == pagemaps.refcount_of(address)
        order = words[WORDS["order"]]
        assert words[WORDS["flags"]] and words[WORDS["index"]] == page >> order << order

    def compare_figures(self):
        found = {name: int(self.state[name]) for name in self.twin.known}
        assert found == self.twin.figures()
        assert self.state["initialised_bytes"] >= 64 * self.state["initialised"]
        if self.module.WHERE != "medium":
            assert self.state["medium_bytes"] == self.state["stores"] == 0

    def memory(self):
        """What is taken now."""
        bytes_ = int(self.state["descriptor_bytes"]), int(self.state["structure_bytes"])
        return bytes_, self.module.figures(self.states)

    def release_all(self, unmap_first):
        for unmapping in (unmap_first, not unmap_first):
            while self.extents if unmapping else self.holders:
                (self.unmap if unmapping else self.let_go)(1)


def perform(both, operations):
    """Perform (what, x, y), each compared."""
    for what, x, y in operations:
        page = x % both.page_count
        if what == "bring_up":
            both.bring_up(y)
        elif what == "map":
            both.map(page, 1 + y % (both.page_count - page))
        elif what == "unmap":
            both.unmap(x)
        elif what in ("get", "io"):
            both.hold(page, what == "io")
        else:
            both.let_go(x)
        both.look({page, (page + y) % both.page_count, both.page_count - 1, 0, max(page - 1, 0)})
        if both.name == "interval_tree":
            check_tree(both.state["tree"])


NUMBERS = st.one_of(st.integers(0, 20), st.integers(0, 1400), st.sampled_from([63, 64, 65, 511, 512, 1024, 4095, 4096]))
WHAT = st.sampled_from(["map", "map", "unmap", "get", "get", "get", "io", "let_go", "let_go", "bring_up"])
STEP = st.tuples(WHAT, NUMBERS, NUMBERS)
STEPS = st.one_of(st.lists(STEP, max_size=20), st.lists(STEP, min_size=20, max_size=50))


@pytest.mark.slow
@pytest.mark.contract
@pytest.mark.parametrize("name", grouped(MAPS))
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_page_map_does_what_its_twin_does(name, data):
    page_count = data.draw(st.sampled_from(SIZES.get(name, (1, 65, 150))))
    parameters = {key: value for key, value in SMALL.items() if key in MAPS[name].PARAMETERS}
    if name == "hotplug_subsection":
        parameters = {"shift": 9, "mapping_pins": data.draw(st.integers(0, 1))}
    both = Both(name, page_count, parameters)
    if name == "buddy":
        both.bring_up(page_count)  # its heads stay
    before, some = both.memory(), range(0, page_count, 1 + page_count // 200)
    perform(both, data.draw(STEPS))
    both.look(some)
    both.release_all(data.draw(st.booleans()))
    both.look(some)
    assert both.memory() == before, "all was released, so memory is where it was"


@pytest.mark.parametrize("name", MAPS)
def test_page_map_is_complete(name):
    module = MAPS[name]
    assert "Source: " in module.__doc__ and module.TITLE and module.SOURCE, "a page map cites where it comes from"
    assert module.WHERE in ("medium", "memory", "nowhere") and module.SHARED in (True, False)
    assert module.STATE.names[: len(pagemaps.FIELDS)] == tuple(field for field, _ in pagemaps.FIELDS)
    for function in OPERATIONS:
        hot = getattr(module, function)
        stub = inspect.signature(getattr(pagemaps, function))
        assert list(stub.parameters) == list(inspect.signature(getattr(hot, "py_func", hot)).parameters), function
    for default, least, most, text in module.PARAMETERS.values():
        assert least <= default <= most and text
    arena = Arena()
    states = module.plan(1000, defaults(module), arena)
    assert all(isinstance(value, int | float) for value in module.figures(states).values())
    assert name in naive_pagemaps.TWINS, "a page map has a naive twin"


def test_states_select_one_page_map_each():
    types = {numba.from_dtype(module.STATE) for module in MAPS.values()}
    assert len(types) == len(MAPS)
    for module in MAPS.values():
        assert pagemaps.family.of_dtype(module.STATE) is module


@numba.njit
def through_the_family(states, extents, page):
    """The descriptor of a page of a mapped file, asked for twice, as callers of the family ask."""
    state = states[0]
    pagemaps.map_extents(state, extents)
    mine, yours = pagemaps.begin_io(state, page), pagemaps.begin_io(state, page)
    pagemaps.end_io(state, page, yours)
    pagemaps.end_io(state, page, mine)
    pagemaps.unmap_extents(state, extents)
    return mine, yours


@pytest.mark.contract
@pytest.mark.parametrize("name", grouped(["temporary", "linear_dev"]))
def test_two_who_ask_share_a_descriptor_where_that_is_promised(name):
    """Also: the type of the state picks the code."""
    module, arena = MAPS[name], Arena()
    states = module.plan(600, defaults(module), arena)
    extents = np.array([(0, 3), (590, 10), (2, 70)], np.int64)
    mine, yours = through_the_family(states, extents, 595)
    assert (mine == yours) == module.SHARED and min(mine, yours) > 0


# ---- what single maps promise ----


@pytest.mark.contract
@pytest.mark.xdist_group("pagemaps-buddy")
@pytest.mark.parametrize("page_count", [1, 64, 1000, (1 << 32) - 1])
def test_device_is_brought_up_with_a_head_for_each_bit_of_its_size(page_count):
    both = Both("buddy", page_count, {})
    heads = bin(page_count).count("1")
    assert both.hot("bring_up", page_count) == page_count
    assert MAPS["buddy"].figures(both.states) == {"heads": heads} and both.state["initialised"] == heads
    held = [both.hot("get_page", page) for page in (0, page_count // 3, page_count - 1)]
    assert heads <= MAPS["buddy"].figures(both.states)["heads"] <= heads + 3 * 32
    for page, descriptor in zip((0, page_count // 3, page_count - 1), held, strict=True):
        both.hot("put_page", page, descriptor)
    assert MAPS["buddy"].figures(both.states) == {"heads": heads}


FOR_EVERY_PAGE = ["interleaved", "linear_dev", "linear_mem", "mmap_time", "interval_tree", "two_level"]


@pytest.mark.contract
@pytest.mark.parametrize("name", grouped(FOR_EVERY_PAGE))
def test_every_page_of_a_16_tib_device_has_its_descriptor(name):
    """Tables are as large as they would be, and cost what is touched."""
    both, held = Both(name, 1 << 32, {}), {}
    for page in (0, 12345678, (1 << 32) - 1):
        both.hot("map_extent", page, 1)
        held[page] = both.hot("get_page", page)
    assert len(set(held.values())) == len(held)
    for page, descriptor in held.items():
        assert both.hot("lookup", page) == descriptor
        assert words_at(descriptor, 8)[WORDS["index"]] == page


@pytest.mark.contract
@pytest.mark.xdist_group("pagemaps-interval_tree")
@pytest.mark.parametrize("again", [False, True])
def test_page_held_beyond_its_mapping_keeps_its_descriptor(again):
    """And a mapping made meanwhile shares it; the array goes with the last of it."""
    both = Both("interval_tree", 64, {})
    both.map(0, 40)
    both.hold(13, False)
    both.hold(13, True)
    both.hold(15, False)
    both.unmap(0)
    both.look(range(64))
    assert MAPS["interval_tree"].figures(both.states)["nodes"] == 2
    if again:
        both.map(10, 5)
        both.look(range(64))
    while both.holders:
        both.let_go(0)
        both.look(range(64))
    both.unmap(0)
    assert both.memory()[0] == (0, 0)


@pytest.mark.contract
@pytest.mark.xdist_group("pagemaps-interval_tree")
def test_a_mapping_without_room_changes_nothing():
    both = Both("interval_tree", 64, {"room": 1})
    both.map(0, 33)
    before = both.memory()
    assert both.hot("map_extent", 20, 40) == pagemaps.NO_ROOM
    assert both.memory() == before
    both.look(range(64))
    extents = np.array([(2, 7), (20, 40)], np.int64)
    assert pagemaps.map_extents(both.state, extents) == pagemaps.NO_ROOM
    assert both.memory() == before


# ---- the red-black tree ----

LEFT, RIGHT, LINK, FIRST, LAST, MAX = range(6)


def check_tree(tree):
    """The invariants of a red-black tree and of its MAX; its intervals in order: (first, last, node)."""
    words = words_at(int(tree["nodes"]), 8 * int(tree["made"])).reshape(-1, 8)
    assert words[0, LINK] == 0 and words[0, MAX] == -1, "nobody is black and covers nothing"
    found = []

    def walk(node, parent):
        """The black height and the largest last page of a subtree."""
        if not node:
            return 1, -1
        red = words[node, LINK] & 1
        assert words[node, LINK] >> 1 == parent
        assert not (red and words[parent, LINK] & 1), "no red node has a red parent"
        height, left_max = walk(words[node, LEFT], node)
        found.append((int(words[node, FIRST]), int(words[node, LAST]), int(node)))
        other, right_max = walk(words[node, RIGHT], node)
        assert height == other, "every path has as many black nodes"
        assert words[node, MAX] == max(left_max, right_max, words[node, LAST])
        return height + (not red), words[node, MAX]

    root = int(tree["root"])
    walk(root, 0)
    assert not words[root, LINK] & 1, "the root is black"
    assert len(found) == tree["count"] and found == sorted(found, key=lambda interval: interval[0])
    return found


@pytest.mark.contract
@pytest.mark.xdist_group("pagemaps-interval_tree")
@settings(max_examples=2 * EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 12)), max_size=60))
def test_stab_finds_what_a_list_finds(steps):
    """Intervals overlap here; they are added and taken out in any order."""
    tree, arena, alive = np.zeros(1, rbtree.TREE)[0], Arena(), {}
    rbtree.plan(tree, 60, arena)
    for add, first, more in steps:
        if add or not alive:
            node = rbtree.insert(tree, first, first + more)
            assert node not in alive
            alive[node] = (first, first + more)
        else:
            node = sorted(alive)[first % len(alive)]
            rbtree.delete(tree, node)
            del alive[node]
        assert {node: (first, last) for first, last, node in check_tree(tree)} == alive
        deepest, total = rbtree.depths(tree)
        assert deepest <= 2 * np.log2(len(alive) + 1) and len(alive) <= total <= deepest * len(alive)
        for last in (first, first + more):
            overlapping, node = [], rbtree.first_overlap(tree, first, last)
            while node:
                overlapping.append(node)
                node = rbtree.next_overlap(tree, node, first, last)
            expected = {n for n, (low, high) in alive.items() if low <= last and high >= first}
            assert len(overlapping) == len(expected) and set(overlapping) == expected
            begins = [alive[node][0] for node in overlapping]
            assert begins == sorted(begins)


@pytest.mark.xdist_group("pagemaps-interval_tree")
def test_tree_of_100_000_fragments_stays_shallow():
    """A filesystem's fragments, mapped in no order, unmapped in another; compiled only, for it is long."""
    random, count = np.random.default_rng(65), 100_000
    both = Both("interval_tree", 1 << 32, {})
    extents = np.stack([random.permutation(count) * 7, random.integers(1, 5, count)], axis=1)
    assert pagemaps.map_extents(both.state, extents) == layout.OK
    figures = MAPS["interval_tree"].figures(both.states)
    assert figures["nodes"] == count and figures["depth_max"] <= 2 * np.log2(count + 1)
    assert np.log2(count) - 2 < figures["depth_mean"] < np.log2(count) + 2
    pagemaps.unmap_extents(both.state, random.permutation(extents[: count // 2]))
    assert len({both.hot("lookup", page) for page in extents[:100, 0]}) == 1
    assert len({both.hot("lookup", page) for page in extents[-100:, 0]}) == 100
    pagemaps.unmap_extents(both.state, extents[count // 2 :])
    assert both.memory()[0] == (0, 0)
