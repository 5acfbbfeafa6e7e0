# SPDX-License-Identifier: MIT
"""Families of policies: one module is one policy, found by looking into the family's folder.

A device calls its policies by their addresses (policies.py).  Where a policy is compiled in, the type of its state
selects the code: every policy declares ``STATE``, the dtype of the record it persists.  A family's generic function,
say ``translate(state, ...)``, is a stub; numba asks `_resolve` which function to compile for the type of `state`, and
the answer is the function of the same name in the module whose ``STATE`` it is.  Two policies must therefore not have
equal ``STATE`` dtypes (tests hold this).
"""

import functools
import importlib
import inspect
import pkgutil
from pathlib import Path

import numba
from numba.extending import overload

from . import policyfile
from .jit import PLAIN


class Family:
    """The policies in one package.

    package: its dotted name; path: its ``__path__``.  Modules whose names start with ``_`` are not policies.
    takes_files: policies may also come from files outside of the package (policyfile.py).
    """

    def __init__(self, package, path, takes_files=False):
        self.package = package
        self.path = path
        self.takes_files = takes_files
        self.stubs = {}

    @functools.cached_property
    def modules(self):
        """Policies by name, in alphabetical order, then those of files.  BadPolicy for a file that is none."""
        names = sorted(info.name for info in pkgutil.iter_modules(self.path) if not info.name.startswith("_"))
        inside = {name: importlib.import_module(f"{self.package}.{name}") for name in names}
        if not self.takes_files:
            return inside
        outside = policyfile.load(self.package, inside)
        for module in outside.values():
            self.require(module, policyfile.shown(Path(module.__file__)))
        policyfile.require_other_states(inside | outside)
        return inside | outside

    def require(self, module, subject):
        """BadPolicy, which begins with `subject`, unless `module` has every part of a leveling policy."""
        hot = {name: tuple(inspect.signature(stub).parameters) for name, stub in self.stubs.items()}
        policyfile.require(module, subject, hot, plain=PLAIN)

    def of_dtype(self, dtype):
        """The module whose ``STATE`` is `dtype`; TypeError where there is none."""
        for module in self.modules.values():
            if module.STATE == dtype:
                return module
        raise TypeError(f"{self.package}: no policy has the state {dtype}")

    def _of_type(self, numba_type):
        for module in self.modules.values():
            if numba.from_dtype(module.STATE) == numba_type:
                return module
        return None

    def generic(self, stub):
        """Decorate the stub of a function every policy has; its first argument is the policy's state."""
        name = stub.__name__
        self.stubs[name] = stub
        if PLAIN:

            @functools.wraps(stub)
            def dispatch(state, *arguments):
                return getattr(self.of_dtype(state.dtype), name)(state, *arguments)

            return dispatch

        def _resolve(state, *arguments):
            module = self._of_type(state)
            return None if module is None else getattr(module, name).py_func

        overload(stub, strict=False, jit_options={"no_cpython_wrapper": True})(_resolve)
        return stub
