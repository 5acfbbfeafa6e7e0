# SPDX-License-Identifier: MIT
"""A leveling policy from a file outside of the package works with every verb; a file that is none is one clear line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_policies import RIGHT
from serving import runtime_directory

from pmem_core import cli, codecache, policyfile
from pmem_core.cli._geometry import LevelingName, policies
from pmem_core.errors import BadPolicy, UsageError

COMMAND = Path(sys.executable).parent / "pmem-nbd"
INSIDE = ("none", "start_gap")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load files, given as name=source, as if they were policies beside those of INSIDE."""
    monkeypatch.chdir(tmp_path)

    def call(**sources):
        for name, source in sources.items():
            Path(f"{name}.py").write_text(source)
        monkeypatch.setenv(policyfile.VARIABLE, os.pathsep.join(f"{name}.py" for name in sources))
        return policyfile.load("pmem_core.leveling", INSIDE)

    return call


@pytest.mark.parametrize("imports", ["from ..layout import OK", "from pmem_core.layout import OK"])
def test_file_is_a_module_of_the_family(load, imports):
    module = load(outsider=f"{imports}\nANSWER = OK\n")["outsider"]
    assert (module.ANSWER, module.__name__) == (0, "pmem_core.leveling.outsider")


def test_edited_file_is_never_taken_from_bytecode(load):
    """Same length, same second: what a loader of Python's would not see."""
    assert [load(outsider=f"X = {x}")["outsider"].X for x in (1, 2)] == [1, 2]
    assert not Path("__pycache__").exists()


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("mine", "def f(:\n", "mine.py: is not Python: line 1: invalid syntax"),
        ("mine", "X = 1\n\0", "mine.py: (is not Python|fails when it is loaded): .*null bytes"),
        ("mine", "X = 1\n\nY = 1 / 0\n", r"mine.py: fails when it is loaded: ZeroDivisionError: .* \(line 3\)"),
        ("mine", "import nix_nada", r"mine.py: fails when it is loaded: ModuleNotFoundError: .*'nix_nada' \(line 1\)"),
        ("mine", "raise SystemExit(3)", r"mine.py: fails when it is loaded: SystemExit: 3 \(line 1\)"),
        ("mine-two", "", "mine-two.py: its name cannot be that of a policy: letters, digits and _, then .py"),
        ("_mine", "", "_mine.py: its name cannot be .*"),
        ("class", "", "class.py: its name cannot be .*"),
        ("m" * 33, "", "m*.py: its name is too long: at most 32 bytes before .py"),
        ("start_gap", "", "start_gap.py: start_gap is a policy of pmem-nbd's own: another name"),
    ],
)
def test_file_that_is_no_policy_is_one_line(load, name, source, said):
    with pytest.raises(BadPolicy) as raised:
        load(**{name: source})
    assert re.fullmatch(said, str(raised.value)), str(raised.value)


def test_two_files_of_one_name_are_refused(load, monkeypatch):
    Path("other").mkdir()
    Path("other/mine.py").write_text("")
    load(mine="")
    monkeypatch.setenv(policyfile.VARIABLE, os.pathsep.join(["mine.py", "./mine.py"]))
    assert list(policyfile.load("pmem_core.leveling", INSIDE)) == ["mine"], "the same file twice is one"
    monkeypatch.setenv(policyfile.VARIABLE, os.pathsep.join(["mine.py", "other/mine.py"]))
    with pytest.raises(BadPolicy, match=r"^other/mine.py: mine.py has its name: another name$"):
        policyfile.load("pmem_core.leveling", INSIDE)


def test_path_that_the_environment_cannot_hold_is_a_usage_error():
    with pytest.raises(UsageError, match="has a ':' in its path"):
        policyfile.joined([Path("a:b.py")])


def test_cache_of_compiled_code_is_named_by_the_file_too(tmp_path):
    path = tmp_path / "mine.py"
    folders = {codecache.choose_folder([], "")}
    for source in ("x = 1", "x = 2"):
        path.write_text(source)
        folders.add(codecache.choose_folder([path], ""))
    assert len(folders) == 3
    assert codecache.choose_folder([path, tmp_path / "missing.py"], "") in folders


def test_every_module_that_has_a_leveling_compiled_in_is_cached_by_the_files():
    for source in Path(codecache.__file__).parent.glob("*.py"):
        calls = re.search(r"\bleveling\.(translate|tick|settle)\(", source.read_text())
        assert (source.stem in codecache.INLINING) == bool(calls), source.name


def test_names_of_files_are_completed(monkeypatch):
    monkeypatch.setenv(policyfile.VARIABLE, "/somewhere/start_over.py")
    found = LevelingName(policies("leveling")).shell_complete(None, None, "start")
    assert [item.value for item in found] == ["start_gap", "start_over"]


# ---- the command, a process each: which files there are is known before anything is compiled ----


@pytest.fixture
def command(tmp_path):
    """Run the command in folders of its own; returns (exit status, stdout, stderr)."""
    (tmp_path / "mine.py").write_text(RIGHT.lstrip())

    def call(*arguments, **environment):
        done = subprocess.run(
            [COMMAND, *arguments], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    with runtime_directory():
        yield call


def test_pipe_in_place_of_a_file_is_one_line(command, tmp_path):
    """To read it would wait for who writes to it."""
    os.mkfifo(tmp_path / "pipe.py")
    status, _, error = command("policies", "--policy-file", tmp_path / "pipe.py")
    assert (status, error.count("\n")) == (1, 1) and "pipe or the like" in error


def test_image_of_an_outside_policy_wants_its_file(command):
    made = command("create", "disk.pmem", "--size", "16M", "--leveling", "mine", "--policy-file", "mine.py")
    assert (made[0], made[2]) == (0, "") and made[1].endswith("interleaved, mine\n")
    for verb in ("info", "stats", "check", "serve", "report"):
        status, out, err = command(verb, "disk.pmem")
        assert (status, out) == (1, ""), verb
        assert re.fullmatch(
            r"\S*disk.pmem/media: info block: leveling=mine: no such policy: one of .*,"
            r" your own with --policy-file mine.py, or a newer pmem-nbd\n",
            err,
        ), (verb, err)
    assert command("info", "disk.pmem", "--policy-file", "mine.py")[::2] == (0, "")
    status, out, err = command("stats", "disk.pmem", **{policyfile.VARIABLE: "mine.py"})
    assert (status, err) == (0, "") and "interleaved, mine" in out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["create", "x", "--size", "16M", "--leveling", "hers"], 2, "leveling=hers: no such policy: one of none, .*"),
        (["info", "x", "--policy-file"], 2, "pmem-nbd.*: option '--policy-file' requires an argument: .*"),
        (["replay", "--policy-file", "nix.py"], 1, "nix.py: no such file: a Python file with a leveling policy"),
        (["policies", "--policy-file", "."], 1, ".*: its name cannot be that of a policy: .*"),
    ],
)
def test_wrong_file_or_name_is_one_line(command, arguments, status, said):
    found = command(*arguments)
    assert found[:2] == (status, "") and re.fullmatch(said + "\n", found[2]), found


def test_file_without_a_part_is_refused_by_every_process(command, tmp_path):
    """The server's plug-in says it as the command does."""
    assert command("create", "disk.pmem", "--size", "16M")[0] == 0
    (tmp_path / "mine.py").write_text(RIGHT.replace("MOVES = True", "").lstrip())
    for verb in ("info", "serve"):
        status, out, err = command(verb, "disk.pmem", "--policy-file", "mine.py")
        assert (status, out) == (1, ""), verb
        assert err.endswith("mine.py: MOVES is missing: True, or False where no frame ever moves\n"), err


def test_policy_that_fails_while_it_is_used_is_one_line(command, tmp_path):
    """Also where the command's own code called it; and without pages of numba's."""
    source = RIGHT.lstrip()
    (tmp_path / "mine.py").write_text(source.replace("frames = max", "frames = parameters['psi'] + max"))
    create = ("create", "disk.pmem", "--size", "16M", "--leveling", "mine", "--policy-file", "mine.py")
    tries = "'pmem-nbd policies --test mine.py' tries it out\n"
    assert command(*create) == (1, "", f"mine.py: KeyError: 'psi' (line 25): {tries}")
    (tmp_path / "mine.py").write_text(
        source.replace("return media.table_of(run)[frame]", "return max([frame], key=abs)")
    )
    assert command(*create)[0] == 0
    for verb in ("replay", "serve"):
        status, out, err = command(verb, "disk.pmem", "--policy-file", "mine.py")
        assert (status, out) == (1, "") and err.endswith(f"mine.py: numba cannot compile it: {tries}"), err


def test_builtin_error_of_the_compiler_names_the_file(command, tmp_path):
    """numba looks a name of a module up itself, and lets what that raises pass."""
    (tmp_path / "mine.py").write_text(RIGHT.lstrip())
    assert command("create", "disk.pmem", "--size", "16M", "--leveling", "mine", "--policy-file", "mine.py")[0] == 0
    (tmp_path / "mine.py").write_text(RIGHT.lstrip().replace("media.table_of(run)[frame]", "media.nope(run)[frame]"))
    said = "numba cannot compile it: AttributeError: module 'pmem_core.media' has no attribute 'nope': "
    for verb in ("replay", "check", "serve"):
        status, out, err = command(verb, "disk.pmem", "--policy-file", "mine.py")
        tries = "'pmem-nbd policies --test mine.py' tries it out\n"
        assert (status, out) == (1, "") and err.endswith(f"mine.py: {said}{tries}"), err


def test_policies_lists_those_of_files_with_their_parameters(command):
    status, out, _ = command("policies", "leveling", "--policy-file", "mine.py")
    assert status == 0
    assert "leveling mine  [mine.py]\n" in out and "leveling start_gap\n" in out
    assert "    interval=10  1 to 1048576: stores between two moves\n" in out


def test_policies_lists_every_family(capsys):
    assert cli.main(["policies", "-j"]) == 0
    out = capsys.readouterr().out
    assert all(f'"{name}"' in out for name in ("leveling", "placement", "workload", "interleaved", "uniform", "none"))
