# SPDX-License-Identifier: MIT
"""SIGTERM does what Ctrl-C does, whatever the verb: nothing of it goes on, and nothing half made is left."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from pmem_core import geometry, image

COMMAND = [sys.executable, "-c", "import sys; from pmem_core import cli; sys.exit(cli.main())"]


@pytest.fixture
def begin(tmp_path):
    """Start the command; what is left of it at the end is killed."""
    started = []

    def run(*words):
        process = subprocess.Popen(
            [*COMMAND, *map(str, words)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(told, what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def terminate(process):
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    _, alive = psutil.wait_procs(children, 10)
    for one in alive:
        one.kill()
    assert not alive, alive


def test_study_leaves_no_worker(begin, tmp_path):
    process = begin("study", "--leveling", "none", "--leveling", "start_gap", "--workload", "uniform", "--jobs", 2)
    wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 3, "workers")
    terminate(process)


def test_policy_test_leaves_no_process_and_no_folder(begin, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = begin("policies", "--test", "start_gap")
    wait_for(lambda: psutil.Process(process.pid).children(), "the process that tries it")
    time.sleep(0.3)
    terminate(process)
    assert not list(tmp_path.iterdir())


def test_create_leaves_no_half_image(begin, tmp_path):
    process = begin("create", "large.pmem", "--size", "4T", "--initialise", "eager")
    wait_for(lambda: list(tmp_path.glob(".large.pmem.*")), "the image that is being made")
    terminate(process)
    assert not list(tmp_path.iterdir())


def test_convert_leaves_no_half_image(begin, tmp_path):
    image.create(tmp_path / "disk.pmem", geometry.plan(16 << 30))
    process = begin("convert", "disk.pmem", "--descriptor-bytes", 128, "--output", "new.pmem")
    wait_for(lambda: list(tmp_path.glob(".new.pmem.*")), "the image that is being made")
    terminate(process)
    assert [one.name for one in tmp_path.iterdir()] == ["disk.pmem"]
