# SPDX-License-Identifier: MIT
"""The report of a study: lives by leveling and workload, drawn."""

import re
from typing import Any

from markupsafe import Markup

from .. import __version__
from ..study import answer
from ..study.answer import distinct, hottest_over_mean, percent, select
from . import figures, words
from .page import Drawing, Key, Page, Section, Table

Row = dict[str, Any]


def _lives(rows: list[Row]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Levelings, workloads, and the life of each pair; None where it was not run."""
    labels, loads = distinct(rows, "leveling"), distinct(rows, "workload")
    there = {(row["leveling"], row["workload"]): row["normalized_life"] for row in rows}
    return labels, loads, [[there.get((label, load)) for load in loads] for label in labels]


def drawings(rows: list[Row]) -> list[Drawing]:
    """The figures; those whose rows were not run are left out."""
    rows, found = answer.of_first_endurance(answer.typical(rows)), []
    interleaved = select(rows, placement="interleaved", descriptor_writes="each")
    for unit in sorted(distinct(interleaved, "line_bytes"), reverse=True):
        labels, loads, lives = _lives(select(interleaved, line_bytes=unit))
        found.append(
            Drawing(
                f"lives-{unit}",
                figures.matrix(lives, rows=labels, columns=loads, label="normalised life"),
                f"normalised life of each leveling under each workload, wear counted in units of {unit} bytes",
                f"Interleaved, a descriptor at each write, units of {unit} bytes, W = {rows[0]['endurance']}: life by"
                " leveling and workload.",
            )
        )
    uniform = select(interleaved, workload="uniform")
    if uniform:
        groups: dict[str, dict[str, float | None]] = {}
        for row in sorted(uniform, key=lambda row: row["line_bytes"]):
            groups.setdefault(f"{row['line_bytes']} bytes", {})[row["leveling"]] = hottest_over_mean(row, "descriptor")
        found.append(
            Drawing(
                "descriptors-hottest",
                figures.bars_by_group(groups, label="hottest descriptor unit / mean of all"),
                "hottest descriptor unit over the mean of all units, by unit and leveling, uniform writes",
                "Uniform writes, interleaved: the hottest descriptor unit against the mean of all; 1 is level.",
            )
        )
    return found


def _rich(text: str) -> Markup:
    """The little Markdown that the answer has, as HTML."""
    escaped = str(Markup.escape(text))
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", escaped))


def report(rows: list[Row], name: str) -> Page:
    """The page of a study; name: of its folder."""
    told = [_rich(text) for text in answer.paragraphs(rows)]
    best = max(rows, key=lambda row: row["normalized_life"] or 0)
    table = Table(
        [
            [
                f"{row['placement']}, {row['leveling']}",
                str(row["line_bytes"]),
                row["descriptor_writes"],
                row["workload"],
                words.number(row["endurance"]),
                words.number(row["seed"]),
                percent(row["normalized_life"]),
                words.percent(row["extra_writes"], "low"),
                words.number(row["turns"]),
                row["first_death"] or row["ended"],
            ]
            for row in rows
        ],
        ["device", "unit", "descriptors", "workload", "W", "seed", "life", "extra writes", "W / ψ", "died first"],
        "Every life.",
    )
    sections = [
        Section("answer", "The answer", [*told]),
        Section("figures", "Figures", [], drawings(rows)),
        Section("lives", "All lives", [], [], [table]),
    ]
    return Page(
        f"A study of wear leveling: {words.name_of(name)}",
        f"“{answer.SENTENCE}” ({answer.ASKED_BY})",
        sections,
        [
            Key("lives", words.number(len(rows)), "each until the first line died"),
            Key("levelings", words.number(len(distinct(rows, "leveling")))),
            Key("workloads", words.number(len(distinct(rows, "workload")))),
            Key("best life", percent(best["normalized_life"]), f"{best['leveling']}, {best['workload']}"),
        ],
        data={"rows": rows, "version": __version__},
    )
