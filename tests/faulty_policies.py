# SPDX-License-Identifier: MIT
"""A small policy that keeps the contract, and what is changed in it so that it breaks one rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

RIGHT = '''
"""Every `interval` stores the frame that is about to be written moves into the one free frame.

Source: made up for the tests.
"""

import numpy as np

from .. import media
from ..jit import hot, i64_at, publish
from ..layout import CHECKPOINT, OK

SOURCE = "made up for the tests"
MOVES = True
PARAMETERS = {"interval": (10, 1, 1 << 20, "stores between two moves")}
STATE = np.dtype([("hop_interval", "<i8")])


def suited(medium_frames, given):
    return {"interval": 10}


def plan(medium_frames, parameters, seed):
    state = np.zeros((), STATE)
    state["hop_interval"] = parameters["interval"]
    frames = max(medium_frames - 1, 0)
    return state, frames, np.arange(frames), 1


def spare_frames(state, table):
    return np.setdiff1d(np.arange(len(table) + 1), table)


def table_is_sane(state, table):
    return len(np.unique(table)) == len(table) and table.min() >= 0 and table.max() <= len(table)


@hot
def _free(words):
    total = words.size
    for i in range(words.size):
        total += i - words[i]
    return total


@hot
def translate(state, run, frame):
    return media.table_of(run)[frame]


@hot
def tick(state, run, frame, lines):
    media.ticks_of(run)[0] += 1


@hot
def settle(state, run, core, frame):
    ticks = media.ticks_of(run)
    if ticks[0] < state["hop_interval"]:
        return OK
    table = media.table_of(run)
    target = _free(table)
    if target != _free(media.durable_table_of(run)):
        return CHECKPOINT
    code = media.move(run, core, table[frame], target)
    if code:
        return code
    publish(table, frame, target)
    ticks[0] = 0
    return OK
'''

MOVE = """    code = media.move(run, core, table[frame], target)
    if code:
        return code
"""
CHECK = """    if target != _free(media.durable_table_of(run)):
        return CHECKPOINT
"""
PUBLISH = "    publish(table, frame, target)\n"
TRANSLATE = "    return media.table_of(run)[frame]\n"
SANE = "return len(np.unique(table)) == len(table) and table.min() >= 0 and table.max() <= len(table)"
SPARE = "return np.setdiff1d(np.arange(len(table) + 1), table)"

# name: (what is replaced, what by, what is said of it: a regular expression; where two, plain Python finds it)
FAULTS = {
    "no_state": ("STATE = np", "OTHER = np", "STATE is missing: a numpy dtype with fields, each int64"),
    "floats": ('"<i8")])', '"<f8")])', "STATE: field hop_interval is float64: int64"),
    "vast": ('"<i8")])', '"<i8", 300)])', "STATE takes 2400 bytes: at most 2048"),
    "twin": (
        '("hop_interval", "<i8")',
        '("fixed", "<i8")',
        "STATE is the same as that of none: a field with a name .*",
    ),
    "no_moves": ("MOVES = True", "", "MOVES is missing: .*"),
    "no_source": ("SOURCE = ", "ORIGIN = ", "SOURCE is missing: .*"),
    "no_tick": ("def tick", "def tack", r"has no function tick: tick\(state, run, frame, lines\)"),
    "signature": (
        "translate(state, run, frame)",
        "translate(state, frame)",
        r"translate\(state, frame\): takes other parameters: \(state, run, frame\)",
    ),
    "cold_signature": ("plan(medium_frames, ", "plan(frames, ", r"plan\(frames, .*: takes other parameters: .*"),
    "odd_row": ('(10, 1, 1 << 20, "', '(10, 1, "', "PARAMETERS: interval: .*: .default, least, most, what it is."),
    "odd_range": ("(10, 1, ", "(10, 20, ", "PARAMETERS: interval: .*: least <= default <= most"),
    "unsuited": ('{"interval": 10}', '{"interval": 0}', r"suited\(0, {}\): gives interval=0: a parameter, within .*"),
    "forgetful": (
        'state["hop_interval"] = parameters["interval"]',
        'state["hop_interval"] = np.random.randint(1 << 30)',
        r"plan\(0, interval=10\): gives other state when it is asked again: .*",
    ),
    "planless": ("frames = max", "frames = parameters['psi'] + max", r"plan\(0, .*\): fails: KeyError: 'psi'"),
    "greedy": ("max(medium_frames - 1, 0)", "medium_frames + 1", r"plan\(0, .*: places 1 frames: at most 0"),
    "no_table": ("np.arange(frames), 1", "list(range(frames)), 1", "plan.*: its table is no int64.*"),
    "roomless": ("frames = max(medium_frames - 1, 0)", "frames = 0", "plan places no two frames on 150, .*"),
    "crowded": (TRANSLATE, TRANSLATE.replace("[frame]", "[frame >> 1]"), "at creation frames 0 and 1 are both on .*"),
    "outside": (TRANSLATE, TRANSLATE.replace("[frame]", "[frame] + 1000"), "at creation frame 0 is on .*: 0 to 12.*"),
    "shared": (
        PUBLISH,
        "    publish(table, frame, table[(frame + 1) % table.size])\n",
        "at write 2 frames 0 and 1 are both on medium frame 1: one each .*",
    ),
    "spares_wrong": (SPARE, "return table[:1]", "at creation frame 0 is on medium frame 0: none that spare_frames .*"),
    "spares_twice": (SPARE, SPARE + ".repeat(2)", "at creation spare_frames names medium frame 12 twice: each once.*"),
    "miscounted": (
        SPARE,
        SPARE + "\n\n\ndef spare_count(state, table):\n    return 2",
        "at creation spare_count says 2: 1, as many as spare_frames names.*",
    ),
    "loses": (
        PUBLISH,
        "    publish(table, 1, target)\n",
        "move 1 lost the data of frame 1: medium frame 12 holds that.*",
    ),
    "no_copy": (MOVE, "", "move 0 lost the data of frame 0: medium frame 12 holds nothing: its own.*"),
    "hasty": (
        CHECK,
        "",
        r"after move \d+ a power cut would lose the data of frame \d+: medium .*: CHECKPOINT before a move .*",
    ),
    "never": (CHECK, "    return CHECKPOINT\n", "settle asks for a checkpoint right after a checkpoint at write 2: .*"),
    "refuses": (SANE, "return False", "table_is_sane refuses its own table at write 1: True.*"),
    "believes": (SANE, "return True", "table_is_sane accepts .*, with which .*"),
    "sane_fails": (SANE, "return len(table) // int(table[0] >= 0)", "table_is_sane: fails on a table of -1: Zero.*"),
    "changes_on_kill": (
        MOVE + PUBLISH,
        "    old = table[frame]\n" + PUBLISH + MOVE.replace("table[frame]", "old"),
        r"a kill at .*changes_on_kill.py line \d+, at write \d+, loses the data of frame 0: medium frame 12 holds .*",
    ),
    "bounds": ("ticks[0] = 0", "ticks[1] = 0", r"settle: fails at write 2: IndexError: index 1 .* \(line 68\).*"),
    "off_the_medium": (
        MOVE,
        MOVE.replace("target)", "target + 9)"),
        "settle moves medium frame 0 to 21 at write 2: 0 to 12.*",
    ),
    "answers": ("        return OK\n", "        return 7\n", "settle answers 7 at write 1: OK, CHECKPOINT, or .*"),
    "moves_after_all": ("MOVES = True", "MOVES = False", "MOVES is False, and settle moved a frame at write 2: .*"),
    "lazy": (
        "    table = media",
        "    return OK\n    table = media",
        r"MOVES is True, and \d+ writes moved no frame: .*",
    ),
    "counts_down": ("[0] += 1", "[0] -= 1", "at write 1 tick word 0 is -1: 0 to .*, the line writes so far .*"),
    "eager": (
        "    ticks = media.ticks_of(run)\n    if",
        "    ticks = media.ticks_of(run)\n    ticks[0] += ticks[0] > 0\n    if",
        "to settle a frame twice gives another map: at write .* frame .*: a map that depends on the stores alone .*",
    ),
    "stalled": (
        "@hot\ndef _free",
        "def stall_nanoseconds(state, table):\n    return -1\n\n\n@hot\ndef _free",
        "stall_nanoseconds gives -1.0 at write 1: 0 or more .*",
    ),
    "moody": (
        'state["hop_interval"]:\n',
        'state["hop_interval"] + np.random.randint(3):\n',
        "the same writes give another map: at write .* frame .* is on medium frame .*",
    ),
    "nosy": (
        'state["hop_interval"]:\n',
        'state["hop_interval"] + (_free(media.durable_table_of(run)) != _free(media.table_of(run))):\n',
        "a checkpoint gives another map: at write .* frame .* is on medium frame .*: a map that depends on the .*",
    ),
}


def faulty(name: str) -> str:
    """The policy that breaks rule `name`."""
    old, new, _ = FAULTS[name]
    assert RIGHT.count(old) >= 1, name
    return RIGHT.replace(old, new, 1).lstrip()


# Tries every policy of a folder out, in plain Python and one process: most of a process's time is to import numba.
PROGRAM = """
import contextlib, io, json, os, sys, warnings
from pathlib import Path
from pmem_core import jit, leveling, policyfile
from pmem_core.errors import BadPolicy
from pmem_core.policytest import driven, rules, where
warnings.simplefilter("ignore")
place = Path(sys.argv[1]) / "where"
place.write_bytes(bytes(where.RECORD.size))
said = {}
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    os.environ[policyfile.VARIABLE] = str(path)
    leveling.family.__dict__.pop("modules", None)
    try:
        driven.try_out(path.stem, where.Where(place), lambda **_: None)
        said[path.stem] = "nothing"
    except BadPolicy as error:
        said[path.stem] = f"{error.what}: {error.expected}"
    except rules.Fault as fault:
        said[path.stem] = f"{fault.what}: {fault.expected}"
print(json.dumps(said))
"""


def said_of(folder: Path) -> dict[str, str]:
    """What plain Python says of each policy in `folder`, by name."""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said
