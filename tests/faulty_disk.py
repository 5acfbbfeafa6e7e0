# SPDX-License-Identifier: MIT
"""A disk that loses its power: of each file what is durable, and beside it every later version of every sector.

It knows nothing of pmem_core.  Events say what happened to files in the order in which it happened:

    ("stores", name, [(sector, bytes), ...], atomic)   sectors changed in the page cache; atomic: never torn
    ("size", name, bytes)                              the file grew
    ("begin", sync)                                    a sync was asked for
    ("end", sync, name, ranges)                        and answered: all of the file, or [(first byte, end), ...] of it
    ("rename", name, bytes)                            another file, written and synced, was renamed to `name`
    ("replace", name, bytes)                           and the folder was synced

Everything else in a list of events is somebody else's and is passed over.  At a cut each sector that is not durable is
any of its versions, whatever the others are: no order holds between sectors but the one that syncs make.  An answered
sync makes durable what was stored before it was asked for; what came in between stays in doubt.
"""

import dataclasses
import random
from typing import Any

import numpy as np

SECTOR = 512
STYLES = ("old", "new", "one old", "one new", "mixed", "torn")


@dataclasses.dataclass
class Kept:
    """One file: the durable sectors, uint8[sectors, 512], and versions after that, oldest first."""

    durable: np.ndarray
    size: int
    later: dict[int, list[tuple[int, bytes, bool]]] = dataclasses.field(default_factory=dict)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    replacements: list[bytes] = dataclasses.field(default_factory=list)


# What becomes of what is in doubt.  (name, sector) -> (i, j, bytes): version i, but for so many first bytes version j;
# version 0 is the durable one.  (name, "size") and (name, "replaced") -> which.
Outcome = dict[tuple[str, Any], tuple[int, int, int]]


def sectors_of(data: bytes) -> np.ndarray:
    """`data` as uint8[sectors, 512], filled up with zeros."""
    filled = np.zeros(-(-len(data) // SECTOR) * SECTOR, np.uint8)
    filled[: len(data)] = np.frombuffer(data, np.uint8)
    return filled.reshape(-1, SECTOR)


class Disk:
    """The files of an image on a disk, by name."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {name: Kept(sectors_of(data), len(data)) for name, data in files.items()}
        self.at = 0
        self._begun: dict[int, int] = {}

    # ---- what happens to it ----

    def apply(self, event: tuple) -> None:
        """Let an event happen."""
        self.at += 1
        kind = event[0]
        if kind == "stores":
            for sector, data in event[2]:
                self.files[event[1]].later.setdefault(sector, []).append((self.at, data, event[3]))
        elif kind == "size":
            self.files[event[1]].sizes.append((self.at, event[2]))
        elif kind == "begin":
            self._begun[event[1]] = self.at
        elif kind == "end":
            self._make_durable(self.files[event[2]], self._begun.pop(event[1]), event[3])
        elif kind == "rename":
            self.files[event[1]].replacements.append(event[2])
        elif kind == "replace":
            self.files[event[1]] = Kept(sectors_of(event[2]), len(event[2]))

    def _make_durable(self, file: Kept, before: int, ranges: list[tuple[int, int]] | None) -> None:
        for at, size in file.sizes:
            if at <= before:
                file.size = size
        file.sizes = [one for one in file.sizes if one[0] > before]
        for sector in list(file.later):
            first = sector * SECTOR
            if ranges is not None and not any(first < end and start < first + SECTOR for start, end in ranges):
                continue
            kept = [one for one in file.later[sector] if one[0] > before]
            done = file.later[sector][: len(file.later[sector]) - len(kept)]
            if done:
                self._grow(file, sector)
                file.durable[sector] = np.frombuffer(done[-1][1], np.uint8)
            if kept:
                file.later[sector] = kept
            else:
                del file.later[sector]

    @staticmethod
    def _grow(file: Kept, sector: int) -> None:
        if sector >= len(file.durable):
            more = np.zeros((sector + 1 - len(file.durable), SECTOR), np.uint8)
            file.durable = np.concatenate([file.durable, more])

    # ---- the cut ----

    def doubts(self) -> list[tuple[str, Any]]:
        """What may come out in more than one way."""
        found: list[tuple[str, Any]] = []
        for name, file in self.files.items():
            found += [(name, sector) for sector in sorted(file.later)]
            if file.sizes:
                found.append((name, "size"))
            if file.replacements:
                found.append((name, "replaced"))
        return found

    def newest_of(self, doubt: tuple[str, Any]) -> int:
        name, what = doubt
        file = self.files[name]
        return len({"size": file.sizes, "replaced": file.replacements}.get(what) or file.later[what])

    def _torn(self, doubt: tuple[str, Any], chance: random.Random) -> tuple[int, int, int]:
        newest = self.newest_of(doubt)
        i, j = sorted((chance.randint(0, newest), chance.randint(0, newest)))
        if isinstance(doubt[1], str) or i == j or any(one[2] for one in self.files[doubt[0]].later[doubt[1]]):
            return i, i, 0
        return i, j, 8 * chance.randrange(1, SECTOR // 8)

    def outcome(self, chance: random.Random, style: str) -> Outcome:
        """Choose what becomes of everything in doubt.

        old, new: all of it; one old, one new: all but one; mixed: each sector is any of its versions, with a bias for
        each file; torn: and may be the first part of one and the rest of another, by words of 8 bytes.
        """
        doubts = self.doubts()
        newest = {doubt: self.newest_of(doubt) for doubt in doubts}
        base = 0 if style in ("old", "one new") else 1
        found = {doubt: (base * newest[doubt], base * newest[doubt], 0) for doubt in doubts}
        if style.startswith("one ") and doubts:
            # A file with few of them is as likely as one with many.
            file = chance.choice(sorted({name for name, _ in doubts}))
            lone = chance.choice([doubt for doubt in doubts if doubt[0] == file])
            other = newest[lone] if base == 0 else chance.randrange(newest[lone])
            found[lone] = (other, other, 0)
        elif style in ("mixed", "torn"):
            bias = {name: chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)) for name in self.files}
            for doubt in doubts:
                if style == "torn" and chance.random() < 0.5:
                    found[doubt] = self._torn(doubt, chance)
                elif chance.random() < bias[doubt[0]]:
                    found[doubt] = (newest[doubt], newest[doubt], 0)
                else:
                    which = chance.randrange(newest[doubt])
                    found[doubt] = (which, which, 0)
        return found

    def after(self, outcome: Outcome) -> dict[str, bytes]:
        """The files as they are found when the power is back; what `outcome` does not name is new."""
        found = {}
        for name, file in self.files.items():
            size = file.size
            which = outcome.get((name, "size"), (len(file.sizes),))[0]
            if which:
                size = file.sizes[which - 1][1]
            data = np.zeros((-(-size // SECTOR), SECTOR), np.uint8)
            data[: len(file.durable)] = file.durable[: len(data)]
            for sector, versions in file.later.items():
                if sector < len(data):
                    i, j, torn = outcome.get((name, sector), (len(versions), len(versions), 0))
                    if i:
                        data[sector] = np.frombuffer(versions[i - 1][1], np.uint8)
                    if torn:
                        data[sector, :torn] = np.frombuffer(versions[j - 1][1], np.uint8)[:torn]
            found[name] = data.tobytes()[:size]
            which = outcome.get((name, "replaced"), (len(file.replacements),))[0]
            if which:
                found[name] = file.replacements[which - 1]
        return found

    def newest(self) -> dict[str, bytes]:
        """The files as the page cache has them, which is what a killed process leaves."""
        return self.after({})
