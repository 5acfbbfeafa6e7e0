# SPDX-License-Identifier: MIT
"""Traces of other programs: fio's iologs, and the text of blkparse.

No blktrace runs in these tests: it wants debugfs, and a kernel with BLK_DEV_IO_TRACE.  So its lines are typed from
blkparse(1), and from what blkparse_fmt.c prints: every shape that the actions C, D and Q have there.
"""

import os
from pathlib import Path

import pytest

from pmem_core import cli
from pmem_core.errors import BadTrace
from pmem_core.traces import FLUSH, TRIM, WRITE, open_trace, trace


def requests(path: Path) -> list[tuple[int, int, int]]:
    with open_trace(path) as opened:
        return [tuple(one) for chunk in opened for one in chunk.tolist()]


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


# ---- fio ----

VERSION_2 = """fio version 2 iolog
/dev/nbd0 add
/dev/nbd0 open
/dev/nbd0 write 8192 4096
/dev/nbd0 wait 1000
/dev/nbd0 wait 1000 0
/dev/nbd0 read 0 512
/dev/nbd0 sync 8192 0
/dev/nbd0 trim 0 1048576
/dev/nbd0 datasync 0 0
/dev/nbd0 sync_file_range 0 0
/dev/nbd0 close
"""
EXPECTED = [(WRITE, 8192, 4096), (FLUSH, 0, 0), (TRIM, 0, 1 << 20), (FLUSH, 0, 0)]


def version_3(content: str) -> str:
    """The same in version 3, which has times and knows no wait."""
    lines = [line for line in content.splitlines()[1:] if " wait " not in line]
    return "\n".join(["fio version 3 iolog", *(f"{i} {line}" for i, line in enumerate(lines)), ""])


@pytest.mark.parametrize("content", [VERSION_2, version_3(VERSION_2)], ids=["2", "3"])
def test_iolog_of_either_version_has_the_same_requests(tmp_path, content):
    path = text(tmp_path / "log", content)
    assert requests(path) == EXPECTED
    with open_trace(path, "fio") as opened:
        for _ in range(2):
            assert sum(map(len, opened)) == 4
            assert opened.seen == {"read": 1, "sync_file_range": 1}
            assert opened.position == opened.size_bytes == len(content)
        assert opened.header["file"] == "/dev/nbd0" and opened.device_bytes is None and opened.whole


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("f frob 0 4096", "line 3: has the action frob: read, write, sync, datasync, sync_file_range, trim, wait"),
        ("g write 0 4096", "line 3: is of a second file, g: the requests of one file or device"),
        ("g add", "line 3: is of a second file, g"),
        ("f write 0", "line 3: has 3 words: [TIME] FILE ACTION [OFFSET LENGTH]"),
        ("f write x 4096", "line 3: has something else for a number"),
        ("f write -512 4096", "line 3: 4096 bytes at -512: within"),
        ("f trim 0 9223372036854775807", "line 3: 9223372036854775807 bytes at 0"),
    ],
)
def test_bad_line_of_an_iolog_is_named(tmp_path, capfd, line, said):
    path = text(tmp_path / "log", f"fio version 2 iolog\nf add\n{line}\nf write 0 1\n")
    assert cli.main(["trace", str(path)]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith(f"{path}: {said}")


@pytest.mark.parametrize("verb", ["trace", "replay --trace"])
@pytest.mark.parametrize("named", [True, False])
def test_pipe_is_refused(tmp_path, capfd, verb, named):
    """A FIFO without a writer would not even be opened."""
    path, ends = tmp_path / "pipe", os.pipe()
    os.mkfifo(path) if named else path.symlink_to(f"/proc/self/fd/{ends[0]}")
    assert cli.main([*verb.split(), str(path)]) == 1
    told = "is a pipe or the like, and a trace is read more than once: a file"
    assert capfd.readouterr() == ("", f"{path}: {told}\n")
    for end in ends:
        os.close(end)


def test_iolog_of_another_version_is_refused(tmp_path):
    with pytest.raises(BadTrace, match="line 1: is of an iolog of version 4: 2 or 3"):
        open_trace(text(tmp_path / "log", "fio version 4 iolog\n"))
    with pytest.raises(BadTrace, match="line 3: has the action wait"):
        requests(text(tmp_path / "log", "fio version 3 iolog\n0 f add\n1 f wait 100 0\n"))


# ---- blkparse ----

# The first lines are those of blkparse(1); then a flush, a write with a flush before and FUA, a discard, a write that
# failed, a command for the drive, a remap, a message, and the summary.
BLKPARSE = """  8,0    3        1     0.000000000   697  G   W 223490 + 8 [kjournald]
  8,0    3        2     0.000001829   697  P   R [kjournald]
  8,0    3        3     0.000002197   697  Q   W 223490 + 8 [kjournald]
  8,0    3        4     0.000005533   697  M   W 223498 + 8 [kjournald]
  8,0    3        5     0.000008607   697  M   W 223506 + 8 [kjournald]
  8,0    3       10     0.000024062   697  D   W 223490 + 56 [kjournald]
  8,0    1       11     0.000129199     0  C   W 223490 + 56 [0]
  8,0    1       12     0.000229199   700  Q  FN [fsync]
  8,0    1       13     0.000329199   700  D  FN [kworker/1:1H]
  8,0    1       14     0.000429199     0  C  FN 0 [0]
  8,0    1       15     0.000529199   700  A FWFSM 16 + 8 <- (8,1) 8
  8,0    1       16     0.000529199   700  Q FWFSM 16 + 8 [jbd2/sda1-8]
  8,0    1       17     0.000629199   700  D FWFSM 16 + 8 [jbd2/sda1-8]
  8,0    1       18     0.000729199     0  C FWFSM 16 + 8 [0]
  8,0    1       19     0.000829199   700  Q  DS 2048 + 4096 [fstrim]
  8,0    1       20     0.000929199   700  D  DS 2048 + 4096 [fstrim]
  8,0    1       21     0.001029199     0  C  DS 2048 + 4096 [0]
  8,0    1       22     0.001129199   700  D   W 99 + 8 [dd]
  8,0    1       23     0.001229199     0  C   W 99 + 8 [65531]
  8,0    1       24     0.001329199   700  D  RA 0 + 256 [cat]
  8,0    1       25     0.001429199     0  C  RA 0 + 256 [0]
  8,0    1       26     0.001529199   700  D   R 36 (12 00 00 00 24 00 ..) [hald]
  8,0    1       27     0.001629199     0  C   R (12 00 00 00 24 00 ..) [0]
  8,0    1        0     0.001729199     0  m   N cfq700 slice expired t=0
CPU0 (8,0):
 Reads Queued:           0,        0KiB\t Writes Queued:           7,      128KiB

Total (8,0):
 Writes Completed:       2,       32KiB
"""
FIRST = (WRITE, 223490 * 512, 56 * 512)
JOURNAL = [(FLUSH, 0, 0), (FLUSH, 0, 0), (WRITE, 8192, 4096), (FLUSH, 0, 0)]
DISCARD = (TRIM, 2048 * 512, 4096 * 512)


def without(action: str) -> str:
    return "".join(line for line in BLKPARSE.splitlines(True) if f"  {action} " not in line or "CPU" in line)


def test_completed_requests_are_taken_where_there_are_any(tmp_path):
    path = text(tmp_path / "sda.txt", BLKPARSE)
    assert requests(path) == [FIRST, *JOURNAL, DISCARD]
    with open_trace(path) as opened:
        for _ in range(2):
            assert sum(map(len, opened)) == 6
            assert opened.seen == {"read": 1, "failed": 1, "fua": 1}
        assert opened.format == "blkparse" and opened.header == {"action": "C", "device": "8,0"}
        assert opened.position == len(BLKPARSE)


def test_issued_requests_are_taken_where_none_completes(tmp_path):
    issued = [FIRST, *JOURNAL, DISCARD, (WRITE, 99 * 512, 4096)]
    assert requests(text(tmp_path / "sda.txt", without("C").replace(" C ", " I "))) == issued


def test_queued_requests_are_taken_where_there_is_nothing_else(tmp_path):
    queued = [(WRITE, 223490 * 512, 4096), *JOURNAL, DISCARD]
    only = "".join(line for line in BLKPARSE.splitlines(True) if " C " not in line and " D " not in line)
    assert requests(text(tmp_path / "sda.txt", only)) == queued


def test_times_of_completion_do_no_harm(tmp_path):
    """blkparse -t."""
    timed = "  8,0    1   11     0.000129199     0  C   W 16 + 8 (  104992) [0]\n"
    timed += "  8,0    1   14     0.000429199     0  C  FN 0 (   50000) [0]\n"
    assert requests(text(tmp_path / "sda.txt", timed)) == [(WRITE, 8192, 4096), (FLUSH, 0, 0)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "  8,16   1  2     0.000229199   700  C  W 0 + 8 [0]",
            "line 2: is of a second device, 8,16: the events of one",
        ),
        ("  8,0    1  2     0.000229199   700  C  WXZ 0 + 8 [0]", "line 2: has the flags WXZ: F, then D, W, R or N"),
        ("  8,0    1  2     0.000229199   700  C  W nil + 8 [0]", "line 2: has something else for a number"),
        ("  8,0    1  2     0.000229199   700  C  W 99999999999999999999 + 8 [0]", "line 2: 4096 bytes at 51199999"),
        ("what is this", "line 2: is no event: MAJOR,MINOR CPU SEQUENCE"),
    ],
)
def test_bad_line_of_blkparse_is_named(tmp_path, capfd, line, said):
    path = text(tmp_path / "sda.txt", f"{BLKPARSE.splitlines()[6]}\n{line}\n{BLKPARSE}")
    assert cli.main(["trace", str(path)]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith(f"{path}: {said}")


# ---- both ----


@pytest.mark.parametrize("content", [VERSION_2, version_3(VERSION_2), BLKPARSE], ids=["fio 2", "fio 3", "blkparse"])
def test_blocks_may_end_anywhere(tmp_path, monkeypatch, content):
    path = text(tmp_path / "trace", content)
    expected = requests(path)
    monkeypatch.setattr(trace, "CHUNK", 2)
    for size in (200, 201, 227, 1000):
        monkeypatch.setattr(trace, "BLOCK_BYTES", size)
        assert requests(path) == expected


def test_last_line_may_be_torn(tmp_path):
    path = text(tmp_path / "log", version_3(VERSION_2) + "12 /dev/nb")
    with open_trace(path) as opened:
        assert sum(map(len, opened)) == 4
        assert (opened.whole, opened.torn_bytes, opened.position) == (False, 10, opened.size_bytes)


def test_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "BLOCK_BYTES", 1000)
    path = text(tmp_path / "log", "fio version 2 iolog\nf add\n" + "x" * 5000)
    with pytest.raises(BadTrace, match="line 3: is longer than 1000 bytes"):
        requests(path)
