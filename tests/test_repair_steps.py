# SPDX-License-Identifier: MIT
"""A repair may be cut short at any step and done again, and what it made is durable before anything relies on it."""

import os
import random
from pathlib import Path

import pytest
import test_flips
from test_check import PLANS, a_page, flip, make, put
from test_recovery_steps import die_at

from pmem_core import layout
from pmem_core.check import Kind, check
from pmem_core.check import run as check_run
from pmem_core.device import Device

SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
STEPS = int(os.environ.get("PMEM_NBD_STEPS", "3"))  # tried of each repair; 999 is all of them


def lose_state(made):
    """The state is gone, of an image that was killed."""
    device = Device(made.path)
    made.use(device, random.Random(SEED), requests=9)
    device.abandon()
    (made.path / "state").unlink()


def lose_journal(made):
    """The journal is no journal, of an image that was killed: the state alone knows where frames are."""
    device = Device(made.path)
    made.use(device, random.Random(SEED), requests=9)
    device.abandon()
    put(made.path / "journal" / "data.mdb", 0, bytes(20_000))


def differ(made):
    """State and journal of a closed image differ in the table."""
    flip(made.path / "state", made.plan.zones()["table"][0], 1)


def lose_little(made):
    """A torn info block, no wear file, and a page that does not match its descriptor."""
    flip(made.path / "media", made.offsets(a_page(made))[0] + 77)
    flip(made.path / "media", layout.INFO_OFFSETS[1] + 9)
    (made.path / "wear").unlink()


alike = test_flips.alike  # copies of an image pass for it
HURT = {"state": lose_state, "journal": lose_journal, "both differ": differ, "little": lose_little}


def steps_of(path):
    """What a repair does that others can see, by a process of its own: how many such things there are."""
    end, other = os.pipe()
    pid = os.fork()
    if pid == 0:
        done = die_at(-1)
        check(path, repair=True)
        os.write(other, str(len(done)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(other)
    with os.fdopen(end) as pipe:
        return int(pipe.read())


def repaired_until(path, step):
    """Repair in a process that dies at `step`; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(step)
            check(path, repair=True)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("hurt", HURT)
def test_repair_cut_short_is_done_by_the_next(tmp_path, hurt):
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    HURT[hurt](made)
    whole = made.copy("whole.pmem")
    check(whole.path, repair=True)
    wanted = whole.compare()
    count = steps_of(made.copy("counted.pmem").path)
    assert count > 9
    for step in sorted(random.Random(f"{SEED} {hurt}").sample(range(count), min(STEPS, count))):
        where, cut = f"seed {SEED}: step {step} of {count}", made.copy("cut.pmem")
        assert repaired_until(cut.path, step) == 1, where
        check(cut.path, repair=True)
        report = check(cut.path)
        assert report.clean and not report.has(Kind.UNSETTLED), f"{where}: {[str(f) for f in report.findings]}"
        assert cut.compare() == wanted, where


def test_what_repair_makes_is_durable_before_the_device_is_opened(tmp_path, monkeypatch):
    """The new journal alone knows of moves made later: a power cut must not bring the old one back."""
    made = make(tmp_path, SEED, **PLANS["interleaved"])
    put(made.path / "journal" / "data.mdb", 0, bytes(20_000))
    (made.path / "wear").unlink()
    done = []
    for owner, name in ((os, "fsync"), (Path, "rename"), (check_run.mend, "open_device")):
        real = getattr(owner, name)

        def noted(what, *arguments, name=name, real=real):
            place = Path(os.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else what  # noqa: PTH115
            done.append((name, place.name.split(".")[0] if place != made.path else "image"))
            return real(what, *arguments)

        monkeypatch.setattr(owner, name, noted)
    check(made.path, repair=True)
    before = done[: done.index(("open_device", "image"))]
    new = max(i for i, (what, _) in enumerate(before) if what == "rename")
    assert {("fsync", "media"), ("fsync", "wear")} <= set(before[:new]), "what the new journal speaks of"
    assert ("fsync", "journal") in before[:new], "what is in the new journal's folder"
    assert ("fsync", "image") in before[new:], "the names of the files"
