# SPDX-License-Identifier: MIT
"""What fio does, and the rounds in which every peer does it.

A run of fio gives `Figures`, numbers by name: iops, bytes_per_s, p50_ns, p99_ns, and cpu_ns, the processor time that
the server spent on one request.  What was measured is `Rounds`: by workload and peer, for each figure a list with one
number a round, None where there is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from benchlib.peers import Peer, run

Figures = dict[str, float | None]
Rounds = dict[str, dict[str, dict[str, list[float | None]]]]
KEYS = ("iops", "bytes_per_s", "p50_ns", "p99_ns", "cpu_ns")
RAMP_S = 0.25
FILL = [["--rw=write", "--bs=1m", "--iodepth=4"]]


def _random(rw: str, depth: int, *more: str) -> list[str]:
    return [f"--rw={rw}", "--bs=4k", f"--iodepth={depth}", "--norandommap", *more]


# By name, the jobs that run at once; the figures are the first one's.
WORKLOADS: dict[str, list[list[str]]] = {
    f"{rw} 4k depth {depth}": [_random(rw, depth)] for depth in (1, 4, 16) for rw in ("randwrite", "randread")
}
FOUR = "4k 4 connections"  # of depth 4 each, and of as many clients
FOUR_OF_ONE = f"{FOUR} of one client"
WORKLOADS |= {
    f"{rw} {name}": [_random(rw, 4, "--numjobs=4", "--group_reporting", *more)]
    for name, more in ((FOUR, []), (FOUR_OF_ONE, ["--thread"]))
    for rw in ("randwrite", "randread")
}
WORKLOADS |= {
    f"seq{rw} {block}": [[f"--rw={rw}", f"--bs={block}", "--iodepth=4"]]
    for block in ("128k", "1m")
    for rw in ("write", "read")
}
BESIDE = "randread 4k beside a flushing writer"
WORKLOADS |= {
    "randwrite 4k flush": [_random("randwrite", 1, "--fsync=1")],
    BESIDE: [_random("randread", 1), _random("randwrite", 1, "--fsync=1")],
}
SPARED = {"bytearray": "depth 16"}  # a kind of peer, and the word in the names of its only workloads


def concerns(name: str, peer: str) -> bool:
    """Whether a workload is run on a peer."""
    return all(word in name for kind, word in SPARED.items() if peer.startswith(kind))


def fio(what: str, common: Sequence[str], jobs: Sequence[Sequence[str]]) -> Figures:
    """One run of fio; the figures of its first job.  Errors: click.ClickException, which names `what`."""
    words = ["fio", "--output-format=json"]
    for number, job in enumerate(jobs):
        words += [f"--name=job{number}", *common, *job]
    output = run(words)
    found = json.loads(output[output.index("{") :])["jobs"]
    for job in found:
        if job["error"]:
            raise click.ClickException(f"{what}: fio: {os.strerror(job['error'])}")
    first = found[0]
    side = max((first["read"], first["write"]), key=lambda part: part["total_ios"])
    percentile = side["clat_ns"].get("percentile", {})
    latency = {"p50_ns": percentile.get("50.000000"), "p99_ns": percentile.get("99.000000")}
    iops = sum(part["iops"] for job in found for part in (job["read"], job["write"]))
    return {"iops": side["iops"], "bytes_per_s": side["bw_bytes"], **latency, "all_iops": iops}


def run_for(peer: Peer, seconds: float, seed: int, jobs: Sequence[Sequence[str]], where: Sequence[str] = ()) -> Figures:
    """Run jobs for `seconds` on the peer, or on what `where` says in fio's words; see the head of this module."""
    timing = ["--time_based", f"--runtime={round(seconds * 1000)}ms", f"--ramp_time={round(RAMP_S * 1000)}ms"]
    common = [*(where or ["--ioengine=nbd", f"--uri={peer.uri}"]), *timing, f"--randseed={seed}"]
    before = peer.cpu_s()
    figures = fio(peer.spec, common, jobs)
    # fio does not say how many requests the ramp had: as many a second as the rest, about.
    requests = (figures.pop("all_iops") or 0) * (seconds + RAMP_S)
    return figures | {"cpu_ns": (peer.cpu_s() - before) / requests * 1e9 if requests else None}


def fill(peer: Peer) -> None:
    """Write the whole device once, so that nobody pays for first touches."""
    fio(peer.spec, ["--ioengine=nbd", f"--uri={peer.uri}"], FILL)
    peer.settle()


def renew(peers: Sequence[Peer], tell: Callable[[str], None], prefill: bool = True) -> None:
    """Start every server anew, with the content it had; the first time make it.  Fill it each time, if `prefill`.

    Whether its memory happens to lie well makes a server up to a third quicker or slower than the next one of the same
    program, for as long as it runs: so a median wants several of each.  And a server that was just started has touched
    no page yet of what it maps.
    """
    for peer in peers:
        tell(f"starting {peer.spec}")
        if peer.process is None:
            peer.create()
        peer.stop()
        peer.start()
        if prefill:
            fill(peer)


def in_turn(items: Sequence[Any], number: int) -> list[Any]:
    """The items in the order of round `number`: rotated, and every other time backwards, so that nobody stays next."""
    shift = number // 2 % len(items)
    order = [*items[shift:], *items[:shift]]
    return order[::-1] if number % 2 else order


def put(rounds: Rounds, name: str, peer: str, figures: Figures) -> None:
    """Add the figures of one run."""
    kept = rounds.setdefault(name, {}).setdefault(peer, {key: [] for key in KEYS})
    for key in KEYS:
        value = figures.get(key)
        kept[key].append(None if value is None else float(f"{value:.5g}"))


def measure(
    peers: Sequence[Peer], names: Sequence[str], options: dict[str, Any], tell: Callable[[str], None]
) -> Rounds:
    """Every workload on every peer it concerns, in every round."""
    # Here, so that tables have them in the order they were asked for, not in the one of the first round.
    rounds: Rounds = {name: {} for name in names}
    for number in range(options["rounds"]):
        renew(peers, tell, options["prefill"])
        for name in names:
            for peer in in_turn([peer for peer in peers if concerns(name, peer.spec)], number):
                tell(f"round {number + 1}: {name}: {peer.spec}")
                put(rounds, name, peer.spec, run_for(peer, options["seconds"], number + 1, WORKLOADS[name]))
                if options["settle"]:
                    peer.settle()
    return rounds
