# SPDX-License-Identifier: MIT
"""Where the time of a request goes: docs/performance.md is made of what this prints.

    scripts/setup && .venv/bin/python scripts/budget.py [--rounds 7] [--size 1G] [--json FILE]

Looks at the same thing:

* parts removed: the server's processor time for a request, of nbdkit's null plugin (the way through the sockets and
  nothing else), its memory plugin (and a copy), and of images in tmpfs with everything on and with one thing off each;
* samples: what the server with everything on and the one that it is measured against were doing, by perf, 4000 times a
  second of their time;
* a disk's filesystem (--dir): images beside nbdkit's file plugin, parts removed there too; and stores to the map of a
  file and pwrite, to clean pages and to dirty ones;
* compiled code by itself, in this process, with no server: writes and reads of 4096 bytes, all in the processor's
  caches or scattered over memory, the medium in small pages or in huge ones, beside a bare copy; by size of line; parts
  of pages; and the checksum.  Six devices take turns, so that what disturbs the machine disturbs all of them alike.
"""

import argparse
import json
import mmap
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchlib.alone import alone, copies
from benchlib.peers import Peer, peers_at, size_of
from benchlib.workloads import WORKLOADS, in_turn, renew, run_for

from nbd_plugin import haltpoll
from pmem_core import layout
from pmem_core.jit import hot, pwrite

NAMES = (
    "randwrite 4k depth 16",
    "randread 4k depth 16",
    "randwrite 4k depth 1",
    "randread 4k depth 1",
    "seqwrite 128k",
    "seqread 128k",
    "seqwrite 1m",
)
FULL, AGAINST = "pmem@tmpfs", "memory"
PEERS = {
    "null": "nbdkit's null plugin: sockets alone",
    AGAINST: "nbdkit's memory plugin: and a copy",
    FULL: "everything on",
    "pmem:leveling=none@tmpfs": "without leveling",
    "pmem:placement=none@tmpfs": "without descriptors, and so without checksums",
    "pmem:placement=none:leveling=none@tmpfs": "without either: wear and totals are counted",
    "pmem:checksums=no@tmpfs": "without checksums",
    "pmem:descriptor-writes=coalesced@tmpfs": "descriptors at the next flush",
    "pmem:line-bytes=4096@tmpfs": "lines of 4096 bytes",
    "pmem:halt-poll=no@tmpfs": "without halt polling",
}
DISK_NAMES = ("randwrite 4k flush", "randwrite 4k depth 16", "seqwrite 128k")
DISK_FULL, DISK_AGAINST = "pmem", "file"
DISK_PEERS = {
    DISK_AGAINST: "nbdkit's file plugin: a page written, and synced at a flush",
    DISK_FULL: PEERS[FULL],
    "pmem:leveling=none": "without leveling",
    "pmem:placement=none": "without descriptors, and so without checksums",
    "pmem:placement=none:leveling=none": "without either: wear and totals are counted",
    "pmem:descriptor-writes=coalesced": "descriptors at the next flush",
}
# By whose code a sample fell into; in the kernel by the function's name; of the thread that polls, by that.  The first
# that matches is taken.
WAITING = (
    r"_raw_spin_unlock_irqrestore|finish_task_switch.*|.*futex.*|.*sched.*|.*wake.*|(en|de)queue.*|prepare_to_wait.*"
    r"|finish_wait.*|pick_next.*|update_curr.*|.*switch.*"
)
COPYING = r"_?copy_(to|from)_iter|rep_movs.*|.*datagram.*|__check_object.*|.*copy_user.*|memcpy.*"
PAGING = r".*(fault|shmem|filemap|folio|xas_|page_erms|uptodate|_pte|lru|rmap|vma).*"
POLLING = "halt polling"
PARTS = (
    (POLLING, POLLING),
    ("compiled: placement, leveling, media", r"(\[JIT\]|.*perf-\d+\.map|//anon|\[unknown\]).*"),
    ("Python, and numba's way in", r"(libpython|_dispatcher|_nrt_python|_helperlib|_internal|python).*"),
    ("nbdkit and libc", r"(nbdkit|libc|ld-linux|\[vdso\]).*"),
    ("kernel: waking and waiting", rf"\[kernel\S* ({WAITING})$"),
    ("kernel: copies from and to the socket", rf"\[kernel\S* ({COPYING})$"),
    ("kernel: pages of the image", rf"\[kernel\S* ({PAGING})$"),
    ("kernel: everything else", ""),
)


# ---- parts removed ----


def removed(
    peers: list[Peer], names: tuple[str, ...], rounds: int, seconds: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """By workload and peer, the medians of processor time a request (ns) and requests a second.

    What a peer wrote is on the disk before the next one's turn.
    """
    found: dict[str, Any] = {name: {peer.spec: ([], []) for peer in peers} for name in names}
    for number in range(rounds):
        renew(peers, tell)
        for name in names:
            for peer in in_turn(peers, number):
                tell(f"round {number + 1}: {name} on {peer.spec}")
                figures = run_for(peer, seconds, number + 1, WORKLOADS[name])
                for kept, key in zip(found[name][peer.spec], ("cpu_ns", "iops"), strict=True):
                    kept.append(figures[key])
                peer.settle()
    return {
        name: {spec: [statistics.median(values) for values in pair] for spec, pair in by.items()}
        for name, by in found.items()
    }


# ---- samples ----


def sampled(peer: Peer, name: str, seconds: float) -> dict[str, float]:
    """The share of the server's samples that fell into each of PARTS; empty where perf cannot sample."""
    assert peer.process is not None
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        words = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-p", str(peer.process.pid), "-o", str(data)]
        # nbdkit makes its threads when the client connects: they are followed from the start.
        with subprocess.Popen([*words, "--", "sleep", str(seconds + 1)], stderr=subprocess.DEVNULL):
            time.sleep(0.3)
            run_for(peer, seconds, 1, WORKLOADS[name])
        report = ["perf", "report", "-i", str(data), "--stdio", "-g", "none", "-F", "period,comm,dso,sym", "-t", "\t"]
        said = subprocess.run(report, capture_output=True, text=True, check=False).stdout
    sums: dict[str, int] = defaultdict(int)
    for line in said.splitlines():
        if not re.match(r"\s*\d+\s*\t", line):
            continue
        period, thread, dso, symbol = (word.strip() for word in line.split("\t")[:4])
        where = f"{dso} {symbol.removeprefix('[k] ')}"
        where = POLLING if thread == haltpoll.NAME.decode() else where
        sums[next(part for part, pattern in PARTS if re.match(pattern, where))] += int(period)
    total = sum(sums.values())
    return {part: sums[part] / total for part, _ in PARTS} if total else {}


# ---- a file on a disk's filesystem ----


def through_file(folder: Path, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """ns for a page of 4096 bytes: stores to a mapped file and calls, to clean pages (just synced) and dirty ones."""
    page, piece, size, chance = layout.PAGE_BYTES, 128 << 10, 128 << 20, np.random.default_rng(seed)
    data, found = np.ones(piece, np.uint8), {}
    in_order, scattered = np.arange(0, size, piece), chance.integers(0, size // page, 8192) * page
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        with mmap.mmap(file.fileno(), size) as mapped:
            mapped.madvise(mmap.MADV_RANDOM)  # as an image is mapped
            memory, fd = np.frombuffer(mapped, np.uint8), file.fileno()
            copies(data, memory, in_order)  # what comes by large calls first would lie in one piece in memory
            for name, places, part in (
                ("128 KiB in order", in_order, data),
                ("4 KiB scattered", scattered, data[:page]),
            ):
                works = {"stores to its map": partial(copies, part, memory, places)}
                works |= {
                    told: partial(calls, fd, part, places, count)
                    for told, count in (("pwrite of a page", page), ("pwrite of 16", 16 * page))
                    if count <= len(part)
                }
                for how, work in works.items():
                    for state, ns in clean_and_dirty(fd, work, rounds).items():
                        found.setdefault(f"{name}, {state}", {})[how] = ns / (len(places) * len(part) / page)
            del memory, works, work
    return found


def clean_and_dirty(fd: int, work: Callable[[], Any], rounds: int) -> dict[str, float]:
    """ns of `work` right after a sync of the file, and of the same once more."""
    took: dict[str, list[float]] = {"clean": [], "dirty": []}
    for _ in range(rounds):
        os.fsync(fd)
        for times in took.values():
            started = time.perf_counter()
            work()
            times.append((time.perf_counter() - started) * 1e9)
    return {state: statistics.median(times) for state, times in took.items()}


@hot
def calls(fd, data, places, count):
    """Write `data` at each of `places`, `count` bytes a call."""
    for place in places:
        for at in range(0, data.size, count):
            pwrite(fd, data, at, count, place + at)


# ---- what is printed ----


def servers(
    by: dict[str, list[float]], shares: dict[str, dict[str, float]], peers: dict[str, str], full: str
) -> list[str]:
    """The tables of one workload: servers with parts removed, and by samples what the time of some went to."""
    lines = ["| server | its time a request, ns | less than everything | requests/s |", "| --- | ---: | ---: | ---: |"]
    for spec, (cpu, rate) in by.items():
        less = "" if spec == full else f"{by[full][0] - cpu:+.0f}"
        lines.append(f"| `{spec}`: {peers[spec]} | {cpu:.0f} | {less} | {rate:.0f} |")
    sampled_ = [spec for spec in shares if shares[spec]]
    if sampled_:
        columns = "".join(f" `{spec}`, ns | share |" for spec in sampled_)
        lines += ["", "By samples:", "", f"| part |{columns}", "| --- |" + " ---: |" * 2 * len(sampled_)]
        for part, _ in PARTS:
            cells = "".join(
                f" {by[spec][0] * shares[spec][part]:.0f} | {shares[spec][part]:.1%} |" for spec in sampled_
            )
            lines.append(f"| {part} |{cells}")
    return lines


def told(found: dict[str, Any]) -> list[str]:
    """The tables, in Markdown."""
    lines = []
    for where, peers, full in (("", PEERS, FULL), (" on a disk", DISK_PEERS, DISK_FULL)):
        for name, by in found.get(f"removed{where}", {}).items():
            shares = found[f"sampled{where}"][name]
            lines += ["", f"### {name}{where}", "", *servers(by, shares, peers, full)]
    if file := found.get("file"):
        ways = list(next(iter(file.values())))
        lines += ["", "### A page of 4096 bytes of a file on a disk, ns", "", f"| | {' | '.join(ways)} |"]
        lines += ["| --- |" + " ---: |" * len(ways)]
        for name, by in file.items():
            lines += [f"| {name} | {' | '.join(f'{by[way]:.0f}' if way in by else '' for way in ways)} |"]
    columns = list(next(iter(found["alone"].values())))
    lines += [
        "",
        "### Compiled code by itself, ns",
        "",
        f"| | {' | '.join(columns)} |",
        "| --- |" + " ---: |" * len(columns),
    ]
    alone_ = dict(found["alone"])
    bare_ = alone_.pop("bare")
    lines += [f"| {told} | {' | '.join(f'{works[name]:.0f}' for name in columns)} |" for told, works in alone_.items()]
    lines += ["", *(f"* bare {name}: {ns:.0f} ns, {layout.PAGE_BYTES / ns:.1f} GB/s" for name, ns in bare_.items())]
    per_line = (alone_["lines of 64"]["write, near"] - alone_["lines of 4096"]["write, near"]) / 63
    ratio = alone_["lines of 64"]["write, near"] / alone_["lines of 4096"]["write, near"]
    far = alone_["lines of 64"]["write, far"] / alone_["lines of 4096"]["write, far"]
    lines += [f"* a line of wear more: {per_line:.2f} ns; 64-byte lines against 4096-byte lines: {ratio:.2f} near, "]
    lines[-1] += f"{far:.2f} far"
    return lines


def of_servers(given: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """What servers cost, with parts removed and by samples; and a file on a disk."""
    found: dict[str, Any] = {}
    for where, dir_, specs, names, looked_at in (
        ("", None, PEERS, NAMES, (AGAINST, FULL)),
        (" on a disk", given.dir, DISK_PEERS, DISK_NAMES, (DISK_AGAINST, DISK_FULL)),
    ):
        with (
            tempfile.TemporaryDirectory(dir=dir_) as folder,
            peers_at([(spec, given.size) for spec in specs], Path(folder)) as peers,
        ):
            found[f"removed{where}"] = removed(peers, names, given.rounds, given.seconds, tell)
            by_spec = {peer.spec: peer for peer in peers}
            found[f"sampled{where}"] = {
                name: {spec: sampled(by_spec[spec], name, 3) for spec in looked_at} for name in names
            }
    tell("a file on a disk")
    found["file"] = through_file(given.dir, given.rounds, given.seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="figures are medians over them")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each run of fio")
    parser.add_argument("--size", type=size_of, default="1G", help="of each device")
    parser.add_argument("--seed", type=int, default=20150507)
    parser.add_argument("--dir", type=Path, default=Path(), help="a folder on a disk")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--alone", action="store_true", help="compiled code by itself, and no servers: a minute")
    given = parser.parse_args()

    def tell(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)

    found = {} if given.alone else of_servers(given, tell)
    tell("compiled code by itself")
    found["alone"] = alone(given.rounds, given.size, given.seed)
    tell("")
    if given.json:
        given.json.write_text(json.dumps({"parameters": {**vars(given), "json": None, "dir": None}, **found}, indent=1))
    print("\n".join(told(found)))


if __name__ == "__main__":
    main()
