# SPDX-License-Identifier: MIT
"""How long an open takes after a kill and after a power cut, by the size of the device and the sections in use.

    .venv/bin/python scripts/recovery_time.py FOLDER

Writes pages spread over a sparse image in FOLDER, flushes, lets go of it without a close and opens it again.  A power
cut is one by the journal's word: it is made to say that the last session was in another boot.
"""

import argparse
import tempfile
import time
from pathlib import Path

from pmem_core import geometry, image, layout
from pmem_core.device import Device
from pmem_core.journal import Journal


def seconds_to_open(folder: Path, size: int, writes: int, end: str) -> tuple[float, str]:
    """Seconds of an open after `end`, and what it says that it did."""
    path = folder / "disk.pmem"
    image.create(path, geometry.plan(size))
    device = Device(path)
    pages = device.plan.info.page_count
    for number in range(writes):
        device.write(b"x" * layout.PAGE_BYTES, number * (pages // writes) * layout.PAGE_BYTES)
    device.flush()
    device.abandon()
    if end == "power cut":
        journal = Journal(path / "journal")
        journal.begin_session({"boot": "another"})
        journal.close()
    started = time.perf_counter()
    device = Device(path)
    took = time.perf_counter() - started
    told = str(device.recovered)
    device.close()
    return took, told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    chosen = arguments.parse_args()
    print("| device | pages written, spread | end | open, s | what it says |\n| --- | --- | --- | --- | --- |")
    for name, size in (("1 GiB", 1 << 30), ("1 TiB", 1 << 40)):
        for writes in (1, 2000):
            for end in ("killed", "power cut"):
                with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
                    took, told = seconds_to_open(Path(folder), size, writes, end)
                print(f"| {name} | {writes} | {end} | {took:.3f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
