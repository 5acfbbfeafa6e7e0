# SPDX-License-Identifier: MIT
"""Recovery costs what was in flight, says what it did, and may be cut short itself at any step."""

import os
import random
import resource
from pathlib import Path

import pytest

from pmem_core import geometry, host, image, journal, layout, upkeep
from pmem_core.device import Device

MIB, TIB = 1 << 20, 1 << 40
PAGE = layout.PAGE_BYTES
SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
GAP = {"interval": 2, "region_frames": 64, "gap_frames": 4}
FAULTS_MAX = 20_000  # of host pages of 4096 bytes; one look at each section of the medium would be 65536


def lose_cache(path: Path) -> None:
    """Make the journal say that the last session was before a reboot."""
    opened = journal.Journal(path / "journal")
    session = {key: value for key, value in opened.session.items() if key != "open"}
    opened.begin_session(session | {"boot": "another"})
    opened.close()


# ---- what it costs ----


def test_recovery_does_not_look_at_the_medium(tmp_path):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(TIB))
    device = Device(path)
    random_ = random.Random(SEED)
    pages = [random_.randrange(device.plan.info.page_count) for _ in range(200)]
    for page in pages:
        device.write(b"x" * PAGE, page * PAGE)
    device.flush()
    device.abandon()
    lose_cache(path)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with Device(path) as device:
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert device.recovery == "power cut"
        assert device.recovered.suspect == len({page // device.plan.info.section_pages for page in pages})
        assert after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt < FAULTS_MAX
        assert all(device.read(PAGE, page * PAGE) == b"x" * PAGE for page in pages), f"seed {SEED}"


# ---- what it says ----


def recovered(path: Path) -> str:
    """What an open says that it did; the journal has the same."""
    with Device(path) as device:
        said = str(device.recovered)
        told = [event for event in device.journal.events() if event["event"] == "recovered"][-1]
        assert (told["how"], told["what"]) == (device.recovery, said)
    return said


def test_recovery_says_what_it_did(tmp_path):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(40 * MIB))
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    device.abandon()
    assert recovered(path) == "no page was in flight"
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    at = int(upkeep.medium_address(device.handle, int(upkeep.page_address(device.handle, 0))))
    device.mapping.media[at] ^= 1
    device.mapping.core["intent"][0, 0] = 1
    unit = device.mapping.core["unit"][0]
    unit[layout.UNIT_LINES], unit[layout.UNIT_CAUSE] = 3, 1
    unit[layout.UNIT_FIRST], unit[layout.UNIT_SUM] = 9, device.mapping.wear[9:12].sum()
    unit[layout.UNIT_TOTAL] = device.mapping.core["tally"][0]["worn"][0]
    del unit
    device.abandon()
    assert recovered(path) == "page 0 was in flight: its descriptor was made anew; the count of 3 lines was finished"
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    device.abandon()
    lose_cache(path)
    assert recovered(path) == (
        "the state is that of the last checkpoint, and lines counted since then may be lost; 1 of 3 sections held "
        "writes not flushed at a power cut: checksums there are not compared until check --repair"
    )


# ---- cut short ----


def die_at(step: int) -> list[str]:
    """Let this process die at the `step`-th thing that an open makes others see; the names of those that were done."""
    done: list[str] = []

    def wrap(owner, name):
        real = getattr(owner, name)

        def counted(*arguments, **named):
            if len(done) == step:
                os._exit(1)
            done.append(name)
            answer = real(*arguments, **named)
            if len(done) == step:
                os._exit(1)
            return answer

        setattr(owner, name, counted)

    for owner, name in (
        (os, "pwrite"),
        (os, "posix_fallocate"),
        (os, "fsync"),
        (Path, "rename"),
        (Path, "unlink"),
        (journal._Transaction, "__enter__"),
        (journal._Transaction, "__exit__"),
        (host, "mark_cache"),
        (upkeep, "heal"),
    ):
        wrap(owner, name)
    return done


def opened_until(path: Path, step: int) -> int:
    """Open in a process that dies at `step`; its exit status: 1, or 0 where the open has no such step."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(step)
            Device(path)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_state_made_anew_is_durable_before_it_has_its_name_and_its_name_is_then(tmp_path, monkeypatch):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(4 * MIB))
    Device(path).abandon()
    lose_cache(path)
    done, sync, rename = [], os.fsync, Path.rename

    def fsync(fd):
        done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)  # noqa: PTH115
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", lambda old, new: (done.append(f"{old.name} > {new.name}"), rename(old, new)))
    with Device(path) as device:
        assert device.recovery == "power cut"
        assert done == ["state.new", "state.new > state", path.name]


@pytest.mark.slow
@pytest.mark.parametrize("again", ["killed", "power cut"], ids=["then killed", "then cut"])
@pytest.mark.parametrize("end", ["killed", "power cut"])
@pytest.mark.parametrize("writes", ["each", "coalesced"])
def test_recovery_cut_short_is_recovered_from(tmp_path, writes, end, again):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(4 * MIB, parameters=GAP, descriptor_writes=writes))
    random_ = random.Random(f"{SEED} {writes} {end} {again}")
    data = bytearray(40 * PAGE)
    step, status = 0, 1
    while status:
        device = Device(path)
        for _ in range(15):
            page, new = random_.randrange(40), random_.randbytes(PAGE)
            device.write(new, page * PAGE)
            data[page * PAGE : (page + 1) * PAGE] = new
        device.flush()
        device.mapping.core["intent"][0, 0] = page + 1
        device.abandon()
        if end == "power cut":
            lose_cache(path)
        status = opened_until(path, step)
        assert status in (0, 1), f"seed {SEED}: step {step}"
        if again == "power cut":
            lose_cache(path)
        with Device(path) as device:
            assert device.recovery == ("power cut" if again == "power cut" else device.recovery) != ""
            assert device.read(len(data), 0) == data, f"seed {SEED}: step {step}"
            assert (
                end == "power cut"
                or again == "power cut"
                or (device.mapping.core["tally"][0]["worn"].sum() == device.mapping.wear.sum(dtype="i8"))
            )
        step += 1
    assert step > 6


def test_sections_stay_suspect_over_a_kill(tmp_path):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(4 * MIB))
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    device.abandon()
    lose_cache(path)
    Device(path).abandon()
    with Device(path) as device:
        assert (device.recovery, device.recovered.suspect) == ("killed", 1)
