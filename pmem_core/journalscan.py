# SPDX-License-Identifier: MIT
"""Look over the file of an LMDB environment before LMDB does.

LMDB trusts its file: a flipped bit in a page number is a crash of the process or an endless walk.  Here every page is
followed as bytes: each is where it says it is, of the right kind, full of nodes without a gap, in order, counted right,
and used once or free once.  What the nodes hold is the journal's business (it has a checksum in each row).

The format is that of LMDB 0.9 on 64-bit little-endian machines (mdb.c: MDB_page, MDB_node, MDB_db, MDB_meta).
"""

import dataclasses
import itertools
import struct

PAGE_BYTES = 4096
HEADER_BYTES = 16
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG, TREE = 1, 2  # flags of a leaf's node: the value is in overflow pages; it is another tree
NOTHING = (1 << 64) - 1
_PAGE, _NODE, _TREE = struct.Struct("<QHHHH"), struct.Struct("<HHHH"), struct.Struct("<IHHQQQQQ")
_META_HEAD = struct.Struct("<IIQQ")
DEPTH_MAX = 32


@dataclasses.dataclass(frozen=True)
class _Meta:
    slot: int
    free: tuple[int, ...]
    main: tuple[int, ...]
    last_page: int
    transaction: int


class _Walk:
    """One environment, as one of its two meta pages has it.  What cannot be is a ValueError."""

    def __init__(self, data: bytes, meta: _Meta) -> None:
        self.data, self.meta = data, meta
        if len(data) < (meta.last_page + 1) * PAGE_BYTES:
            raise ValueError(f"it has fewer than {meta.last_page + 1} pages")
        self.used = bytearray(meta.last_page + 1)
        self.numbers = False  # keys of the tree being followed are numbers

    def take(self, page: int, count: int = 1) -> None:
        """Note that pages are in use, or free, for the first time."""
        if page < 2 or page + count > len(self.used):
            raise ValueError(f"page {page} does not exist")
        if any(self.used[page : page + count]):
            raise ValueError(f"page {page} is used twice")
        self.used[page : page + count] = b"\1" * count

    def rows(self, tree: tuple[int, ...], *, numbers: bool = False) -> list[tuple[bytes, bytes, int]]:
        """Key, value and flags of all nodes of a tree, in order; numbers: its keys are such."""
        _, _, depth, *wanted, root = tree
        found: list[tuple[bytes, bytes, int]] = []
        counts = [0, 0, 0]
        self.numbers = numbers
        if root != NOTHING:
            self._page(root, depth, counts, found)
        elif depth:
            raise ValueError("an empty tree with a depth")
        if [*counts, len(found)] != wanted:
            raise ValueError("a tree whose counts are wrong")
        keys = [self._order(key) for key, _, _ in found]
        if any(one >= other for one, other in itertools.pairwise(keys)):
            raise ValueError("keys out of order")
        return found

    def _page(self, page: int, depth: int, counts: list[int], found: list[tuple[bytes, bytes, int]]) -> None:
        self.take(page)
        at = page * PAGE_BYTES
        number, _, flags, lower, upper = _PAGE.unpack_from(self.data, at)
        if number != page or flags != (LEAF if depth == 1 else BRANCH) or not 0 < depth <= DEPTH_MAX:
            raise ValueError(f"page {page} is not what it should be")
        counts[0 if flags == BRANCH else 1] += 1
        for key, value, how in self._nodes(page, lower, upper, flags):
            if flags == LEAF:
                found.append((key, self._value(value, counts) if how & BIG else value, how))
                continue
            before = len(found)
            self._page(int.from_bytes(value, "little"), depth - 1, counts, found)
            ends = [self._order(row[0]) for row in found[max(before - 1, 0) : before + 1]]
            if key and not (ends[-1] >= self._order(key) and (before == 0 or ends[0] < self._order(key))):
                raise ValueError(f"page {page} leads astray")

    def _order(self, key: bytes) -> bytes:
        """What keys are compared by."""
        return key[::-1] if self.numbers else key

    def _nodes(self, page: int, lower: int, upper: int, flags: int) -> list[tuple[bytes, bytes, int]]:
        """Key, value (a branch's is the page below) and flags of a page's nodes."""
        base = page * PAGE_BYTES
        if lower & 1 or not HEADER_BYTES < lower <= upper < PAGE_BYTES:
            raise ValueError(f"page {page} has impossible bounds")
        nodes, spans = [], []
        for (place,) in struct.iter_unpack("<H", self.data[base + HEADER_BYTES : base + lower]):
            if place & 1 or not upper <= place <= PAGE_BYTES - _NODE.size:
                raise ValueError(f"page {page} has a node outside of it")
            low, high, how, key_bytes = _NODE.unpack_from(self.data, base + place)
            key_at = place + _NODE.size
            size = 0 if flags == BRANCH else 8 if how & BIG else low | high << 16
            end = key_at + key_bytes + size
            if end > PAGE_BYTES or (flags == LEAF and how & ~(BIG | TREE)):
                raise ValueError(f"page {page} has a node that cannot be")
            spans.append((place, end + (end & 1)))
            value = self.data[base + key_at + key_bytes : base + end]
            if flags == BRANCH:
                value, how = (low | high << 16 | how << 32).to_bytes(8, "little"), 0
            elif how & BIG:
                value += (low | high << 16).to_bytes(4, "little")
            nodes.append((self.data[base + key_at : base + key_at + key_bytes], value, how))
        spans.sort()
        if [upper, *(end for _, end in spans)] != [*(first for first, _ in spans), PAGE_BYTES]:
            raise ValueError(f"page {page} has nodes that overlap or a gap between them")
        return nodes

    def _value(self, place: bytes, counts: list[int]) -> bytes:
        """A value in overflow pages; place: the first of them, and the value's size."""
        page, size = struct.unpack("<QI", place)
        pages = -(-(HEADER_BYTES + size) // PAGE_BYTES)
        self.take(page, pages)
        counts[2] += pages
        at = page * PAGE_BYTES
        number, _, flags, low, high = _PAGE.unpack_from(self.data, at)
        if number != page or flags != OVERFLOW or low | high << 16 != pages:
            raise ValueError(f"page {page} is not what it should be")
        return self.data[at + HEADER_BYTES : at + HEADER_BYTES + size]

    def databases(self) -> dict[bytes, list[tuple[bytes, bytes, int]]]:
        """The named databases and their rows."""
        found = {}
        for name, value, how in self.rows(self.meta.main):
            if how != TREE or len(value) != _TREE.size:
                raise ValueError("a database that is none")
            tree = _TREE.unpack(value)
            if tree[0] or tree[1]:
                raise ValueError("a database of an unknown kind")
            found[name] = self.rows(tree)
            if any(how & TREE for _, _, how in found[name]):
                raise ValueError("a database within a database")
        return found

    def free(self) -> None:
        """Take the pages that are free; then every page is taken."""
        for key, value, _ in self.rows(self.meta.free, numbers=True):
            if len(key) != 8 or int.from_bytes(key, "little") > self.meta.transaction or len(value) < 8:
                raise ValueError("free pages of no transaction")
            count = int.from_bytes(value[:8], "little")
            if len(value) != 8 + 8 * count:
                raise ValueError("free pages that are not as many as they should be")
            for (page,) in struct.iter_unpack("<Q", value[8:]):
                self.take(page)
        if not all(self.used[2:]):
            raise ValueError(f"page {self.used.index(0, 2)} is neither used nor free")


def _meta(data: bytes, slot: int) -> _Meta:
    at = slot * PAGE_BYTES
    number, _, flags, _, _ = _PAGE.unpack_from(data, at)
    magic, version, _, _ = _META_HEAD.unpack_from(data, at + HEADER_BYTES)
    if number != slot or flags != META or magic != MAGIC or version != VERSION:
        raise ValueError(f"page {slot} is no meta page")
    free, main = _TREE.unpack_from(data, at + 40), _TREE.unpack_from(data, at + 88)
    last_page, transaction = struct.unpack_from("<QQ", data, at + 136)
    if free[0] != PAGE_BYTES or free[1] & ~0xFFF0 != 8 or main[:2] != (0, 0):
        raise ValueError(f"page {slot} is no meta page of ours")
    if last_page < 1 or (transaction and transaction & 1 != slot):
        raise ValueError(f"meta page {slot} has impossible values")
    return _Meta(slot, free, main, last_page, transaction)


def _transaction(databases: dict[bytes, list[tuple[bytes, bytes, int]]]) -> int:
    """The transaction that the rows say they were written in; 0 where none says so."""
    for key, value, _ in databases.get(b"meta", []):
        if key == b"transaction":
            return int(value[:-4])
    return 0


def find_problem(data: bytes) -> str:
    """Why `data`, the whole file, is not an LMDB environment that can be opened without danger; "" if it is."""
    try:
        if len(data) < 2 * PAGE_BYTES:
            raise ValueError("it is too short")
        metas = sorted((_meta(data, slot) for slot in (0, 1)), key=lambda meta: meta.transaction)
        older, newer = metas
        if newer.transaction - older.transaction != (newer.transaction > 0):
            raise ValueError("its meta pages are not of consecutive transactions")
        walk = _Walk(data, newer)
        said = _transaction(walk.databases())
        walk.free()
        if said and said != newer.transaction:
            raise ValueError(f"what was written in transaction {said} counts as that of {newer.transaction}")
    except ValueError as error:
        return str(error)
    # A meta page that says it is the older one and is not: what it leads to tells.
    try:
        said = _transaction(_Walk(data, older).databases())
    except ValueError:
        return ""
    return "the older of its meta pages counts as the newer" if said > newer.transaction else ""
