# SPDX-License-Identifier: MIT
"""Where compiled code is kept between runs, and how it is read and written there.

numba keeps it: an index and files of code a function, in a folder that is named by the sources.  What it does for each
function beside reading a file is a third of a server's start, so `Cache` does that only where it is needed:

===================== =================================================================================
what numba does       when it is done here
===================== =================================================================================
looks for the folder  when the function itself is loaded or compiled; most are only compiled into others
reads the bitcode     when a function is compiled that has the loaded one compiled into it
compiles its runtime  before it compiles anything; loaded code needs the addresses of the runtime only
===================== =================================================================================
"""

import contextlib
import fcntl
import functools
import hashlib
import operator
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llvmlite import binding as llvm
from numba.core import caching, compiler
from numba.core import config as numba_config
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]

from . import policyfile

config: Any = numba_config  # its names are made when it is imported
code_library = operator.attrgetter("library")  # of what numba made of a function: where the machine's code lies

INLINING = ("offline", "roads", "wearscan")


def choose_folder(outside: Iterable[Path], boundscheck: str) -> Path:
    """Name the cache by what was compiled: numba sees no edits in imported files, nor NUMBA_BOUNDSCHECK.

    outside: files with policies.
    """
    here = Path(__file__).parent
    names = "jit layout plugins policies roads crc32c media reservations frametable descriptor onepage together"
    names += " bringup offline datapath upkeep wearscan checkscan groupscan tracescan reshape maploops"
    sources = [here / f"{name}.py" for name in names.split()]
    for folder in ("placement", "leveling", "pagemaps"):
        sources += sorted((here / folder).glob("*.py"))
    digest = hashlib.sha256(boundscheck.encode())
    for source in (*sources, *outside):
        with contextlib.suppress(OSError):  # whoever loads it says so
            if source.is_file():  # to read a pipe would wait for who writes to it
                digest.update(source.read_bytes())
    return _root() / digest.hexdigest()[:16]


@functools.cache
def _root() -> Path:
    """The user's cache folder, or a private one for users without a home.  Cached code is run, so it must be ours."""
    for folder, look in _candidates():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = look(folder)
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.mkdtemp(prefix="pmem-nbd-cache-"))


def _candidates() -> Iterator[tuple[Path, Callable[[Path], os.stat_result]]]:
    """Folders that may do, each with what says whose it is."""
    with contextlib.suppress(RuntimeError):  # there is no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "pmem-nbd", Path.stat
    with contextlib.suppress(OSError):  # there is no room for a temporary file
        yield Path(tempfile.gettempdir()) / f"pmem-nbd-cache-{os.getuid()}", Path.lstat  # a link is somebody else's


_BOUNDSCHECK = os.environ.get("NUMBA_BOUNDSCHECK", "")
FOLDER = choose_folder((), _BOUNDSCHECK)
# Of what has policies from files compiled in, and of those: to edit one leaves the rest compiled.
FILES_FOLDER = choose_folder(policyfile.paths(), _BOUNDSCHECK)


def folder_of(function: Any) -> Path:
    """Where `function` is kept when it is compiled."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    source = Path(function.__code__.co_filename)
    inlines = source.stem in INLINING and source.parent == Path(__file__).parent
    return FILES_FOLDER if inlines or source in policyfile.paths() else FOLDER


def is_warm(module: str) -> bool:
    """True where an earlier run left compiled code of `module` for these very sources, or none is wanted."""
    return bool(config.DISABLE_JIT) or any(folder_of(is_warm).glob(f"**/{module}.*.nbi"))


def prune(keep_days: float = 30.0) -> None:
    """Remove compiled code that no run has used for `keep_days`; the folders in use are touched."""
    # A cache that cannot be kept costs seconds, not correctness.
    with contextlib.suppress(OSError):
        for folder in (FOLDER, FILES_FOLDER):
            folder.mkdir(exist_ok=True)
            os.utime(folder)
        for other in FOLDER.parent.iterdir():
            if other.stat().st_mtime < time.time() - keep_days * 86400:
                shutil.rmtree(other, ignore_errors=True)


@functools.cache
def _nothing() -> bytes:
    """An empty module's bitcode."""
    return bytes(llvm.parse_assembly("").as_bitcode())


@functools.cache
def _name_runtime() -> None:
    """Let loaded code find what it calls in numba's runtime, as rtsys.initialize does before it compiles the rest."""
    for name, address in _nrt_python.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class Cache:
    """The cache of one function, in place of numba's FunctionCache (numba/core/caching.py).

    kind: of what `function` is compiled to, which may be several things for the same types.
    """

    def __init__(self, function: Any, kind: str = "") -> None:
        self._function, self._kind = function, kind

    @functools.cached_property
    def _numba(self) -> Any:
        config.CACHE_DIR = str(folder_of(self._function))
        made: Any = caching.FunctionCache(self._function)
        key = made._index_key
        made._index_key = lambda signature, codegen: (key(signature, codegen), self._kind)
        return made

    @property
    def cache_path(self) -> str:
        """Where the function is kept; numba shows it."""
        return str(self._numba.cache_path)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled code for `signature`, a CompileResult, or None where there is none."""
        try:
            kept = self._numba._cache_file.load(self._numba._index_key(signature, target.codegen()))
        except Exception:  # whatever pickle comes upon: a power cut leaves files that are empty, or zeros
            kept = None
            with contextlib.suppress(OSError):
                self._numba._cache_file.flush()
        if kept is None:
            return None
        _name_runtime()
        (name, kind, (code, bitcode)), described, *rest = kept
        engine = target.codegen()._engine
        # To ask for the address of one that is not there would end the process.
        names = described.llvm_func_name, described.llvm_cpython_wrapper_name, described.llvm_cfunc_wrapper_name
        engine._defined_symbols |= {name for name in names if name.encode() + b"\0" in code}
        made = compiler.CompileResult._rebuild(target, (name, kind, (code, _nothing())), described, *rest)

        @functools.cache
        def linked() -> Any:
            module = llvm.parse_bitcode(bitcode)
            engine._load_defined_symbols(module)
            return module

        code_library(made)._get_module_for_linking = linked
        return made

    def save_overload(self, signature: Any, made: Any) -> None:
        """Save compiled code, one process at a time.

        numba writes the index, then the code: of two processes with different signatures, one's index would be left
        with the other's code.
        """
        # What cannot be kept, for the disk is full, is compiled again by the next process.
        with contextlib.ExitStack() as undo, contextlib.suppress(OSError):
            with contextlib.suppress(OSError):
                Path(self.cache_path).mkdir(parents=True, exist_ok=True)
                folder = os.open(self.cache_path, os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
            self._numba.save_overload(signature, made)
