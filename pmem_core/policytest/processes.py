# SPDX-License-Identifier: MIT
"""Try a policy out in processes of their own: a policy may crash, or never come back."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from .. import policyfile
from ..errors import BadPolicy, ServerError
from .where import RECORD, read

PROGRAM = Path(__file__).with_name("driven.py")
CALL_CPU_S_MAX = 4.0  # of one call into the policy
LOAD_CPU_S_MAX = 20.0
COMPILE_CPU_S_MAX = 300.0
TURN_S = 0.1  # between two looks at a process that says nothing
PLAIN_SHARE = 0.5  # of the progress
Watch = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a policy that keeps its contract was tried with."""

    drives: int
    writes: int
    moves: int
    kills: int
    seconds: float


def run(name: str, subject: str, files: str, watch: Watch = lambda share, text: None) -> Result:
    """Try leveling policy `name` out, in plain Python and then compiled.  BadPolicy: about `subject`.

    files: as policyfile.VARIABLE has them.  watch is told the share done, 0 to 1, and with what parameters.
    """
    started = time.monotonic()
    plain = _tier(
        name, subject, files, {"NUMBA_DISABLE_JIT": "1"}, lambda share, text: watch(share * PLAIN_SHARE, text)
    )
    compiled = _tier(
        *(name, subject, files, {"NUMBA_BOUNDSCHECK": "1"}),
        lambda share, text: watch(PLAIN_SHARE + share * (1 - PLAIN_SHARE), text),
    )
    for choice, digest in plain["maps"].items():
        if compiled["maps"].get(choice, digest) != digest:
            expected = f"integers that fit in 64 bits (with {choice})"
            raise BadPolicy(subject, "compiled it gives another map than as plain Python", expected)
    both = {key: plain[key] + compiled[key] for key in ("drives", "writes", "moves", "kills")}
    return Result(**both, seconds=round(time.monotonic() - started, 1))


def _tier(name: str, subject: str, files: str, tier: dict[str, str], watch: Watch) -> dict[str, Any]:
    """One process; returns what it has done."""
    dropped = (policyfile.VARIABLE, "NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK", "NUMBA_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= {"PYTHONPATH": str(PROGRAM.parents[2]), **tier}
    with tempfile.TemporaryDirectory(prefix="pmem-nbd-") as work:
        where, errors = Path(work) / "where", Path(work) / "errors"
        where.write_bytes(bytes(RECORD.size))
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", PROGRAM, name, files, where],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        try:
            answer = _follow(process, subject, where, watch)
        finally:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()
        if "fault" in answer:
            raise BadPolicy(subject, answer["fault"], answer["expected"])
        if "done" in answer:
            done: dict[str, Any] = answer["done"]
            return done
        doing, place = _doing(where)
        if answer["status"] < 0:
            sent = signal.Signals(-answer["status"]).name
            raise BadPolicy(subject, f"{doing}: crashes{place}, {sent}", "indexes that are inside of their arrays")
        last = (errors.read_text(errors="replace").strip().splitlines() or [f"status {answer['status']}"])[-1]
        raise ServerError(subject, f"{doing}: the process that tries it out ended{place}", last)


def _follow(process: "subprocess.Popen[bytes]", subject: str, where: Path, watch: Watch) -> dict[str, Any]:
    """Read what the process says until it ends: its last word, or its exit status.  BadPolicy where a call hangs."""
    assert process.stdout
    answer: dict[str, Any] = {}
    calls, since, rest = -1, 0.0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(TURN_S):
                more = os.read(process.stdout.fileno(), 1 << 16)
                if not more:
                    return answer or {"status": process.wait()}
                *lines, rest = (rest + more).split(b"\n")
                for line in map(json.loads, lines):
                    if "share" in line:
                        watch(line["share"], line["text"])
                    else:
                        answer = line
            used = _cpu_s(process.pid)
            now, doing, _ = read(where)
            if now != calls:
                calls, since = now, used
            limits = {"loading": LOAD_CPU_S_MAX, "compiling": COMPILE_CPU_S_MAX, "starting": COMPILE_CPU_S_MAX}
            limit = limits.get(doing, CALL_CPU_S_MAX)
            if used - since > limit:
                name, place = _doing(where)
                raise BadPolicy(subject, f"{name}: does not come back{place}", f"an end within {limit:g} s")


def _cpu_s(pid: int) -> float:
    """Processor seconds: those of the clock would blame the policy for what else the machine does."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _doing(where: Path) -> tuple[str, str]:
    _, doing, write = read(where)
    return doing, f" at write {write}" if write else ""
