# SPDX-License-Identifier: MIT
"""Halt polling: a processor does not halt while requests come one at a time.

Where each answer is waited for before the next request is sent, a processor halts between two of them, and to wake it
may take longer than the request.  Linux polls for a while before it halts, as a guest that was set up for it
(Documentation/virt/guest-halt-polling.rst) and as a host (halt_poll_ns of KVM), and QEMU does in its own threads
(poll-max-ns); a server has this thread, which looks at the count of requests.  It has the lowest class (SCHED_IDLE):
whatever else wants the processor has it at once.

What it brings depends on the machine, so that is measured, by looks each some hundreds of requests:

========== ====================== ==================================================================================
state      the thread             becomes
========== ====================== ==================================================================================
paying     polls                  measuring, after AGAIN looks; it is the first state, and lasts FIRST looks then
in vain    sleeps                 measuring, after AGAIN looks
measuring  polls from every       after PAIRS looks of either kind paying, where requests took less than WORTH times as
           second look on         long while it polled, else in vain
========== ====================== ==================================================================================

In each of them the thread sleeps where no request has come for QUIET_NS, and where other requests come: large ones,
several at a time, or seldom.  It never has the GIL, or all who want that would wait for the lowest class.
"""

import contextlib
import ctypes
import functools
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import types

from pmem_core import jit, layout
from pmem_core.device import Device
from pmem_core.turn import Turn

NAME = b"halt-poll"  # of the thread, for top -H and the like
QUIET_NS = 2_000_000  # a virtual machine's processor is taken away for as long now and then
LAPSE_NS = 200_000_000  # twice as long as a look is apart at the most
REQUESTS_MIN = 256  # between two looks: where Python answers requests whole, each of them would be one
SELDOM_SECONDS = 200e-6  # a request: with fewer a halt is a small part
# A connection's first requests tell nothing: client and server share a processor until the kernel parts them.
FIRST, AGAIN = 64, 2048
PAIRS = 7
WORTH = 0.9
RELAXED = 16  # pauses between two looks, some tenths of a microsecond

# What `_poll` works with, a word each.  UNTIL: when it ends at the latest; QUIET: QUIET_NS; REQUESTS: the address of
# two counts; POLLING: of a mutex, which the thread has while it looks at them; SEMAPHORE: a sem_t of up to four words.
UNTIL, QUIET, ENDED, ASLEEP, THREAD, REQUESTS, POLLING, PRIORITY, SECONDS, NANOSECONDS, SEMAPHORE = range(11)
WORDS = SEMAPHORE + 4

_word, _int = types.int64, types.int32
_set_policy = types.ExternalFunction("sched_setscheduler", _int(_int, _int, _word))
_number = types.ExternalFunction("gettid", _int())
_clock = types.ExternalFunction("clock_gettime", _int(_int, _word))
_wait = types.ExternalFunction("sem_wait", _int(_word))
_lock = types.ExternalFunction("pthread_mutex_lock", _int(_word))
_unlock = types.ExternalFunction("pthread_mutex_unlock", _int(_word))
_C = ctypes.CDLL(None)
_PYTHON = ctypes.PyDLL(None)  # keeps the GIL: what is called by it does not wait
_MONOTONIC = time.CLOCK_MONOTONIC
_IDLE = os.SCHED_IDLE
_kept: list[Any] = []  # what threads that were begun work with, to the end of the process


@no_type_check  # the types are numba's
@jit.hot
def _now(words, at):
    _clock(_int(_MONOTONIC), at + 8 * SECONDS)
    return words[SECONDS] * 1_000_000_000 + words[NANOSECONDS]


@no_type_check
@jit.hot
def _watch(words, at):
    requests = jit.i64_at(words[REQUESTS], 2)
    now = since = _now(words, at)
    seen = requests[0] + requests[1]
    while now < words[UNTIL] and now - since < words[QUIET]:
        for _ in range(RELAXED):
            jit.relax()
        now = _now(words, at)
        if requests[0] + requests[1] != seen:
            seen = requests[0] + requests[1]
            since = now


@no_type_check
def _poll(at):
    """The thread: `at` is the address of its words."""
    words = jit.i64_at(at, WORDS)
    if _set_policy(_int(0), _int(_IDLE), at + 8 * PRIORITY):
        return 0  # never in a class that others have to share with
    words[THREAD] = _number()
    while not words[ENDED]:
        words[ASLEEP] = 1
        while _wait(at + 8 * SEMAPHORE):
            pass  # interrupted
        words[ASLEEP] = 0
        _lock(words[POLLING])
        if not words[ENDED]:
            _watch(words, at)
        _unlock(words[POLLING])
    return 0


@functools.cache
def _compiled() -> Any:
    return jit.c_function(_poll, _word(_word))


class Poller:
    """The thread.  requests: int64[2], whose sum grows with each request; it is there until `end` returns.

    Errors: OSError where no thread can be made.
    """

    def __init__(self, requests: np.ndarray) -> None:
        self._words = np.zeros(WORDS, np.int64)
        self._words[REQUESTS], self._words[QUIET] = requests.ctypes.data, QUIET_NS
        self._polling = Turn()
        self._words[POLLING] = self._polling.address
        at = self._words.ctypes.data
        self._semaphore = ctypes.c_void_p(at + 8 * SEMAPHORE)
        _C.sem_init(self._semaphore, 0, 0)
        thread, function = ctypes.c_ulong(), ctypes.c_void_p(_compiled().address)
        # The lowest class may have to wait long, and a signal with it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        error = _C.pthread_create(ctypes.byref(thread), None, function, ctypes.c_void_p(at))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if error:
            raise OSError(error, os.strerror(error))
        _C.pthread_setname_np(thread, NAME)
        _kept.append((self._words, self._polling))

    @property
    def asleep(self) -> bool:
        return bool(self._words[ASLEEP])

    def poll(self) -> None:
        """Poll for LAPSE_NS from now on.

        Of more processors than two it has the caller's: that one halts when this request is answered.  Of two either
        may halt.
        """
        if (thread := int(self._words[THREAD])) and len(os.sched_getaffinity(0)) > 2:
            with contextlib.suppress(OSError):  # it stays where it is
                os.sched_setaffinity(thread, {_PYTHON.sched_getcpu()})
        self._words[UNTIL] = time.monotonic_ns() + LAPSE_NS
        if self.asleep:
            _PYTHON.sem_post(self._semaphore)

    def sleep(self) -> None:
        self._words[UNTIL] = 0

    def end(self) -> None:
        """From now on the thread looks at nothing.  It is not waited for: it may be long until it has a processor."""
        self._words[ENDED], self._words[UNTIL] = 1, 0
        with self._polling:
            pass


def judge(device: Device, tell: Callable[[str], None]) -> "Judge | None":
    """A Judge, and its Poller, of a device that is served; None where code is not compiled, or no thread to be had."""
    if jit.PLAIN:
        return None
    core = device.handle[1]
    assert layout.TALLY.names and layout.TALLY.names[:2] == ("reads", "writes")
    requests = np.ndarray(2, np.int64, layout.common(core)["tally"].data)
    try:
        return Judge(Poller(requests), lambda: int(requests[0] + requests[1]), tell)
    except OSError as error:
        tell(f"no halt polling: {error.strerror}")
        return None


class Judge:
    """Whether the thread polls.

    requests: gives how many there were so far; tell: is told each verdict in words.
    """

    def __init__(self, poller: Poller, requests: Callable[[], int], tell: Callable[[str], None]) -> None:
        self._poller, self._requests, self._tell = poller, requests, tell
        self._looking = threading.Lock()  # one look at a time
        self._at, self._count = time.monotonic(), requests()
        self._pays = self._polls = True
        self._left = FIRST  # looks until it is measured
        self._took: tuple[list[float], list[float]] = [], []  # seconds a request, while it slept and while it polled

    def look(self, one_by_one: bool) -> None:
        """one_by_one: the request in hand is small, and none has waited behind another lately."""
        if self._looking.acquire(blocking=False):
            try:
                self._look(one_by_one)
            finally:
                self._looking.release()

    def end(self) -> None:
        """From now on no look does anything, nor does the thread."""
        self._looking.acquire()
        self._poller.end()

    def _look(self, one_by_one: bool) -> None:
        now, count = time.monotonic(), self._requests()
        took, done = now - self._at, count - self._count
        if done < REQUESTS_MIN:
            return
        self._at, self._count = now, count
        if not one_by_one or took >= done * SELDOM_SECONDS:
            polls = False
            self._took = [], []
        elif self._left > 0:
            polls = self._pays
            self._left -= 1
        else:
            self._took[self._polls].append(took / done)
            polls = self._pays if self._judged() else not self._polls
        self._poller.poll() if polls else self._poller.sleep()
        self._polls = polls

    def _judged(self) -> bool:
        if min(map(len, self._took)) < PAIRS:
            return False
        slept, polled = map(statistics.median, self._took)
        self._pays, self._left, self._took = polled < slept * WORTH, AGAIN, ([], [])
        what = "pays" if self._pays else "is in vain"
        self._tell(f"halt polling {what}: {polled * 1e6:.1f} us a request with it, {slept * 1e6:.1f} without")
        return True
