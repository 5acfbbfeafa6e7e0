# SPDX-License-Identifier: MIT
"""Read a journal that may be damaged: in a process of its own, from a copy.

LMDB keeps no checksums, and a flipped bit in a page number is a crash or an endless walk.  The copy is also written to,
because a damaged list of free pages shows only then.  The journal itself is not touched.
"""

import base64
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pmem_core.errors import HostError, HostFull, PmemError, UnsupportedImage

SECONDS_MAX = 300  # no walk is endless, since the file is looked over before; this is for a machine that hangs
MEMORY_MAX = 4 << 30
TRIALS = 12
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
PROGRAM = Path(__file__)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a journal holds.  problem: why it cannot be believed, or ""; then the rest is empty.

    damaged: how many rows of events, history and retired fail their checksums, in words, or ""; the others are here.
    remade: a repair made it anew, and did not get to the end of the pages.
    """

    problem: str = ""
    uuid: str = ""
    session: dict[str, Any] = dataclasses.field(default_factory=dict)
    core: bytes = b""
    table: bytes = b""
    sections: bytes = b""
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    retired: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    damaged: str = ""
    remade: bool = False


def read_journal(folder: Path) -> Record:
    """What the journal in `folder` holds.

    UnsupportedImage where a newer program wrote it; HostFull, HostError where the host does not let it be looked at,
    which says nothing of the journal: it may be the only one that knows where what was flushed is.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        with tempfile.TemporaryDirectory(prefix="pmem-nbd-") as work:
            shutil.copy(folder / "data.mdb", work)
            told = subprocess.run(
                [sys.executable, "-P", PROGRAM, work],
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS_MAX,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise HostError(folder, f"not read within {SECONDS_MAX} s", "a machine that is less busy") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room() from error
        raise HostError(error.filename or folder, (error.strerror or str(error)).lower()) from error
    if -told.returncode in CRASHES and not _memory_is_limited():
        return Record(problem=f"reading it ends in a crash, {signal.Signals(-told.returncode).name}")
    if told.returncode < 0:
        what = f"what reads it was ended by {signal.Signals(-told.returncode).name}"
        raise HostError(folder, what, "memory enough, and nobody who kills it")
    try:
        answer = json.loads(told.stdout)
    except ValueError:
        last = (told.stderr.strip().splitlines() or ["no answer"])[-1]
        raise HostError(folder, f"what reads it fails ({last})", "a program that runs") from None
    if "full" in answer:
        raise _no_room()
    if "host" in answer:
        raise HostError(folder, *answer["host"])
    if "unsupported" in answer:
        raise UnsupportedImage(folder, answer["unsupported"], "use a newer pmem-nbd")
    for name in ("core", "table", "sections"):
        answer[name] = base64.b64decode(answer[name])
    answer["retired"] = {int(page): record for page, record in answer["retired"].items()}
    return Record(**answer)


def _no_room() -> HostFull:
    return HostFull(tempfile.gettempdir(), "no room for a copy of the journal", "free space, or another TMPDIR")


def _memory_limit() -> int:
    """The most address space that the process may have, at most MEMORY_MAX: bytes."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    return min([MEMORY_MAX, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def _memory_is_limited() -> bool:
    """True where a crash may come of memory that there was not."""
    return _memory_limit() < MEMORY_MAX


def _everything(journal: Any) -> dict[str, Any]:
    core, table = journal.load_checkpoint()
    damaged: dict[str, list[bytes]] = {"events": [], "history": [], "retired": []}
    past = {name: getattr(journal, name)(keys) for name, keys in damaged.items()}
    return {
        "uuid": journal.uuid,
        "session": journal.session,
        "core": base64.b64encode(core).decode(),
        "table": base64.b64encode(table).decode(),
        "sections": base64.b64encode(journal.load_sections()).decode(),
        "remade": journal.remade,
        **past,
        "damaged": ", ".join(f"{len(keys)} of {name}" for name, keys in damaged.items() if keys),
    }


def _try_out(journal: Any) -> None:
    """Write to the copy, so that pages are taken from and given to the list of free ones."""
    core, _ = journal.load_checkpoint()
    for trial in range(TRIALS):
        journal.checkpoint(core, {}, {}, event={"event": "trial"})
        journal.retire(trial, {"trial": "x" * 500 * trial})


def main(folder: str) -> None:
    """Print what the journal in `folder` holds, as JSON; runs in the process of its own."""
    from pmem_core.journal import SCHEMA, Journal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_memory_limit(), _memory_limit()))
    try:
        journal = Journal(Path(folder))
        found = _everything(journal)
        _try_out(journal)
        now = _everything(journal)
        if any(found[key] != now[key] for key in ("uuid", "session", "core", "table", "sections", "history")):
            raise ValueError("it does not keep what is written to it")
        if any(record not in now["events"] for record in found["events"][-TRIALS:]):
            raise ValueError("it does not keep what is written to it")
    except UnsupportedImage as error:
        # A schema that is no number is damage, not the future.
        schema = error.what.removeprefix("journal schema ")
        newer = schema.isdigit() and int(schema) > SCHEMA
        found = {"unsupported": error.what} if newer else {"problem": error.what}
    except HostFull:
        found = {"full": True}
    except HostError as error:
        found = {"host": [error.what, error.expected]}
    except MemoryError:
        found = {"host": ["no memory to read it", "more memory ('ulimit -v')"]}
    except OSError as error:
        found = {"host": [(error.strerror or str(error)).lower(), ""]}
    except Exception as error:
        found = {"problem": error.what if isinstance(error, PmemError) else f"{type(error).__name__}: {error}"}
    json.dump({"core": "", "table": "", "sections": "", "retired": {}, **found}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
