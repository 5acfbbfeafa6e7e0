# SPDX-License-Identifier: MIT
"""Power cuts and kills at every instant, on a modelled disk; and that what looks for lost data finds it.

cuts.py does the work, in plain Python in a process of its own, so that each store of compiled code is an instant.
PMEM_NBD_CUTS=1000 makes a thousand cuts a policy.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs
from faulty_disk import SECTOR, STYLES, Disk
from planted import PLANTED
from recorded import POLICIES

from pmem_core import layout
from pmem_core.journal import Journal

HERE = Path(__file__).resolve().parent
SEED = os.environ.get("PMEM_NBD_SEED", "20150507")
CUTS = int(os.environ.get("PMEM_NBD_CUTS", "20"))
# Always the same: that a bug can be found is a fact, how soon is a matter of luck.
# With these a bug shows soon; SHOWN: in this case, where it takes long to come to it.
PLANTED_SEED, PLANTED_SEEDS = (
    "1",
    {
        "cleared before drained": "6",
        "groups filled over descriptors": "10",
        "leftovers not blanked": "6",
        "pending believed after a cut": "9",
        "table before frames": "4",
        "trim not noticed": "20150507",
    },
)
SHOWN = {"groups filled over descriptors": "2.16", "trim not noticed": "14.15"}
SECONDS_MAX = 280 + CUTS

A, B, C = (letter * SECTOR for letter in (b"a", b"b", b"c"))


# ---- the model ----


def stored(*sectors: tuple[int, bytes], name: str = "media", atomic: bool = False) -> tuple:
    return ("stores", name, list(sectors), atomic)


def disk(*events: tuple) -> Disk:
    """Two files of four sectors of zeros, and what happened to them."""
    made = Disk({"media": bytes(4 * SECTOR), "journal": bytes(4 * SECTOR)})
    for event in events:
        made.apply(event)
    return made


def outcomes(made: Disk, name: str = "media", styles: tuple[str, ...] = STYLES, tries: int = 300) -> set[bytes]:
    """What is found of a file after many cuts."""
    chance = random.Random(SEED)
    return {made.after(made.outcome(chance, style))[name] for style in styles for _ in range(tries)}


def image(*sectors: bytes) -> bytes:
    return b"".join(sectors).ljust(4 * SECTOR, b"\0")


ZERO = bytes(SECTOR)
UNTORN = tuple(style for style in STYLES if style != "torn")


def test_unsynced_sectors_are_old_or_new_each_by_itself():
    found = outcomes(disk(stored((0, A), (1, B))), styles=UNTORN)
    assert found == {image(one, two) for one in (ZERO, A) for two in (ZERO, B)}


def test_every_version_since_the_last_sync_may_be_found():
    made = disk(stored((0, A)), ("begin", 1), ("end", 1, "media", None), stored((0, B)), stored((0, C)))
    assert outcomes(made, styles=UNTORN) == {image(A), image(B), image(C)}


def test_what_is_stored_during_a_sync_stays_in_doubt():
    made = disk(stored((0, A)), ("begin", 1), stored((0, B)), ("end", 1, "media", None))
    assert outcomes(made, styles=UNTORN) == {image(A), image(B)}


def test_sync_not_answered_promises_nothing():
    assert image() in outcomes(disk(stored((0, A)), ("begin", 1)), styles=UNTORN)


def test_sync_of_ranges_makes_only_their_sectors_durable():
    made = disk(stored((0, A), (1, B)), ("begin", 1), ("end", 1, "media", [(SECTOR, 2 * SECTOR)]))
    assert outcomes(made, styles=UNTORN) == {image(ZERO, B), image(A, B)}


def test_sync_of_a_file_says_nothing_of_another():
    made = disk(stored((0, A)), stored((0, A), name="journal"), ("begin", 1), ("end", 1, "journal", None))
    assert image() in outcomes(made) and outcomes(made, "journal") == {image(A)}


def test_torn_sector_is_the_start_of_one_version_and_the_rest_of_another():
    torn = outcomes(disk(stored((0, A))), styles=("torn",)) - {image(), image(A)}
    assert torn and all(found.rstrip(b"\0") == b"a" * len(found.rstrip(b"\0")) for found in torn)


def test_atomic_store_is_never_torn():
    assert outcomes(disk(stored((0, A), atomic=True))) == {image(), image(A)}


def test_growth_that_was_not_synced_may_be_lost():
    made = disk(("size", "media", 5 * SECTOR), stored((4, A)))
    assert {len(found) for found in outcomes(made)} == {4 * SECTOR, 5 * SECTOR}
    for event in (("begin", 1), ("end", 1, "media", None)):
        made.apply(event)
    assert outcomes(made) == {image() + A}


def test_rename_is_in_doubt_until_the_folder_is_synced():
    made = disk(("rename", "media", image(A)))
    assert outcomes(made) == {image(), image(A)}
    made.apply(("replace", "media", image(A)))
    assert outcomes(made) == {image(A)}


def test_kill_loses_nothing():
    assert disk(stored((0, A)), stored((0, B), (1, C))).newest()["media"] == image(B, C)


@needs("strace")
def test_lmdb_syncs_its_pages_before_the_meta_page_that_names_them(tmp_path):
    """What `recorded.Recording.committed` takes for granted of a commit."""
    Journal(tmp_path / "journal", create=True).close()
    journal = Journal(tmp_path / "journal", create=True)
    journal.initialise("no uuid")
    journal.close()
    text = "import sys\nfrom pathlib import Path\nfrom pmem_core.journal import Journal\n"
    text += "journal = Journal(Path(sys.argv[1]))\njournal.put_sections({0: bytes(1024)})\njournal.close()\n"
    trace = "openat,pwrite64,pwritev,writev,write,fdatasync,fsync,msync,sync_file_range"
    command = ["strace", "-f", "-y", "-e", f"trace={trace}", "-e", "signal=none", "-o", tmp_path / "calls"]
    subprocess.run([*command, sys.executable, "-c", text, tmp_path / "journal"], cwd=HERE.parent, check=True)
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "/data.mdb>" in line]
    durable = [re.search(r"= (\d+)<", line)[1] for line in calls if "O_DSYNC" in line]
    did = []
    for line in calls:
        name, fd = re.match(r"\d+ +(\w+)\((\d+|AT_FDCWD)", line).groups()
        if name == "pwrite64" and fd in durable:
            at, size = int(re.search(r", (\d+)\) = ", line)[1]), int(line.rsplit("= ", 1)[1])
            assert at < 2 * 4096 and at // SECTOR == (at + size - 1) // SECTOR, line
            did.append("meta")
        elif name != "openat":
            did.append("sync" if name == "fdatasync" else "pages")
    assert [one for i, one in enumerate(did) if did[i - 1 : i] != [one]] == ["pages", "sync", "meta"], calls


# ---- the device on it ----


def cut(policy: str, *arguments: object, plain: bool = True, cuts: int = CUTS, seed: str = SEED) -> tuple[int, str]:
    """Run cuts.py; its status, and what it printed."""
    command = [sys.executable, HERE / "cuts.py", "--policy", policy, "--seed", seed, "--cuts", cuts, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_BOUNDSCHECK"}
    environment |= {"NUMBA_DISABLE_JIT": str(int(plain)), "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        list(map(str, command)), env=environment, check=False, capture_output=True, text=True, timeout=SECONDS_MAX
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("policy", POLICIES)
def test_promises_hold_at_every_cut(policy):
    status, told = cut(policy)
    assert status == 0, told


def test_promises_hold_for_compiled_code():
    """Between two syncs or requests only: within a request, plain Python has to stand in."""
    status, told = cut("gap of two coalesced", plain=False)
    assert status == 0, told


# Each bug, and a policy under which it shows soon.
FOUND = {
    "switch before copy": "gap of one",
    "freed frame reused": "gap of one",
    "flush forgets the journal": "no descriptors, moving",
    "rewriting not noticed": "no descriptors, moving",
    "trim not noticed": "no descriptors, moving",
    "section marked late": "interleaved none",
    "mark restored in memory only": "interleaved none",
    "frames not synced": "gap of one",
    "moves not committed": "gap of one",
    "table before frames": "gap of one",
    "journal before medium": "gap of one",
    "wear not synced": "gap of one",
    "flush does nothing": "interleaved none",
    "one range of many": "gap of two coalesced",
    "cleared before drained": "interleaved none coalesced",
    "cut taken for a kill": "gap of one",
    "intent not named": "gap of one",
    "recovery forgets the marks": "gap of one",
    "pending believed after a cut": "interleaved none coalesced",
    "leftovers not blanked": "interleaved none",
    "groups filled over descriptors": "buddy",
}


def test_every_planted_bug_is_looked_for():
    assert set(FOUND) == set(PLANTED)


@pytest.mark.slow
@pytest.mark.parametrize("bug", FOUND)
def test_planted_bug_is_found(bug):
    seed, case = PLANTED_SEEDS.get(bug, PLANTED_SEED), SHOWN.get(bug, "")
    status, told = cut(FOUND[bug], "--plant", bug, "--case", case, cuts=4000, seed=seed)
    if case and status == 0:  # the case is another one since something else has changed
        status, told = cut(FOUND[bug], "--plant", bug, cuts=4000, seed=seed)
    assert status == 1 and "\nagain: " in told, told


def test_failing_cut_is_found_again_by_its_name():
    bug = "frames not synced"
    _, told = cut(FOUND[bug], "--plant", bug, cuts=4000, seed=PLANTED_SEED)
    case = re.search(r"--case ([0-9.]+)", told)[1]
    assert cut(FOUND[bug], "--plant", bug, "--case", case, seed=PLANTED_SEED) == (1, told)
    assert cut(FOUND[bug], "--case", case, seed=PLANTED_SEED)[0] == 0


def test_sectors_of_the_model_are_those_of_a_page():
    assert layout.PAGE_BYTES % SECTOR == 0
