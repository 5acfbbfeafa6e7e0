# SPDX-License-Identifier: MIT
"""What size costs: 1 GiB to 16 TiB, as many pages touched on each; and creation and starts, cold and warm."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchlib.peers import ROOT, Peer, peers_at, run
from benchlib.workloads import fio, in_turn, renew, run_for

PAGE_BYTES = 4096
SCALE = {"1 GiB": 1 << 30, "64 GiB": 1 << 36, "1 TiB": 1 << 40, "16 TiB": 1 << 44}
# The room of a touched page is reserved 64 KiB at a time: 4096 of them are a quarter of a GiB on each device.
TOUCHED_PAGES = 4096
SCALE_ROUNDS, STARTS = 7, 5


def stride_of(peer: Peer) -> int:
    """Bytes from one touched page to the next."""
    return peer.size // TOUCHED_PAGES


def touch(peer: Peer) -> None:
    """Write pages spread evenly over the device, once each."""
    pages = [
        f"--rw=write:{stride_of(peer) - PAGE_BYTES}",
        "--bs=4k",
        "--iodepth=1",
        f"--io_size={TOUCHED_PAGES * PAGE_BYTES}",
    ]
    fio(peer.spec, ["--ioengine=nbd", f"--uri={peer.uri}"], [pages])


def scale(spec: str, folder: Path, seconds: float, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """By the size of the device: the same work on as many touched pages; all devices are up, and take turns.

    Every round has servers of its own, see workloads.renew.
    """
    result: dict[str, dict[str, Any]] = {name: {"randwrite_iops": [], "randread_iops": []} for name in SCALE}
    with peers_at([(spec, size) for size in SCALE.values()], folder) as peers:
        work = list(zip(SCALE, peers, strict=True))
        for number in range(SCALE_ROUNDS):
            renew(peers, tell, prefill=False)
            for rw in ("randwrite", "randread"):
                for name, peer in in_turn(work, number):
                    tell(f"round {number + 1}: {rw} 4k depth 16 on {name}")
                    if rw == "randwrite":
                        touch(peer)  # each section has its mark again, which 5 s without writes took from it
                    job = [f"--rw={rw}", "--bs=4k", "--iodepth=16", "--norandommap", f"--blockalign={stride_of(peer)}"]
                    result[name][f"{rw}_iops"].append(round(run_for(peer, seconds, number + 1, [job])["iops"] or 0))
        for name, peer in work:
            tell(f"memory, statistics and start of {name}")
            stats_s = median_s([str(peer.bin / "pmem-nbd"), "stats", "-j", str(peer.image)])
            memory = peer.memory_bytes()
            peer.stop()
            result[name] |= {"stats_s": stats_s, **memory, "disk_bytes": peer.disk_bytes()}
            result[name]["start_s"] = peer.first_answer_s()
            peer.stop()
    return result


def starts(
    specs: Sequence[str], folder: Path, size: int, tell: Callable[[str], None], trees: Mapping[str, Path]
) -> dict[str, dict[str, float]]:
    """Of each peer: seconds of creation and of a start, bytes of disk; of pmem also for a medium of 1 GiB and 1 TiB."""
    sizes = {"": size, "1 GiB ": 1 << 30, "1 TiB ": 1 << 40}
    result = {}
    for label, spec in [(label, spec) for label in sizes for spec in specs if not label or spec.startswith("pmem")]:
        tell(f"starting {label}{spec}")
        with peers_at([(spec, sizes[label])], folder, trees) as (peer,):
            begin = time.monotonic()
            peer.create()
            create_s = time.monotonic() - begin
            disk_bytes = peer.disk_bytes()
            seconds = []
            for _ in range(STARTS + 1):
                seconds.append(peer.first_answer_s())
                peer.stop()
            # The first one is not counted: it may have had to read its files from the disk.
            start_s = statistics.median(seconds[1:])
            result[label + spec] = {"create_s": create_s, "disk_bytes": disk_bytes, "start_s": start_s}
    return result


def cold_start(folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The first start ever, with nothing compiled: seconds to the first byte, and whether it said why it takes so long.

    And how long `pmem-nbd --help` takes, the median of STARTS.
    """
    tell("the first start ever")
    with (
        tempfile.TemporaryDirectory(prefix="pmem-bench-", dir=folder) as cache,
        peers_at([("pmem", 1 << 28)], folder) as (peer,),
    ):
        peer.create()
        peer.environ = {"XDG_CACHE_HOME": cache}
        start_s = peer.first_answer_s()
        said = [line for line in peer.log.read_text().splitlines() if "compiling" in line]
        peer.stop()
    help_s = median_s([str(ROOT / ".venv" / "bin" / "pmem-nbd"), "--help"])
    return {"start_s": start_s, "said": said[0] if said else "", "help_s": help_s}


def median_s(command: Sequence[str]) -> float:
    """Seconds that a command takes, the median of STARTS."""
    seconds = []
    for _ in range(STARTS):
        begin = time.monotonic()
        run(command)
        seconds.append(time.monotonic() - begin)
    return statistics.median(seconds)
