# SPDX-License-Identifier: MIT
"""`policies --test` names the rule that a policy breaks, in one sentence, and lets those that keep them all pass."""

import json
import re
from pathlib import Path

import pytest
from faulty_policies import FAULTS, RIGHT, faulty, said_of

from pmem_core import cli, policyfile
from pmem_core.policytest import processes

# One worker makes the fixture `said`, not each.
pytestmark = pytest.mark.xdist_group("policytest")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What is said of each faulty policy, by its name, and of the right one."""
    folder = tmp_path_factory.mktemp("policies")
    for name in FAULTS:
        (folder / f"{name}.py").write_text(faulty(name))
    (folder / "right.py").write_text(RIGHT)
    return said_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_broken_rule_is_named(said, name):
    assert re.fullmatch(FAULTS[name][2], said[name]), said[name]


def test_policy_that_keeps_the_contract_passes_in_plain_python(said):
    assert said["right"] == "nothing"


def test_message_names_the_parameters_and_the_medium(said):
    assert said["hasty"].endswith("(with interval=1, on a medium of 13 frames)")


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Test a policy of this source through the command: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(policyfile.VARIABLE, raising=False)

    def call(source, *arguments):
        Path("mine.py").write_text(source)
        capsys.readouterr()
        status = cli.main(["policies", "--test", "mine.py", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_hang_is_a_sentence(told, monkeypatch):
    monkeypatch.setattr(processes, "CALL_CPU_S_MAX", 0.5)
    endless = RIGHT.replace("    ticks[0] = 0\n", "    while ticks[0]:\n        pass\n").lstrip()
    assert told(endless) == (1, "", "mine.py: settle: does not come back at write 2: an end within 0.5 s\n")


def test_crash_is_a_sentence(told):
    crashing = RIGHT.replace("    ticks[0] = 0\n", "    i64_at(8, 1)[0] = 0\n").lstrip()
    status, out, err = told(crashing)
    assert (status, out) == (1, "")
    assert err.startswith("mine.py: settle: crashes at write 2, SIGSEGV: ")


# Plain Python knows how to; numba does not.
UNCOMPILED = """
import numpy as np
from pmem_core.jit import hot
from pmem_core.leveling.none import plan as plan_none, spare_frames, table_is_sane, tick
SOURCE, MOVES, PARAMETERS, STATE = "none", False, {}, np.dtype([("uncompiled", "<i8")])
def plan(medium_frames, parameters, seed):
    return np.zeros((), STATE), medium_frames, np.zeros(0, np.int64), 0
@hot
def translate(state, run, frame):
    return max([frame], key=abs)
@hot
def settle(state, run, core, frame):
    return 0
"""


def test_what_numba_cannot_compile_is_a_sentence(told):
    status, out, err = told(UNCOMPILED)
    assert (status, out) == (1, "")
    assert re.fullmatch(
        r"mine.py: translate: numba cannot compile it: it has no max\(list\S+, key=.*\) \(line 10\)\n", err
    ), err


# What depends on how it is run: here on purpose, else by an integer that does not fit into 64 bits.
TURNED = """
import os
import numpy as np
from pmem_core.jit import hot
from pmem_core.leveling.none import settle, spare_frames, table_is_sane, tick
SOURCE, MOVES, PARAMETERS, STATE = "none", False, {}, np.dtype([("turned_by", "<i8"), ("turned_frames", "<i8")])
def plan(medium_frames, parameters, seed):
    state = np.zeros((), STATE)
    state["turned_by"], state["turned_frames"] = "NUMBA_DISABLE_JIT" in os.environ, medium_frames
    return state, medium_frames, np.zeros(0, np.int64), 0
@hot
def translate(state, run, frame):
    return (frame + state["turned_by"]) % state["turned_frames"]
"""


def test_compiled_code_that_differs_from_plain_is_a_sentence(told):
    status, out, err = told(TURNED)
    assert (status, out) == (1, "")
    assert err.startswith("mine.py: compiled it gives another map than as plain Python: integers that fit in 64 bits (")


def test_policy_of_our_own_is_tested_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["policies", "--test", "none", "-j"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"] == "none" and found["moves"] == 0 and found["writes"] > 1000


@pytest.mark.parametrize("name", ["nix", "nix/mine"])
def test_name_of_nothing_is_a_usage_error(name, capsys):
    assert cli.main(["policies", "--test", name]) == 2
    assert capsys.readouterr().err.startswith(f"--test {name}: no such policy: a file such as {name}.py, or one of ")


def test_missing_file_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["policies", "--test", "nix.py"]) == 1
    assert capsys.readouterr().err == "nix.py: no such file: a Python file with a leveling policy\n"
