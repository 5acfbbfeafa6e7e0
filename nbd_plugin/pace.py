# SPDX-License-Identifier: MIT
"""Whether a thread that is woken pushes another one aside.

The kernel lets it (SCHED_OTHER), and where a client waits for one answer, that brings it soon.  Where requests wait for
a thread it brings nothing: put aside is a server's thread in the middle of a request, or a client before it has sent
what it was about to, and to change threads takes as long as a request.  A thread that waits until a processor is free
(SCHED_BATCH) does no such thing.  So it is looked now and then:

=========================================== ========================
while a small request is worked on          the threads
=========================================== ========================
another waits in the socket of a connection are SCHED_BATCH
none has for CALM_SECONDS                   are what they began as
=========================================== ========================

A thread looks at its first request where that is a read or a write, at each compiled.EVERY-th of these, and at those
that Python answers whole.  What began with another policy, by chrt(1) say, keeps it.  While none waits the same looks
say whether a processor is kept from halting (haltpoll.py).
"""

import contextlib
import fcntl
import math
import os
import termios
import threading
import time
from array import array
from collections.abc import Callable

from nbd_plugin import haltpoll, sockets, threads
from pmem_core.device import Device

CALM_SECONDS = 0.1
SMALL_BYTES = 16 << 10  # a larger one is worth a change of threads: it is read while another is worked on
_changing = threading.Lock()  # two at a time would leave threads with different policies, or an older list
_connections: list[int] = []  # descriptors of sockets; what was closed since is not asked
_seen = -math.inf  # when a request was last seen to wait
_CALM = os.sched_getscheduler(0)
_policy = _CALM
_judge: haltpoll.Judge | None = None  # where halt polling is wanted


def begin(device: Device, tell: Callable[[str], None]) -> None:
    """From now on keep a processor from halting where that pays (haltpoll.py); tell: is told so in words."""
    global _judge
    _judge = haltpoll.judge(device, tell)


def end() -> None:
    """Before the device is closed: the thread that `begin` made looks at nothing of it from now on."""
    if _judge:
        _judge.end()


def follow_connections() -> None:
    """Take note of a new connection, and of those that have ended."""
    with contextlib.suppress(OSError), _changing:  # without /proc all stays as it is
        _connections[:] = sockets.connected()


def look(size: int) -> None:
    """In a request of `size` bytes: see whether another waits, and give the threads the policy for it."""
    global _seen, _policy
    now = time.monotonic()
    if size <= SMALL_BYTES and now - _seen > CALM_SECONDS / 2 and any(map(_has_waiting, _connections)):
        _seen = now
    if _judge:
        _judge.look(size <= SMALL_BYTES and now - _seen > CALM_SECONDS)
    wanted = os.SCHED_BATCH if now - _seen < CALM_SECONDS else _CALM
    if wanted != _policy:
        with _changing:
            _policy = wanted
            for thread in threads.kept():
                _set(thread)


def join() -> None:
    """Give this thread, which is kept from now on, the policy of the others."""
    with _changing:
        _set(0)


def _has_waiting(fd: int) -> bool:
    held = array("i", [0])
    with contextlib.suppress(OSError):  # closed
        fcntl.ioctl(fd, termios.FIONREAD, held)
    return held[0] > 0


def _set(thread: int) -> None:
    with contextlib.suppress(OSError):  # gone, or not allowed: it stays as it is
        if os.sched_getscheduler(thread) in (os.SCHED_OTHER, os.SCHED_BATCH):
            os.sched_setscheduler(thread, _policy, os.sched_param(0))
