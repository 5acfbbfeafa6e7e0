# SPDX-License-Identifier: MIT
"""How long an interleaved device lives under each leveling, at 1 % extra writes: docs/leveling-rivals.md.

    .venv/bin/python scripts/rivals.py --lines 4096 256 --markdown docs/leveling-rivals.md     # ten minutes to an hour
    .venv/bin/python scripts/rivals.py --frames 1024 --only sampled --workloads repeated --lines 4096
    .venv/bin/python scripts/rivals.py --choice sampled_swap:interval=80 --workloads zipf --lines 256

Whole pages are written, each followed by its descriptor of 64 bytes (as `pmem-nbd replay` does), until the first line
has worn out.  Frames are of 4096 bytes; --lines: bytes a line, so that 4096 counts wear by frame.

Normalised life = line writes by the host, data and descriptors, at the first death / (lines * endurance).
"""

import argparse
import itertools
import uuid
from pathlib import Path

import numpy as np

from pmem_core import geometry, layout, leveling, rounding
from pmem_core.replay import lives
from pmem_core.replay.endurance import Endurance

WORKLOADS = ("uniform", "zipf", "hot_cold", "sequential", "repeated", "birthday")

# The intervals are those that give 1 % extra writes, counted by frame.
CHOICES = {
    "sampled_swap": ("sampled_swap", {}),
    "table_swap, coldest of 16": ("table_swap", {"interval": 200, "block_frames": 1, "candidates": 16}),
    "table_swap, random": ("table_swap", {"interval": 200, "block_frames": 1}),
    "table_swap, blocks of 16, coldest of 16": ("table_swap", {"interval": 3200, "candidates": 16}),
    "start_gap, one region, gap 1": ("start_gap", {"region_frames": 1 << 30, "gap_frames": 1}),
    "the same, randomised": ("start_gap", {"region_frames": 1 << 30, "gap_frames": 1, "randomize": 1}),
    "start_gap, regions of 512": ("start_gap", {"region_frames": 512}),
    "security_refresh": ("security_refresh", {"interval": 100, "block_frames": 1}),
    "optane, blocks of 1": ("optane", {"threshold": 3200, "block_frames": 1}),
    "optane, blocks of 16": ("optane", {"threshold": 51200}),
    "none": ("none", {}),
}


def chosen_by(spec):
    """(name, parameters) of NAME:KEY=VALUE:..., as `pmem-nbd study` has them."""
    name, *words = spec.split(":")
    return name, {key: int(value) for key, value in (word.split("=") for word in words)}


def life(choice, workload, line_bytes, frames, endurance, seed):
    """(normalised life, extra writes) of one device of `frames` frames; choice: name and parameters."""
    name, parameters = choice
    size = layout.FRAMES_AT + frames * layout.PAGE_BYTES
    keys = str(uuid.UUID(int=seed))  # policies draw theirs from it
    plan = geometry.plan(size, leveling_name=name, parameters=parameters, line_bytes=line_bytes, uuid=keys)
    given = {"residence": 1000} if workload == "birthday" else {}
    source, survives = lives.Synthetic(workload, given, plan, seed), Endurance(endurance)
    found = lives.figures(lives.live(plan, source, survives, seed=seed), source, survives)
    return found["normalized_life"], found["extra_writes"]


def main() -> None:
    """Print the table, and write it with --markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8192, help="frames of the medium (default 8192)")
    parser.add_argument("--endurance", type=int, default=20000, help="writes a line survives, W (default 20000)")
    parser.add_argument("--lines", type=int, nargs="*", default=[4096, 256, 64], help="bytes a line")
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS, choices=WORKLOADS, help="which (default all)")
    parser.add_argument("--only", default="", help="levelings with this in their name")
    parser.add_argument("--choice", action="append", metavar="NAME:KEY=VALUE", help="these, and not the table's own")
    parser.add_argument("--seeds", type=int, default=1, help="seeds; medians are printed (default 1)")
    parser.add_argument("--markdown", type=Path, help="append the table to this file")
    chosen = parser.parse_args()
    rows = [
        f"| leveling, W = {chosen.endurance}, {chosen.frames} frames | line | {' | '.join(chosen.workloads)} |",
        "| --- " * (2 + len(chosen.workloads)) + "|",
    ]
    print(*rows, sep="\n", flush=True)
    choices = {spec: chosen_by(spec) for spec in chosen.choice} if chosen.choice else CHOICES
    for line_bytes, label in itertools.product(chosen.lines, choices):
        if chosen.only not in label or choices[label][0] not in leveling.family.modules:
            continue
        cells = []
        for workload in chosen.workloads:
            seeds = range(1, chosen.seeds + 1)
            seen = [life(choices[label], workload, line_bytes, chosen.frames, chosen.endurance, seed) for seed in seeds]
            lived, extra = np.median(seen, axis=0)
            cells.append(f"{rounding.percent(lived, 1, 'high', '')} ({rounding.percent(extra, 2, 'low', '')})")
        rows.append(f"| {label} | {line_bytes} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    if chosen.markdown:
        with chosen.markdown.open("a") as file:
            file.write("\n".join(["", *rows, ""]))


if __name__ == "__main__":
    main()
