# SPDX-License-Identifier: MIT
"""docs/json.md has every field that programs read at the top of what -j prints, in the section of its verb."""

import json
import os
import re
from pathlib import Path

import pytest

from pmem_core import runtime, server
from pmem_core.check import Kind, Severity

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "json.md").read_text()
SECTIONS = {title: text for title, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])}
PLAN = ("info", "--plan", "--size", "8M")


@pytest.fixture
def image(command, tmp_path):
    path = tmp_path / "disk.pmem"
    assert command("create", path, "--size", "8M")[0] == 0
    return path


def told(command, *arguments):
    status, out, err = command(*arguments, "-j")
    assert status == 0, err
    return json.loads(out)


def fields(section):
    """What stands first in the rows of a section: `name`, or the `name` of `name.further` or `name[]`."""
    cells = (line.split(" | ")[0] for line in SECTIONS[section].splitlines() if line.startswith("| `"))
    return {name for cell in cells for name in re.findall(r"`([a-z_]+)", cell)}


@pytest.mark.parametrize(
    ("section", "before", "behind"),
    [
        ("create and info", ["info"], []),
        ("info --page", ["info"], ["--page", "0"]),
        ("stats", ["stats"], ["--heat-map", "--histogram"]),
        ("check", ["check"], []),
    ],
)
def test_page_has_every_field_of_an_image(command, image, section, before, behind):
    assert set(told(command, *before, image, *behind)) <= fields(section)


def test_page_has_every_field_of_a_plan(command):
    assert set(told(command, *PLAN)) <= fields("info --plan")


def test_page_has_every_field_of_a_server(command, tmp_path, monkeypatch):
    """This process stands for a server."""
    pid = os.getpid()
    one = server.Server(str(tmp_path), pid, runtime.birth(pid), None, "127.0.0.1", 1, False, 0.0, "")
    monkeypatch.setattr(server, "servers", lambda: [one])
    (row,) = told(command, "list")
    assert "disk_read_bytes" in row
    assert set(row) == fields("list")


def test_page_has_every_kind_of_finding():
    rows = dict(re.findall(r"^\| (note|wrong|damage) \| (.*) \|$", SECTIONS["check"], re.MULTILINE))
    for severity in Severity:
        kinds = {kind.word for kind in Kind if kind.severity is severity}
        assert set(re.findall(r"`(\w+)`", rows[severity.value])) == kinds
