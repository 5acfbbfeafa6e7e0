# SPDX-License-Identifier: MIT
"""Servers under test: how each is made, started, watched and ended; and checkouts of other commits as peers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
KINDS = ("null", "memory", "file", "qemu", "bytearray", "pmem")
CREATE_OPTIONS = {"placement", "leveling", "descriptor-bytes", "descriptor-format", "descriptor-writes"}
CREATE_OPTIONS |= {"frame-bytes", "line-bytes", "initialise"}
START_S_MAX = 180
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

# Asked of the checkout itself, so that each commit is served its own way; -I, for the current directory may be another.
LAUNCH = """
import json, sys
from pmem_core.launch import nbdkit_command, nbdkit_environment
image, socket, pidfile, *words = sys.argv[1:]
command = nbdkit_command(image, socket=socket, pidfile=pidfile, nbdkit_args=words)
print(json.dumps([command, nbdkit_environment()]))
"""

# Run by nbdsh before the server starts, so that the client's own start is not counted.
PROBE = """
import os, time
print("ready", flush=True)
deadline = time.monotonic() + {seconds}
while time.monotonic() < deadline:
    try:
        if os.path.exists({socket!r}):
            h = nbd.NBD()
            h.connect_unix({socket!r})
            {request}
            print(time.monotonic(), flush=True)
            break
    except nbd.Error:
        pass
    time.sleep(0.001)
"""


def memory_of(pid: int | str) -> dict[str, int]:
    """A process's resident memory, and the part of it that is not of files; pid may be "self"."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
    return {"rss_bytes": kib["VmRSS"] << 10, "anonymous_bytes": kib["RssAnon"] << 10}


@dataclass
class Peer:
    """One server under test: `spec` as it was typed, its own `folder`, and the `size` in bytes asked for.

    `trees` has the folder of the checkout of each commit that a spec names (rev=COMMIT).
    """

    spec: str
    folder: Path
    size: int
    trees: Mapping[str, Path] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.kind, *settings = self.spec.partition("@")[0].split(":")
        if self.kind not in KINDS:
            raise click.BadParameter(f"{self.kind}: not a peer: one of {', '.join(KINDS)}")
        pairs = [setting.partition("=")[::2] for setting in settings]
        self.options = [word for key, value in pairs if key.startswith("-") for word in (key, value) if word]
        self.settings = {key: value for key, value in pairs if not key.startswith("-")}
        rev = self.settings.pop("rev", "")
        self.options += [f"halt_poll={word}" for word in [self.settings.pop("halt-poll", "")] if word]
        self.bin = (self.trees[rev] if rev else ROOT) / ".venv" / "bin"
        self.socket, self.pid_file, self.log = (self.folder / name for name in ("socket", "pid", "log"))
        self.image = self.folder / ("image.pmem" if self.kind == "pmem" else "image.raw")
        self.environ: dict[str, str] = {}

    def create(self) -> None:
        """Make what the server serves; the image of pmem may exist from an earlier call."""
        if self.kind in ("file", "qemu"):
            with self.image.open("wb") as file:
                file.truncate(self.size)
        if self.kind == "pmem" and not self.image.exists():
            words = [str(self.bin / "pmem-nbd"), "create", str(self.image), "--size", str(self.size)]
            if self.settings.get("checksums") == "no":
                words.append("--no-checksums")
            for key, value in self.settings.items() - {("checksums", "no")}:
                words += [f"--{key}", value] if key in CREATE_OPTIONS else ["--set", f"{key}={value}"]
            run(words)

    def command(self) -> tuple[list[str], dict[str, str] | None]:
        """The command that serves in the foreground, and its environment; None is this process's."""
        if self.kind == "qemu":
            cache = ["--cache=writeback", "--aio=threads", "--shared=16", "--persistent", "--format=raw"]
            where = [f"--socket={self.socket}", f"--pid-file={self.pid_file}"]
            return ["qemu-nbd", *cache, *where, *self.options, str(self.image)], None
        if self.kind == "pmem":
            words = [str(self.image), str(self.socket), str(self.pid_file), "--exit-with-parent", *self.options]
            command, environ = json.loads(run([str(self.bin / "python"), "-I", "-c", LAUNCH, *words]))
            return command, environ | self.environ
        plugin = {
            "null": ["null", str(self.size)],
            "memory": ["memory", str(self.size)],
            "file": ["file", str(self.image)],
            "bytearray": ["python", str(ROOT / "scripts" / "bench_bytearray.py"), f"size={self.size}"],
        }[self.kind]
        where = ["-f", "--exit-with-parent", "-U", str(self.socket), "-P", str(self.pid_file)]
        return ["nbdkit", *where, *self.options, *plugin], None

    def start(self, wait: bool = True, command: tuple[list[str], dict[str, str] | None] | None = None) -> None:
        """Start the server; with `wait`, return when it listens.  Errors: click.ClickException with its last words."""
        words, environ = command or self.command()
        for path in (self.socket, self.pid_file):
            path.unlink(missing_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, env=environ, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S_MAX
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

    def first_answer_s(self, request: str = "h.pread(1, 0)") -> float:
        """Start the server; seconds from its exec to an answer to a client that was there before.

        request: what it asks, in Python, of the libnbd handle h.
        """
        command = self.command()
        self.socket.unlink(missing_ok=True)
        probe = ["nbdsh", "-c", PROBE.format(socket=str(self.socket), seconds=START_S_MAX, request=request)]
        environ = os.environ | {"PATH": f"/usr/bin:{os.environ['PATH']}"}  # the Python that libnbd was packaged for
        with subprocess.Popen(probe, env=environ, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            client.stdout.readline()
            begin = time.monotonic()
            self.start(wait=False, command=command)
            answer = client.stdout.readline()
        if not answer:
            raise click.ClickException(f"{self.spec}: server did not start: {self.last_words()}")
        return float(answer) - begin

    def last_words(self) -> str:
        return " ".join(self.log.read_text(errors="replace").strip().splitlines()[-1:])

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def cpu_s(self) -> float:
        """Seconds of processor time, user and system, that the server has used."""
        assert self.process is not None
        # The second field is a name in parentheses, which may hold spaces.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def memory_bytes(self) -> dict[str, int]:
        """The server's resident memory, and the part of it that is not of files."""
        assert self.process is not None
        return memory_of(self.process.pid)

    def settle(self) -> None:
        """Write this peer's dirty pages back, and nobody else's."""
        for path in self.files():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())

    def files(self) -> list[Path]:
        paths = [self.image, *self.image.rglob("*")] if self.image.is_dir() else [self.image]
        return [path for path in paths if path.is_file()]

    def disk_bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.files())


def run(words: Sequence[str]) -> str:
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
def peers_at(
    wanted: Sequence[tuple[str, int]], folder: Path, trees: Mapping[str, Path] | None = None
) -> Iterator[list[Peer]]:
    """Peers of (spec, bytes), in folders of their own; servers and folders are gone at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        peers = []
        for spec, size in wanted:
            place = spec.partition("@")[2] or str(folder)
            parent = "/dev/shm" if place == "tmpfs" else place
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="pmem-bench-", dir=parent))
            peers.append(Peer(spec, Path(home), size, trees or {}))
            stack.callback(peers[-1].stop)
        yield peers


# --- other commits ----------------------------------------------------------------------------------------------------


def revisions(specs: Sequence[str]) -> list[str]:
    """The commits that specs name with rev=COMMIT, each once."""
    words = [word for spec in specs for word in spec.partition("@")[0].split(":")]
    return list(dict.fromkeys(word.removeprefix("rev=") for word in words if word.startswith("rev=")))


def commit_of(revision: str) -> str:
    """The abbreviated hash of a revision.  Errors: click.BadParameter where it names no commit."""
    try:
        return run(["git", "-C", str(ROOT), "rev-parse", "--short=10", "--verify", f"{revision}^{{commit}}"]).strip()
    except click.ClickException as error:
        raise click.BadParameter(f"{revision}: not a commit: a revision of this repository") from error


@contextlib.contextmanager
def checkouts(commits: Sequence[str], folder: Path) -> Iterator[dict[str, Path]]:
    """Each commit in a git worktree, set up; the worktrees are gone at the end."""
    trees: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        for commit in commits:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pmem-bench-", dir=folder)))
            tree = home / commit
            git = ["git", "-C", str(ROOT), "worktree"]
            stack.callback(subprocess.run, [*git, "remove", "--force", str(tree)], check=False)
            run([*git, "add", "--detach", "--quiet", str(tree), commit])
            run([str(tree / "scripts" / "setup")])
            trees[commit] = tree
        yield trees
