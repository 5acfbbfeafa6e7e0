# SPDX-License-Identifier: MIT
"""Does everybody see the same descriptor of the same page?  Parties that need it to be so, run one step at a time.

Some ranges of pages stay mapped throughout; others, which alias them, are mapped and unmapped again and again; and I/Os
come and go on pages that are mapped.  Each party asks the map for the descriptor of its page by its own handle, and
does with it what a kernel does with a struct page:

* it takes a *reference*, and gives it back when it is done; whoever wants to move a page looks for references first;
* it takes the *lock* bit, waiting while it is set, and under the lock adds one to the page's contents: it reads in one
  step and writes in a later one;
* it sets the *dirty* bit; an fsync of a mapping that stays writes out the pages that it sees dirty, and clears the bit.

A seeded scheduler says whose step is next.  What is counted follows from what was seen, never from which map it is.
"""

import dataclasses
import random
from collections.abc import Generator
from typing import Protocol

LOCKED, DIRTY, REFERENCE = 1, 2, 4
WAITING_MAX = 200  # steps that a party waits for a lock; then whoever has it is taken for dead

Steps = Generator[None, None, None]


class Seen(Protocol):
    """A page map as its parties see it."""

    def map(self, first: int, count: int) -> int:
        """Map pages first to first + count - 1; a handle of the mapping."""

    def unmap(self, mapping: int) -> None:
        """Undo `map`."""

    def begin(self, page: int) -> int:
        """Begin an I/O on a page that is mapped; its handle."""

    def end(self, io: int) -> None:
        """End an I/O."""

    def look(self, handle: int, page: int) -> int:
        """The address of the page's descriptor as the party with this handle finds it; -1: there is none."""

    def get(self, address: int) -> int:
        """The word of flags and references in the descriptor at `address`."""

    def put(self, address: int, word: int) -> None:
        """Store that word."""


@dataclasses.dataclass
class Outcome:
    """What a run came to; counts of pages are of distinct ones."""

    pages: int = 0  # that were used
    shared: int = 0  # on which two parties were at work at one moment
    without: int = 0  # for which somebody was told that there is no descriptor
    differed: int = 0  # of which two parties saw different descriptors at one moment
    updates: int = 0  # additions to contents
    lost_updates: int = 0  # additions that another overwrote: the lock bit did not hold
    moved_in_use: int = 0  # times a page was moved under somebody: the reference was not seen
    never_written: int = 0  # pages whose last contents no fsync wrote out: the dirty bit was not seen
    waits_given_up: int = 0  # locks that nobody gave back

    @property
    def verdict(self) -> str:
        """``same``: everybody saw one descriptor, and nothing was lost; ``differ``; ``none``: there was none to see."""
        if self.without and not self.differed and self.without == self.pages:
            return "none"
        harmed = self.lost_updates or self.moved_in_use or self.never_written or self.waits_given_up
        return "differ" if self.differed or self.without or harmed else "same"


class _Run:
    def __init__(self, seen: Seen, page_count: int, seed: int) -> None:
        self.seen, self.page_count = seen, page_count
        self.random = random.Random(seed)
        self.contents = [0] * page_count
        self.durable = [0] * page_count
        self.present: list[dict[int, int]] = [{} for _ in range(page_count)]  # page -> party -> address that it saw
        self.used: set[int] = set()
        self.shared: set[int] = set()
        self.without: set[int] = set()
        self.differed: set[int] = set()
        self.outcome = Outcome()
        self.parties = 0

    def enter(self, page: int, address: int) -> int:
        """A party begins to work on a page, with the descriptor that it saw; its number."""
        self.parties += 1
        there = self.present[page]
        self.used.add(page)
        if address < 0:
            self.without.add(page)
        if there:
            self.shared.add(page)
            if any(other != address for other in there.values()):
                self.differed.add(page)
        there[self.parties] = address
        return self.parties

    def add(self, handle: int, page: int) -> Steps:
        """Add one to the contents of a page, under its lock."""
        address = self.seen.look(handle, page)
        me = self.enter(page, address)
        if address >= 0:
            self.seen.put(address, self.seen.get(address) + REFERENCE)
            yield
            waited = 0
            while self.seen.get(address) & LOCKED:
                waited += 1
                if waited > WAITING_MAX * (1 + len(self.present[page])):
                    self.outcome.waits_given_up += 1
                    break
                yield
            self.seen.put(address, self.seen.get(address) | LOCKED)
        yield
        value = self.contents[page]
        yield
        self.contents[page] = value + 1
        self.outcome.updates += 1
        yield
        if address >= 0:
            self.seen.put(address, ((self.seen.get(address) | DIRTY) & ~LOCKED) - REFERENCE)
        del self.present[page][me]

    def io(self, page: int) -> Steps:
        """One I/O on a page."""
        handle = self.seen.begin(page)
        yield
        yield from self.add(handle, page)
        yield
        self.seen.end(handle)

    def move(self, page: int) -> None:
        """Somebody would move the page, and does if no reference is to be seen: in one step."""
        handle = self.seen.begin(page)
        address = self.seen.look(handle, page)
        if (address < 0 or self.seen.get(address) < REFERENCE) and self.present[page]:
            self.outcome.moved_in_use += 1
        self.seen.end(handle)

    def sync(self, mapping: int, first: int, count: int) -> None:
        """Write out the pages of a mapping that are seen to be dirty: in one step."""
        for page in range(first, first + count):
            address = self.seen.look(mapping, page)
            if address >= 0 and self.seen.get(address) & DIRTY:
                self.seen.put(address, self.seen.get(address) & ~DIRTY)
                self.durable[page] = self.contents[page]

    def alias(self, rounds: int) -> Steps:
        """Map a range that aliases others, work on its pages, unmap it; and again."""
        for _ in range(rounds):
            first = self.random.randrange(self.page_count)
            count = self.random.randint(1, min(64, self.page_count - first))
            mapping = self.seen.map(first, count)
            yield
            for _ in range(self.random.randint(1, 8)):
                yield from self.add(mapping, first + self.random.randrange(count))
                yield
            self.seen.unmap(mapping)
            yield

    def ios(self, rounds: int) -> Steps:
        """I/Os one after the other; half of them on a sixteenth of the pages, so that they meet."""
        for _ in range(rounds):
            hot = self.random.random() < 0.5
            yield from self.io(self.random.randrange(max(1, self.page_count // 16) if hot else self.page_count))
            yield

    def moves(self, rounds: int) -> Steps:
        """Try to move pages that are worked on, where there are any."""
        for _ in range(rounds):
            busy = [page for page in range(max(1, self.page_count // 16)) if self.present[page]]
            self.move(self.random.choice(busy) if busy else self.random.randrange(self.page_count))
            yield

    def syncs(self, mapping: int, first: int, count: int, rounds: int) -> Steps:
        """Fsync a mapping now and then."""
        for _ in range(rounds):
            for _ in range(20):
                yield
            self.sync(mapping, first, count)


def run(seen: Seen, *, page_count: int = 512, rounds: int = 200, seed: int = 1) -> Outcome:
    """Put a page map under stress; page_count: pages 0 to page_count - 1 are used, at least 16.

    rounds: how often each of eight doers of I/O and four mappers begins anew.
    """
    state = _Run(seen, page_count, seed)
    half = page_count // 2
    # Two mappings that stay, and overlap: each page is in one or both of them.
    ranges = [(0, half + page_count // 8), (half - page_count // 8, page_count - half + page_count // 8)]
    stay = [(seen.map(first, count), first, count) for first, count in ranges]
    doers: list[Steps] = [state.ios(rounds) for _ in range(8)]
    doers += [state.alias(rounds // 4) for _ in range(4)]
    doers += [state.moves(rounds), *(state.syncs(*mapping, rounds // 4) for mapping in stay)]
    while doers:
        number = state.random.randrange(len(doers))
        try:
            next(doers[number])
        except StopIteration:
            doers[number] = doers[-1]
            doers.pop()
    for mapping, first, count in stay:
        state.sync(mapping, first, count)
    for mapping, _, _ in stay:
        seen.unmap(mapping)
    found = state.outcome
    found.pages, found.shared = len(state.used), len(state.shared)
    found.without, found.differed = len(state.without), len(state.differed)
    found.lost_updates = found.updates - sum(state.contents)
    found.never_written = sum(1 for page in state.used if state.durable[page] != state.contents[page])
    return found
