# SPDX-License-Identifier: MIT
"""How long a medium lives under levelings as their papers define them: plain loops, nothing of pmem_core.

    .venv/bin/python tests/independent.py [--keys 11]

prints this simulation's lives of the table in docs/leveling.md; tests/test_agreement.py compares replays with them.

Wear is counted by frame.  A life is how many frames the host wrote until the first one had been written `endurance`
times, in percent of frames of the medium * endurance.  Keys, permutations and writes are drawn by the seed.

Each leveling is a function of the number of placed frames and a generator; it returns how many frames the medium has,
and a step.  step(writes, wear, endurance) makes `writes`, placed frames in turn, counts them and its own moves in
`wear`, and returns how many it made until a frame died.  Intervals count writes, not those of moves; a move follows
the write that made it due.
"""

import argparse

import numpy as np
from numba import njit

FRAMES, ENDURANCE = 8192, 20_000
BATCH = 1 << 16
LOADS = ("uniform", "zipf", "desc65", "repeated")


def none(frames, random):
    """Nothing moves."""
    return frames, _none


@njit(cache=True)
def _none(writes, wear, endurance):
    for made, frame in enumerate(writes):
        wear[frame] += 1
        if wear[frame] == endurance:
            return made + 1
    return len(writes)


def start_gap(frames, random, *, region=FRAMES, gap=1, interval=100, randomised=False):
    """Qureshi et al., MICRO 2009: each region is a ring with `gap` free frames (1 in the paper), which go round.

    randomised: a permutation, drawn once, of all frames in front.
    """
    regions = frames // region
    first = np.arange(regions)[:, None] * (region + gap)
    where = (first + np.arange(region)).ravel()
    holds = np.full(regions * (region + gap), -1)
    holds[where] = np.arange(frames)
    gaps, since = np.full(regions, region), np.zeros(regions, np.int64)
    order = random.permutation(frames) if randomised else np.arange(frames)
    kept = (where, holds, gaps, since, region, gap, interval)
    return len(holds), lambda writes, *given: _start_gap(order[writes], *given, *kept)


@njit(cache=True)
def _start_gap(writes, wear, endurance, where, holds, gaps, since, region, gap, interval):
    ring = region + gap
    for made, frame in enumerate(writes):
        wear[where[frame]] += 1
        dead = wear[where[frame]] >= endurance
        own = frame // region
        since[own] += 1
        if since[own] == interval:
            since[own] = 0
            # The frame below the gap goes to the gap's upper end.
            source = own * ring + (gaps[own] - 1) % ring
            target = own * ring + (gaps[own] + gap - 1) % ring
            moved = holds[source]
            holds[source], holds[target], where[moved] = -1, moved, target
            gaps[own] = (gaps[own] - 1) % ring
            wear[target] += 1
            dead |= wear[target] >= endurance
        if dead:
            return made + 1
    return len(writes)


def security_refresh(frames, random, *, interval=100):
    """Seong et al., ISCA 2010, one level: address and pair change places, in place.  `frames` is a power of two."""
    state = np.array([0, random.integers(frames), 0, 0])  # old key, new key, pointer, writes since the last refresh
    return frames, lambda *given: _security_refresh(*given, state, interval, random)


@njit(cache=True)
def _security_refresh(writes, wear, endurance, state, interval, random):
    old, new, pointer, since = state
    for made, address in enumerate(writes):
        at = address ^ (new if address < pointer or address ^ old ^ new < pointer else old)
        wear[at] += 1
        dead = wear[at] >= endurance
        since += 1
        if since == interval:
            since = 0
            if pointer ^ old ^ new > pointer:
                for one in (pointer ^ old, pointer ^ new):
                    wear[one] += 1
                    dead |= wear[one] >= endurance
            pointer += 1
            if pointer == len(wear):
                old, new, pointer = new, int(random.random() * len(wear)), 0
        if dead:
            return made + 1
    state[:] = np.array([old, new, pointer, since])
    return len(writes)


def table_swap(frames, random, *, block=16, interval=1000):
    """Zhou et al., ISCA 2009: a block written `interval` times changes places with another one, at random, in place."""
    where, since = np.arange(frames // block), np.zeros(frames // block, np.int64)
    return frames, lambda *given: _table_swap(*given, where, since, block, interval, random)


@njit(cache=True)
def _table_swap(writes, wear, endurance, where, since, block, interval, random):
    for made, frame in enumerate(writes):
        own = frame // block
        at = where[own] * block + frame % block
        wear[at] += 1
        dead = wear[at] >= endurance
        since[own] += 1
        if since[own] == interval:
            since[own] = 0
            other = (own + 1 + int(random.random() * (len(where) - 1))) % len(where)
            where[own], where[other] = where[other], where[own]
            for one in (where[own], where[other]):
                for moved in range(one * block, one * block + block):
                    wear[moved] += 1
                    dead |= wear[moved] >= endurance
        if dead:
            return made + 1
    return len(writes)


def written(load, frames, random):
    """Placed frames in the order of their writes, arrays without end.  zipf: the hottest is the first one, and so on.

    desc65: every 65th page describes the 64 behind it, and is written after each write to one of them.
    """
    ranks = np.cumsum(np.arange(1, frames + 1) ** -0.99)
    page = random.integers(frames)
    while True:
        if load == "uniform":
            yield random.integers(frames, size=BATCH)
        elif load == "zipf":
            yield np.searchsorted(ranks, random.random(BATCH) * ranks[-1], side="right")
        elif load == "repeated":
            yield np.full(BATCH, page)
        else:
            group, within = np.divmod(random.integers(frames - -(-frames // 65), size=BATCH), 64)
            yield np.column_stack((65 * group + 1 + within, 65 * group)).ravel()


def life(leveling, parameters, load, seed, *, frames=FRAMES, endurance=ENDURANCE):
    """Normalised life in percent."""
    random = np.random.default_rng(seed)
    medium_frames, step = leveling(frames, random, **parameters)
    wear, made = np.zeros(medium_frames, np.int64), 0
    for writes in written(load, frames, random):
        made += step(writes, wear, endurance)
        if wear.max() >= endurance:
            return 100 * made / (medium_frames * endurance)


TABLE = {
    "none": (none, {}),
    "start_gap, one region, gap 1": (start_gap, {}),
    "the same, randomised": (start_gap, {"randomised": True}),
    "the same, interval 10": (start_gap, {"randomised": True, "interval": 10}),
    "128 regions, gap 1, randomised": (start_gap, {"region": 64, "randomised": True}),
    "security_refresh, one level, blocks of a frame": (security_refresh, {}),
    "table_swap, blocks of 16 frames, interval 1000": (table_swap, {}),
}


def lives(label, load, keys):
    """Lives of a row of TABLE, sorted; three where most of the ideal is lived, for they hardly differ."""
    found = [life(*TABLE[label], load, 1)]
    while len(found) < (keys if found[0] < 85 else min(keys, 3)):
        found.append(life(*TABLE[label], load, len(found) + 1))
    return sorted(found)


def main():
    """Print the lives: the median of the keys, and the least and the most where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=11, help="keys of each life (default 11)")
    chosen = parser.parse_args()
    print(f"| leveling | {' | '.join(LOADS)} |", "| --- | --- | --- | --- | --- |", sep="\n")
    for label in TABLE:
        cells = []
        for load in LOADS:
            found = lives(label, load, chosen.keys)
            shown = (np.median(found), found[0], found[-1])
            middle, *ends = (f"{one:.2f}" if one < 1 else f"{one:.1f}" for one in shown)
            cells.append(middle if ends[0] == ends[1] else f"{middle} ({'–'.join(ends)})")
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
