# SPDX-License-Identifier: MIT
"""The table of a killed image, word by word, where the medium contradicts it.

A kill leaves the state right and ahead of the journal, so where their tables differ the state's is believed.  But a bit
of it may have flipped.  Then its map is not one-to-one, or leads to places where pages are not; and the journal's word,
of the last checkpoint, leads to where they are, unless that part of the table was moved since.  So each word that
differs is tried as the journal has it, and is kept so where more pages are found whole:

| the state's map is | a word is the journal's where |
| --- | --- |
| not one-to-one | with it alone the map is |
| one-to-one, and fits worse than the journal's, by more pages than a kill or decay accounts for | it fits better so |

Where the map is one-to-one by no word of the journal's, as where the wrong one was moved since, each bit of the words
that differ is tried: the map has to be one-to-one and to fit no worse than the journal's.

What a kill accounts for: pages in flight.  A page that decayed after it was moved is whole where it was before, so some
are allowed for, but where nothing was moved since the checkpoint.  Pages that were trimmed since are still there by the
journal: after trims it is pages that fail that are counted, not those that are whole.
"""

import dataclasses

import numpy as np

from .. import layout, recovery
from . import doubt
from .trust import Belief, Stage, Watch

DECAYED_MAX = 2  # pages
FRAMES_MAX, TRIES_MIN = 1 << 28, 16  # how many frames are followed in all, and how many words are tried at least


@dataclasses.dataclass
class Amended:
    """belief: the better telling; problem: of its table, what was wrong, or ""; doubtful: too many pages fail still."""

    belief: Belief
    problem: str = ""
    doubtful: bool = False


def table(stage: Stage, state: Belief, journal: Belief, blocks: np.ndarray, watch: Watch) -> Amended:
    """The state of a killed image with what words of the journal's table the medium speaks for.

    blocks: as of checkscan.  Without descriptors the medium says nothing, and the state is as it was.
    """
    differing = np.flatnonzero(state.table != journal.table)
    if not len(differing) or not stage.plan.has_descriptors or not journal.maps_well:
        return Amended(state)
    search = _Search(stage, state, journal, blocks, watch)
    best, doubtful = search.run(differing)
    changed = best.table != state.table
    words, of_journal = int(np.count_nonzero(changed)), int(np.count_nonzero(changed & (best.table == journal.table)))
    if not words:
        lost = search.moves and not state.maps_well
        return Amended(state, f"{_behind(search.moves)} by the journal's" if lost else "", doubtful)
    problem = f"{words} of {len(state.table)} words of the table, in whose place "
    problem += "the journal's fit the medium" if of_journal else "what it was before a bit flipped fits the medium"
    if search.moves and of_journal:
        problem += f"; {_behind(search.moves)}"
    return Amended(best, problem, doubtful)


def _behind(moves: int) -> str:
    return f"writes since one of {moves} moves after the last checkpoint may be lost"


class _Search:
    def __init__(self, stage: Stage, state: Belief, journal: Belief, blocks: np.ndarray, watch: Watch) -> None:
        self.stage, self.state, self.blocks, self.watch = stage, state, blocks, watch
        was, now = journal.core[0]["tally"], state.core[0]["tally"]
        self.trimmed = any(int(was[name]) != int(now[name]) for name in ("trims", "zeros"))
        intent = state.core[0]["intent"]
        flying = () if recovery.intent_problems(intent, stage.plan) else recovery.pages_in_flight(intent)
        self.moves = max(0, int(now["moves"]) - int(was["moves"]))
        self.allowed = len(flying) + (DECAYED_MAX if self.moves else 0)
        # Everything but the table is the state's: descriptors that are pending are nowhere else.
        self.before = dataclasses.replace(state, table=journal.table, held=journal.held, maps_well=True)
        self.tries = max(TRIES_MIN, FRAMES_MAX // max(1, stage.plan.placed_frames))

    def run(self, differing: np.ndarray) -> tuple[Belief, bool]:
        """The best there is, and whether too many pages fail by that."""
        now: Belief | None = self.state if self.state.maps_well else self._one_to_one(differing)
        if now is None:
            return self.state, False
        apart = self._apart(now)
        if not len(apart):
            return now, False
        score, of_before = self._score(now, apart), self._score(self.before, apart)
        if self._gain(score, of_before) > self.allowed:
            for word in np.flatnonzero(now.table != self.before.table)[: self.tries]:
                trial = self._with(now, word)
                better = score if trial is None else self._score(trial, apart)
                if trial is not None and self._gain(score, better) > 0:
                    now, score = trial, better
            if self._gain(score, of_before) > self.allowed:
                now, score = self.before, of_before
        return now, doubt.are_too_many(score.failing, score.with_data, doubt.FAILING_MAX)

    def _one_to_one(self, differing: np.ndarray) -> Belief | None:
        for word in differing[: self.tries]:
            if one := self._with(self.state, word):
                return one
        for word in differing[: max(1, self.tries >> 6)]:
            for bit in range(64):
                flipped = int(self.state.table[word : word + 1].view(np.uint64)[0]) ^ 1 << bit
                one = self._with(self.state, word, np.uint64(flipped).view(np.int64))
                if one and self._fits(one):
                    return one
        return None

    def _fits(self, belief: Belief) -> bool:
        apart = self._apart(belief)
        return self._gain(self._score(belief, apart), self._score(self.before, apart)) <= self.allowed

    def _with(self, belief: Belief, word: int, value: np.int64 | None = None) -> Belief | None:
        """`belief` with a value, or the journal's, in a word of its table; None where its map is not one-to-one."""
        changed = belief.table.copy()
        changed[word] = self.before.table[word] if value is None else value
        trial = dataclasses.replace(belief, table=changed, maps_well=True)
        problem, trial.held = self.stage.survey(trial, self.blocks, self.watch)
        return None if problem else trial

    def _apart(self, belief: Belief) -> np.ndarray:
        """The parts, in sections in use and not suspect, of which something lies elsewhere by the journal."""
        parts = doubt.apart(self.stage, belief, self.before)
        bits = belief.sections[parts * doubt.PART_PAGES // self.stage.plan.info.section_pages]
        return parts[bits & layout.SECTION_SUSPECT == 0]

    def _score(self, belief: Belief, parts: np.ndarray) -> doubt.Fit:
        return doubt.fit(self.stage, belief, parts, doubt.PART_PAGES)

    def _gain(self, now: doubt.Fit, then: doubt.Fit) -> int:
        """How many pages more are whole by `then`; after trims, how many fail less."""
        fewer_fail = now.failing + now.lost - then.failing - then.lost
        return fewer_fail if self.trimmed else fewer_fail + then.with_data - now.with_data
