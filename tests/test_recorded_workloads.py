# SPDX-License-Identifier: MIT
"""The recordings that come along are whole, what their document says, and can be replayed."""

import functools
import importlib.resources
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import recording_reader
from recording_reader import FLUSH, TRIM, WRITE, ZERO

from pmem_core import geometry
from pmem_core.replay import lives
from pmem_core.replay.endurance import Endurance
from pmem_core.traces import open_trace

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(str(importlib.resources.files("pmem_core.study.workloads")))
NAMES = ("ext4-fio", "ext4-lmdb", "ext4-sqlite")
DEVICE_BYTES = 28 << 20
PAGE = 4096


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.rec"


@functools.cache
def read(name: str) -> recording_reader.Found:
    """By the second reader; ValueError where a checksum differs or a request is beyond the device."""
    return recording_reader.read(path_of(name))


@functools.cache
def written(name: str) -> Counter:
    """How often each page is written."""
    pages: Counter = Counter()
    for kind, offset, count in read(name).requests:
        if kind == WRITE:
            pages.update(range(offset // PAGE, -(-(offset + count) // PAGE)))
    return pages


def documented() -> dict[str, list[int]]:
    """The rows of the first table of the document, by name."""
    text = (ROOT / "docs" / "recorded-workloads.md").read_text().split("## What they do")[0]
    rows = re.findall(r"^\| (ext4-\w+) \|(.*)\|$", text, re.MULTILINE)
    return {name: [int(cell) for cell in cells.split("|")] for name, cells in rows}


def test_all_recordings_are_documented():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.rec"))) == NAMES
    assert tuple(sorted(documented())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recording_is_whole_small_and_of_its_device(name):
    found = read(name)
    assert found.whole and not found.torn
    assert found.device_bytes == DEVICE_BYTES
    assert max(offset + count for _, offset, count in found.requests) <= DEVICE_BYTES
    assert path_of(name).stat().st_size <= 600_000
    image = found.about["image"]
    assert (image["placement"], image["leveling"]) == ("none", "none")


@pytest.mark.parametrize("name", NAMES)
def test_recording_is_what_its_document_says(name):
    kinds = Counter(kind for kind, _, _ in read(name).requests)
    pages = written(name)
    writes = [kinds[WRITE], pages.total(), len(pages)]
    others = [kinds[FLUSH], kinds[TRIM], kinds[ZERO]]
    assert documented()[name] == [path_of(name).stat().st_size, kinds.total(), *writes, *others]
    assert kinds.total() == sum([kinds[WRITE], *others]), "there are other requests"


def test_filesystem_under_fio_is_trimmed_at_its_end():
    """Not only by mkfs, at the beginning."""
    trims = [at for at, (kind, _, _) in enumerate(read("ext4-fio").requests) if kind == TRIM]
    assert trims[-1] > 0.99 * len(read("ext4-fio").requests)


@pytest.mark.parametrize("name", NAMES)
def test_recording_replays_with_all_its_page_writes(name):
    plan = geometry.plan(32 << 20, placement_name="interleaved")
    with open_trace(path_of(name)) as trace:
        source = lives.Recorded(name, lambda: iter(trace), plan, passes=1)
        life = lives.live(plan, source, Endurance(1 << 31))
        assert trace.whole
    assert life.ended == "source"
    assert life.memory.page_writes == written(name).total()
    described = source.describe()
    assert (described["requests"], described["beyond_device"]) == (len(read(name).requests), 0)


def test_record_explains_itself():
    told = subprocess.run([ROOT / "scripts" / "record", "--help"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("usage: scripts/record ")
    assert all(name in told.stdout for name in NAMES)
