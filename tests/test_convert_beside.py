# SPDX-License-Identifier: MIT
"""An image is converted while another process is about to use it: who has waited for the lock knows what it got."""

import contextlib

import pytest
from test_convert import content, make, require_same, tmp_path

from pmem_core import convert, host, infoblock, snapshot
from pmem_core.check import check
from pmem_core.device import Device
from pmem_core.errors import ImageBusy, NotAnImage, UnsupportedImage, UsageError

__all__ = ["tmp_path"]  # a fixture


@pytest.fixture
def path(tmp_path):
    """An image with data."""
    make(tmp_path / "disk.pmem")
    return tmp_path / "disk.pmem"


@pytest.fixture
def meanwhile(monkeypatch):
    """Let something happen while somebody waits for the lock, for the first time or a later one."""

    def arrange(happen, nth=1):
        real, waits = host.Lock._take, []

        def take(lock, how):
            waits.append(how)
            if len(waits) == nth:
                with monkeypatch.context() as patch:
                    patch.setattr(host.Lock, "_take", real)
                    happen()
            return real(lock, how)

        monkeypatch.setattr(host.Lock, "_take", take)

    return arrange


def interrupt(share: float) -> None:
    if share > 0.5:
        raise KeyboardInterrupt


def begin(path):
    """Begin a conversion, and leave it."""
    with pytest.raises(KeyboardInterrupt):
        convert.convert(path, 128, watch=interrupt)


# ---- a device ----


@pytest.mark.parametrize("read_only", [False, True])
def test_device_that_waited_for_a_conversion_has_the_new_shape(path, meanwhile, read_only):
    meanwhile(lambda: convert.convert(path, 128))
    with Device(path, read_only=read_only) as device:
        assert device.plan.info == infoblock.read(path / "media")
        assert (device.plan.info.descriptor_bytes, device.plan.info.descriptor_format) == (128, 2)


def test_what_is_written_after_waiting_for_a_conversion_is_whole(path, meanwhile):
    meanwhile(lambda: convert.convert(path, 128))
    with Device(path) as device:
        for page in range(60):
            device.write(b"x" * 4096, page * 4096)
    assert check(path).clean


@pytest.mark.parametrize("read_only", [False, True])
def test_device_that_waited_for_a_conversion_that_was_left_is_refused(path, meanwhile, read_only):
    meanwhile(lambda: begin(path))
    with pytest.raises(UnsupportedImage, match="a conversion is under way"):
        Device(path, read_only=read_only)
    assert convert.convert(path)["resumed"]


def test_what_is_no_image_gets_no_lock(tmp_path):
    path = tmp_path / "disk.pmem"
    path.mkdir()
    (path / "media").write_bytes(bytes(1 << 20))
    with pytest.raises(NotAnImage, match="no info block"):
        Device(path)
    assert [one.name for one in path.iterdir()] == ["media"]


@pytest.mark.parametrize("read_only", [False, True])
def test_second_user_is_refused_where_the_file_lock_was_removed(path, read_only):
    with Device(path):
        (path / "lock").unlink()
        with pytest.raises(ImageBusy, match="in use by another process"):
            Device(path, read_only=read_only)
        with pytest.raises(ImageBusy):
            check(path, repair=not read_only)
        assert snapshot.look(path).session == "served"


def test_who_reads_an_image_without_a_file_lock_keeps_writers_out_and_makes_none(path):
    (path / "lock").unlink()
    with Device(path, read_only=True):
        host.Lock(path, read_only=True).release()
        with pytest.raises(ImageBusy):
            Device(path)
    assert snapshot.look(path).session == "closed" and check(path).clean
    assert not (path / "lock").exists()


def test_repair_during_a_conversion_is_of_the_new_shape(tmp_path, meanwhile):
    path = tmp_path / "disk.pmem"
    wanted = make(path)
    meanwhile(lambda: convert.convert(path, 128), 2)
    report = check(path, repair=True)
    assert report.clean and not report.findings, [str(one) for one in report.findings]
    require_same(content(path), wanted)


# ---- a look from outside ----


def test_look_during_a_conversion_has_the_new_shape(path, monkeypatch):
    real, looks = snapshot._reading, []

    @contextlib.contextmanager
    def reading(path):
        looks.append(path)
        if len(looks) == 1:
            convert.convert(path, 128)
        with real(path) as holder:
            yield holder

    monkeypatch.setattr(snapshot, "_reading", reading)
    found = snapshot.look(path)
    assert (found.plan.info, found.session) == (infoblock.read(path / "media"), "closed")
    assert "converted" in [event["event"] for event in found.events]


def test_look_at_a_served_image_that_was_converted_meanwhile_has_the_new_shape(path, monkeypatch):
    real, looks = snapshot._snapshot, []

    def copied(*arguments):
        looks.append(arguments)
        found = real(*arguments)
        if len(looks) == 1:
            convert.convert(path, 128)
        return found

    monkeypatch.setattr(snapshot, "_snapshot", copied)
    monkeypatch.setattr(snapshot, "_reading", lambda path: contextlib.nullcontext({}))
    assert snapshot.look(path).plan.info == infoblock.read(path / "media")


# ---- another conversion ----


@pytest.mark.parametrize("theirs", [128, 32])
def test_conversion_that_waited_for_another_is_as_asked_for(tmp_path, meanwhile, theirs):
    path = tmp_path / "disk.pmem"
    wanted = make(path)
    meanwhile(lambda: convert.convert(path, theirs))
    found = convert.convert(path, 128)
    assert found["changed"] is (theirs != 128)
    assert infoblock.read(path / "media").descriptor_bytes == 128
    assert check(path).clean
    require_same(content(path), wanted)


@pytest.mark.parametrize("size", [128, 256])
def test_conversion_that_another_has_ended_is_one_no_more(path, meanwhile, size):
    begin(path)
    meanwhile(lambda: convert.convert(path))
    assert convert.convert(path, size)["changed"] is (size != 128)
    assert check(path).clean


def test_nothing_is_left_to_go_on_with_where_another_has_ended_it(path, meanwhile):
    begin(path)
    meanwhile(lambda: convert.convert(path))
    with pytest.raises(UsageError, match="no conversion is under way"):
        convert.convert(path)
    assert check(path).clean


def test_conversion_that_another_has_ended_before_the_device_is_open_is_left_alone(path, meanwhile):
    begin(path)
    meanwhile(lambda: convert.convert(path), 2)
    with pytest.raises(ImageBusy, match="another process has gone on with its conversion"):
        convert.convert(path)
    assert check(path).clean


def test_conversion_that_another_has_moved_on_is_left_alone(path, meanwhile):
    begin(path)

    def further():
        with pytest.raises(KeyboardInterrupt):
            convert.convert(path, watch=lambda share: interrupt(share - 0.35))

    meanwhile(further, 2)
    with pytest.raises(ImageBusy, match="another process has gone on with its conversion"):
        convert.convert(path)
    assert convert.convert(path)["resumed"]
    assert check(path).clean
