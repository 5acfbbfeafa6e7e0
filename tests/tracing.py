# SPDX-License-Identifier: MIT
"""Every store into the mapped files of an image, one by one and in order, while plain Python code of pmem_core runs.

A trace function is called before each line of pmem_core; whatever of media, wear or state differs from the line before
is a `Step`, and so is each commit of the journal.  So it does not matter by which function or policy something was
stored, and nothing has to be wrapped.  Compiled code has no lines: NUMBA_DISABLE_JIT=1.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np

import pmem_core
from pmem_core import crc32c, jit, journal, plugins, policies

MAPPED = ("media", "wear", "state")
JOURNAL = "journal/data.mdb"
CALLS = 5  # so many tell two stores apart: a copy for a move from one for a write, and by which policy
_SOURCES = str(Path(pmem_core.__file__).parent)
_STORE_NOTHING = (crc32c.__file__, plugins.__file__, policies.__file__)  # their lines need no look

Files = dict[str, np.ndarray]  # name -> uint8[]


def read_files(folder: Path) -> Files:
    """The files that a kill leaves."""
    return {name: np.fromfile(folder / name, np.uint8) for name in (*MAPPED, JOURNAL)}


def write_files(folder: Path, files: Files) -> None:
    """An image of just these files; those that are there are written over."""
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        data.tofile(folder / name)
    (folder / "journal" / "lock.mdb").unlink(missing_ok=True)


Calls = tuple[tuple[str, int, str], ...]  # innermost first: file, line, function


def _calls(frame: FrameType | None) -> Calls:
    """The lines of pmem_core that led to this one."""
    found = []
    while frame and frame.f_code.co_filename.startswith(_SOURCES):
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(found)


@dataclasses.dataclass
class Step:
    """What one line stored: words of 8 bytes in the order of their addresses; of the journal all that there is now."""

    name: str
    words: np.ndarray
    values: np.ndarray
    stack: Calls

    @property
    def where(self) -> str:
        """The line, for people."""
        if not self.stack:
            return self.name
        file, line, function = self.stack[0]
        return f"{Path(file).name}:{line} {function}"

    def apply(self, files: Files, chosen: slice = slice(None)) -> None:
        """Let it happen, or the chosen words of it."""
        if self.name == JOURNAL:
            files[JOURNAL] = self.values
        else:
            files[self.name].view(np.int64)[self.words[chosen]] = self.values[chosen]

    @property
    def parts(self) -> list[slice]:
        """What a kill within it may have left: nothing; a first or all but a last word; the second half only.

        Half, because a memcpy may begin at the end.
        """
        count = len(self.words)
        within = [slice(1), *([slice(count - 1)] if count > 2 else []), slice(count // 2, None)]
        return [slice(0), *(within if count > 1 else [])]


class Trace:
    """Within `with`, the steps of the image in `folder`, its files before, and, to be iterated over, every kill."""

    def __init__(self, folder: Path) -> None:
        assert jit.PLAIN, "compiled code has no lines: NUMBA_DISABLE_JIT=1"
        self._folder = folder
        self.steps: list[Step] = []

    # ---- looking ----

    def __enter__(self) -> "Trace":
        self.start = read_files(self._folder)
        self._views = {name: np.memmap(self._folder / name, np.int64, "r").view(np.ndarray) for name in MAPPED}
        self._shadow = {name: self.start[name].view(np.int64).copy() for name in MAPPED}
        self._stack: Calls = ()
        real = journal._Transaction.__exit__

        def commit(transaction: Any, *how: Any) -> None:
            real(transaction, *how)
            now = np.fromfile(self._folder / JOURNAL, np.uint8)
            self.steps.append(Step(JOURNAL, np.zeros(1, np.int64), now, _calls(sys._getframe(1))))

        self._patch = mock.patch.object(journal._Transaction, "__exit__", commit)
        self._patch.start()
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        self._patch.stop()
        self._look()
        self._views.clear()

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        source = frame.f_code.co_filename
        return self._at if source.startswith(_SOURCES) and source not in _STORE_NOTHING else None

    def _at(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._look()
        # What follows a return is stored by the line that called.
        self._stack = _calls(frame.f_back if event == "return" else frame)
        return self._at

    def _look(self) -> None:
        for name, view in self._views.items():
            shadow = self._shadow[name]
            if not np.array_equal(view, shadow):
                words = np.flatnonzero(view != shadow)
                shadow[words] = view[words]
                self.steps.append(Step(name, words, shadow[words].copy(), self._stack))

    # ---- killing ----

    def kills(self) -> Iterator["Kill"]:
        """A kill at every point, the one after all is done included."""
        files = {name: data.copy() for name, data in self.start.items()}
        for step in self.steps:
            for part in step.parts:
                yield Kill(step, part, files)
            step.apply(files)
        yield Kill(Step("the end", np.zeros(0), np.zeros(0), ()), slice(0), files)


@dataclasses.dataclass
class Kill:
    """One kill, to be used before the next is asked for."""

    step: Step
    part: slice
    _files: Files

    def __str__(self) -> str:
        within = "" if self.part == slice(0) else f", words {self.part.start or 0} to {self.part.stop or 'the last'}"
        return f"{self.step.where}, {self.step.name}{within}"

    @property
    def store(self) -> tuple:
        """The same for kills at the same store, reached by the same last calls."""
        number = -1 if self.part == slice(0) else self.step.parts.index(self.part)
        return self.step.name, self.step.stack[:CALLS], number

    def files(self) -> Files:
        """What it leaves."""
        left = {name: data.copy() for name, data in self._files.items()}
        if self.part != slice(0):
            self.step.apply(left, self.part)
        return left
