# SPDX-License-Identifier: MIT
"""Reports: what is drawn against naive counts, the page as a parser and a browser meet it, and the verb."""

import base64
import html.parser
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import browser
import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from conftest import needs
from hypothesis import given
from hypothesis import strategies as some

from pmem_core import capacity, cli, geometry, image, snapshot, stats
from pmem_core.device import Device
from pmem_core.errors import DamagedImage
from pmem_core.journal import HISTORY_MAX, Journal
from pmem_core.report import curves, disk, figures, page, words
from pmem_core.report.wearmap import WearMap

PAGE = 4096
SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
SMALL = {"region_frames": 64, "gap_frames": 3, "interval": 3}
WHOLE_STRIPES = 8192 + 8 * 65 * PAGE


def make(path: Path, size: int = 2 << 20, writes: int = 0, **options) -> Path:
    """An image whose pages were written `writes` times each, in random order."""
    image.create(path, geometry.plan(size, **options))
    print("seed", SEED)
    random = np.random.default_rng(SEED)
    with Device(path) as device:
        for _ in range(writes):
            for number in random.permutation(device.plan.info.page_count).tolist():
                device.write(b"\x01" * PAGE, number * PAGE)
            device.sample()
    return path


@pytest.fixture(scope="module")
def worn(tmp_path_factory):
    """Uniformly written, nothing leveled, a line a frame."""
    return make(
        tmp_path_factory.mktemp("worn") / "worn.pmem", WHOLE_STRIPES, writes=5, leveling_name="none", line_bytes=4096
    )


@pytest.fixture(scope="module")
def text(worn):
    return page.render(disk.report(worn))


# ---- curves, against counting ----

COUNTERS = some.lists(some.integers(0, 3) | some.integers(0, 2**32 - 1), min_size=1, max_size=60)


@given(COUNTERS)
def test_area_of_the_lorenz_curve_is_the_gini_of_stats(counters):
    pair = np.unique(np.array(counters, np.int64), return_counts=True)
    x, y = curves.lorenz_curve(*pair)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert 1 - 2 * np.trapezoid(y, x) == pytest.approx(stats.figures(*pair)["gini"], abs=1e-9)


@given(COUNTERS)
def test_lorenz_curve_is_the_share_of_the_least_worn(counters):
    x, y = curves.lorenz_curve(*np.unique(np.array(counters, np.int64), return_counts=True))
    total = sum(counters)
    for n in range(len(counters) + 1):
        expected = sum(sorted(counters)[:n]) / total if total else n / len(counters)
        assert np.interp(n / len(counters), x, y) == pytest.approx(expected, abs=1e-9)


@given(COUNTERS, some.sampled_from([0.01, 0.5, 0.999, 1.0]))
def test_quantile_is_the_smallest_that_enough_lines_do_not_pass(counters, share):
    pair = np.unique(np.array(counters, np.int64), return_counts=True)
    enough = [value for value in counters if sum(other <= value for other in counters) >= share * len(counters)]
    assert curves.quantile(*pair, share) == min(enough)


@given(COUNTERS, COUNTERS)
def test_every_line_is_in_the_bin_of_its_wear(one, other):
    pairs = {name: np.unique(np.array(part, np.int64), return_counts=True) for name, part in (("a", one), ("b", other))}
    edges = curves.bin_edges(pairs).tolist()
    assert edges == sorted(set(edges)) and edges[0] == 0 and len(edges) <= curves.BINS_MAX + 2
    for name, part in (("a", one), ("b", other)):
        expected = [sum(low <= value < high for value in part) for low, high in itertools.pairwise(edges)]
        assert curves.binned(*pairs[name], np.array(edges)).tolist() == expected
        assert sum(expected) == len(part)


def test_thin_curve_keeps_its_ends_and_its_shape():
    x = np.linspace(0, 1, 50_001)
    few = curves.thin(x, x**30, 500)
    assert len(few[0]) <= 500 and (few[0][0], few[0][-1]) == (0, 1)
    assert np.abs(np.interp(x, *few) - x**30).max() < 1e-3


@pytest.mark.parametrize("lines", [1, 16])
@pytest.mark.parametrize(("stripe", "rows_max"), [(65, 256), (65, 4), (2, 7), (257, 3), (0, 256), (0, 3)])
@pytest.mark.parametrize("pages", [1, 64, 65, 1000])
def test_cells_of_the_map_are_those_of_a_naive_count(stripe, rows_max, pages, lines):
    random = np.random.default_rng(SEED)
    info = 2 * lines
    counters = random.integers(0, 9, info + pages * lines).astype(np.uint32)
    seen = WearMap(pages, lines, info, stripe=stripe, columns=10, rows_max=rows_max)
    for first in range(0, len(counters), 7 * lines):
        if first != 21 * lines:  # a hole
            seen.add(first, counters[first : first + 7 * lines])
    counters[21 * lines : 28 * lines] = 0
    cells = {}
    for number in range(pages):
        part = counters[info + number * lines : info + (number + 1) * lines].tolist()
        if stripe:
            cell = number // stripe // seen.share, number % stripe
        else:
            cell = divmod(number // seen.share, seen.columns)
        cells.setdefault(cell, []).append(part)
    assert seen.rows <= rows_max and seen.columns <= (stripe or 10)
    for row, column in itertools.product(range(seen.rows), range(seen.columns)):
        frames = cells.get((row, column), [])
        for by, value in (("max", max), ("mean", lambda part: sum(part) / lines)):
            values = [value(part) for part in frames]
            shown = seen.mean(by)[row, column], seen.most(by)[row, column]
            expected = (sum(values) / len(values), max(values)) if values else (np.nan, np.nan)
            assert shown == pytest.approx(expected, nan_ok=True)
    for column, mean in enumerate(seen.profile("max")):
        values = [max(part) for (_, place), frames in cells.items() if place == column for part in frames]
        assert mean == pytest.approx(sum(values) / len(values) if values else np.nan, nan_ok=True)


# ---- numbers ----


@given(some.floats(1e-9, 1e12))
def test_dropped_digits_never_make_a_figure_better(value):
    for better, is_worse in (("low", Fraction.__ge__), ("high", Fraction.__le__)):
        shown = words.number(value, better)
        assert is_worse(Fraction(Decimal(shown.replace("\N{NARROW NO-BREAK SPACE}", ""))), Fraction(repr(value)))


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [(1.1, "low", "1.100"), (1.10001, "low", "1.101"), (0.99999, "high", "0.9999"), (7, "", "7"), (None, "low", "–")],
)
def test_numbers_have_four_digits(value, better, expected):
    assert words.number(value, better) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (4096, "4 KiB"), (1 << 40, "1 TiB"), (1025, "1.001 KiB (1 025 B)")]
)
def test_sizes_that_a_unit_rounds_are_exact_too(count, expected):
    assert words.size(count).replace("\N{NARROW NO-BREAK SPACE}", " ") == expected


def test_a_time_that_no_calendar_has_is_still_told():
    assert words.when(0) == "1970-01-01 00:00:00 UTC"
    assert words.when(2**63) == "9.22337e+18 s since 1970"


# ---- figures ----


def pictures(svg: str) -> list[np.ndarray]:
    """The rasters in an SVG, uint8[rows, columns, 4]."""
    found = re.findall(r'href="data:image/png;base64,([^"]*)"', svg)
    read = [matplotlib.image.imread(io.BytesIO(base64.b64decode(one))) for one in found]
    return [(np.atleast_3d(one) * 255).round().astype(np.uint8) for one in read]


def test_pixels_of_the_heat_map_are_the_counters():
    values = np.array([[0.0, 1, 2, 3], [10, 20, 30, np.nan]])
    figure = figures.heat_map({"": values}, label="wear", x_label="x", y_label="y")
    drawn = next(one for one in pictures(page.inline(figure, "map", "")) if one.shape[:2] == values.shape)
    expected = mpl.colormaps["viridis"](values / 30, bytes=True)
    assert (drawn[0, 1:] == expected[0, 1:]).all() and (drawn[1, :3] == expected[1, :3]).all()
    assert drawn[0, 0].tolist() == [*bytes.fromhex(figures.NEVER[1:]), 255]  # never written
    assert drawn[1, 3, 3] == 0  # behind the end


def test_one_hot_spot_makes_the_scale_logarithmic():
    values = np.ones((4, 4))
    assert figures.is_linear({"": values})
    values[2, 2] = 1e6
    assert not figures.is_linear({"": values})
    assert (
        len(
            np.unique(
                figures.heat_colours(values * [1, 2, 4, 8], figures.heat_norm({"": values * [1, 2, 4, 8]})).reshape(
                    -1, 4
                ),
                axis=0,
            )
        )
        == 5
    )


def test_bars_stand_in_their_groups():
    groups = {"uniform": {"none": 0.2, "start_gap": 0.9}, "$zipf$": {"none": None, "start_gap": 0.5}}
    figure = figures.bars_by_group(groups, label="normalised life", most=1)
    axis = figure.axes[0]
    heights = {container.get_label(): [bar.get_height() for bar in container] for container in axis.containers}
    assert heights == {"none": [0.2, 0], "start_gap": [0.9, 0.5]}
    drawn = page.inline(figure, "bars", "Bars")
    assert "$zipf$" in drawn and "start_gap" in drawn and "–" in drawn


def test_colour_bar_of_lives_is_in_percent_as_its_cells_are():
    figure = figures.matrix([[0.289, None]], rows=["none"], columns=["uniform", "zipf"], label="normalised life")
    cells, bar = figure.axes
    assert [text.get_text() for text in cells.texts] == ["28.9"]
    assert bar.get_ylim() == (0, 100) and bar.get_ylabel() == "normalised life, %"


def test_style_is_ours_whatever_the_user_has_set():
    with mpl.rc_context({"font.size": 40, "text.usetex": True, "svg.fonttype": "path"}):
        drawn = page.inline(figures.bars_by_group({"a": {"b": 1.0}}, label="c"), "bars", "")
    assert "font-size: 40" not in drawn and "<text" in drawn
    assert mpl.rcParams["font.size"] == mpl.rcParamsDefault["font.size"]


# ---- the column ----


def column(path: Path) -> float:
    """Mean wear of the stripe's first column ÷ that of the others, as the page has it."""
    section = next(one for one in disk.report(path).sections if one.anchor == "map")
    rows = dict(section.tables[0].rows)
    return float(rows["column 0 ÷ the others"])


def test_without_leveling_the_descriptors_are_a_hot_column(worn):
    assert column(worn) == 64  # 64 descriptors in a frame that is one line


def test_leveling_makes_the_column_vanish(tmp_path):
    fast = {"region_frames": 64, "gap_frames": 8, "interval": 1}  # the frames go round several times
    made = make(tmp_path / "a.pmem", WHOLE_STRIPES, writes=8, parameters=fast, line_bytes=4096)
    assert column(made) < 1.5


# ---- the page ----


class Parsed(html.parser.HTMLParser):
    """Tags in balance, their attributes, and texts by tag."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_asks_the_network_for_nothing(text):
    assert "://" not in text and "@import" not in text
    parsed = Parsed(text)
    addresses = [
        (name, value)
        for _, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    ]
    assert addresses and all(value.startswith(("#", "data:image/png;")) for _, value in addresses)
    assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)", text))
    policy = next(tag["content"] for tag in parsed.named("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_what_is_referred_to_is_there(text):
    parsed = Parsed(text)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:href="|url\()#([^")]*)', text)
    assert referred and set(referred) <= set(ids)


def test_every_figure_says_what_it_shows_and_has_a_table_beside_it(text, worn):
    parsed = Parsed(text)
    drawings = parsed.named("svg")
    assert len(drawings) == len(parsed.named("figure")) == 4
    assert all(tag["role"] == "img" and len(tag["aria-label"]) > 30 for tag in drawings)
    assert all(section.tables for section in disk.report(worn).sections if section.drawings)


def test_figures_of_the_page_are_those_of_stats(text, worn):
    content = next(data for tag, data in Parsed(text).texts if tag == "script")
    assert {**json.loads(content), "time": 0} == {**stats.collect(worn), "time": 0}


HOSTILE = b"<script>alert(1)</script>\"'&{{ 7*7 }}\xff\n\xe2\x80\xae$x^2$ -->.pmem"


def test_hostile_name_stays_text(tmp_path):
    made = make(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + HOSTILE.replace(b"/", b"|"))), writes=1)
    text = page.render(disk.report(made))
    parsed = Parsed(text)
    assert [tag.get("type") for tag in parsed.named("script")] == ["application/json"]
    title = next(data for tag, data in parsed.texts if tag == "title")
    assert title == "Wear of <script>alert(1)<|script>\"'&{{ 7*7 }}\\xff\\n\\u202e$x^2$ -->.pmem"
    text.encode()


@pytest.mark.parametrize(("place", "by"), [("interleaved", "mean"), ("linear", "max"), ("none", "mean")])
def test_any_placement_has_a_page(tmp_path, place, by):
    made = make(tmp_path / "a.pmem", 5 << 20, placement_name=place, parameters=SMALL, descriptor_bytes=16)
    with Device(made) as device:
        device.write(b"\x01" * 50 * PAGE, 0)
    report = disk.report(made, by=by, over="time")
    assert Parsed(page.render(report)).named("svg")
    section = next(one for one in report.sections if one.anchor == "map")
    assert ("257 columns" in section.text[0]) == (place == "interleaved")


def test_unwritten_image_says_so(tmp_path):
    made = disk.report(make(tmp_path / "a.pmem"))
    said = {section.anchor: section.text for section in made.sections}
    assert all(said[anchor] == [disk.drawn.NOTHING_WRITTEN] for anchor in ("map", "lorenz", "histogram", "life"))
    assert not made.drawings and Parsed(page.render(made)).named("table")


def test_damage_is_seen_first(tmp_path):
    made = make(tmp_path / "a.pmem", writes=1)
    counters = np.fromfile(made / "wear", "<u4")
    counters[-1] += 5
    counters.tofile(made / "wear")
    assert "Invariant wear_sum is broken: pmem-nbd check says more." in disk.report(made).alarms


# ---- life over time ----


def test_life_is_that_of_the_journal(tmp_path):
    made = make(tmp_path / "a.pmem", writes=6, leveling_name="none")
    history, lines = snapshot.history(made), stats.collect(made)["wear"]["all"]["lines"]
    assert len(history) == 6
    drawn = next(one for one in disk.report(made).drawings if one.name == "life").figure
    left = {line.get_label(): line.get_data() for line in drawn.axes[0].lines}
    assert left["hottest line"][0][1:] * 2**20 == pytest.approx([one["written_bytes"] for one in history])
    assert left["hottest line"][1].tolist() == [0, *(one["hottest"] for one in history)]
    worn = [sum(many for cause, many in one["worn"].items() if cause != "info") for one in history]
    assert left["mean"][1] == pytest.approx([0, *(many / lines for many in worn)])


def test_share_of_ideal_life_is_that_of_stats(worn):
    rows = next(one for one in disk.report(worn).sections if one.anchor == "life").tables[0].rows
    assert rows[-1][-1] == words.percent(stats.collect(worn)["normalized_life"], "high")


def test_history_of_an_image_that_is_served(tmp_path):
    made = make(tmp_path / "a.pmem")
    with Device(made) as device:
        device.write(b"\x01" * PAGE, 0)
        device.sample()
        device.write(b"\x01" * PAGE, 0)
        assert snapshot.history(made)[-1]["writes"] == 1
        rows = next(one for one in disk.report(made).sections if one.anchor == "life").tables[0].rows
        assert [row[1] for row in rows[-2:]] == ["4 KiB", "8 KiB"]  # the sample, and now
        assert "live" in disk.report(made).lead


def test_row_that_is_no_sample_is_left_out(tmp_path):
    made = make(tmp_path / "a.pmem", writes=1)
    journal = Journal(made / "journal")
    journal.sample({"written_bytes": "many"})
    journal.sample({**snapshot.history(made)[-2], "worn": {"host": None}})
    journal.close()
    rows = next(one for one in disk.report(made).sections if one.anchor == "life").tables[0].rows
    assert len(snapshot.history(made)) == 3 and len(rows) == 1


def test_history_is_whole_while_a_server_writes_it(tmp_path):
    made = make(tmp_path / "a.pmem")
    done, failed = threading.Event(), []

    def write(journal):
        try:
            for number in range(HISTORY_MAX - 100):  # with more it would be thinned
                if done.is_set():
                    return
                journal.sample({"number": number, "room": "x" * (number % 500)})
        except BaseException as error:
            failed.append(error)

    journal = Journal(made / "journal")
    thread = threading.Thread(target=write, args=(journal,))
    thread.start()
    lengths = []
    try:
        for _ in range(30):
            rows = [row for row in snapshot.history(made) if "number" in row]
            assert [row["number"] for row in rows] == list(range(len(rows)))
            lengths.append(len(rows))
    finally:
        done.set()
        thread.join()
        journal.close()
    assert not failed and lengths[0] < lengths[-1] and lengths == sorted(lengths)


def test_journal_that_cannot_be_read_costs_the_history_alone(tmp_path):
    made = make(tmp_path / "a.pmem", writes=1)
    data = bytearray((made / "journal" / "data.mdb").read_bytes())
    data[8192:] = bytes(len(data) - 8192)
    (made / "journal" / "data.mdb").write_bytes(data)
    with pytest.raises(DamagedImage, match=re.escape(f"{made}/journal: ")):
        snapshot.history(made)
    report = disk.report(made)
    assert [drawing.name for drawing in report.drawings] == ["heat-map", "lorenz", "histogram"]
    said = next(one for one in report.sections if one.anchor == "life").text
    assert "cannot be read" in said[0]


# ---- in a browser ----

PROBE = """<script>
console.log("probe");
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("svg")].map(svg => [svg, ...svg.querySelectorAll("image")].map(one => {
    const box = one.getBoundingClientRect();
    return [box.left, box.top, box.width, box.height];
  }));
  document.body.dataset.boxes = JSON.stringify({
    boxes, width: document.documentElement.scrollWidth, ink: getComputedStyle(document.body).color});
});
</script>"""


@needs("chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_browser_shows_the_column(tmp_path, text, worn, dark):
    """The page itself asks for no script, so that the one that measures has to be let in."""
    assert "default-src 'none';" in text
    probed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';", 1)
    (tmp_path / "page.html").write_text(probed.replace("</body>", f"{PROBE}</body>"))
    seen = browser.look(tmp_path / "page.html", tmp_path, dark=dark)
    assert len(seen.console) == 1 and "probe" in seen.console[0]
    measured = json.loads(dict(Parsed(seen.dom).named("body")[0])["data-boxes"])
    assert measured["width"] <= browser.WIDTH
    assert len(measured["boxes"]) == 4 and all(box[2] > 100 and box[3] > 100 for box, *_ in measured["boxes"])
    ink = [int(part) for part in re.findall(r"\d+", measured["ink"])]
    assert min(ink) > 200 if dark else max(ink) < 50
    assert (seen.pixels[1, 1] < 50).all() if dark else (seen.pixels[1, 1] == 255).all()

    _, (left, top, width, height), *_ = measured["boxes"][0]
    plan = image.load_geometry(worn)
    rows = -(-capacity.pages_behind_info(plan) // 65)
    viridis = mpl.colormaps["viridis"]
    for row, place in itertools.product((1, rows // 2, rows - 2), (0, 1, 30, 64)):
        shown = seen.pixels[int(top + height * (row + 0.5) / rows), int(left + width * (place + 0.5) / 65)]
        expected = viridis(1.0 if place == 0 else 1 / 64, bytes=True)[:3]
        assert np.abs(shown.astype(int) - expected).max() <= 3, (row, place)


@needs("chromium")
def test_browser_has_nothing_to_say_of_the_page(tmp_path, text):
    (tmp_path / "page.html").write_text(text)
    assert browser.look(tmp_path / "page.html", tmp_path).console == []


@needs("chromium")
def test_browser_would_refuse_what_the_page_does_not_have(tmp_path, text):
    """A picture from the network, or a script, that got into the page would not be loaded."""
    (tmp_path / "page.html").write_text(
        text.replace("</body>", '<img src="http://127.0.0.1:9/a"><script>1</script></body>')
    )
    seen = browser.look(tmp_path / "page.html", tmp_path)
    assert sum("Content Security Policy" in line for line in seen.console) == 2


# ---- the verb ----


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the verb in tmp_path: its status, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main(["report", *map(str, arguments)])
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def test_verb_writes_the_page_and_says_so(run, worn, tmp_path):
    status, out, err = run(worn, "-o", "a.html")
    assert (status, err) == (0, "") and re.fullmatch(rf"{tmp_path}/a\.html: [0-9.]+ KiB\n", out)
    assert Parsed((tmp_path / "a.html").read_text()).named("svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_verb_writes_each_figure(run, worn, tmp_path, kind):
    assert run(worn, "--figures", "drawn", "--format", kind)[0] == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        f"{name}.{kind}" for name in ("heat-map", "histogram", "life", "lorenz")
    ]
    magic = {"svg": b"<?xml", "png": b"\x89PNG"}[kind]
    assert all(path.read_bytes().startswith(magic) for path in (tmp_path / "drawn").iterdir())


def test_nothing_is_overwritten_unless_told_to(run, worn, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    status, out, err = run(worn)
    assert (status, out) == (2, "") and err == "report.html: exists already: a new name, or --force\n"
    assert (tmp_path / "report.html").read_text() == "mine"
    assert run(worn, "--force")[0] == 0
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "life.svg").write_text("mine")
    assert run(worn, "-o", "b.html", "--figures", "drawn")[0] == 2
    assert not (tmp_path / "b.html").exists() and len(list((tmp_path / "drawn").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["IMAGE", "-o", "no/a.html"],
            1,
            "no/a.html: cannot be made: there is no such directory: a path whose parent exists",
        ),
        (["IMAGE", "-o", "IMAGE/wear", "--force"], 2, "IMAGE/wear: lies within the image HERE: a path outside of it"),
        (["IMAGE", "-o", "link", "--force"], 2, "link: lies within the image HERE: a path outside of it"),
        (["IMAGE", "--figures", "IMAGE"], 2, "IMAGE: lies within the image HERE: a path outside of it"),
        (["IMAGE", "--figures", "IMAGE/drawn"], 2, "IMAGE/drawn: lies within the image HERE: a path outside of it"),
        (["IMAGE", "-o", "/dev/null", "--force"], 2, "/dev/null: is no regular file: a new file"),
        (["IMAGE", "-o", "."], 2, ".: is no regular file: a new file"),
        (
            ["IMAGE", "--figures", "no/drawn"],
            1,
            "no/drawn: cannot be made: there is no such directory: a path whose parent exists",
        ),
        (["IMAGE", "--figures", "file"], 2, "file: is no directory: a directory, or a new name"),
        (["IMAGE", "--format", "svg"], 2, "--format: no figures are written: --figures DIR beside it"),
        (["nothing"], 1, "nothing: does not exist: an image made by 'pmem-nbd create'"),
        (["IMAGE", "--by", "sum"], 2, None),
    ],
)
def test_bad_request_is_one_line(run, worn, tmp_path, arguments, status, line):
    shutil.copytree(worn, tmp_path / "image")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "image" / "wear")
    before = sorted(tmp_path.rglob("*"))
    seen = run(*(word.replace("IMAGE", "image") for word in arguments))
    assert seen[:2] == (status, "") and seen[2].count("\n") == 1
    if line is not None:
        assert seen[2] == line.replace("IMAGE", "image").replace("HERE", f"{tmp_path.resolve()}/image") + "\n"
    assert sorted(tmp_path.rglob("*")) == before
    assert stats.collect(tmp_path / "image")["wear"] == stats.collect(worn)["wear"]


@needs("root")
def test_image_that_may_not_be_read_is_named(run, worn, tmp_path):
    shutil.copytree(worn, tmp_path / "image")
    (tmp_path / "image").chmod(0)
    os.seteuid(65534)
    try:
        seen = run(tmp_path / "image", "-o", "/tmp/never-made.html")
    finally:
        os.seteuid(0)
    assert seen == (1, "", f"{tmp_path}/image: permission denied\n")


def test_study_that_has_not_ended_is_called_so(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.jsonl").touch()
    expected = "the same 'pmem-nbd study' again, which goes on"
    assert run("out") == (1, "", f"out: is a study that has not ended: {expected}\n")


def test_user_without_a_home_is_not_warned_of_it(worn, tmp_path):
    home = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc") | {"TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | home
    code = "import sys; from pmem_core.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", str(worn), "-o", tmp_path / "a.html"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "MPLCONFIGDIR" not in done.stderr


def test_damaged_image_is_one_line(run, worn, tmp_path):
    shutil.copytree(worn, tmp_path / "image")
    with (tmp_path / "image" / "media").open("r+b") as media:
        media.write(bytes(8192))
    status, out, err = run("image")
    assert (status, out) == (1, "") and err.count("\n") == 1 and err.startswith("image/media: ")
    assert not (tmp_path / "report.html").exists()


def test_missing_library_is_one_line(run, worn, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pmem_core.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run(worn) == (1, "", "module jinja2: is missing: pip install 'pmem-nbd[plot]'\n")


def test_other_verbs_do_not_wait_for_the_libraries(worn):
    code = (
        "import sys; from pmem_core.cli import main; main(['stats', sys.argv[1], '-j']); main(['report', '--help']); "
        "print({'matplotlib', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, worn], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_examples_can_be_run_one_after_the_other():
    """None writes what one before it has written, unless it is told to."""
    from pmem_core.cli.report import report

    examples = re.findall(r"pmem-nbd (report .*)", report.help)
    written = [line.split()[line.split().index("-o") + 1] for line in examples if "--force" not in line]
    assert len(examples) == 4 and len(set(written)) == len(written) == 3
