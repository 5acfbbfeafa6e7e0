#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Process 1 of a User-Mode Linux whose root is the host's, read-only. What the kernel was given as NAME=value is in the
# environment: SERVER and PORT of an NBD server, FS, and the scripts JOB and AFTER (optional; run after a remount).
# With BARE=1 only the network and the nbd driver are set up, and JOB does the rest.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run
device=/dev/nbd0 mnt=/mnt/disk

# However this ends, the machine is switched off and says how it went.
step=start
finish() {
    local status=$?
    ((status == 0)) || echo "uml: $step failed with status $status"
    echo "uml: status $status"
    sync
    poweroff -f
}
trap finish EXIT

# Run a step; its name and its time are part of the output.
run() {
    local seconds rest
    step=$1
    shift
    "$@"
    read -r seconds rest </proc/uptime # no process: starting one is dear here
    echo "uml: $step done at $seconds s"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /mnt
mkdir -p /dev/shm "$mnt"
mount -t tmpfs tmpfs /dev/shm
cd /run

run network ip link set lo up
ip addr add "$GUEST" dev vec0
ip link set vec0 up
run driver insmod "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/nbd.ko" nbds_max=4

export SERVER PORT MNT=$mnt DEVICE=$device
if [[ ${BARE:-} == 1 ]]; then
    run job bash "$JOB"
    exit
fi

run attach nbd-client "$SERVER" "$PORT" "$device" -block-size 512
run mkfs "mkfs.$FS" -q "$device"
run mount mount -t "$FS" "$device" "$mnt"
run job bash "$JOB"
run fstrim fstrim -v "$mnt"
run unmount umount "$mnt"
if [[ -n ${AFTER:-} ]]; then
    run remount mount -t "$FS" "$device" "$mnt"
    run after bash "$AFTER"
    run unmount umount "$mnt"
fi
run detach nbd-client -d "$device"
