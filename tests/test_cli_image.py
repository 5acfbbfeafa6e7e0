# SPDX-License-Identifier: MIT
"""The verbs create, info and stats, as a person and as a program sees them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmem_core import geometry, image
from pmem_core.cli import _geometry
from pmem_core.cli import image as verbs
from pmem_core.cli import stats as stats_verb
from pmem_core.device import Device
from pmem_core.errors import UsageError

COMMAND = Path(sys.executable).parent / "pmem-nbd"
PAGE = 4096


@pytest.fixture
def run(command, tmp_path, monkeypatch):
    """Run the command in a folder of its own; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PMEM_NBD_DEBUG", raising=False)
    return command


@pytest.fixture
def disk(run):
    """An image of 16 MiB that has been used a little."""
    assert run("create", "disk.pmem", "--size", "16M", "--set", "region_frames=256", "--set", "gap_frames=4")[0] == 0
    with Device(Path("disk.pmem")) as device:
        for page in range(500):
            device.write(b"\x01" * PAGE, page * PAGE)
            device.write(b"\x01" * PAGE, 0)
    return Path("disk.pmem")


# ---- create ----


def test_create_says_what_was_made(run):
    status, out, err = run("create", "disk.pmem", "--size", "1G", "--placement", "linear", "--leveling", "none")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    assert out.startswith("disk.pmem: 1 GiB medium, ") and out.endswith(" for the client (98.24%), linear, none\n")


def test_every_option_reaches_the_image(run):
    options = [
        "--placement",
        "interleaved",
        "--leveling",
        "start_gap",
        "--descriptor-bytes",
        "128",
        "--frame-bytes",
        "1K",
    ]
    options += ["--descriptor-writes", "coalesced", "--no-checksums", "--line-bytes", "64", "--set", "interval=7"]
    status, out, _ = run("create", "disk.pmem", "--size", "8M", *options, "--set", "gap_frames=0x10", "-j")
    assert status == 0
    made = json.loads(out)
    plan = image.load_geometry(Path("disk.pmem"))
    assert plan.info.parameters["leveling"] == {
        **{name: spec[0] for name, spec in plan.leveling.PARAMETERS.items()},
        "interval": 7,
        "region_frames": 4096,
        "gap_frames": 16,
    }
    info = plan.info
    assert (info.size, info.descriptor_bytes, info.frame_bytes, info.line_bytes) == (8 << 20, 128, 1024, 64)
    assert (info.descriptor_writes, info.checksums) == ("coalesced", False)
    assert made["image"]["parameters"] == info.parameters
    assert run("info", "disk.pmem", "-j")[1] == out


def test_policies_are_found_by_their_files():
    for family in (geometry.placement, geometry.leveling):
        assert _geometry.policies(family.__name__.rpartition(".")[2]) == sorted(family.family.modules)


REFUSED = {
    "size 0": (["--size", "0"], "is zero"),
    "negative size": (["--size", "-5"], "is not a size"),
    "absurd size": (["--size", "9999999999T"], "too large"),
    "larger than any host": (["--size", "4E"], "not possible: 1 to 64T"),
    "unaligned size": (["--size", "5000"], "a multiple of 4096, such as 8192"),
    "no size": ([], "missing option"),
    "words for a size": (["--size", "big"], "is not a size"),
    "too small": (["--size", "4K"], "too small"),
    "too small for no leveling": (["--size", "4K", "--leveling", "none"], "for leveling none: a larger size"),
    "unknown placement": (["--size", "1G", "--placement", "diagonal"], "'interleaved', 'linear', 'none'"),
    "unknown leveling": (["--size", "1G", "--leveling", "wishful"], "no such policy: one of none, "),
    "unknown parameter": (["--size", "1G", "--set", "foo=1"], "one of interval, region_frames, gap_frames"),
    "parameter of nothing": (["--size", "1G", "--leveling", "none", "--set", "foo=1"], "no parameters"),
    "parameter without value": (["--size", "1G", "--set", "interval"], "name=value"),
    "parameter twice": (["--size", "1G", "--set", "interval=1", "--set", "interval=2"], "set before"),
    "parameter in words": (["--size", "1G", "--set", "interval=often"], "not a whole number"),
    "parameter out of range": (["--size", "1G", "--set", "interval=0"], "out of range: 1 to"),
    "parameter not a power of two": (["--size", "1G", "--set", "region_frames=1000"], "a power of two"),
    "odd descriptor": (["--size", "1G", "--descriptor-bytes", "100"], "a power of two from 16 to 4096"),
    "large frame": (["--size", "1G", "--frame-bytes", "128K"], "a power of two from 256 to 65536"),
    "line above frame": (["--size", "1G", "--frame-bytes", "256", "--line-bytes", "4K"], "larger than a frame"),
    "unknown writes": (["--size", "1G", "--descriptor-writes", "never"], "'each', 'coalesced'"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_create_refuses_in_one_line(run, options, words):
    status, out, err = run("create", "disk.pmem", *options)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and words in err and "Traceback" not in err
    assert list(Path().iterdir()) == []


def test_create_makes_nothing_where_a_link_leads_nowhere(run, monkeypatch):
    monkeypatch.setattr(image, "fill", None)
    Path("disk.pmem").symlink_to("nowhere")
    status, _, err = run("create", "disk.pmem", "--size", "1G")
    assert status == 2 and err == "disk.pmem: exists already: a new name, or remove it first\n"


NOTHING_DONE = {
    "stats d.pmem --no-heat-map --by mean": "--by: no map is shown",
    "stats d.pmem -j --by max": "--by: no map is shown",
    "replay --histogram": "--histogram: is a part of the JSON: -j",
    "replay --spread 0.2": "--spread: all lines are the same",
    "replay --trace-format fio": "--trace-format: there is no trace",
    "log d.log --from 5 --to 2": "--from 5 --to 2: no entry lies between",
    "log d.log --mark here --to 2": "--to: nothing is listed",
    "replay-log d.log --find --fsck true": "--fsck: nothing is replayed",
    "replay-log d.log --find --check 3": "--check: nothing is replayed",
}


@pytest.mark.parametrize("line", NOTHING_DONE)
def test_option_that_would_do_nothing_is_refused(run, line):
    status, out, err = run(*line.split())
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith(NOTHING_DONE[line])
    assert list(Path().iterdir()) == []


def test_create_keeps_what_is_there(run, disk):
    before = (disk / "media").stat().st_mtime_ns
    status, out, err = run("create", disk, "--size", "1G")
    assert (status, out) == (2, "") and err.count("\n") == 1 and "exists already" in err
    assert (disk / "media").stat().st_mtime_ns == before


def test_create_wants_a_folder(run):
    status, out, err = run("create", "nowhere/disk.pmem", "--size", "1G")
    assert (status, out) == (1, "") and "no such folder" in err and err.count("\n") == 1


def test_create_makes_no_image_within_an_image(run, disk):
    status, out, err = run("create", disk / "inner.pmem", "--size", "16M")
    assert (status, out) == (2, "") and "lies within the image" in err and err.count("\n") == 1
    assert not (disk / "inner.pmem").exists()


def test_parameters_are_whole_numbers():
    assert _geometry.parse_parameters(("a=1", " b = 0x10 ")) == {"a": 1, "b": 16}
    with pytest.raises(UsageError):
        _geometry.parse_parameters(("=1",))


def test_a_tebibyte_costs_little(run):
    assert run("create", "disk.pmem", "--size", "1T")[0] == 0
    used = json.loads(run("info", "disk.pmem", "-j")[1])["files"]
    assert used["media"]["bytes"] == 1 << 40
    assert sum(file["used_bytes"] for file in used.values()) < 64 << 20


# ---- info ----


@pytest.mark.parametrize("place", ["interleaved", "linear", "none"])
@pytest.mark.parametrize("level", ["none", "start_gap"])
def test_info_explains_every_byte(run, place, level):
    assert run("create", "disk.pmem", "--size", "100M", "--placement", place, "--leveling", level)[0] == 0
    seen = json.loads(run("info", "disk.pmem", "-j")[1])
    capacity = seen["capacity"]
    assert sum(capacity["bytes"].values()) == capacity["medium_bytes"] == 100 << 20
    assert capacity["bytes"]["data"] == capacity["device_bytes"] == seen["image"]["device_bytes"]
    assert bool(capacity["bytes"]["descriptor"]) is (place != "none")
    assert bool(capacity["bytes"]["spare"]) is (level != "none")
    assert seen["image"]["linux"] is (place == "linear" and level == "none")
    status, out, err = run("info", "disk.pmem")
    assert (status, err) == (0, "")
    for word in (
        place,
        level,
        seen["image"]["uuid"],
        "pages the client sees",
        "100.000%",
        str(capacity["device_bytes"]),
    ):
        assert word in out
    assert out.isascii()


@pytest.mark.parametrize("verb", ["info", "stats", "check"])
def test_empty_name_is_not_the_folder_one_is_in(run, verb):
    """As of a variable that is not set: check --repair "$IMAGE"."""
    status, out, error = run(verb, "")
    assert (status, out) == (2, "") and "is empty" in error


def test_stats_for_programs_wraps_no_line(run, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    path = tmp_path / ("long" * 30) / "disk.pmem"
    path.parent.mkdir()
    image.create(path, geometry.plan(1 << 20))
    out = run("stats", path, "--no-heat-map")[1]
    assert out.startswith(f"{path}: 1 MiB, interleaved, start_gap, closed\n")


def test_info_tells_the_last_events(run, disk):
    for _ in range(3):
        Device(disk).close()
    seen = json.loads(run("info", disk, "-j")[1])
    assert [event["event"] for event in seen["events"]] == ["closed", "opened", "closed", "opened", "closed"]
    assert (seen["session"], seen["served"], seen["retired_pages"]) == ("closed", False, 0)
    with Device(disk):
        live = json.loads(run("info", disk, "-j")[1])
        assert (live["session"], live["served"], live["pid"]) == ("served", True, os.getpid())
        # A server's journal is not disturbed: a copy is read.
        assert [event["event"] for event in live["events"]][-2:] == ["closed", "opened"] and live["retired_pages"] == 0
        assert f"served by process {os.getpid()}" in run("info", disk)[1]


# ---- stats ----


def test_stats_for_people(run, disk):
    status, out, err = run("stats", disk)
    assert (status, err) == (0, "")
    for word in (
        "data",
        "descriptor",
        "spare",
        "all",
        "hottest",
        "Gini",
        "Jain",
        "CoV",
        "write amplification",
        "moved",
    ):
        assert word in out
    for word in ("by cause  host 16000", "normalised life", "the medium; a cell is"):
        assert word in out
    assert out.isascii() and "invariant" not in out


def test_stats_is_json_and_nothing_else(run, disk):
    status, out, err = run("stats", disk, "-j")
    assert (status, err) == (0, "")
    seen = json.loads(out)
    assert seen["host"]["writes"] == 1000 and "heat_map" not in seen and "histogram" not in seen
    seen = json.loads(run("stats", disk, "-j", "--histogram", "--stripe")[1])
    assert (
        seen["heat_map"]["stripe"] == 65
        and sum(lines for _, lines in seen["histogram"]["all"]) == (16 << 20) // 256 - 32
    )


def test_pictures_are_chosen(run, disk):
    assert "log scale" not in run("stats", disk, "--no-heat-map")[1]
    out = run("stats", disk, "--histogram")[1]
    assert "lines, log scale" in out and "the medium" not in out
    out = run("stats", disk, "--histogram", "--heat-map", "--by", "mean")[1]
    assert "lines, log scale" in out and "a cell is the mean" in out
    assert "folded at 65 pages" in run("stats", disk, "--stripe")[1]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_stats_fits_the_terminal(run, disk, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for options in ((), ("--stripe",), ("--histogram",)):
        status, out, _ = run("stats", disk, *options)
        assert status == 0
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width


def test_map_of_an_image_smaller_than_the_map(run):
    assert run("create", "disk.pmem", "--size", "20K", "--leveling", "none", "--placement", "none")[0] == 0
    for options in ((), ("--stripe",), ("--histogram",)):
        assert run("stats", "disk.pmem", *options)[0] == 0


def test_colours_run_from_cold_to_hot():
    def brightness(colour):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [brightness(colour) for colour in stats_verb.COLOURS]
    assert shades == sorted(shades) and len(stats_verb.RAMP) == len(shades) + 1


@pytest.mark.parametrize("verb", ["info", "stats"])
def test_what_is_no_image_is_told_in_one_line(run, tmp_path, verb):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "media").write_bytes(bytes(16384))
    for name, words in (
        ("gone", "does not exist"),
        ("file", "is a file"),
        ("folder", "'media'"),
        ("other", "info block"),
    ):
        for options in ((), ("-j",)):
            status, out, err = run(verb, name, *options)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert words in err


def test_truncated_image_is_told_in_one_line(run, disk):
    os.truncate(disk / "media", 8 << 20)
    for verb in ("info", "stats"):
        status, out, err = run(verb, disk)
        assert (status, out, err.count("\n")) == (1, "", 1) and "truncated" in err


# ---- as a process ----


def spawn(*arguments, **options):
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, **options)


def test_help_waits_for_no_compiler():
    code = (
        "import sys; from pmem_core.cli import main; status = main(sys.argv[1:]);"
        "sys.exit(status or int('numba' in sys.modules or 'numpy' in sys.modules))"
    )
    for arguments in (["--help"], ["create", "--help"], ["info", "--help"], ["stats", "--help"]):
        told = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert told.returncode == 0, (arguments, told.stderr)
        assert "Examples:" in told.stdout


def test_the_command_as_a_process(tmp_path):
    path = tmp_path / "disk.pmem"
    told = spawn("create", path, "--size", "64M", "-j")
    assert (told.returncode, told.stderr) == (0, "") and json.loads(told.stdout)["image"]["size"] == 64 << 20
    for verb in ("info", "stats"):
        told = spawn(verb, path, "-j")
        assert (told.returncode, told.stderr) == (0, "") and json.loads(told.stdout)["image"]["path"] == str(path)
    for arguments, status in ((["create", path, "--size", "7"], 2), (["stats"], 2), (["info", tmp_path / "gone"], 1)):
        told = spawn(*arguments)
        assert (told.returncode, told.stdout, told.stderr.count("\n")) == (status, "", 1)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_stream_is_no_error_and_no_file_of_an_image(tmp_path, closed):
    path = tmp_path / "disk.pmem"
    command = [sys.executable, "-c", "import sys; from pmem_core import cli; sys.exit(cli.main())"]
    for arguments in (["create", path, "--size", "16M"], ["info", path], ["check", path], ["stats", path]):
        words = ["sh", "-c", f'exec "$@" {closed}', "sh", *command, *arguments]
        told = subprocess.run(words, capture_output=True, text=True, check=False)
        said = [line for line in told.stderr.splitlines() if "compiling for the first" not in line]
        assert (told.returncode, said) == (0, []), arguments
        assert bool(told.stdout) == (">&-" not in closed.split()), arguments


def test_children_have_the_streams_that_were_closed():
    code = "import subprocess; from pmem_core import cli; cli.main(['-V']); subprocess.run(['ls', '/proc/self/fd'])"
    words = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", code]
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    assert told.stdout.split()[-4:-1] == ["0", "1", "2"]


def test_interrupt_while_the_command_is_imported_is_no_traceback():
    code = """
import sys
from pmem_core import __main__ as entry
class Interrupted:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
sys.exit(entry.main())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (130, "", "")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e300", "0", "x"])
def test_watch_wants_a_time_that_passes(run, disk, seconds):
    status, out, err = run("stats", disk, "--watch", seconds)
    assert (status, out) == (2, "") and "invalid value for '--watch'" in err


@pytest.mark.parametrize("seconds", [2**63 - 1, 2**64 - 1, 10**15])
def test_time_beyond_the_calendar_is_shown_as_it_is(run, disk, monkeypatch, seconds):
    real = verbs.report

    def report(*arguments):
        figures = real(*arguments)
        figures["image"]["created"] = seconds
        figures["events"][-1]["time_ns"] = seconds * 10**9
        return figures

    monkeypatch.setattr(verbs, "report", report)
    status, out, err = run("info", disk)
    assert (status, err) == (0, "")
    assert f"created         {seconds}\n" in out and f"\n{seconds}  " in out


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_goes_on_until_told(tmp_path, as_json):
    path = tmp_path / "disk.pmem"
    assert spawn("create", path, "--size", "16M").returncode == 0
    options = ["-j"] if as_json else ["--no-heat-map"]
    command = [COMMAND, "stats", path, "--watch", "0.05", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        seen, word = 0, '"path"' if as_json else "normalised life"
        deadline = time.monotonic() + 60
        while seen < 3 and time.monotonic() < deadline:
            seen += word in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=30)
    assert (seen, watching.returncode, err) == (3, 0, "")


@pytest.mark.parametrize(
    ("verb", "part"),
    [
        *((verb, "state") for verb in ("info", "stats", "check", "report", "convert")),
        *(("info", part) for part in ("wear", "lock", "journal/data.mdb", "journal/lock.mdb", "conversion")),
    ],
)
def test_part_that_is_a_pipe_is_not_waited_for(run, disk, verb, part):
    (disk / part).unlink(missing_ok=True)
    os.mkfifo(disk / part)
    options = {"report": ["-o", "disk.html"], "convert": ["--descriptor-bytes", "128"]}.get(verb, [])
    assert run(verb, disk, *options) == (1, "", f"disk.pmem/{part}: is no regular file: one of the image's own\n")
