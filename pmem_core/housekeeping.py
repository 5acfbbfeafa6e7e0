# SPDX-License-Identifier: MIT
"""What happens by itself while a device is served: checkpoints ahead of need, the history, and the log kept short."""

import threading
import time
from collections.abc import Callable
from functools import partial

from . import host, hugepages, serverlog
from .device import Device
from .errors import PmemError

TURN_SECONDS = 0.5
QUIET_SECONDS = 5.0  # a section not written for this long loses its dirty mark
CHECKPOINT_SECONDS = 30.0  # as long as the kernel keeps dirty pages: what a power cut may take of the wear totals
HISTORY_SECONDS = 10.0
COLLAPSE_SECONDS = TURN_SECONDS / 10  # in a turn: a request for bytes that are just moved waits


class Housekeeper:
    """The threads.  What goes wrong is said once, and tried again when it is due; only a failed sync ends that.

    The log has a thread of its own, also where the device is only read: requests are refused, which is a line each, as
    long as there are clients, whatever the disk does.
    """

    def __init__(self, device: Device) -> None:
        self._problems: dict[str, str] = {}  # by what fails
        self._device = device
        self._stopped = threading.Event()
        self._wake = threading.Event()
        device.on_wanted = self._wake.set
        log_thread = threading.Thread(target=self._keep_log_short, name="log", daemon=True)
        self._thread = threading.Thread(target=self._keep, name="housekeeping", daemon=True)
        self._threads = [log_thread] if device.read_only else [log_thread, self._thread]
        for thread in self._threads:
            thread.start()

    @property
    def problem(self) -> str:
        """One of the things that went wrong the last time they were tried, or ""."""
        return next(iter(self._problems.values()), "")

    def stop(self) -> None:
        """End the threads; call it before the device is closed."""
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()

    def _keep_log_short(self) -> None:
        while not self._stopped.wait(TURN_SECONDS):
            serverlog.bound()

    def _keep(self) -> None:
        try:
            self._take_turns()
        except Exception as error:
            serverlog.say_in_passing(f"has ended: {_in_words(error)}")

    def _take_turns(self) -> None:
        device = self._device
        settled = sampled = checkpointed = collapsed = time.monotonic()
        collapser = hugepages.Collapser(device.mapping.files["media"], *device.medium)
        while not self._stopped.is_set():
            self._wake.wait(TURN_SECONDS)
            self._wake.clear()
            now = time.monotonic()
            if now - settled >= QUIET_SECONDS:
                settled = now
                checkpoint = partial(
                    device.checkpoint, settle_sections=True, due=now - checkpointed >= CHECKPOINT_SECONDS
                )
                if device.has_dirty() and self._try("the checkpoint", checkpoint):
                    checkpointed = now
            elif device.wants_checkpoint() and device.waits_for_disk:
                self._try("the commit of moves", device.commit_moves)
            if now - sampled >= HISTORY_SECONDS:
                sampled = now
                self._try("the history", device.sample)
            if now - collapsed >= QUIET_SECONDS and self._try("making huge pages", partial(self._collapse, collapser)):
                collapsed = now
            if device.sync_failed:
                serverlog.say_in_passing(f"has ended, for a sync failed: {self.problem or device.path}")
                return

    def _collapse(self, collapser: hugepages.Collapser) -> bool:
        with host.host_errors(self._device.path / "media"):
            return collapser.turn(COLLAPSE_SECONDS)

    def _try(self, what: str, task: Callable[[], bool | None]) -> bool:
        """Do a task; False where it failed or says that there was nothing to do, or not all of it is done."""
        before = self._problems.get(what)
        try:
            done = task()
        except Exception as error:
            self._problems[what] = text = _in_words(error)
            if text != before and not self._device.sync_failed:
                serverlog.say_in_passing(f"{what} fails, and is tried again: {text}")
            return False
        if before is not None and done is not False:
            del self._problems[what]
            serverlog.say_in_passing(f"{what} works again")
        return done is not False


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, PmemError) else f"{error!r}: a bug in pmem-nbd"
