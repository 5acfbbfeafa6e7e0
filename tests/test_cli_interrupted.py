# SPDX-License-Identifier: MIT
"""SIGTERM does what Ctrl-C does, whatever the verb: nothing of it goes on, and nothing half made is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pmem_core import cli, geometry, image
from pmem_core.device import Device

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


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, "raise AttributeError('half of it is missing')"), (signal.SIGTERM, "pass")]
)
def test_interrupt_that_an_import_swallows_is_not_lost(tmp_path, number, end):
    """As numpy's does now and then: it goes on as half a module, which cannot be imported again."""
    done = run_with(
        tmp_path,
        "lmdb",
        f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\n    sum(range(10))\n"
        f"except KeyboardInterrupt:\n    pass\n{end}\n",
    )
    assert done == (130, "", "")


def test_import_that_does_not_end_can_be_interrupted(tmp_path):
    source = (
        "import os, signal\nfrom pmem_core.cli import _signals\n_signals.IMPORT_S_MAX = 0.05\n"
        "while True:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert run_with(tmp_path, "lmdb", source) == (130, "", "")


def test_import_that_waits_is_interrupted_by_one_signal(tmp_path):
    source = (
        "import os, signal\nfrom pmem_core.cli import _signals\n_signals.IMPORT_S_MAX = 0.2\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nos.read(os.pipe()[0], 1)\n"
    )
    assert run_with(tmp_path, "lmdb", source) == (130, "", "")


def run_with(folder, module, source):
    """Status and output of `convert`, with a module of this name and source in place of the installed one."""
    (folder / f"{module}.py").write_text(source)
    image.create(folder / "disk.pmem", geometry.plan(1 << 20))
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path(cli.__file__).parents[2]}"}
    command = [*COMMAND, "convert", folder / "disk.pmem", "--descriptor-bytes", "64"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr.strip()


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
    left = [one.name for one in tmp_path.iterdir()]
    assert left in ([], ["large.pmem"])
    for one in left:  # it was whole by then, without all of its descriptors
        Device(tmp_path / one, read_only=True).close()


def test_convert_leaves_no_half_image(begin, tmp_path):
    image.create(tmp_path / "disk.pmem", geometry.plan(16 << 30))
    process = begin("convert", "disk.pmem", "--descriptor-bytes", 128, "--output", "new.pmem")
    wait_for(lambda: list(tmp_path.glob(".new.pmem.*")), "the image that is being made")
    terminate(process)
    assert [one.name for one in tmp_path.iterdir()] == ["disk.pmem"]
