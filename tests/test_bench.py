# SPDX-License-Identifier: MIT
"""scripts/bench: what it makes of what it measured, with made-up rounds; and one run of it, as small as can be."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import needs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from benchlib import compare, figures, peers, records, tables, workloads  # noqa: E402

DEEP = "randwrite 4k depth 16"


def figure(*rates, cpu=1000.0, p99=50_000.0):
    """The figures of one peer whose throughput in each round is given."""
    constant = {"cpu_ns": cpu, "p50_ns": 10_000.0, "p99_ns": p99}
    lists = {key: [value] * len(rates) for key, value in constant.items()}
    return {"iops": list(rates), "bytes_per_s": [rate * 4096 for rate in rates], **lists}


def by_what(lines):
    return {line["what"]: line for line in lines}


# --- figures and bars -------------------------------------------------------------------------------------------------


def test_summary_is_the_median_and_the_spread_of_the_rounds():
    one = figures.summary({DEEP: {"pmem": figure(100.0, 90.0, 120.0)}})[DEEP]["pmem"]
    assert one["iops"] == 100.0 and one["rounds"] == 3
    assert one["spread"] == pytest.approx(0.3)


def test_ratio_is_taken_round_by_round():
    """A machine that is twice as slow in one round slows both, and the ratio does not see it."""
    rounds = {DEEP: {"memory": figure(100.0, 50.0, 100.0), "pmem": figure(80.0, 40.0, 80.0)}}
    assert figures.throughput_ratio(rounds, DEEP, "pmem", "memory") == pytest.approx(0.8)


def test_bar_of_one_set_is_met_where_that_of_the_other_is_not():
    rounds = {DEEP: {"memory": figure(100.0), "pmem@tmpfs": figure(90.0)}}
    (line,) = figures.judge(rounds, {}, {})
    assert line["figure"] == pytest.approx(0.9)
    assert figures.met(line, figures.FLOOR) is True and figures.met(line, figures.C) is False


def test_set_without_a_bar_has_no_verdict():
    rounds = {"randread 4k depth 1": {"memory": figure(100.0), "pmem": figure(96.0)}}
    (line,) = figures.judge(rounds, {}, {})
    assert figures.met(line, figures.FLOOR) is None and figures.met(line, figures.C) is True


def test_depth_1_is_not_taken_for_depth_16():
    rounds = {"randread 4k depth 1": {"bytearray": figure(100.0), "pmem": figure(96.0)}}
    assert figures.judge(rounds, {}, {}) == []


def test_file_is_compared_on_the_same_filesystem():
    rounds = {"randwrite 4k flush": {"file": figure(10.0), "file@tmpfs": figure(50.0), "pmem@tmpfs": figure(45.0)}}
    lines = figures.judge(rounds, {}, {})
    assert [(line["what"], line["figure"]) for line in lines] == [
        ("randwrite 4k flush: pmem@tmpfs / file@tmpfs", pytest.approx(0.9))
    ]


def test_four_connections_are_held_to_one_of_them():
    one, four = "randwrite 4k depth 4", "randwrite 4k 4 connections"
    rounds = {one: {"pmem": figure(100.0), "memory": figure(100.0)}, four: {"pmem": figure(99.0)}}
    (line,) = figures.judge(rounds, {}, {})
    assert line["figure"] == pytest.approx(0.99) and figures.met(line, figures.C) is False


def test_four_connections_are_shown_beside_one_as_deep_as_all_of_them_for_everybody():
    four = "randwrite 4k 4 connections"
    peers = {"pmem": figure(100.0), "file": figure(200.0)}
    rounds = {DEEP: peers, four: {"pmem": figure(50.0), "file": figure(60.0)}}
    lines = figures.judge(rounds, {}, {})
    assert {line["what"]: (line["figure"], line["bars"]) for line in lines} == {
        f"{four}: pmem / one of depth 16": (pytest.approx(0.5), {}),
        f"{four}: file / one of depth 16": (pytest.approx(0.3), {}),
    }


def test_large_device_is_held_to_a_small_one():
    rates = {"1 GiB": [100, 100], "1 TiB": [81, 79]}
    scale = {name: {"randwrite_iops": found, "randread_iops": found} for name, found in rates.items()}
    lines = figures.judge({}, {}, scale)
    assert [line["figure"] for line in lines] == [pytest.approx(0.8)] * 2
    assert all(figures.met(line, figures.C) for line in lines)


def test_time_over_its_bar_is_not_met():
    started = {"pmem": {"start_s": 1.6}}
    (line,) = figures.judge({}, started, {})
    assert figures.met(line, figures.FLOOR) is False


def test_other_commit_is_held_to_no_bar():
    assert figures.judge({DEEP: {"memory": figure(100.0), "pmem:rev=abc": figure(10.0)}}, {}, {}) == []


# --- compare ----------------------------------------------------------------------------------------------------------


def test_interval_is_students():
    # By hand: the mean of 1 to 5 is 3, its standard error sqrt(2.5 / 5), and t at 0.995 with 4 degrees is 4.604.
    middle, low, high = compare.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert middle == 3.0
    assert high - middle == pytest.approx(4.604 * math.sqrt(0.5)) == middle - low


def test_interval_of_two_sets_is_welchs():
    # By hand: errors 0.5 and 2, so 2.5² / (0.25 / 4 + 4 / 4) = 5.88 degrees, rounded down to 5.
    middle, low, _ = compare.interval([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0])
    assert middle == -3.0
    assert middle - low == pytest.approx(4.032 * math.sqrt(2.5))


def test_one_round_says_nothing():
    assert not compare.change(DEEP, "pmem", "bytes_per_s", [math.log(2)]).differs


def twins(ours, theirs, **more):
    rounds = {DEEP: {"pmem@tmpfs": figure(*ours, **more), "pmem:rev=abc@tmpfs": figure(*theirs)}}
    return {one.key: one.verdict for one in compare.with_twins(rounds, "abc")}


def test_slower_is_named_though_rounds_differ_more_than_twins():
    assert twins([90.0, 45.0, 181.0, 89.0], [100.0, 50.0, 200.0, 100.0])["bytes_per_s"] == "slower"
    assert twins([100.0, 50.0, 200.0, 100.0], [90.0, 45.0, 181.0, 89.0])["bytes_per_s"] == "faster"


def test_noise_is_not_named():
    assert twins([90.0, 120.0, 80.0, 95.0], [100.0, 100.0, 100.0, 100.0])["bytes_per_s"] == ""


def test_difference_of_a_hair_is_not_named():
    assert twins([102.0] * 4, [100.0] * 4)["bytes_per_s"] == ""


def test_more_processor_time_is_slower():
    assert twins([100.0] * 4, [100.0] * 4, cpu=1200.0)["cpu_ns"] == "slower"


def test_record_of_a_faster_machine_makes_nothing_slower():
    now = {DEEP: {"memory": figure(100.0, 101.0, 99.0), "pmem": figure(80.0, 81.0, 80.0)}}
    then = {DEEP: {"memory": figure(300.0, 297.0, 302.0), "pmem": figure(240.0, 239.0, 241.0)}}
    verdicts = [one.verdict for one in compare.with_record(now, then)]
    assert verdicts == ["", ""]
    then[DEEP]["pmem"] = figure(300.0, 301.0, 299.0)
    assert {one.key: one.verdict for one in compare.with_record(now, then)}["bytes_per_s"] == "slower"


@pytest.mark.parametrize("spec", ["pmem", "pmem@tmpfs", "pmem:leveling=none:-t=4@/x"])
def test_twin_differs_in_its_commit_only(spec):
    twin = compare.twin(spec, "abc")
    assert peers.revisions([spec, twin]) == ["abc"]
    assert twin.replace(":rev=abc", "") == spec and not figures.is_ours(twin)


# --- rounds and records -----------------------------------------------------------------------------------------------


def test_order_of_a_round_favours_nobody():
    orders = [workloads.in_turn("abc", number) for number in range(6)]
    assert sorted(order[0] for order in orders) == sorted("abcabc")
    follows = [list(order).index("b") > list(order).index("a") for order in orders]
    assert follows.count(True) == 3


def test_record_comes_back_as_it_was(tmp_path):
    report = {"machine": {"commit": "0123456789"}, "rounds": {DEEP: {"pmem": figure(1.0, 2.0)}}}
    path = records.save(report, tmp_path)
    assert path == tmp_path / "0123456789.json"
    assert records.load(str(path)) == report


@needs("nbdkit", "fio", "qemu-nbd", "libnbd")
def test_bench_measures_and_writes_what_it_says():
    # A short name, because a socket's path may have 107 bytes and no more.
    with tempfile.TemporaryDirectory(prefix="pn-") as folder:
        measure_in(Path(folder))


def measure_in(folder):
    words = ["--rounds", "2", "--seconds", "0.05", "--size", "16M", "--peers", "memory,file", "--sections", "rounds"]
    name = "randread 4k depth 16"
    files = ["--json", folder / "record.json", "--markdown", folder / "page.md", "--dir", folder]
    bench = [sys.executable, ROOT / "scripts" / "bench.py", *words, "--workloads", name, *files]
    before = set((ROOT / "docs").rglob("*"))
    told = subprocess.run(bench, capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(folder)})
    assert told.returncode == 0, told.stdout + told.stderr
    record = json.loads((folder / "record.json").read_text())
    assert list(record["rounds"]) == [name]
    rates = record["rounds"][name]["file"]["iops"]
    assert len(rates) == 2 and min(rates) > 0
    page = (folder / "page.md").read_text()
    assert page == tables.markdown(record) and "load before the run" in page
    assert {path.name for path in folder.iterdir()} == {"record.json", "page.md"}, "something is left behind"
    assert set((ROOT / "docs").rglob("*")) == before, "a run of a part is no record"
