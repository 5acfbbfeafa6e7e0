# SPDX-License-Identifier: MIT
"""How long an open takes after a kill and after a power cut, by the size of the device, the sections in use and the
length of the journal.

    .venv/bin/python scripts/recovery_time.py FOLDER

Writes pages spread over a sparse image in FOLDER, flushes, lets go of it without a close and opens it again.  A power
cut is one by the journal's word: it is made to say that the last session was in another boot.  A long journal has as
many events and samples as it ever keeps.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

from pmem_core import geometry, image, layout
from pmem_core.device import Device
from pmem_core.journal import EVENTS_MAX, HISTORY_MAX, Journal


def lengthen(folder: Path) -> None:
    """Fill the journal with events and samples."""
    journal = Journal(folder)
    worn = dict.fromkeys(layout.CAUSES, 1 << 40)
    with journal._write() as transaction:  # one transaction: by events and samples it would be many thousands
        for name, count in ((b"events", EVENTS_MAX), (b"history", HISTORY_MAX)):
            for number in range(count - 1):
                record = json.dumps({"writes": number, "worn": worn, "what": "x" * 150}).encode()
                journal._put(transaction, name, b"%020d" % (10**18 + number), record)
    journal.close()


def seconds_to_open(folder: Path, size: int, writes: int, end: str, *, long: bool) -> tuple[float, str]:
    """Seconds of an open after `end`, and what it says that it did."""
    path = folder / "disk.pmem"
    image.create(path, geometry.plan(size))
    if long:
        lengthen(path / "journal")
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
    print("| device | pages written, spread | journal | end | open, s | what it says |")
    print("| --- | --- | --- | --- | --- | --- |")
    sizes, ends = {"1 GiB": 1 << 30, "1 TiB": 1 << 40}, ("killed", "power cut")
    for name, writes, long, end in itertools.product(sizes, (1, 2000), (False, True), ends):
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            took, told = seconds_to_open(Path(folder), sizes[name], writes, end, long=long)
        kept = "long" if long else "short"
        print(f"| {name} | {writes} | {kept} | {end} | {took:.3f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
