# SPDX-License-Identifier: MIT
"""One red-black interval tree of all ranges of pages that have descriptors.

Source: Ingo Molnar, linux-kernel, 7 May 2015: "some global interval-rbtree of struct page backed pmem ranges", which a
filesystem's fragments would explode: "Think 1 million node interval-rbtree with an average depth of 20: cachemiss
country for even simple lookups - not to mention the freeing/recycling complexity of unused struct pages".

The tree's ranges are disjoint, and every page of a range is mapped equally often, as Linux keeps a process's VMAs: a
mapping's ends split the ranges they fall into, ranges that have become alike join.  So two mappings of a page find the
same descriptor, and a lookup has one answer.  Descriptors come in one array for each gap that a mapping fills, of a
power of two of bytes, as kmalloc has it, and an array is freed as a whole, when no range has pages of it: each
descriptor points to its array, as page->pgmap does in Linux.

A page that is unmapped while somebody holds it keeps its descriptor, as a range of its own, until it is put; the arrays
of descriptors are looked through for such pages when a range is unmapped, as dax_layout_busy_page() does.
"""

import numpy as np

from ..jit import hot, i64_at
from ..layout import OK
from . import _descriptors as d
from . import _pool as pool
from . import _rbtree as rbtree

TITLE = "global interval rbtree of ranges"
SOURCE = "Molnar, 7 May 2015"
WHERE, SHARED = "memory", True
PARAMETERS = {"room": (8, 1, 64, "room for arrays: times one descriptor a page, freed arrays of other sizes included")}
STATE = np.dtype(
    [
        *d.FIELDS,
        ("tree", rbtree.TREE),
        ("arrays", pool.POOL),  # what is known of each array: its address, its order, its pages that are in ranges
        ("array_memory", "<i8"),  # address of what arrays are made of
        ("array_memory_made", "<i8"),  # bytes of it that are, or were, arrays
        ("array_memory_room", "<i8"),
        ("free_arrays", "<i8"),  # address of a word an order: a free array, whose first word has the next
    ]
)
DESCRIPTORS, MAPPINGS = rbtree.OWN, rbtree.OWN_2  # the address of the first page's descriptor; extents that cover it
ARRAY_WORD = 7  # of a descriptor: the address of what is known of its array
ARRAY_AT, ARRAY_ORDER, ARRAY_PAGES = range(3)
ARRAY_WORDS = 8
PG_UNMAPPED = 1 << 6  # the page was unmapped while it was held
ORDERS = 40

bring_up = d.nothing_to_bring_up


def plan(page_count, parameters, arena):
    """See the package."""
    states = np.zeros(1, STATE)
    state = states[0]
    state["page_count"] = page_count
    rbtree.plan(state["tree"], page_count, arena)
    pool.plan(state["arrays"], 8 * ARRAY_WORDS, page_count, arena)
    room = parameters["room"] * page_count << d.BYTES_SHIFT
    state["array_memory"], state["array_memory_room"] = arena.take(room), room
    state["free_arrays"] = arena.take(8 * ORDERS)
    return states


def figures(states):
    """See the package.  Depths count nodes from the root, which is at 1."""
    nodes = int(states[0]["tree"]["count"])
    deepest, total = rbtree.depths(states[0]["tree"])
    arrays = int(states[0]["arrays"]["taken"])
    return {"nodes": nodes, "depth_max": int(deepest), "depth_mean": total / nodes if nodes else 0.0, "arrays": arrays}


@hot
def _count_structure(state):
    state["structure_bytes"] = state["tree"]["count"] * rbtree.NODE_BYTES + state["arrays"]["taken"] * 8 * ARRAY_WORDS


@hot
def _take_array(state, count):
    """An array for `count` descriptors: the address of what is known of it, or NO_ROOM."""
    order = 0
    while 1 << order < count:
        order += 1
    free, count_bytes = i64_at(state["free_arrays"], ORDERS), d.BYTES << order
    at = free[order]
    if at:
        free[order] = i64_at(at, 1)[0]
    elif state["array_memory_made"] + count_bytes > state["array_memory_room"]:
        return d.NO_ROOM
    else:
        at = state["array_memory"] + state["array_memory_made"]
        state["array_memory_made"] += count_bytes
    array = pool.take(state["arrays"])
    known = i64_at(array, ARRAY_WORDS)
    known[ARRAY_AT], known[ARRAY_ORDER], known[ARRAY_PAGES] = at, order, count
    state["descriptor_bytes"] += count_bytes
    return array


@hot
def _leave_array(state, array, count):
    """`count` pages less; the last ones take the array along."""
    known = i64_at(array, ARRAY_WORDS)
    known[ARRAY_PAGES] -= count
    if known[ARRAY_PAGES] == 0:
        free, order = i64_at(state["free_arrays"], ORDERS), known[ARRAY_ORDER]
        i64_at(known[ARRAY_AT], 1)[0] = free[order]
        free[order] = known[ARRAY_AT]
        state["descriptor_bytes"] -= d.BYTES << order
        pool.give(state["arrays"], array)


@hot
def _array_of(descriptor):
    return i64_at(descriptor, d.WORDS)[ARRAY_WORD]


@hot
def _add_range(state, first, count):
    """Give these pages, which have none, descriptors; OK or NO_ROOM."""
    array = _take_array(state, count)
    if array < 0:
        return d.NO_ROOM
    at = i64_at(array, ARRAY_WORDS)[ARRAY_AT]
    d.initialise_run(state, at, first, count)
    for i in range(count):
        i64_at(at + (i << d.BYTES_SHIFT), d.WORDS)[ARRAY_WORD] = array
    _insert(state, first, first + count - 1, at, 1)
    return OK


@hot
def _insert(state, first, last, descriptors, mappings):
    tree = state["tree"]
    node = rbtree.insert(tree, first, last)
    words = rbtree.nodes_of(tree)
    rbtree.set_word(words, node, DESCRIPTORS, descriptors)
    rbtree.set_word(words, node, MAPPINGS, mappings)


@hot
def _cut(state, page):
    """Let no range go across from page - 1 to `page`."""
    tree = state["tree"]
    words, node = rbtree.nodes_of(tree), rbtree.first_overlap(tree, page, page)
    first = rbtree.word(words, node, rbtree.FIRST)
    if node == 0 or first == page:
        return
    last, at = rbtree.word(words, node, rbtree.LAST), rbtree.word(words, node, DESCRIPTORS)
    rbtree.set_word(words, node, rbtree.LAST, page - 1)
    rbtree.refresh_up(words, node)
    _insert(state, page, last, at + ((page - first) << d.BYTES_SHIFT), rbtree.word(words, node, MAPPINGS))


@hot
def _drop(state, page):
    """Take the range that begins at `page` out, and its descriptors with it."""
    tree = state["tree"]
    words, node = rbtree.nodes_of(tree), rbtree.first_overlap(tree, page, page)
    count = rbtree.word(words, node, rbtree.LAST) - page + 1
    rbtree.delete(tree, node)
    _leave_array(state, _array_of(rbtree.word(words, node, DESCRIPTORS)), count)


@hot
def _alike(words, left, right):
    """True where two ranges can be one."""
    count = rbtree.word(words, left, rbtree.LAST) + 1 - rbtree.word(words, left, rbtree.FIRST)
    at, other = rbtree.word(words, left, DESCRIPTORS), rbtree.word(words, right, DESCRIPTORS)
    adjacent = rbtree.word(words, left, rbtree.LAST) + 1 == rbtree.word(words, right, rbtree.FIRST)
    if not adjacent or rbtree.word(words, left, MAPPINGS) != rbtree.word(words, right, MAPPINGS):
        return False
    return at + (count << d.BYTES_SHIFT) == other and _array_of(at) == _array_of(other)


@hot
def _join(state, first, end):
    """Join what is alike among the ranges from the page before `first` to page `end`."""
    tree = state["tree"]
    before = max(first - 1, 0)
    words, left = rbtree.nodes_of(tree), rbtree.first_overlap(tree, before, end)
    while left:
        right = rbtree.next_overlap(tree, left, before, end)
        if right and _alike(words, left, right):
            last = rbtree.word(words, right, rbtree.LAST)
            rbtree.delete(tree, right)
            rbtree.set_word(words, left, rbtree.LAST, last)
            rbtree.refresh_up(words, left)
        else:
            left = right


@hot
def _abandon(state, page, end):
    """Nobody maps this range any more: its pages that are held become ranges of their own, the others go."""
    tree = state["tree"]
    words, node = rbtree.nodes_of(tree), rbtree.first_overlap(tree, page, page)
    at = rbtree.word(words, node, DESCRIPTORS) - (page << d.BYTES_SHIFT)
    while page < end:
        held, after = d.refcount_of(at + (page << d.BYTES_SHIFT)) > 0, page
        while after < end and (d.refcount_of(at + (after << d.BYTES_SHIFT)) > 0) == held:
            if held:
                i64_at(at + (after << d.BYTES_SHIFT), d.WORDS)[d.FLAGS_WORD] |= PG_UNMAPPED
            after += 1
        if after < end:
            _cut(state, after)
        if not held:
            _drop(state, page)
        page = after


@hot
def unmap_extent(state, first, count):
    tree, end = state["tree"], first + count
    _cut(state, first)
    _cut(state, end)
    words, node = rbtree.nodes_of(tree), rbtree.first_overlap(tree, first, end - 1)
    while node:
        following = rbtree.next_overlap(tree, node, first, end - 1)
        mappings = rbtree.word(words, node, MAPPINGS) - 1
        rbtree.set_word(words, node, MAPPINGS, mappings)
        if mappings == 0:
            _abandon(state, rbtree.word(words, node, rbtree.FIRST), rbtree.word(words, node, rbtree.LAST) + 1)
        node = following
    _join(state, first, end)
    _count_structure(state)


@hot
def map_extent(state, first, count):
    tree, end = state["tree"], first + count
    _cut(state, first)
    _cut(state, end)
    page, node, words = first, rbtree.first_overlap(tree, first, end - 1), rbtree.nodes_of(tree)
    while page < end:
        if node and rbtree.word(words, node, rbtree.FIRST) == page:
            rbtree.set_word(words, node, MAPPINGS, rbtree.word(words, node, MAPPINGS) + 1)
            page = rbtree.word(words, node, rbtree.LAST) + 1
            node = rbtree.next_overlap(tree, node, first, end - 1)
            continue
        after = rbtree.word(words, node, rbtree.FIRST) if node else end
        if _add_range(state, page, after - page) != OK:
            if page > first:
                unmap_extent(state, first, page - first)
            _join(state, first, end)
            _count_structure(state)
            return d.NO_ROOM
        page = after
    _join(state, first, end)
    _count_structure(state)
    return OK


@hot
def lookup(state, page):
    tree = state["tree"]
    node = rbtree.first_overlap(tree, page, page)
    if not node:
        return d.NONE
    words = rbtree.nodes_of(tree)
    first = rbtree.word(words, node, rbtree.FIRST)
    return rbtree.word(words, node, DESCRIPTORS) + ((page - first) << d.BYTES_SHIFT)


@hot
def get_page(state, page):
    descriptor = lookup(state, page)
    if descriptor > 0:
        d.hold(descriptor)
    return descriptor


@hot
def put_page(state, page, descriptor):
    if descriptor <= 0 or d.release(descriptor):
        return
    flags = i64_at(descriptor, d.WORDS)
    if flags[d.FLAGS_WORD] & PG_UNMAPPED == 0:
        return
    flags[d.FLAGS_WORD] &= ~PG_UNMAPPED
    tree = state["tree"]
    node = rbtree.first_overlap(tree, page, page)
    if rbtree.word(rbtree.nodes_of(tree), node, MAPPINGS) == 0:
        _cut(state, page)
        _cut(state, page + 1)
        _drop(state, page)
    _count_structure(state)


begin_io, end_io = get_page, put_page
