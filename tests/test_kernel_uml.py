# SPDX-License-Identifier: MIT
"""The kernel's own nbd driver and the real nbd-client, in User-Mode Linux: a filesystem on an image, worked hard."""

import sys

import pytest
import uml
from conftest import needs

from pmem_core import geometry, image, launch, snapshot
from pmem_core.check import check

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.serial,  # its namespace would hold the mounts of other tests
    needs("root", "unshare", "tun", "uml", "gcc", "ip", "nbdkit", "nbd-client", "ext4", "fio"),
]

WORK = """
fio --name=verified --filename=$MNT/fio --size=32M --rw=randwrite --bsrange=512-64k --blockalign=512 --direct=1 \
    --ioengine=psync --fsync=200 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output=/run/fio
grep 'err= 0' /run/fio
mkdir $MNT/files
for i in $(seq 20); do head -c $((i * 7919)) /dev/urandom > $MNT/files/$i; done
rm $MNT/files/1? # for fstrim to find
(cd $MNT && sha256sum fio files/*) > /run/sums
"""
VERIFY = "cd $MNT && sha256sum --quiet -c /run/sums"


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(256 << 20))
    return path


@pytest.fixture
def server_command(disk):
    """The command of a server of a new image, for the guest to attach."""
    return launch.nbdkit_command(disk, bind=uml.ADDRESS, port=uml.PORT)


# What a server says of a client that went away in the middle of a request or of the greeting.
HUNG_UP = ("connection reset by peer", "broken pipe")


def booted(server_command, *jobs, hang_ups=False, **options) -> uml.Result:
    """Boot, and let the whole story be read where the test fails.

    The server has no error to tell; of clients that the job kills (hang_ups) it may say that they went away.
    """
    result = uml.boot(server_command, *jobs, environment=launch.nbdkit_environment(), **options)
    assert result.status == 0, result.output + result.server_output
    assert result.server_status == 0, result.server_output
    errors = [line for line in result.server_output.lower().splitlines() if "error" in line]
    assert not [line for line in errors if not (hang_ups and any(word in line for word in HUNG_UP))]
    return result


def test_ext4_survives_fio_trim_and_remount(server_command, disk):
    result = booted(server_command, WORK, VERIFY)
    for step in ("attach", "mkfs", "mount", "job", "fstrim", "unmount", "remount", "after", "detach"):
        assert f"uml: {step} done" in result.output
    assert "err= 0" in result.output
    assert "trimmed" in result.output
    assert "I/O error" not in result.output
    tally = snapshot.look(disk).tally
    assert tally["trimmed_bytes"] > 0 and tally["flushes"] > 0
    assert check(disk).clean


def test_harness_tells_a_job_that_fails(server_command):
    result = uml.boot(server_command, "exit 7", environment=launch.nbdkit_environment())
    assert result.status == 7
    assert "uml: job failed with status 7" in result.output
    assert result.server_status == 0, result.server_output


def attaching(server_command, script, **options) -> uml.Result:
    """Boot without an attached device, and run a script of Python's that is told the server's URI."""
    settings = f"export PMEM_NBD_RUNTIME_DIR=/run/pn PYTHONPATH={launch.PROJECT}"
    job = f"{settings}\n{sys.executable} - nbd://$SERVER:$PORT <<'END'\n{script}\nEND\n"
    return booted(server_command, job, bare=True, **options)


def test_attach_uses_the_kernels_driver_where_there_is_one(server_command):
    """pmem_core.attach by itself: finds a free device, connects it, mounts, and undoes it all."""
    script = """
from pathlib import Path
from pmem_core import attach, blockdev
import sys
uri = sys.argv[1]
one = attach.attach(uri, uri)
assert (one.way, one.device) == ("nbd", "/dev/nbd0"), one
two = attach.attach(uri + "/", uri + "/", read_only=True)
assert two.device == "/dev/nbd1", two
attach.detach(two)
mounted = attach.mount(one, "/mnt/made", mkfs=True)
Path("/mnt/made/file").write_text("kept")
try:
    attach.detach(mounted)
except attach.ImageBusy as error:
    print(error)
attach.detach(attach.unmount(mounted))
one = attach.attach(uri, uri)
mounted = attach.mount(one, "/mnt/made", fs="ext4")
print(Path("/mnt/made/file").read_text())
attach.detach(attach.unmount(mounted))
assert not Path("/sys/block/nbd0/pid").exists() and not attach.attachments()
"""
    result = attaching(server_command, script)
    assert "/dev/nbd0: is mounted on /mnt/made: unmount it first" in result.output
    assert "kept" in result.output


@pytest.mark.slow
def test_interrupted_attach_leaves_no_device_of_the_kernels(server_command):
    """Interrupted at any moment, also while nbd-client connects: either all of it is there, or nothing."""
    script = """
import signal, subprocess, sys, time
from pathlib import Path
from pmem_core import attach
uri, nothing = sys.argv[1], 0
connected = Path("/sys/block/nbd0/pid").exists
code = "import sys; from pmem_core import attach; print(flush=True); attach.attach(sys.argv[1], sys.argv[1])"
for turn in range(25):
    with subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        one.stdout.readline()
        time.sleep(turn * 0.002)
        one.send_signal(signal.SIGINT)
        _, said = one.communicate()
    made = attach.find(uri)
    assert made or b"KeyboardInterrupt" in said, said
    assert bool(made) == connected(), (turn, made, said)
    nothing += not made
    if made:
        attach.detach(made)
    assert not connected()
print(f"nothing was left {nothing} times of 25")
"""
    result = attaching(server_command, script, hang_ups=True)
    assert "nothing was left 0 times" not in result.output and "nothing was left" in result.output
