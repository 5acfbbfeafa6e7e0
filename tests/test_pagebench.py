# SPDX-License-Identifier: MIT
"""Page maps against each other: the stress tells who sees which descriptor, loops leave nothing out, pages say what was
found."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import needs

from pmem_core import cli, maploops, pagemaps
from pmem_core.errors import UsageError
from pmem_core.pagebench import answer, claims, extents, measure, run, stress, subject, words, write

ROOT = Path(__file__).resolve().parent.parent

# ---- the stress, against maps of dicts ----


class Sane:
    """One descriptor a page, for all."""

    def __init__(self):
        self.bits, self.held, self.made = {}, {}, 0

    def map(self, first, count):
        pass

    unmap = map

    def where(self, page, io):
        return page

    def get(self, page, io):
        found = self.where(page, io)
        self.held[found] = self.held.get(found, 0) + 1
        return found

    def put(self, page, descriptor, io):
        self.held[descriptor] -= 1

    def look(self, page):
        return page

    def references(self, descriptor):
        return self.held.get(descriptor, 0)

    def flags(self, descriptor):
        return self.bits.get(descriptor, 0)

    def set_flags(self, descriptor, flags):
        self.bits[descriptor] = flags


class OneEach(Sane):
    """A new descriptor whenever one is asked for."""

    def where(self, page, io):
        self.made += 1
        return 10_000 + self.made


class TwoKinds(Sane):
    """I/Os see another descriptor than whoever has the page mapped."""

    def where(self, page, io):
        return page + 10_000 * io


class OnlyInAnIo(Sane):
    """An I/O has a descriptor of its own; whoever has the page mapped sees none."""

    def get(self, page, io):
        self.made += 1
        return 10_000 + self.made if io else -1

    def put(self, page, descriptor, io):
        pass

    def look(self, page):
        return -1


class FourPagesInTwo(Sane):
    """Few pages are seen in two ways."""

    def where(self, page, io):
        return page + 10_000 * (io and page < 4)


class Nobody(Sane):
    """References are not counted."""

    def references(self, descriptor):
        return 0


class NoLock(Sane):
    """The bit is lost as soon as it is set."""

    def set_flags(self, descriptor, flags):
        self.bits[descriptor] = flags & ~stress.LOCKED


class Forgetful(Sane):
    """Flags go with the last reference."""

    def put(self, page, descriptor, io):
        super().put(page, descriptor, io)
        if not self.held[descriptor]:
            self.bits[descriptor] = 0


class NoDescriptors(Sane):
    """Page numbers only."""

    def get(self, page, io):
        return -1

    def put(self, page, descriptor, io):
        pass

    def look(self, page):
        return -1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_stress_passes_where_everybody_sees_the_same_descriptor(seed):
    found = stress.run(Sane(), seed=seed)
    assert found.verdict == "same"
    assert found.shared > 20 and found.updates > 4000, "parties have to meet, or it says nothing"
    assert (found.differed, found.lost_updates, found.moved_in_use, found.forgotten) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("planted", "counted"),
    [
        (OneEach, {"differed", "lost_updates", "moved_in_use", "forgotten"}),
        (TwoKinds, {"differed", "lost_updates", "moved_in_use", "forgotten"}),
        (OnlyInAnIo, {"differed", "without", "lost_updates", "moved_in_use", "forgotten"}),
        (FourPagesInTwo, {"differed"}),
        (Nobody, {"moved_in_use"}),
        (NoLock, {"lost_updates"}),
    ],
)
def test_stress_fails_where_somebody_sees_another_descriptor(planted, counted, seed):
    found = stress.run(planted(), seed=seed)
    assert found.verdict == "differ"
    assert all(getattr(found, name) for name in counted), found


def test_stress_tells_no_descriptor_from_two():
    assert stress.run(NoDescriptors()).verdict == "none"
    # On few pages somebody was told of each that there is none; others had one.
    found = stress.run(OnlyInAnIo(), page_count=16)
    assert found.without == found.pages and found.verdict == "differ"


def test_flags_that_go_with_the_last_user_are_counted_apart():
    found = stress.run(Forgetful())
    assert found.forgotten and found.verdict == "same"


def test_stress_is_the_same_again_with_the_same_seed():
    assert stress.run(TwoKinds(), seed=5) == stress.run(TwoKinds(), seed=5)
    assert stress.run(TwoKinds(), seed=5) != stress.run(TwoKinds(), seed=6)


@pytest.mark.parametrize(("name", "verdict"), [("interleaved", "same"), ("temporary", "differ"), ("pfn", "none")])
def test_verdict_of_a_map_comes_from_its_stress(name, verdict):
    assert stress.run(subject.Subject(name, 512), rounds=200).verdict == verdict


# ---- extents ----


def test_extents_are_apart_and_within_the_device():
    for page_count in (1, 100, 5000, 1 << 20, 1 << 32):
        table = extents.fragmented(page_count, 3000, 1)
        assert 1 <= len(table) <= 3000 and table[:, 1].min() > 0
        assert table[0, 0] >= 0 and table[-1].sum() <= page_count
        assert (table[1:, 0] >= table[:-1].sum(axis=1)).all()
        few = extents.few(page_count, 16, 1 << 15, 1)
        assert few[-1].sum() <= page_count and (few[1:, 0] >= few[:-1].sum(axis=1)).all()


def test_extents_are_spread_over_a_large_device():
    table = extents.fragmented(1 << 30, 10_000, 1)
    zones = np.unique(table[:, 0] // ((1 << 30) // extents.ZONES))
    assert len(zones) == extents.ZONES


def test_extents_are_drawn_by_the_seed():
    one, again, other = (extents.fragmented(1 << 16, 500, seed) for seed in (7, 7, 8))
    assert (one == again).all() and not np.array_equal(one, other)


def test_pages_of_a_file_are_its_extents_in_order():
    table = extents.fragmented(3000, 50, 2)
    naive = [page for first, count in table.tolist() for page in range(first, first + count)]
    assert extents.pages_of(table, np.arange(len(naive))).tolist() == naive


@needs("root", "loop", "ext4")
def test_holes_are_like_those_of_ext4(tmp_path):
    """A real filesystem filled with files of the same sizes, half of them deleted: e2freefrag counts its holes."""
    image, folder = tmp_path / "disk", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "65536", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        generator = np.random.default_rng(1)
        made = []
        try:
            for number, pages in enumerate(extents.file_pages(generator, 1 << 20)):
                made.append(folder / str(number // 500) / str(number))
                made[-1].parent.mkdir(exist_ok=True)
                with made[-1].open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, int(pages) * 4096)
        except OSError:
            made.pop()  # it is full
        for path in made:
            if generator.random() < extents.DELETED:
                path.unlink()
    finally:
        subprocess.run(["umount", folder], check=True)
    told = subprocess.run(["e2freefrag", image], capture_output=True, text=True, check=True).stdout
    holes = int(re.search(r"Num. free extent: (\d+)", told)[1])
    pages = int(re.search(r"Avg. free extent: (\d+) KB", told)[1]) / 4
    table = extents.fragmented(1 << 18, 1 << 20, 1)
    assert len(made) > 20_000
    assert len(table) / holes == pytest.approx(1, abs=0.3), told
    assert table[:, 1].mean() / pages == pytest.approx(1, abs=0.3), told


# ---- loops and figures ----


@pytest.mark.contract
def test_loops_leave_no_lookup_out():
    measured = subject.Subject("interleaved", 1000)
    pages = np.random.default_rng(3).integers(0, 1000, 300)
    one_by_one = [measured.look(int(page)) for page in pages]
    assert len(set(one_by_one)) == len(set(pages.tolist()))
    for what in (maploops.WHERE, maploops.LATENCY):
        assert measured.perform(what, pages)[0] == sum(one_by_one)
    held = np.zeros(300, np.int64)
    assert measured.perform(maploops.GET, pages, held=held)[0] == sum(one_by_one) and held.tolist() == one_by_one
    assert measured.references(one_by_one[0]) == pages.tolist().count(int(pages[0]))
    # With the page numbers read from the descriptors the walk has to be as long.
    assert measured.perform(maploops.READ, pages)[0] == sum(one_by_one)
    assert maploops.alone(pages, maploops.LATENCY) == pages.sum()


def test_what_is_worked_out_is_what_would_be_run(monkeypatch):
    whole = measure.first_use("interleaved", 4096)
    monkeypatch.setattr(measure, "BRING_UP_PAGES", 64)
    monkeypatch.setattr(measure, "BRING_UP_BYTES", 1 << 15)
    monkeypatch.setattr(measure, "BRING_UP_LITTLE", 0)
    part = measure.first_use("interleaved", 4096)
    assert (whole["measured"], part["measured"]) == (True, False) and part["pages"] < 4096
    assert part["descriptors"] == whole["descriptors"] == 4096
    assert part["bytes"] == whole["bytes"] == 4096 * 64


@pytest.mark.parametrize("page_count", [1 << 18, 1 << 22])
def test_device_that_is_one_group_comes_up_as_one(page_count):
    found = measure.first_use("buddy", page_count)
    assert (found["descriptors"], found["pages"]) == (1, page_count)


def test_patterns_look_up_pages_of_their_file():
    for name in measure.PATTERNS:
        drawn = measure.pattern(name, 1 << 16, 500, 300, 1)
        covered = {page for first, count in drawn.extents.tolist() for page in range(first, first + count)}
        assert set(drawn.pages.tolist()) <= covered and len(drawn.pages) == 500


# ---- the command ----


def masked(found):
    """A result without what a clock says."""
    if isinstance(found, dict):
        timed = re.compile(r"ns(_|$)|_ns|seconds|loop|claims|where|latency|read")
        return {key: masked(value) for key, value in found.items() if not timed.search(key)}
    return [masked(one) for one in found] if isinstance(found, list) else found


def run_plain(*arguments):
    """The command in a process of its own, in plain Python: nothing to compile."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", "import sys; from pmem_core import cli; sys.exit(cli.main(sys.argv[1:]))"]
    command += ["pagemaps", "--quick", "--sizes", "512K", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


# One worker makes the fixture `result`, not each.
of_the_result = pytest.mark.xdist_group("pagebench")


@pytest.fixture(scope="module")
def result():
    """All maps, a small device."""
    return json.loads(run_plain("-j").stdout)


@of_the_result
def test_quick_run_has_every_field_of_every_map(result):
    names = list(pagemaps.family.modules)
    assert list(result["maps"]) == list(result["sharing"]) == [row["map"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert set(row["lookups"]) == set(measure.PATTERNS)
        for found in row["lookups"].values():
            assert set(found) == set(measure.MODES) == set(words.MODES)
        assert {"descriptors", "bytes", "seconds", "measured", "pages"} <= set(row["initialise"])
        assert {"descriptors", "bytes", "seconds", "ram_bytes"} <= set(row["first_io"])
        assert {"ram_bytes", "mapped_ram_bytes", "medium_bytes", "medium_share"} <= set(row["space"])
        assert {"map_ns_extent", "map_ns_page", "unmap_ns_extent", "unmap_ns_page"} <= set(row["mapping"])
        assert row["io"]["ns"] > 0
    assert result["compile_seconds"] >= 0 and result["machine"]["kernel"]


@of_the_result
def test_only_temporary_descriptors_and_none_at_all_fail_the_stress(result):
    verdicts = {name: found["verdict"] for name, found in result["sharing"].items()}
    assert {name for name, verdict in verdicts.items() if verdict != "same"} == {"temporary", "pfn"}
    assert (verdicts["temporary"], verdicts["pfn"]) == ("differ", "none")
    for name, module in pagemaps.family.modules.items():
        assert (verdicts[name] != "differ") == module.SHARED, "what the map says of itself"


@of_the_result
def test_figures_are_those_that_can_be_worked_out(result):
    rows = {row["map"]: row for row in result["rows"]}
    pages = 512 * 1024 // 4096
    for name in ("interleaved", "linear_dev", "linear_mem"):
        assert rows[name]["initialise"]["bytes"] == pages * 64
    assert rows["interleaved"]["space"]["medium_share"] == pytest.approx(1 / 65)
    assert rows["linear_mem"]["space"]["ram_bytes"] == pages * 64
    assert rows["temporary"]["first_io"]["ram_bytes"] == 4096
    assert rows["interleaved"]["io"]["descriptor_writes"] == 2, "the reference is held, and given back"
    assert rows["interval_tree"]["figures"]["nodes"] == rows["interval_tree"]["mapping"]["extents"]


def test_space_lost_is_the_mails_and_linuxs():
    lost = claims.claims({"sizes": [16 << 40], "rows": [], "sharing": {}})[0]
    assert lost["values"]["interleaved"] == pytest.approx(1 / 65, rel=1e-6)
    assert lost["values"]["linear"] == pytest.approx(1 / 64, rel=1e-4)
    assert "1.5385 %" in lost["measured"] and "1.5625 %" in lost["measured"]


@of_the_result
def test_result_is_the_same_again_but_for_the_clock(result):
    again = json.loads(run_plain("-j", "--maps", "interleaved,temporary,interval_tree").stdout)
    for name in again["maps"]:
        assert masked(again["sharing"][name]) == masked(result["sharing"][name])
        one, other = (next(row for row in told["rows"] if row["map"] == name) for told in (again, result))
        assert masked(one) == masked(other)
    other = json.loads(run_plain("-j", "--maps", "temporary", "--seed", "2").stdout)
    assert masked(other["sharing"]["temporary"]) != masked(result["sharing"]["temporary"])


@of_the_result
def test_page_follows_from_the_result(result):
    result["command"] = "pmem-nbd pagemaps"
    text = write.as_markdown(result)
    assert text == write.as_markdown(json.loads(json.dumps(result)))
    assert text.index(words.QUESTION[0]) < text.index("## All maps") < text.index("## What the mail says")
    for name in result["maps"]:
        assert text.count(f"| `{name}` |") >= 7, f"{name}: a line in each table"
    assert all(one["claim"] in text and one["measured"] in text for one in result["claims"])
    result["sharing"]["interleaved"] = result["sharing"]["temporary"]
    assert "No with `interleaved`" in " ".join(answer.paragraphs(result))


def test_page_and_figures_are_written(tmp_path):
    told = run_plain("--maps", "interleaved,interval_tree", "-o", str(tmp_path / "out"))
    page = (tmp_path / "out" / "page-maps.md").read_text()
    figures = re.findall(r"\]\((page-maps-figures/[^)]+\.svg)\)", page)
    assert len(figures) == 4 and all((tmp_path / "out" / name).read_text().startswith("<?xml") for name in figures)
    assert f"`pmem-nbd pagemaps --sizes 512K --maps interleaved,interval_tree --quick -o {tmp_path}/out`" in page
    assert "Does everybody see the same descriptor?" in told.stdout and "first use" in told.stderr


def refuse(*_):
    raise AssertionError("it measures")


@pytest.mark.parametrize("name", ["page-maps.md", "page-maps-figures"])
def test_page_that_is_there_is_not_overwritten_unless_told_to(tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).touch() if name == "page-maps.md" else (tmp_path / name).mkdir()
    monkeypatch.setattr(run, "compare", refuse)
    assert cli.main(["pagemaps", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/{name}: exists already: a new name, or --force\n"
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    run_plain("--maps", "pfn", "-o", str(tmp_path), "--force")
    assert (
        f"`pmem-nbd pagemaps --sizes 512K --maps pfn --quick -o {tmp_path}`" in (tmp_path / "page-maps.md").read_text()
    )


@pytest.mark.parametrize(
    ("output", "status", "told"),
    [("file", 2, "file: is no directory: a directory, or a new name\n"), ("/proc", 1, "/proc: ")],
)
def test_folder_that_cannot_be_written_is_found_out_before(tmp_path, monkeypatch, capsys, output, status, told):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(run, "compare", refuse)
    assert cli.main(["pagemaps", "-o", output]) == status
    err = capsys.readouterr().err
    assert err.startswith(told) and err.count("\n") == 1


@of_the_result
def test_what_was_measured_is_printed_where_the_page_cannot_be_written(tmp_path, monkeypatch, capsys, result):
    def compare(*_):
        (tmp_path / "out").rmdir()
        return {**result}

    monkeypatch.setattr(run, "compare", compare)
    assert cli.main(["pagemaps", "-o", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "Does everybody see the same descriptor?" in told.out
    assert told.err == f"{tmp_path}/out/page-maps-figures: no such file or directory\n"


def test_examples_of_the_help_can_be_run(tmp_path, monkeypatch, capsys):
    assert cli.main(["pagemaps", "--help"]) == 0
    examples = re.findall(r"^ +pmem-nbd (pagemaps.*?)(?: \||$)", capsys.readouterr().out, re.MULTILINE)
    ran = []

    def compare(chosen, watch):
        ran.append(chosen)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "compare", compare)
    monkeypatch.chdir(tmp_path)
    assert [cli.main(example.split()) for example in examples] == [130] * len(ran)
    assert any(len(chosen.maps) == 3 for chosen in ran)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--maps", "interleaved,rbtree"], "--maps rbtree: no such page map: one of "),
        (["--maps", "interleaved,"], "--maps '': no such page map: one of "),
        (["--sizes", "0"], "'0': is zero: "),
        (["--sizes", ""], "'': is not a size: "),
        (["--maps", ""], "--maps '': no such page map: one of "),
        (["--sizes", "5000"], "--sizes 5000: not a size that can be: "),
        (["--sizes", "1P"], "--sizes 1125899906842624: not a size that can be: "),
        (["--sizes", "big"], "'big': is not a size: "),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments, told, capsys):
    assert cli.main(["pagemaps", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(told) and err.count("\n") == 1


def test_choice_keeps_each_size_and_map_once():
    chosen = run.choose(sizes=[8192, 4096, 8192], maps=["pfn", "pfn"], quick=True, seed=3)
    assert (chosen.sizes, chosen.maps, chosen.seed) == ((4096, 8192), ("pfn",), 3)
    with pytest.raises(UsageError):
        run.choose(sizes=None, maps=["none"], quick=False, seed=1)


# ---- the documents ----


def test_maps_that_can_serve_are_maps():
    assert set(words.SERVES) <= set(pagemaps.family.modules)


@pytest.mark.parametrize("option", sorted({option for option, _ in words.SERVES.values() if option}))
def test_option_that_makes_a_map_serve_is_one_of_create(tmp_path, option, capsys):
    assert cli.main(["create", str(tmp_path / "a.pmem"), "--size", "64M", *option.strip("`").split()]) == 0
    assert "for the client" in capsys.readouterr().out


def test_document_is_of_every_map():
    page = (ROOT / "docs" / "page-maps.md").read_text()
    for name in pagemaps.family.modules:
        assert f"`{name}`" in page
    for line in words.INTRO + words.how(run.EXTENTS_MAX):
        assert line in page, "written anew by: pmem-nbd pagemaps -o docs --force"
    for figure in re.findall(r"\]\((page-maps-figures/[^)]+)\)", page):
        assert (ROOT / "docs" / figure).is_file()
