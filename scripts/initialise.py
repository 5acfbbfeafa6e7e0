# SPDX-License-Identifier: MIT
"""What initialising descriptors costs: create, open to the first write answered, wear and memory, by strategy and size.

    .venv/bin/python scripts/initialise.py FOLDER [--sizes 1G,64G,1T,16T] [--strategies ...] [--runs 5]

Images are sparse and made in FOLDER, one after another, each in processes of its own: one that creates it, and one that
opens it, writes a page of 4096 bytes somewhere in the middle, and closes it, where compiled code is loaded before
anything is timed.  Then another is created and served by nbdkit: from the start of the server, compiled code to be
loaded, to such a write of a client being answered.  Strategies and sizes take turns; medians are printed, and the range
of the times to the first write.  `eager` is measured up to --eager-up-to, and worked out above from the largest
size that was measured.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchlib.peers import Peer, memory_of

from pmem_core import geometry, image, layout, warmup
from pmem_core.cli._common import human_bytes, parse_size
from pmem_core.device import Device


def timed_create(path: Path, size: int, strategy: str, leveling: str) -> dict[str, Any]:
    """Create an image; with eager also initialise it."""
    plan = geometry.plan(size, initialise=strategy, leveling_name=leveling)
    warmup.warm_up(plan)
    if strategy != "zeros":  # loads what only a creation needs
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            small = Path(folder) / "small.pmem"
            image.create(small, geometry.plan(64 << 20, initialise=strategy, leveling_name=leveling))
            Device(small).close()
    started = time.perf_counter()
    image.create(path, plan)
    if strategy == "eager":
        Device(path).close()
    return {"create": time.perf_counter() - started}


def timed_use(path: Path) -> dict[str, Any]:
    """Open, write one page, flush, close."""
    plan = image.load_geometry(path)
    warmup.warm_up(plan)
    offset = plan.info.page_count // 3 * layout.PAGE_BYTES
    page = memoryview(os.urandom(layout.PAGE_BYTES))
    started = time.perf_counter()
    device = Device(path)
    opened = time.perf_counter()
    device.write(page, offset)
    answered = time.perf_counter()
    again = time.perf_counter()
    device.write(page, offset)
    second = time.perf_counter() - again
    kept = memory_of("self")
    tally = device.mapping.core["tally"][0].copy()
    # One line each for the two writes' own descriptors.
    worn = int(tally["worn"][layout.CAUSE_DESCRIPTOR]) - 2
    moved = int(tally["worn"][layout.CAUSE_MOVE])
    device.close()
    return kept | {
        "open": opened - started,
        "first": answered - opened,
        "total": answered - started,
        "second": second,
        "lines": worn,
        "moved": moved,
        "line_bytes": plan.info.line_bytes,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


WRITE = "h.pwrite(os.urandom(4096), h.get_size() // 4096 // 3 * 4096)"


def timed_server(path: Path) -> dict[str, Any]:
    """Serve the image to a client that was there before."""
    peer = Peer("pmem", path.parent, path.stat().st_size)
    try:
        return {"served": peer.first_answer_s(WRITE), "server_rss": peer.memory_bytes()["rss_bytes"]}
    finally:
        peer.stop()


def child(*arguments: object) -> dict[str, Any]:
    """Run this script for one step; what it measured."""
    command = [sys.executable, __file__, "--step", *map(str, arguments)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(told.stdout)


def measure(folder: Path, size: int, strategy: str, leveling: str) -> dict[str, Any]:
    """One image, made, used and removed."""
    path = folder / "image.pmem"  # as a peer of the benchmarks has it
    try:
        found = child("create", path, size, strategy, leveling) | child("use", path)
        found["used"] = sum(one.stat().st_blocks * 512 for one in path.rglob("*") if one.is_file())
        if strategy != "eager":  # what it does at the first write is nothing, and another creation takes long
            shutil.rmtree(path)
            child("create", path, size, strategy, leveling)
        return found | child("serve", path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def row(strategy: str, size: int, runs: list[dict[str, Any]]) -> str:
    """The medians of some runs, as a line of a table."""
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    totals, served = ([1000 * run[name] for run in runs] for name in ("total", "served"))
    lines = int(middle["lines"])
    cells = [
        strategy,
        human_bytes(size),
        f"{1000 * middle['create']:.0f}",
        f"{1000 * middle['open']:.1f}",
        f"{1000 * middle['first']:.2f}",
        f"{1000 * middle['total']:.1f} ({min(totals):.1f}–{max(totals):.1f})",
        f"{1000 * middle['served']:.0f} ({min(served):.0f}–{max(served):.0f})",
        str(lines),
        human_bytes(lines * middle["line_bytes"]),
        f"{middle['anonymous_bytes'] / 2**20:.0f}",
        f"{middle['server_rss'] / 2**20:.0f}",
        human_bytes(middle["used"]),
    ]
    return "| " + " | ".join(cells) + " |"


def worked_out(size: int, largest: int, runs: list[dict[str, Any]]) -> str:
    """What eager would take at `size`, in proportion to the largest size that was measured."""
    share = size / largest
    seconds = statistics.median(run["create"] for run in runs) * share
    lines = int(statistics.median(run["lines"] for run in runs) * share)
    told = human_bytes(lines * runs[0]["line_bytes"])
    return f"| eager, worked out | {human_bytes(size)} | {1000 * seconds:.0f} | | | | | {lines} | {told} | | | |"


COLUMNS = (
    "strategy",
    "medium",
    "create, ms",
    "open, ms",
    "first write, ms",
    "open to answer, ms",
    "start of the server to answer, ms",
    "lines worn",
    "bytes",
    "anonymous, MiB",
    "RSS of the server, MiB",
    "on disk",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--sizes", default="1G,64G,1T,16T")
    parser.add_argument("--strategies", default=",".join(layout.INITIALISE))
    parser.add_argument("--leveling", default="start_gap")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--eager-up-to", type=parse_size, default=parse_size("64G"))
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        what, path, *rest = given.step
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "create": lambda: timed_create(Path(path), int(rest[0]), *rest[1:]),
            "use": lambda: timed_use(Path(path)),
            "serve": lambda: timed_server(Path(path)),
        }
        print(json.dumps(steps[what]()))
        return
    sizes = [parse_size(size) for size in given.sizes.split(",")]
    strategies = given.strategies.split(",")
    pairs = [
        (strategy, size)
        for size in sizes
        for strategy in strategies
        if strategy != "eager" or size <= given.eager_up_to
    ]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for _ in range(given.runs):
            for strategy, size in pairs:
                found[strategy, size].append(measure(Path(folder), size, strategy, given.leveling))
    print(f"{given.leveling}, medians of {given.runs}\n\n{HEAD}")
    for strategy in strategies:
        done = [size for name, size in pairs if name == strategy]
        for size in sizes:
            if size in done:
                print(row(strategy, size, found[strategy, size]))
            elif done:
                print(worked_out(size, max(done), found[strategy, max(done)]))


if __name__ == "__main__":
    main()
