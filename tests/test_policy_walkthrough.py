# SPDX-License-Identifier: MIT
"""What docs/adding-a-policy.md tells a reader to type works as it stands there, and gives the figures it names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs
from faulty_policies import said_of
from serving import runtime_directory

DOCUMENT = (Path(__file__).parent.parent / "docs" / "adding-a-policy.md").read_text()


def blocks(language):
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@needs("nbdkit", "fio")
def test_every_step_from_a_file_to_a_served_device(tmp_path):
    (policy,) = blocks("python")
    (tmp_path / "random_pairs.py").write_text(policy)
    steps = "".join(blocks("sh"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with runtime_directory():
        done = subprocess.run(
            ["/bin/bash", "-euc", steps],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    assert re.search(r"^random_pairs.py: keeps the contract: \d+ writes in \d+ drives, \d+ moves, \d+ kills, in", told)
    lives = re.findall(r"^normalised life +([\d.]+%), data alone", told, re.MULTILINE)
    assert len(lives) == 2 and all(f" {life} " in DOCUMENT for life in lives), lives
    assert re.search(r"leveling +random_pairs \(interval=50, spare_blocks=16\)", told)
    # 4096 pages and their descriptors, a store each: an exchange moves two frames every 50 of them.
    assert int(re.search(r"(\d+) frames moved\n+normalised life", told)[1]) == 2 * (2 * 4096 // 50)
    assert told.endswith("disk.pmem: clean\n")


# A row of the document's table: what it says was done, and what that is in the policy.
CHANGES = {
    "`ticks[1] = 0`": [("ticks[0] = 0", "ticks[1] = 0")],
    "`media.move(run, core, one, other)` for the exchange": [
        ("frametable.exchange(state, run, core, one, other, -1, 0)", "media.move(run, core, one, other)")
    ],
    "no `other += 1`": [("        other += 1 ", "        pass ")],
}


def test_faults_that_the_document_shows_are_told_as_it_shows_them(tmp_path):
    (policy,) = blocks("python")
    for number, edits in enumerate(CHANGES.values()):
        for old, new in edits:
            assert policy.count(old) == 1
            (tmp_path / f"policy_{number}.py").write_text(policy.replace(old, new))
    said = said_of(tmp_path)
    for number, change in enumerate(CHANGES):
        (shown,) = re.findall(rf"^\| {re.escape(change)} \| (.*) \|$", DOCUMENT, re.MULTILINE)
        assert said[f"policy_{number}"].startswith(shown), (change, said)
