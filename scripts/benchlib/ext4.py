# SPDX-License-Identifier: MIT
"""ext4 on an attached device: by the kernel's nbd, or by nbdfuse and a loop device where it has none."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchlib.peers import Peer
from benchlib.workloads import Rounds, fio, in_turn, put, renew, run_for
from pmem_core import attach, nbdclient
from pmem_core.errors import PmemError

EXT4 = "randwrite 4k fsync 32 on ext4"
# Threads, because a process that fio has forked outlives a killed fio, and keeps the filesystem busy.
JOB = ["--thread", "--rw=randwrite", "--bs=4k", "--norandommap", "--fsync=32"]
NEEDS = ("nbdfuse", "mkfs.ext4", "losetup")


def missing() -> str:
    """What this cannot be measured without, or ""."""
    if os.geteuid() != 0:
        return "not root"
    if nbdclient.is_there():
        return ""
    gone = [program for program in NEEDS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    gone += [path for path in ("/dev/fuse", "/dev/loop-control") if not Path(path).exists()]
    return f"no {', '.join(gone)}" if gone else ""


@contextlib.contextmanager
def mounted(peer: Peer) -> Iterator[Path]:
    """An ext4 of the peer's own; nothing of it is left at the end."""
    attached = None
    try:
        attached = attach.attach(peer.uri, peer.uri)
        attached = attach.mount(attached, peer.folder / "mnt", fs="ext4", mkfs=True, force=True)
        yield peer.folder / "mnt"
    except PmemError as error:
        raise click.ClickException(str(error)) from error
    finally:
        if attached is not None:
            with contextlib.suppress(PmemError):
                attached = attach.unmount(attached)
            attach.detach(attached)


def measure(peers: Sequence[Peer], options: dict[str, Any], tell: Callable[[str], None]) -> Rounds:
    """As workloads.measure, on a file of a quarter of the device that lies in ext4 on it."""
    rounds: Rounds = {EXT4: {}}
    for number in range(options["rounds"]):
        renew(peers, tell, prefill=False)
        with contextlib.ExitStack() as stack:
            where = {}
            for peer in peers:
                tell(f"round {number + 1}: ext4 on {peer.spec}")
                folder = stack.enter_context(mounted(peer))
                file = [f"--filename={folder}/file", f"--size={peer.size // 4}", "--ioengine=psync", "--fallocate=none"]
                fio(peer.spec, file, [["--thread", "--rw=write", "--bs=1m", "--end_fsync=1"]])
                peer.settle()
                where[peer.spec] = file
            for peer in in_turn(peers, number):
                tell(f"round {number + 1}: {EXT4}: {peer.spec}")
                figures = run_for(peer, options["seconds"], number + 1, [JOB], where[peer.spec])
                put(rounds, EXT4, peer.spec, figures)
                if options["settle"]:
                    peer.settle()
    return rounds
