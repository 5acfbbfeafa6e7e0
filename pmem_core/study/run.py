# SPDX-License-Identifier: MIT
"""Running cells: on all cores, each row kept as it comes, so that an interrupted study goes on where it was."""

import concurrent.futures
import contextlib
import fcntl
import json
import multiprocessing
import os
import pickle
import queue
import signal
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

from ..errors import DamagedImage, HostError, ImageBusy
from ..host import host_errors
from ..replay import lives
from ..replay.endurance import Endurance
from ..replay.memory import memory_errors
from .cells import Cell

Row = dict[str, Any]
Watch = Callable[[int, int, Row | None], None]
ROWS = "rows.jsonl"
GROUP_MAX = 40  # cells handed to a process at once
LIVES_MAX = 2  # ideal lives after which a run is stopped, dead or not

_rows: Any = None
_todo: list[list[Cell]] = []


@memory_errors()
def row_of(cell: Cell) -> Row:
    """Run a cell; its row, flat."""
    plan = cell.plan()
    source, endurance = cell.source(plan), Endurance(cell.endurance)
    page_writes_max = LIVES_MAX * cell.endurance * plan.medium_frames
    life = lives.live(plan, source, endurance, page_writes_max=page_writes_max, seed=cell.seed)
    found = lives.figures(life, source, endurance)
    interval = found["leveling"]["parameters"].get("interval")
    row = {
        "key": cell.key,
        "placement": cell.placement,
        "leveling": cell.label,
        "policy": cell.leveling,
        "parameters": found["leveling"]["parameters"],
        "line_bytes": cell.line_bytes,
        "descriptor_writes": found["geometry"]["descriptor_writes"],
        "workload": cell.workload,
        "workload_parameters": found["workload"].get("parameters", {}),
        "flush_every": found["workload"].get("flush_every"),
        "seed": cell.seed,
        "endurance": cell.endurance,
        "interval": interval,
        "turns": cell.endurance / interval if interval else None,
        "frames": found["geometry"]["frames"],
        "ended": life.ended,
        "page_writes": found["page_writes"],
        "normalized_life": found["normalized_life"],
        "data_life": found["data_life"],
        "extra_writes": found["extra_writes"],
        "write_amplification": found["write_amplification"],
        "first_death": (found["first_death"] or {}).get("kind"),
        "stall_seconds": found["leveling"].get("stall_seconds"),
        "seconds": found["seconds"],
    }
    for kind in ("all", "data", "descriptor"):
        wear = found["wear"][kind]
        row[f"hottest_{kind}"] = wear["max"] if wear["lines"] else None
        row[f"mean_{kind}"] = wear["mean"]
        row[f"gini_{kind}"] = wear["gini"]
    return row


def _begin(rows: Any, packed: bytes) -> None:
    global _rows, _todo
    _rows, _todo = rows, pickle.loads(zlib.decompress(packed))


def _run_group(number: int) -> None:
    for cell in _todo[number]:
        _rows.put(row_of(cell))


def kept_rows(folder: Path) -> dict[str, Row]:
    """Rows of an earlier run in `folder`, by key; a last line that is not whole is cut off.  DamagedImage."""
    path, found = folder / ROWS, {}
    if not path.exists():
        return {}
    with host_errors(path):
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)  # the last line was being written when the study was ended
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            raise DamagedImage(path, f"line {number} is no row of a study", "another folder, or none") from None
    return found


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that share compiled code, together; the long groups first."""
    by_code: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_code.setdefault(cell.group, []).append(cell)
    parts = [group[at : at + GROUP_MAX] for group in by_code.values() for at in range(0, len(group), GROUP_MAX)]
    return sorted(parts, key=len, reverse=True)


def study(folder: Path, cells: list[Cell], *, jobs: int = 0, watch: Watch = lambda done, of, row: None) -> list[Row]:
    """Run the cells that `folder` has no row of, on `jobs` processes (0: one a core); the rows of all, in order.

    KeyboardInterrupt leaves the rows so far in the folder.  ImageBusy, HostError, PmemError of a cell.
    """
    with host_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with host_errors(folder / ROWS), (folder / ROWS).open("a") as file:
        _lock(folder, file)
        rows = kept_rows(folder)
        todo = [cell for cell in cells if cell.key not in rows]
        done = len(cells) - len(todo)
        watch(done, len(cells), None)
        with contextlib.closing(_run(todo, jobs)) as arriving:
            for row in arriving:
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows[row["key"]] = row
                done += 1
                watch(done, len(cells), row)
    return [rows[cell.key] for cell in cells]


def _lock(folder: Path, file: TextIO) -> None:
    """ImageBusy where another process has it; given up when `file` is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ImageBusy(folder, "another study runs there", "another folder, or wait until it ends") from None


@contextlib.contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """Let signal `number` wait; processes that are started meanwhile never hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(todo: list[Cell], jobs: int) -> Generator[Row, None, None]:
    """Run cells in processes of their own; rows as they come."""
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    others, groups = set(multiprocessing.active_children()), _groups(todo)
    count = min(jobs or len(os.sched_getaffinity(0)), len(groups))
    # These start multiprocessing's tracker, which would let SIGINT be heard again.
    arriving = context.Queue()
    # A worker is told all at its start, in less than a pipe holds, and then numbers: whoever waits for room in the pipe
    # of one that was terminated waits for ever (CPython issue 94777, before 3.12).
    packed = zlib.compress(pickle.dumps(groups))
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _begin, (arriving, packed))
    try:
        # Ctrl-C goes to the whole group of processes, and one that is being born would answer with a traceback.
        with _unheard(signal.SIGINT):
            running = [pool.submit(_run_group, number) for number in range(len(groups))]
        seen = 0
        while seen < len(todo):
            try:
                yield arriving.get(timeout=0.5)
                seen += 1
            except queue.Empty:
                for one in running:
                    if one.done() and arriving.empty():
                        one.result()  # says why there are fewer rows than cells
    except BrokenProcessPool:
        raise HostError(
            "study", "a process of it was killed", "more memory, or fewer --jobs: the same command goes on"
        ) from None
    finally:
        # They have nothing to lose, for rows are written here; and whoever compiles would be busy for a long time.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)
