# SPDX-License-Identifier: MIT
# long: each operation stands here twice, compiled and plain, and one look has to compare them
"""The `hot` decorator, code by its address, and the few machine operations numba does not offer.

Hot code keeps to these rules, each of which was measured:

* all integers are int64 (numba makes a float of uint64 + int64), records are indexed ``r["field"]``, never ``r.field``;
* arrays reach compiled code as addresses inside one record, because unboxing an array costs 160 ns a call;
* nothing here knows of files, logging or the journal.

With ``NUMBA_DISABLE_JIT=1`` every function below has a plain twin, so pdb and coverage see the code that runs.
"""

import ctypes
import functools
import hashlib
import platform
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config, sigutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from .codecache import Cache, code_library
from .layout import BROKE, PAGE_BYTES

PLAIN = bool(config.DISABLE_JIT)
FOUR = types.UniTuple(types.int64, 4)
COPIED_AT_ONCE = 2048
LINE = 64  # bytes of a cache line
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
STREAM_FENCE = "llvm.x86.sse.sfence" if _IS_X86 else ""  # where such stores do not keep the order of all others
PAUSE = "llvm.x86.sse2.pause" if _IS_X86 else ""


def _stable_mangling(record):
    digest = hashlib.sha256(record.name.encode()).digest()
    return type(record).__name__, (int.from_bytes(digest[:7], "little"),)


# numba names the functions of a record by a number that counts up in each process (numba 0.68,
# numba/core/types/npytypes.py), and these names go into the cache: two records compiled by two processes may share one,
# and a third process that loads both runs the code of one policy on the state of another.
types.Record.mangling_args = property(_stable_mangling)

_OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}
_compiled = []


def hot(function):
    """Compile `function` on first use and cache it; the GIL is kept.

    For a call from compiled code (`inner`) without a way in from Python, which would take a fifth of all compiling; so
    what both call is compiled twice.
    """
    face = numba.njit(**_OPTIONS)(function)
    if not PLAIN:
        _keep(face, Cache(function))
        face.inner = functools.cache(functools.partial(_inner, function))
        face.get_call_template = functools.partial(_for_any_value, face.inner)
        face.get_overload = lambda types_: face.inner().get_overload(types_)
    return face


def _inner(function):
    """`function` for compiled code alone; to call it from Python would be a segfault."""
    inner = numba.njit(no_cpython_wrapper=True, **_OPTIONS)(function)
    _keep(inner, Cache(function, "inner"))
    return inner


def _keep(dispatcher, cache):
    _compiled.append(dispatcher)
    dispatcher._cache = cache


def _for_any_value(inner, arguments, named):
    """Treat a constant argument as any value of its type: numba would compile a function once for each constant.

    Nothing is lost by it: LLVM inlines the call and propagates the constant.
    """
    named = {name: types.unliteral(argument) for name, argument in named.items()}
    return inner().get_call_template(tuple(types.unliteral(argument) for argument in arguments), named)


def c_function(function, signature):
    """`function` as a C function, numba.cfunc that is cached and loaded as hot functions are; it has an `address`."""
    made = CFunc(function, sigutils.normalize_signature(signature), locals={}, options={"error_model": "numpy"})
    made._cache = Cache(function)
    made.compile()
    return made


def compile_for(function, *arguments):
    """Compile `function` for a call from Python with the types of `arguments`, or load it, without calling it."""
    if not PLAIN:
        function.compile(_types_of(arguments))


def compile_inside(function, *arguments):
    """The same for a call from compiled code."""
    if not PLAIN:
        function.inner().compile(_types_of(arguments))


def _types_of(arguments):
    return tuple(numba.typeof(argument) for argument in arguments)


# Of the plain twins: what address_of and record_address have given out.
_at_addresses: dict[int, Any] = {}
_records: dict[int, Any] = {}


def address_of(function, *records, numbers=1, answer=numba.int64):
    """The address of function(*records, *numbers), for call_at, do_at and call_compiled.

    records: arrays of one record each, which reach the function as records; numbers: how many int64 follow; answer:
    what it returns, numba.void for do_at, FOUR for four_at.  What calls code by its address need not be compiled
    together with it.
    """
    if PLAIN:
        address = id(function)
    else:
        inner = function.inner()
        types_ = *[numba.typeof(record).dtype for record in records], *[numba.int64] * numbers
        if types_ not in inner.overloads:  # `freeze` forbids to compile even what was compiled before
            inner.compile(answer(*types_))
        made = inner.overloads[types_]
        # Where it was compiled into other code first, a constant that it answers has a type of its own, as wide.
        if (found := types.unliteral(made.signature.return_type)) != answer:
            raise TypeError(f"{function.__name__}: returns {found}: expected {answer}")
        address = code_library(made).get_pointer_to_function(made.fndesc.llvm_func_name)
    _at_addresses[address] = function
    return address


def record_address(array):
    """The address of the one record of `array`, for record_at."""
    address = array.ctypes.data
    if PLAIN:  # a view of the memory and not of `array`, or a map of a file would stay
        _records[address] = u8_at(address, array.itemsize).view(array.dtype)[0]
    return address


def freeze():
    """Compile nothing from now on: a call that would need it raises TypeError instead."""
    for dispatcher in _compiled:
        if dispatcher.signatures:
            dispatcher.disable_compile()


if PLAIN:
    int64 = int  # a call of numba.int64 takes 5 us

    @functools.lru_cache(maxsize=1 << 14)
    def _array_at(ctype, address, count):
        return np.ctypeslib.as_array((ctype * count).from_address(address))

    def u8_at(address, count):
        return _array_at(ctypes.c_uint8, int(address), int(count))

    def u32_at(address, count):
        return _array_at(ctypes.c_uint32, int(address), int(count))

    def i64_at(address, count):
        return _array_at(ctypes.c_int64, int(address), int(count))

    def copy_bytes(target, target_at, source, source_at, count):
        target[target_at : target_at + count] = source[source_at : source_at + count]

    stream_bytes = copy_bytes

    def order_streams():
        pass

    def clear_bytes(target, target_at, count):
        target[target_at : target_at + count] = 0

    def publish(array, index, value):
        array[index] = value

    def prefetch(address):
        pass

    def relax():
        pass

    def record_at(address):
        return _records[int(address)]

    def call_at(address, arguments):
        return _at_addresses[int(address)](*arguments)

    do_at = four_at = call_at

    _libc = ctypes.CDLL(None, use_errno=True)

    def fallocate(fd, mode, offset, count):
        """Call fallocate(2); 0, or the errno."""
        done = _libc.fallocate64(int(fd), int(mode), ctypes.c_int64(int(offset)), ctypes.c_int64(int(count)))
        return ctypes.get_errno() if done else 0

    def _transfer(name, told):
        call = getattr(_libc, name)

        def transfer(fd, array, at, count, offset):
            part = array[int(at) : int(at + count)]
            return call(int(fd), ctypes.c_void_p(part.ctypes.data), int(count), ctypes.c_int64(int(offset)))

        transfer.__doc__ = told
        return transfer

    def mincore(address, count, found):
        """Call mincore(2) into found, uint8[]; 0, or -1."""
        return _libc.mincore(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(count)), found.ctypes)

else:
    int64 = numba.int64

    def _view(element, told):
        # Not numba.carray: for each of its calls that is compiled in, loading looks for the module it stands in.
        kind = types.Array(element, 1, "C")

        @intrinsic
        def view(typing_context, address, count):
            def generate(context, builder, signature, arguments):
                from numba.np import arrayobj  # what is loaded does without

                made, item = arrayobj.make_array(kind)(context, builder), context.get_data_type(element)
                step = context.get_constant(types.intp, element.bitwidth >> 3)
                data = builder.inttoptr(arguments[0], item.as_pointer())
                arrayobj.populate_array(made, data, [arguments[1]], [step], step, meminfo=None)
                return made._getvalue()

            return kind(types.int64, types.int64), generate

        view.__doc__ = told
        return view

    u8_at = _view(types.uint8, "View `count` bytes at `address` as uint8[count].")
    u32_at = _view(types.uint32, "View `count` words at `address` as uint32[count].")
    i64_at = _view(types.int64, "View `count` words at `address` as int64[count].")

    def _element(context, builder, array_type, array, index):
        view = cgutils.create_struct_proxy(array_type)(context, builder, array)
        return builder.gep(view.data, [index])

    @intrinsic
    def _copy(typing_context, target, target_at, source, source_at, count):
        def generate(context, builder, signature, arguments):
            to = _element(context, builder, signature.args[0], arguments[0], arguments[1])
            of = _element(context, builder, signature.args[2], arguments[2], arguments[3])
            cgutils.raw_memcpy(builder, to, of, arguments[4], 1)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64, types.int64), generate

    @numba.njit
    def copy_bytes(target, target_at, source, source_at, count):
        """memcpy of `count` bytes between byte arrays (numba's slice assignment is a loop, three times slower)."""
        # More at once glibc leaves to the processor's own copying.  For bytes far away that is best, but an AMD takes
        # 20 to 30 times as long for it where the target lies up to 31 bytes behind the source, counted within a page.
        done = 0
        behind = (target.ctypes.data + target_at - source.ctypes.data - source_at) & (PAGE_BYTES - 1)
        if 0 < behind < 32:
            while count - done > COPIED_AT_ONCE:
                _copy(target, target_at + done, source, source_at + done, COPIED_AT_ONCE)
                done += COPIED_AT_ONCE
        _copy(target, target_at + done, source, source_at + done, count - done)

    @intrinsic
    def stream_bytes(typing_context, target, target_at, source, source_at, count):
        """Copy `count` bytes past the caches; count and the address in target are multiples of LINE.

        A kill leaves them as it does other stores, in the order of the program (`publish`): it is an interrupt, which
        sends them off.  What other threads see in which order `order_streams` decides.
        """

        def generate(context, builder, signature, arguments):
            line = ir.VectorType(ir.IntType(64), LINE >> 3)
            to = _element(context, builder, signature.args[0], arguments[0], arguments[1])
            of = _element(context, builder, signature.args[2], arguments[2], arguments[3])
            zero, step = ir.Constant(ir.IntType(64), 0), ir.Constant(ir.IntType(64), LINE)
            past = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            with cgutils.for_range_slice(builder, zero, arguments[4], step) as (at, _):
                value = builder.load(builder.bitcast(builder.gep(of, [at]), line.as_pointer()), align=1)
                stored = builder.store(value, builder.bitcast(builder.gep(to, [at]), line.as_pointer()), align=LINE)
                stored.set_metadata("nontemporal", past)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64, types.int64), generate

    @intrinsic
    def order_streams(typing_context):
        """What stream_bytes stored is seen by others before what is stored from here on."""

        def generate(context, builder, signature, arguments):
            if STREAM_FENCE:
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, STREAM_FENCE), [])
            else:
                builder.fence("release")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def clear_bytes(typing_context, target, target_at, count):
        """memset of `count` bytes to zero."""

        def generate(context, builder, signature, arguments):
            to = _element(context, builder, signature.args[0], arguments[0], arguments[1])
            cgutils.memset(builder, to, arguments[2], 0)
            return context.get_dummy_value()

        return types.void(target, types.int64, types.int64), generate

    @intrinsic
    def publish(typing_context, array, index, value):
        """Store one aligned int64: stores before it in the program stay before it, and those behind it behind it.

        So a killed process leaves its stores in this order.  Only the compiler might change that: a processor completes
        instructions in the order of the program, and a kill comes between two of them.
        """

        def generate(context, builder, signature, arguments):
            to = _element(context, builder, signature.args[0], arguments[0], arguments[1])
            builder.store_atomic(arguments[2], to, "release", 8)
            builder.fence("seq_cst", "singlethread")
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64), generate

    @intrinsic
    def prefetch(typing_context, address):
        """Ask the processor to bring the cache line at `address` near; harmless wherever that is."""

        def generate(context, builder, signature, arguments):
            i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
            call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            to_read, keep_near, of_data = (ir.Constant(i32, value) for value in (0, 3, 1))
            builder.call(call, [builder.inttoptr(arguments[0], pointer), to_read, keep_near, of_data])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    @intrinsic
    def relax(typing_context):
        """Tell the processor that this is a loop that waits: what shares a core with it goes on."""

        def generate(context, builder, signature, arguments):
            if PAUSE:
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, PAUSE), [])
            return context.get_dummy_value()

        return types.void(), generate

    def call_compiled(builder, function, records, numbers):
        """Call what `address_of` gave the address of, in numba's convention; its answer, or BROKE where it raised.

        The convention: where the answer goes, where an exception would, the arguments, a record by its address.
        """
        i64, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
        places = [i64.as_pointer(), pointer.as_pointer()]
        kind = ir.FunctionType(ir.IntType(32), [*places, *(value.type for value in (*records, *numbers))])
        answer = cgutils.alloca_once_value(builder, ir.Constant(i64, 0))
        problem = cgutils.alloca_once_value(builder, ir.Constant(pointer, None))
        target = builder.inttoptr(function, kind.as_pointer())
        status = builder.call(target, [answer, problem, *records, *numbers])
        well = builder.icmp_signed("==", status, ir.Constant(status.type, 0))
        return builder.select(well, builder.load(answer), ir.Constant(i64, BROKE))

    @intrinsic
    def record_at(typing_context, address):
        """The record at `address`, of whichever type: only for call_at, which hands its address on."""

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(_ANY_RECORD))

        return _ANY_RECORD(types.int64), generate

    _ANY_RECORD = numba.from_dtype(np.dtype([("word", "<i8")]))

    def _caller(answer, told):
        @intrinsic
        def call(typing_context, address, arguments):
            def generate(context, builder, signature, values):
                kind = context.call_conv.get_function_type(answer, arguments.types)
                function = builder.inttoptr(values[0], kind.as_pointer())
                given = cgutils.unpack_tuple(builder, values[1])
                status, result = context.call_conv.call_function(builder, function, answer, arguments.types, given)
                with cgutils.if_unlikely(builder, status.is_error):
                    context.call_conv.return_status_propagate(builder, status)
                return result

            return answer(types.int64, arguments), generate

        call.__doc__ = told
        return call

    call_at = _caller(types.int64, "Call what `address_of` gave the address of with a tuple of arguments; an int64.")
    do_at = _caller(types.none, "The same for a function that answers nothing.")
    four_at = _caller(FOUR, "The same for one that answers four int64.")

    @intrinsic
    def _fallocate(typing_context, fd, mode, offset, count):
        def generate(context, builder, signature, arguments):
            i32, i64 = ir.IntType(32), ir.IntType(64)
            call = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(i32, [i32, i32, i64, i64]), "fallocate64"
            )
            error = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(i32.as_pointer(), []), "__errno_location"
            )
            small = [builder.trunc(argument, i32) for argument in arguments[:2]]
            done = builder.call(call, [*small, *arguments[2:]])
            number = builder.load(builder.call(error, []))
            zero = ir.Constant(i32, 0)
            return builder.sext(builder.select(builder.icmp_signed("==", done, zero), zero, number), i64)

        return types.int64(types.int64, types.int64, types.int64, types.int64), generate

    def _transfer(name, told):
        @intrinsic
        def transfer(typing_context, fd, array, at, count, offset):
            def generate(context, builder, signature, arguments):
                i32, i64 = ir.IntType(32), ir.IntType(64)
                kind = ir.FunctionType(i64, [i32, ir.IntType(8).as_pointer(), i64, i64])
                call = cgutils.get_or_insert_function(builder.module, kind, name)
                where = _element(context, builder, signature.args[1], arguments[1], arguments[2])
                return builder.call(call, [builder.trunc(arguments[0], i32), where, arguments[3], arguments[4]])

            return types.int64(types.int64, array, types.int64, types.int64, types.int64), generate

        transfer.__doc__ = told
        return transfer

    @intrinsic
    def mincore(typing_context, address, count, found):
        """Call mincore(2) into found, uint8[]; 0, or -1."""

        def generate(context, builder, signature, arguments):
            i64, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.IntType(32), [i64, i64, pointer])
            call = cgutils.get_or_insert_function(builder.module, kind, "mincore")
            where = _element(context, builder, signature.args[2], arguments[2], ir.Constant(i64, 0))
            return builder.sext(builder.call(call, [*arguments[:2], where]), i64)

        return types.int64(types.int64, types.int64, found), generate

    @numba.njit
    def fallocate(fd, mode, offset, count):
        """Call fallocate(2); 0, or the errno."""
        return _fallocate(fd, mode, offset, count)


pread = _transfer("pread64", "Call pread(2) into array[at:]; the bytes read, or -1.")
pwrite = _transfer("pwrite64", "Call pwrite(2) of array[at:]; the bytes written, or -1.")
