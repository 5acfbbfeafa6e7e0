# SPDX-License-Identifier: MIT
"""Python's states of nbdkit's threads are kept while these live, and given back afterwards."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from nbd_plugin import threads

_PYTHON, _C = ctypes.pythonapi, ctypes.CDLL(None)
_PYTHON.PyInterpreterState_Get.restype = ctypes.c_void_p
_PYTHON.PyInterpreterState_ThreadHead.restype = _PYTHON.PyThreadState_Next.restype = ctypes.c_void_p
_PYTHON.PyInterpreterState_ThreadHead.argtypes = _PYTHON.PyThreadState_Next.argtypes = [ctypes.c_void_p]
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


def on_new_thread(*calls):
    """Make the calls, each as nbdkit makes one, on a thread that Python does not know, and wait until it has ended."""
    failed = []

    def run(_):
        for call in calls:
            try:
                call()
            except Exception as error:
                failed.append(error)
        return 0

    thread = ctypes.c_ulong()
    callback = CALLBACK(run)
    assert _C.pthread_create(ctypes.byref(thread), None, callback, None) == 0
    assert _C.pthread_join(thread, None) == 0
    assert not failed, failed


def states():
    """How many thread states the interpreter has."""
    count, state = 0, _PYTHON.PyInterpreterState_ThreadHead(_PYTHON.PyInterpreterState_Get())
    while state:
        count, state = count + 1, _PYTHON.PyThreadState_Next(state)
    return count


def connections_come_and_go():
    before = states()
    for _ in range(3):  # each thread's state is given back by the next connection
        on_new_thread(threads.pin)
        on_new_thread(threads.pin)
        assert states() > before
        on_new_thread(threads.give_back, threads.give_back)
        assert states() == before and not threads.kept()


def number_is_used_again():
    before = states()
    on_new_thread(threads.pin)
    (ended,) = threads._kept
    real, threads.threading.get_native_id = threads.threading.get_native_id, lambda: ended
    on_new_thread(threads.pin)
    threads.threading.get_native_id = real
    assert list(threads._kept) == [ended]
    on_new_thread(threads.give_back)
    assert states() == before and not threads._kept


def no_thread_can_be_made():
    before = states()
    on_new_thread(threads.pin)
    real = threads.threading.Thread.start

    def start(thread):
        raise RuntimeError("can't start new thread")

    threads.threading.Thread.start = start
    on_new_thread(threads.give_back)  # the connection is served all the same
    threads.threading.Thread.start = real
    on_new_thread(threads.give_back)
    assert states() == before and not threads._kept


# A process of its own: what Python thinks wrong here ends the whole of it.
@pytest.mark.parametrize("name", ["connections_come_and_go", "number_is_used_again", "no_thread_can_be_made"])
def test_states_of_ended_threads_are_given_back_when(name):
    command = [sys.executable, "-c", f"import test_threads; test_threads.{name}()"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
