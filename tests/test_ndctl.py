# SPDX-License-Identifier: MIT
"""With placement linear and leveling none the medium is a Linux fsdax namespace: ndctl and the kernel agree."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import needs

from pmem_core import cli, geometry, image, peers
from pmem_core.infoblock import read

GIB = 1 << 30
PAGE = 4096


def make(folder: Path, size: int) -> Path:
    """A sparse image that Linux can use."""
    path = folder / "disk.pmem"
    image.create(path, geometry.plan(size, placement_name="linear", leveling_name="none"))
    return path


def infoblock(path: Path) -> dict:
    """What ndctl reads from the medium."""
    done = subprocess.run(
        ["ndctl", "read-infoblock", "-i", path / "media", "-j"], capture_output=True, text=True, check=True
    )
    (block,) = json.loads(done.stdout)
    return block


@needs("ndctl")
def test_ndctl_accepts_the_medium(tmp_path):
    block = infoblock(make(tmp_path, 64 << 20))
    wanted = {
        "signature": "NVDIMM_PFN_INFO",
        "parent_uuid": "00000000-0000-0000-0000-000000000000",
        "flags": 0,
        "version": "1.4",
        "mode": 2,
        "start_pad": 0,
        "end_trunc": 0,
        "align": 2 << 20,
        "page_size": PAGE,
        "page_struct_size": 64,
    }
    assert {name: block[name] for name in wanted} == wanted


@needs("ndctl")
def test_ndctl_shows_the_uuid_of_the_image(tmp_path):
    path = make(tmp_path, 64 << 20)
    assert infoblock(path)["uuid"] == read(path / "media").uuid


@needs("ndctl")
@pytest.mark.parametrize("size", [4 << 20, 64 << 20, (64 << 20) + PAGE, 8 * GIB, 504 * GIB, 756 * GIB, 1500 * GIB])
def test_data_begins_where_linux_would_put_it(tmp_path, size):
    """nd_pfn_init() in drivers/nvdimm/pfn_devs.c, with start 0 and an alignment of 2 MiB."""
    block = infoblock(make(tmp_path, size))
    align = 2 << 20
    dataoff = -(-(8192 + 64 * ((size - 8192) // PAGE)) // align) * align
    assert block["dataoff"] == dataoff
    assert block["npfns"] == (size - dataoff) // PAGE


@needs("ndctl")
@pytest.mark.parametrize(("size_gib", "usable_gib"), [(1500, 1476.56), (756, 744.19), (504, 496.12)])
def test_usable_size_is_what_real_machines_show(tmp_path, size_gib, usable_gib):
    block = infoblock(make(tmp_path, size_gib * GIB))
    # 496.125 was printed as 496.12.
    assert block["npfns"] * PAGE / GIB == pytest.approx(usable_gib, abs=0.0051)


@needs("ndctl")
def test_64_mib_file_is_as_ndctl_makes_it(tmp_path):
    block = infoblock(make(tmp_path, 64 << 20))
    assert (block["dataoff"], block["npfns"]) == (2097152, 15872)


@needs("ndctl")
@pytest.mark.parametrize("size", [4 << 20, 64 << 20, (64 << 20) + PAGE, 8 * GIB, 1500 * GIB])
def test_plan_without_an_image_is_what_ndctl_reads_from_one(tmp_path, capsys, size):
    options = ["--size", str(size), "--placement", "linear", "--leveling", "none"]
    assert cli.main(["info", "--plan", *options, "-j"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    block = infoblock(make(tmp_path, size))
    assert (plan["data_at"], plan["page_count"], plan["linux"]) == (block["dataoff"], block["npfns"], True)
    if size % (2 << 20) == 0:
        # Else Linux itself gives up what is behind the last 2 MiB; it takes a block that does not.
        assert peers.fsdax(size, on_device=True)["data"] == block["npfns"] * PAGE == plan["capacity"]["device_bytes"]


@needs("ndctl")
@pytest.mark.parametrize("size", [4 << 20, 64 << 20, 1500 * GIB])
def test_ram_is_a_namespace_with_its_map_in_memory(tmp_path, size):
    """nd_pfn_init(): mode 1, and nothing but the info blocks in front of the data, aligned to 2 MiB."""
    image.create(tmp_path / "disk.pmem", geometry.plan(size, placement_name="ram", leveling_name="none"))
    block = infoblock(tmp_path / "disk.pmem")
    wanted = {"signature": "NVDIMM_PFN_INFO", "mode": 1, "align": 2 << 20, "page_struct_size": 64, "end_trunc": 0}
    assert {name: block[name] for name in wanted} == wanted
    assert (block["dataoff"], block["npfns"]) == (2 << 20, (size - (2 << 20)) // PAGE)
    assert read(tmp_path / "disk.pmem" / "media").in_memory


@needs("ndctl")
@pytest.mark.parametrize(
    "options", [{"leveling_name": "start_gap"}, {"descriptor_bytes": 16}, {"descriptor_bytes": 128}]
)
def test_only_what_linux_can_use_has_its_signature(tmp_path, options):
    path = tmp_path / "disk.pmem"
    chosen = {"leveling_name": "none", "placement_name": "linear", **options}
    image.create(path, geometry.plan(64 << 20, **chosen))
    done = subprocess.run(
        ["ndctl", "read-infoblock", "-i", path / "media", "-j"], capture_output=True, text=True, check=False
    )
    assert "NVDIMM_PFN_INFO" not in done.stdout
