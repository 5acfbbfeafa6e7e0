# SPDX-License-Identifier: MIT
"""A red-black tree of intervals of pages, ordered by their first page, in one array of nodes of a cache line each.

Source: Cormen, Leiserson, Rivest, Stein, "Introduction to Algorithms", 3rd edition, chapters 13 and 14.3; the searches
are those of Linux (include/linux/interval_tree_generic.h).  Each node also has the largest last page of its subtree.
Intervals may overlap.

A node is a number from 1 on; 0 is nobody, whom every search ends at and who is black.  Nodes keep their numbers.
"""

# long: insertion, deletion and searches share every word of a node, and are read together.

import ctypes

import numpy as np

from ..jit import hot, i64_at

TREE = np.dtype(
    [
        ("nodes", "<i8"),  # address
        ("room", "<i8"),  # nodes, nobody included
        ("made", "<i8"),  # nodes that were used at least once
        ("free", "<i8"),  # a free node, whose first word has the next
        ("root", "<i8"),
        ("count", "<i8"),  # nodes in the tree
    ]
)
# Words of a node.  LINK is its parent, times two, plus one where it is red (Linux: __rb_parent_color).
LEFT, RIGHT, LINK, FIRST, LAST, MAX, OWN, OWN_2 = range(8)
WORDS_SHIFT = 3
NODE_BYTES = 8 << WORDS_SHIFT


def plan(tree, room, arena):
    """Fill in `tree` (a TREE), which is to have up to `room` nodes."""
    tree["room"], tree["made"] = room + 1, 1
    tree["nodes"] = arena.take(NODE_BYTES * (room + 1))
    ctypes.c_int64.from_address(int(tree["nodes"]) + 8 * MAX).value = -1


@hot
def nodes_of(tree):
    """The words of all nodes, int64[]: those of node n from n << WORDS_SHIFT on."""
    return i64_at(tree["nodes"], tree["room"] << WORDS_SHIFT)


@hot
def word(words, node, which):
    return words[(node << WORDS_SHIFT) + which]


@hot
def set_word(words, node, which, value):
    words[(node << WORDS_SHIFT) + which] = value


@hot
def _parent(words, node):
    return word(words, node, LINK) >> 1


@hot
def _red(words, node):
    return word(words, node, LINK) & 1


@hot
def _set_parent(words, node, parent):
    set_word(words, node, LINK, (parent << 1) | _red(words, node))


@hot
def _set_red(words, node, red):
    set_word(words, node, LINK, (_parent(words, node) << 1) | red)


@hot
def refresh_up(words, node):
    """Work out MAX of `node`, whose interval or children have changed, and of all above it."""
    while node:
        _refresh(words, node)
        node = _parent(words, node)


@hot
def _refresh(words, node):
    below = max(word(words, word(words, node, LEFT), MAX), word(words, word(words, node, RIGHT), MAX))
    set_word(words, node, MAX, max(below, word(words, node, LAST)))


@hot
def _side(words, parent, node):
    """LEFT or RIGHT: which child of `parent` `node` is."""
    return RIGHT if word(words, parent, RIGHT) == node else LEFT


@hot
def _replace(tree, words, parent, node, other):
    """Let `parent` (0: the tree) have `other` for its child instead of `node`."""
    if parent:
        set_word(words, parent, _side(words, parent, node), other)
    else:
        tree["root"] = other


@hot
def _rotate(tree, words, node, side):
    """Rotate: `node` goes down to `side`, its other child takes its place."""
    child = word(words, node, 1 - side)
    inner = word(words, child, side)
    parent = _parent(words, node)
    set_word(words, node, 1 - side, inner)
    if inner:
        _set_parent(words, inner, node)
    _replace(tree, words, parent, node, child)
    _set_parent(words, child, parent)
    set_word(words, child, side, node)
    _set_parent(words, node, child)
    _refresh(words, node)
    _refresh(words, child)


@hot
def insert(tree, first, last):
    """Add the interval of pages `first` to `last`; its node, whose own words hold anything."""
    words = nodes_of(tree)
    node = tree["free"]
    if node:
        tree["free"] = word(words, node, LEFT)
    else:
        node = tree["made"]
        tree["made"] += 1
    tree["count"] += 1
    parent, side, at = 0, LEFT, tree["root"]
    while at:
        parent, side = at, LEFT if first < word(words, at, FIRST) else RIGHT
        set_word(words, at, MAX, max(last, word(words, at, MAX)))
        at = word(words, at, side)
    set_word(words, node, LEFT, 0)
    set_word(words, node, RIGHT, 0)
    set_word(words, node, LINK, (parent << 1) | 1)
    set_word(words, node, FIRST, first)
    set_word(words, node, LAST, last)
    set_word(words, node, MAX, last)
    if parent:
        set_word(words, parent, side, node)
    else:
        tree["root"] = node
    _mend_insert(tree, words, node)
    return node


@hot
def _mend_insert(tree, words, node):
    parent = _parent(words, node)
    while _red(words, parent):
        above = _parent(words, parent)
        side = _side(words, above, parent)
        uncle = word(words, above, 1 - side)
        if _red(words, uncle):
            _set_red(words, parent, 0)
            _set_red(words, uncle, 0)
            _set_red(words, above, 1)
            node = above
        else:
            if word(words, parent, 1 - side) == node:
                _rotate(tree, words, parent, side)
                node, parent = parent, node
            _set_red(words, parent, 0)
            _set_red(words, above, 1)
            _rotate(tree, words, above, 1 - side)
        parent = _parent(words, node)
    _set_red(words, tree["root"], 0)


@hot
def delete(tree, node):
    """Take `node` out."""
    words = nodes_of(tree)
    left, right = word(words, node, LEFT), word(words, node, RIGHT)
    lost_red = _red(words, node)
    if left and right:
        heir = right
        while word(words, heir, LEFT):
            heir = word(words, heir, LEFT)
        lost_red = _red(words, heir)
        rising = word(words, heir, RIGHT)
        if heir == right:
            _set_parent(words, rising, heir)
        else:
            above = _parent(words, heir)
            _replace(tree, words, above, heir, rising)
            _set_parent(words, rising, above)
            set_word(words, heir, RIGHT, right)
            _set_parent(words, right, heir)
        _replace(tree, words, _parent(words, node), node, heir)
        set_word(words, heir, LINK, word(words, node, LINK))
        set_word(words, heir, LEFT, left)
        _set_parent(words, left, heir)
    else:
        rising = left if left else right
        _replace(tree, words, _parent(words, node), node, rising)
        _set_parent(words, rising, _parent(words, node))
    refresh_up(words, _parent(words, rising))
    if not lost_red:
        _mend_delete(tree, words, rising)
    set_word(words, 0, LINK, 0)
    set_word(words, node, LEFT, tree["free"])
    tree["free"] = node
    tree["count"] -= 1


@hot
def _mend_delete(tree, words, node):
    """The paths through `node`, which may be nobody with a parent for once, lack one black node."""
    while node != tree["root"] and not _red(words, node):
        parent = _parent(words, node)
        side = _side(words, parent, node)
        sibling = word(words, parent, 1 - side)
        if _red(words, sibling):
            _set_red(words, sibling, 0)
            _set_red(words, parent, 1)
            _rotate(tree, words, parent, side)
            sibling = word(words, parent, 1 - side)
        near, far = word(words, sibling, side), word(words, sibling, 1 - side)
        if not _red(words, near) and not _red(words, far):
            _set_red(words, sibling, 1)
            node = parent
            continue
        if not _red(words, far):
            _set_red(words, near, 0)
            _set_red(words, sibling, 1)
            _rotate(tree, words, sibling, 1 - side)
            sibling, far = near, sibling
        _set_red(words, sibling, _red(words, parent))
        _set_red(words, parent, 0)
        _set_red(words, far, 0)
        _rotate(tree, words, parent, side)
        node = tree["root"]
    _set_red(words, node, 0)


@hot
def _search(words, node, first, last):
    """The leftmost interval in the subtree of `node` that overlaps `first` to `last`; 0: none."""
    if word(words, node, MAX) < first:
        return 0
    while True:
        left = word(words, node, LEFT)
        if left and word(words, left, MAX) >= first:
            node = left
            continue
        if word(words, node, FIRST) > last:
            return 0
        if word(words, node, LAST) >= first:
            return node
        node = word(words, node, RIGHT)
        if word(words, node, MAX) < first:
            return 0


@hot
def first_overlap(tree, first, last):
    """The node of the leftmost interval that overlaps `first` to `last` (both included); 0: none."""
    return _search(nodes_of(tree), tree["root"], first, last)


@hot
def next_overlap(tree, node, first, last):
    """The one behind `node`."""
    words = nodes_of(tree)
    right = word(words, node, RIGHT)
    while True:
        if right and word(words, right, MAX) >= first:
            return _search(words, right, first, last)
        below = right
        while True:
            below, node = node, _parent(words, node)
            if not node:
                return 0
            right = word(words, node, RIGHT)
            if right != below:
                break
        if word(words, node, FIRST) > last:
            return 0
        if word(words, node, LAST) >= first:
            return node


@hot
def depths(tree):
    """The depth of the deepest node, and the sum of all nodes' depths; the root's is 1."""
    words = nodes_of(tree)
    deepest, total, depth = 0, 0, 1
    node, came = tree["root"], 0
    while node:
        if came == _parent(words, node):
            deepest, total = max(deepest, depth), total + depth
            following = word(words, node, LEFT)
            if not following:
                following = word(words, node, RIGHT)
        elif came == word(words, node, LEFT):
            following = word(words, node, RIGHT)
        else:
            following = 0
        came = node
        if following:
            node, depth = following, depth + 1
        else:
            node, depth = _parent(words, node), depth - 1
    return deepest, total
