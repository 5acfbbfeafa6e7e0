# SPDX-License-Identifier: MIT
"""Replays live as long as independent.py's simulation of the papers' algorithms: docs/leveling.md has the tables.

Each draws writes and keys of its own, so the median of our lives has to lie among the other's lives, the least and the
most of them left out, or a point or a twentieth beside, whichever is less.  Seeds are fixed, so chance has no part.
"""

import os
import runpy
import uuid
from pathlib import Path

import independent
import numpy as np
import pytest

from pmem_core import geometry
from pmem_core.replay import lives
from pmem_core.replay.endurance import Endurance

ALL = os.environ.get("PMEM_NBD_AGREEMENT") == "1"  # a quarter of an hour, or more
KEYS = 11


def life(leveling, parameters, spares, load, seed, frames, endurance):
    """Normalised life in percent, of a medium of frames + spares."""
    plan = geometry.plan(
        8192 + 4096 * (frames + spares),
        placement_name="interleaved" if load == "desc65" else "none",
        leveling_name=leveling,
        parameters=parameters,
        line_bytes=4096,
        uuid=str(uuid.UUID(int=seed)),
    )
    given = {"scattered": 0} if load == "zipf" else {}
    source = lives.Synthetic("uniform" if load == "desc65" else load, given, plan, seed)
    survives = Endurance(endurance)
    return 100 * lives.figures(lives.live(plan, source, survives), source, survives)["normalized_life"]


def compare(ours, theirs):
    """Print the lives, and compare them as the module says."""
    theirs = sorted(theirs)
    ours, middle = float(np.median(ours)), float(np.median(theirs))
    print(f"ours {ours:.2f}, theirs {middle:.2f}, {theirs[0]:.2f} to {theirs[-1]:.2f}")
    margin = min(1.0, middle / 20)
    assert theirs[1] - margin <= ours <= theirs[-2] + margin


# ---- a small medium ----

FRAMES, ENDURANCE, INTERVAL = 512, 1000, 10
# row: theirs and its parameters; ours, its parameters and spare frames; workloads
SMALL = {
    "none": (independent.none, {}, "none", {}, 0, ["zipf", "desc65"]),
    "start_gap, gap 1": (
        independent.start_gap,
        {"region": FRAMES, "interval": INTERVAL},
        "start_gap",
        {"region_frames": FRAMES, "gap_frames": 1, "interval": INTERVAL},
        1,
        ["zipf", "desc65"],
    ),
    "start_gap, gap n / 64": (
        independent.start_gap,
        {"region": FRAMES, "gap": FRAMES // 64, "interval": INTERVAL},
        "start_gap",
        {"region_frames": FRAMES, "interval": INTERVAL},
        FRAMES // 64,
        ["zipf", "desc65"],
    ),
    # Not desc65: there it lives shorter through spares than in place, as the document says.
    "security_refresh": (
        independent.security_refresh,
        {"interval": INTERVAL},
        "security_refresh",
        {"interval": INTERVAL, "block_frames": 1, "spare_blocks": 1},
        2,
        ["uniform", "zipf"],
    ),
    "table_swap": (
        independent.table_swap,
        {"block": 4, "interval": 4 * INTERVAL},
        "table_swap",
        {"interval": 4 * INTERVAL, "block_frames": 4, "spare_blocks": 1},
        8,
        ["zipf", "repeated"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("row", "load"), [(row, load) for row, values in SMALL.items() for load in values[-1]])
def test_small_medium_lives_as_in_an_independent_simulation(row, load):
    simulated, theirs, leveling, parameters, spares, _ = SMALL[row]
    size = {"frames": FRAMES, "endurance": ENDURANCE}
    compare(
        [life(leveling, parameters, spares, load, seed, **size) for seed in range(1, KEYS + 1)],
        [independent.life(simulated, theirs, load, seed, **size) for seed in range(1, KEYS + 1)],
    )


# ---- the table of the document ----

PLAIN = {"region_frames": independent.FRAMES, "gap_frames": 1}
TABLE = {
    "none": ("none", {}, 0),
    "start_gap, one region, gap 1": ("start_gap", PLAIN, 1),
    "the same, randomised": ("start_gap", PLAIN | {"randomize": 1}, 1),
    "the same, interval 10": ("start_gap", PLAIN | {"randomize": 1, "interval": 10}, 1),
    "128 regions, gap 1, randomised": ("start_gap", {"region_frames": 64, "gap_frames": 1, "randomize": 1}, 128),
    "security_refresh, one level, blocks of a frame": ("security_refresh", {"block_frames": 1, "spare_blocks": 1}, 2),
    "table_swap, blocks of 16 frames, interval 1000": ("table_swap", {"spare_blocks": 1}, 32),
}
LEFT_OUT = [("security_refresh, one level, blocks of a frame", "desc65")]
QUICK = [("none", "repeated"), ("128 regions, gap 1, randomised", "repeated")]
CASES = [(label, load) for label in TABLE for load in independent.LOADS if (label, load) not in LEFT_OUT]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("label", "load"), CASES if ALL else QUICK)
def test_life_of_the_document_is_that_of_an_independent_simulation(label, load):
    theirs = independent.lives(label, load, KEYS)
    seeds = range(1, 1 + (KEYS if theirs[0] < 85 else 2))
    compare([life(*TABLE[label], load, seed, independent.FRAMES, independent.ENDURANCE) for seed in seeds], theirs)


def test_script_of_start_gap_s_choices_lives_as_they_do(monkeypatch):
    """It is run once in months, and has to work then."""
    folder = Path(__file__).parent.parent / "scripts"
    monkeypatch.syspath_prepend(folder)
    script = runpy.run_path(str(folder / "life.py"))
    gap = {"region_frames": 1 << 30, "gap_frames": 1, "interval": INTERVAL}
    theirs = {"region": FRAMES, "interval": INTERVAL}
    compare(
        [
            100 * script["life"](("start_gap", gap), "uniform", 4096, FRAMES + 1, ENDURANCE, seed)[0]
            for seed in range(1, KEYS + 1)
        ],
        [
            independent.life(independent.start_gap, theirs, "desc65", seed, frames=FRAMES, endurance=ENDURANCE)
            for seed in range(1, KEYS + 1)
        ],
    )
