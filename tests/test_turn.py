# SPDX-License-Identifier: MIT
"""A served device is worked on in turns: without the GIL, and by one at a time."""

import contextlib
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kills import SEED

from nbd_plugin import compiled, threads
from pmem_core import datapath, geometry, image, layout, recovery, turn
from pmem_core.check import check
from pmem_core.device import Device

PAGE = layout.PAGE_BYTES
WORKERS = 4


@contextlib.contextmanager
def opened(path, **options):
    image.create(path, geometry.plan(32 << 20, **options))
    with Device(path) as device:
        device.turn = turn.Turn()
        device.write(bytes(PAGE), 0)  # its section is marked
        yield device


FUA = 2


def callbacks(device):
    """`pread`, `pwrite` and `flush` of the device, as the plugin makes them."""

    def pread(handle, buffer, offset, flags):
        device.read_into(buffer, offset)

    def pwrite(handle, buffer, offset, flags):
        device.write(buffer, offset, fua=bool(flags))

    def flush(handle, flags):
        device.flush()

    def resume_read(buffer, offset, flags, result):
        device.transfer(datapath.read, buffer, offset, result)

    def resume_write(buffer, offset, flags, result):
        if result & compiled.FLUSH_STOPPED:
            device.finish_flush(result & ~compiled.FLUSH_STOPPED)
        else:
            device.transfer(datapath.write, buffer, offset, result)

    keeps = device.plan.pending_bytes
    return [
        compiled.callback(datapath.read_at, device, pread, resume_read),
        compiled.callback(datapath.write_at, device, pwrite, resume_write, 0 if keeps else FUA),
        flush if keeps else compiled.flush_callback(device, flush, device.finish_flush),
    ]


def request_waits(path):
    """A request waits for its turn; whoever has the turn goes on in Python meanwhile."""
    with opened(path) as device:
        pread, *_ = callbacks(device)
        done = threading.Event()

        def ask():
            threads.pin()
            begun.set()
            pread(None, memoryview(bytearray(PAGE)), 0, 0)
            done.set()

        begun = threading.Event()
        asker = threading.Thread(target=ask)
        with device.turn:
            asker.start()
            begun.wait()
            assert not done.wait(0.2)
        asker.join()
        assert done.is_set()


def python_waits(path):
    """Python waits for its turn; whoever has the turn is let go on by Python meanwhile."""
    with opened(path) as device:
        has_it, go_on = threading.Event(), threading.Event()

        def hold():
            with device.turn:
                has_it.set()
                go_on.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        has_it.wait()
        threading.Timer(0.2, go_on.set).start()
        began = time.monotonic()
        device.write(bytes(PAGE), 0)
        assert time.monotonic() - began > 0.1
        holder.join()


@pytest.mark.parametrize("what", ["request_waits", "python_waits"])
def test_nobody_waits_for_a_turn_with_the_gil(what, tmp_path):
    # In a process of its own: what goes wrong here never ends.  It may have to compile first.
    script = f"from pathlib import Path; import test_turn; test_turn.{what}(Path({str(tmp_path / 'd')!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200, cwd=Path(__file__).parent)


def checkpoint(device):
    """Take one; what it has of the totals is of no request's middle."""
    device.checkpoint(settle_sections=True)
    core = np.frombuffer(device.journal.load_checkpoint()[0], device.mapping.core.dtype)
    assert core["unit"][0][layout.UNIT_TALLY] and not recovery.sum_is_wrong(core)


@pytest.mark.parametrize("options", [{}, {"descriptor_writes": "coalesced"}, {"initialise": "buddy"}], ids=str)
def test_requests_and_python_keep_apart(tmp_path, options):
    """Each worker has pages of its own, and finds what it wrote, whatever else is done to the device meanwhile."""
    with opened(tmp_path / "image.pmem", **options) as device:
        pread, pwrite, flush = callbacks(device)
        pages = device.plan.info.page_count // 2
        free = pages * PAGE, device.plan.device_bytes  # what no worker has
        problems = []
        stopping = threading.Event()

        def work(number):
            threads.pin()
            chance, written = random.Random(SEED + number), {}
            found = bytearray(PAGE)
            try:
                while not stopping.is_set():
                    page = chance.randrange(number, pages, WORKERS)
                    if page not in written or chance.random() < 0.5:
                        written[page] = chance.randbytes(16) * (PAGE // 16)
                        pwrite(None, memoryview(written[page]), page * PAGE, chance.choice([0, 0, 0, FUA]))
                    elif chance.random() < 0.1:
                        flush(None, 0)
                    else:
                        pread(None, memoryview(found), page * PAGE, 0)
                        assert bytes(found) == written[page]
                for page, data in written.items():
                    pread(None, memoryview(found), page * PAGE, 0)
                    assert bytes(found) == data
            except BaseException as error:
                problems.append(error)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        chance = random.Random(SEED)
        until = time.monotonic() + 2
        try:
            while time.monotonic() < until and not problems:
                chance.choice(
                    [
                        device.flush,
                        device.commit_moves,
                        lambda: checkpoint(device),
                        lambda: device.extents(device.plan.device_bytes, 0),
                        lambda: device.prefetch(20 * PAGE, 0),
                        lambda: device.write(bytes(9 * PAGE), free[0] + 100),
                        lambda: device.zero(30 * PAGE, free[0], may_trim=chance.random() < 0.5),
                        lambda: device.trim(free[1] - free[0], free[0]),
                        device.sample,
                    ]
                )()
        finally:
            stopping.set()
            for worker in workers:
                worker.join()
        assert not problems
    report = check(tmp_path / "image.pmem")
    assert report.clean, report.findings
