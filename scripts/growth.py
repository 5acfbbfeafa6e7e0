# SPDX-License-Identifier: MIT
"""What larger descriptors cost, in room and in wear: the tables of docs/converting.md.

.venv/bin/python scripts/growth.py               print them
.venv/bin/python scripts/growth.py --write-docs  and put them into the document
"""

import argparse
import contextlib
import io
import json
import re
import sys
from pathlib import Path

from pmem_core import cli, geometry, rounding
from pmem_core.errors import UsageError

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "converting.md"
SIZE = 8 << 30
SIZES = [1 << n for n in range(4, 13)]
WORN = [32, 64, 128, 256, 512, 1024, 4096]
LINES = [4096, 256, 64]
WORKLOAD = ["--size", "8M", "--workload", "uniform", "--endurance", "20000", "--set", "interval=20"]


def room() -> list[str]:
    """What the client sees of 8 GiB."""
    rows = [
        "| descriptor | interleaved | linear | of 8 GiB the client sees, interleaved |",
        "| --- | --- | --- | --- |",
    ]
    for size in SIZES:
        shares, seen = [], 0
        for place in ("interleaved", "linear"):
            try:
                plan = geometry.plan(SIZE, placement_name=place, leveling_name="none", descriptor_bytes=size)
            except UsageError:
                shares.append("no room for a page")
                continue
            seen = seen or plan.device_bytes
            shares.append(rounding.percent(1 - plan.device_bytes / SIZE, 2, "low", "%"))
        rows.append(f"| {size} | 1/{4096 // size + 1}: {shares[0]} | {shares[1]} | {seen} |")
    return rows


def replay(size: int, line: int, leveling: str) -> dict:
    """The figures of one replay."""
    options = WORKLOAD if leveling == "start_gap" else WORKLOAD[:-2]
    command = ["replay", *options, "--leveling", leveling, "--descriptor-bytes", str(size), "--line-bytes", str(line)]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert cli.main([*command, "-j"]) == 0, command
    return json.loads(told.getvalue())


def wear() -> list[str]:
    """Hottest line and life, by line, without and with leveling."""
    heads = [f"{line} {what}" for line in LINES for what in ("hottest / mean", "life, none", "life, start_gap")]
    rows = ["| descriptor | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for size in WORN:
        cells = []
        for line in LINES:
            plain, leveled = replay(size, line, "none"), replay(size, line, "start_gap")
            worn = plain["wear"]["all"]
            lives = [f"{rounding.percent(found['normalized_life'], 1, 'high')}" for found in (plain, leveled)]
            cells += [f"{worn['max'] / worn['mean']:.2f}", *lives]
        rows.append(f"| {size} | " + " | ".join(cells) + " |")
    return rows


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    for name, table in (("room", room()), ("wear", wear())):
        print("\n".join(table) + "\n")
        if given.write_docs:
            begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
            text = "\n".join(table)
            page = re.sub(f"{begin}.*{end}", f"{begin}{text}\n{end}", DOCUMENT.read_text(), flags=re.DOTALL)
            DOCUMENT.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
