# SPDX-License-Identifier: MIT
"""Leveling policies in files outside of the package: which there are, loaded so that they are as those inside.

The environment names the files, because every process that opens an image needs them, nbdkit's too, and because they
take part in the name of the cache of compiled code, which is chosen before anything is compiled.  To load a file is to
run it.
"""

import importlib.util
import inspect
import json
import keyword
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import BadPolicy, UsageError

VARIABLE = "PMEM_NBD_POLICY_FILES"
NAME_BYTES_MAX = 32  # in the info block
STATE_BYTES_MAX = 2048  # half of the state file's zone for it
PARAMETERS_BYTES_MAX = 960  # as JSON, in the info block
COLD = {
    "plan": ("medium_frames", "parameters", "seed"),
    "spare_frames": ("state", "table"),
    "table_is_sane": ("state", "table"),
}
OPTIONAL = {
    "suited": ("medium_frames", "given"),
    "finish": ("state", "table"),
    "spare_count": ("state", "table"),
    "stall_nanoseconds": ("state", "table"),
}


_run_here: list[Path] = []  # files that this process has run


def paths() -> list[Path]:
    """The files that the environment names, absolute, each once."""
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return list(dict.fromkeys(Path(os.path.abspath(name)) for name in named))  # noqa: PTH100 (no `..` is kept)


def joined(files: Iterable[Path]) -> str:
    """What the environment has to say to name `files`.  UsageError where it cannot."""
    names = [os.path.abspath(file) for file in files]  # noqa: PTH100
    for name in names:
        if os.pathsep in name:
            raise UsageError(name, f"has a '{os.pathsep}' in its path", "a path without")
    return os.pathsep.join(dict.fromkeys(names))


def shown(path: Path) -> str:
    """How messages name the file: from the working directory where it is below that."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def load(package: str, taken: Iterable[str]) -> dict[str, ModuleType]:
    """Run every file and return the modules by name, as members of `package`, whose own policies are `taken`.

    BadPolicy where there is no such file, where it is no Python or fails, or where its name cannot be a policy's.
    """
    found: dict[str, ModuleType] = {}
    for path in paths():
        name = path.stem
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or path.suffix != ".py":
            raise BadPolicy(shown(path), "its name cannot be that of a policy", "letters, digits and _, then .py")
        if len(name.encode()) > NAME_BYTES_MAX:
            raise BadPolicy(shown(path), "its name is too long", f"at most {NAME_BYTES_MAX} bytes before .py")
        if name in taken:
            raise BadPolicy(shown(path), f"{name} is a policy of pmem-nbd's own", "another name")
        if name in found:
            raise BadPolicy(shown(path), f"{shown(Path(str(found[name].__file__)))} has its name", "another name")
        found[name] = _run(path, f"{package}.{name}")
    return found


def _run(path: Path, name: str) -> ModuleType:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadPolicy(shown(path), "is a pipe or the like", "a Python file with a leveling policy")
        source = path.read_bytes()
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        raise BadPolicy(shown(path), what, "a Python file with a leveling policy") from None
    # Not by the loader: it would keep bytecode beside the file, and take it for what was edited in the same second.
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _run_here.append(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        del sys.modules[name]
        raise BadPolicy(shown(path), f"is not Python: line {error.lineno}", error.msg) from None
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadPolicy(shown(path), "fails when it is loaded", told(error, path)) from None
    return module


def blamed(error: BaseException) -> BadPolicy | None:
    """What to tell a user instead of an error that came out of one of the files, or that numba made of it."""
    passed = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    by_numba = type(error).__module__.startswith("numba.")
    compiled = _compiled(error)
    for path in _run_here:
        if by_numba and (str(path) in passed or f'{path.name}", line' in str(error)):
            what = "numba cannot compile it"
        elif str(path) == compiled:
            what = f"numba cannot compile it: {told(error, None)}"
        elif str(path) in passed:
            what = told(error, path)
        else:
            continue
        return BadPolicy(shown(path), what, f"'pmem-nbd policies --test {shown(path)}' tries it out")
    return None


def _compiled(error: BaseException) -> str:
    """The file of the function that numba was compiling when it failed; its own code is all that a traceback shows."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("numba."):
            state = getattr(frame.f_locals.get("self"), "state", None)
            found = getattr(getattr(state, "func_id", None), "filename", found)
    return found


def told(error: BaseException, path: Path | None) -> str:
    """An exception in one line, with the line of `path` that it came from."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if path and frame.filename == str(path)
    ]
    words = f"{type(error).__name__}: {error}".strip().removesuffix(":").splitlines()
    return (words or ["?"])[0] + (f" (line {lines[-1]})" if lines else "")


def require(module: Any, subject: str, hot: Mapping[str, tuple[str, ...]], *, plain: bool) -> None:
    """BadPolicy unless `module` has every part of a policy.

    hot: the parameters of the compiled functions, by name; plain: nothing is compiled in this process.
    """
    _require_state(module, subject)
    _require_parameters(module, subject)
    if getattr(module, "MOVES", None) not in (True, False):
        raise BadPolicy(subject, "MOVES is missing", "True, or False where no frame ever moves")
    if not isinstance(getattr(module, "SOURCE", None), str) or not module.SOURCE:
        raise BadPolicy(subject, "SOURCE is missing", "a text: who describes the policy, where and when")
    for name, wanted in {**COLD, **hot, **OPTIONAL}.items():
        function = getattr(module, name, None)
        if function is None and name in OPTIONAL:
            continue
        if not callable(function):
            raise BadPolicy(subject, f"has no function {name}", f"{name}({', '.join(wanted)})")
        if name in hot and not plain and not hasattr(function, "py_func"):
            raise BadPolicy(subject, f"{name}: will not be compiled", "@hot above it, from pmem_core.jit")
        given = tuple(inspect.signature(getattr(function, "py_func", function)).parameters)
        if given != wanted:
            raise BadPolicy(subject, f"{name}({', '.join(given)}): takes other parameters", f"({', '.join(wanted)})")


def _require_state(module: Any, subject: str) -> None:
    import numpy as np

    state = getattr(module, "STATE", None)
    if not isinstance(state, np.dtype) or not state.names:
        raise BadPolicy(subject, "STATE is missing", "a numpy dtype with fields, each int64")
    for field in state.names:
        if state[field].base != np.int64:
            raise BadPolicy(subject, f"STATE: field {field} is {state[field].base}", "int64")
    if state.itemsize > STATE_BYTES_MAX:
        raise BadPolicy(subject, f"STATE takes {state.itemsize} bytes", f"at most {STATE_BYTES_MAX}")


def _require_parameters(module: Any, subject: str) -> None:
    parameters = getattr(module, "PARAMETERS", None)
    if not isinstance(parameters, dict):
        raise BadPolicy(subject, "PARAMETERS is missing", "a dict, name: (default, least, most, what it is)")
    for name, row in parameters.items():
        well_formed = isinstance(name, str) and name.isidentifier() and isinstance(row, tuple) and len(row) == 4
        if not well_formed or not all(type(number) is int for number in row[:3]) or not isinstance(row[3], str):
            raise BadPolicy(subject, f"PARAMETERS: {name}: {row}", "(default, least, most, what it is)")
        if not row[1] <= row[0] <= row[2]:
            raise BadPolicy(subject, f"PARAMETERS: {name}: {row[:3]}", "least <= default <= most")
    largest = {name: max(row[1:3], key=lambda number: len(str(number))) for name, row in parameters.items()}
    if len(json.dumps(largest)) > PARAMETERS_BYTES_MAX:
        raise BadPolicy(subject, "PARAMETERS are too many for the info block", f"{PARAMETERS_BYTES_MAX} bytes of JSON")


def require_other_states(modules: Mapping[str, Any]) -> None:
    """BadPolicy where a policy of a file has the STATE of another: its type picks the code.

    modules: all policies by name, those of files last.
    """
    outside = {str(path) for path in paths()}
    seen: dict[Any, str] = {}
    for name, module in modules.items():
        if module.STATE in seen and module.__file__ in outside:
            what = f"STATE is the same as that of {seen[module.STATE]}"
            raise BadPolicy(shown(Path(module.__file__)), what, "a field with a name of the policy's own")
        seen[module.STATE] = name
