# SPDX-License-Identifier: MIT
"""The report of an image: the figures of stats, drawn, and what has to be said beside them."""

from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, capacity, counters, layout, snapshot, stats
from ..errors import PmemError
from . import drawn, words
from .page import Key, Page, Section, Table
from .wearmap import WearMap
from .words import number, percent

KINDS = (*counters.KINDS, "all")


def report(path: Path, *, by: str = "max", over: str = "bytes") -> Page:
    """The page of the image at `path`, served or not; see stats.collect for its errors.

    by: a page of the heat map is its hottest line ("max") or the mean of its lines ("mean").  over: life is
    drawn over the "bytes" that the host wrote, or over "time".
    """
    plan = snapshot.look(path).plan
    line_bytes = plan.info.line_bytes
    group = layout.PAGE_BYTES // plan.info.descriptor_bytes + 1
    wear_map = WearMap(
        capacity.pages_behind_info(plan),
        layout.PAGE_BYTES // line_bytes,
        layout.FRAMES_AT // line_bytes,
        stripe=group if plan.info.placement == "interleaved" else 0,
    )
    found = stats.collect(path, histogram=True, see=wear_map.add)
    pairs = found.pop("histogram")
    arrays = {kind: np.array(pair, np.int64).reshape(-1, 2) for kind, pair in pairs.items()}
    counters = {kind: (array[:, 0], array[:, 1]) for kind, array in arrays.items()}
    history: list[dict[str, Any]] | str
    try:
        history = snapshot.history(path)
    except PmemError as error:
        history = str(error)
    sections = [
        _image(found, capacity.shares(plan)),
        _by_kind(found),
        drawn.by_position(found, wear_map, by),
        drawn.lorenz(found, counters),
        drawn.histogram(counters),
        drawn.life(found, history, over),
        _method(),
    ]
    name = words.name_of(path.absolute().name)
    image = found["image"]
    served = f"served by process {found['pid']}, live" if found["served"] else f"last session: {found['session']}"
    lead = (
        f"{words.size(image['size'])} of emulated persistent memory, placement {image['placement']}, leveling "
        f"{image['leveling']}; {served}; read {words.when(found['time'])}."
    )
    return Page(f"Wear of {name}", lead, sections, _key(found), _alarms(found), found)


def _key(found: dict[str, Any]) -> list[Key]:
    everything, host = found["wear"]["all"], found["host"]
    mean = everything["mean"]
    written = words.size(host["written_bytes"]).partition(" (")[0]
    return [
        Key("host wrote", written, f"{number(host['written_bytes'])} bytes in {number(host['writes'])} writes"),
        Key(
            "hottest line",
            number(everything["max"]),
            f"{number(everything['max'] / mean if mean else None, 'low')} times the mean",
        ),
        Key(
            "mean wear",
            number(mean, "low"),
            f"of {number(everything['lines'])} lines of {found['wear']['line_bytes']} bytes",
        ),
        Key("Gini coefficient", number(everything["gini"], "low"), "0 is even, 1 is all in one line"),
        Key(
            "write amplification",
            number(found["write_amplification"], "low"),
            "line writes ÷ those for the host’s data",
        ),
        Key("normalised life", percent(found["normalized_life"], "high"), "if wear goes on as it did so far"),
    ]


def _alarms(found: dict[str, Any]) -> list[str]:
    said = []
    if found["errors"]["checksum_errors"]:
        said.append(
            f"{number(found['errors']['checksum_errors'])} reads were refused: data did not match its checksum."
        )
    if found["retired_pages"]:
        said.append(f"The data of {number(found['retired_pages'])} pages was given up.")
    broken = [name for name, holds in found["invariants"].items() if holds is False]
    return said + [f"Invariant {name} is broken: pmem-nbd check says more." for name in broken]


# ---- what it is ----


def _image(found: dict[str, Any], shares: dict[str, int]) -> Section:
    image = found["image"]
    parameters = {**image["parameters"]["placement"], **image["parameters"]["leveling"]}
    written = f"{image['descriptor_bytes']} bytes, written {image['descriptor_writes']}"
    descriptor = {"medium": written, "memory": f"{image['descriptor_bytes']} bytes, in the server’s memory"}
    rows = [
        ["path", words.name_of(image["path"])],
        ["uuid", image["uuid"]],
        ["created", words.when(image["created"])],
        ["medium", words.size(image["size"])],
        ["the client sees", f"{words.size(image['device_bytes'])} in {number(image['page_count'])} pages"],
        ["placement", image["placement"]],
        ["leveling", image["leveling"]],
        *[[f"· {name}", number(value)] for name, value in parameters.items()],
        [
            "descriptor",
            descriptor.get(image["descriptors"], "none"),
        ],
        ["checksums", "yes" if image["checksums"] else "no"],
        ["frame (what leveling moves)", f"{image['frame_bytes']} bytes"],
        ["line (what wears)", f"{image['line_bytes']} bytes"],
    ]
    uses = [[use, number(count), percent(count / image["size"])] for use, count in shares.items()]
    return Section(
        "image",
        "The image",
        tables=[Table(rows), Table(uses, ["use of the medium", "bytes", "share"])],
    )


def _by_kind(found: dict[str, Any]) -> Section:
    wear, host = found["wear"], found["host"]
    head = ["lines", "how many", "line writes", "hottest", "mean", "CoV", "Gini", "Jain"]
    rows = []
    for kind in KINDS:
        one = wear[kind]
        better = {"mean": "low", "cov": "low", "gini": "low", "jain": "high"}
        shown = [
            number(one[name], better.get(name, "")) for name in ("lines", "total", "max", "mean", "cov", "gini", "jain")
        ]
        rows.append([kind, *shown])
    total = sum(wear["by_cause"].values())
    causes = [
        [cause, number(count), percent(count / total if total else None)] for cause, count in wear["by_cause"].items()
    ]
    moves = ["frames moved", number(found["leveling"]["moves"])]
    notes = [f"Invariant {name}: {note}." for name, note in found["invariants_notes"].items()]
    did = [[name.replace("_", " "), number(count)] for name, count in host.items()]
    return Section(
        "wear",
        "Wear by kind and by cause",
        [
            "A kind is what a line holds now; its wear is of all it ever held. The two info blocks are of no kind.",
            *notes,
        ],
        tables=[
            Table(rows, head),
            Table(causes, ["cause", "line writes", "share"]),
            Table([*did, moves], ["the host", "count"]),
        ],
    )


def _method() -> Section:
    rows = [
        ["CoV", "standard deviation ÷ mean"],
        ["Gini", "Σ Σ |x − y| ÷ (2 n² mean): 0 where all lines are worn alike"],
        ["Jain", "(Σ x)² ÷ (n Σ x²): 1 where all lines are worn alike"],
        ["write amplification", "line writes for host, descriptors and moves ÷ those for the host’s data"],
        [
            "normalised life",
            "line writes for host and descriptors ÷ (lines × hottest): it ends with its first line",
        ],
    ]
    text = (
        f"Made by pmem-nbd {__version__}. Every line is counted; nothing is a sample or an estimate. Digits that are "
        "dropped make a figure worse. Time is not modelled and lines do not die: life is worked out from the counters. "
        "The numbers of this page are in it as JSON, in the element with the id “figures”."
    )
    return Section("method", "What the figures mean", [text], tables=[Table(rows)])
