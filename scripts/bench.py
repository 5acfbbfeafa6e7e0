#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Speed of pmem-nbd and of its peers, measured in one run: fio's nbd engine over Unix sockets.

In each round every workload visits every peer, in an order that rotates from round to round, so that what disturbs the
machine disturbs all of them alike; a figure is the median over the rounds.  Servers start once and stay up, idle, while
others are measured.  Before the rounds each device is filled once, so that nobody pays for first touches; after each
fio run the peer's own files are synced, so that nobody pays for another's dirty pages.

A peer is NAME[:KEY=VALUE ...][@PLACE], several separated by commas.  A KEY of pmem is an option of `pmem-nbd create` or
a policy's parameter (pmem:leveling=start_gap:interval=50); one that begins with - is an option of the server
(memory:-t=4).  PLACE is where its files lie: tmpfs, or a folder; the disk unless it is given.  The memory and bytearray
plugins keep nothing, so pmem@tmpfs is what compares with them, and pmem with file and qemu; each is held to every bar.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from pmem_core import host
from pmem_core.launch import nbdkit_command, nbdkit_environment

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
KINDS = ("memory", "file", "qemu", "bytearray", "pmem")
PEERS = "memory,bytearray,pmem@tmpfs,file,qemu,pmem"
CREATE_OPTIONS = {"placement", "leveling", "descriptor-bytes", "descriptor-writes", "frame-bytes", "line-bytes"}
PROGRAMS = {"nbdkit": "nbdkit", "qemu-nbd": "qemu-utils", "fio": "fio", "nbdsh": "python3-libnbd and libnbd-bin"}
STARTS = 5  # how often a start is timed

WORKLOADS: dict[str, list[str]] = {
    f"{rw} 4k depth {depth}": [f"--rw={rw}", "--bs=4k", f"--iodepth={depth}", "--norandommap"]
    for depth in (1, 16)
    for rw in ("randwrite", "randread")
}
WORKLOADS |= {
    f"seq{rw} {block}": [f"--rw={rw}", f"--bs={block}", "--iodepth=4"]
    for block in ("128k", "1m")
    for rw in ("write", "read")
}
WORKLOADS["randwrite 4k flush"] = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--norandommap", "--fsync=1"]

# (words every workload of the bar has in its name, the peer to compare with, the least ratio)
BARS = (
    ("4k depth 16", "memory", 0.8),
    ("4k depth 16", "bytearray", 2.5),
    ("seq", "memory", 0.8),
    ("4k flush", "file", 0.8),
)
START_BAR_S, CREATE_BAR_S, CREATE_BAR_MIB, OPEN_BAR_RATIO = 1.5, 1.0, 64, 1.25

# Run by nbdsh before the server starts, so that the client's own start is not counted.
PROBE = """
import os, time
print("ready", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        if os.path.exists({socket!r}):
            h = nbd.NBD()
            h.connect_unix({socket!r})
            h.pread(1, 0)
            print(time.monotonic(), flush=True)
            break
    except nbd.Error:
        pass
    time.sleep(0.001)
"""


@dataclass
class Peer:
    """One server under test: `spec` as it was typed, its own `folder`, and the `size` in bytes asked for."""

    spec: str
    folder: Path
    size: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.kind, *settings = self.spec.partition("@")[0].split(":")
        if self.kind not in KINDS:
            raise click.BadParameter(f"{self.kind}: not a peer: one of {', '.join(KINDS)}")
        pairs = [setting.partition("=")[::2] for setting in settings]
        self.options = [word for key, value in pairs if key.startswith("-") for word in (key, value) if word]
        self.settings = {key: value for key, value in pairs if not key.startswith("-")}
        self.socket, self.pid_file, self.log = (self.folder / name for name in ("socket", "pid", "log"))
        self.image = self.folder / ("image.pmem" if self.kind == "pmem" else "image.raw")

    def create(self) -> None:
        """Make what the server serves; the image of pmem may exist from an earlier call."""
        if self.kind in ("file", "qemu"):
            with self.image.open("wb") as file:
                file.truncate(self.size)
        if self.kind == "pmem" and not self.image.exists():
            words = [str(Path(sys.executable).parent / "pmem-nbd"), "create", str(self.image), "--size", str(self.size)]
            for key, value in self.settings.items():
                words += [f"--{key}", value] if key in CREATE_OPTIONS else ["--set", f"{key}={value}"]
            run(words)

    def command(self) -> list[str]:
        if self.kind == "qemu":
            cache = ["--cache=writeback", "--aio=threads", "--shared=4", "--persistent", "--format=raw"]
            where = [f"--socket={self.socket}", f"--pid-file={self.pid_file}"]
            return ["qemu-nbd", *cache, *where, *self.options, str(self.image)]
        if self.kind == "pmem":
            words = ["--exit-with-parent", *self.options]
            return nbdkit_command(self.image, socket=self.socket, pidfile=self.pid_file, nbdkit_args=words)
        plugin = {
            "memory": ["memory", str(self.size)],
            "file": ["file", str(self.image)],
            "bytearray": ["python", str(ROOT / "scripts" / "bench_bytearray.py"), f"size={self.size}"],
        }[self.kind]
        where = ["-f", "--exit-with-parent", "-U", str(self.socket), "-P", str(self.pid_file)]
        return ["nbdkit", *where, *self.options, *plugin]

    def start(self, wait: bool = True) -> None:
        """Start the server; with `wait`, return when it listens.  Errors: click.ClickException with its last words."""
        for path in (self.socket, self.pid_file):
            path.unlink(missing_ok=True)
        environ = nbdkit_environment() if self.kind == "pmem" else None
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), env=environ, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while wait and not (self.pid_file.exists() and self.pid_file.stat().st_size and self.socket.exists()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{self.spec}: server did not start: {self.last_words()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End the server by its own process; nothing happens when it is not there."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def last_words(self) -> str:
        return " ".join(self.log.read_text(errors="replace").strip().splitlines()[-1:])

    def fio(self, arguments: list[str]) -> dict[str, Any]:
        """One fio run: requests and bytes per second, latency in ns at the median and at 99 %, fio's CPU share."""
        uri = f"--uri=nbd+unix:///?socket={self.socket}"
        output = run(["fio", "--name=bench", "--ioengine=nbd", uri, "--output-format=json", *arguments])
        job = json.loads(output[output.index("{") :])["jobs"][0]
        if job["error"]:
            raise click.ClickException(f"{self.spec}: fio: {os.strerror(job['error'])}")
        side = max((job["read"], job["write"]), key=lambda part: part["total_ios"])
        percentile = side["clat_ns"].get("percentile", {})
        latency = {"p50_ns": percentile.get("50.000000"), "p99_ns": percentile.get("99.000000")}
        return {"iops": side["iops"], "bytes_per_s": side["bw_bytes"], **latency}

    def settle(self) -> None:
        """Write this peer's dirty pages back, and nobody else's."""
        for path in self.files():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())

    def files(self) -> list[Path]:
        paths = [self.image, *self.image.rglob("*")] if self.image.is_dir() else [self.image]
        return [path for path in paths if path.is_file()]


def run(words: list[str]) -> str:
    """The standard output of a command.  Errors: click.ClickException with the last line it said."""
    try:
        result = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise click.ClickException(f"{Path(words[0]).name}: {error.strerror}") from error
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:]
        raise click.ClickException(f"{Path(words[0]).name}: exit status {result.returncode}: {' '.join(last)}")
    return result.stdout


def size_of(text: str) -> int:
    """Bytes of a size such as 512M."""
    number, unit = (text[:-1], SIZES[text[-1].upper()]) if text[-1:].upper() in SIZES else (text, 1)
    if not number.isdigit() or int(number) == 0:
        raise click.BadParameter(f"{text}: not a size: a number with K, M, G or T")
    return int(number) * unit


@contextlib.contextmanager
def peers_at(specs: list[str], folder: Path, size: int) -> Iterator[list[Peer]]:
    """Peers in folders of their own; servers and folders are gone at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        peers = []
        for spec in specs:
            place = spec.partition("@")[2] or str(folder)
            parent = "/dev/shm" if place == "tmpfs" else place
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="pmem-bench-", dir=parent))
            peers.append(Peer(spec, Path(home), size))
            stack.callback(peers[-1].stop)
        yield peers


def measure(peers: list[Peer], names: list[str], options: dict[str, Any], progress: Progress) -> list[dict[str, Any]]:
    """Every workload on every peer in every round; one record for each run of fio."""
    steps = progress.add_task("starting", total=len(peers) * (1 + options["rounds"] * len(names)))
    for peer in peers:
        progress.update(steps, description=f"filling {peer.spec}")
        peer.create()
        peer.start()
        if options["prefill"]:
            peer.fio(["--rw=write", "--bs=1m", "--iodepth=4"])
            peer.settle()
        progress.advance(steps)
    timing = ["--time_based", f"--runtime={round(options['seconds'] * 1000)}ms", "--ramp_time=250ms"]
    raw = []
    for number, name in itertools.product(range(options["rounds"]), names):
        shift = number % len(peers)
        for peer in peers[shift:] + peers[:shift]:
            progress.update(steps, description=f"round {number + 1}: {name}: {peer.spec}")
            figures = peer.fio([*WORKLOADS[name], *timing, f"--randseed={number + 1}"])
            raw.append({"round": number + 1, "workload": name, "peer": peer.spec, **figures})
            if options["settle"]:
                peer.settle()
            progress.advance(steps)
    return raw


def summary(raw: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the rounds, by workload and peer; spread is (largest - smallest) / median of the throughput."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, spec in dict.fromkeys((record["workload"], record["peer"]) for record in raw):
        runs = [record for record in raw if (record["workload"], record["peer"]) == (name, spec)]
        keys = [key for key in ("iops", "bytes_per_s", "p50_ns", "p99_ns") if all(record[key] for record in runs)]
        medians = {key: statistics.median(record[key] for record in runs) for key in keys}
        rates = [record["bytes_per_s"] for record in runs]
        spread = (max(rates) - min(rates)) / (medians.get("bytes_per_s") or 1)
        result.setdefault(name, {})[spec] = {**medians, "spread": spread, "rounds": len(runs)}
    return result


def first_byte_s(peer: Peer) -> float:
    """Median seconds from the server's exec to one byte read; a first start goes before and is not counted."""
    seconds = []
    for _ in range(STARTS + 1):
        peer.socket.unlink(missing_ok=True)
        words = ["nbdsh", "-c", PROBE.format(socket=str(peer.socket))]
        environ = os.environ | {"PATH": f"/usr/bin:{os.environ['PATH']}"}  # the Python that libnbd was packaged for
        with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) as probe:
            assert probe.stdout is not None
            probe.stdout.readline()
            begin = time.monotonic()
            peer.start(wait=False)
            answer = probe.stdout.readline()
        peer.stop()
        if not answer:
            raise click.ClickException(f"{peer.spec}: server did not start: {peer.last_words()}")
        seconds.append(float(answer) - begin)
    return statistics.median(seconds[1:])


def starts(specs: list[str], folder: Path, size: int, progress: Progress) -> dict[str, dict[str, float]]:
    """Of each peer: seconds of creation and of a start, bytes of disk; of pmem also for a medium of 1 GiB and 1 TiB."""
    sizes = {"": size, "1 GiB ": 1 << 30, "1 TiB ": 1 << 40}
    wanted = [(label, spec) for label in sizes for spec in specs if not label or spec.startswith("pmem")]
    steps = progress.add_task("starts", total=len(wanted))
    result = {}
    for label, spec in wanted:
        progress.update(steps, description=f"starting {label}{spec}")
        with peers_at([spec], folder, sizes[label]) as (peer,):
            begin = time.monotonic()
            peer.create()
            create_s = time.monotonic() - begin
            disk_bytes = sum(path.stat().st_blocks * 512 for path in peer.files())
            result[label + spec] = {"create_s": create_s, "disk_bytes": disk_bytes, "start_s": first_byte_s(peer)}
        progress.advance(steps)
    return result


def judge(results: dict[str, Any], started: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar that was measured: what it is, the figure, the bar, and whether it is met."""
    bars: list[dict[str, Any]] = []

    def bar(what: str, figure: float, limit: float, least: bool) -> None:
        met = figure >= limit if least else figure <= limit
        bars.append({"what": what, "figure": figure, "bar": limit, "least": least, "met": met})

    for name, peers in results.items():
        for ours, (words, other, least) in itertools.product(peers, BARS):
            if other == "file":
                other += "@" * ("@" in ours) + ours.partition("@")[2]  # the same filesystem
            if ours.startswith("pmem") and words in name and other in peers:
                ratio = peers[ours]["bytes_per_s"] / peers[other]["bytes_per_s"]
                bar(f"{name}: {ours} / {other}", ratio, least, True)
    for name, figures in started.items():
        if name.startswith("pmem"):
            bar(f"{name}: start to first byte, s", figures["start_s"], START_BAR_S, False)
        if name.startswith("1 TiB "):
            small = started[name.replace("1 TiB", "1 GiB")]
            bar(f"{name}: creation, s", figures["create_s"], CREATE_BAR_S, False)
            bar(f"{name}: disk, MiB", figures["disk_bytes"] / (1 << 20), CREATE_BAR_MIB, False)
            bar(f"{name}: start against 1 GiB", figures["start_s"] / small["start_s"], OPEN_BAR_RATIO, False)
    return bars


def tables(report: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Title and rows, the header first, of each table; the terminal and the Markdown page show the same."""
    results, specs = report["results"], report["parameters"]["peers"]
    rows = [["workload", *specs]]
    for name, peers in results.items():
        small = "4k" in name
        cells = [peers[spec]["iops"] / 1e3 if small else peers[spec]["bytes_per_s"] / 1e6 for spec in specs]
        spreads = [f"±{peers[spec]['spread'] * 50:.0f}%" for spec in specs]
        texts = [f"{cell:.{int(small)}f} {spread}" for cell, spread in zip(cells, spreads, strict=True)]
        rows.append([f"{name}, {'k/s' if small else 'MB/s'}", *texts])
    yield "Throughput (median; ± is half the distance from the slowest to the fastest round)", rows
    subjects = [spec for spec in specs if spec.startswith("pmem")]
    others = [spec for spec in specs if spec not in subjects]
    rows = [["workload", "", *(f"/ {other}" for other in others)]]
    for (name, peers), ours in itertools.product(results.items(), subjects):
        ratios = [peers[ours]["bytes_per_s"] / peers[other]["bytes_per_s"] for other in others]
        rows.append([name, ours, *(f"{ratio:.2f}" for ratio in ratios)])
    if subjects and others and results:
        yield "Ratios of the medians", rows
    rows = [["device", "creation, s", "disk, MiB", "start to first byte, s"]]
    for name, one in report["starts"].items():
        rows.append([name, f"{one['create_s']:.3f}", f"{one['disk_bytes'] / (1 << 20):.1f}", f"{one['start_s']:.3f}"])
    if report["starts"]:
        yield f"Creation and start (median of {STARTS} starts, caches warm)", rows
    rows = [["bar", "figure", "wanted", ""]]
    for bar in report["bars"]:
        wanted = f"{'≥' if bar['least'] else '≤'} {bar['bar']:g}"
        rows.append([bar["what"], f"{bar['figure']:.2f}", wanted, "pass" if bar["met"] else "**fail**"])
    if report["bars"]:
        yield "Bars", rows


def markdown(report: dict[str, Any]) -> str:
    """The page docs/BENCHMARKS.md."""
    facts = [f"{key} {value}" for key, value in report["machine"].items()]
    chosen = [f"{key} {value}" for key, value in report["parameters"].items() if key not in ("peers", "workloads")]
    parts = ["# Benchmarks", f"Written by `{report['command']}`. {report['about']}"]
    parts += [f"Parameters: {', '.join(chosen)}.", f"Machine: {'; '.join(facts)}.", f"Date: {report['date']}."]
    for title, (header, *rows) in tables(report):
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
    return "\n\n".join(parts) + "\n"


def machine() -> dict[str, str]:
    """What the figures depend on and a reader elsewhere wants to know."""
    facts = host.machine()
    for name in ("nbdkit", "qemu-nbd", "fio"):
        facts[name] = "".join(re.findall(r"\d+[.\d]*", run([name, "--version"]))[:1])
    with contextlib.suppress(click.ClickException):
        facts["commit"] = run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()
    for name in ("pmem-nbd", "numba", "numpy", "lmdb"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    return facts


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, help="Rounds; figures are medians over them.")
@click.option("--seconds", default=3.0, show_default=True, help="Seconds of each fio run.")
@click.option("--size", default="1G", show_default=True, help="Size of each device.")
@click.option("--peers", default=PEERS, show_default=True, help="Who is measured.")
@click.option("--workloads", default="", help="Only workloads with one of these words, comma-separated, in their name.")
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where files lie.")
@click.option("--prefill/--no-prefill", default=True, help="Write each device once before the rounds.")
@click.option("--settle/--no-settle", default=True, help="Sync a peer's files after each of its runs.")
@click.option("--starts/--no-starts", "with_starts", default=True, help="Measure creation and start too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--markdown", "page", type=click.Path(path_type=Path), help="Write the tables here.")
@click.option("--write-docs", is_flag=True, help="Write the tables to docs/BENCHMARKS.md.")
def main(json_file: Path | None, page: Path | None, write_docs: bool, with_starts: bool, **options: Any) -> None:
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise click.ClickException(f"{program}: not found: install {PROGRAMS[program]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    specs, size = options["peers"].split(","), size_of(options["size"])
    words = options.pop("workloads").split(",")
    names = [name for name in WORKLOADS if any(word.strip() in name for word in words)]
    folder = options.pop("folder") or Path(os.environ.get("TMPDIR", "/var/tmp"))
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[0].replace("\n", " ")
    chosen = [f"--{key} {options[key]}" for key in ("rounds", "seconds", "size", "peers")]
    chosen += [f"--no-{key}" for key in ("prefill", "settle") if not options[key]]
    if names != list(WORKLOADS):
        chosen.append(f"--workloads '{','.join(words)}'")
    report: dict[str, Any] = {"command": " ".join(["scripts/bench", *chosen]), "about": about}
    report |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine()}
    report["parameters"] = options | {"peers": specs, "workloads": {name: WORKLOADS[name] for name in names}}
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        with peers_at(specs, folder, size) as peers:
            report["raw"] = measure(peers, names, options, progress)
        report["starts"] = starts(specs, folder, size, progress) if with_starts else {}
    report["results"] = summary(report["raw"])
    report["bars"] = judge(report["results"], report["starts"])
    for title, (header, *rows) in tables(report):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*(cell.replace("**", "") for cell in row))
        Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    for path in [page, ROOT / "docs" / "BENCHMARKS.md" if write_docs else None]:
        if path:
            path.write_text(markdown(report))


if __name__ == "__main__":
    main()
