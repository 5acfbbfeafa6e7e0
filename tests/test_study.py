# SPDX-License-Identifier: MIT
"""A study: what is run, that it goes on where it was, what it writes, and that its words follow from its rows."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmem_core import cli, errors
from pmem_core.errors import DamagedImage, HostError, UsageError
from pmem_core.study import answer, cells, run, write

QUICK = {"size": 8192 + 4096 * 1040, "endurance": 60}  # linear begins behind 2 MiB

QUICK_ARGUMENTS = [
    *("--placement", "interleaved", "--leveling", "none", "--workload", "uniform", "--line-bytes", "4096"),
    *("--descriptor-writes", "each", "-s", str(QUICK["size"]), "-e", "40", "--seeds", "1"),
]


def quick(**chosen):
    """A few cells that take a moment each."""
    return cells.cells(
        **{"placements": ("interleaved",), "levelings": ("none",), "units": (4096,), "writes": ("each",), "seeds": 1}
        | chosen,
        **QUICK,
    )


# ---- what is run ----


def test_default_set_has_every_combination_once():
    found = cells.cells()
    assert len({cell.key for cell in found}) == len(found)
    first = [cell for cell in found if cell.endurance == cells.ENDURANCE and cell.seed == cells.SEED]
    of_interleaved = [cell for cell in first if cell.placement == "interleaved"]
    loads = len(cells.WORKLOADS) + len(cells.RECORDINGS)
    assert len(of_interleaved) == len(cells.LEVELINGS) * len(cells.UNITS) * len(cells.WRITES) * loads
    assert {cell.placement for cell in found} == {"interleaved", "linear", "none"}
    assert {cell.placement for cell in cells.cells(placements=("ram",))} == {"ram"}


@pytest.mark.parametrize(("unit", "writes"), [(64, "each"), (4096, "coalesced")])
def test_without_descriptors_unit_and_writes_make_no_difference(unit, writes):
    """Why such cells are run once."""
    one, other = (
        cells.cells(
            placements=("none",), levelings=("start_gap:interval=5",), units=(u,), writes=(w,), loads=("zipf",), **QUICK
        )
        for u, w in ((unit, writes), (1024, "each"))
    )
    first, second = run.row_of(one[0]), run.row_of(other[0])
    assert first["page_writes"] == second["page_writes"]
    assert first["normalized_life"] == pytest.approx(second["normalized_life"])


def test_leveling_is_a_label_or_a_policy_with_parameters():
    assert cells.leveling_of("start_gap randomised") == ("start_gap randomised", "start_gap", (("randomize", 1),))
    assert cells.leveling_of("start_gap:interval=7,gap_frames=1")[2] == (("gap_frames", 1), ("interval", 7))


@pytest.mark.parametrize("text", ["stop_gap", "start_gap:interval", "start_gap:interval=x"])
def test_leveling_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        cells.leveling_of(text)


def test_every_default_label_can_be_planned_and_lives_longer_too():
    for label in cells.LEVELINGS:
        found = cells.cells(
            placements=("interleaved",), levelings=(label,), units=(256,), writes=("each",), loads=("uniform",), seeds=1
        )
        longest = [cells.LONGEST] if label in cells.LONGEST_LABELS else []
        assert [cell.endurance for cell in found] == [cells.ENDURANCE, *cells.ENDURANCES, *longest]
        assert found[0].plan().placed_frames > 1900


def test_synthetic_workloads_in_the_largest_unit_are_run_with_several_seeds():
    found = cells.cells(levelings=("none",), loads=("uniform", "ext4-fio"), seed=7, seeds=3, endurance=60)
    seeds = {}
    for cell in found:
        seeds.setdefault((cell.placement, cell.line_bytes, cell.descriptor_writes, cell.workload), []).append(cell.seed)
    several = {kind for kind, drawn in seeds.items() if drawn == [7, 8, 9]}
    assert several == {(where, 4096, "each", "uniform") for where in ("interleaved", "linear", "none")}
    assert all(drawn == [7] for kind, drawn in seeds.items() if kind not in several)


def test_security_refresh_has_a_power_of_two_of_blocks_and_start_gap_a_ring_of_stripes():
    def plans(label, load):
        chosen = {"placements": ("interleaved",), "units": (4096,), "writes": ("each",), "loads": (load,)}
        return cells.cells(levelings=(label,), **chosen)[0].plan()

    for load in ("uniform", "ext4-fio"):
        for label in ("security_refresh", "security_refresh 2"):
            blocks = int(plans(label, load).leveling_state["blocks"])
            assert blocks & (blocks - 1) == 0
        assert plans("start_gap", load).medium_frames % 65 == 0


@pytest.mark.parametrize("seed", [1, 1 << 48, 1 << 200])
def test_any_seed_has_a_device(seed):
    assert quick(loads=("uniform",), seed=seed)[0].plan().info.uuid


# ---- running ----


def test_rows_are_those_of_the_cells_one_by_one(tmp_path):
    chosen = quick(levelings=("none", "start_gap:interval=5"), loads=("uniform", "zipf"))
    found = run.study(tmp_path, chosen, jobs=2)
    alone = [run.row_of(cell) for cell in chosen]
    for row in (*found, *alone):
        row.pop("seconds")
    assert found == alone


def test_study_goes_on_where_it_was(tmp_path):
    chosen = quick(loads=("uniform", "zipf", "sequential"))
    rows = run.study(tmp_path, chosen[:2], jobs=1)
    kept = (tmp_path / run.ROWS).read_text()
    # Its last line was being written when it was killed.
    (tmp_path / run.ROWS).write_text(kept[: kept.index("\n") + 20])
    ran = []
    again = run.study(tmp_path, chosen, jobs=1, watch=lambda done, of, row: ran.append(row and row["workload"]))
    assert ran == [None, "zipf", "sequential"]
    assert again[0] == rows[0] and [row["workload"] for row in again] == ["uniform", "zipf", "sequential"]
    assert run.study(tmp_path, chosen) == again


def test_other_code_or_choice_is_another_row():
    keys = [quick(loads=("uniform",), units=(unit,))[0].key for unit in (256, 4096)]
    assert len(set(keys)) == 2


def test_rows_that_are_none_are_named(tmp_path):
    (tmp_path / run.ROWS).write_text('{"key": "x"}\nnonsense\n')
    with pytest.raises(DamagedImage, match="line 2"):
        run.study(tmp_path, quick(loads=("uniform",)))


@pytest.mark.parametrize("kind", [one for one in vars(errors).values() if isinstance(one, type)])
def test_error_is_the_same_in_another_process(kind):
    error = kind("disk.pmem", "is torn", "8192 bytes")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.expected) == (kind, "disk.pmem: is torn: 8192 bytes", "8192 bytes")


def test_impossible_cell_is_one_line(tmp_path, capsys):
    arguments = ["--line-bytes", "100", "--placement", "none", "--leveling", "none", "--workload", "uniform"]
    assert cli.main(["study", "-o", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err == "line-bytes=100: not possible: a power of two from 64 to 4096\n"


def test_interrupted_study_leaves_no_process(tmp_path):
    def interrupt(done, of, row):
        if row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.study(tmp_path, quick(loads=("uniform", "zipf", "sequential")), jobs=1, watch=interrupt)
    assert len(run.kept_rows(tmp_path)) == 1
    # Not joined: the executor's own thread does that, and only one of two that wait for a process hears of its end.
    until = time.monotonic() + 60
    while multiprocessing.active_children():
        assert time.monotonic() < until, multiprocessing.active_children()
        time.sleep(0.05)


def test_killed_process_is_an_error_that_says_how_to_go_on(tmp_path):
    def kill(done, of, row):
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(HostError, match=r"^study: a process of it was killed: .*the same command goes on$"):
        run.study(tmp_path, quick(loads=("uniform", "zipf", "sequential")), jobs=1, watch=kill)


@pytest.mark.parametrize(("seconds", "jobs"), [(0, 2), (0.3, 2), (5, 2), (0, 40)])
def test_ctrl_c_ends_a_study_at_once_in_one_line(tmp_path, seconds, jobs):
    """Seconds behind the birth of the first worker: it begins, it imports, it compiles."""
    command = [Path(sys.executable).parent / "pmem-nbd", "study", "-o", "out", "--jobs", str(jobs)]
    cold = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(command, cwd=tmp_path, env=cold, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        until, workers = time.monotonic() + 60, Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(workers.read_text().split()) < 2 and time.monotonic() < until:  # the first one is a tracker
            time.sleep(0.01)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        begun = time.monotonic()
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - begun
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (process.returncode, out, err) == (130, "", "out: interrupted: the same command goes on\n")
    assert took < 10


def test_second_study_of_a_folder_is_refused(tmp_path, capsys):
    chosen, told = quick(loads=("uniform",)), []

    def watch(done, of, row):
        told.append(cli.main(["study", "-o", str(tmp_path), *QUICK_ARGUMENTS]))

    run.study(tmp_path, chosen, jobs=1, watch=watch)
    assert told == [1, 1]
    said = f"{tmp_path}: another study runs there: another folder, or wait until it ends\n"
    assert capsys.readouterr().err == 2 * said
    assert len((tmp_path / run.ROWS).read_text().splitlines()) == 1


# ---- what it writes ----


@pytest.fixture(scope="module")
def rows():
    """Rows of a small study of everything that the answer speaks of."""
    chosen = cells.cells(
        levelings=("none", "start_gap:interval=4", "start_gap:interval=4,randomize=1"),
        units=(256, 4096),
        loads=("uniform", "zipf"),
        seeds=2,
        **QUICK,
    )
    return [run.row_of(cell) for cell in chosen]


def test_csv_and_json_say_the_same(rows):
    table = list(csv.DictReader(io.StringIO(write.as_csv(rows))))
    assert len(table) == len(rows)
    for told, row in zip(table, json.loads(write.as_json(rows)), strict=True):
        assert float(told["normalized_life"]) == row["normalized_life"]
        assert told["leveling"] == row["leveling"]


def test_page_opens_with_the_question_and_closes_with_the_answer(rows):
    text = write.as_markdown(rows, "pmem-nbd study")
    assert text.index(answer.SENTENCE) < text.index("## Life by workload") < text.index("## The answer")
    assert text.rstrip().endswith(answer.paragraphs(rows)[-1])


def test_words_follow_from_the_rows(rows):
    """Every share in the answer is that of a row, rounded down; other rows give other words."""
    told = " ".join(answer.paragraphs(rows))
    lives = {answer.percent(row[name]) for row in rows for name in ("normalized_life", "data_life")}
    beside = {
        answer.percent(share(answer.typical(rows), row["leveling"], row["line_bytes"], "each", row["workload"]))
        for row in rows
        for share in (answer.kept, answer.pages_kept)
    }
    shares = set(re.findall(r"\d[\d.]* %", told))
    assert shares <= lives | beside | {answer.percent(answer.PROPERLY)}
    without_descriptors = [{**row, "normalized_life": 1.0} for row in rows]
    assert "Yes" in " ".join(answer.paragraphs(without_descriptors))
    hot = [{**row, "normalized_life": 0.1 if row["placement"] == "interleaved" else 1.0} for row in rows]
    assert "No, not with any" in " ".join(answer.paragraphs(hot))


def test_typical_row_is_the_median_of_its_seeds_and_never_the_better_one_of_two():
    def drawn(*lives):
        common = dict.fromkeys(("placement", "leveling", "line_bytes", "descriptor_writes", "workload"), "x")
        return [{**common, "endurance": 1, "frames": 1, "seed": at, "normalized_life": x} for at, x in enumerate(lives)]

    (one,) = answer.typical(drawn(0.5, 0.1, 0.9, 0.3, 0.35))
    assert (one["normalized_life"], one["seed"], one["seeds"], answer.lived(one)) == (0.35, 4, 5, "35 % (10–90)")
    (one,) = answer.typical(drawn(0.5, 0.4))
    assert (one["normalized_life"], answer.lived(one)) == (0.4, "40 % (40–50)")
    assert answer.lived(answer.typical(drawn(0.5))[0]) == "50 %"
    assert answer.typical([one]) == [one]


@pytest.mark.parametrize(
    ("share", "text"), [(0.95999, "95 %"), (0.0299, "2.9 %"), (0.00129, "0.12 %"), (1.0, "100 %"), (None, "–")]
)
def test_shares_are_never_rounded_up(share, text):
    assert answer.percent(share) == text


def test_command_writes_tables_figures_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--leveling",
        "none",
        "--placement",
        "interleaved",
        "--workload",
        "uniform",
        "--size",
        str(QUICK["size"]),
    ]
    assert cli.main(["study", "-o", "out", *arguments, "-e", "40", "--markdown", "page.md"]) == 0
    out = capsys.readouterr().out
    assert "**Without leveling" in out and "10 lives" in out
    for name in ("rows.jsonl", "study.csv", "study.json", "study.md"):
        assert (tmp_path / "out" / name).stat().st_size
    page = Path("page.md").read_text()
    figures = re.findall(r"\]\((page-figures/[^)]+)\)", page)
    assert figures and all(Path(figure).read_text().startswith("<?xml") for figure in figures)
    assert "pmem-nbd study --placement interleaved --leveling none --workload uniform" in page
    assert cli.main(["report", "out", "-o", "out.html"]) == 0
    html = Path("out.html").read_text()
    assert "The answer" in html and "<strong>Without leveling" in html and "://" not in html.split("<script")[0]
    assert cli.main(["report", "out", "-o", "out.html", "--force", "--by", "mean"]) == 2
    Path("out/study.json").write_text("[]")
    assert cli.main(["report", "out", "-o", "other.html"]) == 1
    assert "study.json: holds no rows" in capsys.readouterr().err


def refuse(*_, **__):
    raise AssertionError("it runs")


@pytest.mark.parametrize("name", ["out/study.csv", "out/study.md", "out/study-figures", "page.md", "page-figures"])
def test_what_is_not_the_studys_is_not_overwritten_unless_told_to(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path(name).mkdir() if name.endswith("figures") else Path(name).write_text("mine")
    study = ["study", "-o", "out", "--markdown", "page.md", *QUICK_ARGUMENTS]
    with monkeypatch.context() as patched:
        patched.setattr(run, "study", refuse)
        assert cli.main(study) == 2
        assert capsys.readouterr().err == f"{name}: exists already: a new name, or --force\n"
    assert cli.main([*study, "--force"]) == 0
    assert Path("page.md").read_text() == Path("out/study.md").read_text().replace("study-figures", "page-figures")
    assert "--force" not in Path("page.md").read_text()


def test_study_writes_anew_what_is_its_own(tmp_path):
    study = ["study", "-o", str(tmp_path), *QUICK_ARGUMENTS]
    assert cli.main(study) == 0
    (tmp_path / "study.csv").write_text("old")
    assert cli.main(study) == 0
    assert (tmp_path / "study.csv").read_text().startswith("placement,")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["-o", "file"], 2, "file: is no directory: a directory, or a new name"),
        (["-o", "/proc"], 1, "/proc: "),
        (["--markdown", "no/page.md"], 1, "no/page.md: cannot be made: there is no such directory: "),
        (["--markdown", "/proc/page.md"], 1, "/proc: "),
        (["--markdown", "/dev/null"], 2, "/dev/null: is no regular file: a new file"),
    ],
)
def test_what_cannot_be_written_is_found_out_before(tmp_path, monkeypatch, capsys, arguments, status, told):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(run, "study", refuse)
    assert cli.main(["study", *arguments]) == status
    err = capsys.readouterr().err
    assert err.startswith(told) and err.count("\n") == 1


def test_examples_of_the_help_can_be_run(tmp_path, monkeypatch, capsys):
    assert cli.main(["study", "--help"]) == 0
    examples = re.findall(r"^ +pmem-nbd (study.*?)(?: \||$)", capsys.readouterr().out, re.MULTILINE)
    ran = []

    def study(output, chosen, **_):
        ran.append(chosen)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "study", study)
    monkeypatch.chdir(tmp_path)
    # A policy of somebody's own is not there.
    assert [cli.main(example.split()) for example in examples if "mine" not in example] == [130] * len(ran)
    assert len(ran) >= 3


def test_device_that_cannot_be_is_found_out_before_a_folder_is_made(tmp_path, capsys):
    words = ["--leveling", "none", "--workload", "zipf", "--placement", "linear", "-s", "16K"]
    assert cli.main(["study", *words, "-o", str(tmp_path / "out")]) == 2
    assert "too small" in capsys.readouterr().err and not (tmp_path / "out").exists()
