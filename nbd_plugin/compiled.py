# SPDX-License-Identifier: MIT
"""`pread` and `pwrite` without a line of Python on the way.

A Python function that calls compiled code takes longer than that code: a frame is made, a variable of the thread's own
is looked up, every argument is taken apart.  So what nbdkit finds under these two names is a built-in function whose
body numba compiled, `_answer`.  It keeps to the documented C API of Python:

=========================== ========================================================================
what comes                  what is done
=========================== ========================================================================
a thread's first request,   `ordinary` is called, the Python function of the same arguments, here
each EVERY-th, or one with  those of pmem.py, which looks whether requests wait (pace.py)
flags
any other                   datapath.read_at or write_at runs on the memory of the buffer
a stop code of these        `resume(buffer, offset, result)` is called, and does the rest
=========================== ========================================================================

The GIL is given up while that code runs, which is kept apart from others by the device's turn (turn.py).
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nbd_plugin import threads
from nbd_plugin.turn import Turn
from pmem_core import binding, datapath, jit
from pmem_core.device import Device

METH_FASTCALL = 0x80  # methodobject.h
PyBUF_SIMPLE, PyBUF_WRITABLE = 0, 1  # pybuffer.h
# What `_answer` works with, a word each: numbers, addresses of compiled code and records, and of Python's objects.
ROOM_KEY, ACCESS, FUNCTION, RUN, CORE, ORDINARY, RESUME, NONE, TURN, WORDS = range(10)
# In the thread's room: the first words of a Py_buffer, and behind it a count of requests and the arguments of `resume`.
BUFFER, LENGTH, COUNT, TO_RESUME = 0, 2, threads.ROOM_WORDS - 4, threads.ROOM_WORDS - 3
EVERY = 64

_word, _int = types.int64, types.int32
_as_number = types.ExternalFunction("PyLong_AsLongLong", _word(_word))
_of_number = types.ExternalFunction("PyLong_FromLongLong", _word(_word))
_get_buffer = types.ExternalFunction("PyObject_GetBuffer", _int(_word, _word, _int))
_release_buffer = types.ExternalFunction("PyBuffer_Release", types.void(_word))
_keep = types.ExternalFunction("Py_IncRef", types.void(_word))
_drop = types.ExternalFunction("Py_DecRef", types.void(_word))
_call = types.ExternalFunction("PyObject_Vectorcall", _word(_word, _word, _word, _word))
_room = types.ExternalFunction("pthread_getspecific", _word(types.uint32))
_give_up_gil = types.ExternalFunction("PyEval_SaveThread", _word())
_take_gil = types.ExternalFunction("PyEval_RestoreThread", types.void(_word))
_begin_turn = types.ExternalFunction("pthread_mutex_lock", _int(_word))
_end_turn = types.ExternalFunction("pthread_mutex_unlock", _int(_word))


@intrinsic
def _request(typing_context, function, run, core, buffer, size, offset):
    """function(run, core, buffer, size, offset, 0), all of them addresses and numbers."""

    def generate(context, builder, signature, arguments):
        function, run, core, *numbers = arguments
        records = [builder.inttoptr(record, ir.IntType(8).as_pointer()) for record in (run, core)]
        zero = ir.Constant(ir.IntType(64), 0)
        return jit.call_compiled(builder, function, records, [*numbers, zero])

    return _word(*[_word] * 6), generate


@no_type_check  # its types are numba's
def _answer(itself, arguments, count):
    """Answer nbdkit's call: `arguments` are handle, buffer, offset and flags.  Objects are their addresses."""
    words = jit.i64_at(_as_number(itself), WORDS)
    given = jit.i64_at(arguments, 4)
    at = _room(types.uint32(words[ROOM_KEY]))
    if not at or count != 4 or _as_number(given[3]):
        return _call(words[ORDINARY], arguments, count, 0)
    buffer, offset, room = given[1], given[2], jit.i64_at(at, threads.ROOM_WORDS)
    room[COUNT] += 1
    if room[COUNT] == EVERY:
        room[COUNT] = 0
        return _call(words[ORDINARY], arguments, count, 0)
    if _get_buffer(buffer, at, _int(words[ACCESS])):
        return 0  # with Python's own exception
    number = _as_number(offset)
    thread = _give_up_gil()
    _begin_turn(words[TURN])
    result = _request(words[FUNCTION], words[RUN], words[CORE], room[BUFFER], room[LENGTH], number)
    _end_turn(words[TURN])
    _take_gil(thread)
    _release_buffer(at)
    if result:
        stopped = _of_number(result)
        room[TO_RESUME], room[TO_RESUME + 1], room[TO_RESUME + 2] = buffer, offset, stopped
        answer = _call(words[RESUME], at + 8 * TO_RESUME, 3, 0)
        _drop(stopped)
        return answer
    _keep(words[NONE])
    return words[NONE]


class _Method(ctypes.Structure):
    """PyMethodDef (methodobject.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("told", ctypes.c_char_p),
    )


_new_function = ctypes.pythonapi.PyCFunction_NewEx
_new_function.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
_new_function.restype = ctypes.py_object
_kept: list[Any] = []  # what the functions made here point at


@functools.cache
def warm_up() -> Any:
    """Compile `_answer`, or load it from the cache."""
    return jit.c_function(_answer, _word(_word, _word, _word))


def callback(
    function: Any, device: Device, ordinary: Callable[..., None], resume: Callable[[Any, int, int], None]
) -> Callable[..., None]:
    """What nbdkit is to call for `ordinary`, to run `function`: datapath.read_at or write_at, compiled already.

    The device has a Turn.
    """
    if jit.PLAIN:
        return ordinary
    run, core = device.handle
    access = PyBUF_WRITABLE if function is datapath.read_at else PyBUF_SIMPLE
    addresses = (binding.request_address(function, device.handle), run.ctypes.data, core.ctypes.data)
    assert isinstance(device.turn, Turn)
    objects = (id(ordinary), id(resume), id(None))
    words = np.array([threads.KEY, access, *addresses, *objects, device.turn.address], np.int64)
    method = _Method(ordinary.__name__.encode(), warm_up().address, METH_FASTCALL)
    _kept.append((words, method, run, core, device.turn, ordinary, resume))
    return _new_function(ctypes.addressof(method), words.ctypes.data, None)
