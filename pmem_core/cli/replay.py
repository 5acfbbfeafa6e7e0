# SPDX-License-Identifier: MIT
"""The verb replay: how long a device lives under a workload."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmem_core import rounding
from pmem_core.cli._common import PAGE_BYTES, SIZE, bar, emit, human_bytes, json_option, on_terminal, refuse
from pmem_core.cli._geometry import geometry_options, parse_parameters, plan_of, policies
from pmem_core.errors import UsageError

if TYPE_CHECKING:
    from pmem_core.geometry import Geometry
    from pmem_core.replay.lives import Source, Watch
    from pmem_core.replay.memory import Memory

GEOMETRY = (
    *("size", "placement", "leveling", "parameters", "descriptor_bytes", "descriptor_writes"),
    *("checksums", "frame_bytes", "line_bytes"),
)
SIZE_DEFAULT = 64 << 20
COUNT_MAX = 2**63 - 1  # what compiled code can count
TURN_SECONDS = 0.2  # between two changes of the progress bar


def _count(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A count as people write it: 100000, 100_000, 1e5."""
    try:
        number = float(value) if "e" in value.lower() else int(value)
        if not math.isfinite(number) or number != int(number) or number < 0:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a count such as 100000 or 1e5", context, parameter) from None
    if number > COUNT_MAX:
        raise click.BadParameter(f"'{value}' is too large: at most {COUNT_MAX}", context, parameter)
    return int(number)


@click.command(short_help="Wear a device out without data, and say how long it lived.")
@click.argument("image", type=click.Path(readable=False, path_type=Path), required=False)
@click.option("-s", "--size", type=SIZE, default=SIZE_DEFAULT, help="Size of the medium.  [default: 64M]")
@geometry_options
@click.option(
    "-w",
    "--workload",
    type=click.Choice(policies("replay/workloads")),
    help="Which pages are written.  [default: uniform]",
)
@click.option("--with", "workload_parameters", metavar="NAME=VALUE", multiple=True, help="A parameter of the workload.")
@click.option("--flush-every", callback=_count, default="0", help="Flush after so many pages.  [default: never]")
@click.option(
    "-t",
    "--trace",
    type=click.Path(readable=False, path_type=Path),
    help="Replay what was recorded: by serve --record, fio's write_iolog or blkparse; again and again.",
)
@click.option("--trace-format", help="Format of the trace, where it is not recognised.")
@click.option(
    "--passes", callback=_count, default="0", help="Replay the trace this many times.  [default: until death]"
)
@click.option(
    "-e", "--endurance", callback=_count, default="1e5", show_default=True, help="Writes that a line survives, W."
)
@click.option(
    "--endurance-kind",
    type=click.Choice(["uniform", "normal", "lognormal"]),
    default="uniform",
    show_default=True,
    help="The same for all lines, or drawn for each.",
)
@click.option("--spread", type=float, default=0.1, show_default=True, help="Standard deviation / mean, where drawn.")
@click.option(
    "--deaths", callback=_count, default="1", show_default=True, help="Stop when this many lines have worn out."
)
@click.option(
    "--page-writes", callback=_count, default="0", help="Stop after about this many page writes.  [default: no limit]"
)
@click.option("--seed", callback=_count, default="1", show_default=True, help="The same seed gives the same figures.")
@click.option("--histogram", is_flag=True, help="With -j: also how many lines of each kind have how much wear.")
@json_option
def replay(image: Path | None, size: int, as_json: bool, **options: Any) -> None:
    """Write to a device that has no medium until its first line dies, and say how long it lived.

    The geometry is that of IMAGE, which is only looked at and begins unworn, or what the options say. The policies are
    the compiled code that serves a device, so lines wear as they would there; a second is worth some ten million page
    writes. Scale the leveling's interval with the endurance: W / interval is what matters, and
    under uneven writes the size too (docs/leveling.md).

    Ctrl-C ends the run, not the figures.

    \b
    Examples:
      pmem-nbd replay --leveling none
      pmem-nbd replay --workload zipf --with theta=120 --endurance 1e6
      pmem-nbd replay disk.pmem --trace day.rec --deaths 100 --endurance-kind lognormal
      pmem-nbd replay --size 1G --set interval=10 --page-writes 1e8 -j | jq .wear.descriptor
    """
    if not as_json:
        refuse("is a part of the JSON", "-j beside it", "histogram")
    if options["endurance_kind"] == "uniform":
        refuse("all lines are the same", "--endurance-kind normal or lognormal beside it", "spread")
    given = {name: options.pop(name) for name in GEOMETRY if name in options}
    found = _live(image, size, given, options)
    if as_json:
        emit(found)
    else:
        for line in report(found):
            click.echo(line)


def _live(image: Path | None, size: int, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from pmem_core.replay import lives
    from pmem_core.replay.endurance import Endurance
    from pmem_core.replay.memory import memory_errors

    if options["deaths"] < 1:
        raise UsageError("--deaths 0", "nothing to wait for", "1 or more")
    endurance = Endurance(options["endurance"], options["endurance_kind"], options["spread"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_errors())
        plan = _plan(image, size, given, options["seed"])
        source = stack.enter_context(_source(plan, options))
        watch = stack.enter_context(_watching(options["page_writes"]))
        life = lives.live(
            plan,
            source,
            endurance,
            deaths=options["deaths"],
            page_writes_max=options["page_writes"],
            seed=options["seed"],
            watch=watch,
        )
        return lives.figures(life, source, endurance, histogram=options["histogram"])


def _plan(image: Path | None, size: int, given: dict[str, Any], seed: int) -> "Geometry":
    import uuid

    if image is None:
        return plan_of(size, given, uuid=str(uuid.UUID(int=seed % (1 << 128))))
    refuse(f"the geometry is that of {image}", "one or the other", *GEOMETRY)
    from pmem_core.image import load_geometry

    return load_geometry(image)


@contextlib.contextmanager
def _source(plan: "Geometry", options: dict[str, Any]) -> Iterator["Source"]:
    from pmem_core.replay import lives

    if options["trace"] is None:
        refuse("there is no trace", "--trace FILE beside it", "passes", "trace_format")
        chosen = parse_parameters(options["workload_parameters"], "--with")
        yield lives.Synthetic(options["workload"] or "uniform", chosen, plan, options["seed"], options["flush_every"])
        return
    if options["workload"] or options["workload_parameters"] or options["flush_every"]:
        raise UsageError("--trace", "there is a workload too", "one or the other")
    from pmem_core import traces

    with traces.open_trace(options["trace"], options["trace_format"]) as trace:
        name = str(options["trace"])
        yield lives.Recorded(name, lambda: iter(trace), plan, options["passes"], lambda: trace.torn_bytes)


@contextlib.contextmanager
def _watching(page_writes_max: int) -> Iterator["Watch"]:
    """A bar on a terminal, with the time that is left if wear goes on as it does; nothing elsewhere."""
    if not on_terminal():
        yield lambda share, memory: None
        return
    with bar("Compiling", 1.0) as update:
        begun, shown = time.monotonic(), 0.0

        def watch(share: float, memory: "Memory") -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= TURN_SECONDS:
                shown = now
                rate = memory.page_writes / max(now - begun, 1e-9) / 1e6
                hottest = int(memory.tally["hottest"])
                told = f"{memory.page_writes / 1e6:.0f} M page writes ({rate:.1f} M/s), hottest line {hottest}"
                update(completed=share, description=told)

        yield watch


def report(found: dict[str, Any]) -> Iterator[str]:
    """The figures of a life, for people."""
    geometry, leveling, endurance = found["geometry"], found["leveling"], found["endurance"]
    workload, wear = found["workload"], found["wear"]
    chosen = " ".join(f"{key}={value}" for key, value in leveling["parameters"].items())
    yield (
        f"medium                {human_bytes(geometry['size'])}, {geometry['lines']} lines of"
        f" {geometry['line_bytes']} bytes; {geometry['placement']}, descriptors of {geometry['descriptor_bytes']} bytes"
        f" written {geometry['descriptor_writes']}"
    )
    yield f"leveling              {leveling['name']} {chosen}".rstrip()
    told = " ".join(f"{key}={value}" for key, value in workload.get("parameters", {}).items())
    yield f"workload              {workload['name']} {told}".rstrip()
    yield from _left_out(workload)
    drawn = "" if endurance["kind"] == "uniform" else f", {endurance['kind']}, spread {endurance['spread']}"
    interval = leveling["parameters"].get("interval")
    turns = f"; W / interval {endurance['mean'] / interval:.4g}" if interval else ""
    yield f"endurance             W = {endurance['mean']}{drawn}{turns}"
    yield f"ended by              {_end(found)}"
    written = found["page_writes"] * PAGE_BYTES
    full = written / geometry["device_bytes"]
    yield f"written until then    {found['page_writes']} pages, {human_bytes(written)}, {full:.4g} times the device"
    if found["normalized_life"] is not None:
        guess = " (extrapolated: no line died)" if found["extrapolated"] else ""
        lives = [rounding.percent(found[name], 2, "high", "%") for name in ("normalized_life", "data_life")]
        yield f"normalised life       {lives[0]}, data alone {lives[1]}{guess}"
        extra = rounding.percent(found["extra_writes"], 2, "low", "%")
        yield f"extra writes          {extra}, {leveling['moves']} frames moved"
    if "stall_seconds" in leveling:
        yield f"stalls (modelled)     {leveling['stall_seconds']:.3g} s"
    for kind in ("data", "descriptor", "spare", "all"):
        one = wear[kind]
        if one["lines"]:
            ratio = one["max"] / one["mean"] if one["mean"] else 0
            yield (
                f"wear of {kind:<13} hottest {one['max']}, mean {one['mean']:.1f}, hottest / mean {ratio:.2f},"
                f" Gini {one['gini']:.3f}, Jain {one['jain']:.3f}"
            )
    yield f"took                  {found['seconds']:.1f} s, {_rate(found)}"


def _left_out(workload: dict[str, Any]) -> Iterator[str]:
    if workload.get("beyond_device"):
        of = workload["requests_read"]
        yield f"left out              {workload['beyond_device']} of {of} requests lie beyond the device"
    if workload.get("torn_bytes"):
        yield f"left out              {workload['torn_bytes']} bytes of a torn tail"


def _end(found: dict[str, Any]) -> str:
    if found["first_death"] and found["ended"] == "death":
        first = found["first_death"]
        more = f"; {found['dead_lines']} lines are dead" if found["dead_lines"] > 1 else ""
        return f"death: line {first['line']}, a {first['kind']} line, at page write {first['page_writes']}{more}"
    words: dict[str, Callable[[], str]] = {
        "writes": lambda: "the number of page writes asked for",
        "source": lambda: "the end of the trace",
        "interrupted": lambda: "Ctrl-C",
    }
    return words[found["ended"]]()


def _rate(found: dict[str, Any]) -> str:
    return f"{found['page_writes'] / max(found['seconds'], 1e-9) / 1e6:.1f} M page writes a second"
