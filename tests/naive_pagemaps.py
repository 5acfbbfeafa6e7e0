# SPDX-License-Identifier: MIT
"""Page maps as dicts and loops: the oracle that every compiled page map is compared with.

A twin's descriptor is a *key*, anything that compares: two askers share a descriptor if their keys are equal.  It
imports nothing of pmem_core, like naive.py.
"""

import collections
import itertools

BYTES = 64
PAGE = 4096


class Twin:
    """What all have: a page's references, and how many mapped extents cover it.

    figures: what the map's counters have to be, those of them that the twin knows.
    """

    known = ("covered", "initialised", "descriptor_bytes", "stores", "medium_bytes")

    def __init__(self, page_count, parameters):
        self.page_count, self.parameters = page_count, parameters
        self.covered = self.initialised = self.descriptor_bytes = self.stores = self.medium_bytes = 0
        self.references, self.mapped = collections.Counter(), collections.Counter()
        self.begin()

    def begin(self):
        """Set up what the map has beside this."""

    def figures(self):
        return {name: getattr(self, name) for name in self.known}

    def bring_up(self, pages):
        self.covered = min(self.covered + pages, self.page_count)

    def map(self, first, count):
        for page in range(first, first + count):
            self.mapped[page] += 1

    def unmap(self, first, count):
        for page in range(first, first + count):
            self.mapped[page] -= 1

    def key(self, page):
        return None

    def get(self, page):
        self.references[page] += 1
        return self.key(page)

    def put(self, page, key):
        self.references[page] -= 1

    def begin_io(self, page):
        return self.get(page)

    def end_io(self, page, key):
        self.put(page, key)

    def held(self, key):
        """How many references the descriptor `key` has: those got with that key."""
        return self.references[key]


class Array(Twin):
    """One a page, at its place; initialised at discovery or at first use."""

    medium = False

    def begin(self):
        self.made = set()
        whole = BYTES * self.page_count
        self.medium_bytes, self.descriptor_bytes = (whole, 0) if self.medium else (0, whole)

    def make(self, page):
        if page not in self.made:
            self.made.add(page)
            self.initialised += 1
            self.stores += self.medium

    def bring_up(self, pages):
        before = self.covered
        super().bring_up(pages)
        for page in range(before, self.covered):
            self.make(page)

    def key(self, page):
        return page

    def get(self, page):
        self.make(page)
        self.stores += self.medium
        return super().get(page)

    def put(self, page, key):
        self.stores += self.medium
        super().put(page, key)


class ArrayOnMedium(Array):
    medium = True


class Interleaved(ArrayOnMedium):
    def begin(self):
        super().begin()
        self.medium_bytes = PAGE * sum(1 for page in range(self.page_count) if page % 64 == 0)


class Nothing(Twin):
    def get(self, page):
        return None

    def put(self, page, key):
        pass


class PerIO(Nothing):
    """A page of memory an I/O."""

    def begin(self):
        self.numbers, self.outstanding = itertools.count(), {}

    def begin_io(self, page):
        if len(self.outstanding) == self.parameters["outstanding"]:
            return "no room"
        key = ("io", next(self.numbers))
        self.outstanding[key] = page
        self.initialised += 1
        self.descriptor_bytes += PAGE
        return key

    def end_io(self, page, key):
        if key != "no room":
            assert self.outstanding.pop(key) == page
            self.descriptor_bytes -= PAGE

    def held(self, key):
        return 1


class Runs(Twin):
    """Descriptors of aligned runs of pages, which come and go together."""

    def begin(self):
        self.run, self.users = 1 << self.parameters["shift"], collections.Counter()
        self.pinned_by_mappings = self.parameters["mapping_pins"]
        self.makes_at_get = True

    def use(self, number, more):
        self.users[number] += more
        if more > 0 and self.users[number] == 1:
            self.initialised += min(self.run, self.page_count - number * self.run)
        self.descriptor_bytes = BYTES * self.run * sum(1 for users in self.users.values() if users)

    def touched(self, first, count):
        return {page // self.run for page in range(first, first + count)}

    def map(self, first, count):
        if self.pinned_by_mappings:
            for number in self.touched(first, count):
                self.use(number, 1)

    def unmap(self, first, count):
        if self.pinned_by_mappings:
            for number in self.touched(first, count):
                self.use(number, -1)

    def key(self, page):
        return page if self.users[page // self.run] else None

    def get(self, page):
        if self.key(page) is None and not self.makes_at_get:
            return None
        self.use(page // self.run, 1)
        return super().get(page)

    def put(self, page, key):
        if key is not None:
            super().put(page, key)
            self.use(page // self.run, -1)


class MadeAtMap(Runs):
    def begin(self):
        self.parameters = {"shift": 6, "mapping_pins": 1}
        super().begin()
        self.makes_at_get = False


class Ranges(Twin):
    """A page has a descriptor while it is mapped or held."""

    known = ("covered", "initialised", "stores", "medium_bytes")

    def key(self, page):
        return page if self.mapped[page] or self.references[page] else None

    def map(self, first, count):
        self.initialised += sum(1 for page in range(first, first + count) if self.key(page) is None)
        super().map(first, count)

    def get(self, page):
        return None if self.key(page) is None else super().get(page)

    def put(self, page, key):
        if key is not None:
            super().put(page, key)


class TwoLevel(Twin):
    """An area of 512 pages is one descriptor or 512."""

    area = 512

    def begin(self):
        self.split, self.wanted, self.made = set(), collections.Counter(), set()
        self.areas = -(-self.page_count // self.area)
        self.settle()

    def settle(self):
        for number in range(self.areas):
            pages = range(number * self.area, min((number + 1) * self.area, self.page_count))
            if not any(self.references[page] for page in pages):
                if self.wanted[number] and number not in self.split:
                    self.split.add(number)
                    self.initialised += len(pages)
                elif not self.wanted[number]:
                    self.split.discard(number)
        self.descriptor_bytes = BYTES * (self.areas + self.area * len(self.split))

    def make(self, number):
        if number not in self.made:
            self.made.add(number)
            self.initialised += 1

    def bring_up(self, pages):
        before = self.covered
        super().bring_up(pages)
        for page in range(before, self.covered):
            self.make(page // self.area)

    def want(self, first, count, more):
        for number in {page // self.area for page in range(first, first + count)}:
            begin, end = number * self.area, min((number + 1) * self.area, self.page_count)
            if first > begin or first + count < end:
                self.make(number)
                self.wanted[number] += more
        self.settle()

    def map(self, first, count):
        self.want(first, count, 1)

    def unmap(self, first, count):
        self.want(first, count, -1)

    def key(self, page):
        number = page // self.area
        return ("small", page) if number in self.split else ("large", number)

    def get(self, page):
        self.make(page // self.area)
        return super().get(page)

    def put(self, page, key):
        super().put(page, key)
        self.settle()

    def held(self, key):
        """The large descriptor has the references to small ones too."""
        kind, number = key
        if kind == "small":
            return self.references[number]
        return sum(self.references[page] for page in range(number * self.area, (number + 1) * self.area))


class Buddies(Twin):
    """Runs are as large as power-of-two alignment, references and mappings allow."""

    known = ("covered", "descriptor_bytes", "medium_bytes")

    def begin(self):
        self.medium_bytes = BYTES * self.page_count

    def is_run(self, first, size):
        pages = range(first, first + size)
        if first % size or first + size > self.covered:
            return False
        alone = size == 1 or not any(self.references[page] for page in pages)
        return alone and len({self.mapped[page] for page in pages}) == 1

    def key(self, page):
        if page >= self.covered:
            return None
        size = 1
        while self.is_run(page // (2 * size) * 2 * size, 2 * size):
            size *= 2
        return page // size * size

    def heads(self):
        return len({self.key(page) for page in range(self.covered)})

    def map(self, first, count):
        if first + count > self.covered:
            self.covered = self.page_count
        super().map(first, count)

    def get(self, page):
        if page >= self.covered:
            self.covered = self.page_count
        return super().get(page)


TWINS = {
    "buddy": Buddies,
    "hotplug_section": Runs,
    "hotplug_subsection": Runs,
    "interleaved": Interleaved,
    "interval_tree": Ranges,
    "linear_dev": ArrayOnMedium,
    "linear_mem": Array,
    "mmap_time": MadeAtMap,
    "pfn": Nothing,
    "temporary": PerIO,
    "two_level": TwoLevel,
}
