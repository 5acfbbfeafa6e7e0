# SPDX-License-Identifier: MIT
"""A kernel with the real nbd driver on any machine: User-Mode Linux, in a network and process namespace of its own.

boot() starts an NBD server in the namespace, boots the guest, lets it attach the server with nbd-client, make a
filesystem, mount it and run a job, and returns what was said.  See uml_init.sh for the steps in the guest.  When the
namespace's first process ends, the kernel ends whatever is left in it: nothing survives a test.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pmem_core.listen import Greeting, hang_up

HERE = Path(__file__).resolve().parent
ADDRESS, GUEST, PORT = "10.77.0.1", "10.77.0.2/30", 10809


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run went: 0 and everything that guest and server said, or the status of the step that failed."""

    status: int  # of the first step in the guest that failed; -1 where the guest never came to its end
    output: str  # of the guest, and of the job in it
    server_status: int  # after SIGTERM, or whatever it died of before
    server_output: str


def boot(
    server: Sequence[str],
    job: str,
    after: str = "",
    *,
    fs: str = "ext4",
    bare: bool = False,
    disk: Path | None = None,
    memory: str = "512M",
    timeout_s: int = 60,
    environment: dict[str, str] | None = None,
) -> Result:
    """Run the shell script ``job`` in a guest, on a filesystem ($MNT) on the device ($DEVICE) that ``server`` serves.

    ``server`` is the command of an NBD server in its foreground, on ADDRESS and PORT.  ``after`` runs after a remount.
    A ``bare`` guest has the driver and the network, and leaves attaching to the job.  The file ``disk`` is /dev/ubda.
    """
    with tempfile.TemporaryDirectory(prefix="pmem-uml-") as name:
        folder = Path(name)
        (folder / "job").write_text("set -eu\n" + job)
        (folder / "after").write_text("set -eu\n" + after)
        settings = {
            "folder": name,
            "server": list(server),
            "arguments": [f"mem={memory}", f"FS={fs}", f"JOB={name}/job"]
            + ([f"AFTER={name}/after"] if after else [])
            + (["BARE=1"] if bare else [])
            + ([f"ubda={disk}"] if disk else []),
            "timeout_s": timeout_s,
        }
        # slave: what is unmounted outside is unmounted inside too, where the machine shares its mounts.
        inside = [
            "unshare",
            "--net",
            "--mount",
            "--propagation=slave",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        done = subprocess.run(
            [*inside, sys.executable, __file__, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=timeout_s + 90,
            check=False,
        )
        if done.returncode != 0:
            return Result(-1, done.stdout + done.stderr, -1, "")
        return Result(**json.loads((folder / "result").read_text()))


def _inside(folder: Path, server: list[str], arguments: list[str], timeout_s: int) -> Result:
    """What happens in the namespace: tap device, server, guest."""
    for command in (
        "ip link set lo up",
        "ip tuntap add dev tap0 mode tap",
        f"ip addr add {ADDRESS}/30 dev tap0",
        "ip link set tap0 up",
    ):
        subprocess.run(command.split(), check=True)
    shim = folder / "shim.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", shim, HERE / "uml_xstate_shim.c", "-ldl"], check=True)
    with (
        (folder / "server").open("wb") as said,
        subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as serving,
    ):
        try:
            _await_greeting(serving)
            status, output = _run_guest(folder, shim, arguments, timeout_s) if serving.poll() is None else (-1, "")
        finally:
            _stop(serving)
    return Result(status, output, serving.returncode, (folder / "server").read_text(errors="replace"))


def _stop(serving: "subprocess.Popen[bytes]") -> None:
    """Stop the server as `pmem-nbd stop` does: it takes a checkpoint, and does not wait for a guest that is no more."""
    serving.terminate()
    handle = os.pidfd_open(serving.pid)
    for _ in range(60):
        with contextlib.suppress(subprocess.TimeoutExpired):
            serving.wait(1)
            break
        hang_up(serving.pid, handle)
    else:
        serving.kill()


def _await_greeting(serving: "subprocess.Popen[bytes]") -> None:
    with Greeting((ADDRESS, PORT)) as greeting:
        while serving.poll() is None and not greeting.received(0.05):
            pass


def _run_guest(folder: Path, shim: Path, arguments: list[str], timeout_s: int) -> tuple[int, str]:
    """Boot the guest and return its status and its output."""
    linux = [
        shutil.which("linux.uml") or "linux.uml",
        *("rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1", f"uml_dir={folder}/", "umid=uml"),
        *("con=null", "con0=null,fd:1", "ssl=null", f"init={HERE / 'uml_init.sh'}"),
        "vec0:transport=tap,ifname=tap0,depth=128,gro=1",
        *(f"SERVER={ADDRESS}", f"PORT={PORT}", f"GUEST={GUEST}", *arguments),
    ]
    # The guest's memory is a file; on a disk, its every page fault would be slow.
    memory = folder / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", memory], check=True)
    environment = os.environ | {"LD_PRELOAD": str(shim), "TMPDIR": str(memory)}
    with (folder / "guest").open("wb") as said, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            linux, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, timeout=timeout_s, check=False
        )
    output = (folder / "guest").read_text(errors="replace").replace("\r", "")
    found = re.findall(r"^uml: status (\d+)$", output, re.MULTILINE)
    return int(found[-1]) if found else -1, output


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    folder = Path(settings.pop("folder"))
    outcome = _inside(folder, **settings)
    (folder / "result").write_text(json.dumps(dataclasses.asdict(outcome)))
