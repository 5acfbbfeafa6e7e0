# SPDX-License-Identifier: MIT
"""A conversion in place: descriptors of another size or format, every page where it then has to be.

The leveling's state knows nothing of descriptors, so it stays; pages change places within the same placed addresses,
and every store is a store like any other: leveling is asked, ticks and moves frames, wear is counted (pages as moves,
descriptors as descriptors).  The idea is that of md's reshape.  The steps, each made durable before the next:

gather     every page is read and compared with its descriptor; the descriptors, as they are to be, go into the file
           `conversion`.  Nothing of the image has changed, and up to here nothing is promised.
begin      the journal has what is to become of what; then both info blocks say CONVERTING, and nobody else opens it
move       larger descriptors push pages up, so the last goes first; smaller ones let them fall, so the first does.  A
           batch ends before it would overwrite a place it comes from: its pages are copied, made durable, and then the
           journal is told how far it is.  After a cut the batch is done again, from what is still there.
describe   descriptor pages are stored from the file
sweep      what is left where now nothing is goes back to the host
verify     every page is read as it will be read; a descriptor that is damaged is stored once more, pages whose data is
           are told of when all is done
finish     the journal gets the core record, sections and table of the new shape, then the state file is made, then the
           info blocks; from the first of them on the image is an image again.  Then the file goes.

Done again, each step does the same, but for wear: that is counted as often as lines are written.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from .. import choices, geometry, host, image, infoblock, layout, snapshot
from ..device import Device
from ..errors import DamagedImage, ImageBusy, UnsupportedImage, UsageError
from ..geometry import Geometry
from ..infoblock import Info
from ..journal import Journal
from . import filesystems, saved
from .steps import (
    PHASES,
    SHAPED,
    Conversion,
    Watch,
    finish,
    forget,
    gather,
    line_writes,
    require_settled,
    shape,
    summary,
    told,
)


def planned(old: Geometry, wanted: dict[str, int]) -> Geometry:
    """The geometry of the image with descriptors as `wanted`.  UsageError where that cannot be."""
    size, of_format = wanted["descriptor_bytes"], wanted["descriptor_format"]
    info = dataclasses.replace(
        old.info,
        descriptor_bytes=size,
        descriptor_format=of_format,
        linux=geometry.is_linux(old.info.placement, old.info.leveling, size),
        generation=old.info.generation + 2,
        converting=False,
    )
    return geometry.with_sections(geometry.derive(info, fresh=True))


def convert(
    path: Path,
    descriptor_bytes: int | None = None,
    descriptor_format: int | None = None,
    watch: Watch = lambda share: None,
) -> dict[str, Any]:
    """Convert the image at `path` in place, or go on with a conversion that was begun; a summary, for JSON.

    descriptor_bytes: a power of two, 16 to 4096; None: that of the conversion under way.  descriptor_format: 1 or 2;
    None: the newest that fits.  watch is told the share done, 0 to 1.

    Errors: UsageError (what is asked for cannot be, or is not what was begun), DoesNotFit, BadData, ImageBusy,
    UnsupportedImage (no descriptors, not closed), NotAnImage, DamagedImage, HostFull, HostError.
    """
    started, info = time.monotonic(), image.read_info(path, read_only=False, converting=True)
    done = _go_on(path, descriptor_bytes, descriptor_format, watch) if info.converting else None
    if done is None:
        done = _begin(path, descriptor_bytes, descriptor_format, watch)
    watch(1.0)
    return {"path": str(path), **done, "seconds": round(time.monotonic() - started, 3)}


def wanted_shape(info: Info, size: int, of_format: int | None) -> dict[str, int]:
    """The shape that is asked for, of an image of `info`.  UsageError where there is none such."""
    choices.check_descriptor_bytes(size)
    return {
        "descriptor_bytes": size,
        "descriptor_format": choices.suited_format(info.placement, size, of_format, info.initialise),
    }


def _begin(path: Path, size: int | None, of_format: int | None, watch: Watch) -> dict[str, Any]:
    found = snapshot.look(path)
    info = found.plan.info
    if not found.plan.has_descriptors:
        raise UnsupportedImage(
            path, f"placement {info.placement} has no descriptors on the medium", "interleaved or linear"
        )
    if info.initialise != "zeros":
        what = f"initialise={info.initialise}: groups of descriptors are not moved"
        raise UnsupportedImage(path, what, "--output NEW, where they come into being anew")
    if size is None:
        if (path / saved.NAME).exists():
            raise UsageError(path, "a conversion was cut off before it changed anything", "--descriptor-bytes again")
        raise UsageError(path, "no conversion is under way", "--descriptor-bytes, to begin one")
    wanted = wanted_shape(info, size, of_format)
    # Held from the first look to the end, so that nobody changes what is gathered.
    lock = host.Lock(path, read_only=False)
    try:
        # Read-only, so that no total counts it, and a kill leaves the image closed.
        with _closed(path, lock) as device:
            old = device.plan
            changed = wanted != shape(old.info)  # another conversion may have ended meanwhile
            if changed:
                new = planned(old, wanted)
                filesystems.require_room(device, new.device_bytes)
                require_settled(device)
                _save(device, new, watch)
        if not changed:
            _tidy(path, old.info)
            return {"from": shape(old.info), "to": wanted, "changed": False, "device_bytes": old.device_bytes}
        return _change(path, lock, new, watch)
    finally:
        lock.release()


def _closed(path: Path, lock: host.Lock) -> Device:
    """The image, opened to be read.  UnsupportedImage where its last session did not close it.

    But that may have been a conversion's that was cut off before any info block said so: it had changed no page.
    """
    device = Device(path, read_only=True, lock=lock)
    if not device.recovery:
        return device
    ours = device.journal.session.get("converting", False)
    device.close()
    if not ours:
        raise UnsupportedImage(path, "it was not closed properly", f"'pmem-nbd check --repair {path}' first")
    Device(path, converting=True, lock=lock).close()
    return Device(path, read_only=True, lock=lock)


def _tidy(path: Path, info: Info) -> None:
    """What is left of a conversion of an image that is as it should be, but maybe for the other info block."""
    journal = Journal(path / "journal")
    try:
        if journal.conversion:
            infoblock.write(path / "media", info)
            forget(path, journal)
        elif (path / saved.NAME).exists():
            saved.remove(path)
    finally:
        journal.close()


def _save(device: Device, new: Geometry, watch: Watch) -> None:
    writer = saved.Writer(device.path, new.info.uuid, new.info.descriptor_bytes)
    try:
        gather(device, new, writer, watch)
    except BaseException:
        writer.discard()
        raise


def _change(path: Path, lock: host.Lock, new: Geometry, watch: Watch) -> dict[str, Any]:
    """All that comes after gathering."""
    device = Device(path, converting=True, lock=lock)
    try:
        info = device.plan.info
        record = {"from": shape(info), "to": shape(new.info), "phase": PHASES[0], "at": None}
        device.journal.put_conversion(record)
        before = line_writes(device)
        marked = dataclasses.replace(info, generation=info.generation + 1, converting=True)
        for at in layout.INFO_OFFSETS:
            device.store_info(marked, at)
            device.flush(counted=False)
        return Conversion(device, new, record, watch, before).run()
    except BaseException:
        _let_go(device)
        raise
    finally:
        if device.mapping.maps:
            device.close()


def _let_go(device: Device) -> None:
    """Close after a failure, so that going on need not recover; where that fails too, what is left is a kill's."""
    try:
        if device.mapping.maps:
            device.close()
    except Exception:
        if device.mapping.maps:
            device.abandon()


def _go_on(path: Path, size: int | None, of_format: int | None, watch: Watch) -> dict[str, Any] | None:
    """None: another process has ended it."""
    lock = host.Lock(path, read_only=False)
    try:
        old = image.load_geometry(path, read_only=False, converting=True)
        if not old.info.converting:
            return None
        journal = Journal(path / "journal")
        try:
            record = journal.conversion
            if record is None or journal.uuid != old.info.uuid:
                raise DamagedImage(path / "journal", "it knows of no conversion", "the journal of this image")
            to = record["to"]
            other = wanted_shape(old.info, size, of_format) if size is not None else to
            if other != to or (size is None and of_format not in (None, to["descriptor_format"])):
                raise UsageError(path, f"a conversion to {told(to)} is under way", "the same options again, or none")
            new = planned(dataclasses.replace(old, info=_before(old.info)), to)
            if record["phase"] == SHAPED:
                finish(path, journal, new)
                return summary(record, old, new)
        finally:
            journal.close()
    finally:
        lock.release()
    device = Device(path, converting=True)
    try:
        if device.plan.info != old.info or device.journal.conversion != record:
            raise ImageBusy(path, "another process has gone on with its conversion", "the same command again")
        return {**Conversion(device, new, record, watch, line_writes(device)).run(), "resumed": True}
    except BaseException:
        _let_go(device)
        raise


def _before(info: Info) -> Info:
    """The info block as it was before the conversion began."""
    return dataclasses.replace(info, generation=info.generation - 1, converting=False)
