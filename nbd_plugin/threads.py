# SPDX-License-Identifier: MIT
"""The Python side of nbdkit's threads: a state each, made once and given back when the thread is gone.

Every callback comes on a thread that Python does not know, so nbdkit makes a thread state for it and destroys it again,
which costs an mmap and a munmap a request.  `pin` keeps the thread's state by one PyGILState_Ensure() more than there
are releases.  It tripled the requests a second.

nbdkit tells nobody when a thread ends.  So each new connection gives back what the threads of earlier ones left.
"""

import contextlib
import ctypes
import os
import threading

_PYTHON = ctypes.pythonapi
_PYTHON.PyGILState_GetThisThreadState.restype = ctypes.c_void_p
_PYTHON.PyThreadState_Clear.argtypes = _PYTHON.PyThreadState_Delete.argtypes = [ctypes.c_void_p]
_C = ctypes.CDLL(None)
_C.pthread_setspecific.argtypes = [ctypes.c_uint, ctypes.c_void_p]
_C.tgkill.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]

ROOM_WORDS = 16  # of int64, for what compiled code has to put somewhere: a Py_buffer and more
_mine = threading.local()  # `room`: of a thread whose state is kept
_kept: dict[int, int] = {}  # thread states by the kernel's number of their thread
_left: list[int] = []  # thread states of threads that have ended, to be given back
_keeping = threading.Lock()  # who is kept does not change while it is looked who is alive


def _new_key() -> int:
    key = ctypes.c_uint()
    if error := _C.pthread_key_create(ctypes.byref(key), None):
        raise OSError(error, "pthread_key_create")
    return key.value


KEY = _new_key()  # pthread_getspecific(KEY): the address of the thread's room, or 0


def pin() -> bool:
    """Keep this thread's state, and give it its room, unless it has them already; tells whether it had not."""
    new = not hasattr(_mine, "room")
    if new:
        number = threading.get_native_id()
        with _keeping:
            _leave(number)  # of an earlier thread with the same number
            _PYTHON.PyGILState_Ensure()
            _mine.room = (ctypes.c_int64 * ROOM_WORDS)()
            _kept[number] = _PYTHON.PyGILState_GetThisThreadState()
        _C.pthread_setspecific(KEY, ctypes.addressof(_mine.room))
    return new


def kept() -> list[int]:
    """The threads whose states are kept and that have not ended, by the kernel's numbers."""
    with _keeping:
        return [number for number in _kept if not _has_ended(number)]


def give_back() -> None:
    """Give back the states of the threads that have ended."""
    with _keeping:
        for number in [number for number in _kept if _has_ended(number)]:
            _leave(number)
        if _left:
            # From Python 3.12 on, PyThreadState_Delete() makes the thread that calls it one that Python does not know,
            # and nbdkit's PyGILState_Release() after the callback would end the process.  So that thread is one of no
            # further use.
            deleter = threading.Thread(target=_delete_left, daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be made: the next connection gives them back
                deleter.start()
                deleter.join()


def _has_ended(number: int) -> bool:
    # The kernel is asked, not /proc: that may be another pid namespace's, where these are other threads' numbers.
    return bool(_C.tgkill(os.getpid(), number, 0))


def _leave(number: int) -> None:
    if state := _kept.pop(number, None):
        _left.append(state)


def _delete_left() -> None:
    while _left:
        state = _left.pop()
        _PYTHON.PyThreadState_Clear(state)
        _PYTHON.PyThreadState_Delete(state)
