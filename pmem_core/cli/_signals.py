# SPDX-License-Identifier: MIT
"""A verb cleans up behind itself: SIGTERM and SIGHUP do what Ctrl-C does, and what nobody can be told of is undone."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

IMPORT_S_MAX = 3
_IMPORTLIB = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: raise KeyboardInterrupt, but while a module is imported at its end.

    A module that is cut off may swallow it and be half of one; as a module in C, numpy's say, it cannot be imported
    again either.  One that takes longer than IMPORT_S_MAX is cut off all the same.
    """
    asked, later = 0.0, threading.Timer(0, int)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked, later
        importing = _outermost_import(frame)
        if importing is None or (asked and time.monotonic() > asked + IMPORT_S_MAX):
            end()

        def profile(returning: FrameType, event: str, argument: object) -> None:
            if event == "return" and returning is importing:
                end()

        sys.setprofile(profile)
        if not asked:
            asked = time.monotonic()
            later = threading.Timer(IMPORT_S_MAX + 0.1, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()

    def end() -> None:
        nonlocal asked
        asked = 0.0
        later.cancel()
        sys.setprofile(None)
        raise KeyboardInterrupt

    with _handling([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], interrupt):
        yield


def _outermost_import(frame: FrameType | None) -> FrameType | None:
    """The frame of importlib that returns when all is imported that is being imported in `frame`; None: nothing is."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTLIB:
            found = frame
        frame = frame.f_back
    return found


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Let nothing but SIGKILL cut short what is done in here."""
    with _handling([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], signal.SIG_IGN):
        yield


@contextlib.contextmanager
def or_undone(undo: Callable[[], object]) -> Iterator[None]:
    """What was made is told in here; where it cannot be, nobody knows of it, and it is undone.

    A reader that has left is no such failure.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        with signals_ignored():
            undo()
        raise


@contextlib.contextmanager
def _handling(numbers: list[signal.Signals], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python hears no signals
        yield
        return
    # What nohup ignores stays ignored.
    before = {one: signal.getsignal(one) for one in numbers if signal.getsignal(one) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
