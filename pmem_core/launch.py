# SPDX-License-Identifier: MIT
"""How nbdkit is called: its command line, the environment its Python needs, and the words it dies with."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pmem_core
from pmem_core import errors, runtime, serverlog
from pmem_core.errors import HostError, MissingProgram, PmemError, ServerError, UsageError

PROJECT = Path(pmem_core.__file__).resolve().parent.parent
PLUGIN = PROJECT / "nbd_plugin" / "pmem.py"
# Threads a connection (docs/performance-choices.md).  With more, an nbdkit before NBDKIT_MENDED is ended, for all its
# clients, by one that hangs up before it has its answers: a thread closes the socket that another is about to send by.
THREADS = 1
NBDKIT_MENDED = (1, 34)
_HELPS = "one thread a connection, or nbdkit {}.{}".format(*NBDKIT_MENDED)
# What is served, how and where: of a server that was told otherwise the records would be wrong.
_OWN_PARAMETERS = ("image", "script", "readonly", "logwrites", "record")
_OWN_LETTERS = "UpPri"
_OWN_OPTIONS = ("unix", "port", "pidfile", "pid-file", "readonly", "read-only", "ipaddr", "ip-addr")
# Options of nbdkit's with a word of their own, which may look like any of these.
_LETTERS_WITH_WORD = "Degtu"
_OPTIONS_WITH_WORD = (
    *("debug", "export", "exportname", "export-name", "filter", "group", "log", "mask-handshake", "run"),
    *("selinux-label", "threads", "tls", "tls-certificates", "tls-psk", "user"),
)


def is_text(word: str) -> bool:
    """Whether a word of the command line was UTF-8, as nbdkit's Python plugin wants it; others have surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def nbdkit_command(
    image: str | Path,
    *,
    socket: str | Path | None = None,
    port: int | None = None,
    bind: str = "127.0.0.1",
    pidfile: str | Path | None = None,
    read_only: bool = False,
    threads: int = THREADS,
    parameters: Mapping[str, str] | None = None,
    nbdkit_args: Sequence[str] = (),
    plugin: str | Path = PLUGIN,
) -> list[str]:
    """Return the command that serves ``image`` in its foreground; run it with nbdkit_environment().

    ``nbdkit_args`` go before the plugin's name, but for the ``key=value`` words at their end: these are parameters of
    filters, which nbdkit wants behind it.
    """
    for name in (image, *(parameters or {}).values()):
        if not is_text(str(name)):
            raise UsageError(str(name), "is no UTF-8, and nbdkit gives Python nothing else", "another name")
    options = list(nbdkit_args)
    filters: list[str] = []
    while options and re.match(r"[a-z][a-z0-9_.-]*=", options[-1]):
        filters.insert(0, options.pop())
    where = ["-U", os.path.abspath(socket)] if socket is not None else ["-p", str(port), "-i", bind]  # noqa: PTH100
    return [
        runtime.program("nbdkit", "nbdkit"),
        "-f",
        *(["-r"] if read_only else []),
        *where,
        *(["-P", str(pidfile)] if pidfile is not None else []),
        *("-t", str(threads)),
        *options,
        "python",
        str(plugin),
        f"image={os.path.realpath(image)}",
        *(["readonly=true"] if read_only else []),  # nbdkit does not tell a Python plugin of -r before a client comes
        *(f"{name}={value}" for name, value in (parameters or {}).items()),
        *filters,
    ]


def _read(nbdkit_args: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each option in these words: the word that it is in, its name with dashes, and its own word, "" where it has none.

    As getopt_long(3) reads them: options may be abbreviated, letters bundled, and mixed with other words, which have
    no name.
    """
    words = iter(nbdkit_args)
    for word in words:
        if word.startswith("--"):
            name, is_assignment, value = word.partition("=")
            if not is_assignment and any(f"--{option}".startswith(name) for option in _OPTIONS_WITH_WORD):
                value = next(words, "")
            yield word, name, value
        elif word.startswith("-"):
            for at, letter in enumerate(word[1:], 2):
                if letter in _LETTERS_WITH_WORD:
                    yield word, f"-{letter}", word[at:] or next(words, "")
                    break
                yield word, f"-{letter}", ""
        else:
            yield word, "", ""


def _is_own(name: str) -> bool:
    if name.startswith("--"):
        return name != "--" and any(f"--{option}".startswith(name) for option in _OWN_OPTIONS)
    return name.removeprefix("-") in _OWN_LETTERS


def own_word(nbdkit_args: Sequence[str]) -> str | None:
    """The first of these words that says what nbdkit_command() has to say; None where there is none."""
    for word, name, _ in _read(nbdkit_args):
        if _is_own(name) if name else "=" in word and word.partition("=")[0] in _OWN_PARAMETERS:
            return word
    return None


def threads_warning(threads: int, nbdkit_args: Sequence[str] = ()) -> str | None:
    """Return what can happen to a server with so many threads a connection, and what helps; None where nothing can."""
    for _, name, value in _read(nbdkit_args):
        if (name == "-t" or (name.startswith("--th") and "--threads".startswith(name))) and value.isdecimal():
            threads = int(value)
    if threads == 1:
        return None
    command = [runtime.program("nbdkit", "nbdkit"), "--version"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)\S*", said)
    if version is None or (int(version[1]), int(version[2])) >= NBDKIT_MENDED:
        return None
    what = "with several threads a connection it ends, for all clients, when one hangs up before it has its answers"
    return f"nbdkit {version[0]}: {what}: {_HELPS}"


def requires_tls(nbdkit_args: Sequence[str]) -> bool:
    """Whether these arguments make nbdkit refuse clients without TLS."""
    return any((name, value) == ("--tls", "require") for _, name, value in _read(nbdkit_args))


def nbdkit_environment() -> dict[str, str]:
    """Return the environment in which nbdkit's interpreter finds this project and its packages.

    It reads no .pth files, so the folders that an editable install names there are given one by one.
    """
    folders = [str(PROJECT)]
    for package in ("numba", "numpy", "lmdb", "psutil"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(str(Path(spec.origin).parent.parent))
    folders += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    return environment | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(folders)), "PYTHONUNBUFFERED": "1"}


# In a checkout; an installed package has no scripts.
_MADE = " (scripts/setup makes one)" if (PROJECT / "scripts" / "setup").exists() else ""


def require_nbdkit() -> None:
    """Raise MissingProgram unless nbdkit is there, with a Python plugin that embeds this very minor version."""
    nbdkit = runtime.program("nbdkit", "nbdkit")
    command = [nbdkit, "python", "--dump-plugin"]
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    version = re.search(r"^python_version=(\d+\.\d+)", told.stdout, re.MULTILINE)
    if not version:
        raise MissingProgram("nbdkit", "has no Python plugin", "the package nbdkit-plugin-python")
    ours = "{}.{}".format(*sys.version_info)
    if version[1] != ours:
        raise MissingProgram(
            "nbdkit",
            f"its Python plugin embeds Python {version[1]}, and this is Python {ours}",
            f"a virtual environment made with python{version[1]}{_MADE}",
        )


# nbdkit 1.32 with -f asks the kernel for a SIGTERM when its parent dies, --exit-with-parent or not (strace shows it),
# and "parent" is the thread that made it.  So this one forks, and lets nbdkit begin only once it has become an orphan.
_ORPHAN = """
import os, signal, sys, time
parent = os.getpid()
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
os.dup2(2, 1)
while os.getppid() == parent:
    time.sleep(0.001)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextlib.contextmanager
def uninterrupted() -> Iterator[Callable[[], None]]:
    """Signals that end this process wait until what this gives is called: nobody finds a server that has no record."""
    before: dict[int, Any] = {}
    came: list[int] = []

    def go_on() -> None:
        while before:
            signal.signal(*before.popitem())
        while came:
            signal.raise_signal(came.pop())

    # Not by a mask: another thread would take the signal, and the interruption come here all the same.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield go_on
    finally:
        go_on()


def spawn(command: Sequence[str], log: Path, *, outlive: bool) -> int:
    """Start nbdkit with its output in ``log`` and return its pid; ``outlive`` says whether it may outlive this process.

    It runs in a session of its own: Ctrl-C on the terminal is for whoever started it, who will want a checkpoint.  No
    signal is blocked in it, whatever is in this process.
    """
    environment = nbdkit_environment() | {serverlog.VARIABLE: str(log.absolute())}
    if outlive:
        with os.fdopen(os.open(log, serverlog.FLAGS, serverlog.MODE), "wb") as output:
            launcher = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _ORPHAN, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                check=True,
            )
        return int(launcher.stdout)
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), serverlog.FLAGS, serverlog.MODE),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(command[0], list(command), environment, file_actions=files, setsid=True, setsigmask=[])


def failure(image: str, said: str, status: int | None) -> PmemError:
    """Turn the last words of an nbdkit that ended into the error to raise; ``status`` is None where nobody knows it."""
    lines, helps = [line.strip() for line in said.splitlines() if line.strip()], "a bug report"
    for line in reversed(lines):
        match = re.match(r"(?:[\w.]+\.)?(\w+): (.+)", line)
        kind = getattr(errors, match[1], None) if match else None
        if match and isinstance(kind, type) and issubclass(kind, PmemError):
            return kind(*match[2].split(": ", 2))
    if status == -signal.SIGBUS:
        # A page of a mapped file could not be read, or had no block on the disk.
        return ServerError(image, "nbdkit was killed by SIGBUS: the disk that the image lies on failed", "see dmesg")
    assertion = next((clean(line) for line in reversed(lines) if serverlog.ASSERTION in line), "")
    if assertion and status in (None, -signal.SIGABRT):
        if "raw_send_socket" in assertion and "sock >= 0" in assertion:
            assertion, helps = "a client hung up before it had its answers", _HELPS
        return ServerError(image, f"nbdkit was killed by SIGABRT: {assertion}", helps)
    # It ends with status 0 where it was about to listen, and by the signal where it was not that far.
    if status == -signal.SIGTERM or (status == 0 and all(line.endswith("...") for line in lines)):
        return ServerError(image, "its server was stopped while it started")
    if status is not None and status < 0:
        return ServerError(image, f"nbdkit was killed by {signal.Signals(-status).name}", helps)
    # The words of nbdkit and of our plugin; what they say on the way to being ready ends in dots.
    words = [line for line in lines if re.match(r"((\S*/)?nbdkit|pmem-nbd): ", line) and not line.endswith("...")]
    words = [line for line in words if not line.startswith(serverlog.IN_PASSING)]
    if not words:
        last = f"its last words: {lines[-1]}" if lines else "it said nothing"
        return ServerError(image, "nbdkit ended" if status is None else f"nbdkit ended with status {status}", last)
    if "Traceback" in words[-1]:
        if refused := re.fullmatch(r"\w+: \[Errno \d+\] ([^:]+): '(.+)'", lines[-1]):
            return HostError(refused[2], refused[1].lower())
        return ServerError(image, f"the plugin failed: {lines[-1]}")
    parts = clean(words[-1]).split(": ", 2)
    return ServerError(*parts) if len(parts) > 1 else ServerError("nbdkit", *parts)


def clean(line: str) -> str:
    """Return a line of nbdkit's or our plugin's without what they put before each."""
    return (
        re.sub(r"^(((\S*/)?nbdkit|pmem-nbd): )?(\w+(\.\d+|\[\d+\]): )?((error|debug): )?", "", line.strip())
        or line.strip()
    )
