# SPDX-License-Identifier: MIT
"""What a client may find after a kill or a power cut, as lists of versions.  It imports nothing of pmem_core.

It is told what a client did and was answered, and what was given to the journal:

    ("call", request, operation)    operation: (kind, ...), see `recorded.workload`
    ("answer", request)
    ("commit", {...})               "worn": the totals, "session": (open, boot), on the way into the journal
    ("committed", {...})            and there
"""

import dataclasses
from collections.abc import Iterable

PAGE = 4096
SECTOR = 512
WORD = 8


class Broken(Exception):
    """A promise was."""


@dataclasses.dataclass
class Version:
    """A page's content after a request."""

    request: int
    data: bytes


@dataclasses.dataclass
class Oracle:
    """versions: of each page, the first one durable for sure; pages that are missing are zeros.

    grain: bytes that a power cut leaves whole: a sector, or a frame where that is smaller.
    """

    grain: int = SECTOR
    versions: dict[int, list[Version]] = dataclasses.field(default_factory=dict)
    open_requests: dict[int, tuple] = dataclasses.field(default_factory=dict)
    covered: dict[int, set[int]] = dataclasses.field(default_factory=dict)
    totals: set[int] = dataclasses.field(default_factory=set)
    sessions: set[tuple[bool, str]] = dataclasses.field(default_factory=set)
    surplus: int = 0  # line writes that the wear file has more than the totals, since an earlier power cut

    # ---- what happens ----

    def apply(self, event: tuple) -> None:
        """Let an event happen."""
        if event[0] == "call":
            self._call(event[1], event[2])
        elif event[0] == "answer":
            self._answer(event[1])
        elif event[0] == "commit":
            # From now on either may be found.
            self.totals |= {event[1]["worn"]} if "worn" in event[1] else set()
            self.sessions |= {event[1]["session"]} if "session" in event[1] else set()
        elif event[0] == "committed":
            self.totals = {event[1]["worn"]} if "worn" in event[1] else self.totals
            self.sessions = {event[1]["session"]} if "session" in event[1] else self.sessions

    def newest(self, page: int) -> bytes:
        """What a read of `page` answers now."""
        held = self.versions.get(page)
        return held[-1].data if held else bytes(PAGE)

    def _call(self, request: int, operation: tuple) -> None:
        self.open_requests[request] = operation
        if operation[0] in ("write", "trim", "zero"):
            for page, data in self._changes(operation):
                self.versions.setdefault(page, [Version(0, bytes(PAGE))]).append(Version(request, data))
        elif operation[0] in ("flush", "close"):
            # It speaks for what had been answered when it was called.
            self.covered[request] = {one.request for held in self.versions.values() for one in held} - set(
                self.open_requests
            )

    def _changes(self, operation: tuple) -> Iterable[tuple[int, bytes]]:
        kind, offset, count = operation[0], operation[1], operation[2]
        data = operation[3] if kind == "write" else bytes(count)
        for page in range(offset // PAGE, -(-(offset + count) // PAGE)):
            first, end = max(offset, page * PAGE), min(offset + count, (page + 1) * PAGE)
            if kind == "trim" and end - first < PAGE:
                continue  # parts of pages stay
            old = self.newest(page)
            new = old[: first - page * PAGE] + data[first - offset : end - offset] + old[end - page * PAGE :]
            yield page, new

    def _answer(self, request: int) -> None:
        operation = self.open_requests.pop(request)
        covered = self.covered.pop(request, set())
        if operation[0] in ("write", "trim", "zero") and operation[-1] == "fua":
            covered = {request}
        for held in self.versions.values() if covered else ():
            durable = max((i for i in range(len(held)) if held[i].request in covered), default=0)
            del held[:durable]

    def reopened(self, contents: dict[int, bytes], worn: int, counted: int, how: str) -> "Oracle":
        """The oracle of the session that found `contents`, every page's."""
        following = Oracle(
            grain=self.grain, sessions=set(self.sessions), totals=set(self.totals), surplus=counted - worn
        )
        if how != "killed":
            # What the disk had when this session began.
            following.totals = {worn}
            following.versions = {page: [Version(0, data)] for page, data in contents.items()}
            return following
        for page, data in contents.items():
            held = [Version(0, one.data) for one in self.versions.get(page, [Version(0, bytes(PAGE))])]
            following.versions[page] = held if held[-1].data == data else [*held, Version(0, data)]
        return following

    # ---- what may be found ----

    def doubtful(self) -> list[int]:
        """Pages with more than one version since the last flush."""
        return sorted(page for page, held in self.versions.items() if len(held) > 1)

    def expected(self, boot: str) -> set[str]:
        """How the last session may be found to have ended, by an open in `boot`."""
        return {("killed" if was == boot else "power cut") if is_open else "" for is_open, was in self.sessions}

    def require_wear(self, worn: int, counted: int, how: str) -> None:
        """Broken where the totals are not what they may be."""
        if how == "power cut":
            if worn not in self.totals or worn > counted:
                raise Broken(f"wear: {worn} by the totals, {counted} counted, committed {sorted(self.totals)}")
        elif counted - worn != self.surplus:
            raise Broken(f"wear: {worn} by the totals, {counted} counted, {self.surplus} ahead before")

    def require(self, page: int, found: bytes, how: str, *, torn: bool) -> None:
        """Broken where the content of `page` is none that it may have; torn: sectors may be mixtures too."""
        held = [Version(0, bytes(PAGE)), *self.versions.get(page, [])][-len(self.versions.get(page, [0])) :]
        if how != "power cut":
            answered = max((i for i in range(len(held)) if held[i].request not in self.open_requests), default=0)
            held = held[answered:]
        if found == held[-1].data:
            return
        unit = WORD if torn or how == "killed" else self.grain
        for at in range(0, PAGE, unit):
            part = found[at : at + unit]
            if not any(one.data[at : at + unit] == part for one in held):
                raise Broken(
                    f"page {page}, byte {at}: found {part[:8].hex()}, "
                    f"expected one of {[one.data[at : at + 8].hex() for one in held]}"
                )
