# SPDX-License-Identifier: MIT
"""What a leveling's table costs on a large device: create, open, checkpoint, stats and room.

    .venv/bin/python scripts/table_cost.py FOLDER

Makes sparse images of 1 TiB in FOLDER, with each leveling in turn, and writes 2000 pages spread over each.  Seconds are
medians over --rounds; what a checkpoint costs is that after the writes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmem_core import geometry, image, layout
from pmem_core.device import Device

SIZE, WRITES = 1 << 40, 2000
LEVELINGS: dict[str, tuple[str, dict[str, int]]] = {
    "start_gap": ("start_gap", {}),
    "table_swap": ("table_swap", {}),
    "sampled_swap": ("sampled_swap", {}),
    "table_swap, blocks of 16 frames": ("table_swap", {"block_frames": 16}),
}


def costs(folder: Path, leveling: str, parameters: dict[str, int]) -> dict[str, float]:
    """Of one new image: seconds of each step; its table's words, and the bytes that it takes."""
    path, seconds = folder / "disk.pmem", {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = function()
        seconds[name] = time.perf_counter() - begun
        return result

    plan = geometry.plan(SIZE, leveling_name=leveling, parameters=parameters)
    timed("create", lambda: image.create(path, plan))
    with timed("open", lambda: Device(path)) as device:
        for number in range(WRITES):
            page = number * (plan.info.page_count // WRITES)
            device.write(b"x" * layout.PAGE_BYTES, page * layout.PAGE_BYTES)
        timed("checkpoint", device.checkpoint)
    command = [sys.executable, "-P", "-m", "pmem_core", "stats", "-j", str(path)]
    timed("stats", lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    taken = sum(512 * one.stat().st_blocks for one in path.rglob("*"))
    return {"words": len(plan.table), **seconds, "bytes": taken}


def main() -> None:
    """Print the table of docs/leveling.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--rounds", type=int, default=3)
    chosen = arguments.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LEVELINGS}
    for _ in range(chosen.rounds):
        for name, (leveling, parameters) in LEVELINGS.items():
            with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
                found[name].append(costs(Path(folder), leveling, parameters))
    print("| leveling, 1 TiB | words | create | open | checkpoint | stats -j | on the disk |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, rounds in found.items():
        took = [
            f"{statistics.median(one[step] for one in rounds):.2f} s"
            for step in ("create", "open", "checkpoint", "stats")
        ]
        print(
            f"| {name} | {rounds[0]['words']} | {' | '.join(took)} | {rounds[0]['bytes'] / 2**20:.0f} MiB |", flush=True
        )


if __name__ == "__main__":
    main()
