# SPDX-License-Identifier: MIT
"""The history: docs/benchmarks/COMMIT.json has all that a full run of that commit measured, each round by itself.

It lies in the repository, so that whoever has a commit has the records of all before it; one is some twenty kilobytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchlib.peers import ROOT, commit_of, run
from pmem_core import host, launch

FOLDER = ROOT / "docs" / "benchmarks"
MEASURED = ("pmem_core", "nbd_plugin", "scripts", "pyproject.toml")  # what a figure depends on


def changed() -> bool:
    """Whether this tree differs from its commit in what is measured; git that is not there knows no difference."""
    with contextlib.suppress(click.ClickException):
        return bool(run(["git", "-C", str(ROOT), "status", "--porcelain", "--", *MEASURED]).strip())
    return False


def text(report: dict[str, Any]) -> str:
    """The report as JSON, one line for each of its parts: small, and a difference between two is seen by part."""
    parts = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in report.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def save(report: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write the record of the report's commit, over an older one.  Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report['machine']['commit']}.json"
    path.write_text(text(report))
    return path


def load(revision: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The record of a revision, or of a file with that name.  Errors: click.ClickException where there is none."""
    path = Path(revision) if revision.endswith(".json") else folder / f"{commit_of(revision)}.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        known = ", ".join(sorted(one.stem for one in folder.glob("*.json"))) or "none"
        raise click.ClickException(f"{path.name}: no record: one of {known}; or --compare measures it") from error
    except ValueError as error:
        raise click.ClickException(f"{path.name}: not JSON: a record that --json wrote") from error
    return report


def machine() -> dict[str, str]:
    """What the figures depend on and a reader elsewhere wants to know."""
    facts = host.machine()
    for name in ("nbdkit", "qemu-nbd", "fio"):
        with contextlib.suppress(click.ClickException):
            facts[name] = "".join(re.findall(r"\d+[.\d]*", run([name, "--version"]))[:1])
    with contextlib.suppress(click.ClickException):
        facts["commit"] = commit_of("HEAD") + ("-changed" if changed() else "")
    for name in ("pmem-nbd", "numba", "numpy", "lmdb"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    facts["threads a connection of pmem"] = f"{launch.THREADS} unless a peer says"
    # Of the last minute, the last five and the last fifteen; a busy machine is not one to publish figures of.
    facts["load before the run"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return facts
