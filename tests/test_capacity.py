# SPDX-License-Identifier: MIT
"""Where every byte of a medium goes: of plans, by a naive twin; of Linux and BTT, by what they showed elsewhere."""

import json
from pathlib import Path

import hypothesis.strategies as st
import naive
import pytest
from hypothesis import assume, example, given

from pmem_core import capacity, geometry, layout, leveling, peers, placement
from pmem_core.errors import UsageError

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def run(command, tmp_path, monkeypatch):
    """Run the command in a folder of its own; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return command


# ---- what Linux leaves, as ndctl printed it on machines ----


@pytest.mark.parametrize(("gib", "printed"), [(1500, 1476.56), (756, 744.19), (504, 496.12)])
def test_map_dev_leaves_what_ndctl_printed(gib, printed):
    # 496.123 was printed as 496.12, 744.186 as 744.19.
    assert peers.fsdax(gib * GIB, on_device=True)["data"] / GIB == pytest.approx(printed, abs=0.005)


def test_map_dev_of_a_64_mib_file_is_as_ndctl_makes_it():
    by_use = peers.fsdax(64 * MIB, on_device=True)
    assert by_use["info"] + by_use["descriptor"] + by_use["padding"] == 2097152  # dataoff
    assert by_use["data"] == 15872 * PAGE  # npfns


def test_map_mem_costs_one_alignment_whatever_the_size():
    for size in (4 * MIB, 64 * MIB, 1500 * GIB):
        assert peers.fsdax(size, on_device=False)["data"] == size - 2 * MIB


@pytest.mark.parametrize("size", [8 * MIB, 1500 * GIB])
def test_ram_leaves_what_map_mem_leaves(size):
    """Without leveling, which a DIMM does inside; and memory for the pages the client sees, not for all of them."""
    plan = geometry.plan(size, placement_name="ram", leveling_name="none")
    (peer,) = (peer for peer in peers.peers(size) if peer.name == "fsdax, map=mem")
    assert plan.device_bytes == peer.by_use["data"]
    assert plan.kept_bytes == 64 * plan.info.page_count
    assert peer.memory_bytes - plan.kept_bytes == 64 * (2 * MIB // PAGE)


def test_fsdax_gives_up_what_is_behind_the_last_2_mib():
    for on_device in (True, False):
        whole, more = (peers.fsdax(64 * MIB + rest, on_device=on_device) for rest in (0, 2 * MIB - PAGE))
        assert (more["data"], more["tail"]) == (whole["data"], 2 * MIB - PAGE)


@pytest.mark.parametrize("size", [PAGE, 2 * MIB, 4 * MIB - PAGE])
def test_namespace_too_small_for_fsdax_is_refused(size):
    for on_device in (True, False):
        with pytest.raises(UsageError, match="too small"):
            peers.fsdax(size, on_device=on_device)


# ---- what BTT leaves ----


def test_btt_of_8_gib_leaves_what_linux_showed():
    assert peers.btt(8 * GIB, 4096)["data"] == 8_580_472_832


def test_smallest_btt_is_as_worked_out_by_hand():
    """16 MiB less 2 info blocks and 16 KiB of flog, less a page: 16748544 = 4085 blocks of 4100 bytes and 44 bytes."""
    assert peers.btt(16 * MIB + 4096, 4096) == {
        "info": 8192,
        "data": (4085 - 256) * 4096,
        "free": 256 * 4096,
        "map": 4 * 4096,  # of 3829 * 4 = 15316 bytes
        "flog": 16384,
        "padding": 4096 + 4096,  # in front of the arena; and what the map did not need of the page left for it
        "tail": 0,
    }


def test_btt_has_an_arena_for_each_512_gib_and_none_in_a_small_rest():
    arena = peers.btt(512 * GIB + 4096, 4096)
    for arenas, rest in ((2, 0), (3, 16 * MIB - PAGE)):
        found = peers.btt(arenas * 512 * GIB + 4096 + rest, 4096)
        assert found["tail"] == rest
        assert all(found[use] == arenas * arena[use] for use in ("info", "data", "free", "map", "flog"))


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@given(pages=st.integers((16 * MIB + 4096) // PAGE, (64 << 40) // PAGE))
def test_btt_is_a_layout_that_holds_what_it_promises(sector_bytes, pages):
    by_use = peers.btt(pages * PAGE, sector_bytes)
    assert sum(by_use.values()) == pages * PAGE and min(by_use.values()) >= 0
    sectors, arenas = by_use["data"] // sector_bytes, by_use["info"] // 8192
    assert by_use["map"] >= 4 * sectors and by_use["flog"] >= 64 * 256 * arenas
    assert by_use["padding"] < 4096 + arenas * (8192 + 4096 + sector_bytes)  # it wastes no more than rounding


@given(pages=st.integers(1, (64 << 40) // PAGE))
def test_uses_of_peers_add_up_to_the_medium(pages):
    for peer in peers.peers(pages * PAGE):
        assert bool(peer.refused) != bool(peer.by_use)
        if peer.by_use:
            assert sum(peer.by_use.values()) == pages * PAGE and min(peer.by_use.values()) >= 0


# ---- what a plan leaves ----

POLICIES = [(place, level) for place in placement.family.modules for level in leveling.family.modules]
SMALL = {"start_gap": {"region_frames": 64, "gap_frames": 3}, "security_refresh": {"sub_regions": 2}}


@st.composite
def options(draw):
    """Options that share out the medium in another way."""
    frame_bytes = 1 << draw(st.integers(8, 16))
    return {"frame_bytes": frame_bytes, "line_bytes": 64, "descriptor_bytes": 1 << draw(st.integers(4, 12))}


def planned(place, level, size, chosen):
    """The plan, or none: hypothesis then draws another."""
    try:
        return geometry.plan(size, placement_name=place, leveling_name=level, **chosen)
    except UsageError as error:
        refusal = error.what
    assert refusal.startswith(("too small", "not with descriptors of 4096 bytes"))
    return assume(False)


@pytest.mark.parametrize(("place", "level"), POLICIES)
@given(pages=st.integers(3, (64 << 40) // PAGE), chosen=options())
@example(pages=(64 << 40) // PAGE, chosen={})
def test_uses_add_up_to_the_medium_whatever_its_size(place, level, pages, chosen):
    plan = planned(place, level, pages * PAGE, chosen)
    shares = capacity.shares(plan)
    assert sum(shares.values()) == pages * PAGE and min(shares.values()) >= 0
    assert tuple(shares) == capacity.USES


@pytest.mark.parametrize(("place", "level"), POLICIES)
@given(pages=st.integers(3, 1600), chosen=options())
def test_uses_are_those_of_the_naive_twin(place, level, pages, chosen):
    """Every page of the placed space is looked at: what the twin puts there."""
    size = pages * PAGE
    plan = planned(place, level, size, chosen | {"parameters": SMALL.get(level, {})})
    placed_bytes = plan.placed_frames * plan.info.frame_bytes if level != "none" else size - layout.FRAMES_AT
    twin = naive.PLACEMENTS[place](placed_bytes, plan.info.descriptor_bytes)
    descriptors = {at // PAGE for at in (twin.descriptors or ())[: plan.info.page_count]}
    held = {at // PAGE for at in twin.pages} | descriptors
    shares = capacity.shares(plan)
    assert shares["data"] == len(twin.pages) * PAGE
    assert shares["descriptor"] == len(descriptors) * PAGE
    assert shares["padding"] == placed_bytes - len(held) * PAGE
    assert shares["spare"] == len(plan.leveling.spare_frames(plan.leveling_state, plan.table)) * plan.info.frame_bytes
    assert shares["tail"] == size - sum(shares[use] for use in capacity.USES if use != "tail")


@pytest.mark.parametrize("level", leveling.family.modules)
def test_spare_frames_are_counted_as_they_are_named(level):
    for size in (MIB + PAGE, 40 * MIB, GIB):
        plan = geometry.plan(size, leveling_name=level, parameters=SMALL.get(level, {}))
        assert plan.spare_count == len(plan.leveling.spare_frames(plan.leveling_state, plan.table))


# ---- info --plan ----


@pytest.mark.parametrize(("place", "level"), POLICIES)
def test_plan_is_what_creation_makes_of_it(run, place, level):
    chosen = ["--size", "100M", "--placement", place, "--leveling", level, "--descriptor-bytes", "32"]
    assert run("create", "disk.pmem", *chosen)[0] == 0
    made = json.loads(run("info", "disk.pmem", "-j")[1])
    (plan,) = json.loads(run("info", "--plan", *chosen, "-j")[1])["plans"]
    assert plan["capacity"] == made["capacity"] and made["capacity"]["medium_bytes"] == 100 * MIB
    for name in ("placement", "leveling", "parameters", "page_count", "data_at", "linux"):
        assert plan[name] == made["image"][name]
    assert (plan["descriptors"], plan["descriptor_bytes"]) == tuple(
        made["image"][name] for name in ("descriptors", "descriptor_bytes")
    )
    assert plan["memory_bytes"] == made["descriptor_memory"]["bytes"]


def test_plan_without_placement_is_of_all_beside_their_peers(run):
    status, out, err = run("info", "--plan", "--size", "1.5T", "-j")
    assert (status, err) == (0, "")
    seen = json.loads(out)
    assert [plan["placement"] for plan in seen["plans"]] == sorted(placement.family.modules)
    assert {peer["name"]: peer["capacity"]["device_bytes"] for peer in seen["peers"]} == {
        "fsdax, map=dev": peers.fsdax(1536 * GIB, on_device=True)["data"],
        "fsdax, map=mem": 1536 * GIB - 2 * MIB,
        "BTT, 4096 B": peers.btt(1536 * GIB, 4096)["data"],
        "BTT, 512 B": peers.btt(1536 * GIB, 512)["data"],
    }
    assert all(peer["source"] for peer in seen["peers"])
    status, out, err = run("info", "--plan", "--size", "1.5T")
    assert (status, err) == (0, "") and out.isascii()
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()[2:]}
    for row in (*seen["plans"], *seen["peers"]):
        assert str(row["capacity"]["device_bytes"]) in rows[row.get("name") or row["placement"]]


def test_plan_of_one_placement_says_where_each_byte_goes(run):
    out = run("info", "--plan", "--size", "1T", "--placement", "linear", "--leveling", "none")[1]
    assert "Linux reads it as a fsdax namespace" in out
    (plan,) = json.loads(run("info", "--plan", "-s", "1T", "--placement", "linear", "--leveling", "none", "-j")[1])[
        "plans"
    ]
    for count in plan["capacity"]["bytes"].values():
        assert not count or f" {count} " in out
    assert "###" in out


def test_what_is_impossible_stands_beside_what_is_not(run):
    """Linear leaves nothing of 4 MiB with descriptors of 2048 bytes, and BTT wants 16 MiB."""
    seen = json.loads(
        run("info", "--plan", "--size", "4M", "--leveling", "none", "--descriptor-bytes", "2048", "-j")[1]
    )
    refused = {plan["placement"] for plan in seen["plans"] if "refused" in plan}
    assert refused == {"linear"} and [("capacity" in peer) for peer in seen["peers"]] == [True, True, False, False]
    out = run("info", "--plan", "--size", "4M", "--leveling", "none", "--descriptor-bytes", "2048")[1]
    assert "linear: size=4194304: too small for placement linear" in out and "BTT, 512 B: too small" in out


def test_no_larger_size_is_asked_for_where_none_would_help(run):
    """With descriptors of a page linear's array is as large as the medium."""
    out = run("info", "--plan", "--size", "9G", "--descriptor-bytes", "4096")[1]
    assert (
        "linear: placement=linear: not with descriptors of 4096 bytes: at most 2048" in out and "too small" not in out
    )


@pytest.mark.parametrize("leveling_options", [(), ("--leveling", "none")])
def test_tables_of_the_document_are_what_the_command_prints(run, monkeypatch, leveling_options):
    monkeypatch.setenv("COLUMNS", "100")
    out = run("info", "--plan", "--size", "1.5T", *leveling_options)[1]
    document = (Path(__file__).parent.parent / "docs" / "capacity.md").read_text()
    assert "\n".join(f"    {line}".rstrip() for line in out.rstrip().splitlines()) in document


WRONG = {
    "a page": (["--plan", "--size", "1G", "--page", "3"], "--page: is of an image that is there: no --plan"),
    "an image too": (["disk.pmem", "--plan", "--size", "1G"], "--plan: and an image: disk.pmem"),
    "no size": (["--plan"], "--plan: no size"),
    "neither": ([], "info: no image"),
    "size of an image": (["disk.pmem", "--size", "1G"], "--size: says what an image is to be: --plan"),
    "geometry of an image": (["disk.pmem", "--frame-bytes", "4K"], "--frame-bytes: says what an image is to be"),
    "unaligned": (["--plan", "--size", "5000"], "a multiple of 4096, such as 8192"),
    "no whole bytes": (["--plan", "--size", "1.3T"], "a size such as 1429365116928"),
    "too small for all": (["--plan", "--size", "8K"], "too small"),
    "too small for this": (["--plan", "--size", "2M", "--placement", "linear"], "too small for placement linear"),
    "unknown leveling": (["--plan", "--size", "1G", "--leveling", "wishful"], "no such policy"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_plan_typed_wrong_is_told_in_one_line(run, arguments, words):
    status, out, err = run("info", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err and list(Path().iterdir()) == []


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_plan_fits_the_terminal(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for chosen in ((), ("--placement", "linear")):
        out = run("info", "--plan", "--size", "1.5T", *chosen)[1]
        table = out.split("\n\n", 1)[1].splitlines()
        assert max(len(line.rstrip()) for line in table if " sees 1" not in line) <= width
