# SPDX-License-Identifier: MIT
"""nbdkit's pread, pwrite and flush as compiled code: requests, threads, errors and Python's objects."""

import errno
import gc
import sys
import threading
import time

import numpy as np
import pytest

from nbd_plugin import compiled, threads
from pmem_core import datapath, geometry, image, layout, turn, upkeep
from pmem_core.device import Device
from pmem_core.errors import HostError
from pmem_core.jit import hot

PAGE = layout.PAGE_BYTES


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "image.pmem"
    image.create(path, geometry.plan(32 << 20))
    with Device(path) as opened:
        opened.turn = turn.Turn()
        opened.write(bytes(PAGE), 0)  # its section is marked, so that a write here stops for nothing
        yield opened


class Calls(list):
    """What was called, with which arguments."""

    def ordinary(self, *arguments):
        self.append(("ordinary", *arguments))

    def resume(self, *arguments):
        self.append(("resume", *arguments))


@pytest.fixture
def calls():
    return Calls()


@pytest.fixture
def pair(device, calls):
    """`pread` and `pwrite` of the device."""
    return [
        compiled.callback(function, device, calls.ordinary, calls.resume)
        for function in (datapath.read_at, datapath.write_at)
    ]


@pytest.fixture
def known():
    """This thread has made a request before, and makes no EVERY-th one."""
    threads.pin()
    threads._mine.room[compiled.COUNT] = -(10**9)
    yield threads._mine.room
    threads._mine.room[compiled.COUNT] = 0


@pytest.mark.usefixtures("known")
def test_requests_are_done_without_python(device, pair, calls):
    pread, pwrite = pair
    data, found = bytes(range(256)) * 20, bytearray(5120)
    assert pwrite(None, memoryview(data), 100, 0) is None
    assert pread(None, memoryview(found), 100, 0) is None
    assert bytes(found) == data == device.read(5120, 100)
    assert calls == []


def test_a_new_thread_is_made_known_first(pair, calls):
    data = memoryview(bytes(PAGE))

    def first_and_second():
        pair[1](None, data, 0, 0)
        threads.pin()
        pair[1](None, data, 0, 0)

    thread = threading.Thread(target=first_and_second)
    thread.start()
    thread.join()
    assert calls == [("ordinary", None, data, 0, 0)]


def test_every_so_many_requests_one_goes_through_python(pair, calls, known):
    known[compiled.COUNT] = 0
    data = memoryview(bytes(PAGE))
    for _ in range(3 * compiled.EVERY + 1):
        pair[1](None, data, 0, 0)
    assert calls == 3 * [("ordinary", None, data, 0, 0)]


@pytest.mark.usefixtures("known")
def test_a_request_with_other_flags_is_not_done_here(device, pair, calls):
    data = memoryview(b"\1" * PAGE)
    pair[1](None, data, 0, 2)
    assert calls == [("ordinary", None, data, 0, 2)]
    assert device.read(PAGE, 0) == bytes(PAGE)


FUA = 2
MOVING = {"interval": 10, "region_frames": 1024, "gap_frames": 16}


def flushing(device, calls):
    """`pwrite`, which knows FUA, and `flush` of the device."""
    return (
        compiled.callback(datapath.write_at, device, calls.ordinary, calls.resume, FUA),
        compiled.flush_callback(device, calls.ordinary, calls.resume),
    )


@pytest.mark.usefixtures("known")
def test_a_flush_and_fua_sync_once_each_without_python(device, calls):
    pwrite, flush = flushing(device, calls)
    run, epoch = device.mapping.run[0], device.mapping.run["epoch"][0]
    for request, syncs, flushes in (
        (lambda: flush(None, 0), 1, 1),
        (lambda: pwrite(None, memoryview(b"\1" * PAGE), 0, FUA), 2, 1),  # is no flush of the client's
        (lambda: pwrite(None, memoryview(b"\2" * PAGE), 0, 0), 2, 1),
    ):
        assert request() is None
        assert (run["syncs_begun"], run["syncs_ended"]) == (syncs, syncs)
        assert device.mapping.core[0]["tally"]["flushes"] == flushes
    assert run["epoch"] == epoch + 2
    assert device.read(PAGE, 0) == b"\2" * PAGE and calls == []


def test_a_flush_makes_a_new_thread_known(device, calls):
    _, flush = flushing(device, calls)
    thread = threading.Thread(target=flush, args=(None, 0))
    thread.start()
    thread.join()
    assert calls == [("ordinary", None, 0)]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("how", ["flush", "fua"])
def test_flush_that_fails_is_told_and_no_later_one_is_answered(device, calls, how):
    kept, device.mapping.files["flushes"] = device.mapping.files["flushes"], 10**6  # EBADF
    pwrite, flush = flushing(device, calls)
    device.mapping.files["flushes"] = kept
    data = memoryview(b"\1" * PAGE)
    failed = errno.EBADF << layout.ERRNO_SHIFT | layout.HOST
    if how == "flush":
        flush(None, 0)
        assert calls == [("resume", failed)]
    else:
        pwrite(None, data, 0, FUA)
        assert calls == [("resume", data, 0, FUA, compiled.FLUSH_STOPPED | failed)]
        assert device.read(PAGE, 0) == data, "the write itself is done"
    with pytest.raises(HostError, match="bad file descriptor"):
        device.finish_flush(failed)
    calls.clear()
    flush(None, 0)
    assert calls == [("resume", layout.HOST)], "the kernel would answer the second sync"
    assert device.sync_failed
    for step in (device.flush, device.checkpoint, lambda: device.finish_flush(layout.HOST)):
        with pytest.raises(HostError, match="an earlier sync failed"):
            step()
    device.mapping.run["sync_failed"] = 0  # so that it can be closed


def test_flush_beside_a_failing_sync_is_not_answered(device):
    """The kernel may have told the other one what was ours too."""
    begun = device._call(upkeep.flush, upkeep.FLUSH_BEGUN, 1) >> layout.STOP_SHIFT
    assert device._call(upkeep.flush, upkeep.FLUSH_SYNC, begun) == upkeep.SYNC
    device.mapping.run["sync_failed"] = errno.EIO
    assert device._call(upkeep.flush, upkeep.FLUSH_SYNCED, 0) == errno.EIO << layout.ERRNO_SHIFT | layout.HOST
    device.mapping.run["sync_failed"] = 0  # so that it can be closed


@pytest.mark.usefixtures("known")
def test_flush_whose_moves_are_to_be_committed_is_done_by_python(tmp_path, calls):
    image.create(tmp_path / "moving.pmem", geometry.plan(8 << 20, parameters=MOVING))
    with Device(tmp_path / "moving.pmem") as device:
        device.turn = turn.Turn()
        pwrite, flush = flushing(device, calls)
        device.write(bytes(PAGE), 0)
        device.flush()
        run = device.mapping.run[0]
        while run["rewritten"] == run["committed"]:
            device.write(b"\1" * (64 * PAGE), 0)
        flush(None, 0)
        assert calls == [("resume", layout.CHECKPOINT)]
        calls.clear()
        pwrite(None, memoryview(b"\2" * PAGE), 0, FUA)
        assert calls[-1][-1] == compiled.FLUSH_STOPPED | layout.CHECKPOINT
        device.finish_flush(layout.CHECKPOINT)
        calls.clear()
        flush(None, 0)
        assert calls == [] and run["rewritten"] == run["committed"]


def four_flushes_at_once(device, flush):
    """All of them ask while another flush syncs."""

    def one():
        threads.pin()
        started.wait()
        flush(None, 0)

    started = threading.Barrier(5)
    workers = [threading.Thread(target=one) for _ in range(4)]
    for worker in workers:
        worker.start()
    with device.flushing:
        started.wait()
        while int(device.mapping.core[0]["tally"]["flushes"]) < 4:
            time.sleep(0.001)  # all have begun
        time.sleep(0.05)
    for worker in workers:
        worker.join()


@pytest.mark.usefixtures("known")
def test_flushes_that_wait_share_the_next_sync(device, calls):
    four_flushes_at_once(device, flushing(device, calls)[1])
    assert device.mapping.run["syncs_begun"][0] == 1 and calls == []


@pytest.mark.usefixtures("known")
def test_flushes_that_wait_for_one_that_fails_are_not_answered(device, calls):
    kept, device.mapping.files["flushes"] = device.mapping.files["flushes"], 10**6
    _, flush = flushing(device, calls)
    device.mapping.files["flushes"] = kept
    four_flushes_at_once(device, flush)
    failed = errno.EBADF << layout.ERRNO_SHIFT | layout.HOST
    assert sorted(calls) == [("resume", layout.HOST)] * 3 + [("resume", failed)]
    device.mapping.run["sync_failed"] = 0  # so that it can be closed


@pytest.mark.usefixtures("known")
def test_write_with_fua_that_stops_is_not_flushed_here(device, calls):
    """Whoever does the rest of it flushes."""
    pwrite, _ = flushing(device, calls)
    data, section = memoryview(b"\1" * PAGE), device.plan.info.section_pages * PAGE
    pwrite(None, data, section, FUA)
    assert calls == [("resume", data, section, FUA, layout.SECTION)]
    assert device.mapping.run["syncs_begun"][0] == 0


def test_compiled_code_that_raises_in_a_flush_ends_all_flushes(device):
    with pytest.raises(HostError, match="input/output error"):
        device.finish_flush(layout.BROKE)
    with pytest.raises(HostError, match="an earlier sync failed"):
        device.flush()
    device.mapping.run["sync_failed"] = 0  # so that it can be closed


def test_arguments_that_are_missing_are_python_s(device, calls):
    pwrite, flush = flushing(device, calls)
    threads.pin()
    for count in range(4):
        pwrite(*[None] * count)
    flush()
    assert calls == [("ordinary", *[None] * count) for count in (0, 1, 2, 3, 0)]


@pytest.mark.usefixtures("known")
def test_what_stops_is_resumed_where_it_stopped(device, pair, calls):
    section = device.plan.info.section_pages * PAGE
    data = memoryview(b"\1" * (2 * PAGE))
    pair[1](None, data, section - PAGE, 0)
    assert calls == [("resume", data, section - PAGE, 0, PAGE << layout.STOP_SHIFT | layout.SECTION)]
    assert device.read(2 * PAGE, section - PAGE) == b"\1" * PAGE + bytes(PAGE)


@pytest.mark.usefixtures("known")
def test_an_exception_of_the_rest_is_passed_on(device):
    def fails(*_):
        raise BlockingIOError("the rest")

    pwrite = compiled.callback(datapath.write_at, device, fails, fails)
    for offset, flags in ((0, 2), (device.plan.info.section_pages * PAGE, 0)):
        with pytest.raises(BlockingIOError, match="the rest"):
            pwrite(None, memoryview(bytes(PAGE)), offset, flags)


@pytest.mark.usefixtures("known")
def test_nothing_is_read_into_memory_that_must_not_change(pair):
    with pytest.raises(BufferError):
        pair[0](None, memoryview(bytes(PAGE)), 0, 0)


@pytest.mark.usefixtures("known")
def test_no_object_is_kept_or_dropped_too_often(device, pair, calls):
    pread, pwrite = pair
    fua, flush = flushing(device, calls)
    device.mapping.run["committed"] = -1  # so that flushes stop
    buffer, offset = memoryview(bytearray(PAGE)), device.plan.info.section_pages * PAGE
    refused = memoryview(bytes(PAGE))

    def counts():
        calls.clear()
        gc.collect()
        return [sys.getrefcount(thing) for thing in (None, buffer, offset, refused, calls, pread, pwrite, flush, fua)]

    before = counts()
    for _ in range(1000):
        pread(None, buffer, 0, 0)
        pwrite(None, buffer, 0, 0)
        pwrite(None, buffer, 0, 2)
        pwrite(None, buffer, offset, 0)
        flush(None, 0)
        fua(None, buffer, 0, FUA)
        with pytest.raises(BufferError):
            pread(None, refused, 0, 0)
    assert ("resume", buffer, offset, 0, layout.SECTION) in calls
    assert np.abs(np.subtract(counts(), before)).max() < 20
    buffer.release()  # BufferError where a request still held it


@hot
def raises(run, core, address, size, offset, done):
    if size:
        raise ValueError
    return 0


@pytest.mark.usefixtures("known")
def test_compiled_code_that_raises_is_an_error_of_the_request(device, calls):
    pwrite = compiled.callback(raises, device, calls.ordinary, calls.resume)
    data = memoryview(bytes(PAGE))
    pwrite(None, data, 0, 0)
    assert calls == [("resume", data, 0, 0, layout.BROKE)]
    with pytest.raises(HostError, match="input/output error"):
        device.transfer(datapath.write, data, 0, layout.BROKE)
