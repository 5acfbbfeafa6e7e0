# SPDX-License-Identifier: MIT
"""Serve an image: ``nbdkit python nbd_plugin/pmem.py image=NAME.pmem``.

nbdkit calls, in this order: config (each key=value), config_complete, get_ready (still on the terminal: everything is
compiled here), after_fork (the image is opened: neither LMDB nor threads survive a fork), open (each connection).

Requests come on a thread for each connection, or several (THREAD_MODEL_PARALLEL; threads.py, pace.py).  One at a time
has its turn in the compiled code (turn.py), without the GIL, and disk waits are outside of it.  launch.THREADS says how
many; nbdkit itself would make 16 a connection: before 1.34 it wants -t 1, for its clients' sake.
"""

import contextlib
import gc
import os
import sys
import time
from pathlib import Path

import nbdkit

# Until the device is open.  What is made until then stays, and to look through it for garbage is a twelfth of a start.
gc.disable()

# nbdkit's interpreter knows neither the checkout that this file may lie in nor its .venv.
_ROOT = Path(__file__).resolve().parent.parent
_PYTHON = "python{}.{}".format(*sys.version_info)
sys.path += [str(_ROOT), *map(str, _ROOT.glob(f".venv/lib/{_PYTHON}/site-packages"))]
try:
    from nbd_plugin import compiled, logged, pace, recorded, sockets, threads
    from nbd_plugin.faults import fail, may_trim, or_fail, reported
    from pmem_core import (
        __version__,
        codecache,
        datapath,
        device,
        host,
        housekeeping,
        image,
        jit,
        layout,
        leveling,
        placement,
        turn,
        warmup,
    )
    from pmem_core.errors import NOT_CLOSED, PmemError, UsageError
except ImportError as error:
    _missing = error.name or str(error).strip().partition("\n")[0]
    _venv = f" or in {_ROOT / '.venv'} (scripts/setup makes it)" if (_ROOT / "scripts" / "setup").exists() else ""
    print(
        f"pmem-nbd: nbdkit's {_PYTHON}: cannot import {_missing}: expected pmem-nbd and what it needs, installed for "
        f"{_PYTHON}, on PYTHONPATH{_venv}",
        file=sys.stderr,
        flush=True,
    )
    # Not sys.exit(): nbdkit would print a traceback.
    os._exit(1)

API_VERSION = 2

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_options = {"image": "", "readonly": "false", "halt_poll": "true", "logwrites": "", "record": ""}
_EXPECTED = "image=PATH, readonly=true|false, halt_poll=true|false, logwrites=FILE, record=FILE"
_served: device.Device
_housekeeper: housekeeping.Housekeeper | None = None


# ---- start ----


@or_fail
def dump_plugin():
    print(f"pmem_version={__version__}")
    print(f"pmem_info_version={layout.VERSION[0]}.{layout.VERSION[1]}.{layout.EXTENSION_VERSION}")
    print(f"pmem_descriptor_formats={','.join(map(str, layout.DESCRIPTOR_FORMATS))}")
    print(f"pmem_placements={','.join(placement.family.modules)}")
    print(f"pmem_logwrites_version={logged.VERSION}")
    print(f"pmem_record_version={recorded.VERSION}")
    print(f"pmem_levelings={','.join(leveling.family.modules)}")


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


def config(key, value):
    if key not in _options:
        fail(UsageError(f"{key}={value}", "no such parameter", _EXPECTED))
    if key in ("readonly", "halt_poll") and value.lower() not in _YES + _NO:
        fail(UsageError(f"{key}={value}", "neither yes nor no", "true or false"))
    _options[key] = value


def config_complete():
    if not _options["image"]:
        fail(UsageError("image", "missing", "image=NAME.pmem"))
    for name, verb in (("logwrites", "log"), ("record", "record")):
        if _options[name] and _is_on("readonly"):
            fail(UsageError(name, f"has nothing to {verb}", "readonly=false"))


@or_fail
def get_ready():
    path = Path(_options["image"]).absolute()
    _options["image"] = str(path)
    for name, what in (("logwrites", "a log"), ("record", "a recording")):
        if _options[name]:
            _options[name] = str(Path(_options[name]).absolute())
            host.require_new(Path(_options[name]), what)
    plan = image.load_geometry(path, read_only=_is_on("readonly"))
    host.Lock(path, read_only=_is_on("readonly")).release()
    started = time.monotonic()
    if not codecache.is_warm("datapath"):
        gc.enable()  # compiling makes much that is garbage
        print("pmem-nbd: compiling for the first start, about 20 seconds ...", file=sys.stderr, flush=True)
    warmup.warm_up(plan)
    if not jit.PLAIN:
        compiled.warm_up()
    jit.freeze()
    codecache.prune()
    nbdkit.debug(f"compiled code is ready after {time.monotonic() - started:.2f} s")


def _is_on(name):
    return _options[name].lower() in _YES


def after_fork():
    global _served, _housekeeper
    try:
        path = Path(_options["image"])
        if _options["record"]:
            _served = recorded.open_device(path, _options["record"])
        else:
            _served = device.Device(path, read_only=_is_on("readonly"))
        if _served.recovery:
            print(
                f"pmem-nbd: {_served.path}: recovered: the last session did not close it ({_served.recovery}): "
                f"{_served.recovered}",
                file=sys.stderr,
            )
        _served.turn = turn.Turn()
        # nbdkit looks callbacks up by name at every request.
        callbacks = globals()
        callbacks["pread"] = compiled.callback(datapath.read_at, _served, pread, _resume_read)
        if not _options["record"]:
            # A flush that has descriptors to write first, or nothing to do, is Python's.
            keeps = _served.plan.pending_bytes or _served.read_only
            fua = 0 if keeps else nbdkit.FLAG_FUA
            callbacks["pwrite"] = compiled.callback(datapath.write_at, _served, pwrite, _resume_write, fua)
            if not keeps:
                callbacks["flush"] = compiled.flush_callback(_served, flush, reported(_served.finish_flush))
        nbdkit.debug(", ".join(f"{name}: {type(callbacks[name]).__name__}" for name in ("pread", "pwrite", "flush")))
        if _options["logwrites"]:
            callbacks.update(logged.begin(_served, _options["logwrites"], open))
        _housekeeper = housekeeping.Housekeeper(_served)
        if _is_on("halt_poll"):
            pace.begin(_served, nbdkit.debug)
        gc.enable()
    except PmemError as error:
        if opened := globals().pop("_served", None):
            with contextlib.suppress(PmemError):
                opened.close()
        fail(error)


def cleanup():
    if "_served" not in globals():
        return  # it never came to opening the image
    pace.end()
    try:
        if _housekeeper:
            _housekeeper.stop()
        try:
            _served.close()
        finally:
            logged.end()
    except PmemError as error:
        print(f"{NOT_CLOSED}{error}", file=sys.stderr, flush=True)
        os._exit(1)  # nbdkit has no other way to say that what it ended with failed
    # As for commands: nothing that imports left is looked for when Python ends.
    gc.freeze()


# ---- a connection ----


def open(readonly):
    threads.give_back()
    sockets.widen()
    pace.follow_connections()
    return _served.handle


def get_size(h):
    return _served.plan.device_bytes


def block_size(h):
    return (1, layout.PAGE_BYTES, 32 << 20)


def can_write(h):
    return not _served.read_only


def can_flush(h):
    return True


def can_trim(h):
    return not _served.read_only


def can_zero(h):
    return not _served.read_only


def can_fast_zero(h):
    return True  # zero() refuses what is not: nbdkit would abort at a client that asks without having been offered it


def can_fua(h):
    return nbdkit.FUA_NATIVE


def can_multi_conn(h):
    return True


def can_cache(h):
    return nbdkit.CACHE_NATIVE


def can_extents(h):
    return True


def is_rotational(h):
    return False


# ---- requests ----


# Mostly compiled code answers in place of these two and of `flush` (compiled.py).


@reported
def pread(h, buf, offset, flags):
    pace.look(len(buf))
    _served.read_into(buf, offset)


@reported
def pwrite(h, buf, offset, flags):
    pace.look(len(buf))
    _served.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@reported
def _resume_read(buf, offset, flags, result):
    _served.transfer(datapath.read, buf, offset, result)


@reported
def _resume_write(buf, offset, flags, result):
    if result & compiled.FLUSH_STOPPED:
        return _served.finish_flush(result & ~compiled.FLUSH_STOPPED)
    _served.transfer(datapath.write, buf, offset, result)
    if flags & nbdkit.FLAG_FUA:
        _served.flush(counted=False)


@reported
def flush(h, flags):
    _served.flush()


@reported
def trim(h, count, offset, flags):
    _served.trim(count, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@reported
def zero(h, count, offset, flags):
    trims = may_trim(flags, _served.plan.has_descriptors)
    _served.zero(count, offset, may_trim=trims, fua=bool(flags & nbdkit.FLAG_FUA))


@reported
def cache(h, count, offset, flags):
    _served.prefetch(count, offset)


@reported
def extents(h, count, offset, flags):
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    found = _served.extents(count, offset, one=bool(flags & nbdkit.FLAG_REQ_ONE))
    return [(at, size, 0 if data else hole) for at, size, data in found]
