# SPDX-License-Identifier: MIT
"""Threads of a server that are woken push nobody aside while requests wait, and do as soon as none does."""

import contextlib
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import needs
from test_plugin import PAGE, make, serving

from nbd_plugin import compiled, pace, threads

ORDINARY, BATCH, IDLE = os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE


@pytest.fixture
def sides():
    """The client's side of the one connection there is, and the server's."""
    client, server = socket.socketpair()
    server.setblocking(False)
    with client, server:
        pace._connections[:] = [server.fileno()]
        yield client, server
    pace._connections.clear()
    pace._seen = -math.inf
    pace.look(PAGE)


@contextlib.contextmanager
def worker(policy=ORDINARY):
    """A thread that has made a request, and waits: its number."""
    number, known, done = [], threading.Event(), threading.Event()

    def work():
        os.sched_setscheduler(0, policy, os.sched_param(0))
        threads.pin()
        pace.join()
        number.append(threading.get_native_id())
        known.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    known.wait()
    try:
        yield number[0]
    finally:
        done.set()
        thread.join()


def test_while_a_request_waits_threads_push_nobody_aside(sides):
    with worker() as before:
        pace.look(PAGE)
        assert os.sched_getscheduler(before) == ORDINARY
        sides[0].send(bytes(28))
        pace.look(PAGE)
        with worker() as after:
            assert [os.sched_getscheduler(each) for each in (before, after)] == [BATCH, BATCH]


def test_when_none_has_waited_for_a_while_they_do_again(sides, monkeypatch):
    monkeypatch.setattr(pace, "CALM_SECONDS", 1)  # longer than a busy machine may hold a test up
    with worker() as thread:
        sides[0].send(bytes(28))
        pace.look(PAGE)
        sides[1].recv(28)
        pace.look(PAGE)
        assert os.sched_getscheduler(thread) == BATCH, "one look in between had nothing"
        time.sleep(pace.CALM_SECONDS)
        pace.look(PAGE)
        assert os.sched_getscheduler(thread) == ORDINARY


def test_a_large_request_is_worth_a_change_of_threads(sides):
    with worker() as thread:
        sides[0].send(bytes(28))
        pace.look(pace.SMALL_BYTES + 1)
        assert os.sched_getscheduler(thread) == ORDINARY
        pace.look(pace.SMALL_BYTES)
        assert os.sched_getscheduler(thread) == BATCH
        time.sleep(pace.CALM_SECONDS)
        pace.look(pace.SMALL_BYTES + 1)
        assert os.sched_getscheduler(thread) == ORDINARY


def test_a_connection_that_has_ended_is_no_matter(sides):
    sides[0].send(bytes(28))
    sides[1].close()
    with worker() as thread:
        pace.look(PAGE)
        assert os.sched_getscheduler(thread) == ORDINARY


def test_a_policy_that_somebody_chose_is_kept(sides):
    with worker(IDLE) as thread:
        sides[0].send(bytes(28))
        pace.look(PAGE)
        assert os.sched_getscheduler(thread) == IDLE


def test_connections_are_found_among_the_sockets(tmp_path):
    """Not what listens, and neither the standard streams, which may be sockets too."""
    lines = """
import os, socket, sys
from nbd_plugin import sockets
ours, theirs = socket.socketpair()
os.dup2(theirs.fileno(), 0)
theirs.close()
ours.close()
with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
    unix.bind(sys.argv[1])
    unix.listen()
    assert sockets.connected() == []
    with socket.create_connection(tcp.getsockname()) as one, socket.socket(socket.AF_UNIX) as two:
        two.connect(sys.argv[1])
        with tcp.accept()[0] as first, unix.accept()[0] as second, open(sys.argv[1] + ".file", "w") as file:
            expected = {each.fileno() for each in (one, two, first, second)}
            assert set(sockets.connected()) == expected
            sockets.widen()
            room = [each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (second, two)]
            assert room[0] > room[1]
"""
    done = subprocess.run(
        [sys.executable, "-c", lines, "socket"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(pace.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_thread_that_has_ended_is_not_known_any_more():
    with worker() as thread:
        assert thread in threads.kept()
    deadline = time.monotonic() + 10
    while thread in threads.kept():  # joined, the kernel may still have it for a moment
        assert time.monotonic() < deadline


@needs("nbdkit", "libnbd")
@pytest.mark.parametrize(("place", "parameter"), [("/var/tmp", ""), ("/dev/shm", ""), ("/dev/shm", "logwrites")])
def test_a_servers_threads_mind_whether_requests_wait(place, parameter):
    def policies():
        tasks = Path(f"/proc/{server.pid}/task").iterdir()
        return {os.sched_getscheduler(int(task.name)) for task in tasks} - {IDLE}  # the one that polls

    def one_by_one():
        for _ in range(4 * compiled.EVERY):  # more than each of three threads needs until it looks
            client.pwrite(bytes(PAGE), 0)

    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=place)))
        words = [f"{parameter}={folder / 'log'}"] if parameter else []
        server = held.enter_context(serving(make(folder / "disk.pmem"), *words, options=["-t", "3"]))
        client = server.connect()
        one_by_one()
        assert policies() == {ORDINARY}
        waiting, found = [client.aio_pwrite(bytes(PAGE), 0) for _ in range(12 * compiled.EVERY)], set()
        while waiting:
            for _ in range(20):  # a client that is slow to ask lets nothing wait
                client.poll(100)
            found |= policies()
            waiting = [each for each in waiting if not client.aio_command_completed(each)]
        assert BATCH in found
        time.sleep(pace.CALM_SECONDS)
        one_by_one()
        assert policies() == {ORDINARY}
