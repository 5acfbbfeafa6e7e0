# SPDX-License-Identifier: MIT
"""Whose turn it is to work on the device.  The GIL does not say so: requests give it up while compiled code works.

To wait for the GIL is slow: a thread sleeps, is woken, and then waits for the mutex within it.  If requests held it for
all of their work, threads would often wait for it.  And on a disk a store may wait: the first one to a page that was
written back is a page fault, and a thread that waited there with the GIL would stop all others.  So a lock of the
device's own keeps requests apart:

=================== ================================== ==============================
who                 has meanwhile                      waits for its turn
=================== ================================== ==============================
a request's         the turn alone                     without the GIL
compiled code
Python that works   the turn, and the GIL whenever it  without the GIL
on the device       runs
=================== ================================== ==============================

Nobody waits for the turn with the GIL, so whoever has the turn always gets the GIL.  A turn does not nest.
"""

import ctypes
from types import TracebackType

_C, _PYTHON = ctypes.CDLL(None), ctypes.PyDLL(None)  # calls give the GIL up, and keep it
_MUTEX_WORDS = 16  # a pthread_mutex_t has 5 on x86, 6 on arm64
_ATTRIBUTE_WORDS = 4
_ADAPTIVE = 3  # PTHREAD_MUTEX_ADAPTIVE_NP: looks a while before it sleeps, for a page takes less than to be woken


class Turn:
    """A lock; compiled code takes it by the `address` of its pthread_mutex_t."""

    def __init__(self) -> None:
        attribute, self._mutex = (ctypes.c_int64 * _ATTRIBUTE_WORDS)(), (ctypes.c_int64 * _MUTEX_WORDS)()
        _C.pthread_mutexattr_init(attribute)
        _C.pthread_mutexattr_settype(attribute, _ADAPTIVE)
        _C.pthread_mutex_init(self._mutex, attribute)
        self.address = ctypes.addressof(self._mutex)

    def __enter__(self) -> None:
        if _PYTHON.pthread_mutex_trylock(self._mutex):
            _C.pthread_mutex_lock(self._mutex)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _PYTHON.pthread_mutex_unlock(self._mutex)
