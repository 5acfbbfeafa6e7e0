# SPDX-License-Identifier: MIT
"""Does everybody see the same descriptor of the same page?  Parties that need it to be so, run one step at a time.

Some ranges of pages stay mapped throughout; others, which alias them, are mapped and unmapped again and again; and I/Os
come and go on pages that are mapped.  Each party asks the map for the descriptor of its page, and does with it what a
kernel does with a struct page:

* it holds a *reference* and gives it back when it is done; whoever wants to move a page looks for references first;
* it takes the *lock* bit, waiting while it is set, and under the lock adds one to the page's contents: it reads in one
  step and writes in a later one;
* it sets the *dirty* bit; an fsync writes out the pages of a mapping that it sees to be dirty, and clears the bit.

A seeded scheduler says whose step is next.  What is counted follows from what was seen, never from which map it is.
"""

import dataclasses
import random
from collections.abc import Generator
from typing import Protocol

# Bits of a descriptor's flags that no page map uses.
LOCKED, DIRTY = 1 << 30, 1 << 29
WAITING_MAX = 200  # steps that a party waits for a lock; then whoever has it is taken for dead

Steps = Generator[None, None, None]


class Seen(Protocol):
    """A page map as its parties see it.  A descriptor is an address; below 0 there is none."""

    def map(self, first: int, count: int) -> None:
        """A mapping begins to cover pages first to first + count - 1."""

    def unmap(self, first: int, count: int) -> None:
        """It ends."""

    def get(self, page: int, io: bool) -> int:
        """The page's descriptor with a reference held: by an I/O, or by somebody who has the page mapped."""

    def put(self, page: int, descriptor: int, io: bool) -> None:
        """Give that reference back."""

    def look(self, page: int) -> int:
        """The page's descriptor as anybody else finds it."""

    def references(self, descriptor: int) -> int:
        """How many are held."""

    def flags(self, descriptor: int) -> int:
        """The bits."""

    def set_flags(self, descriptor: int, flags: int) -> None:
        """Store the bits."""


@dataclasses.dataclass
class Outcome:
    """What a run came to; counts of pages are of distinct ones."""

    pages: int = 0  # that were used
    shared: int = 0  # on which two parties were at work at one moment
    described: int = 0  # for which somebody was given a descriptor
    without: int = 0  # for which somebody was told that there is no descriptor
    differed: int = 0  # of which two parties saw different descriptors at one moment
    updates: int = 0  # additions to contents
    lost_updates: int = 0  # additions that another overwrote: the lock bit did not hold
    moved_in_use: int = 0  # times a page was moved under somebody: the reference was not seen
    forgotten: int = 0  # pages whose last contents no fsync wrote out: the dirty bit went with the descriptor
    waits_given_up: int = 0  # locks that nobody gave back

    @property
    def verdict(self) -> str:
        """``same``: everybody saw one descriptor, and it did what it is for; ``none``: there was none; ``differ``."""
        if self.without and not self.described:
            return "none"
        harmed = self.lost_updates or self.moved_in_use or self.waits_given_up
        return "differ" if self.differed or self.without or harmed else "same"


class _Run:
    def __init__(self, seen: Seen, page_count: int, seed: int) -> None:
        self.seen, self.page_count = seen, page_count
        self.random = random.Random(seed)
        self.hot = max(1, page_count // 16)
        self.contents = [0] * page_count
        self.durable = [0] * page_count
        self.present: list[dict[int, int]] = [{} for _ in range(page_count)]  # page -> party -> what it saw
        self.used: set[int] = set()
        self.shared: set[int] = set()
        self.described: set[int] = set()
        self.without: set[int] = set()
        self.differed: set[int] = set()
        self.outcome = Outcome()
        self.parties = 0

    def enter(self, page: int, address: int) -> int:
        """A party begins to work on a page, with the descriptor that it saw; its number."""
        self.parties += 1
        there = self.present[page]
        self.used.add(page)
        (self.described if address >= 0 else self.without).add(page)
        if there:
            self.shared.add(page)
            if any(other != address for other in there.values()):
                self.differed.add(page)
        there[self.parties] = address
        return self.parties

    def add(self, page: int, io: bool) -> Steps:
        """Add one to the contents of a page, under its lock."""
        seen = self.seen
        found = seen.get(page, io)
        me = self.enter(page, found)
        yield
        if found >= 0:
            waited = 0
            while seen.flags(found) & LOCKED:
                waited += 1
                if waited > WAITING_MAX * (1 + len(self.present[page])):
                    self.outcome.waits_given_up += 1
                    break
                yield
            seen.set_flags(found, seen.flags(found) | LOCKED)
        yield
        value = self.contents[page]
        yield
        self.contents[page] = value + 1
        self.outcome.updates += 1
        yield
        if found >= 0:
            seen.set_flags(found, (seen.flags(found) | DIRTY) & ~LOCKED)
        yield
        seen.put(page, found, io)
        del self.present[page][me]

    def move(self, page: int) -> None:
        """Somebody would move the page, and does if no reference is to be seen: in one step."""
        found = self.seen.look(page)
        if self.present[page] and (found < 0 or self.seen.references(found) < 1):
            self.outcome.moved_in_use += 1

    def sync(self, first: int, count: int) -> None:
        """Write out the pages of a mapping that are seen to be dirty: in one step."""
        for page in range(first, first + count):
            found = self.seen.look(page)
            if found >= 0 and self.seen.flags(found) & DIRTY:
                self.seen.set_flags(found, self.seen.flags(found) & ~DIRTY)
                self.durable[page] = self.contents[page]

    def alias(self, rounds: int) -> Steps:
        """Map a range that aliases others, work on its pages, unmap it; and again."""
        for _ in range(rounds):
            first = self.some_page()
            count = self.random.randint(1, min(64, self.page_count - first))
            self.seen.map(first, count)
            yield
            for _ in range(self.random.randint(1, 8)):
                yield from self.add(first + self.random.randrange(min(count, 4)), False)
                yield
            self.seen.unmap(first, count)
            yield

    def some_page(self) -> int:
        """Half of the time one of few, so that parties meet."""
        return self.random.randrange(self.hot if self.random.random() < 0.5 else self.page_count)

    def ios(self, rounds: int) -> Steps:
        """I/Os one after the other."""
        for _ in range(rounds):
            yield from self.add(self.some_page(), True)
            yield

    def moves(self, rounds: int) -> Steps:
        """Try to move pages that are worked on, where there are any."""
        for _ in range(rounds):
            busy = [page for page in range(self.hot) if self.present[page]]
            self.move(self.random.choice(busy) if busy else self.some_page())
            yield

    def syncs(self, first: int, count: int, rounds: int) -> Steps:
        """Fsync a mapping now and then."""
        for _ in range(rounds):
            for _ in range(20):
                yield
            self.sync(first, count)


def run(seen: Seen, *, page_count: int = 512, rounds: int = 500, seed: int = 1) -> Outcome:
    """Put a page map under stress; page_count: pages 0 to page_count - 1 are used, at least 16.

    rounds: how often each of eight doers of I/O begins anew.
    """
    state = _Run(seen, page_count, seed)
    half, more = page_count // 2, page_count // 8
    # Two mappings that stay, and overlap: each page is in one or both of them.
    stay = [(0, half + more), (half - more, page_count - half + more)]
    for mapping in stay:
        seen.map(*mapping)
    doers: list[Steps] = [state.ios(rounds) for _ in range(8)]
    doers += [state.alias(rounds // 4) for _ in range(4)]
    doers += [state.moves(rounds), *(state.syncs(*mapping, rounds // 10) for mapping in stay)]
    while doers:
        number = state.random.randrange(len(doers))
        try:
            next(doers[number])
        except StopIteration:
            doers[number] = doers[-1]
            doers.pop()
    for mapping in stay:
        state.sync(*mapping)
    for mapping in stay:
        seen.unmap(*mapping)
    found = state.outcome
    found.pages, found.shared = len(state.used), len(state.shared)
    found.described = len(state.described)
    found.without, found.differed = len(state.without), len(state.differed)
    found.lost_updates = found.updates - sum(state.contents)
    found.forgotten = sum(1 for page in state.used if state.durable[page] != state.contents[page])
    return found
