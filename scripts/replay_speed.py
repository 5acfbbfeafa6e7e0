# SPDX-License-Identifier: MIT
"""How fast a replay is: page writes a second on one core, by leveling, placement, line and size (docs/replay.md).

    .venv/bin/python scripts/replay_speed.py [--rounds 7] [--write-docs]

Uniform page writes, drawn while they are replayed, each followed by its descriptor where the placement has one; the
configurations take turns, and medians are printed.
"""

import argparse
import itertools
import re
import statistics
from pathlib import Path

from pmem_core import geometry
from pmem_core.replay import lives
from pmem_core.replay.endurance import Endurance

SIZES = {"32M": 32 << 20, "1G": 1 << 30, "16G": 16 << 30}
PAGE_WRITES = 1 << 21
DOCS = Path(__file__).resolve().parent.parent / "docs" / "replay.md"
BEGIN, END = "<!-- replay speed: begin -->", "<!-- replay speed: end -->"


def seconds(plan: geometry.Geometry) -> float:
    """The time of PAGE_WRITES page writes on a fresh device."""
    source = lives.Synthetic("uniform", {}, plan, 1)
    return lives.live(plan, source, Endurance(1 << 31), page_writes_max=PAGE_WRITES).seconds


def main() -> None:
    """Print the table, and put it into docs/replay.md with --write-docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs (default 7)")
    parser.add_argument("--write-docs", action="store_true", help="replace the table in docs/replay.md")
    chosen = parser.parse_args()
    kinds = list(itertools.product(("none", "start_gap", "sampled_swap"), ("interleaved", "none"), (4096, 256)))
    plans = {
        (leveling, placement, line, size): geometry.plan(
            SIZES[size], leveling_name=leveling, placement_name=placement, line_bytes=line
        )
        for (leveling, placement, line), size in itertools.product(kinds, SIZES)
    }
    seen: dict[tuple, list[float]] = {key: [] for key in plans}
    for plan in plans.values():
        seconds(plan)  # compiled, or loaded
    for _ in range(chosen.rounds):
        for key, plan in plans.items():
            seen[key].append(seconds(plan))
    rows = [
        f"Million page writes a second on one core, medians of {chosen.rounds} alternating runs of {PAGE_WRITES}",
        "uniform page writes, by the size of the medium:",
        "",
        "| leveling | placement | line | " + " | ".join(SIZES) + " |",
        "| --- | --- | --- |" + " --- |" * len(SIZES),
    ]
    for leveling, placement, line in kinds:
        rates = (PAGE_WRITES / statistics.median(seen[leveling, placement, line, size]) / 1e6 for size in SIZES)
        rows.append(f"| {leveling} | {placement} | {line} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |")
    text = "\n".join(rows)
    print(text)
    if chosen.write_docs:
        page = DOCS.read_text()
        DOCS.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
