# SPDX-License-Identifier: MIT
"""A bit flipped anywhere in an image is found by check or is harmless, and repair makes nothing worse.

Images in small of every kind, closed, killed and cut; a bit is flipped in one part of one file (`parts`), and each flip
is judged in a process of its own, for a damaged journal may crash whoever reads it.  PMEM_NBD_FLIPS says in how many
parts of each image, so 999 is in all of them.
"""

import contextlib
import json
import os
import random
import signal
import struct
import traceback

import numpy as np
import pytest
from test_check import GAP, Made, flip, lose_page_cache

from pmem_core import checkscan, layout
from pmem_core.check import Kind, Severity, check
from pmem_core.check import run as check_run
from pmem_core.device import Device
from pmem_core.errors import BadData, PmemError, UnsupportedImage

PAGE = layout.PAGE_BYTES
MIB = 1 << 20
SEED = int(os.environ.get("PMEM_NBD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
FLIPS = int(os.environ.get("PMEM_NBD_FLIPS", "3"))  # parts flipped of each image
ENDS = ("closed", "killed", "cut")
PLANS = {
    "interleaved": {"leveling_name": "start_gap", "parameters": GAP},
    "linear": {"placement_name": "linear", "leveling_name": "none"},
    "shuffled": {
        "placement_name": "linear",
        "leveling_name": "start_gap",
        "parameters": {**GAP, "randomize": 1},
        "descriptor_writes": "coalesced",
        "frame_bytes": 256,
    },
}
SIZE = 20 * MIB  # two sections, one of them never written
USED = 40  # pages in use
SECONDS_MAX = 20  # for one look at an image


# ---- images to be damaged ----


class Whole:
    """An image not yet damaged, and what is true of it: its bytes, its findings and its totals once it was opened."""

    def __init__(self, folder, name, end):
        self.made, self.end = Made(folder / f"{name}-{end}.pmem", size=SIZE, **PLANS[name]), end
        random_ = random.Random(f"{SEED} {name} {end}")
        for _ in range(2):
            with Device(self.made.path) as device:
                self.use(device, random_)
                device.sample()
        if end != "closed":
            device = Device(self.made.path)
            self.use(device, random_)
            # What a cut leaves is what was flushed; what a kill leaves is everything.
            if end == "cut":
                device.flush()
                device.checkpoint()
            device.abandon()
        if end == "cut":
            lose_page_cache(self.made.path)
        self.findings = words(check(self.made.path))
        # What is called here first need not be loaded by each process that judges.
        opened = self.made.copy("opened.pmem")
        looked(opened, False)
        read = reading(opened)
        assert read["refused"] == read["wrong"] == [] and not read["works"], read
        self.tally = read["tally"]
        page = 1  # written in any case, and mended when it is damaged
        with Device(self.made.path, read_only=True) as device:
            at = int(checkscan.page_offset(device.handle, page)), int(checkscan.descriptor_offset(device.handle, page))
        for place in at:
            damaged = self.made.copy("opened.pmem")
            flip(damaged.path / "media", place + 9)
            reading(damaged.copy("read.pmem"))
            looked(damaged, True)

    def use(self, device, random_):
        """Write, trim and zero a few pages, so often that frames move; some stay unwritten."""
        for _ in range(40):
            page, count = random_.randrange(USED), random_.randrange(1, 3 * PAGE)
            at, what = page * PAGE + random_.randrange(PAGE), random_.random()
            if what < 0.75:
                data = random_.randbytes(count)
                device.write(data, at)
                self.made.bytes[at : at + count] = data
            elif what < 0.9:
                device.trim(PAGE, page * PAGE)
                self.made.bytes[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
            else:
                device.zero(count, at)
                self.made.bytes[at : at + count] = bytes(count)
        device.flush()
        self.write_last(device, random_)

    def write_last(self, device, random_):
        """Leave something unflushed, and so descriptors pending."""
        for page in (1, 5, 9):
            data = random_.randbytes(PAGE)
            device.write(data, page * PAGE)
            self.made.bytes[page * PAGE : (page + 1) * PAGE] = data


def words(report):
    return {str(finding) for finding in report.findings}


def totals(device):
    return {name: device.mapping.core["tally"][0][name].tolist() for name in layout.TALLY.names if name != "reads"}


# ---- the parts of the files ----


def parts(made):
    """Every part of every file: {name: (file, first byte, end)}."""
    return {**_media(made), **_wear(made), **_state(made), **_journal(made)}


def _fields(prefix, file, at, kind):
    for name in kind.names:
        field, offset = kind.fields[name][:2]
        if field.names:
            yield from _fields(f"{prefix} {name}", file, at + offset, field)
        else:
            yield f"{prefix} {name}", (file, at + offset, at + offset + field.itemsize)


def _media(made):
    found = {}
    for copy, at in zip("AB", layout.INFO_OFFSETS, strict=True):
        found |= _fields(f"info {copy}", "media", at, layout.INFO)
        found[f"info {copy} padding"] = "media", at + 96, at + 1024
        found[f"info {copy} end"] = "media", at + 2192, at + 4088
    with Device(made.path, read_only=True) as device:
        plan, handle, size = made.plan, device.handle, made.plan.info.descriptor_bytes
        frame = plan.info.frame_bytes
        for page in (*range(0, USED, 3), USED + 3, USED + 70, 4500):
            data, described = checkscan.page_offset(handle, page), checkscan.descriptor_offset(handle, page)
            found[f"data of page {page}"] = "media", int(data), int(data) + min(PAGE, frame)
            found[f"descriptor of page {page}"] = "media", int(described), int(described) + size
        for number in plan.leveling.spare_frames(plan.leveling_state, device.mapping.table[: len(plan.table)])[:3]:
            at = layout.FRAMES_AT + frame * int(number)
            found[f"spare frame {number}"] = "media", at, at + frame
        del handle
    used = layout.FRAMES_AT + plan.medium_frames * frame
    if used < plan.info.size:
        found["behind the frames"] = "media", used, plan.info.size
    return found


def _wear(made):
    counters = np.fromfile(made.path / "wear", "<u4")
    lines = {"info": 3, "hottest": int(counters.argmax()), "never": int(np.flatnonzero(counters == 0)[-1])}
    lines |= {f"{number} written": int(np.flatnonzero(counters)[40 + 30 * number]) for number in range(4)}
    return {f"counter of line {name}": ("wear", 4 * line, 4 * line + 4) for name, line in lines.items()}


def _state(made):
    plan, found, zones = made.plan, {}, made.plan.zones()
    found |= _fields("state", "state", 0, layout.HEAD)
    found["state behind head"] = "state", layout.HEAD.itemsize, layout.ZONE_BYTES
    kind = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    core = zones["core"][0]
    found |= _fields("core", "state", core, kind)
    found["state behind core"] = "state", core + kind.itemsize, core + layout.ZONE_BYTES
    for name in ("table", "ticks", "sections"):
        at, size = zones[name]
        found[name] = "state", at, at + max(1, min(size, 16))
    if plan.pending_bytes:
        at, slot = zones["pending"][0], plan.pending_bytes // layout.PENDING_SLOTS
        for page in (1, 5, 77):
            found[f"pending head {page}"] = "state", at + page * slot, at + page * slot + 8
            found[f"pending descriptor {page}"] = "state", at + page * slot + 16, at + (page + 1) * slot
    return found


META = {"number": (0, 8), "flags": (8, 16), "magic": (16, 24), "address": (24, 32), "map bytes": (32, 40)}
META |= {"free list": (40, 88), "main": (88, 136), "last page": (136, 144), "transaction": (144, 152)}


def _journal(made):
    """LMDB's two meta pages field by field, and of every other page its header, its pointers and its nodes."""
    file, found = "journal/data.mdb", {}
    data = (made.path / file).read_bytes()
    for copy in (0, 1):
        found |= {f"lmdb meta {copy} {name}": (file, PAGE * copy + a, PAGE * copy + b) for name, (a, b) in META.items()}
    last = max(struct.unpack_from("<Q", data, PAGE * copy + 136)[0] for copy in (0, 1))
    for number in range(2, last + 1):
        at = number * PAGE
        lower, upper = struct.unpack_from("<HH", data, at + 12)
        found[f"lmdb page {number} header"] = file, at, at + 16
        if 16 < lower <= upper < PAGE:
            found[f"lmdb page {number} pointers"] = file, at + 16, at + lower
            found[f"lmdb page {number} nodes"] = file, at + upper, at + PAGE
        else:
            found[f"lmdb page {number} rest"] = file, at + 16, at + PAGE
    return found


# ---- judging ----


def apart(function, *arguments):
    """What `function` returns, called in a process of its own; an error or a crash is in words."""
    end, other = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            # Not the handler of pytest's timeouts: this process must not go on as the one it comes from.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS_MAX)
            try:
                answer = function(*arguments)
            except BaseException:
                answer = "failed: " + traceback.format_exc()
            os.write(other, json.dumps(answer).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(other)
    with os.fdopen(end, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(told) if told else f"crashed: signal {os.WTERMSIG(status)}"


def reading(made):
    """Open for writing as a server does and read every page: {"closed": why} or {"refused": [...], "wrong": [...]}."""
    refused, wrong = [], []
    try:
        device = Device(made.path)
    except PmemError as error:
        return {"closed": str(error)}
    with contextlib.suppress(BadData):
        if device.read(len(made.bytes), 0) == made.bytes:
            return {"refused": [], "wrong": [], "tally": totals(device), "works": working(device, made)}
    for page in range(made.plan.info.page_count):
        try:
            if device.read(PAGE, page * PAGE) != made.bytes[page * PAGE : (page + 1) * PAGE]:
                wrong.append(page)
        except BadData:
            refused.append(page)
    flipped = [page for page in wrong if is_one_bit(device.read(PAGE, page * PAGE))]
    tally = totals(device)
    device.close()
    return {"refused": refused, "wrong": wrong, "flipped": flipped, "tally": tally}


def is_one_bit(data):
    """True where all is zero but one bit."""
    return int.from_bytes(data, "little").bit_count() == 1


def working(device, made):
    """Go on with the device, close it, look again: what is wrong then, or "" """
    random_ = random.Random(SEED)
    for number in range(60):
        page, data = random_.randrange(USED + 80), random_.randbytes(PAGE)
        device.write(data, page * PAGE)
        made.bytes[page * PAGE : (page + 1) * PAGE] = data
        if number % 10 == 0:
            device.flush()
            device.checkpoint(settle_sections=number % 20 == 0)
            device.sample()
    device.close()
    report = check(made.path)
    bad = [str(finding) for finding in report.findings if finding.kind.severity is not Severity.NOTE]
    with Device(made.path) as again:
        if again.read(len(made.bytes), 0) != made.bytes:
            bad.append("something else is read later")
    return "; ".join(bad + report.unchecked)


def looked(made, repair):
    """What check says: its findings beyond notes, all of them, and the pages that it names."""
    try:
        report = check(made.path, repair=repair)
    except UnsupportedImage as error:
        return {"refused": str(error), "clean": False, "all": [], "pages": [], "suspects": []}
    assert not repair or all(f.repaired for f in report.findings if f.kind.mend), words(report)
    pages = [f.page for f in report.findings if f.page is not None]
    assert all(f.offset is not None for f in report.findings if f.page is not None)
    left = [str(f) for f in report.findings if f.kind.severity is not Severity.NOTE and not f.repaired]
    told = {"clean": report.clean, "all": sorted(words(report)), "pages": pages, "left": left + report.unchecked}
    # They may read otherwise after repair than before: see docs/crash-consistency.md.
    return told | {"suspects": [f.page for f in report.of(Kind.DESCRIPTOR_LOST)]}


def forgiven(whole, part):
    """Pages that may be read wrong though nothing is found: see docs/crash-consistency.md.

    After a power cut the section in use is suspect: changed data passes for a write that was not flushed.
    """
    return {int(part.split()[-1])} if whole.end == "cut" and part.startswith("data of page") else set()


def judge(whole, part, place):
    """Flip one bit and look at everything; what is not as promised, in words."""
    file, at, bit = place
    first, second = whole.made.copy("first.pmem"), whole.made.copy("second.pmem")
    for made in (first, second):
        flip(made.path / file, at, bit)
    found = apart(looked, first, False)
    if isinstance(found, str):
        return [f"check {found}"]
    read = apart(reading, first)
    if isinstance(read, str):
        return [f"reading {read}", f"check: {found}"]
    return _complaints(whole, found, read, forgiven(whole, part)) + _after_repair(second, found, read)


def _complaints(whole, found, read, may_be_wrong):
    wrong = []
    if set(read.get("wrong", [])) == may_be_wrong != set():
        return wrong
    if found["clean"]:
        if "closed" in read:
            wrong.append(f"check is clean, but {read['closed']}")
        else:
            wrong += [f"check is clean, but {name} pages {read[name]}" for name in ("refused", "wrong") if read[name]]
            changed = [n for n, value in whole.tally.items() if read["tally"][n] != value]
            if set(found["all"]) == whole.findings and changed:
                wrong.append(f"check is clean, but the totals differ: {changed}")
            if read.get("works"):
                wrong.append(f"check is clean, but later: {read['works']}")
    elif "closed" not in read:
        if read["wrong"]:
            wrong.append(f"found, but pages {read['wrong'][:9]} are read wrong: {found}")
        unnamed = set(read["refused"]) - set(found["pages"])
        if unnamed:
            wrong.append(f"pages {sorted(unnamed)[:9]} are refused and not named: {found}")
    return wrong


def _after_repair(made, found, read):
    if "refused" in found:
        return []
    mended = apart(looked, made, True)
    if isinstance(mended, str):
        return [f"repair {mended}"]
    after, again = apart(looked, made, False), apart(reading, made)
    if isinstance(after, str) or isinstance(again, str):
        return [f"after repair {after} {again}"]
    wrong = []
    if not after["clean"] and not mended["left"]:
        wrong.append(f"repaired, and then {after['all']} {after['left']}")
    if "closed" in again:
        if not mended["left"]:
            wrong.append(f"repaired, and then {again['closed']}")
        return wrong
    named = set(found["pages"]) | set(mended["pages"])
    lost = set(again["refused"] + again["wrong"])
    if lost - named:
        wrong.append(f"repaired, and then pages {sorted(lost - named)[:9]} are lost and were not named: {mended}")
    excused = set(mended["suspects"]) & set(again.get("flipped", []))
    if "closed" not in read and lost - set(read["refused"] + read["wrong"]) - excused:
        wrong.append(f"worse after repair: pages {sorted(lost)[:9]}: {mended}")
    return wrong


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Images by plan and end, made when first asked for."""
    folder, known = tmp_path_factory.mktemp("flips"), {}

    def get(name, end):
        if (name, end) not in known:
            known[name, end] = Whole(folder, name, end)
        return known[name, end]

    return get


@pytest.fixture(autouse=True)
def alike(monkeypatch, same_boot):
    """Let copies of an image pass for it; a journal as it was is read once, not by a process of its own each time."""
    real, known = check_run.read_journal, {}

    def read_journal(folder):
        data = (folder / "data.mdb").read_bytes()
        if data not in known:
            known[data] = real(folder)
        return known[data]

    monkeypatch.setattr(check_run, "read_journal", read_journal)


@pytest.mark.slow
@pytest.mark.timeout(300 + 5 * FLIPS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", PLANS)
def test_flipped_bit_is_found_or_harmless_and_repaired(wholes, name, end):
    whole = wholes(name, end)
    check(whole.made.path)
    random_, every, failed = random.Random(f"{SEED} {name} {end}"), parts(whole.made), []
    chosen = random_.sample(sorted(every), min(FLIPS, len(every)))
    for part in chosen:
        file, first, last = every[part]
        at, bit = random_.randrange(first, last), random_.randrange(8)
        wrong = judge(whole, part, (file, at, bit))
        failed += [f"{part}: {file} at {at}, bit {bit}: {why}" for why in wrong]
    assert not failed, f"seed {SEED}: " + "\n".join(failed)
