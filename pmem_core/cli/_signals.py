# SPDX-License-Identifier: MIT
"""A verb cleans up behind itself: SIGTERM and SIGHUP do what Ctrl-C does, and what nobody can be told of is undone."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handling([signal.SIGTERM, signal.SIGHUP], interrupt):
        yield


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
