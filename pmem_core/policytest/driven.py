# SPDX-License-Identifier: MIT
"""The process that tries a policy out: ``driven.py NAME FILES WHERE``.  It says how it goes on as lines of JSON.

With NUMBA_DISABLE_JIT=1 it does so in plain Python, which has the better messages and can be stopped at a line; else
compiled.  FILES are the policies outside of the package; the environment does not name them, for a cache would be
chosen by them, and compile again what is the same for every policy.
"""

import contextlib
import dataclasses
import json
import os
import re
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

PLAIN_WRITES, WRITES = 120, 1000
COMPARED_WRITES = 150  # in both tiers
KILLED_WRITES, KILLED_MOVES = 60, 2
NONSENSE = 60
MEMORY_MAX = 8 << 30  # a `plan` that takes all of the machine's is a fault too
SAID_MAX = 300  # characters of what numba says


@dataclasses.dataclass
class Done:
    """What was done."""

    drives: int = 0
    writes: int = 0
    moves: int = 0
    kills: int = 0
    maps: dict[str, str] = dataclasses.field(default_factory=dict)


def try_out(name: str, where: Any, say: Callable[..., None]) -> Done:
    """Try policy `name` out.  Fault, or BadPolicy where it cannot be loaded or a part of it is missing."""
    from pmem_core import leveling
    from pmem_core.jit import PLAIN
    from pmem_core.policytest import drive, rules

    where.at("loading")
    module = leveling.family.modules[name]
    leveling.family.require(module, name)
    where.at("plan")
    for frames in rules.PLANNED:
        rules.planned(module, rules.suited(module, frames), frames)
    choices = [
        (parameters, frames)
        for parameters in rules.variants(module)
        for frames in rules.MEDIA
        if rules.planned(module, parameters, frames) >= 2
    ]
    if not choices:
        tried = rules.chosen_text(rules.variants(module)[0])
        raise rules.Fault(f"plan places no two frames on {rules.MEDIA[-1]}, with {tried}", "room for some frames")
    done = Done()
    drives: list[Any] = []
    if PLAIN:
        # The smallest medium for each.
        choices = [choice for at, choice in enumerate(choices) if not at or choices[at - 1][0] != choice[0]]
    else:
        where.at("compiling")
        say(share=0.0, text="compiling")
        compile_all(module)
    with drive.moves_watched(drives) if PLAIN else contextlib.nullcontext():
        for number, (parameters, frames) in enumerate(choices):
            say(share=number / len(choices), text=f"{rules.chosen_text(parameters)}, {frames} frames")

            def make(parameters: dict[str, int] = parameters, frames: int = frames) -> Any:
                drives.append(drive.Drive(where, module, parameters, frames))
                return drives[-1]

            try:
                _try_choice(make, number, done)
            except rules.Fault as fault:
                fault.expected += f" (with {rules.chosen_text(parameters)}, on a medium of {frames} frames)"
                raise
    done.drives = len(drives)
    done.writes = sum(one.write for one in drives)
    done.moves = sum(one.memory.moves for one in drives)
    if module.MOVES and not done.moves:
        raise rules.Fault(f"MOVES is True, and {done.writes} writes moved no frame", "moves, or MOVES = False")
    return done


def _try_choice(make: Callable[[], Any], number: int, done: Done) -> None:
    """One choice of parameters on one medium."""
    from pmem_core.jit import PLAIN
    from pmem_core.policytest import drive, rules

    for workload in drive.WORKLOADS[number % 3 :][:1] if PLAIN else drive.WORKLOADS:
        one = make()
        drive.drive(one, workload, PLAIN_WRITES if PLAIN else WRITES)
    asked = f"{rules.chosen_text(one.parameters)}, {one.memory.medium_frames} frames"
    done.maps[asked] = drive.compare(make, COMPARED_WRITES)
    drive.try_nonsense(make(), NONSENSE)
    if PLAIN:
        done.kills += drive.try_kills(make(), KILLED_WRITES, KILLED_MOVES)


def compile_all(module: Any) -> None:
    """Compile what will be called.  Fault names the function that cannot be."""
    import numpy as np

    from pmem_core import binding, layout
    from pmem_core.jit import compile_for
    from pmem_core.policytest import memory, rules

    run, core, state = handle = np.zeros(1, layout.RUN), np.zeros(1, layout.CORE), np.zeros(1, module.STATE)
    # By themselves: so the error is about the function, not about who calls it.
    compiled: dict[str, Callable[[], int]] = {
        "translate": lambda: binding.translate_address(module, state, run),
        "tick": lambda: binding.tick_address(module, state, run),
        "settle": lambda: binding.settle_address(module, state, run, core),
    }
    for name, compile_it in compiled.items():
        try:
            compile_it()
        except Exception as error:
            raise rules.Fault(f"{name}: numba cannot compile it", compiler_said(str(error), module)) from None
    compile_for(memory.fill_places, handle, np.zeros(1, np.int64))
    compile_for(memory.settle, handle, 0)
    compile_for(memory.store, handle, 0, 1)


def compiler_said(text: str, module: Any) -> str:
    """What numba has against it, out of pages of `text`, and the line of the policy's file."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Failed in")]
    what = lines[0] if lines else "it does not say why"
    if what.startswith("No implementation of function"):
        called = next((line for line in lines if line.startswith(">>> ")), what)
        what = f"it has no {called.removeprefix('>>> ')}"
    file = re.escape(Path(module.__file__).name)
    places = re.findall(rf'^File "[^"]*{file}", line (\d+):', text, re.MULTILINE)
    return what[:SAID_MAX] + (f" (line {places[-1]})" if places else "")


def main(name: str, files: str, where_path: str) -> int:
    """Try it out and say so; the exit status."""
    out: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the policy prints is nobody's answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    warnings.simplefilter("ignore")  # of numpy, where plain integers wrap as compiled ones do

    def say(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    import numpy as np

    from pmem_core import codecache, policyfile
    from pmem_core.errors import BadPolicy
    from pmem_core.policytest.rules import Fault
    from pmem_core.policytest.where import Where

    assert codecache.FILES_FOLDER
    os.environ[policyfile.VARIABLE] = files
    np.seterr(all="ignore")
    try:
        done = try_out(name, Where(Path(where_path)), say)
    except BadPolicy as error:
        say(subject=error.subject, fault=error.what, expected=error.expected)
        return 1
    except Fault as fault:
        say(fault=fault.what, expected=fault.expected)
        return 1
    say(done=dataclasses.asdict(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
