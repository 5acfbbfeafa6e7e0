# SPDX-License-Identifier: MIT
"""Conversions: descriptors of another size or format, in place and into a new image."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from conftest import needs
from independent_reader import Reader
from test_recovery import killed_in, lose_cache

from pmem_core import cli, convert, geometry, image, infoblock, layout, reshape, snapshot
from pmem_core.check import check
from pmem_core.convert import copy, filesystems, saved
from pmem_core.device import Device
from pmem_core.errors import BadData, DoesNotFit, HostError, HostFull, ImageBusy, UnsupportedImage, UsageError
from pmem_core.journal import Journal

HERE = Path(__file__).resolve().parent
SEED = os.environ.get("PMEM_NBD_SEED", "20150507")
CUTS = int(os.environ.get("PMEM_NBD_CONVERSIONS", "12"))
MEMORY = Path("/dev/shm")
PAGE = layout.PAGE_BYTES
ENOSPC = 28
BUSY = {"leveling_name": "start_gap", "parameters": {"interval": 3, "region_frames": 64}}


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where that can be: a conversion waits for the disk several times a batch."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


def make(path: Path, size: int = 1 << 20, pages: int = 60, seed: int = 1, **options) -> bytes:
    """An image with data on its first pages, some of them trimmed; what it holds."""
    image.create(path, geometry.plan(size, **{**BUSY, **options}))
    chance = random.Random(seed)
    with Device(path) as device:
        for page in range(pages):
            device.write(chance.randbytes(PAGE), page * PAGE)
        for page in range(0, pages, 7):
            device.trim(PAGE, page * PAGE)
        return device.read(device.plan.device_bytes, 0)


def content(path: Path) -> bytes:
    """What an image holds."""
    with Device(path, read_only=True) as device:
        return device.read(device.plan.device_bytes, 0)


def files(path: Path) -> dict[str, bytes]:
    """What must not change when a conversion is refused."""
    return {name: (path / name).read_bytes() for name in ("media", "wear", "state")}


def require_same(found: bytes, wanted: bytes) -> None:
    """Equal, and zeros where one is longer."""
    assert found[: len(wanted)] == wanted[: len(found)]
    assert not any(found[len(wanted) :]) and not any(wanted[len(found) :])


# ---- the data ----


@pytest.mark.parametrize("sizes", [(64, 128), (16, 4096), (4096, 32), (256, 128)], ids=str)
def test_conversion_keeps_the_data(tmp_path, sizes):
    path, before = tmp_path / "disk.pmem", sizes[0]
    wanted = make(path, descriptor_bytes=before)
    found = convert.convert(path, sizes[1])
    assert (found["changed"], found["to"]["descriptor_bytes"]) == (True, sizes[1])
    require_same(content(path), wanted)
    report = check(path)
    assert report.clean and not report.findings, [str(one) for one in report.findings]
    require_same(Reader(path).content(), wanted)


def test_conversion_and_back_keeps_what_descriptors_say(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path)
    before = [Reader(path).descriptor(page) for page in range(60)]
    convert.convert(path, 512)
    convert.convert(path, 64)
    assert [Reader(path).descriptor(page) for page in range(60)] == before
    with Device(path, read_only=True) as device:
        kinds = [event["event"] for event in device.journal.events()]
    assert kinds.count("converted") == 2


def test_converted_linear_image_is_linux_s_again(tmp_path):
    path = tmp_path / "disk.pmem"
    wanted = make(path, 12 << 20, placement_name="linear", leveling_name="none", parameters={}, descriptor_bytes=1024)
    assert not infoblock.read(path / "media").linux
    convert.convert(path, 64)
    assert infoblock.read(path / "media").linux
    require_same(content(path), wanted)


def test_coalesced_and_small_frames(tmp_path):
    path = tmp_path / "disk.pmem"
    wanted = make(path, descriptor_writes="coalesced", frame_bytes=256, line_bytes=64)
    convert.convert(path, 1024)
    require_same(content(path), wanted)
    assert check(path).clean


def test_wear_of_a_conversion_is_counted(tmp_path):
    """As moves where pages are copied, as descriptors where these are stored."""
    path = tmp_path / "disk.pmem"
    make(path, leveling_name="none", parameters={})
    with Device(path, read_only=True) as device:
        before = device.mapping.core["tally"][0]["worn"].tolist()
        pages = device.plan.info.page_count
    lines = convert.convert(path, 128)["line_writes"]
    held = {page for page in range(60) if page % 7}
    moved = sum(page >= 32 for page in held)  # the first 32 pages stay where they are
    assert lines == {"host": 0, "descriptor": 2 * 16, "move": 16 * moved, "info": 4 * 16}
    with Device(path, read_only=True) as device:
        after = device.mapping.core["tally"][0]["worn"].tolist()
        assert device.plan.info.page_count < pages
    assert [new - old for new, old in zip(after, before, strict=True)] == list(lines.values())


def test_what_is_free_is_given_back(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path, 8 << 20, pages=600, leveling_name="none", parameters={})
    with Device(path) as device:
        device.trim(500 * PAGE, 0)
    convert.convert(path, 256)
    # 100 pages, the descriptors of all that were ever written, and the info blocks.
    assert (path / "media").stat().st_blocks * 512 <= (100 + -(-600 // 16) + 4) * PAGE


def test_conversion_to_what_it_is_changes_nothing(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path)
    before = files(path)["media"]
    assert convert.convert(path, 64)["changed"] is False
    assert files(path)["media"] == before


# ---- into a new image ----


def test_output_is_a_new_image(tmp_path):
    path, new = tmp_path / "disk.pmem", tmp_path / "new.pmem"
    wanted = make(path)
    before = files(path)
    found = convert.convert_into(path, new, 128, size=2 << 20)
    assert files(path) == before
    assert found["pages_with_data"] == 60 - 9
    require_same(content(new), wanted)
    info = infoblock.read(new / "media")
    assert (info.size, info.descriptor_bytes, info.parameters["leveling"]["interval"]) == (2 << 20, 128, 3)
    assert info.uuid != infoblock.read(path / "media").uuid
    assert check(new).clean


def test_output_that_is_too_small_leaves_nothing(tmp_path):
    path, new = tmp_path / "disk.pmem", tmp_path / "new.pmem"
    make(path)
    with pytest.raises(DoesNotFit, match="shrink the filesystem to"):
        convert.convert_into(path, new, 64, size=100 << 10)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["disk.pmem"]


def test_output_leaves_another_s_work_alone_and_removes_what_a_dead_one_left(tmp_path):
    path, new = tmp_path / "disk.pmem", tmp_path / "new.pmem"
    make(path, pages=4)
    dead = subprocess.Popen(["true"])
    dead.wait()
    others = [tmp_path / f".new.pmem.{pid}.converting" for pid in (os.getppid(), dead.pid)]
    for other in others:
        other.mkdir()
    convert.convert_into(path, new, 128)
    assert [other.is_dir() for other in others] == [True, False]


def test_output_wants_a_folder(tmp_path):
    make(tmp_path / "disk.pmem", pages=4)
    with pytest.raises(HostError, match=f"^{tmp_path / 'none'}: no such folder: a folder to make the image in"):
        convert.convert_into(tmp_path / "disk.pmem", tmp_path / "none" / "new.pmem", 128)


@pytest.mark.parametrize("same", [False, True])
def test_output_removes_what_was_left_of_one_killed_at_its_beginning(tmp_path, monkeypatch, same):
    path, new = tmp_path / "disk.pmem", tmp_path / "new.pmem"
    make(path, pages=4)
    pid = killed_in(convert.convert_into, path, new, 128)
    assert [one for one in tmp_path.iterdir() if str(pid) in one.name]
    if same:
        monkeypatch.setattr(os, "getpid", lambda: pid)
    convert.convert_into(path, new, 128)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["disk.pmem", "new.pmem"]


def test_output_that_another_has_made_meanwhile_is_left_alone(tmp_path):
    path, new = tmp_path / "disk.pmem", tmp_path / "new.pmem"
    make(path, pages=4)
    with pytest.raises(UsageError, match=f"^{new}: exists already"):
        convert.convert_into(path, new, 128, watch=lambda _: new.mkdir(exist_ok=True))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["disk.pmem", "new.pmem"] and not any(new.iterdir())


def test_error_of_a_new_image_has_the_name_it_was_to_have(tmp_path):
    path, new = tmp_path / "disk.pmem", tmp_path / "new.pmem"
    make(path, pages=4)

    def full(_: Device, target: Device, __: object) -> int:
        raise HostFull(target.path / "media", "no room left on the host")

    with mock.patch.object(copy, "_copy", full), pytest.raises(HostFull, match=f"^{new}/media: no room left"):
        convert.convert_into(path, new, 128)


# ---- what is refused ----


def refused(path: Path, error: type, match: str, *arguments) -> None:
    """A conversion that is refused, in one line, and changes nothing."""
    before = files(path)
    with pytest.raises(error, match=match) as caught:
        convert.convert(path, *arguments)
    assert "\n" not in str(caught.value)
    assert files(path) == before
    assert not (path / saved.NAME).exists()


def test_data_beyond_the_new_end_is_refused_with_the_size_to_shrink_to(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path)
    with Device(path) as device:
        device.write(b"last" * 1024, device.plan.device_bytes - PAGE)
    left = geometry.plan(1 << 20, **BUSY, descriptor_bytes=128).device_bytes
    refused(path, DoesNotFit, f"1 pages .* shrink the filesystem to {left} bytes", 128)


def test_damaged_pages_are_refused_by_number(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path, leveling_name="none", parameters={})
    with (path / "media").open("r+b") as file:
        for page in (3, 40):
            file.seek(layout.FRAMES_AT + (page + 1) * PAGE + 9)
            file.write(b"?")
    refused(path, BadData, "2 pages are damaged, .*: 3, 40:", 128)


def test_image_without_descriptors_is_refused(tmp_path):
    path = tmp_path / "disk.pmem"
    image.create(path, geometry.plan(1 << 20, placement_name="none"))
    refused(path, UnsupportedImage, "placement none has no descriptors", 128)


def test_initialised_image_is_converted_into_a_new_one_only(tmp_path):
    path, new = tmp_path / "a.pmem", tmp_path / "b.pmem"
    before = make(path, initialise="buddy")
    left = files(path)
    with pytest.raises(UnsupportedImage, match="initialise=buddy: groups of descriptors are not moved: --output NEW"):
        convert.convert(path, 128)
    assert files(path) == left
    convert.convert_into(path, new, 128, size=2 << 20)
    require_same(content(new), before)
    made = infoblock.read(new / "media")
    assert (made.initialise, made.descriptor_bytes, made.descriptor_format) == ("buddy", 128, 1)
    assert check(new).clean


def test_image_in_use_is_refused(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path)
    with Device(path), pytest.raises(ImageBusy):
        convert.convert(path, 128)


def test_image_that_was_not_closed_is_refused(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path)
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    device.abandon()
    refused(path, UnsupportedImage, "not closed properly: 'pmem-nbd check --repair", 128)


@pytest.mark.parametrize("output", [False, True])
def test_image_with_suspect_sections_is_refused(tmp_path, output):
    path, new = tmp_path / "a.pmem", tmp_path / "b.pmem"
    make(path)
    device = Device(path)
    device.write(b"x" * PAGE, 0)
    device.abandon()
    lose_cache(path)
    Device(path).close()
    left = files(path)
    with pytest.raises(UnsupportedImage, match="held writes not flushed at a power cut: 'pmem-nbd check --repair"):
        convert.convert_into(path, new, 128, size=2 << 20) if output else convert.convert(path, 128)
    assert files(path)["media"] == left["media"]
    assert not new.exists()
    check(path, repair=True)
    convert.convert_into(path, new, 128, size=2 << 20) if output else convert.convert(path, 128)


@pytest.mark.parametrize("size", [0, 8, 100, 8192])
def test_impossible_size_is_refused(tmp_path, size):
    path = tmp_path / "disk.pmem"
    make(path)
    refused(path, UsageError, "a power of two from 16 to 4096", size)


# ---- cut off, and gone on with ----


@pytest.fixture
def halfway(tmp_path):
    """An image whose conversion was interrupted, and what it holds."""
    path = tmp_path / "disk.pmem"
    wanted = make(path)

    def watch(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(path, 128, watch=watch)
    return path, wanted


def test_interrupted_conversion_goes_on(halfway):
    path, wanted = halfway
    found = convert.convert(path)
    assert found["resumed"] and found["to"] == {"descriptor_bytes": 128, "descriptor_format": 2}
    require_same(content(path), wanted)
    assert check(path).clean


def killed_before(owner, name: str, path: Path) -> None:
    """Convert `path` in a process that is killed when it calls `name` of `owner`."""
    child = os.fork()
    if not child:
        try:
            with mock.patch.object(owner, name, side_effect=lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
                convert.convert(path, 128)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_kill_while_it_gathers_leaves_the_image_as_it_was(tmp_path):
    path = tmp_path / "disk.pmem"
    wanted = make(path)
    left = files(path)
    killed_before(reshape, "gather", path)
    assert files(path) == left and snapshot.look(path).session == "closed"
    with pytest.raises(UsageError, match="cut off before it changed anything: --descriptor-bytes again"):
        convert.convert(path)
    assert convert.convert(path, 128)["changed"]
    require_same(content(path), wanted)


@pytest.mark.parametrize("name", ["put_conversion", "store_info"])
def test_kill_before_an_info_block_says_so_leaves_what_the_same_command_converts(tmp_path, name):
    path = tmp_path / "disk.pmem"
    wanted = make(path)
    killed_before(Journal if name == "put_conversion" else Device, name, path)
    with pytest.raises(UsageError, match="cut off before it changed anything: --descriptor-bytes again"):
        convert.convert(path)
    assert convert.convert(path, 128)["changed"]
    require_same(content(path), wanted)
    assert check(path).clean


def test_conversion_to_what_it_is_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "disk.pmem"
    make(path)
    killed_before(reshape, "gather", path)
    assert (path / saved.NAME).exists()
    assert not convert.convert(path, 64)["changed"]
    assert not (path / saved.NAME).exists()


@pytest.mark.parametrize("arguments", [(256,), (128, 1)], ids=str)
def test_other_arguments_are_refused_while_one_is_under_way(halfway, arguments):
    path, wanted = halfway
    with pytest.raises(UsageError, match=r"descriptors of 128 bytes, format 2 is under way: the same options again"):
        convert.convert(path, *arguments)
    convert.convert(path, 128, 2)
    require_same(content(path), wanted)


@pytest.mark.parametrize("verb", ["info", "stats", "check", "check --repair", "serve", "report -o x.html"])
def test_every_verb_says_that_one_is_under_way(halfway, capsys, monkeypatch, verb):
    path, _ = halfway
    monkeypatch.chdir(path.parent)
    name, *options = verb.split()
    assert cli.main([name, "disk.pmem", *options]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert (
        told.err.replace(f"{path.parent}/", "")
        == "disk.pmem: a conversion is under way: finish it with 'pmem-nbd convert disk.pmem'\n"
    )


def test_full_host_is_one_line_and_it_goes_on_afterwards(tmp_path):
    path = tmp_path / "disk.pmem"
    wanted = make(path)
    real, calls = reshape.move, []

    def full(*arguments: object) -> int:
        calls.append(0)
        if len(calls) < 4:
            return int(real(*arguments))
        return int(arguments[3]) << layout.STOP_SHIFT | ENOSPC << layout.ERRNO_SHIFT | layout.HOST

    with mock.patch.object(reshape, "move", full), pytest.raises(HostFull, match="no room left on the host"):
        convert.convert(path, 128)
    assert convert.convert(path)["resumed"]
    require_same(content(path), wanted)


def test_saved_descriptors_that_were_damaged_are_refused(halfway):
    path, _ = halfway
    with (path / saved.NAME).open("r+b") as file:
        file.seek(saved.HEAD_BYTES + 100)
        file.write(b"?")
    assert cli.main(["convert", str(path)]) == 1


@pytest.fixture
def copied(tmp_path):
    """An image whose conversion to 128 bytes was killed before it verified, without leveling, and what it holds."""
    path = tmp_path / "disk.pmem"
    wanted = make(path, leveling_name="none", parameters={})
    killed_before(reshape, "verify", path)
    return path, wanted


def hurt(path: Path, placed: int) -> None:
    """Change a byte of the medium; placed: of an image without leveling."""
    with (path / "media").open("r+b") as file:
        file.seek(layout.FRAMES_AT + placed)
        (byte,) = file.read(1)
        file.seek(layout.FRAMES_AT + placed)
        file.write(bytes([byte ^ 1]))


def of_128(page: int) -> int:
    """Where a page is placed by descriptors of 128 bytes."""
    return (page + page // 32 + 1) * PAGE


def test_page_damaged_meanwhile_does_not_shut_the_image_out(copied):
    path, wanted = copied
    hurt(path, of_128(10) + 9)
    hurt(path, of_128(40) + 9)
    with pytest.raises(BadData, match=r"it is converted, but 2 pages were damaged meanwhile: 10, 40: 'pmem-nbd check'"):
        convert.convert(path)
    assert not (path / saved.NAME).exists() and not convert.convert(path, 128)["changed"]
    with Device(path) as device:
        for page in (10, 40):
            with pytest.raises(BadData, match=f"page {page}: its data fails the checksum"):
                device.read(PAGE, page * PAGE)
            device.write(wanted[page * PAGE : (page + 1) * PAGE], page * PAGE)
    require_same(content(path), wanted)
    assert check(path).clean


def test_pages_damaged_meanwhile_are_counted_though_not_all_are_named(copied):
    path, _ = copied
    for page in range(60):
        hurt(path, of_128(page) + 9)
    with pytest.raises(BadData, match=r"51 pages were damaged meanwhile: 1, 2, 3, .*, 23, \.\.\.: "):
        convert.convert(path)


@pytest.mark.parametrize(
    "byte", [10 * 128 + 8, 10 * 128 + 70, 41], ids=["checksum", "field of format 2", "of a trimmed page"]
)
def test_descriptor_damaged_meanwhile_is_stored_once_more(copied, byte):
    path, wanted = copied
    before = (path / "media").read_bytes()
    hurt(path, byte)
    assert convert.convert(path)["resumed"]
    require_same(content(path), wanted)
    assert check(path).clean
    assert (path / "media").read_bytes()[layout.FRAMES_AT :] == before[layout.FRAMES_AT :]


def test_descriptor_that_does_not_stay_is_one_line_and_it_goes_on_afterwards(copied):
    path, wanted = copied
    hurt(path, 10 * 128 + 8)
    with (
        mock.patch.object(reshape, "describe", return_value=0),
        pytest.raises(BadData, match="page 10: its descriptor does not stay what was stored: a disk that is well"),
    ):
        convert.convert(path)
    assert convert.convert(path)["resumed"]
    require_same(content(path), wanted)
    assert check(path).clean


def cut(*arguments: object) -> tuple[int, str]:
    """Run conversions.py; its status, and what it printed."""
    command = [sys.executable, HERE / "conversions.py", "--seed", SEED, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        list(map(str, command)), env=environment, check=False, capture_output=True, text=True, timeout=280 + 2 * CUTS
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * CUTS)
def test_no_kill_and_no_power_cut_loses_a_page(tmp_path):
    status, told = cut("--cuts", CUTS)
    assert status == 0 and told.count(" cuts, ") == 6, told


@pytest.mark.parametrize("bug", ["batch too long", "told too early"])
def test_planted_bug_is_found(bug):
    status, told = cut("--cuts", 120, "--plant", bug)
    assert status == 1 and "\nagain: " in told, told


# ---- the command ----


def test_command_says_what_it_did(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("disk.pmem"))
    assert cli.main(["convert", "disk.pmem", "--descriptor-bytes", "128"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("disk.pmem: descriptors of 128 bytes, format 2; the client sees ") and "51 pages with" in out
    assert cli.main(["convert", "disk.pmem", "--descriptor-bytes", "64", "-j"]) == 0
    assert json.loads(capsys.readouterr().out)["to"] == {"descriptor_bytes": 64, "descriptor_format": 1}


@pytest.mark.parametrize(
    "options", [[], ["--descriptor-bytes", "99"], ["--size", "1G"], ["--output", "new.pmem"]], ids=str
)
def test_command_refuses_in_one_line(tmp_path, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    make(Path("disk.pmem"), pages=1)
    assert cli.main(["convert", "disk.pmem", *options]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1


def test_command_makes_no_image_within_an_image(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("disk.pmem"), pages=1)
    assert cli.main(["convert", "disk.pmem", "--descriptor-bytes", "128", "-o", "disk.pmem/inner"]) == 2
    told = capsys.readouterr().err
    assert told == f"disk.pmem/inner: lies within the image {tmp_path.resolve()}/disk.pmem: a path outside of it\n"
    assert not Path("disk.pmem/inner").exists()


@pytest.mark.parametrize(("step", "told"), [("move", True), ("gather", False)])
def test_interrupted_command_says_how_it_goes_on_where_it_has_begun(tmp_path, capsys, monkeypatch, step, told):
    monkeypatch.chdir(tmp_path)
    make(Path("disk.pmem"), pages=80)
    with mock.patch.object(reshape, step, side_effect=KeyboardInterrupt):
        assert cli.main(["convert", "disk.pmem", "--descriptor-bytes", "128"]) == 130
    line = "disk.pmem: interrupted: 'pmem-nbd convert disk.pmem' goes on"
    assert [one for one in capsys.readouterr().err.splitlines() if one] == [line] * told


MKFS = {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"]}


@pytest.mark.parametrize("fs", [pytest.param(fs, marks=needs(fs)) for fs in MKFS])
def test_a_filesystem_says_how_far_it_reaches(tmp_path, fs):
    """As long as the file that it was made on."""
    disk, size = tmp_path / "disk", 400 << 20
    with disk.open("wb") as file:
        file.truncate(size)
    subprocess.run([*MKFS[fs], disk], check=True, capture_output=True)
    with disk.open("rb") as file:
        assert filesystems.size_of(file.read(PAGE)) == (fs, size)
    assert filesystems.size_of(bytes(PAGE)) is None


@needs("ext4")
@pytest.mark.parametrize("how", ["in place", "output"])
def test_filesystem_that_would_reach_beyond_the_end_is_not_cut_off(tmp_path, how):
    """There is no data at its end, and yet it could not be mounted any more."""
    path, disk = tmp_path / "disk.pmem", tmp_path / "disk"
    image.create(path, geometry.plan(64 << 20))
    with Device(path) as device:
        size = device.plan.device_bytes
    smaller = geometry.plan(64 << 20, descriptor_bytes=128).device_bytes

    def make_filesystem(of: int) -> None:
        with disk.open("wb") as file:
            file.truncate(of)
        subprocess.run([*MKFS["ext4"], "-O", "^has_journal", disk], check=True, capture_output=True)
        with Device(path) as device, disk.open("rb") as file:
            device.trim(size, 0)
            for at in range(0, of // PAGE * PAGE, PAGE):
                if any(data := file.read(PAGE)):
                    device.write(data, at)

    output = tmp_path / "new.pmem" if how == "output" else None
    make_filesystem(size // PAGE * PAGE)
    before = files(path)
    with pytest.raises(DoesNotFit, match=rf"the ext4 on it has {size} bytes, and {smaller} would be left"):
        run_conversion(path, 128, output)
    assert files(path) == before
    make_filesystem(smaller)
    assert run_conversion(path, 128, output)["device_bytes"] == smaller


def run_conversion(path: Path, size: int, output: Path | None) -> dict:
    if output is None:
        return convert.convert(path, descriptor_bytes=size)
    return convert.convert_into(path, output, descriptor_bytes=size)
