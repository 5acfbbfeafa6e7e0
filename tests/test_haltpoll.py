# SPDX-License-Identifier: MIT
"""While requests come one at a time a thread of the lowest class polls, where that pays, and else it sleeps."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import needs
from test_plugin import PAGE, make, serving

from nbd_plugin import compiled, haltpoll
from pmem_core import jit

compiled_only = pytest.mark.skipif(jit.PLAIN, reason="the thread runs compiled code")


class Machine:
    """A clock, a count of requests and what the thread was told: each look comes EVERY requests after another."""

    def __init__(self, monkeypatch, slept: float, polled: float):
        self.slept, self.polled, self.polls = slept, polled, False
        self.now, self.requests, self.said = 100.0, 0, []
        monkeypatch.setattr(haltpoll.time, "monotonic", lambda: self.now)
        self.judge = haltpoll.Judge(self, lambda: self.requests, self.said.append)

    def poll(self):
        self.polls = True

    def sleep(self):
        self.polls = False

    def look(self, one_by_one=True, seconds=None):
        """Whether the thread polls after the next look."""
        self.requests += compiled.EVERY
        took = self.polled if self.polls else self.slept
        self.now += compiled.EVERY * (took if seconds is None else seconds)
        self.judge.look(one_by_one)
        return self.polls

    def looks(self, count):
        return [self.look() for _ in range(count)]


def until_judged(machine):
    while not machine.said:
        machine.look()
    return machine.said.pop()


def test_it_polls_until_that_was_measured(monkeypatch):
    machine = Machine(monkeypatch, 60e-6, 60e-6)
    assert machine.looks(haltpoll.FIRST) == [True] * haltpoll.FIRST
    assert machine.looks(6) == [False, True] * 3
    assert not machine.said


def test_it_goes_on_where_requests_take_less_so(monkeypatch):
    machine = Machine(monkeypatch, 60e-6, 50e-6)
    assert until_judged(machine) == "halt polling pays: 50.0 us a request with it, 60.0 without"
    assert machine.polls and machine.looks(haltpoll.AGAIN) == [True] * haltpoll.AGAIN


def test_it_sleeps_where_they_take_as_long(monkeypatch):
    machine = Machine(monkeypatch, 60e-6, 58e-6)
    assert until_judged(machine) == "halt polling is in vain: 58.0 us a request with it, 60.0 without"
    assert not machine.polls and machine.looks(haltpoll.AGAIN) == [False] * haltpoll.AGAIN


def test_what_was_found_is_measured_again(monkeypatch):
    machine = Machine(monkeypatch, 60e-6, 58e-6)
    until_judged(machine)
    machine.looks(haltpoll.AGAIN)
    machine.polled = 30e-6
    assert until_judged(machine).startswith("halt polling pays: 30.0 us")
    machine.looks(haltpoll.AGAIN)
    machine.polled = 60e-6
    assert until_judged(machine).startswith("halt polling is in vain: 60.0 us")


@pytest.mark.parametrize("other", [{"one_by_one": False}, {"seconds": 201e-6}], ids=["many at a time", "seldom"])
def test_it_sleeps_where_other_requests_come(monkeypatch, other):
    machine = Machine(monkeypatch, 60e-6, 30e-6)
    assert machine.look() and not machine.look(**other) and machine.look()
    machine.looks(haltpoll.FIRST + 3)
    assert not machine.look(**other)
    assert machine.judge._took == ([], []), "what was measured before is not of the same requests"


def test_looks_that_are_too_close_say_nothing(monkeypatch):
    """Where Python answers requests whole, as of a server that records, each comes with a look."""
    machine = Machine(monkeypatch, 60e-6, 30e-6)
    monkeypatch.setattr(compiled, "EVERY", 1)
    assert machine.looks(haltpoll.REQUESTS_MIN) == [False] * (haltpoll.REQUESTS_MIN - 1) + [True]
    assert machine.judge._left == haltpoll.FIRST - 1


@pytest.fixture
def poller(monkeypatch):
    monkeypatch.setattr(haltpoll, "QUIET_NS", 100_000_000)  # longer than a busy machine may hold a test up
    requests = np.zeros(2, np.int64)
    poller = haltpoll.Poller(requests)
    wait_for(lambda: poller.asleep)
    yield poller, requests
    poller.end()


def wait_for(what):
    """Until `what` says so: what has the lowest class may have to wait long on a busy machine."""
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def threads_of(pid="self"):
    """The policies of a process's threads with the poller's name."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    ours = [task for task in tasks if (task / "comm").read_text().strip() == haltpoll.NAME.decode()]
    return [os.sched_getscheduler(int(task.name)) for task in ours]


@compiled_only
def test_the_thread_has_the_lowest_class(poller):
    assert threads_of()[-1] == os.SCHED_IDLE


@compiled_only
def test_the_thread_takes_no_signals(poller):
    thread = int(poller[0]._words[haltpoll.THREAD])
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    blocked = int(next(line.split()[1] for line in lines if line.startswith("SigBlk")), 16)
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert all(blocked >> number - 1 & 1 for number in ending)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(ending), "and the one that made it does"


@compiled_only
def test_it_polls_as_long_as_requests_come(poller, monkeypatch):
    monkeypatch.setattr(haltpoll, "LAPSE_NS", 60_000_000_000)
    thread, requests = poller

    def awake():
        requests[0] += 1
        return not thread.asleep

    def stays_awake():
        """For three times as long as it would without a request."""
        thread.poll()
        time.sleep(0.01)
        came = time.monotonic()
        while awake() and time.monotonic() - came < 3 * haltpoll.QUIET_NS / 1e9:
            pass
        return awake()

    for _ in range(2):
        wait_for(stays_awake)
        wait_for(lambda: thread.asleep)


@compiled_only
@pytest.mark.parametrize("how", ["sleep", "lapse"])
def test_it_ends_though_requests_come(poller, monkeypatch, how):
    thread, requests = poller
    monkeypatch.setattr(haltpoll, "LAPSE_NS", 10_000_000 if how == "lapse" else 60_000_000_000)

    def asleep():
        requests[1] += 1
        return thread.asleep

    def awake():
        thread.poll()
        return not asleep()

    wait_for(awake)
    if how == "sleep":
        thread.sleep()
    wait_for(asleep)


@compiled_only
@pytest.mark.parametrize("polls", [False, True])
def test_after_its_end_it_looks_at_nothing(poller, polls):
    thread, _ = poller
    if polls:
        thread.poll()
    thread.end()
    thread._words[haltpoll.REQUESTS] = 8  # a look there would be the end of this process
    thread.poll()
    wait_for(lambda: not thread.asleep)
    time.sleep(0.01)


@needs("nbdkit", "libnbd")
@pytest.mark.parametrize("word", ["halt_poll=true", "halt_poll=false", ""])
def test_a_server_has_the_thread_unless_it_is_told(tmp_path, word):
    with serving(make(tmp_path / "disk.pmem"), *filter(None, [word])) as server:
        client = server.connect()
        for _ in range(4 * compiled.EVERY):
            client.pwrite(bytes(PAGE), 0)
        assert threads_of(server.pid) == ([] if "false" in word else [os.SCHED_IDLE])


@needs("nbdkit", "libnbd")
def test_a_server_is_stopped_while_it_polls(tmp_path):
    with serving(make(tmp_path / "disk.pmem")) as server:
        client = server.connect()
        for _ in range(4 * compiled.EVERY):
            client.pwrite(bytes(PAGE), 0)
        assert server.stop() == 0
