# SPDX-License-Identifier: MIT
"""Real power cuts under a server: nbdkit with two clients, its filesystem shut down, the server killed and begun anew.

    python tests/power_served.py --fs xfs [--choice NAME] [--seed N] [--cuts N]

As root.  Each client has half of the device and asks one thing after another: writes, trims and zeros, some with FUA,
and flushes, which cover what the other one was answered as well.
"""

import argparse
import collections
import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import power
from kills import CHOICES, SEED, SIZE, Choice
from power_cuts import (
    SECTOR,
    WITHIN,
    Broken,
    Oracle,
    Request,
    StateView,
    host_of,
    requests,
    require_clean,
    require_told,
    worn_in,
)

from pmem_core import image, launch
from pmem_core.device import Device
from pmem_core.errors import PmemError

CUTS = 3


class Server:
    """nbdkit, serving the image at `path`; it ends with this process."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.socket, self._log = folder / "socket", folder / "log"
        self.socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                launch.nbdkit_command(path, socket=self.socket, nbdkit_args=["--exit-with-parent"]),
                env=launch.nbdkit_environment(),
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=folder,
            )

    def connect(self) -> Any:
        """A connection; waits until the server answers.  Broken where it does not come up."""
        deadline = time.monotonic() + 120
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Broken(f"no server: {self._log.read_text()}")
            client = nbd.NBD()
            with contextlib.suppress(nbd.Error):
                client.connect_unix(str(self.socket))
                return client
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Let it close the image."""
        self._process.terminate()
        if self._process.wait(60):
            raise Broken(f"the server's status: {self._log.read_text()}")


def send(client: Any, request: Request) -> None:
    """Ask it of a server."""
    flags = nbd.CMD_FLAG_FUA if request.fua else 0
    if request.name == "write":
        client.pwrite(request.data, request.offset, flags)
    elif request.name == "trim":
        client.trim(len(request.data), request.offset, flags)
    elif request.name == "zero":
        client.zero(len(request.data), request.offset, flags | (0 if request.may_trim else nbd.CMD_FLAG_NO_HOLE))
    else:
        client.flush()


class Client(threading.Thread):
    """Works on its pages until the server is gone.  asked, done: its requests, and how many were answered.

    flushes: of each flush its number, and how many of the other's requests had been answered when it was asked for.
    """

    def __init__(self, connection: Any, asking: Iterator[Request]) -> None:
        super().__init__(daemon=True)
        self._connection, self._asking = connection, asking
        self.other = self
        self.asked: list[Request] = []
        self.done = 0
        self.flushes: list[tuple[int, int]] = []

    def run(self) -> None:
        with contextlib.suppress(nbd.Error):
            for request in self._asking:
                if request.name == "flush":
                    self.flushes.append((len(self.asked), self.other.done))
                self.asked.append(request)
                send(self._connection, request)
                self.done += 1


def tell(oracle: Oracle, one: Client, other: Client, done: dict[Client, int]) -> None:
    """What a client asked for and was answered by the cut, and what the other's flushes cover of it."""
    part = Oracle(oracle.sure)
    covered = max((known for number, known in other.flushes if number < done[other]), default=0)
    for number, request in enumerate(one.asked):
        part.begun(request)
        if number < done[one]:
            part.answered(request)
        if number + 1 == covered:
            part.answered(Request("flush"))
    oracle.versions |= part.versions


class Session:
    """An image that is served, cut and served again."""

    def __init__(self, host: power.Host, choice: Choice, seed: str, folder: Path, told: collections.Counter) -> None:
        self.host, self.seed, self.folder, self.told = host, seed, folder, told
        self.path = host.folder / "disk.pmem"
        choice.create(self.path, SIZE)
        plan = image.load_geometry(self.path)
        self.pages = plan.info.page_count
        self.oracle = Oracle(bytearray(plan.device_bytes), min(SECTOR, plan.info.frame_bytes))
        self.worn = self.surplus = 0

    def cut(self, number: int) -> None:
        """Serve, compare, work, cut, kill, and look at what is left."""
        chance = random.Random(f"{self.seed} {number}")
        half = self.pages // 2
        server = Server(self.path, self.folder)
        try:
            self._compare(server.connect())
            one, other = (
                Client(server.connect(), requests(random.Random(chance.random()), first, half, keeps=False))
                for first in (0, half)
            )
            one.other, other.other = other, one
            with StateView(self.path) as state:
                one.start()
                other.start()
                time.sleep(chance.uniform(0.01, 0.3))
                power.write_back(self.path, chance)
                # What is answered from here on is no promise.
                done = {one: one.done, other: other.done}
                self.host.cut(flush_log=chance.random() < 0.4)
                time.sleep(chance.choice((0, 0.02)))
                server.kill()
                counted = worn_in(state.core())
        finally:
            server.kill()
        one.join()
        other.join()
        self.host.restart()
        self.told["requests answered"] += sum(done.values())
        tell(self.oracle, one, other, done)
        tell(self.oracle, other, one, done)
        self._look(counted)
        self.told["cuts"] += 1

    def _look(self, counted: int) -> None:
        """What the files hold, before a server opens them."""
        report = require_clean(self.path)
        with Device(self.path, read_only=True) as device:
            if device.recovery != "power cut":
                raise Broken(f"opened as {device.recovery!r}")
            lost, torn = self.oracle.accept(device.read(len(self.oracle.sure), 0), WITHIN)
            worn, wear = int(device.mapping.core["tally"][0]["worn"].sum()), int(device.mapping.wear.sum())
        if not self.worn <= worn <= counted or not worn + self.surplus <= wear <= counted + self.surplus:
            raise Broken(f"wear: {worn} by the totals, {wear} by the counters; {self.worn} to {counted} expected")
        self.worn, self.surplus = worn, wear - worn
        require_told(report, self.surplus)
        self.told["cuts that lost data"] += lost > 0
        self.told["pages lost"] += lost
        self.told["pages torn"] += torn

    def _compare(self, client: Any) -> None:
        """Through the server, every byte."""
        self.oracle.accept(bytes(client.pread(len(self.oracle.sure), 0)))

    def end(self) -> None:
        """Serve it once more, close it, check it."""
        server = Server(self.path, self.folder)
        try:
            self._compare(server.connect())
            server.stop()
        finally:
            server.kill()
        require_told(require_clean(self.path), self.surplus)


def main() -> int:
    """Cut and judge; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fs", required=True, choices=power.KINDS)
    parser.add_argument(
        "--choice", default="", help="a placement, leveling and way of writing descriptors: by the seed"
    )
    parser.add_argument("--seed", default=str(SEED))
    parser.add_argument("--cuts", type=int, default=int(os.environ.get("PMEM_NBD_POWER_CUTS", CUTS)))
    given = parser.parse_args()
    choices = [one for one in CHOICES if given.choice in ("", str(one))]
    if not choices:
        parser.error(f"--choice: one of {', '.join(map(str, CHOICES))}")
    choice = random.Random(f"{given.seed} {given.fs}").choice(choices)
    power.private_mounts()
    told: collections.Counter = collections.Counter()
    started, broken = time.monotonic(), ""
    with host_of(given.fs) as host:
        try:
            session = Session(host, choice, f"{given.seed} {given.fs} {choice}", host.folder.parent, told)
            for number in range(given.cuts):
                session.cut(number)
            session.end()
        except (Broken, PmemError, AssertionError) as error:
            broken = f"{type(error).__name__}: {error}"
    figures = ", ".join(f"{name}: {count}" for name, count in sorted(told.items()))
    print(f"{given.fs}, {choice}, seed {given.seed}: {figures}: {time.monotonic() - started:.1f} s")
    if broken:
        print(f"cut {told['cuts']}: {broken}")
        print(
            f"again: .venv/bin/python tests/power_served.py --fs {given.fs} --choice '{choice}' --seed {given.seed} "
            f"--cuts {told['cuts'] + 1}"
        )
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
