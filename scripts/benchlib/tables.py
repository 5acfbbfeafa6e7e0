# SPDX-License-Identifier: MIT
"""What a reader sees of a report: the same tables on the terminal and in Markdown."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

from benchlib import compare, figures
from benchlib.sizes import SCALE_ROUNDS, STARTS, TOUCHED_PAGES
from benchlib.workloads import BESIDE

Tables = Iterator[tuple[str, list[list[str]]]]
ALONE = "randread 4k depth 1"
UNITS = {"bytes_per_s": "throughput", "cpu_ns": "processor time", "p99_ns": "latency at 99 %"}


def tables(report: dict[str, Any]) -> Tables:
    """Title and rows, the header first, of each table that has any."""
    for title, rows in itertools.chain(bars(report), changes(report), throughput(report), extents(report)):
        if len(rows) > 1:
            yield title, rows


def bars(report: dict[str, Any]) -> Tables:
    rows = [["", "figure", *figures.SETS]]
    lines = figures.judge(report["rounds"], report["starts"], report["scale"])
    for line in lines:
        cells = []
        for which in figures.SETS:
            sign = "≥" if line["least"] else "≤"
            verdict = {None: "", True: "met", False: "**not met**"}[figures.met(line, which)]
            cells.append(f"{sign} {line['bars'][which]:g} {verdict}" if verdict else "")
        rows.append([line["what"], f"{line['figure']:.2f}", *cells])
    counts = []
    for which in figures.SETS:
        found = [figures.met(line, which) for line in lines]
        counts.append(f"{which}: {found.count(True)} of {len(found) - found.count(None)} met")
    yield f"Bars ({'; '.join(counts)})", rows


def changes(report: dict[str, Any]) -> Tables:
    for title, found in report.get("changes", {}).items():
        rows = [["workload", "peer", "figure", "now / then", "99 %", ""]]
        for one in itertools.starmap(compare.Change, found):
            ends = f"{one.low:.2f} to {one.high:.2f}"
            verdict = f"**{one.verdict}**" if one.verdict else ""
            rows.append([one.workload, one.peer, UNITS[one.key], f"{one.ratio:.2f}", ends, verdict])
        named = sum(bool(row[-1]) for row in rows[1:])
        yield f"Against {title}: {named} of {len(rows) - 1} differ by more than the noise", rows


def throughput(report: dict[str, Any]) -> Tables:
    results, specs = figures.summary(report["rounds"]), report["parameters"]["peers"]
    rows = [["workload", *specs]]
    for name, peers in results.items():
        small, cells = "4k" in name, []
        for spec in specs:
            if one := peers.get(spec):
                rate = one["iops"] / 1e3 if small else one["bytes_per_s"] / 1e6
                cpu = f", {one['cpu_ns'] / 1e3:.1f} µs" if "cpu_ns" in one else ""
                cells.append(f"{rate:.{int(small)}f} ±{one['spread'] * 50:.0f}%{cpu}")
            else:
                cells.append("")
        rows.append([f"{name}, {'k/s' if small else 'MB/s'}", *cells])
    spread = "± is half the distance from the slowest to the fastest round"
    yield f"Throughput (median; {spread}; µs of the server's processor time a request)", rows
    subjects = [spec for spec in specs if spec.startswith("pmem")]
    others = [spec for spec in specs if spec not in subjects]
    rows = [["workload", "", *(f"/ {other}" for other in others)]]
    for name, ours in itertools.product(results if others else (), subjects):
        found = [figures.throughput_ratio(report["rounds"], name, ours, other) for other in others]
        if any(found):
            rows.append([name, ours, *(f"{one:.2f}" if one else "" for one in found)])
    yield "Ratios of throughput (median of the rounds' ratios)", rows
    rows = [["latency at 99 %, µs", *specs]]
    for what, name in (("alone", ALONE), ("beside a flushing writer", BESIDE)):
        if name in results and BESIDE in results:
            ends = [results[name].get(spec, {}).get("p99_ns") for spec in specs]
            rows.append([what, *(f"{end / 1e3:.0f}" if end else "" for end in ends)])
    yield "A reader (4 KiB, depth 1)", rows


def extents(report: dict[str, Any]) -> Tables:
    rows = [
        ["device", "write, k/s", "read, k/s", "memory, MiB", "of it anonymous", "disk, MiB", "start, s", "stats -j, s"]
    ]
    for name, one in report["scale"].items():
        rates = [f"{statistics.median(one[key]) / 1e3:.1f}" for key in ("randwrite_iops", "randread_iops")]
        sizes = [f"{one[key] / (1 << 20):.0f}" for key in ("rss_bytes", "anonymous_bytes", "disk_bytes")]
        rows.append([name, *rates, *sizes, f"{one['start_s']:.2f}", f"{one['stats_s']:.2f}"])
    what = f"4 KiB at depth 16 on {TOUCHED_PAGES} touched pages, spread evenly; tmpfs; median of {SCALE_ROUNDS} rounds"
    yield f"Scale ({what})", rows
    rows = [["device", "creation, s", "disk, MiB", "start to first byte, s"]]
    for name, one in report["starts"].items():
        rows.append([name, f"{one['create_s']:.3f}", f"{one['disk_bytes'] / (1 << 20):.1f}", f"{one['start_s']:.3f}"])
    yield f"Creation and start (median of {STARTS} starts, caches warm)", rows
    rows = [["", "s", ""]]
    if cold := report["cold"]:
        said = f"says “{cold['said']}”" if cold["said"] else "**says nothing**"
        rows.append(["first start ever, nothing compiled, to first byte", f"{cold['start_s']:.1f}", said])
        rows.append(["pmem-nbd --help", f"{cold['help_s']:.2f}", ""])
    yield "Cold", rows


def markdown(report: dict[str, Any]) -> str:
    """The page docs/BENCHMARKS.md."""
    facts = [f"{key} {value}" for key, value in report["machine"].items()]
    chosen = [f"{key} {value}" for key, value in report["parameters"].items() if key != "peers"]
    parts = ["# Benchmarks", f"Written by `{report['command']}`. {report['about']}"]
    parts += [f"Parameters: {', '.join(chosen)}.", f"Machine: {'; '.join(facts)}."]
    parts += [f"Date: {report['date']}, in {report['minutes']:.0f} minutes."]
    parts += [f"Not measured: {what}." for what in report["left_out"]]
    for title, (header, *rows) in tables(report):
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
    return "\n\n".join(parts) + "\n"
