# SPDX-License-Identifier: MIT
"""Processes killed with SIGKILL at random instants, opening included: what was answered is there, and totals are exact.

Many rounds, because there is no nbdkit to start: a forked child works on the device.  tests/test_kill_served.py kills
real servers, tests/test_kill_points.py goes through a request store by store.
"""

import random
import time

import pytest
from kills import CHOICES, KILLS, SEED, Child, Choice, Oracle, interrupted, judge, requests, require_clean

from pmem_core import image
from pmem_core.device import Device

ROUNDS = max(8, KILLS // len(CHOICES))
OPENED, BEGUN, DONE = range(3)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_was_answered_survives_kills(tmp_path, choice: Choice):
    """Promises 2, 4 and 5.  Each round: open, work, be killed; then every byte is compared, and every total."""
    print(f"seed {SEED}, {ROUNDS} kills")
    chance = random.Random(f"{SEED} {choice}")
    path = tmp_path / "disk.pmem"
    choice.create(path)
    device_bytes = image.load_geometry(path).device_bytes
    with Device(path) as device:
        device.write(b"\1", 0)  # compiled, once for all children
        device.zero(1, 0, may_trim=False)
        device.trim(device_bytes, 0)
    oracle, inside, opening, answered = Oracle(device_bytes), 0, 0, 0
    oracle.writes = 1

    def work(child: Child) -> None:
        device = Device(path)
        child.counts[OPENED] = 1
        for request in requests(seed, device_bytes):
            child.counts[BEGUN] += 1
            request.ask(device)
            child.counts[DONE] += 1

    for number in range(ROUNDS):
        seed = f"{SEED} {choice} {number}"
        with Child(work) as child:
            if number and chance.random() < 0.2:
                time.sleep(chance.uniform(0, 0.006))
            else:
                child.wait_for(OPENED)
                time.sleep(chance.uniform(0, 0.015))
            assert not child.ended()
            child.kill()
            begun, done = int(child.counts[BEGUN]), int(child.counts[DONE])
            opening += not child.counts[OPENED]
        inside += interrupted(path)
        flying = None
        for request, _ in zip(requests(seed, device_bytes), range(begun), strict=False):
            flying = request
            if answered_one := done > 0:
                oracle.answered(request)
                done -= answered_one
                flying = None
        answered += begun
        # Read-only, or the opening that mends would never be killed itself.
        judge(path, oracle, flying, read_only=chance.random() < 0.7).abandon()
    print(f"{answered} requests; killed in the middle of one: {inside}, while opening: {opening}")
    judge(path, oracle, None).close()
    require_clean(path)
