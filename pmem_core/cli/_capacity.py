# SPDX-License-Identifier: MIT
"""Where every byte of a medium goes, for people: of an image, of a plan, and of plans beside what others leave."""

import math
from typing import TYPE_CHECKING, Any

from pmem_core.cli._common import human_bytes, plain_console
from pmem_core.cli._geometry import plan_of, policies
from pmem_core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BAR_MAX = 24
USES = {
    "info": "info blocks",
    "data": "pages the client sees",
    "descriptor": "pages of descriptors",
    "spare": "free frames of the leveling",
    "padding": "left free by the placement",
    "tail": "fills no frame or region",
}


# ---- figures ----


def planned(size: int, options: dict[str, Any]) -> dict[str, Any]:
    """What would become of a medium of `size` bytes, ready for JSON; sizes in bytes.

    plans: one a placement, or the one that is chosen; peers: what others leave.  One that is impossible has `refused`,
    which says why, in place of `capacity`.  UsageError where no plan is possible, or the one that was chosen.
    """
    from pmem_core import peers

    chosen = options["placement"]
    plans = [_plan(size, options | {"placement": name}) for name in ([chosen] if chosen else policies("placement"))]
    refusals = [plan["refused"] for plan in plans if "refused" in plan]
    if len(refusals) == len(plans):
        raise refusals[0]
    return {
        "medium_bytes": size,
        "plans": [plan | {"refused": str(plan["refused"])} if "refused" in plan else plan for plan in plans],
        "peers": [_peer(size, peer) for peer in peers.peers(size)],
    }


def _plan(size: int, options: dict[str, Any]) -> dict[str, Any]:
    from pmem_core import capacity

    try:
        plan = plan_of(size, options)
    except UsageError as error:
        return {"placement": options["placement"], "refused": error}
    info = plan.info
    return {
        "placement": info.placement,
        "leveling": info.leveling,
        "parameters": info.parameters,
        "descriptors": plan.descriptors,
        "descriptor_bytes": info.descriptor_bytes if plan.descriptors else 0,
        "memory_bytes": plan.kept_bytes,
        "frame_bytes": info.frame_bytes,
        "page_count": info.page_count,
        "data_at": info.data_at,
        "linux": info.linux,
        "capacity": capacity.figures(size, capacity.shares(plan)),
    }


def _peer(size: int, peer: Any) -> dict[str, Any]:
    from pmem_core import capacity

    found = {"name": peer.name, "source": peer.source}
    if peer.refused:
        return found | {"refused": peer.refused}
    return found | {"memory_bytes": peer.memory_bytes, "capacity": capacity.figures(size, peer.by_use)}


# ---- for people ----


def table(console: "Console", *columns: str) -> "Table":
    """A table whose first column is of words, the others of numbers."""
    from rich import box
    from rich.table import Table

    # Nothing but ASCII where nobody watches.
    made = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    return made


def table_of(capacity: dict[str, Any], console: "Console") -> "Table":
    """The uses of one medium; bars on a log scale, because a ten-thousandth is wanted seen beside nearly all."""
    made, size = table(console, "the medium", "bytes", "", "share"), capacity["medium_bytes"]
    room = _bar_column(made, console, "log scale", 66)
    rows = [(USES[use], count) for use, count in capacity["bytes"].items() if count]
    for name, count in [*rows, ("all", size)]:
        bar = "#" * max(1, round(room * math.log(count / 256) / math.log(size / 256))) if name != "all" else ""
        made.add_row(name, str(count), human_bytes(count), _share(count, size), *([bar] if room else []))
    return made


def memory_words(memory: dict[str, Any]) -> str:
    """What descriptors in memory take, in words; see snapshot.memory."""
    now = memory["resident_bytes"]
    return f"{human_bytes(memory['bytes'])} at most" + ("" if now is None else f", {human_bytes(now)} now")


def _bar_column(made: "Table", console: "Console", title: str, taken: int) -> int:
    """Add a column of bars where the terminal has more room than `taken`; how long they may be."""
    room = min(BAR_MAX, console.width - taken)
    if room < len(title):
        return 0
    made.add_column(title, no_wrap=True)
    return room


def show(figures: dict[str, Any]) -> None:
    """Print what `planned` found: one plan use by use, several side by side, beside the peers."""
    console, plans = plain_console(), figures["plans"]
    first = next(plan for plan in plans if "capacity" in plan)
    parameters = ", ".join(f"{name}={value}" for name, value in first["parameters"]["leveling"].items())
    told = f"leveling {first['leveling']}{f' ({parameters})' if parameters else ''}"
    size = figures["medium_bytes"]
    console.print(f"{human_bytes(size)} medium, {size} bytes; {told}", soft_wrap=True)
    console.print()
    if len(plans) == 1:
        _show_one(first, console)
    console.print(_side_by_side(figures, console))
    for row in [*plans, *figures["peers"]]:
        if "refused" in row:
            console.print(f"{row.get('name') or row['placement']}: {row['refused']}", soft_wrap=True)


def _show_one(plan: dict[str, Any], console: "Console") -> None:
    seen = human_bytes(plan["capacity"]["device_bytes"])
    words = f"{plan['placement']}: the client sees {seen}, {plan['page_count']} pages, from byte {plan['data_at']} on"
    console.print(f"{words}{'; Linux reads it as a fsdax namespace' if plan['linux'] else ''}", soft_wrap=True)
    console.print()
    console.print(table_of(plan["capacity"], console))
    console.print()


def _share(count: int, of: int) -> str:
    """A share in per cent, never rounded up: what is not all shall not look like it."""
    return f"{100_000 * count // of / 1000:.3f}%"


def _side_by_side(figures: dict[str, Any], console: "Console") -> "Table":
    """What the client sees of each, and where the rest goes; a bar is what it does not see."""
    made = table(console, "the client sees", "bytes", "share", "descriptors", "leveling", "the rest")
    rows = [(row["placement"], row) for row in figures["plans"]] + [(row["name"], row) for row in figures["peers"]]
    most = max(row["capacity"]["overhead_bytes"] for _, row in rows if "capacity" in row)
    room = _bar_column(made, console, "not seen", 86)
    for name, row in rows:
        if "refused" in row:
            made.add_row(name, *["-"] * 5, *(["impossible"] if room else []))
            continue
        capacity, by_use = row["capacity"], row["capacity"]["bytes"]
        descriptors, spare = by_use.get("descriptor", 0), by_use.get("spare", 0)
        in_memory = f"{human_bytes(row['memory_bytes'])} RAM" if row["memory_bytes"] else ""
        rest = capacity["overhead_bytes"] - descriptors - spare
        cells = [str(capacity["device_bytes"]), _share(capacity["device_bytes"], capacity["medium_bytes"])]
        cells += [in_memory or human_bytes(descriptors), human_bytes(spare), human_bytes(rest)]
        made.add_row(name, *cells, *(["#" * round(room * capacity["overhead_bytes"] / most)] if room else []))
    return made
