# SPDX-License-Identifier: MIT
"""Whole pages go to the medium past the caches, all else by way of them; no request ends with a stream under way."""

import json
import os
import subprocess
import sys

import pytest

PAGE = 4096

# In plain Python, where what compiled code calls can be listened to: what each request stores, in order.
PROGRAM = """
import json, pathlib, sys
from pmem_core import datapath, geometry, image, media
from pmem_core.device import Device

events = []

def listen(module, name, told):
    real = getattr(module, name)
    def listened(*arguments):
        told(*arguments)
        return real(*arguments)
    setattr(module, name, listened)

def stores(word):
    def told(target, at, *rest):
        if target.size == medium_bytes:
            events.append([word, int(rest[-1])])
    return told

listen(media, "stream_bytes", stores("stream"))
listen(media, "copy_bytes", stores("copy"))
for module in (media, datapath):
    listen(module, "order_streams", lambda: events.append(["fence", 0]))

path = pathlib.Path(sys.argv[1]) / "a.pmem"
gap = {"interval": int(sys.argv[2]), "region_frames": 64, "gap_frames": 4}
image.create(path, geometry.plan(2 << 20, parameters=gap, frame_bytes=int(sys.argv[3])))
with Device(path) as device:
    medium_bytes = len(device.mapping.media)
    found = {}
    for name, request in {
        "page": lambda: device.write(b"a" * 4096, 4096),
        "two pages": lambda: device.write(b"b" * 8192, 4096),
        "part": lambda: device.write(b"c" * 512, 4096),
        "part of nothing": lambda: device.write(b"d" * 512, 7 * 4096),
        "zeros": lambda: device.zero(4096, 4096, may_trim=False),
        "trim": lambda: device.trim(4096, 4096),
    }.items():
        events.clear()
        request()
        found[name] = list(events)
print(json.dumps(found))
"""


@pytest.fixture
def stored(tmp_path):
    """What requests store on a medium, by name: [how, bytes], ... and fences."""

    def stored(interval, frame_bytes=PAGE):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(interval), str(frame_bytes)]
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    return stored


def without_fences(events):
    return [event for event in events if event[0] != "fence"]


def test_whole_pages_are_streamed_and_all_else_is_copied(stored):
    found = {name: without_fences(events) for name, events in stored(1 << 20).items()}
    descriptor = ["copy", 64]
    assert found["page"] == [["stream", PAGE], descriptor]
    assert found["two pages"] == [["stream", PAGE], descriptor] * 2
    assert found["part"] == [["copy", 512], descriptor]
    assert found["part of nothing"] == [["stream", PAGE], descriptor]
    assert found["zeros"] == [["stream", PAGE], descriptor]
    assert found["trim"] == [descriptor]


def test_parts_of_a_page_that_lie_in_frames_of_their_own_are_copied(stored):
    assert without_fences(stored(1 << 20, 1024)["page"]) == [["copy", 1024]] * 4 + [["copy", 64]]


@pytest.mark.parametrize("interval", [1 << 20, 1])
def test_a_fence_follows_the_last_stream_of_a_request(stored, interval):
    for name, events in stored(interval).items():
        words = [word for word, _ in events]
        if "stream" in words:
            assert "fence" in words[len(words) - words[::-1].index("stream") :], name


def test_frames_that_move_are_streamed_and_fenced_before_what_follows(stored):
    """The map is switched behind it, and who reads by the new map must see the frame."""
    words = [word for word, _ in stored(1)["part"]]
    moves = [at for at, word in enumerate(words) if word == "stream"]
    assert moves and all(words[at + 1] == "fence" for at in moves)
