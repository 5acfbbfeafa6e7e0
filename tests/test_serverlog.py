# SPDX-License-Identifier: MIT
"""A server's log keeps to its size, and what is looked for in it is there all the same."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import needs
from serving import runtime_directory

from pmem_core import geometry, image, launch, server, serverlog
from pmem_core.errors import ServerError

DROPPED = "pmem-nbd: housekeeping: earlier lines of this log were dropped\n"
CHATTER = "nbdkit: python[1]: error: /pmem.py: pwrite: error: disk.pmem/media: no room left on the host\n"
PLUGIN = """# SPDX-License-Identifier: MIT
import os, sys, types
import nbdkit
from nbd_plugin.faults import reported
from pmem_core import housekeeping, serverlog
from pmem_core.errors import HostFull

API_VERSION = 2
serverlog.LOG_BYTES_MAX, serverlog.TAIL_BYTES = 20000, 2000
fail = ""


def config(name, value):
    global fail
    if name == "fail":
        fail = value


def after_fork():
    global keeper
    keeper = housekeeping.Housekeeper(types.SimpleNamespace(read_only=True))
    print("pmem-nbd: disk.pmem: recovered", file=sys.stderr, flush=True)


def open(readonly):
    return 1


def get_size(handle):
    return 1 << 20


@reported
def pread(handle, buffer, offset, flags):
    raise HostFull("disk.pmem/media", "no room left on the host", "free space")


def cleanup():
    keeper.stop()
    if fail:
        os.write(2, b"x" * 30000 + b"\\n")
        serverlog.bound()
    if fail == "close":
        print("pmem-nbd: error: disk.pmem: an earlier sync failed: stop the server", file=sys.stderr, flush=True)
        os._exit(1)
"""


def bound_in_a_process(log: Path, named: Path | str, before: str = "") -> str:
    """Let a process whose standard error is `log` cut it back; `named`: what it is told of the log that is its own."""
    environment = os.environ | {serverlog.VARIABLE: str(named)}
    code = f"import os, resource\nfrom pmem_core import serverlog\n{before}\nserverlog.bound(); os.write(2, b'and on')"
    with os.fdopen(os.open(log, serverlog.FLAGS & ~os.O_TRUNC), "wb") as output:
        subprocess.run([sys.executable, "-c", code], stderr=output, env=environment, check=True)
    return log.read_text()


def long_log(path: Path, *first: str) -> str:
    text = "".join(first) + CHATTER * (serverlog.LOG_BYTES_MAX // len(CHATTER) + 1)
    path.write_text(text)
    return text


def test_long_log_loses_its_earlier_lines_and_says_so(tmp_path):
    long_log(tmp_path / "log")
    left = bound_in_a_process(tmp_path / "log", tmp_path / "log")
    assert left.startswith(DROPPED + CHATTER) and left.endswith(CHATTER + "and on")
    assert len(left) <= serverlog.TAIL_BYTES + len(DROPPED) + len("and on")


def test_lines_that_tell_of_the_image_stay_in_a_long_log(tmp_path):
    passing = "pmem-nbd: housekeeping: the history works again\n"
    long_log(tmp_path / "log", DROPPED, "pmem-nbd: disk.pmem: recovered\n", passing)
    left = bound_in_a_process(tmp_path / "log", tmp_path / "log")
    assert left.startswith(DROPPED + "pmem-nbd: disk.pmem: recovered\n" + CHATTER)
    assert left.count(DROPPED) == 1 and passing not in left


def test_log_is_cut_where_no_file_can_be_opened(tmp_path):
    long_log(tmp_path / "log")
    none_left = "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"
    left = bound_in_a_process(tmp_path / "log", tmp_path / "log", before=none_left)
    assert left.startswith(DROPPED) and left.endswith(CHATTER + "and on")


def test_short_log_stays_as_it_is(tmp_path):
    (tmp_path / "log").write_text(CHATTER)
    assert bound_in_a_process(tmp_path / "log", tmp_path / "log") == CHATTER + "and on"


@pytest.mark.parametrize("named", ["", "missing", "other"])
def test_file_that_is_the_users_own_is_not_cut(tmp_path, named):
    text = long_log(tmp_path / "log")
    (tmp_path / "other").write_text("")
    assert bound_in_a_process(tmp_path / "log", named and tmp_path / named) == text + "and on"


@pytest.fixture
def start(tmp_path):
    (tmp_path / "disk.pmem").mkdir()
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    with runtime_directory():
        yield lambda **options: server.start(tmp_path / "disk.pmem", plugin=plugin, **options)


def read_in_vain(running, times):
    import nbd

    client = nbd.NBD()
    client.connect_uri(running.uri)
    for _ in range(times):
        with pytest.raises(nbd.Error, match="No space left"):
            client.pread(512, 0)
    client.shutdown()


def cut(running) -> str:
    """Wait until the server has cut its log; returns what is left."""
    log, deadline = Path(running.log), time.monotonic() + 20
    while not log.read_text().startswith(DROPPED):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return log.read_text()


@needs("nbdkit", "libnbd")
@pytest.mark.parametrize("outlives", [True, False])
def test_refused_requests_do_not_make_the_log_grow(start, outlives):
    running = start(exit_with_parent=not outlives)
    read_in_vain(running, 600)
    said = cut(running)
    assert len(said) < 21000 and said.count("pmem-nbd: disk.pmem: recovered\n") == 1 and "\0" not in said
    server.stop(running)


@needs("nbdkit")
@pytest.mark.parametrize("read_only", [False, True])
def test_log_of_a_server_is_cut_whoever_wrote_into_it(tmp_path, read_only):
    image.create(tmp_path / "disk.pmem", geometry.plan(8 << 20))
    with runtime_directory():
        running = server.start(tmp_path / "disk.pmem", read_only=read_only)
        with Path(running.log).open("a") as log:  # as nbdkit does, of a request that never comes to the plugin
            log.write(CHATTER * (serverlog.LOG_BYTES_MAX // len(CHATTER) + 1))
        assert len(cut(running)) <= serverlog.TAIL_BYTES + len(DROPPED)
        server.stop(running)


@needs("nbdkit")
def test_failure_to_close_is_told_though_the_log_was_cut_meanwhile(start):
    with pytest.raises(ServerError, match="an earlier sync failed"):
        server.stop(start(parameters={"fail": "close"}))


@needs("nbdkit")
def test_log_cut_while_a_server_stops_is_no_failure(start):
    server.stop(start(parameters={"fail": "cut"}))


@needs("nbdkit", "libnbd")
def test_who_follows_a_server_is_told_what_comes_after_a_cut(start):
    running, told = start(exit_with_parent=True), []
    follower = threading.Thread(target=server.follow, args=(running, told.append))
    follower.start()
    deadline = time.monotonic() + 20
    while launch.clean(DROPPED) not in told:
        assert time.monotonic() < deadline
        read_in_vain(running, 20)  # less than is left of a log, until it is looked at again
        time.sleep(0.02)
    with Path(running.log).open("ab") as log:
        log.write(b"and on\n")
    while told[-1] != "and on":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.stop(running)
    follower.join()


def test_last_words_in_passing_are_not_why_a_server_ended():
    error = launch.failure("disk.pmem", "nbdkit: /s: permission denied\n" + DROPPED, 1)
    assert str(error) == "/s: permission denied"
