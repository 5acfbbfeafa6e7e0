# SPDX-License-Identifier: MIT
"""A table of blocks: wherever a kill falls, an exchange is made or it is not, and the image is whole."""

import random

import numpy as np
import pytest

from pmem_core import choices, frametable, geometry, image, layout, leveling, media, snapshot
from pmem_core.check import check
from pmem_core.device import Device
from pmem_core.errors import UsageError

PAGE = layout.PAGE_BYTES
SWAP = {"interval": 1 << 30, "block_frames": 2, "candidates": 1, "spare_blocks": 3}
TIB = 1 << 40


class Watched(np.ndarray):
    """A table that remembers what it was after each store."""

    def __setitem__(self, index, value):
        super().__setitem__(index, value)
        self.seen.append(np.array(self))


def watched(table):
    """A copy of `table` that remembers."""
    found = table.copy().view(Watched)
    found.seen = []
    return found


def exchange(monkeypatch, state, table, x, y, word=-1, value=0):
    """Exchange x and y as the compiled function does, store by store; the bytes are not copied."""

    def store(array, index, stored):
        array[index] = stored

    plain = getattr(frametable.exchange, "py_func", frametable.exchange)
    note = getattr(frametable._note, "py_func", frametable._note)
    with monkeypatch.context() as patch:
        patch.setattr(media, "table_of", lambda run: table)
        patch.setattr(frametable, "publish", store)
        patch.setattr(frametable, "_note", note)
        for name in ("room", "_reserve_block", "_copy_block"):
            patch.setattr(frametable, name, lambda *arguments: layout.OK)
        assert plain(state, None, None, x, y, word, value) == layout.OK


def held(table):
    """The words that say where blocks are."""
    return table[: len(table) - frametable.REDO_WORDS].tolist()


def finished(state, table):
    """What `finish` makes of a copy of `table`."""
    table = np.array(table)
    frametable.finish(state, table)
    return table


@pytest.mark.parametrize("extra", [0, 2])
def test_kill_between_any_two_stores_leaves_the_exchange_made_or_not(monkeypatch, extra):
    state = np.zeros((), leveling.family.modules["table_swap"].STATE)
    _, table = frametable.plan(state, 40, 2, 3, extra)
    draw, switched = random.Random(65), 0
    for _ in range(20):
        x, y = draw.sample(range(int(state["blocks"])), 2)
        word = len(table) - frametable.REDO_WORDS - 1 if extra else -1
        before, now = held(table), watched(table)
        exchange(monkeypatch, state, now, x, y, word, 17)
        after, made = held(now), False
        assert after != before
        for seen in now.seen:
            assert frametable.table_is_sane(state, seen)
            ended = finished(state, seen)
            made = made or held(ended) == after
            assert held(ended) == (after if made else before) and ended[len(ended) - frametable.REDO_WORDS] == 0
            switched += made and held(seen) != after
            assert np.array_equal(frametable.spare_frames(state, seen), frametable.spare_frames(state, ended))
            # Killed while it is being finished, and finished again.
            again = watched(seen)
            frametable.finish(state, again)
            assert all(np.array_equal(finished(state, half), ended) for half in again.seen)
        assert made
        table = np.array(now)
        places = np.arange(int(state["blocks"])) + table[: int(state["blocks"])]
        spare = frametable.spare_frames(state, table)[::2] // 2
        assert sorted([*places.tolist(), *spare.tolist()]) == list(range(20)), "each place is somebody's, and once"
    assert switched, "no kill fell in a switch"


def test_table_is_sane_up_to_its_bounds_and_no_further():
    state = np.zeros((), leveling.family.modules["table_swap"].STATE)
    _, table = frametable.plan(state, 40, 2, 3, 0)
    every, redo = int(state["blocks"]) + 6, len(table) - frametable.REDO_WORDS
    assert every == 20

    def sane(**words):
        changed = table.copy()
        for word, value in words.items():
            changed[int(word[1:])] = value
        return frametable.table_is_sane(state, changed)

    assert sane()
    for word in (0, every - 1):  # the first place, the last, and one beyond each
        assert sane(**{f"w{word}": -word}) and sane(**{f"w{word}": every - 1 - word})
        assert not sane(**{f"w{word}": -word - 1}) and not sane(**{f"w{word}": every - word})
    for word, well in ((0, True), (redo - 1, True), (-1, False), (redo, False)):
        pair = {f"w{redo}": 1, f"w{redo + 1}": word, f"w{redo + 2}": 0}
        assert sane(**pair) == well, word
    assert not sane(**{f"w{redo}": frametable.REDO_PAIRS + 1}) and not sane(**{f"w{redo}": -1})


def killed_in_exchange(path, stores):
    """Make an image that was killed after `stores` stores of an exchange of blocks 0 and 1; what its device holds."""
    plan = geometry.plan(1 << 20, leveling_name="table_swap", parameters=SWAP)
    image.create(path, plan)
    device = Device(path)
    data = random.Random(65).randbytes(plan.device_bytes)
    device.write(data, 0)
    table, state, bytes_ = device.mapping.table, plan.leveling_state, 2 * plan.info.frame_bytes
    young, old = int(state["blocks"]), int(state["blocks"]) + 3
    first = layout.FRAMES_AT
    for source, target in ((0, young), (1, old)):
        at, to = first + source * bytes_, first + target * bytes_
        device.mapping.media[to : to + bytes_] = device.mapping.media[at : at + bytes_]
    after = {0: young, 1: old - 1, young: 1 - young, old: -old, old + 3: 1}
    redo = len(plan.table) - frametable.REDO_WORDS
    for pair, (word, value) in enumerate(after.items()):
        table[redo + 1 + 2 * pair], table[redo + 2 + 2 * pair] = word, value
    table[redo] = len(after)
    for word in list(after)[:stores]:
        table[word] = after[word]
    del table
    device.abandon()
    return data


@pytest.mark.parametrize("stores", [0, 1, 3, 5])
def test_image_killed_in_an_exchange_is_whole(tmp_path, stores):
    path = tmp_path / "disk.pmem"
    data = killed_in_exchange(path, stores)
    found = snapshot.look(path)
    assert found.session == "killed" and snapshot.check_map(found)[:2] == (True, True)
    report = check(path)
    assert report.clean, report.as_dict()
    with Device(path, read_only=True) as device:
        assert device.read(len(data), 0) == data
    with Device(path) as device:
        assert device.recovery == "killed" and device.read(len(data), 0) == data
        assert device.mapping.table[0] > 0
    with Device(path) as device:
        assert device.recovery == "" and device.read(len(data), 0) == data


@pytest.mark.parametrize("name", ["table_swap", "sampled_swap"])
def test_table_of_a_large_device_stays_small(name):
    """Each commit of moves copies it."""
    for size in (1 << 30, 8 << 30, TIB, choices.SIZE_MAX):
        plan = geometry.plan(size, leveling_name=name)
        assert len(plan.table) <= frametable.BLOCKS_SUITED + frametable.REDO_WORDS + 1
        assert plan.placed_bytes > size * 0.99


def test_too_large_a_table_is_refused():
    with pytest.raises(UsageError, match="block_frames=1: 16 at least"):
        geometry.plan(TIB, leveling_name="table_swap", parameters={"block_frames": 1})
