# SPDX-License-Identifier: MIT
"""A flipped bit in totals that nothing else can tell is found by the sum kept of them, in an image that was killed."""

import contextlib
import os
import random
import sys
import threading

import pytest
import test_flips
from tally_reader import KEPT_AT, kept_and_added
from test_check import PLANS, Made, differing, flip, kinds, lose_page_cache, make, put

from pmem_core import layout
from pmem_core.check import Kind, check
from pmem_core.device import Device
from pmem_core.errors import BadData

PAGE = layout.PAGE_BYTES
SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
CORE = layout.ZONE_BYTES  # where the core record is in the state file
alike = test_flips.alike  # copies of an image pass for it
FIELDS = [name for name in layout.TALLY.names if name not in ("worn", "hottest")]


def killed(tmp_path, name="interleaved"):
    """An image with nearly every total above zero, as a kill leaves it."""
    made = make(tmp_path, SEED, **PLANS[name])
    device = Device(made.path)
    made.use(device, random.Random(SEED + 1))
    device.read(PAGE, 0)
    device.abandon()
    return made


def core_of(made):
    return (made.path / "state").read_bytes()[CORE:][: KEPT_AT + 8]


def flip_total(made, name, bit):
    flip(made.path / "state", CORE + layout.TALLY.fields[name][1] + bit // 8, bit % 8)


@pytest.mark.parametrize("name", PLANS)
def test_image_killed_in_use_keeps_the_right_sum(tmp_path, name):
    made = killed(tmp_path, name)
    kept, added = kept_and_added(core_of(made))
    assert kept == added > 1
    assert check(made.path).clean


@pytest.mark.parametrize("end", ["closed", "killed", "cut"])
def test_sum_is_right_after_every_end(tmp_path, end):
    made = killed(tmp_path)
    if end == "closed":
        Device(made.path).close()
    elif end == "cut":
        lose_page_cache(made.path)
    for _ in range(2):
        assert check(made.path).clean
        device = Device(made.path)
        made.use(device, random.Random(SEED + 2), requests=10)
        kept, added = kept_and_added(device.mapping.core.tobytes())
        assert kept == added
        device.close()


def test_flip_in_any_total_of_a_killed_image_is_found_and_repaired(tmp_path):
    made, random_ = killed(tmp_path), random.Random(SEED)
    for name in FIELDS:
        other, bit = made.copy("flipped.pmem"), random_.randrange(63)
        flip_total(other, name, bit)
        found = check(other.path)
        assert Kind.TOTALS_WRONG in kinds(found) and not found.clean, f"seed {SEED}: {name}, bit {bit}"
        mended = check(other.path, repair=True)
        assert mended.repairs[Kind.TOTALS_WRONG] == 1, f"seed {SEED}: {name}, bit {bit}"
        assert not kinds(check(other.path))
        kept, added = kept_and_added(core_of(other))
        assert kept == added


def test_flip_in_the_sum_is_found(tmp_path):
    made = killed(tmp_path)
    flip(made.path / "state", CORE + KEPT_AT + 7, 7)
    assert kinds(check(made.path)) == {Kind.TOTALS_WRONG}


def test_wrong_total_is_found_after_the_image_was_used_and_closed(tmp_path):
    made = killed(tmp_path)
    flip_total(made, "writes", 3)
    with Device(made.path) as device:
        made.use(device, random.Random(SEED + 2))
    assert kinds(check(made.path)) == {Kind.TOTALS_WRONG}


def test_kill_while_a_total_was_counted_is_no_damage(tmp_path):
    made = killed(tmp_path)
    put(made.path / "state", CORE + KEPT_AT, bytes(8))
    flip_total(made, "writes", 0)  # as if it was counted, and its bytes not
    assert check(made.path).clean
    Device(made.path).abandon()
    kept, added = kept_and_added(core_of(made))
    assert kept == added > 1
    flip_total(made, "writes", 0)
    assert kinds(check(made.path)) == {Kind.TOTALS_WRONG}


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_image_that_keeps_no_sum_is_clean_and_gets_one(tmp_path, end):
    """As images of the first version are."""
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    if end == "killed":
        Device(made.path).abandon()
    put(made.path / "state", CORE + KEPT_AT, bytes(8))
    differing(made, lambda core, table, sections: core["unit"][:, layout.UNIT_TALLY].fill(0))
    assert check(made.path).clean
    with Device(made.path) as device:
        made.use(device, random.Random(SEED + 2), requests=5)
    kept, added = kept_and_added(core_of(made))
    assert kept == added > 1
    assert check(made.path).clean


def test_refused_requests_are_in_the_sum(tmp_path):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    with Device(made.path) as device:
        device.write(bytes(PAGE), 0)
    flip(made.path / "media", made.offsets(0)[0])
    with Device(made.path) as device:
        for request in (lambda: device.read(PAGE, 0), lambda: device.write(b"part", 8)):
            with contextlib.suppress(BadData):
                request()
        assert device.mapping.core["tally"]["checksum_errors"][0] == 2
        kept, added = kept_and_added(device.mapping.core.tobytes())
        assert kept == added


def test_sum_is_right_when_threads_take_turns(tmp_path):
    made = Made(tmp_path / "a.pmem", **PLANS["linear"])
    device, each = Device(made.path), 300

    def work(first):
        for number in range(each):
            device.trim(PAGE, (first + number % 50) * PAGE)
            device.write(bytes(512), (first + number % 50) * PAGE)
            device.zero(PAGE, (first + number % 50) * PAGE)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    tally = device.mapping.core["tally"][0]
    assert [int(tally[name]) for name in ("trims", "writes", "zeros")] == [each * len(threads)] * 3
    kept, added = kept_and_added(device.mapping.core.tobytes())
    assert kept == added
    del tally
    device.abandon()
