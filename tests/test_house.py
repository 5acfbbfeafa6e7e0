# SPDX-License-Identifier: MIT
"""The rules of the house hold: who may import whom, what every file carries, and that no test hides in CI."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import PREREQUISITES, needs

import pmem_core

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Folders that hold source, and what an editor or a tool leaves in them.
SOURCE_FOLDERS = ("pmem_core", "nbd_plugin", "scripts", "tests", ".ci")
SOURCES = sorted(
    path
    for folder in SOURCE_FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
    and (path.suffix in {".py", ".sh", ".c", ".h"} or (not path.suffix and path.read_bytes().startswith(b"#!")))
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"]
SCRIPTS = [path for path in SOURCES if path.read_bytes().startswith(b"#!")]
SHELL = [path for path in SCRIPTS if re.match(rb"#!.*[/ ](ba|da)?sh\b", path.read_bytes())]

MODULE_LINES_MAX = 300
FUNCTION_LINES_MAX = 70


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_licence_line_comes_first(path):
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert "SPDX-License-Identifier: MIT" in first


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module begins with a docstring"


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_constant_is_defined_once(path):
    """Of two of one name the second wins everywhere, and where they are indexes that is a store to the wrong place."""
    targets = [target for node in ast.parse(path.read_text()).body for target in getattr(node, "targets", ())]
    found = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    constants = [node.id for node in found if isinstance(node.ctx, ast.Store) and node.id.isupper()]
    assert len(constants) == len(set(constants))


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_long_code_has_a_reason(path):
    """A long module or function is allowed, with a comment ``# long: why it is better in one piece``."""
    text = path.read_text()
    lines = text.splitlines()
    long_ones = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = lines[node.lineno - 1 : node.end_lineno]
            if len(body) > FUNCTION_LINES_MAX and not any("# long: " in line for line in body):
                long_ones.append(f"{node.name}: {len(body)} lines")
    reasoned = any(line.startswith("# long: ") for line in lines)
    # Tests and scripts are read one function at a time, however many there are.
    if (
        len(lines) > MODULE_LINES_MAX
        and not reasoned
        and path.relative_to(ROOT).parts[0] in {"pmem_core", "nbd_plugin"}
    ):
        long_ones.append(f"the module: {len(lines)} lines")
    assert not long_ones


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_shell_script_stops_at_the_first_error(path):
    assert re.search(r"^set -eu", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in SCRIPTS if not path.suffix], ids=name)
def test_script_can_be_run(path):
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("script", ["setup", "test"])
def test_script_explains_itself(script):
    told = subprocess.run([ROOT / "scripts" / script, "--help"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"usage: scripts/{script} ")


def test_version_is_told_once():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pmem_core.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", pmem_core.__version__)


# --- who may import whom ----------------------------------------------------------------------------------------------


def test_imports_keep_their_contracts():
    linter = Path(sys.executable).parent / "lint-imports"
    told = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("module", ["logging", "os", "pathlib"])
def test_import_linter_sees_the_standard_library(tmp_path, module):
    """The contract of the hot modules is only worth something if a stray ``import os`` breaks it."""
    for package in ("pmem_core", "nbd_plugin"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "pmem_core" / "leveling" / "stray.py").write_text(f"import {module}\n")
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
            "--no-logo",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert re.search(rf"pmem_core\.leveling\.stray -> {module}", told.stdout), told.stdout + told.stderr


def test_hot_modules_are_the_same_everywhere():
    """Ruff, mypy and import-linter each have a list of the hot modules; they must not drift apart."""
    tool = PYPROJECT["tool"]
    ignored = {module.removesuffix(".*") for module in tool["mypy"]["overrides"][0]["module"]}
    assert set(tool["mypy"]["untyped_calls_exclude"]) == ignored

    patterns = tool["ruff"]["lint"]["per-file-ignores"]
    modules, folders = (re.search(r"\{(.*)\}", pattern)[1].split(",") for pattern in patterns)
    assert {f"pmem_core.{module}" for module in modules + folders} == ignored

    contracts = {contract["name"]: contract for contract in tool["importlinter"]["contracts"]}
    hot = set(contracts["hot modules touch nothing but arrays"]["source_modules"])
    assert hot == ignored - {"pmem_core.plugins"}, "it looks at files"

    for module in ignored:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{module} does not exist"


# --- no test hides ----------------------------------------------------------------------------------------------------


def run_pytest(folder: Path, test: str, require_all: bool) -> str:
    """Run the text of one test module under this conftest, in a folder of its own; return what pytest printed."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_it.py").write_text(test)
    environment = {**os.environ, "PMEM_NBD_REQUIRE_ALL": "1" if require_all else "0"}
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", folder, "-p", "no:cacheprovider", "-rs"]
    told = subprocess.run([*command, folder], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return told.stdout


LACKING = """
import conftest, pytest
conftest.PREREQUISITES["unicorn"] = lambda: "none seen"
@conftest.needs("unicorn")
def test_ride(): pass
"""
SKIPPED = "import pytest\ndef test_it(): pytest.skip('no mood')\n"
SKIPPED_MODULE = "import pytest\npytest.importorskip('no_such_module')\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_it(): assert 0\n"


@pytest.mark.parametrize(
    ("test", "reason"),
    [(LACKING, "needs unicorn: none seen"), (SKIPPED, "no mood"), (SKIPPED_MODULE, "no_such_module")],
    ids=["needs", "skip", "importorskip"],
)
def test_skip_fails_where_all_is_required(tmp_path, test, reason):
    told = run_pytest(tmp_path, test, require_all=False)
    assert "1 skipped" in told
    assert reason in told
    told = run_pytest(tmp_path, test, require_all=True)
    assert re.search(r"\b1 (failed|error)\b", told), told
    assert "skipped" not in told
    assert "PMEM_NBD_REQUIRE_ALL=1 allows no skip: " in told
    assert reason in told


def test_expected_failure_is_not_a_skip(tmp_path):
    assert "1 xfailed" in run_pytest(tmp_path, EXPECTED_FAILURE, require_all=True)


def test_unknown_prerequisite_is_refused():
    with pytest.raises(ValueError, match="needs: unicorn: expected"):
        needs("root", "unicorn")


@pytest.mark.parametrize("prerequisite", sorted(PREREQUISITES))
def test_prerequisite_answers_in_words(prerequisite):
    assert isinstance(PREREQUISITES[prerequisite](), str)


@pytest.mark.parametrize("option", ["--size", "--write", "--keep"])
def test_option_of_the_demo_without_a_value_is_one_line(option):
    told = subprocess.run([ROOT / "scripts" / "demo", option], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (2, f"demo: {option}: no value: see scripts/demo --help\n")
