# SPDX-License-Identifier: MIT
"""How long a device lives under Start-Gap's choices, and Security Refresh's, beside each other (docs/leveling.md).

    .venv/bin/python scripts/life.py [--frames 8192] [--endurance 20000] [--markdown docs/leveling-life.md]

Pages of an interleaved device with 64-byte descriptors are written at random (uniform, or zipf 0.99 over shuffled
pages); each write is followed by a store to the page's descriptor.  The compiled policy itself runs, on a medium of
64-byte lines, until the first line has worn out.  Two units of wear: a frame is one line ("frame"), or sixteen of
which a descriptor store wears one ("line", the proportions of the defaults: 4096 and 256 bytes).

Normalised life = line writes by the host, data and descriptors, at the first death / (lines * endurance).
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from numba import njit

from pmem_core import layout, leveling, media, placement, reservations
from pmem_core.leveling import none, security_refresh, start_gap
from pmem_core.placement import interleaved

BATCH = 1000


@njit
def _write(run, core, placed, frame_lines, is_descriptor):
    """Store a page, or the one line of a descriptor, and tick."""
    frame = placed >> layout.PAGE_SHIFT
    first = leveling.translate(core["leveling"], run, frame) * frame_lines
    if is_descriptor:
        within = (placed & (layout.PAGE_BYTES - 1)) * frame_lines >> layout.PAGE_SHIFT
        media.wear_lines(run, core, layout.CAUSE_DESCRIPTOR, first + within, 1)
    else:
        media.wear_lines(run, core, layout.CAUSE_HOST, first, frame_lines)
    leveling.tick(core["leveling"], run, frame, 1 if is_descriptor else frame_lines)


@njit
def _live(runs, cores, pages, frame_lines, endurance):
    """Write the pages in turn, again and again from another start, until a line has been written `endurance` times."""
    run, core = runs[0], cores[0]
    at = 0
    while core["tally"]["hottest"] < endurance:
        for _ in range(BATCH):
            page = pages[at]
            at = at + 1 if at + 1 < len(pages) else 0
            data = placement.page_at(core["placement"], page)
            descriptor = placement.descriptor_at(core["placement"], page)
            for placed in (data, descriptor):
                while leveling.settle(core["leveling"], run, core, placed >> layout.PAGE_SHIFT):
                    media.durable_table_of(run)[:] = media.table_of(run)
            _write(run, core, data, frame_lines, False)
            _write(run, core, descriptor, frame_lines, True)


def life(module, parameters, *, frames, endurance, frame_lines, zipf, seed):
    """(normalised life, lines moved / host lines) of one device."""
    chosen = {name: spec[0] for name, spec in module.PARAMETERS.items()} | parameters
    state, placed, table, ticks = module.plan(frames, chosen, seed)
    placement_state, page_count = interleaved.plan(placed * layout.PAGE_BYTES, 64)
    core = np.zeros(1, layout.core_dtype(interleaved.STATE, module.STATE))
    core["placement"], core["leveling"] = placement_state, state
    frame_shift = (64 * frame_lines).bit_length() - 1
    medium_bytes = layout.FRAMES_AT + (frames << frame_shift)
    arrays = {
        "media": np.zeros(medium_bytes, np.uint8),
        "wear": np.zeros(medium_bytes // 64, np.uint32),
        "table": np.append(table, 0),
        "durable": np.append(table, 0),
        "ticks": np.zeros(ticks + 1, np.int64),
        "reserved": np.full((medium_bytes >> reservations.RESERVE_SHIFT) + 1, reservations.RESERVED, np.uint8),
    }
    run = np.zeros(1, layout.RUN)
    for name, array in arrays.items():
        run[name] = array.ctypes.data
    run["medium_bytes"], run["line_count"] = medium_bytes, len(arrays["wear"])
    run["table_words"] = run["tick_words"] = len(arrays["table"])
    run["reserved_count"], run["frame_shift"], run["line_shift"] = len(arrays["reserved"]), frame_shift, 6
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, page_count + 1) ** (0.99 if zipf else 0)
    pages = generator.choice(generator.permutation(page_count), 1 << 22, p=weights / weights.sum())
    _live(run, core, pages, frame_lines, endurance)
    worn = core["tally"]["worn"][0]
    host = int(worn[layout.CAUSE_HOST] + worn[layout.CAUSE_DESCRIPTOR])
    hottest = int(core["tally"]["hottest"][0])
    return host / (frames * frame_lines * hottest), int(worn[layout.CAUSE_MOVE]) / host


CHOICES = [
    ("none", none, {}),
    ("start_gap, one region, gap 1 (the paper's)", start_gap, {"region_frames": 1 << 30, "gap_frames": 1}),
    ("the same, randomised", start_gap, {"region_frames": 1 << 30, "gap_frames": 1, "randomize": 1}),
] + [
    (f"start_gap, regions of {region}, gap {gap}", start_gap, {"region_frames": region, "gap_frames": gap})
    for region, gap in ((256, 4), (512, 8), (512, 13), (1024, 16), (2048, 32), (2048, 15), (4096, 64), (8192, 128))
]
_FRAMES = {"block_frames": 1, "spare_blocks": 1}
_LEVELS = {"sub_regions": 64, "interval": 200, "outer_interval": 200}
CHOICES += [
    ("security_refresh, one level, blocks of one frame", security_refresh, _FRAMES),
    ("the same, 64 sub-regions, interval 200 on both levels", security_refresh, _FRAMES | _LEVELS),
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
    for name, module, parameters in CHOICES:
        frames = chosen.frames + frames_beside(parameters, chosen.frames)
        lives, extras = [], {}
        for zipf, frame_lines in itertools.product((False, True), (1, 16)):
            seen = [
                life(
                    module,
                    parameters,
                    frames=frames,
                    endurance=chosen.endurance,
                    frame_lines=frame_lines,
                    zipf=zipf,
                    seed=seed,
                )
                for seed in range(chosen.seeds)
            ]
            lives.append(f"{100 * float(np.median([one for one, _ in seen])):.1f} %")
            extras[frame_lines] = f"{100 * seen[0][1]:.2f} %"
        rows.append(f"| {name} | {' | '.join(lives)} | {extras[1]} | {extras[16]} |")
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
