# SPDX-License-Identifier: MIT
"""How long an interleaved device lives under each leveling at equal extra writes: docs/leveling-rivals.md.

    .venv/bin/python scripts/rivals.py --markdown docs/leveling-rivals.md     # an hour on one core
    .venv/bin/python scripts/rivals.py --frames 1024 --only sampled --workloads raa --lines 1

Pages of an interleaved device with 64-byte descriptors are written; each write is followed by a store to the page's
descriptor.  The compiled policies run, without a medium, until the first line has worn out.  --lines: lines a frame;
1 counts wear by frame, 16 and 64 by lines of 256 and 64 bytes in frames of 4096.

Workloads: uniform; zipf (0.99, over shuffled pages); hotcold (90 % of the writes to 10 % of the pages); sequential; raa
(one page again and again); birthday (a page drawn at random `--hammer` times, then another).

Normalised life = line writes by the host, data and descriptors, at the first death / (lines * endurance).
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from numba import njit

from pmem_core import geometry, layout, leveling, media, placement
from pmem_core.placement import interleaved

WORKLOADS = ("uniform", "zipf", "hotcold", "sequential", "raa", "birthday")
BATCH = 1000


@njit
def _store(run, core, placed, frame_lines, is_descriptor):
    """Wear a page's frame, or the one line of a descriptor, and tick."""
    frame = placed >> layout.PAGE_SHIFT
    first = leveling.translate(core["leveling"], run, frame) * frame_lines + (
        media.frame_at(run, 0) >> run["line_shift"]
    )
    if is_descriptor:
        within = (placed & (layout.PAGE_BYTES - 1)) * frame_lines >> layout.PAGE_SHIFT
        media.wear_lines(run, core, layout.CAUSE_DESCRIPTOR, first + within, 1)
    else:
        media.wear_lines(run, core, layout.CAUSE_HOST, first, frame_lines)
    leveling.tick(core["leveling"], run, frame, 1 if is_descriptor else frame_lines)


@njit
def _live(runs, cores, pages, repeats, frame_lines, endurance):
    """Write each of the pages `repeats` times, again and again, until a line has been written `endurance` times."""
    run, core = runs[0], cores[0]
    at, again = 0, 0
    while core["tally"]["hottest"] < endurance:
        for _ in range(BATCH):
            page = pages[at]
            again += 1
            if again >= repeats:
                at, again = at + 1 if at + 1 < len(pages) else 0, 0
            data = placement.page_at(core["placement"], page)
            descriptor = placement.descriptor_at(core["placement"], page)
            stopped = True
            while stopped:
                stopped = False
                for placed in (data, descriptor):
                    if leveling.settle(core["leveling"], run, core, placed >> layout.PAGE_SHIFT):
                        media.durable_table_of(run)[:] = media.table_of(run)
                        stopped = True
            _store(run, core, data, frame_lines, False)
            _store(run, core, descriptor, frame_lines, True)


def pages_of(workload, page_count, generator):
    """The pages written, int64[], and how often each in a row."""
    if workload == "sequential":
        return np.arange(page_count), 1
    if workload == "raa":
        return generator.integers(0, page_count, 1), 1
    if workload == "birthday":
        return generator.integers(0, page_count, 1 << 20), 0
    if workload == "hotcold":
        order, hot = generator.permutation(page_count), page_count // 10
        is_hot = generator.random(1 << 22) < 0.9
        drawn = np.where(is_hot, generator.integers(0, hot, 1 << 22), generator.integers(hot, page_count, 1 << 22))
        return order[drawn], 1
    weights = 1 / np.arange(1, page_count + 1) ** (0.99 if workload == "zipf" else 0)
    return generator.choice(generator.permutation(page_count), 1 << 22, p=weights / weights.sum()), 1


def life(name, parameters, *, frames, endurance, frame_lines, workload, seed, hammer):
    """(normalised life, lines moved / host lines) of one device of about `frames` frames."""
    module = leveling.family.modules[name]
    chosen = geometry.parameters_of(module, parameters, name, frames)
    state, placed, table, ticks = module.plan(frames, chosen, seed)
    placement_state, page_count = interleaved.plan(placed * layout.PAGE_BYTES, 64)
    core = np.zeros(1, layout.core_dtype(interleaved.STATE, module.STATE))
    core["placement"], core["leveling"] = placement_state, state
    line_shift = layout.PAGE_SHIFT - (frame_lines.bit_length() - 1)
    medium_bytes = layout.FRAMES_AT + (frames << layout.PAGE_SHIFT)
    arrays = {
        "wear": np.zeros(medium_bytes >> line_shift, np.uint32),
        "table": np.append(table, 0),
        "durable": np.append(table, 0),
        "ticks": np.zeros(ticks + 1, np.int64),
    }
    run = np.zeros(1, layout.RUN)
    for part, array in arrays.items():
        run[part] = array.ctypes.data
    run["medium_bytes"], run["line_count"] = medium_bytes, len(arrays["wear"])
    run["table_words"], run["tick_words"] = len(arrays["table"]), len(arrays["ticks"])
    run["frame_shift"], run["line_shift"] = layout.PAGE_SHIFT, line_shift
    pages, repeats = pages_of(workload, page_count, np.random.default_rng(seed))
    _live(run, core, pages, repeats or hammer, frame_lines, endurance)
    worn = core["tally"]["worn"][0]
    host = int(worn[layout.CAUSE_HOST] + worn[layout.CAUSE_DESCRIPTOR])
    hottest = int(core["tally"]["hottest"][0])
    return host / (frames * frame_lines * hottest), int(worn[layout.CAUSE_MOVE]) / host


# Each at 1 % extra writes, counted by frame.
CHOICES = {
    "sampled_swap": ("sampled_swap", {}),
    "start_gap, one region, gap 1": ("start_gap", {"region_frames": 1 << 30, "gap_frames": 1}),
    "the same, randomised": ("start_gap", {"region_frames": 1 << 30, "gap_frames": 1, "randomize": 1}),
    "start_gap, regions of 512": ("start_gap", {"region_frames": 512}),
    "table_swap, random": ("table_swap", {"interval": 200, "block_frames": 1}),
    "table_swap, coldest of 16": ("table_swap", {"interval": 200, "block_frames": 1, "candidates": 16}),
    "table_swap, blocks of 16, coldest of 16": ("table_swap", {"interval": 3200, "candidates": 16}),
    "security_refresh": ("security_refresh", {"interval": 100, "block_frames": 1}),
    "optane, blocks of 1": ("optane", {"threshold": 3200, "block_frames": 1}),
    "optane, blocks of 16": ("optane", {"threshold": 51200}),
}


def measured(label, frame_lines, chosen):
    """One row: life and extra writes of each workload, medians over the seeds."""
    name, parameters = CHOICES[label]
    if chosen.set:
        parameters = parameters | {key: int(value) for key, value in (pair.split("=") for pair in chosen.set)}
    cells = []
    for workload in chosen.workloads:
        seen = [
            life(
                name,
                parameters,
                frames=chosen.frames,
                endurance=chosen.endurance,
                frame_lines=frame_lines,
                workload=workload,
                seed=seed,
                hammer=chosen.hammer,
            )
            for seed in range(chosen.seeds)
        ]
        lived, extra = np.median(seen, axis=0)
        cells.append(f"{100 * lived:.1f} ({100 * extra:.2f})")
    return f"| {label} | {4096 // frame_lines} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and write it with --markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8192, help="frames of the medium (default 8192)")
    parser.add_argument("--endurance", type=int, default=20000, help="writes a line survives, W (default 20000)")
    parser.add_argument("--lines", type=int, nargs="*", default=[1, 16, 64], help="lines a frame (default 1 16 64)")
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS, choices=WORKLOADS, help="which (default all)")
    parser.add_argument("--only", default="", help="levelings with this in their name")
    parser.add_argument("--set", nargs="*", default=[], help="name=value: other parameters")
    parser.add_argument("--hammer", type=int, default=1000, help="birthday: writes to a page in a row (default 1000)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds; medians are printed (default 1)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    chosen = parser.parse_args()
    rows = [
        f"| leveling, W = {chosen.endurance}, {chosen.frames} frames | line | {' | '.join(chosen.workloads)} |",
        "| --- " * (2 + len(chosen.workloads)) + "|",
    ]
    print(*rows, sep="\n", flush=True)
    for lines, label in itertools.product(chosen.lines, CHOICES):
        if chosen.only in label and CHOICES[label][0] in leveling.family.modules:
            rows.append(measured(label, lines, chosen))
            print(rows[-1], flush=True)
    if chosen.markdown:
        head = "Life in % of the ideal, in brackets the extra line writes in %."
        chosen.markdown.write_text("\n".join([head, "", *rows, ""]))


if __name__ == "__main__":
    main()
