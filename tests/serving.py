# SPDX-License-Identifier: MIT
"""Stand-ins for tests of servers: a tiny nbdkit plugin that starts quickly, a runtime directory of a test's own."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pmem_core import runtime, server

# A bytearray that takes image=, and misbehaves where told to.
TINY_PLUGIN = """
import os, sys, time
import nbdkit

API_VERSION = 2
settings = {}
data = bytearray()


def config(name, value):
    settings[name] = value


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL if "parallel" in settings else nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def get_ready():
    global data
    print("pmem-nbd: tiny: getting ready ...", file=sys.stderr)
    fail = settings.get("fail")
    if fail == "busy":
        from pmem_core.errors import ImageBusy
        raise ImageBusy("tiny", "is held by process 1", "stop it")
    if fail == "denied":
        raise PermissionError(13, "Permission denied", "/x: y/media")
    if fail == "words":
        print("pmem-nbd: tiny: is no image: an image", file=sys.stderr)
        os._exit(1)
    if fail == "silent":
        os._exit(3)
    if fail == "crash":
        os.abort()
    time.sleep(float(settings.get("sleep", 0)))
    if "recovered" in settings:
        print("pmem-nbd: tiny: was ill, is well", file=sys.stderr)
    data = bytearray(int(settings.get("size", 1 << 20)))


def after_fork():
    if settings.get("fail") == "late":
        raise OSError("too late")
    if "media" in settings:
        settings["media"] = __builtins__.open(settings["media"], "w")


def open(readonly):
    print("tiny: opened", file=sys.stderr)
    return 1


def get_size(handle):
    return len(data)


def can_fua(handle):
    return nbdkit.FUA_NATIVE


def pread(handle, buffer, offset, flags):
    if settings.get("fail") == "read":
        raise OSError("damaged")
    buffer[:] = data[offset : offset + len(buffer)]


def pwrite(handle, buffer, offset, flags):
    data[offset : offset + len(buffer)] = buffer


def flush(handle, flags):
    pass


def trim(handle, count, offset, flags):
    data[offset : offset + count] = bytes(count)


def cleanup():
    if settings.get("fail") == "passing":
        print("pmem-nbd: housekeeping: the history works again", file=sys.stderr, flush=True)
    if "stopped" in settings:
        time.sleep(float(settings.get("stop_sleep", 0)))
        with __builtins__.open(settings["stopped"], "w") as file:
            file.write("clean")
    if settings.get("fail") in ("notice", "close"):
        print("pmem-nbd: tiny: there is room again: nothing is missing", file=sys.stderr, flush=True)
    if settings.get("fail") == "assertion":
        print("nbdkit: file:1: f: Assertion `x' failed.", file=sys.stderr, flush=True)
        os.abort()
    if settings.get("fail") == "close":
        print("pmem-nbd: error: tiny: an earlier sync failed: stop the server", file=sys.stderr, flush=True)
        os._exit(1)
"""


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """A runtime directory for one test: every server in it is stopped at the end, and what is left fails the test."""
    # Short, because a socket's path may have 107 bytes and no more.
    folder = Path(tempfile.mkdtemp(prefix="pn-"))
    before = os.environ.get("PMEM_NBD_RUNTIME_DIR")
    os.environ["PMEM_NBD_RUNTIME_DIR"] = str(folder)
    try:
        yield folder
        for running in server.servers():
            server.stop(running)
        left = sorted(path.name for path in folder.iterdir())
        assert not left, f"left behind: {left}"
    finally:
        with contextlib.suppress(Exception):
            for running in server.servers():
                server.stop(running, timeout_s=10)
        if before is None:
            del os.environ["PMEM_NBD_RUNTIME_DIR"]
        else:
            os.environ["PMEM_NBD_RUNTIME_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def tiny(folder: Path) -> Path:
    """Write the tiny plugin into ``folder`` and return its path."""
    path = folder / "tiny.py"
    path.write_text("# SPDX-License-Identifier: MIT" + TINY_PLUGIN)
    return path


def holds(running: server.Server) -> bool:
    """Whether the record of a server names a process that lives."""
    return runtime.alive(running.pid, running.birth)
