# SPDX-License-Identifier: MIT
"""Real power cuts: the host's filesystem is shut down under the image, and what was not synced is really gone.

power_cuts.py and power_served.py do the work, in a process of their own, because of its mounts.
PMEM_NBD_POWER_CUTS=N makes N cuts, of every choice of policies on either filesystem, and under each server.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import power
import pytest
from conftest import needs
from kills import SEED

pytestmark = [pytest.mark.kernel, needs("loop", "ext4", "xfs")]

HERE = Path(__file__).resolve().parent
# Twenty on a quiet machine; compiling every choice for the first time takes minutes.
SECONDS_MAX = 600 + 15 * int(os.environ.get("PMEM_NBD_POWER_CUTS", "0"))
PLANTED_SEED = "1"  # always: that a bug can be found is a fact, how soon is a matter of luck
GAP_OF_ONE = "interleaved-start_gap(interval=1,region_frames=16,gap_frames=1)-coalesced-4096"
NO_LEVELING = "interleaved-none()-each-4096"


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def run(script: str, *arguments: object) -> tuple[int, str, dict[str, int]]:
    """Its status, what it printed, and the figures in it."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        command(script, *arguments), env=environment, capture_output=True, text=True, check=False, timeout=SECONDS_MAX
    )
    told = done.stdout + done.stderr
    figures = {name.strip(): int(count) for name, count in re.findall(r"([a-z][a-z ]*): (\d+)(?=[,:])", told)}
    return done.returncode, told, figures


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("fs", power.KINDS)
def test_promises_hold_at_every_cut(fs):
    """Promises 1, 3, 4 and 5, for every placement, leveling and way of writing descriptors."""
    status, told, figures = run("power_cuts.py", "--fs", fs, "--seed", SEED)
    print(told)
    assert status == 0, told
    # Or it would prove nothing.
    assert figures["cuts that lost data"] > 40 and figures["cuts that lost wear"] > 40
    assert figures["cuts within a request"] > 20 and figures["moves"] > 1000


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX)
@needs("nbdkit", "libnbd")
@pytest.mark.parametrize("fs", power.KINDS)
def test_promises_hold_under_a_server_and_its_clients(fs):
    status, told, figures = run("power_served.py", "--fs", fs, "--seed", SEED)
    print(told)
    assert status == 0, told
    assert figures["cuts that lost data"] > 0


@pytest.mark.parametrize(
    ("bug", "choice", "fs"),
    [
        ("flush does nothing", NO_LEVELING, "xfs"),
        ("moves not committed", GAP_OF_ONE, "ext4"),
        ("frames not synced", GAP_OF_ONE, "xfs"),
        ("wear not synced", GAP_OF_ONE, "ext4"),
    ],
)
def test_planted_bug_is_found(bug, choice, fs):
    """The first test can fail."""
    arguments = ["--fs", fs, "--choice", choice, "--plant", bug, "--seed", PLANTED_SEED, "--cuts", 400]
    status, told, _ = run("power_cuts.py", *arguments)
    assert status == 1, told
    assert f"--plant '{bug}'" in told and "Broken" in told, told


def test_nothing_is_left_of_a_run_that_is_killed():
    """Neither a process nor a loop device, and the mounts were never anybody else's."""

    def loops() -> set[str]:
        found = set()
        for loop in Path("/sys/block").glob("loop*/loop"):
            with contextlib.suppress(OSError):
                if f"power-{running.pid}" in (loop / "backing_file").read_text():
                    assert (loop / "autoclear").read_text() == "1\n", "it stays when the process is killed"
                    found.add(loop.parent.name)
        return found

    def processes() -> set[str]:
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "cmdline").read_text().split("\0"):
                    found.add(process.name)
            except OSError:
                continue
        return found

    mark = f"left {os.getpid()}"
    mounts = Path("/proc/self/mounts").read_text()
    running = subprocess.Popen(command("power_cuts.py", "--fs", "ext4", "--seed", mark, "--cuts", 4000))
    try:
        deadline = time.monotonic() + 60
        while len(processes()) < 2 or not loops():  # a child works
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.002)
    finally:
        running.kill()
        running.wait()
    while loops() or processes():
        assert time.monotonic() < deadline, (loops(), processes())
        time.sleep(0.01)
    assert [line for line in Path("/proc/self/mounts").read_text().splitlines() if line not in mounts] == []
