# SPDX-License-Identifier: MIT
"""Every figure of stats against a naive one, the kinds line by line, and looks at an image while it is written."""

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time

import naive
import numpy as np
import pytest

from pmem_core import capacity, geometry, image, layout, leveling, placement, snapshot, stats, wearscan
from pmem_core.counters import Fold
from pmem_core.device import Device
from pmem_core.errors import DamagedImage, NotAnImage
from pmem_core.journal import Journal

PAGE = 4096
KINDS = ("data", "descriptor", "spare")
SMALL = {"start_gap": {"region_frames": 64, "gap_frames": 3, "interval": 3}, "none": {}}


def make(path, size, **options):
    """Create an image of small regions and return its path."""
    options.setdefault("parameters", SMALL.get(options.get("leveling_name", "start_gap"), {}))
    image.create(path, geometry.plan(size, **options))
    return path


def work(device, seed=1, requests=100):
    """Write, trim and zero here and there."""
    random = np.random.default_rng(seed)
    device_bytes = device.plan.device_bytes
    for _ in range(requests):
        count = int(random.integers(1, 3 * PAGE))
        offset = int(random.integers(0, device_bytes - count))
        what = random.integers(0, 10)
        if what == 0:
            device.trim(count, offset)
        elif what == 1:
            device.zero(count, offset)
        else:
            device.write(random.bytes(count), offset)
    device.flush()


def used_bytes(path):
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


def naive_figures(counters):
    """The figures of a list of counters, straight from their definitions."""
    n, total = len(counters), sum(counters)
    if not n:
        return {"lines": 0, "total": 0, "max": 0, "mean": None, "cov": None, "gini": None, "jain": None}
    mean = total / n
    if not total:
        return {"lines": n, "total": 0, "max": 0, "mean": 0, "cov": 0, "gini": 0, "jain": 1}
    differences = sum(
        np.abs(np.asarray(counters, np.int64) - value).sum() * many
        for value, many in zip(*np.unique(counters, return_counts=True), strict=True)
    )
    return {
        "lines": n,
        "total": total,
        "max": max(counters),
        "mean": mean,
        "cov": math.sqrt(sum((x - mean) ** 2 for x in counters) / n) / mean,
        "gini": differences / (2 * n * n * mean),
        "jain": total**2 / (n * sum(x * x for x in counters)),
    }


def expect_close(seen, expected):
    """Equal, but for the rounding of floats."""
    assert set(seen) == set(expected)
    for name, value in expected.items():
        assert seen[name] == (value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)), name


def naive_kinds(path):
    """The kind of every line by the naive placement and the leveling's translation, frame by frame."""
    found = snapshot.look(path)
    plan, info = found.plan, found.plan.info
    placing = naive.PLACEMENTS[info.placement](plan.placed_bytes, info.descriptor_bytes)
    table, state = found.table.tolist(), found.core["leveling"][0]

    def frame_of(frame):
        if info.leveling == "none":
            return frame
        # Start-Gap by the book: the gap is a hole in the ring, and everything has turned a little.
        region, x = divmod(frame, 64)
        word = table[region]
        gap, turned = word >> 32, word & 0xFFFFFFFF
        size = 64 if region < int(state["whole_regions"]) else int(state["last_frames"])
        ring = [(gap + 3 + i) % (size + 3) for i in range(size)]
        return region * 67 + ring[(x + turned) % size]

    kinds = ["spare"] * plan.line_count
    kinds[: 8192 // info.line_bytes] = ["info"] * (8192 // info.line_bytes)

    def mark(placed, kind):
        for at in range(placed, placed + PAGE, info.line_bytes):
            frame, inside = divmod(at, info.frame_bytes)
            kinds[(8192 + frame_of(frame) * info.frame_bytes + inside) // info.line_bytes] = kind

    for page in range(info.page_count):
        mark(placing.pages[page], "data")
    if placing.descriptors is not None:
        for page in {placing.descriptors[page] // PAGE for page in range(info.page_count)}:
            mark(page * PAGE, "descriptor")
    return kinds


def expect_figures(path, seen):
    """Compare what stats says with the naive figures of the wear file."""
    counters, kinds = np.fromfile(path / "wear", "<u4").tolist(), naive_kinds(path)
    by_kind = {kind: [] for kind in (*KINDS, "info")}
    for value, kind in zip(counters, kinds, strict=True):
        by_kind[kind].append(value)
    by_kind["all"] = [value for kind in KINDS for value in by_kind[kind]]
    for kind in (*KINDS, "all"):
        expect_close(seen["wear"][kind], naive_figures(by_kind[kind]))
    assert sum(seen["wear"]["by_cause"].values()) == sum(counters)


OPTIONS = [
    {"placement_name": place, "leveling_name": level, "frame_bytes": frame, "line_bytes": line}
    for place, level, (frame, line) in itertools.product(
        ("interleaved", "linear", "none"),
        ("none", "start_gap"),
        ((4096, 256), (256, 256), (1024, 64), (65536, 4096), (16384, 512)),
    )
]


@pytest.mark.contract
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(value) for value in options.values()))
def test_figures_are_those_of_a_naive_count(tmp_path, options):
    path = make(tmp_path / "a.pmem", 24 << 20 if options["frame_bytes"] > 4096 else 4 << 20, **options)
    with Device(path) as device:
        work(device)
        live = stats.collect(path)
        expect_figures(path, live)
    closed = stats.collect(path)
    expect_figures(path, closed)
    assert live["served"] and not closed["served"]
    assert live["wear"] == closed["wear"] or options["leveling_name"] == "start_gap"
    for seen in (live, closed):
        assert all(seen["invariants"][name] is True for name in ("bijection", "spare_disjoint", "wear_sum", "kinds"))
        assert seen["invariants"]["hottest"] is True


@pytest.mark.contract
@pytest.mark.parametrize("descriptor_bytes", [16, 128, 4096])
@pytest.mark.parametrize("size", [(4 << 20) + PAGE, (4 << 20) + 5 * PAGE, (4 << 20) + 66 * PAGE])
def test_kinds_hold_for_any_descriptor_and_tail(tmp_path, descriptor_bytes, size):
    path = make(tmp_path / "a.pmem", size, descriptor_bytes=descriptor_bytes)
    with Device(path) as device:
        work(device, requests=40)
    expect_figures(path, stats.collect(path))


@pytest.mark.parametrize("policy", sorted(leveling.family.modules))
@pytest.mark.parametrize("place", sorted(placement.family.modules))
@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + PAGE, 300 << 20, 1 << 40])
def test_shares_add_up_to_the_medium(policy, place, size):
    for frame_bytes, line_bytes in ((4096, 256), (256, 64), (65536, 4096)):
        options = {
            "frame_bytes": frame_bytes,
            "line_bytes": line_bytes,
            "leveling_name": policy,
            "placement_name": place,
        }
        if policy == "start_gap" and size < 64 << 20:
            options["parameters"] = SMALL["start_gap"]
        plan = geometry.plan(size, **options)
        shares = capacity.shares(plan)
        assert sum(shares.values()) == size
        assert all(count >= 0 and count % line_bytes == 0 for count in shares.values())
        assert sum(capacity.lines_by_kind(plan).values()) == plan.line_count


def test_host_figures_count_requests(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    with Device(path) as device:
        device.write(bytes(5000), 100)
        device.write(bytes(PAGE), 0)
        device.read(300, 10)
        device.trim(PAGE, 0)
        device.zero(PAGE, PAGE)
        device.flush()
    seen = stats.collect(path)
    expected = {"reads": 1, "writes": 2, "read_bytes": 300, "written_bytes": 9096, "flushes": 1, "trims": 1}
    expected |= {"zeros": 1, "trimmed_bytes": PAGE, "zeroed_bytes": PAGE}
    assert {name: seen["host"][name] for name in expected} == expected
    assert seen["host"]["page_writes"] >= 3


def test_amplification_and_life_follow_from_the_causes(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    fresh = stats.collect(path)
    assert fresh["write_amplification"] is None and fresh["normalized_life"] is None
    with Device(path) as device:
        work(device)
    seen = stats.collect(path)
    cause, all_lines = seen["wear"]["by_cause"], seen["wear"]["all"]
    writes = cause["host"] + cause["descriptor"] + cause["move"]
    assert seen["write_amplification"] == pytest.approx(writes / cause["host"])
    assert all_lines["total"] == writes
    borne = cause["host"] + cause["descriptor"]
    assert seen["normalized_life"] == pytest.approx(borne / (all_lines["lines"] * all_lines["max"]))
    assert cause["move"] == seen["leveling"]["moves"] * PAGE // 256 > 0


def test_keys_are_all_there(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    seen = json.loads(json.dumps(stats.collect(path)))
    figures = {"lines", "total", "max", "mean", "cov", "gini", "jain"}
    assert {"path", "uuid", "size", "device_bytes", "placement", "leveling"} <= set(seen["image"])
    assert all(set(seen["wear"][kind]) == figures for kind in (*KINDS, "all"))
    assert seen["wear"]["line_bytes"] == 256
    assert set(seen["wear"]["by_cause"]) == {"host", "descriptor", "move", "info"}
    assert {"name", "moves", "parameters"} <= set(seen["leveling"])
    assert {"bijection", "wear_sum", "spare_disjoint"} <= set(seen["invariants"])
    assert {"checksum_errors", "healed"} <= set(seen["errors"])
    assert {"served", "pid", "write_amplification", "normalized_life", "retired_pages"} <= set(seen)


# ---- counters of any size ----


def put_wear(path, counters, worn=None):
    """Write the wear file as it would be after much use, and the totals that go with it."""
    np.asarray(counters, "<u4").tofile(path / "wear")
    plan = image.load_geometry(path)
    dtype = layout.core_dtype(plan.placement.STATE, plan.leveling.STATE)
    with (path / "state").open("r+b") as file:
        core = np.frombuffer(os.pread(file.fileno(), dtype.itemsize, 4096), dtype).copy()
        core["tally"]["worn"] = [int(sum(counters)) if worn is None else worn, 0, 0, 0]
        core["tally"]["hottest"] = max(counters)
        os.pwrite(file.fileno(), core.tobytes(), 4096)


@pytest.mark.contract
def test_large_counters_are_counted_exactly(tmp_path):
    path = make(tmp_path / "a.pmem", 1 << 20)
    random = np.random.default_rng(5)
    counters = (random.pareto(0.5, 4096) * 100).clip(0, 2**32 - 1).astype(np.uint32).tolist()
    counters[100:104] = [65535, 65536, 65537, 2**32 - 1]
    put_wear(path, counters)
    seen = stats.collect(path, histogram=True)
    expect_figures(path, seen)
    values, counts = np.unique(counters[32:], return_counts=True)
    assert seen["histogram"]["all"] == np.stack([values, counts], axis=1).tolist()
    assert seen["invariants"]["wear_sum"] is True


@pytest.mark.contract
def test_a_scan_in_chunks_is_the_same(tmp_path, monkeypatch):
    path = make(tmp_path / "a.pmem", 4 << 20, line_bytes=64)
    with Device(path) as device:
        work(device)
    fold = Fold(3, 7)
    whole = stats.collect(path, fold=fold, histogram=True)
    monkeypatch.setattr("pmem_core.counters.CHUNK_LINES", 1024)
    parts = stats.collect(path, fold=fold, histogram=True)
    assert {**parts, "time": 0} == {**whole, "time": 0}


@pytest.mark.parametrize("counters", [[0], [7], [5] * 9, [0, 0, 9], [1, 2, 3, 4, 100], list(range(1000))])
def test_fairness_follows_its_formulas(counters):
    pairs = np.unique(np.array(counters, np.int64), return_counts=True)
    expect_close(stats.figures(*pairs), naive_figures(counters))
    curve = stats.lorenz(*pairs, points=len(counters) + 1)
    total = sum(counters)
    expected = (
        [(i / len(counters), sum(sorted(counters)[:i]) / total) for i in range(len(counters) + 1)] if total else []
    )
    assert np.allclose(curve, expected)


def test_no_lines_have_no_figures():
    none = np.zeros(0, np.int64)
    assert stats.figures(none, none) == naive_figures([])


# ---- invariants ----


def test_lost_counts_break_the_wear_sum(tmp_path):
    path = make(tmp_path / "a.pmem", 1 << 20)
    counters = [1] * 4096
    put_wear(path, counters, worn=4097)
    seen = stats.collect(path)
    assert seen["invariants"]["wear_sum"] is False
    put_wear(path, counters)
    assert stats.collect(path)["invariants"]["wear_sum"] is True


def test_a_broken_map_is_found(tmp_path, monkeypatch):
    path = make(tmp_path / "a.pmem", 4 << 20)
    for limit in (1 << 24, 256):  # the whole map, and windows of it
        monkeypatch.setattr(snapshot, "FRAMES_MAX", limit)
        monkeypatch.setattr(snapshot, "WINDOW_FRAMES", 64)
        found = snapshot.look(path)
        assert snapshot.check_map(found)[:2] == (True, True)
        found.table[2] = 10 << 32 | 66  # turned further than the ring is long: two frames meet
        assert False in snapshot.check_map(found)[:2]


@pytest.mark.parametrize("seed", range(20))
def test_frames_compared_in_one_pass_are_those_that_sets_find(seed):
    """Ascending arrays with at most a few equal neighbours, and frames in both, against counting."""
    rng = np.random.default_rng(seed)
    used, free = (np.sort(rng.integers(0, 60, int(size))) for size in rng.integers(0, 12, 2))
    found = np.zeros(3, np.int64)
    wearscan.compare_frames(used, free, found)
    again = [len(frames) - len(set(frames.tolist())) for frames in (used, free)]
    both = sum(frame in set(free.tolist()) for frame in used.tolist())
    assert found.tolist() == [again[0], 0, again[1] + both]


def test_frames_that_descend_are_found():
    found = np.zeros(3, np.int64)
    wearscan.compare_frames(np.array([3, 2]), np.array([9, 8, 10]), found)
    assert found.tolist() == [1, 0, 1]


def test_after_a_power_cut_the_sum_cannot_be_known(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    device = Device(path)
    work(device)
    device.abandon()
    assert stats.collect(path)["session"] == "killed"
    journal = Journal(path / "journal")
    session = journal.session
    journal.begin_session({key: value for key, value in session.items() if key != "open"} | {"boot": "another"})
    journal.close()
    for state in ("power cut", "closed"):
        seen = stats.collect(path)
        assert seen["session"] == state
        assert seen["invariants"]["wear_sum"] is None and "power cut" in seen["invariants_notes"]["wear_sum"]
        assert seen["invariants"]["bijection"] is True
        Device(path).close()


def test_after_a_kill_the_figures_are_exact(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    device = Device(path)
    work(device)
    before = stats.collect(path)
    device.abandon()
    after = stats.collect(path)
    assert after["session"] == "killed" and not after["served"]
    assert after["wear"] == before["wear"] and after["host"] == before["host"]
    assert after["invariants"]["wear_sum"] is True


# ---- a look disturbs nobody ----


def contents(path):
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_nothing_is_written(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    with Device(path) as device:
        work(device, requests=50)
        before = contents(path)
        stats.collect(path)
        assert contents(path) == before
    before = contents(path)
    stats.collect(path, fold=Fold(4, 4), histogram=True)
    assert contents(path) == before


def test_live_figures_while_a_thread_writes(tmp_path):
    path = make(tmp_path / "a.pmem", 8 << 20)
    done, failed = threading.Event(), []

    def write():
        try:
            seed = 0
            while not done.is_set():
                work(device, seed, 20)
                seed += 1
        except BaseException as error:
            failed.append(error)

    with Device(path) as device:
        thread = threading.Thread(target=write)
        thread.start()
        seen = [stats.collect(path) for _ in range(30)]
        done.set()
        thread.join()
    assert not failed
    expect_growing(seen)
    assert seen[-1]["pid"] == os.getpid()


WRITER = """
import sys, pathlib
from pmem_core import housekeeping
from pmem_core.device import Device
with Device(pathlib.Path(sys.argv[1])) as device:
    print("ready", flush=True)
    keeper = housekeeping.Housekeeper(device)
    page = 0
    while page < 10**9:
        offset = page * 7919 * 4096 % (device.plan.device_bytes - 4096) // 512 * 512
        device.write(page.to_bytes(8, "little") * 512, offset)
        page += 1
"""


def test_live_figures_while_a_process_writes(tmp_path):
    path = make(tmp_path / "a.pmem", 64 << 20)
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "ready\n"
            while not stats.collect(path)["host"]["writes"]:
                assert writer.poll() is None, "the writer ended before it wrote"
                time.sleep(0.05)
            seen = []
            for _ in range(30):
                seen.append(stats.collect(path))
                time.sleep(0.02)
        finally:
            writer.kill()
    expect_growing(seen)
    assert seen[-1]["pid"] == writer.pid
    killed = stats.collect(path)
    assert killed["session"] == "killed"
    assert killed["invariants"]["wear_sum"] is True


def expect_growing(seen):
    """Figures of a device being written only grow, and no invariant breaks."""
    assert all(figures["served"] for figures in seen)
    for figures in seen:
        assert all(holds is not False for holds in figures["invariants"].values()), figures["invariants"]
        total = sum(figures["wear"][kind]["total"] for kind in KINDS)
        assert total == figures["wear"]["all"]["total"]
    for earlier, later in itertools.pairwise(seen):
        assert earlier["host"]["writes"] <= later["host"]["writes"]
        assert earlier["wear"]["all"]["total"] <= later["wear"]["all"]["total"]
    assert seen[0]["host"]["writes"] < seen[-1]["host"]["writes"]


@pytest.mark.parametrize("options", [{}, {"placement_name": "linear", "leveling_name": "none", "parameters": {}}])
def test_a_sparse_tebibyte_costs_little(tmp_path, options):
    path = make(tmp_path / "a.pmem", 1 << 40, **{"parameters": {}, **options})
    with Device(path) as device:
        pages = device.plan.info.page_count
        for page in range(0, pages, pages // 200):
            device.write(b"\x01" * PAGE, page * PAGE)
        stats.collect(path)  # compiles
        before = used_bytes(path)
        begun = time.process_time()
        seen = stats.collect(path, fold=Fold(8, 32))
        assert time.process_time() - begun < 2
        assert used_bytes(path) <= before + (1 << 16)
    assert seen["wear"]["all"]["lines"] == (1 << 40) // 256 - 32
    assert seen["wear"]["data"]["total"] == seen["wear"]["by_cause"]["host"]
    assert seen["wear"]["descriptor"]["total"] == seen["wear"]["by_cause"]["descriptor"]
    assert seen["invariants"]["bijection"] is True and seen["invariants"]["wear_sum"] is True
    assert seen["invariants"]["bijection_frames"] < (1 << 40) // PAGE
    assert "windows" in seen["invariants_notes"]["bijection"]


# ---- the heat map ----


@pytest.mark.contract
@pytest.mark.parametrize("fold", [(1, 1, 0), (3, 7, 0), (4, 65, 65), (2, 13, 65), (5, 64, 65), (1, 3, 2)])
def test_heat_map_is_a_naive_fold(tmp_path, fold):
    path = make(tmp_path / "a.pmem", 4 << 20)
    with Device(path) as device:
        work(device)
    rows, columns, stripe = fold
    counters = np.fromfile(path / "wear", "<u4")[32:].tolist()
    pages = len(counters) // 16
    cells = [[[] for _ in range(columns)] for _ in range(rows)]
    for page in range(pages):
        if stripe:
            cell = cells[page * rows // pages][page % stripe * columns // stripe]
        else:
            row, column = divmod(page * rows * columns // pages, columns)
            cell = cells[row][column]
        cell += counters[page * 16 : page * 16 + 16]
    heat = stats.collect(path, fold=Fold(*fold))["heat_map"]
    assert heat["max"] == [[max(cell, default=0) for cell in row] for row in cells]
    assert np.allclose(heat["mean"], [[sum(cell) / max(len(cell), 1) for cell in row] for row in cells])


def test_stripe_shows_the_descriptors_as_a_column(tmp_path):
    path = make(tmp_path / "a.pmem", 8192 + 65 * 20 * PAGE, leveling_name="none")
    with Device(path) as device:
        for page in range(device.plan.info.page_count):
            device.write(b"\x01" * PAGE, page * PAGE)
    heat = stats.collect(path, fold=Fold(4, 65, 65))["heat_map"]
    assert [row[0] for row in heat["max"]] == [4] * 4  # four descriptors of 64 bytes in a line of 256
    assert all(row[1:] == [1] * 64 for row in heat["max"])


# ---- what is no image ----


def test_another_folder_is_no_image(tmp_path):
    with pytest.raises(NotAnImage, match="no file 'media'"):
        stats.collect(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    path = make(tmp_path / "a.pmem", 1 << 20)
    (path / "wear").unlink()
    with pytest.raises(DamagedImage, match="'wear' is missing"):
        stats.collect(path)


def test_a_damaged_state_file_costs_nothing(tmp_path):
    path = make(tmp_path / "a.pmem", 4 << 20)
    with Device(path) as device:
        work(device)
    before, medium = stats.collect(path), (path / "media").read_bytes()
    (path / "state").write_bytes(b"nonsense")
    after = stats.collect(path)
    assert after["wear"] == before["wear"] and after["host"] == before["host"]
    assert (path / "media").read_bytes() == medium


def test_stalls_are_accounted_where_the_leveling_knows_of_them(tmp_path):
    """51.84 µs a migration; each moves two blocks."""
    path = make(tmp_path / "a.pmem", 8 << 20, leveling_name="optane", parameters={"threshold": 32, "spare_blocks": 1})
    with Device(path) as device:
        assert stats.collect(path)["leveling"]["stall_seconds"] == 0
        for _ in range(100):
            device.write(bytes(PAGE), 0)
        live = stats.collect(path)["leveling"]
    migrations = live["moves"] / 32
    assert migrations >= 20 and live["stall_seconds"] == pytest.approx(migrations * 51.84e-6)
    assert stats.collect(path)["leveling"] == live
    other = make(tmp_path / "b.pmem", 4 << 20)
    assert "stall_seconds" not in stats.collect(other)["leveling"]


def test_map_of_a_served_image_is_read_between_two_moves(tmp_path, monkeypatch):
    path, real, turns = make(tmp_path / "disk.pmem", 1 << 20), snapshot._read_core, []
    with Device(path) as device:
        device.write(bytes(9 * PAGE), 0)
        moves, gap = int(device.mapping.core["tally"]["moves"][0]), int(device.mapping.table[0])

        def read_core(fd, plan):
            if 0 < len(turns) < 3:  # after the table was read: a move ends
                device.mapping.core["tally"]["moves"] += 1
                device.mapping.table[0] -= 1 << 32
            turns.append(1)
            return real(fd, plan)

        monkeypatch.setattr(snapshot, "_read_core", read_core)
        found = snapshot.look(path)
        assert found.session == "served" and len(turns) > 3
        assert (int(found.core["tally"]["moves"][0]), int(found.table[0])) == (moves + 2, gap - (2 << 32))
