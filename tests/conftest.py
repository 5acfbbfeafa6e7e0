# SPDX-License-Identifier: MIT
"""What every test shares: prerequisites by name, the rule that none is skipped in CI, and the hypothesis profiles."""

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import hypothesis
import pytest

REQUIRE_ALL = os.environ.get("PMEM_NBD_REQUIRE_ALL") == "1"

# nbdkit, nbd-client and mkfs live in sbin, which is not on everybody's PATH.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# Compiling on the first example takes seconds, which says nothing about the code: no deadline, no complaint.
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# For the tiers that run the same tests again, slower.
hypothesis.settings.register_profile("small", hypothesis.settings.get_profile("ci"), max_examples=14)
hypothesis.settings.load_profile("ci")


# --- prerequisites ----------------------------------------------------------------------------------------------------
# A check returns what is missing, or "".


def _program(name: str, package: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"no program {name} (Debian: {package})"


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _device(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _filesystem(name: str, package: str) -> Callable[[], str]:
    """Both halves of a filesystem: its mkfs, and a kernel that mounts it."""

    def missing() -> str:
        known = Path("/proc/filesystems").read_text().split()
        if name not in known and subprocess.run(["modprobe", "-q", name], check=False).returncode:
            return f"the kernel does not know {name}"
        return _program(f"mkfs.{name}", package)()

    return missing


def _nbdkit() -> str:
    if not shutil.which("nbdkit"):
        return "no program nbdkit (Debian: nbdkit)"
    told = subprocess.run(["nbdkit", "python", "--dump-plugin"], check=False, capture_output=True, text=True).stdout
    versions = [line.partition("=")[2] for line in told.splitlines() if line.startswith("python_version=")]
    if not versions:
        return "no Python plugin for nbdkit (Debian: nbdkit-plugin-python)"
    ours = "{}.{}".format(*sys.version_info)
    if not versions[0].startswith(ours + "."):
        return f"nbdkit embeds Python {versions[0]} and this is {ours}: run scripts/setup"
    return ""


def _nbd() -> str:
    if Path("/sys/module/nbd").exists() or not subprocess.run(["modprobe", "-q", "nbd"], check=False).returncode:
        return ""
    return "the kernel has no nbd"


def _huge_pages() -> str:
    if not Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").exists():
        return "the kernel has no transparent huge pages"
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 1):
        return "the kernel is older than Linux 6.1"
    return "" if Path("/dev/shm").is_dir() else "no /dev/shm"


def _chromium() -> str:
    names = ("chromium-headless-shell", "chromium", "chromium-browser")
    return "" if any(map(shutil.which, names)) else "no program chromium (Debian: chromium-headless-shell)"


PREREQUISITES: dict[str, Callable[[], str]] = {
    "chromium": _chromium,
    "dmsetup": _program("dmsetup", "dmsetup"),
    "ext4": _filesystem("ext4", "e2fsprogs"),
    "fio": _program("fio", "fio"),
    "fuse": lambda: _device("/dev/fuse") or _program("fusermount3", "fuse3")(),
    "gcc": _program("gcc", "gcc"),
    "huge pages": _huge_pages,
    "ip": _program("ip", "iproute2"),
    "libnbd": lambda: "" if importlib.util.find_spec("nbd") else "no module nbd (Debian: python3-libnbd)",
    "loop": lambda: _root() or _device("/dev/loop-control"),
    "man": _program("man", "man-db"),
    "nbd": _nbd,
    "nbd-client": _program("nbd-client", "nbd-client"),
    "nbdcopy": _program("nbdcopy", "libnbd-bin"),
    "nbdfuse": _program("nbdfuse", "libnbd-bin"),
    "nbdinfo": _program("nbdinfo", "libnbd-bin"),
    "nbdkit": _nbdkit,
    "ndctl": _program("ndctl", "ndctl"),
    "qemu-img": _program("qemu-img", "qemu-utils"),
    "qemu-io": _program("qemu-io", "qemu-utils"),
    "qemu-nbd": _program("qemu-nbd", "qemu-utils"),
    "root": _root,
    "shellcheck": _program("shellcheck", "shellcheck"),
    "strace": _program("strace", "strace"),
    "tun": lambda: _root() or _device("/dev/net/tun"),
    "uml": _program("linux.uml", "user-mode-linux"),
    "unshare": lambda: _root() or _program("unshare", "util-linux")(),
    "xfs": _filesystem("xfs", "xfsprogs"),
    "xfs_io": _program("xfs_io", "xfsprogs"),
}


@functools.cache
def missing(name: str) -> str:
    """Say what the prerequisite ``name`` lacks on this machine, or return ""."""
    return PREREQUISITES[name]()


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark a test, a class or (``pytestmark = needs(...)``) a module with what it cannot run without.

    A missing prerequisite skips the test by name; with PMEM_NBD_REQUIRE_ALL=1 it fails it.
    """
    unknown = sorted(set(names) - set(PREREQUISITES))
    if unknown:
        raise ValueError(f"needs: {', '.join(unknown)}: expected names from PREREQUISITES in conftest.py")
    return pytest.mark.needs(*names)


def one_worker(place: str, level: str) -> pytest.MarkDecorator:
    """Mark a case that compiles this pair of policies: one worker has all of them, or both would compile it at once."""
    return pytest.mark.xdist_group(f"{place}-{level}")


@pytest.hookimpl(tryfirst=True)  # before any fixture is made
def pytest_runtest_setup(item: pytest.Item) -> None:
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    if item.get_closest_marker("kernel"):
        names.append("root")
    lacking = [f"{name}: {missing(name)}" for name in dict.fromkeys(names) if missing(name)]
    if lacking:
        pytest.skip("needs " + "; ".join(lacking))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command, run in this process with some arguments; returns (exit status, stdout, stderr)."""
    from pmem_core import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


# --- with PMEM_NBD_REQUIRE_ALL=1, a skip is a failure, whoever asked for it -------------------------------------------


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped too, but it did run.
    if not REQUIRE_ALL or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"PMEM_NBD_REQUIRE_ALL=1 allows no skip: {str(reason).removeprefix('Skipped: ')}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def damage_row(journal, database, having=b""):
    """Flip a bit of the first row of `database` that has these bytes in it; `journal`: one that is open."""
    with journal._write() as transaction:
        rows = journal._db[database]
        found = [(bytes(key), bytes(row)) for key, row in transaction.cursor(rows) if having in bytes(row)]
        key, row = found[0]
        transaction.put(key, bytes([row[0] ^ 1]) + row[1:], db=rows)


@pytest.fixture
def same_boot(monkeypatch):
    """The page cache was never lost, wherever the image is: what a test says of it is all that is known."""
    monkeypatch.setattr("pmem_core.host.witness", lambda path: {"boot": "this", "mount": 1, "device": 1, "inode": 1})
