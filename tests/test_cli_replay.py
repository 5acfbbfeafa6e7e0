# SPDX-License-Identifier: MIT
"""The verb replay: geometries, workloads, traces, figures for people and programs, errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmem_core import cli
from pmem_core.cli import _geometry

SMALL = ("--size", "1M", "--endurance", "200", "--set", "interval=10")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of its own; status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments):
        status = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err

    return run_it


def test_same_command_gives_the_same_figures(run):
    first, second = (json.loads(run("replay", *SMALL, "-w", "zipf", "-j")[1]) for _ in range(2))
    assert first.pop("seconds") > 0 and second.pop("seconds") > 0
    assert first == second and first["ended"] == "death" and 0 < first["normalized_life"] < 1


def test_people_are_told_what_died_when(run):
    status, out, err = run("replay", *SMALL)
    assert (status, err) == (0, "")
    assert "W = 200; W / interval 20" in out and "ended by              death: line" in out
    assert "normalised life" in out and "wear of descriptor" in out


def test_geometry_is_that_of_the_image(run):
    assert run("create", "disk.pmem", "--size", "2M", "--line-bytes", "1024", "--leveling", "none")[0] == 0
    before = {path: path.read_bytes() for path in Path("disk.pmem").rglob("*") if path.is_file()}
    found = json.loads(run("replay", "disk.pmem", "--endurance", "50", "-j")[1])
    assert found["geometry"]["size"] == 2 << 20 and found["geometry"]["line_bytes"] == 1024
    assert found["leveling"]["name"] == "none"
    assert before == {path: path.read_bytes() for path in before}, "an image is only looked at"


def test_geometry_is_not_given_twice(run):
    run("create", "disk.pmem", "--size", "2M")
    status, out, err = run("replay", "disk.pmem", "--line-bytes", "64")
    assert (status, out) == (2, "") and "--line-bytes: the geometry is that of disk.pmem" in err


def test_iolog_is_replayed_pass_by_pass(run):
    lines = ["fio version 2 iolog", "/dev/nbd0 add", "/dev/nbd0 open"]
    lines += [f"/dev/nbd0 write {4096 * page} 4096" for page in (1, 2, 1)] + ["/dev/nbd0 close"]
    Path("log").write_text("\n".join(lines) + "\n")
    found = json.loads(run("replay", *SMALL, "--trace", "log", "--passes", "5", "-j")[1])
    assert found["page_writes"] == 15 and found["ended"] == "source"
    assert found["workload"]["passes"] == 5 and found["workload"]["requests"] == 15


def test_trace_is_replayed_until_death(run):
    Path("log").write_text("fio version 2 iolog\n/dev/nbd0 add\n/dev/nbd0 open\n/dev/nbd0 write 4096 4096\n")
    found = json.loads(run("replay", "--size", "1M", "--leveling", "none", "-e", "200", "--trace", "log", "-j")[1])
    assert found["page_writes"] == 200 and found["ended"] == "death"


def iolog(*lines):
    """Write ./log with these lines of a device."""
    Path("log").write_text("\n".join(["fio version 2 iolog", "/x add", "/x open", *lines]))


def test_what_was_left_out_of_a_trace_is_told(run):
    iolog("/x write 4096 4096", "/x write 4294967296 4096", "/x trim 4294967296 4096", "/x wri")
    replay = ("replay", *SMALL, "--trace", "log", "--passes", "2")
    out = run(*replay)[1]
    assert "left out              4 of 6 requests lie beyond the device\n" in out
    assert "left out              6 bytes of a torn tail\n" in out
    workload = json.loads(run(*replay, "-j")[1])["workload"]
    told = {name: workload[name] for name in ("requests", "requests_read", "beyond_device", "torn_bytes")}
    assert told == {"requests": 2, "requests_read": 6, "beyond_device": 4, "torn_bytes": 6}


@pytest.mark.parametrize("line", ["sync 0 0", "trim 4096 4096", "write 4096 0", "write 1099511627776 4096"])
@pytest.mark.parametrize("writes", ["each", "coalesced"])
def test_trace_that_wears_nothing_is_refused(run, line, writes):
    iolog(f"/x {line}", "/x close\n")
    status, out, err = run("replay", *SMALL, "--descriptor-writes", writes, "--trace", "log")
    assert (status, out) == (2, "")
    assert err == "log: writes nothing within the device of 1007616 bytes: a larger size, or another trace\n"


def test_trace_that_wears_nothing_ends_with_its_passes(run):
    iolog("/x trim 4096 4096", "/x close\n")
    found = json.loads(run("replay", *SMALL, "--trace", "log", "--passes", "2", "-j")[1])
    assert (found["ended"], found["page_writes"], found["workload"]["passes"]) == ("source", 0, 2)


def test_later_deaths_are_listed(run):
    found = json.loads(
        run("replay", *SMALL, "--deaths", "40", "--endurance-kind", "lognormal", "--spread", "0.3", "-j")[1]
    )
    assert found["dead_lines"] >= 40 == len(found["deaths"])
    assert [death["page_writes"] for death in found["deaths"]] == sorted(d["page_writes"] for d in found["deaths"])


def test_no_more_lines_die_than_there_are(run):
    found = json.loads(run("replay", *SMALL, "--deaths", "1e10", "-j")[1])
    assert found["ended"] == "death" and found["dead_lines"] == len(found["deaths"]) == found["geometry"]["lines"]


def test_device_too_large_for_the_memory_is_one_line(run, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr("numpy.zeros", refuse)
    status, out, err = run("replay", *SMALL)
    assert (status, out) == (1, "") and err.startswith("replay: the lines take more memory than this host has: ")


def test_histogram_counts_every_line(run):
    found = json.loads(run("replay", *SMALL, "--histogram", "-j")[1])
    assert sum(lines for _, lines in found["histogram"]["all"]) == found["geometry"]["lines"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--endurance", "many"), "'many' is not a count such as 100000 or 1e5"),
        (("--endurance", "0"), "endurance=0: out of range: 1 to 4294967295"),
        (("--deaths", "0"), "--deaths 0: nothing to wait for: 1 or more"),
        (("--passes", "2"), "--passes: there is no trace"),
        (("-w", "zipf", "--with", "theta"), "--with theta: is no parameter"),
        (("-w", "zipf", "--with", "skew=3"), "zipf: skew: no such parameter: one of theta"),
        (("-w", "uniform", "--with", "theta=3"), "uniform: theta: no such parameter"),
        (("-w", "zipf", "--trace", "log"), "--trace: there is a workload too"),
        (("--deaths", "1e30"), "'1e30' is too large: at most 9223372036854775807"),
        (("--flush-every", "9223372036854775808"), "is too large: at most 9223372036854775807"),
        (("--spread", "nan", "--endurance-kind", "normal"), "spread=nan: out of range"),
    ],
)
def test_request_that_makes_no_sense_is_one_line(run, arguments, told):
    status, out, err = run("replay", *arguments)
    assert (status, out) == (2, "") and told in err and err.count("\n") == 1


def test_trace_that_is_none_is_one_line(run):
    Path("log").write_text("something else\n")
    status, out, err = run("replay", *SMALL, "--trace", "log")
    assert (status, out) == (1, "") and err.startswith("log: ") and err.count("\n") == 1


def test_ctrl_c_gives_the_figures_so_far(tmp_path):
    command = [Path(sys.executable).parent / "pmem-nbd", "replay", "--size", "8M", "--endurance", "4e9", "-j"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        # Not before there is something to tell: it has used a second of processor time behind the imports.
        begun = time.monotonic()
        while time.monotonic() - begun < 120 and _cpu_seconds(process.pid) < 5:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    found = json.loads(out)
    assert process.returncode == 0 and err == ""
    assert found["ended"] == "interrupted" and found["extrapolated"] and found["page_writes"] > 0


def _cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_workloads_of_the_help_are_those_there_are():
    from pmem_core.replay import workloads

    assert _geometry.policies("replay/workloads") == sorted(workloads.family.modules)
