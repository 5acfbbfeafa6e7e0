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
from pmem_core import jit, journal

MAPPED = ("media", "wear", "state")
JOURNAL = "journal/data.mdb"
_SOURCES = str(Path(pmem_core.__file__).parent)

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


@dataclasses.dataclass
class Step:
    """What one line stored: words of 8 bytes in the order of their addresses; of the journal all that there is now."""

    name: str
    words: np.ndarray
    values: np.ndarray
    where: str

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
        self._views = {name: np.memmap(self._folder / name, np.int64, "r") for name in MAPPED}
        self._shadow = {name: self.start[name].view(np.int64).copy() for name in MAPPED}
        self._line = ""
        real = journal._Transaction.__exit__

        def commit(transaction: Any, *how: Any) -> None:
            real(transaction, *how)
            now = np.fromfile(self._folder / JOURNAL, np.uint8)
            self.steps.append(Step(JOURNAL, np.zeros(1, np.int64), now, "a commit of the journal"))

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
        return self._at if frame.f_code.co_filename.startswith(_SOURCES) else None

    def _at(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._look()
        # What follows a return is stored by the line that called.
        here = frame.f_back if event == "return" and frame.f_back else frame
        self._line = f"{Path(here.f_code.co_filename).name}:{here.f_lineno} {here.f_code.co_name}"
        return self._at

    def _look(self) -> None:
        for name, view in self._views.items():
            shadow = self._shadow[name]
            if not np.array_equal(view, shadow):
                words = np.flatnonzero(view != shadow)
                shadow[words] = view[words]
                self.steps.append(Step(name, words, shadow[words].copy(), self._line))

    # ---- killing ----

    def kills(self) -> Iterator[tuple[str, Files]]:
        """Where, and the files, of a kill at every point, the one after all is done included; not to be changed."""
        files = {name: data.copy() for name, data in self.start.items()}
        for step in self.steps:
            for part in step.parts:
                left = {name: data.copy() if name == step.name else data for name, data in files.items()}
                if part != slice(0):
                    step.apply(left, part)
                yield f"{step.where}, {step.name}, {'before' if part == slice(0) else f'words {part}'}", left
            step.apply(files)
        yield "the end", files
