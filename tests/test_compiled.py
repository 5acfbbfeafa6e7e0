# SPDX-License-Identifier: MIT
"""nbdkit's pread and pwrite as compiled code: what they do with requests, threads, errors and Python's objects."""

import gc
import sys
import threading

import numpy as np
import pytest

from nbd_plugin import compiled, threads, turn
from pmem_core import datapath, geometry, image, layout
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
def test_a_request_with_flags_is_not_done_here(device, pair, calls):
    data = memoryview(b"\1" * PAGE)
    pair[1](None, data, 0, 2)
    assert calls == [("ordinary", None, data, 0, 2)]
    assert device.read(PAGE, 0) == bytes(PAGE)


@pytest.mark.usefixtures("known")
def test_what_stops_is_resumed_where_it_stopped(device, pair, calls):
    section = device.plan.info.section_pages * PAGE
    data = memoryview(b"\1" * (2 * PAGE))
    pair[1](None, data, section - PAGE, 0)
    assert calls == [("resume", data, section - PAGE, PAGE << layout.STOP_SHIFT | layout.SECTION)]
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
    buffer, offset = memoryview(bytearray(PAGE)), device.plan.info.section_pages * PAGE
    refused = memoryview(bytes(PAGE))

    def counts():
        calls.clear()
        gc.collect()
        return [sys.getrefcount(thing) for thing in (None, buffer, offset, refused, calls, pread, pwrite)]

    before = counts()
    for _ in range(1000):
        pread(None, buffer, 0, 0)
        pwrite(None, buffer, 0, 0)
        pwrite(None, buffer, 0, 2)
        pwrite(None, buffer, offset, 0)
        with pytest.raises(BufferError):
            pread(None, refused, 0, 0)
    assert ("resume", buffer, offset, layout.SECTION) in calls
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
    assert calls == [("resume", data, 0, layout.BROKE)]
    with pytest.raises(HostError, match="input/output error"):
        device.transfer(datapath.write, data, 0, layout.BROKE)
