# SPDX-License-Identifier: MIT
# long: attach and detach are one table of steps, forth and back, and a failure in one is undone by the other
"""Make a served image a block device of this machine, put a filesystem on it, and undo all of it.

Two ways lead to a device: ``nbd``, the kernel's own driver set up by nbd-client, and, where the kernel has none,
``loop``, a loop device on the file that nbdfuse makes of the server.  Each attachment is a record in the runtime
directory, written before the steps that it serves to undo: so any process of the same user can undo them, also those
of one that was killed half way.

    attach   [nbdfuse →] device        detach   device [→ nbdfuse]
    mount    mkfs → mount              unmount  umount
"""

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pmem_core import blockdev, host, launch, nbdclient, runtime, server
from pmem_core.errors import HostError, ImageBusy, PmemError, UsageError

FILESYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], "e2fsprogs"),
    "xfs": (["mkfs.xfs", "-q", "-f"], "xfsprogs"),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], "btrfs-progs"),
}
LOG_BYTES_MAX = 1 << 20
SECTOR_BYTES = 512  # a filesystem made with these mounts whichever way the device came about


@dataclasses.dataclass(frozen=True)
class Attachment:
    """What has been made of one server, as its record tells it; "" and 0 where a part is not there."""

    image: str  # real path of the image, as it is by now where attachments() finds it; the URI where there is none
    uri: str
    way: str  # nbd or loop
    read_only: bool
    owns_server: bool  # whoever detaches it stops the server too
    fuse: str = ""  # directory that nbdfuse mounts
    fuse_pid: int = 0
    fuse_birth: str = ""
    device: str = ""
    boot: str = ""  # when it was made: nothing of it outlives a reboot
    directory: str = ""  # where the filesystem is mounted
    made_directory: bool = False
    server_pid: int = 0  # of the server that is attached; 0: not known
    server_birth: str = ""
    name: str = ""  # of its files in the runtime directory

    def is_of(self, running: server.Server) -> bool:
        """Whether it is this server that is attached; one that was started since is not, for no client of ours returns.

        Of an attachment whose server nobody noted any server of its image may be the one.
        """
        if self.server_pid:
            return (self.server_pid, self.server_birth) == (running.pid, running.birth)
        return runtime.is_at(running.image, self.image)


def attachments() -> list[Attachment]:
    """Return what is attached by this user; what a reboot has undone is cleared away."""
    found = []
    for record in runtime.read_records(".attach.json"):
        with contextlib.suppress(TypeError):  # of another version of this program
            attachment = Attachment(**record)
            attachment = dataclasses.replace(attachment, name=attachment.name or runtime.key(attachment.image))
            if attachment.boot == host.boot():
                found.append(_as_named_now(attachment))
            else:
                _forget(attachment)
    return found


def _as_named_now(attachment: Attachment) -> Attachment:
    if not runtime.alive(attachment.server_pid, attachment.server_birth):
        return attachment
    return dataclasses.replace(attachment, image=runtime.image_now(attachment.server_pid, attachment.image))


def find(target: str | Path) -> Attachment | None:
    """Return the attachment of an image (or URI), of a device, or of the directory it is mounted on; None if none."""
    real = str(target) if "://" in str(target) else os.path.realpath(target)
    found = (one for one in attachments() if runtime.is_at(one.image, real) or real in (one.device, one.directory))
    return next(found, None)


def of_server(running: server.Server, among: Sequence[Attachment]) -> Attachment | None:
    """Return the attachment of a server; None if it has none."""
    return next((one for one in among if one.is_of(running)), None)


def alone(image: str | Path) -> contextlib.AbstractContextManager[None]:
    """Hold an image (or URI) against whoever else would find its server, start it, attach, mount or undo that."""
    return runtime.lock(f"{runtime.key(str(image))}.use")


def busy(image: str | Path, attachment: Attachment) -> ImageBusy:
    """Return the error for one who wants an image that is attached already."""
    if attachment.directory:
        return ImageBusy(image, f"is mounted already, on {attachment.directory}", "pmem-nbd unmount first")
    return ImageBusy(image, f"is attached already, as {attachment.device or attachment.fuse}", "pmem-nbd detach first")


def _forget(attachment: Attachment) -> None:
    name = attachment.name
    runtime.remove(f"{name}.attach.json", f"{name}.fuselog")
    with contextlib.suppress(OSError):
        (runtime.directory() / f"{name}.fuse").rmdir()


def _record(attachment: Attachment) -> Attachment:
    runtime.write_record(f"{attachment.name}.attach.json", dataclasses.asdict(attachment))
    return attachment


def _note(attachment: Attachment, device: str) -> Attachment:
    return _record(dataclasses.replace(attachment, device=device))


# --- attach, detach ---------------------------------------------------------------------------------------------------


def require_root(image: str | Path) -> None:
    """Raise HostError unless this process may make block devices."""
    if os.geteuid() != 0:
        raise HostError(image, "only root can attach a block device", "sudo")


def attach(
    image: str | Path,
    uri: str,
    *,
    read_only: bool = False,
    owns_server: bool = False,
    way: str | None = None,
    server_pid: int = 0,
) -> Attachment:
    """Attach the server at ``uri``, which serves ``image``, to a block device; return the attachment.

    ``way`` is nbd or loop; by default whichever this kernel has.  Where a step fails, the earlier ones are undone.
    Raises ImageBusy where it is attached already, HostError without root, MissingProgram, and what the programs say.
    """
    require_root(image)
    name = str(image) if "://" in str(image) else os.path.realpath(image)
    with runtime.lock(f"{runtime.key(name)}.attach"):
        if other := find(name):
            raise busy(image, other)
        way = way or ("nbd" if nbdclient.is_there() else "loop")
        attachment = Attachment(
            name,
            uri,
            way,
            read_only,
            owns_server,
            boot=host.boot(),
            server_pid=server_pid,
            server_birth=runtime.birth(server_pid),
            name=runtime.free_name(name, ".attach.json"),
        )
        try:
            if way == "nbd":
                note = partial(_note, attachment)
                device = nbdclient.connect(uri, read_only=read_only, sector_bytes=SECTOR_BYTES, note=note)
            else:
                attachment = _mount_fuse(attachment)
                device = blockdev.make_loop(f"{attachment.fuse}/nbd", read_only=read_only, sector_bytes=SECTOR_BYTES)
            return _note(attachment, device)
        except BaseException:
            attempt([lambda: _take_down(find(name) or attachment)])
            raise


def _mount_fuse(attachment: Attachment) -> Attachment:
    """Let nbdfuse make a file of the server; returns the attachment with it, recorded."""
    folder = runtime.directory() / f"{attachment.name}.fuse"
    options = ["-C", str(blockdev.CONNECTIONS), *(["-r"] if attachment.read_only else [])]
    folder.mkdir(mode=0o700, exist_ok=True)
    attachment = _record(dataclasses.replace(attachment, fuse=str(folder)))
    log = folder.with_suffix(".fuselog")
    with launch.uninterrupted() as go_on:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [runtime.program("nbdfuse", "libnbd-bin"), *options, f"{folder}/nbd", attachment.uri],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                restore_signals=False,  # SIGXFSZ stays ignored
            )
        try:
            # It writes a line for each request that fails: once the file is full these are lost, and it goes on.
            with contextlib.suppress(ProcessLookupError):  # why it has ended is said below
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LOG_BYTES_MAX, LOG_BYTES_MAX))
            born = runtime.birth(process.pid)
            attachment = _record(dataclasses.replace(attachment, fuse_pid=process.pid, fuse_birth=born))
            go_on()
            blockdev.wait(lambda: blockdev.is_mountpoint(folder) or process.poll() is not None)
            if not blockdev.is_mountpoint(folder):
                said = blockdev.last_line(log.read_text(errors="replace"))
                raise HostError(attachment.uri, f"nbdfuse could not make a file of it: {said or 'it did not begin'}")
        except BaseException:
            process.kill()
            process.wait()
            attempt([lambda: _take_down(attachment)])
            raise
    process.returncode = 0  # it lives on without this object, which would complain otherwise
    return attachment


def detach(attachment: Attachment) -> None:
    """Undo attach: the device, then what it stood on.  The server is left to its owner.

    Raises ImageBusy, and touches nothing, while the device is in use.  Otherwise each step is tried, whatever became of
    the one before it, and HostError names those that failed.
    """
    with runtime.lock(f"{runtime.key(attachment.image)}.attach"):
        if attachment.device and (attachment.way == "loop" or nbdclient.is_connected(attachment.device)):
            blockdev.require_unused(attachment.device)
        _take_down(attachment)


def _take_down(attachment: Attachment) -> None:
    """Take each part down, in order; keep the record for another try only where a part is left."""
    nbd = attachment.device if attachment.way == "nbd" else ""
    steps: list[Callable[[], object]] = []
    if attachment.way == "loop" and attachment.fuse:
        # The kernel knows best: whoever made the device may have been killed before it could write that down.
        for device in blockdev.loops_of(f"{attachment.fuse}/nbd"):
            steps += [partial(blockdev.sync, device), partial(blockdev.remove_loop, device)]
        steps.append(partial(_unmount_fuse, attachment))
    elif nbdclient.is_connected(nbd):
        steps += [partial(blockdev.sync, nbd), partial(nbdclient.disconnect, nbd)]
    failures = attempt(steps)
    if not nbdclient.is_connected(nbd) and not (attachment.fuse and blockdev.is_mountpoint(attachment.fuse)):
        _forget(attachment)
    if failures:
        raise HostError(attachment.image, "was not detached cleanly", "; ".join(failures))


def _unmount_fuse(attachment: Attachment) -> None:
    """Unmount nbdfuse's file, which ends nbdfuse."""

    def ended() -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(attachment.fuse_pid or -2, os.WNOHANG)  # if it is ours
        return not runtime.alive(attachment.fuse_pid, attachment.fuse_birth)

    if blockdev.is_mountpoint(attachment.fuse):
        blockdev.run(["umount", attachment.fuse], "mount")
    if not blockdev.wait(ended):
        os.kill(attachment.fuse_pid, signal.SIGTERM)
        blockdev.wait(ended)


def attempt(steps: Sequence[Callable[[], object]]) -> list[str]:
    """Run each step, whatever became of those before it; return what went wrong, one line each."""
    failures = []
    for step in steps:
        try:
            step()
        except (PmemError, OSError) as error:
            failures.append(str(error))
    return failures


# --- mount, unmount ---------------------------------------------------------------------------------------------------


def make_filesystem(device: str, fs: str, *, force: bool = False) -> None:
    """Make a filesystem on ``device``.  Raises HostError where it holds one already, unless told to ``force``."""
    if fs not in FILESYSTEMS:
        raise UsageError(fs, "is no filesystem that this knows how to make", ", ".join(FILESYSTEMS))
    if not force and (found := blockdev.signature(device)):
        raise HostError(device, f"holds {found} already", "mount it as it is, or make a new one by force")
    command, package = FILESYSTEMS[fs]
    blockdev.run([*command, device], package)


def mount(
    attachment: Attachment,
    directory: str | Path,
    *,
    fs: str | None = None,
    mkfs: bool = False,
    force: bool = False,
    options: str = "",
) -> Attachment:
    """Mount the attached device on ``directory`` (made if need be), first making a filesystem if ``mkfs``.

    Nothing is left mounted where a step fails.  Raises HostError with what mkfs or mount said.
    """
    if mkfs and attachment.read_only:
        raise HostError(attachment.image, "is read-only, and no filesystem can be made", "a server that takes writes")
    with runtime.lock(f"{runtime.key(str(directory))}.mount"):  # other images may be on their way to the same directory
        where = blockdev.require_mountable(directory)
        made = not where.exists()
        flags = ",".join(filter(None, [options, "ro" if attachment.read_only else ""]))
        which = [*(["-t", fs] if fs else []), *(["-o", flags] if flags else [])]
        attachment = _record(dataclasses.replace(attachment, directory=str(where), made_directory=made))
        try:
            where.mkdir(exist_ok=True)  # before mkfs, which cannot be undone
            if mkfs:
                make_filesystem(attachment.device, fs or "ext4", force=force)
            elif not blockdev.signature(attachment.device):
                raise HostError(attachment.image, "holds no filesystem", "--mkfs to make one")
            blockdev.run(["mount", *which, attachment.device, str(where)], "mount")
        except BaseException:
            if not blockdev.mounts(attachment.device):
                if made:
                    attempt([where.rmdir])  # mkdir itself may have failed
                _record(dataclasses.replace(attachment, directory="", made_directory=False))
            raise
        return attachment


def unmount(attachment: Attachment) -> Attachment:
    """Undo mount; no matter if somebody has unmounted it already.

    Raises ImageBusy, which names who uses the filesystem, and touches nothing.
    """
    directory = attachment.directory
    if not directory:
        return attachment
    if directory in blockdev.mounts(attachment.device):
        try:
            blockdev.run(["umount", directory], "mount")
        except HostError as error:
            users = blockdev.users_of_mount(directory)
            if users or "busy" in str(error):
                what = f"is in use by {', '.join(users) or 'a process that cannot be seen'}"
                raise ImageBusy(directory, what, "end that first") from error
            raise
    if attachment.made_directory:
        attempt([Path(directory).rmdir])  # its owner may have put something there
    return _record(dataclasses.replace(attachment, directory="", made_directory=False))
