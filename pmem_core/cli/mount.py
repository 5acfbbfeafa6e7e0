# SPDX-License-Identifier: MIT
"""The verbs of block devices: attach, detach, mount, unmount."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import click

from pmem_core import attach as attaching
from pmem_core import blockdev, nbdclient, runtime, server
from pmem_core.cli._common import IMAGE, PATH, emit, json_option, policy_file_option, working
from pmem_core.cli._signals import or_undone, signals_ignored
from pmem_core.cli.serve import known_as, say, start
from pmem_core.errors import HostError, MissingProgram, NotAnImage, UsageError

WAY = click.option(
    "--via",
    type=click.Choice(["nbd", "loop"]),
    help="nbd-client, or nbdfuse and a loop device (default: nbd if the kernel has it, else loop).",
)


@click.command()
@IMAGE
@click.option("-r", "--read-only", is_flag=True, help="Refuse writes.")
@WAY
@policy_file_option
@json_option
def attach(image: Path, read_only: bool, via: str | None, as_json: bool) -> None:
    """Make an image a block device of this machine, and print the device.

    Uses nbd-client where the kernel has nbd, else nbdfuse and a loop device. An image that is not being served yet is
    served in the background until `pmem-nbd detach`. Wants root.

    \b
    Examples:
      pmem-nbd attach disk.pmem
      mkfs.xfs $(pmem-nbd attach disk.pmem)
      pmem-nbd detach disk.pmem
    """
    with attaching.alone(known_as(image)):
        attached = _attach(image, _free(image), read_only, via)
        with or_undone(lambda: attaching.attempt([lambda: _detach(attached)])):
            emit(dataclasses.asdict(attached)) if as_json else click.echo(attached.device)


@click.command()
@click.argument("target", metavar="IMAGE|DEVICE", type=click.Path(readable=False))
def detach(target: str) -> None:
    """Undo attach: release the block device, and stop the server if attach had started it.

    A device in use is left alone, and the error names who uses it.

    \b
    Examples:
      pmem-nbd detach disk.pmem
      pmem-nbd detach /dev/nbd0
    """
    with _held(target) as attached, signals_ignored():
        _detach(attached)


@click.command()
@IMAGE
@click.argument("directory", type=PATH)
@click.option(
    "--fs", type=click.Choice(list(attaching.FILESYSTEMS)), help="The filesystem (default: the one it holds)."
)
@click.option("--mkfs", is_flag=True, help="Make a filesystem first: that of --fs, or ext4.")
@click.option("--force", is_flag=True, help="Let --mkfs overwrite a filesystem.")
@click.option("-o", "--options", metavar="OPTIONS", default="", help="Mount options, as mount takes them.")
@click.option("-r", "--read-only", is_flag=True, help="Serve, attach and mount it read-only.")
@WAY
@policy_file_option
def mount(
    image: Path,
    directory: Path,
    fs: str | None,
    mkfs: bool,
    force: bool,
    options: str,
    read_only: bool,
    via: str | None,
) -> None:
    """Serve an image in the background, attach it, and mount the filesystem on it on DIRECTORY.

    Where a step fails, those before it are undone; a filesystem that --mkfs made stays. Wants root.

    \b
    Examples:
      pmem-nbd mount disk.pmem /mnt --mkfs
      pmem-nbd mount disk.pmem /mnt --mkfs --fs xfs
      pmem-nbd mount disk.pmem /mnt -o noatime,discard
      pmem-nbd unmount /mnt
    """
    if force and not mkfs:
        raise UsageError("--force", "has nothing to overwrite", "--mkfs beside it")
    if mkfs and read_only:
        raise UsageError("--mkfs", "would write to a read-only image", "one of --mkfs and --read-only")
    with attaching.alone(known_as(image)):
        running = _free(image)
        blockdev.require_mountable(directory)
        attached = _attach(image, running, read_only, via)
        try:
            with working(f"making {fs or 'ext4'} on {attached.device}" if mkfs else f"mounting {attached.device}"):
                attaching.mount(attached, directory, fs=fs, mkfs=mkfs, force=force, options=options)
        except BaseException:
            with signals_ignored():
                attaching.attempt([lambda: _detach(_find(attached.image))])
            raise


@click.command()
@click.argument("target", metavar="DIRECTORY|IMAGE", type=click.Path(readable=False))
def unmount(target: str) -> None:
    """Undo mount: unmount the filesystem, release the device, stop the server.

    A filesystem in use is left alone, and the error names who uses it.

    \b
    Examples:
      pmem-nbd unmount /mnt
      pmem-nbd unmount disk.pmem
    """
    with _held(target) as attached:
        if not attached.directory:
            raise HostError(target, f"is attached as {attached.device} but not mounted by pmem-nbd", "pmem-nbd detach")
        with signals_ignored(), working(f"unmounting {attached.directory}"):
            _detach(attaching.unmount(attached))


def _free(image: Path) -> server.Server | None:
    """Return the server of an image that can be attached, None where it is not served yet; ImageBusy, HostError."""
    attaching.require_root(image)
    running = server.settled(image)
    if attached := attaching.find(running.image if running else image):
        raise attaching.busy(image, attached)
    if running and running.tls:
        raise HostError(image, "its server wants TLS", "nbd-client with certificates, by hand, or a server without TLS")
    return running


def _attach(image: Path, running: server.Server | None, read_only: bool, via: str | None) -> attaching.Attachment:
    """Attach an image, serving it first if nobody does; a server started for nothing is stopped again."""
    if via == "nbd":
        runtime.program("nbd-client", "nbd-client")
        if not nbdclient.is_there():
            raise MissingProgram("nbd", "this kernel has none", "--via loop")
    started = running is None
    if running is None:
        running = start(image, read_only=read_only)
    try:
        return attaching.attach(
            running.image,
            running.uri,
            read_only=read_only or running.read_only,
            owns_server=started,
            way=via,
            server_pid=running.pid,
        )
    except BaseException:
        # Whoever else has attached it meanwhile wants it to go on.
        if started and attaching.find(running.image) is None:
            with signals_ignored():
                server.stop(running)
        raise


def _detach(attached: attaching.Attachment) -> None:
    """Detach, and stop the server that was started for it, unless the device is still there and needs it."""
    running = _server_of(attached)
    if "://" not in attached.image and running is None:
        say(f"{attached.image}: its server is gone: what the kernel had not written yet is lost")
    try:
        attaching.detach(attached)
    finally:
        if attached.owns_server and running is not None and attaching.find(attached.image) is None:
            server.stop(running)


def _server_of(attached: attaching.Attachment) -> server.Server | None:
    """The server that was attached, if it is still there: not one that was started since."""
    running = server.find(attached.image)
    return running if running is not None and attached.is_of(running) else None


@contextlib.contextmanager
def _held(target: str) -> Iterator[attaching.Attachment]:
    """Find what is attached and hold it against others; it is looked up again once it is held."""
    image = _find(target).image
    with attaching.alone(image):
        attached = _find(target)
        if attached.image != image:
            raise NotAnImage(target, "was attached to another image meanwhile", "another try")
        yield attached


def _find(target: str) -> attaching.Attachment:
    attached = attaching.find(target) or attaching.find(known_as(Path(target)))
    if attached is None:
        raise NotAnImage(target, "is not attached", "an image, device or directory that `pmem-nbd list` shows")
    return attached
