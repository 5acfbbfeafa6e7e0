# SPDX-License-Identifier: MIT
"""The kernel's own dm-log-writes, in User-Mode Linux, on a device of ours that logs: two logs of the same writes."""

import log_reader
import pytest
import uml
from conftest import needs
from log_reader import DISCARD, FLUSH, FUA, MARK

from pmem_core import cli, geometry, image, launch
from pmem_core.device import Device
from pmem_core.logwrites.reader import Log

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.serial,  # its namespace would hold the mounts of other tests
    needs("root", "unshare", "tun", "uml", "gcc", "ip", "nbdkit", "nbd-client", "dmsetup", "ext4"),
]

# One request at a time, each of which is one bio, as the target sees it; then a filesystem.
JOB = """
modules=/usr/lib/uml/modules/$(uname -r)/kernel/drivers/md
insmod $modules/dm-mod.ko
insmod $modules/dm-log-writes.ko
nbd-client $SERVER $PORT $DEVICE -block-size 512
echo none > /sys/block/nbd0/queue/scheduler
echo 2 > /sys/block/nbd0/queue/nomerges
export DM_DISABLE_UDEV=1 # it makes the node itself
dmsetup create logged --table "0 $(blockdev --getsz $DEVICE) log-writes $DEVICE /dev/ubda"
logged=/dev/mapper/logged
for i in 1 2 3; do
    dd if=/dev/urandom of=$logged bs=4096 seek=$((7 * i)) count=3 oflag=direct conv=fsync status=none
    dd if=/dev/urandom of=$logged bs=512 seek=$((3 * i)) count=2 oflag=direct,dsync status=none
done
blkdiscard --offset 28672 --length 8192 $logged
dd if=/dev/urandom of=$logged bs=65536 seek=2 count=1 oflag=direct conv=fsync status=none
dmsetup message logged 0 mark raw
mkfs.ext4 -q $logged
mount -t ext4 $logged $MNT
for i in $(seq 10); do
    head -c $((i * 7919)) /dev/urandom > $MNT/file$i
    sync $MNT/file$i $MNT
done
umount $MNT
dmsetup remove logged
nbd-client -d $DEVICE
"""


def test_kernel_and_we_log_the_same(tmp_path):
    disk, ours, kernels = tmp_path / "disk.pmem", tmp_path / "ours", tmp_path / "kernels"
    image.create(disk, geometry.plan(64 << 20))
    with kernels.open("wb") as file:
        file.truncate(256 << 20)
    command = launch.nbdkit_command(disk, bind=uml.ADDRESS, port=uml.PORT, parameters={"logwrites": str(ours)})
    result = uml.boot(command, JOB, bare=True, disk=kernels, environment=launch.nbdkit_environment())
    assert (result.status, result.server_status) == (0, 0), result.output + result.server_output

    found, theirs = log_reader.read(ours), log_reader.read(kernels)
    # Entry by entry, data and all, up to the kernel's mark; what a bio is for, no NBD server is told.
    raw = next(at for at, one in enumerate(theirs) if one.flags == MARK)
    for one in theirs:
        one.flags &= ~16
    assert raw > 20 and {one.flags for one in theirs[:raw]} >= {0, FLUSH, DISCARD}
    assert found[1 : raw + 1] == theirs[:raw]
    assert {one.flags for one in theirs} >= {FUA}

    with Log(kernels) as log:
        assert [one.mark for one in log.entries() if one.has(MARK)] == ["raw", "dm-log-writes-end"]
    images = []
    with Device(disk, read_only=True) as device:
        size = device.plan.device_bytes
        images.append(device.read(size, 0))
    for log in (ours, kernels):
        target = tmp_path / f"{log.name}.replayed"
        target.write_bytes(b"")
        with target.open("wb") as file:
            file.truncate(size)
        assert cli.main(["replay-log", str(log), "--onto", str(target)]) == 0
        images.append(target.read_bytes())
    assert images[0] == images[1] == images[2]
