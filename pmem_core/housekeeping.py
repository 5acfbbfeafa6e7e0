# SPDX-License-Identifier: MIT
"""What happens by itself while a device is served: a thread of checkpoints ahead of need, and the history."""

import threading
import time

from . import hugepages
from .device import Device
from .errors import HostFull, PmemError

TURN_SECONDS = 0.5
QUIET_SECONDS = 5.0  # a section not written for this long loses its dirty mark
CHECKPOINT_SECONDS = 30.0  # as long as the kernel keeps dirty pages: what a power cut may take of the wear totals
HISTORY_SECONDS = 10.0
COLLAPSE_SECONDS = TURN_SECONDS / 10  # in a turn: a request for bytes that are just moved waits


class Housekeeper:
    """The thread.  `problem`: the last thing that went wrong, or ""."""

    def __init__(self, device: Device) -> None:
        self.problem = ""
        self._device = device
        self._stopping = False
        self._wake = threading.Event()
        device.on_wanted = self._wake.set
        self._thread = threading.Thread(target=self._keep, name="housekeeping", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; call it before the device is closed."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _keep(self) -> None:
        settled = sampled = checkpointed = collapsed = time.monotonic()
        collapser = hugepages.Collapser(self._device.mapping.files["media"], *self._device.medium)
        while not self._stopping:
            self._wake.wait(TURN_SECONDS)
            self._wake.clear()
            try:
                now = time.monotonic()
                if now - settled >= QUIET_SECONDS:
                    settled = now
                    due = now - checkpointed >= CHECKPOINT_SECONDS
                    if self._device.has_dirty() and self._device.checkpoint(settle_sections=True, due=due):
                        checkpointed = now
                elif self._device.wants_checkpoint() and self._device.waits_for_disk:
                    self._device.commit_moves()
                if now - sampled >= HISTORY_SECONDS:
                    sampled = now
                    self._device.sample()
                if now - collapsed >= QUIET_SECONDS and collapser.turn(COLLAPSE_SECONDS):
                    collapsed = now
                self.problem = ""
            except HostFull as error:
                self.problem = str(error)  # a full host gets room again; writes tell the client meanwhile
            except PmemError as error:
                self.problem = str(error)
                return
