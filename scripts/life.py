# SPDX-License-Identifier: MIT
"""How long a device lives under Start-Gap's choices, and Security Refresh's, beside each other (docs/leveling.md).

    .venv/bin/python scripts/life.py [--frames 8192] [--endurance 20000] [--markdown docs/leveling-life.md]

Pages of an interleaved device with 64-byte descriptors are written at random (uniform, or zipf 0.99 over shuffled
pages), drawn anew for as long as the device lives; each write is followed by a store to the page's descriptor, as
`pmem-nbd replay` does it, until the first line has worn out.  Two units of wear: a frame is one line of 4096 bytes
("frame"), or sixteen of 256 bytes, of which a descriptor store wears one ("line").

Normalised life = line writes by the host, data and descriptors, at the first death / (lines * endurance).
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from rivals import life

from pmem_core import rounding
from pmem_core.layout import PAGE_BYTES

CHOICES = [
    ("none", "none", {}),
    ("start_gap, one region, gap 1 (the paper's)", "start_gap", {"region_frames": 1 << 30, "gap_frames": 1}),
    ("the same, randomised", "start_gap", {"region_frames": 1 << 30, "gap_frames": 1, "randomize": 1}),
] + [
    (f"start_gap, regions of {region}, gap {gap}", "start_gap", {"region_frames": region, "gap_frames": gap})
    for region, gap in ((256, 4), (512, 8), (512, 13), (1024, 16), (2048, 32), (2048, 15), (4096, 64), (8192, 128))
]
_FRAMES = {"block_frames": 1, "spare_blocks": 1}
_LEVELS = {"sub_regions": 64, "interval": 200, "outer_interval": 200}
CHOICES += [
    ("security_refresh, one level, blocks of one frame", "security_refresh", _FRAMES),
    ("the same, 64 sub-regions, interval 200 on both levels", "security_refresh", _FRAMES | _LEVELS),
]


def frames_beside(parameters, frames):
    """How many frames a leveling of `frames` placed ones wants besides."""
    if "spare_blocks" in parameters:
        return 2 * parameters["spare_blocks"] * parameters["block_frames"]
    region = min(parameters.get("region_frames", frames), frames)
    return frames // region * parameters.get("gap_frames", 0)


def main() -> None:
    """Print the table, and write it with --markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8192, help="placed frames, about (default 8192)")
    parser.add_argument("--endurance", type=int, default=20000, help="writes a line survives, W (default 20000)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds; the median is printed (default 3)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    chosen = parser.parse_args()
    rows = [
        "| leveling (interval 100) | uniform, frame | uniform, line | zipf, frame | zipf, line | extra, frame | line |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print(*rows, sep="\n")
    for name, leveling, parameters in CHOICES:
        frames = chosen.frames + frames_beside(parameters, chosen.frames)
        cells, extras = [], {}
        for workload, frame_lines in itertools.product(("uniform", "zipf"), (1, 16)):
            seen = [
                life((leveling, parameters), workload, PAGE_BYTES // frame_lines, frames, chosen.endurance, seed)
                for seed in range(1, chosen.seeds + 1)
            ]
            cells.append(rounding.percent(float(np.median([one for one, _ in seen])), 1, "high"))
            extras[frame_lines] = rounding.percent(seen[0][1], 2, "low")
        rows.append(f"| {name} | {' | '.join(cells)} | {extras[1]} | {extras[16]} |")
        print(rows[-1], flush=True)
    if chosen.markdown:
        head = (
            f"Made by `scripts/life.py`: W = {chosen.endurance}, {chosen.frames} placed frames, interval 100,"
            f" medians of {chosen.seeds} seeds.\nNormalised life, with wear counted by frame (4096 bytes) or by line"
            " (256); extra: line writes by moves.\nWhat it says is in [leveling](leveling.md)."
        )
        chosen.markdown.write_text("\n".join(["# Start-Gap's choices compared", "", head, "", *rows, ""]))


if __name__ == "__main__":
    main()
