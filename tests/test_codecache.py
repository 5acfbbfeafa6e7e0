# SPDX-License-Identifier: MIT
"""The cache of compiled code: whatever became of its files, code is compiled again and nothing else happens."""

import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pmem_core import codecache, jit

pytestmark = pytest.mark.skipif(jit.PLAIN, reason="plain Python keeps no code")

LINES = """
import numpy as np
from pmem_core import layout, media
run = np.zeros(1, layout.RUN)
run["line_shift"] = 8
print(media.lines_under(run[0], 100, 1000))
"""


def compiled(cache: Path, **options) -> str:
    """What a process of its own prints that compiles a function, or finds it in `cache`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", LINES], env=environment, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("torn", ["empty", "zeros", "half"])
def test_torn_file_is_made_anew(tmp_path, kind, torn):
    """numba renames what it wrote and syncs nothing: a power cut leaves names of files that hold nothing, or zeros."""
    said = compiled(tmp_path)
    files = list(tmp_path.glob(f"pmem-nbd/**/*lines_under*.{kind}"))
    assert files
    for file in files:
        data = file.read_bytes()
        file.write_bytes({"empty": b"", "zeros": bytes(len(data)), "half": data[: len(data) // 2]}[torn])
    assert compiled(tmp_path) == said == "5\n"
    whole = {file: file.read_bytes() for file in files}
    assert compiled(tmp_path) == said
    assert {file: file.read_bytes() for file in files} == whole


def test_cache_that_cannot_be_written_to_costs_time_and_nothing_else(tmp_path):
    def write_nothing() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    assert compiled(tmp_path, preexec_fn=write_nothing) == "5\n"
    assert not any(file.stat().st_size for file in tmp_path.glob("**/*.nb?"))


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No home, and a folder for temporary files of its own; a fresh answer to where the cache is."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"pmem-nbd-cache-{os.getuid()}"


def test_user_without_a_home_has_a_folder_of_his_own(homeless):
    assert codecache._root.__wrapped__() == homeless
    assert homeless.stat().st_mode & 0o777 == 0o700


def test_link_that_somebody_else_may_have_left_is_not_followed(homeless, tmp_path):
    (tmp_path / "precious").mkdir()
    homeless.symlink_to(tmp_path / "precious")
    assert codecache._root.__wrapped__() not in (homeless, tmp_path / "precious")
