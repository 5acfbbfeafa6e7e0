# SPDX-License-Identifier: MIT
"""A study's files: CSV and JSON of its rows, and Markdown with tables and the answer."""

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from .. import rounding
from . import answer
from .answer import distinct, hottest_over_mean, lived, select
from .run import Row

COLUMNS = (
    *("placement", "leveling", "policy", "parameters", "line_bytes", "descriptor_writes", "workload"),
    *(
        "workload_parameters",
        "flush_every",
        "seed",
        "endurance",
        "interval",
        "turns",
        "frames",
        "ended",
        "page_writes",
        "normalized_life",
        "data_life",
    ),
    *("extra_writes", "write_amplification", "first_death", "stall_seconds"),
    *("hottest_all", "mean_all", "gini_all", "hottest_data", "mean_data", "gini_data"),
    *("hottest_descriptor", "mean_descriptor", "gini_descriptor"),
)


_SEEDS = (
    "Synthetic workloads in the largest unit, with a descriptor at each write, were run with {seeds} seeds at"
    " W = {endurance}, of pages and of the leveling's draws: medians, and in brackets the least and the most; all else,"
    " every other W with it, with one."
)


def as_csv(rows: Iterable[Row]) -> str:
    """One line a row; parameters as name=value pairs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        told = row | {name: _pairs(row[name]) for name in ("parameters", "workload_parameters")}
        writer.writerow(["" if told[name] is None else told[name] for name in COLUMNS])
    return out.getvalue()


def _pairs(parameters: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in parameters.items())


def as_json(rows: Iterable[Row]) -> str:
    """A list of objects."""
    return json.dumps([{name: row[name] for name in COLUMNS} for row in rows], indent=1) + "\n"


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * len(head)) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _by_workload(rows: list[Row], placement: str, unit: int, writes: str) -> list[str]:
    chosen = select(rows, placement=placement, line_bytes=unit, descriptor_writes=writes)
    if not chosen:
        return []
    loads = distinct(chosen, "workload")
    lines = []
    for label in distinct(chosen, "leveling"):
        of_label = {row["workload"]: row for row in select(chosen, leveling=label)}
        lives = [lived(of_label[load]) if load in of_label else "–" for load in loads]
        lines.append([label, *lives])
    told = "" if placement == "none" else f", descriptors written {writes}, units of {unit} bytes"
    return [f"### {placement}{told}", "", *_table(["normalised life", *loads], lines)]


def _by_unit(rows: list[Row]) -> list[str]:
    lines = []
    for row in select(rows, placement="interleaved", descriptor_writes="each", workload="uniform"):
        ratios = (_number(hottest_over_mean(row, kind)) for kind in ("all", "data", "descriptor"))
        lines.append(
            [
                row["leveling"],
                str(row["line_bytes"]),
                lived(row),
                *ratios,
                rounding.percent(row["extra_writes"], 2, "low", "%"),
                _number(row["turns"], 0),
                row["first_death"] or row["ended"],
            ]
        )
    if not lines:
        return []
    head = ["leveling", "unit", "life", "hottest / mean", "data", "descriptors", "extra writes", "W / ψ", "died first"]
    return ["## Hottest units under uniform writes, interleaved, a descriptor at each write", "", *_table(head, lines)]


def _by_endurance(rows: list[Row]) -> list[str]:
    endurances = sorted(distinct(rows, "endurance"))
    if len(endurances) < 2:
        return []
    found, chosen = [], select(rows, placement="interleaved", descriptor_writes="each")
    long_lived = select(chosen, endurance=endurances[-1])
    for load in distinct(long_lived, "workload"):
        for unit in sorted(distinct(long_lived, "line_bytes")):
            lines = []
            for label in distinct(chosen, "leveling"):
                of_label = select(chosen, leveling=label, workload=load, line_bytes=unit)
                lives = {row["endurance"]: lived(row) for row in of_label}
                interval = str(of_label[0]["interval"] or "–")
                lines.append([label, interval, *(lives.get(value, "–") for value in endurances)])
            head = ["leveling", "ψ", *(f"W = {value}" for value in endurances)]
            found += [f"### {load} writes, units of {unit} bytes", "", *_table(head, lines)]
    return ["## Life by endurance, interleaved, a descriptor at each write", "", *found]


def _parameters(rows: list[Row]) -> list[str]:
    lines = []
    for label in distinct(rows, "leveling"):
        seen: dict[tuple[str, str, str], list[int]] = {}  # what is suited to a medium depends on its size
        for row in select(rows, leveling=label):
            told = _pairs(row["parameters"])
            frames = seen.setdefault((row["policy"], told or "–", _number(row["turns"], 0)), [])
            if row["frames"] not in frames:
                frames.append(row["frames"])
        for (policy, told, turns), frames in seen.items():
            lines.append([label, policy, " or ".join(map(str, sorted(frames))), told, turns])
    head = ["label", "policy", "frames", "parameters", "W / ψ"]
    return ["## Levelings and their parameters", "", *_table(head, lines)]


def _workloads(rows: list[Row]) -> list[str]:
    found: dict[str, Row] = {row["workload"]: row for row in rows}
    lines = [
        [
            load,
            _pairs(row["workload_parameters"]) or "–",
            "as recorded" if row["flush_every"] is None else f"each {row['flush_every']} pages",
        ]
        for load, row in found.items()
    ]
    return ["## Workloads and their parameters", "", *_table(["workload", "parameters", "flushes"], lines)]


def as_markdown(rows: list[Row], command: str, figures: Iterable[tuple[str, str, str]] = ()) -> str:
    """The study as a page.  command: that made it; figures: path, alternative text and caption of each."""
    count, every = len(rows), answer.typical(rows)
    rows = answer.of_first_endurance(every)
    frames = " or ".join(str(value) for value in sorted(distinct(rows, "frames")))
    seeds = max(row["seeds"] for row in every)
    lines = [
        "# Will wear leveling migrate the hot pages?",
        "",
        f"> {answer.SENTENCE}",
        ">",
        f"> — {answer.ASKED_BY}",
        "",
        f"Made by `{command}`: {count} lives of devices of {frames} frames of 4096 bytes (recordings",
        "want the larger one) and 64-byte descriptors, each until its first line was dead.",
        f"W, the writes that a line survives, is {rows[0]['endurance']} unless another is said. Normalised life is",
        "what the host wrote by then, data and descriptors, of what all lines together could have borne; rounded down.",
        *([_SEEDS.format(seeds=seeds, endurance=rows[0]["endurance"])] if seeds > 1 else []),
        "",
    ]
    for path, alternative, caption in figures:
        lines += [f"![{alternative}]({path})", "", f"*{caption}*", ""]
    lines += _by_unit(rows)
    lines += _by_endurance(every)
    lines += ["## Life by workload", ""]
    for placement in distinct(rows, "placement"):
        of_placement = select(rows, placement=placement)
        for unit in sorted(distinct(of_placement, "line_bytes"), reverse=True):
            for writes in distinct(of_placement, "descriptor_writes"):
                lines += _by_workload(rows, placement, unit, writes)
    lines += _parameters(rows) + _workloads(rows)
    lines += ["## The answer", ""]
    for text in answer.paragraphs(every):
        lines += [text, ""]
    return "\n".join(lines).rstrip() + "\n"
