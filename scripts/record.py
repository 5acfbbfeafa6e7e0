# SPDX-License-Identifier: MIT
"""Record real workloads on ext4, to be replayed: those that pmem-nbd ships, see docs/recorded-workloads.md.

For each, a new image of 28 MiB for the client, without descriptors and leveling, is served with --record, attached (by
nbd-client, or nbdfuse and a loop device), and given ext4; the workload runs, the filesystem is unmounted, the server
stopped.  Each command is printed before it runs.  What is asked of the filesystem follows from --seed; which requests
the kernel makes of that depends on its timing too.
"""

import argparse
import contextlib
import itertools
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb

from pmem_core import attach, server, traces
from pmem_core.errors import PmemError
from pmem_core.layout import FRAMES_AT
from pmem_core.traces.summary import Summary

DEVICE_BYTES = 28 << 20
RECORDING_BYTES_MAX = 600_000
UUID = "00000000-0000-4000-8000-000000000001"  # of the filesystem, and what its folders are hashed with
ENTRIES = 20_000
VALUE_BYTES = 100
ZIPF = 0.99
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PMEM = str(Path(sys.executable).with_name("pmem-nbd"))


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Print a command and run it; return what it prints."""
    words = [str(word) for word in command]
    print("$", shlex.join([Path(words[0]).name, *words[1:]]), flush=True)
    return subprocess.run(
        words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


# ---- workloads: each is given an empty folder of a mounted ext4, and the seed ----


def fio(folder: Path, seed: int) -> None:
    """Rounds of three jobs at once: two write at random, with an fsync every 32; one writes files, deleted then."""
    # Threads end with fio, processes may hold the filesystem for a moment more.
    common = ["--directory=.", "--ioengine=psync", "--thread", "--output-format=terse"]
    at_random = ["--rw=randwrite", "--bs=4k", "--nrfiles=4", "--io_size=32m", "--fsync=32"]
    even = ["--name=even", "--size=6m", *at_random]
    skewed = ["--name=skewed", "--size=4m", *at_random, f"--random_distribution=zipf:{ZIPF}"]
    in_turn = ["--name=in-turn", "--size=5m", "--rw=write", "--bs=64k", "--nrfiles=5", "--end_fsync=1"]
    for number in range(12):
        run("fio", *common, f"--randseed={seed + number}", *even, *skewed, *in_turn, cwd=folder)
        for file in sorted(folder.glob("in-turn*")):
            file.unlink()
    for file in sorted(folder.glob("skewed*")):
        file.unlink()
    os.sync()  # what was deleted can be trimmed once that is committed
    run("fstrim", "-v", folder)


def zipf(seed: int) -> Iterator[int]:
    """Numbers below ENTRIES without end, the r-th most frequent with a share as r**-ZIPF, in no order."""
    draw = random.Random(seed)
    shares = list(itertools.accumulate((rank + 1) ** -ZIPF for rank in range(ENTRIES)))
    numbers = draw.sample(range(ENTRIES), ENTRIES)
    while True:
        yield from draw.choices(numbers, cum_weights=shares, k=1000)


def sqlite(folder: Path, seed: int) -> None:
    """Accounts and a ledger: each transaction changes two accounts, says so in the ledger, and is synced."""
    transactions = 20_000
    print(f"# Python's sqlite3, SQLite {sqlite3.sqlite_version}: WAL, synchronous=FULL, {transactions} transactions")
    draw, chosen = random.Random(seed), zipf(seed)
    with contextlib.closing(sqlite3.connect(folder / "bank.db", isolation_level=None)) as bank:
        for pragma in ("page_size=4096", "journal_mode=WAL", "synchronous=FULL"):
            bank.execute(f"PRAGMA {pragma}")
        bank.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, about BLOB)")
        bank.execute("CREATE TABLE ledger (id INTEGER PRIMARY KEY, payer INTEGER, payee INTEGER, amount INTEGER)")
        bank.execute("BEGIN")
        rows = ((number, 1000, draw.randbytes(VALUE_BYTES)) for number in range(ENTRIES))
        bank.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
        bank.execute("COMMIT")
        for payer, payee in itertools.islice(zip(chosen, chosen, strict=False), transactions):
            amount = draw.randrange(100)
            bank.execute("BEGIN IMMEDIATE")
            bank.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, payer))
            bank.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, payee))
            bank.execute("INSERT INTO ledger (payer, payee, amount) VALUES (?, ?, ?)", (payer, payee, amount))
            bank.execute("COMMIT")


def lmdb_(folder: Path, seed: int) -> None:
    """A table of values: each transaction puts one to three anew, or deletes one, and is synced."""
    transactions = 17_000
    print(f"# lmdb {lmdb.__version__}, LMDB {'.'.join(map(str, lmdb.version()))}: {transactions} durable transactions")
    draw, chosen = random.Random(seed), zipf(seed)
    with lmdb.open(str(folder / "table.mdb"), map_size=16 << 20, subdir=False) as table:
        with table.begin(write=True) as transaction:
            for number in range(ENTRIES):
                transaction.put(b"%08d" % number, draw.randbytes(VALUE_BYTES))
        for _ in range(transactions):
            with table.begin(write=True) as transaction:
                if draw.random() < 0.1:
                    transaction.delete(b"%08d" % next(chosen))
                    continue
                for number in itertools.islice(chosen, draw.randint(1, 3)):
                    transaction.put(b"%08d" % number, draw.randbytes(VALUE_BYTES))


WORKLOADS: dict[str, Callable[[Path, int], None]] = {"ext4-fio": fio, "ext4-sqlite": sqlite, "ext4-lmdb": lmdb_}


# ---- recording ----


def record(name: str, seed: int, work: Path) -> Path:
    """Run one workload on a device of its own; return its recording.  Nothing is left mounted, attached or served."""
    image, mounted, recording = work / f"{name}.pmem", work / "mnt", work / f"{name}.rec"
    mounted.mkdir(exist_ok=True)
    size = str(FRAMES_AT + DEVICE_BYTES)
    run(PMEM, "create", image, "--size", size, "--placement", "none", "--leveling", "none")
    try:
        run(PMEM, "serve", image, "--record", recording, "--background")
        device = run(PMEM, "attach", image).strip()
        extended = f"lazy_itable_init=0,lazy_journal_init=0,hash_seed={UUID}"
        run("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-m", "0", "-U", UUID, "-E", extended, device)
        run("mount", "-t", "ext4", device, mounted)
        folder = mounted / "work"
        folder.mkdir()
        WORKLOADS[name](folder, seed)
    finally:
        # Whatever was begun, also by a command that was interrupted.
        if mounted.is_mount():
            run("umount", mounted)
        if attach.find(image):
            run(PMEM, "detach", image)
        if server.find(image):
            run(PMEM, "stop", image)
    return recording


def require_shippable(recording: Path) -> None:
    """Raise SystemExit unless a recording is whole, of the device, and small."""
    summary = Summary()
    with traces.open_trace(recording) as trace:
        for requests in trace:
            summary.add(requests)
        wrong = [
            *(["it has no clean end"] if not trace.whole else []),
            *([f"a device of {trace.device_bytes} bytes"] if trace.device_bytes != DEVICE_BYTES else []),
            *([f"{trace.size_bytes} bytes"] if trace.size_bytes > RECORDING_BYTES_MAX else []),
            *(["no flushes"] if not summary.kinds()["flush"]["count"] else []),
        ]
    if wrong:
        expected = f"at most {RECORDING_BYTES_MAX} bytes of a device of {DEVICE_BYTES}, with flushes, to the end"
        raise SystemExit(f"record: {recording.name}: {', '.join(wrong)}: {expected}")


def end(number: int, frame: object) -> None:
    """End by a signal; no other one cuts short what undoes that which was begun."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> None:
    """Record what is asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="where NAME.rec go, over old ones (.)")
    parser.add_argument("--seed", type=int, default=20150507, help="of what is asked of the filesystem (%(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the images are meanwhile: a tmpfs is fast")
    given = parser.parse_args()
    if unknown := set(given.names) - set(WORKLOADS):
        parser.error(f"{', '.join(sorted(unknown))}: no such workload: {', '.join(WORKLOADS)}")
    if os.geteuid() != 0:
        parser.error("mounting: this is not root: sudo")
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # by nohup, say
            signal.signal(number, end)
    given.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pmem-record.", dir=given.work) as work:
        for name in given.names or WORKLOADS:
            print(f"\n== {name}", flush=True)
            recording = record(name, given.seed, Path(work))
            print(run(PMEM, "trace", recording))
            require_shippable(recording)
            shutil.copyfile(recording, given.to / recording.name)


if __name__ == "__main__":
    try:
        main()
    except (PmemError, OSError, sqlite3.Error, lmdb.Error) as error:
        raise SystemExit(f"record: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"record: {Path(error.cmd[0]).name}: ended with status {error.returncode}: 0") from None
