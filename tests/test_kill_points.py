# SPDX-License-Identifier: MIT
"""Kills at every store of a request, of a move above all, one by one; and that what looks for lost data finds it.

killpoints.py does the work, in plain Python in a process of its own, so that each store of compiled code is a line.
PMEM_NBD_KILLS=5000 makes five rounds, under all choices, with a kill at every single point.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import PAIRS
from planted import AT_KILLS, AT_KILLS_IN_GROUPS

from pmem_core import leveling

HERE = Path(__file__).resolve().parent
SEED = os.environ.get("PMEM_NBD_SEED", "20150507")
KILLS = int(os.environ.get("PMEM_NBD_KILLS", "0"))
SECONDS_MAX = 280 + KILLS
MOVING = [name for name, module in leveling.family.modules.items() if module.MOVES]


def kill(level: str, place: str, *arguments: object) -> tuple[int, str]:
    """Run killpoints.py; its status, and what it printed."""
    command = [sys.executable, HERE / "killpoints.py", "--leveling", level, "--placement", place, "--seed", SEED]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_BOUNDSCHECK"}
    environment |= {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        list(map(str, [*command, *arguments])),
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize(("place", "level"), PAIRS)
def test_promises_hold_at_every_store(level, place):
    """Promises 2, 4 and 5; every file is stored to, and under every leveling that moves at all frames do move."""
    every = ["--every", "--rounds", -(-KILLS // 1000)] if KILLS else []
    status, told = kill(level, place, *every)
    print(told)
    assert status == 0 and told, told
    for line in told.splitlines():
        at = {name: int(count) for count, name in re.findall(r"(\d+) at ([a-z]+)", line)}
        assert min(at[name] for name in ("media", "wear", "state", "journal")) > 0, line


@pytest.mark.slow
@pytest.mark.parametrize("level", MOVING)
def test_move_that_switches_before_it_copies_is_found(level):
    """Under every leveling that moves frames, whatever its algorithm."""
    status, told = kill(level, "interleaved", "--plant", "every move switches before it copies")
    assert status == 1 and "\nagain: " in told, told


@pytest.mark.slow
@pytest.mark.parametrize("bug", [*AT_KILLS, "intent not named"])
def test_planted_bug_is_found(bug):
    # Pages are written together where their descriptors are written with them, and frames are no smaller.
    place = "interleaved" if bug == "pages together not named" else "linear"
    status, told = kill("start_gap", place, "--plant", bug)
    assert status == 1 and "\nagain: " in told, told


@pytest.mark.slow
@pytest.mark.parametrize("bug", AT_KILLS_IN_GROUPS)
def test_planted_bug_in_groups_of_descriptors_is_found(bug):
    status, told = kill("none", "interleaved", "--plant", bug)
    assert status == 1 and "\nagain: " in told, told


@pytest.mark.slow
def test_failing_kill_is_found_again_by_its_name():
    bug = "count not described"
    _, told = kill("start_gap", "interleaved", "--plant", bug)
    choice, only = re.search(r"--choice '(.*?)' .* --only (\S+)", told).groups()
    assert kill("start_gap", "interleaved", "--plant", bug, "--choice", choice, "--only", only) == (1, told)
    assert kill("start_gap", "interleaved", "--choice", choice, "--only", only)[0] == 0
