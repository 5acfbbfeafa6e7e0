# SPDX-License-Identifier: MIT
"""The verb check, as a person or a script meets it: exit statuses, words, JSON."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pmem_core import checkscan, cli, codecache, geometry, host, image
from pmem_core.device import Device
from pmem_core.journal import Journal

COMMAND = Path(sys.executable).parent / "pmem-nbd"
PAGE = 4096


COMPILING = "pmem-nbd: compiling for the first check, less than a minute ...\n"


def run(*arguments):
    """Run pmem-nbd check; its status, stdout and stderr, less what the first one ever says."""
    told = subprocess.run([COMMAND, "check", *arguments], capture_output=True, text=True, check=False, timeout=120)
    return told.returncode, told.stdout, told.stderr.removeprefix(COMPILING)


@pytest.fixture
def made(tmp_path):
    """A small image with some pages written."""
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(2 << 20, parameters={"region_frames": 64, "gap_frames": 4}))
    with Device(path) as device:
        device.write(os.urandom(100 * PAGE), 0)
    return path


def damage(path, page):
    """Flip a bit of the page's data; where in the medium the page is."""
    with Device(path, read_only=True) as device:
        at = int(checkscan.page_offset(device.handle, page))
    with (path / "media").open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 4]), at)
    return at


def test_clean_image(made):
    status, out, error = run(made)
    assert (status, error) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{made}: last session: closed properly"
    assert lines[1].startswith(f"{made}: checked ") and ", 100 with data, in 1 of 1 sections" in lines[1]
    assert lines[2:] == [f"{made}: clean"]


@pytest.mark.parametrize("warm", [False, True])
def test_first_check_says_that_it_compiles_on_standard_error(made, monkeypatch, capsys, warm):
    monkeypatch.setattr(codecache, "is_warm", lambda module: warm)
    assert cli.main(["check", str(made)]) == 0
    out, error = capsys.readouterr()
    assert out.endswith(f"{made}: clean\n") and error == ("" if warm else COMPILING)


@pytest.mark.parametrize("options", ["", "-j"])
def test_status_does_not_depend_on_who_reads(made, options):
    """`check | head` under pipefail must not take a damaged image for a clean one."""
    damage(made, 7)
    told = subprocess.run(
        ["bash", "-c", f"{COMMAND} check {made} {options} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "1\n"


def test_clean_image_as_json(made):
    status, out, error = run(made, "-j")
    assert (status, error) == (0, "")
    told = json.loads(out)
    assert told["clean"] is True and told["findings"] == []
    assert told["checked"]["pages_with_data"] == 100 and told["checked"]["seconds"] > 0


def test_damaged_page_is_named_with_its_place(made):
    at = damage(made, 7)
    status, out, error = run(made)
    assert (status, error) == (1, "")
    assert f"{made}: damage: media: page 7 at {at}: the data of a page does not match its descriptor\n" in out
    assert out.splitlines()[-1] == f"{made}: 1 finding: --repair may help"
    status, out, error = run(made, "--repair", "--json")
    assert (status, error) == (1, "")
    told = json.loads(out)
    assert told["clean"] is False
    [finding] = told["findings"]
    assert finding.pop("repaired").startswith("data lost")
    assert finding == {
        "kind": "data_damaged",
        "severity": "damage",
        "subject": "media",
        "page": 7,
        "offset": at,
        "detail": "the data of a page does not match its descriptor",
    }
    status, out, _ = run(made)
    assert status == 0
    assert "note: media: page 7" in out and out.splitlines()[-1] == f"{made}: clean, 1 note"


def test_many_findings_are_counted(made):
    for page in range(30):
        damage(made, page)
    status, out, _ = run(made, "--repair")
    assert status == 1
    assert out.count(": page ") == 20 and "10 more; -j names them" in out
    assert out.splitlines()[-1] == f"{made}: 30 findings, 30 repaired"
    assert len(json.loads(run(made, "-j")[1])["findings"]) == 30


def test_what_cannot_be_checked_is_said(made):
    os.truncate(made / "media", 1 << 20)
    for options in ([], ["--repair"]):
        status, out, error = run(made, *options)
        assert (status, error) == (1, "")
        assert "damage: media: the medium is shorter" in out and "not checked: " in out
    assert "not repaired" in out


def test_session_that_was_cut_is_explained(made):
    device = Device(made)
    device.write(b"x", 0)
    device.abandon()
    assert "not closed, its process was killed" in run(made)[1]
    journal = Journal(made / "journal")
    journal.begin_session({**host.witness(made), "boot": "another"})
    journal.close()
    status, out, _ = run(made)
    assert status == 0 and "opening goes back to the last checkpoint, and compares no checksums in 1 section" in out


@pytest.mark.parametrize("options", [[], ["-j"], ["--repair"], ["--repair", "-j"]])
def test_errors_are_one_line(tmp_path, made, options):
    (tmp_path / "file").write_text("no image")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other.pmem"
    shutil.copytree(made, other)
    (other / "media").write_bytes(bytes(2 << 20))
    with Device(made):
        for path, words in (
            (made, "in use by pid"),
            (tmp_path / "none", "does not exist"),
            (tmp_path / "file", "is a file"),
            (tmp_path / "empty", "holds no file 'media'"),
            (other, "no info block"),
        ):
            status, out, error = run(path, *options)
            assert (status, out) == (1, "")
            assert error.count("\n") == 1 and words in error and "Traceback" not in error


def test_usage_error():
    status, out, error = run("--mend", "x")
    assert (status, out) == (2, "") and error.count("\n") == 1
    assert run()[0] == 2
    status, out, _ = run("--help")
    assert status == 0 and "Examples:" in out
