# SPDX-License-Identifier: MIT
"""`pread`, `pwrite` and `flush` without a line of Python on the way.

A Python function that calls compiled code takes longer than that code: a frame is made, a variable of the thread's own
is looked up, every argument is taken apart.  So what nbdkit finds under these names are built-in functions whose bodies
numba compiled, `_answer` and `_answer_flush`.  They keep to the documented C API of Python:

=========================== ========================================================================
what comes                  what is done
=========================== ========================================================================
a thread's first request,   `ordinary` is called, the Python function of the same arguments, here
and each EVERY-th of reads  those of pmem.py; those of reads and writes look whether requests wait
and writes                  (pace.py)
any other                   datapath.read_at or write_at runs on the memory of the buffer, and behind a
                            write with FUA a flush
a flush                     Durability.flush, step by step, with fdatasync(2) in between
a stop code of these        `resume` is called, and does the rest
=========================== ========================================================================

What sleeps between two requests finds its caches full of other things, and Python is slow then: hence flushes too.  The
GIL is given up while compiled code runs, which is kept apart from others by the device's turn (turn.py).
"""

import ctypes
import functools
from collections.abc import Callable
from errno import EINTR
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbd_plugin import threads
from pmem_core import binding, datapath, jit, layout, upkeep
from pmem_core.device import Device
from pmem_core.turn import Turn

METH_FASTCALL = 0x80  # methodobject.h
PyBUF_SIMPLE, PyBUF_WRITABLE = 0, 1  # pybuffer.h
# What `_answer` works with, a word each: numbers, addresses of compiled code and records, and of Python's objects.
# FUA: the flag of requests that are flushed, where they are flushed here.
ROOM_KEY, ACCESS, FUNCTION, RUN, CORE, ORDINARY, RESUME, NONE, TURN, FLUSH, FLUSHING, MEDIA, FUA, WORDS = range(14)
# In the thread's room: the first words of a Py_buffer, and behind it a count of requests and the arguments of `resume`.
BUFFER, LENGTH, COUNT, TO_RESUME = 0, 2, threads.ROOM_WORDS - 5, threads.ROOM_WORDS - 4
EVERY = 512
FLUSH_STOPPED = 1 << 62  # and a stop code of upkeep.flush_at: a write was done, and its flush was not

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
_fdatasync = types.ExternalFunction("fdatasync", _int(_int))
_errno_at = types.ExternalFunction("__errno_location", _word())


@intrinsic
def _work(typing_context, function, run, core, numbers):
    """function(run, core, *numbers): an address, those of two records, and a tuple of numbers."""

    def generate(context, builder, signature, arguments):
        function, run, core, numbers = arguments
        records = [builder.inttoptr(record, ir.IntType(8).as_pointer()) for record in (run, core)]
        return jit.call_compiled(builder, function, records, cgutils.unpack_tuple(builder, numbers))

    return _word(_word, _word, _word, numbers), generate


@no_type_check  # here and below the types are numba's
@jit.hot
def _in_turn(words, function, numbers):
    _begin_turn(words[TURN])
    result = _work(words[function], words[RUN], words[CORE], numbers)
    _end_turn(words[TURN])
    return result


@no_type_check
@jit.hot
def _flush(words, counted):
    """Durability.flush, without the GIL; OK or a stop code of upkeep.flush_at."""
    result = _in_turn(words, FLUSH, (upkeep.FLUSH_BEGUN, counted))
    if result & layout.STOP_MASK:
        return result
    _begin_turn(words[FLUSHING])
    result = _in_turn(words, FLUSH, (upkeep.FLUSH_SYNC, result >> layout.STOP_SHIFT))
    if result == upkeep.SYNC:
        error = EINTR
        while error == EINTR:  # a signal came; as Python has it
            error = _word(jit.u32_at(_errno_at(), 1)[0]) if _fdatasync(_int(words[MEDIA])) else 0
        result = _in_turn(words, FLUSH, (upkeep.FLUSH_SYNCED, error))
    _end_turn(words[FLUSHING])
    return result


@no_type_check
@jit.hot
def _done(words, at, count, result):
    """Answer None; or where something stopped, what `resume` does: the last of `count` arguments is the result."""
    if result == 0:
        _keep(words[NONE])
        return words[NONE]
    room, stopped = jit.i64_at(at, threads.ROOM_WORDS), _of_number(result)
    if stopped == 0:
        return stopped  # with Python's own exception
    room[TO_RESUME + count - 1] = stopped
    answer = _call(words[RESUME], at + 8 * TO_RESUME, count, 0)
    _drop(stopped)
    return answer


@no_type_check
def _answer(itself, arguments, count):
    """Answer nbdkit's call: `arguments` are handle, buffer, offset and flags.  Objects are their addresses."""
    words = jit.i64_at(_as_number(itself), WORDS)
    given = jit.i64_at(arguments, 4)
    at = _room(types.uint32(words[ROOM_KEY]))
    if not at or count != 4:
        return _call(words[ORDINARY], arguments, count, 0)
    flags = _as_number(given[3])
    if flags & ~words[FUA]:
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
    result = _in_turn(words, FUNCTION, (room[BUFFER], room[LENGTH], number, 0))
    if flags and not result:
        stopped = _flush(words, 0)
        result = FLUSH_STOPPED | stopped if stopped else 0
    _take_gil(thread)
    _release_buffer(at)
    room[TO_RESUME], room[TO_RESUME + 1], room[TO_RESUME + 2] = buffer, offset, given[3]
    return _done(words, at, 4, result)


@no_type_check
def _answer_flush(itself, arguments, count):
    """The same of a flush: `arguments` are handle and flags, which it has none of."""
    words = jit.i64_at(_as_number(itself), WORDS)
    at = _room(types.uint32(words[ROOM_KEY]))
    if not at or count != 2:
        return _call(words[ORDINARY], arguments, count, 0)
    thread = _give_up_gil()
    result = _flush(words, 1)
    _take_gil(thread)
    return _done(words, at, 1, result)


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
def _compiled(function: Any) -> Any:
    return jit.c_function(function, _word(_word, _word, _word))


def warm_up() -> None:
    """Compile what is called here, or load it from the cache."""
    for function in (_answer, _answer_flush):
        _compiled(function)


def callback(
    function: Any, device: Device, ordinary: Callable[..., None], resume: Callable[..., None], fua: int = 0
) -> Callable[..., None]:
    """What nbdkit is to call for `ordinary`, to run `function`: datapath.read_at or write_at, compiled already.

    The device has a Turn.  resume: what goes on with buffer, offset, flags and result; fua: the flag of a write that is
    to be flushed.
    """
    access = PyBUF_WRITABLE if function is datapath.read_at else PyBUF_SIMPLE
    numbers = {ACCESS: access, FUNCTION: binding.request_address(function, device.handle), FUA: fua}
    return _built_in(_answer, numbers, device, ordinary, resume)


def flush_callback(device: Device, ordinary: Callable[..., None], resume: Callable[[int], None]) -> Callable[..., None]:
    """The same for a flush, of a device that keeps no descriptors back; resume: what goes on with a result."""
    return _built_in(_answer_flush, {}, device, ordinary, resume)


def _built_in(
    answer: Any, numbers: dict[int, int], device: Device, ordinary: Callable[..., None], resume: Callable[..., None]
) -> Callable[..., None]:
    if jit.PLAIN:
        return ordinary
    run, core = device.handle
    assert isinstance(device.turn, Turn)
    words = np.zeros(WORDS, np.int64)
    for at, number in {
        **numbers,
        ROOM_KEY: threads.KEY,
        RUN: run.ctypes.data,
        CORE: core.ctypes.data,
        ORDINARY: id(ordinary),
        RESUME: id(resume),
        NONE: id(None),
        TURN: device.turn.address,
        FLUSH: int(run["flush_at"][0]),
        FLUSHING: device.flushing.address,
        MEDIA: device.mapping.files["flushes"],
    }.items():
        words[at] = number
    method = _Method(ordinary.__name__.encode(), _compiled(answer).address, METH_FASTCALL)
    _kept.append((words, method, run, core, device.turn, device.flushing, ordinary, resume))
    return _new_function(ctypes.addressof(method), words.ctypes.data, None)
