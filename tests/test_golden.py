# SPDX-License-Identifier: MIT
"""Golden tables: one fixed workload for each pair of policies; info block, descriptors, wear and medium to the letter.

A difference means that the format, or where bytes go, or what wears, is no longer what it was.  If it should be so:

    PMEM_NBD_UPDATE_GOLDEN=1 .venv/bin/pytest tests/test_golden.py

writes the tables anew; read them (git diff) before they are committed.  A new policy gets its tables the same way.
"""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import one_worker
from pairs import ALL_PAIRS, PAIRS

from pmem_core import geometry, image, infoblock, layout, leveling, upkeep
from pmem_core.device import Device
from pmem_core.errors import UsageError

pytestmark = pytest.mark.contract

FOLDER = Path(__file__).parent / "golden"
UPDATE = os.environ.get("PMEM_NBD_UPDATE_GOLDEN") == "1"
PAGE = 4096
LINE_BYTES, FRAME_BYTES = 1024, 4096
UUID = "00112233-4455-6677-8899-aabbccddeeff"
CREATED = 1430956800  # 7 May 2015
PAGES_WANTED = 30


def variants(name):
    """Parameters of a leveling by variant: numbers small, so that much moves; switches off, and then on."""
    parameters = leveling.family.modules[name].PARAMETERS
    switches = [key for key, (_, _, most, _) in parameters.items() if most == 1]
    numbers = {key: min(max(4, least), most) for key, (_, least, most, _) in parameters.items()}
    found = {"": numbers | dict.fromkeys(switches, 0)}
    return found | ({"-" + "-".join(switches): numbers | dict.fromkeys(switches, 1)} if switches else {})


CASES = {
    f"{placing}-{levelling}{variant}": (placing, levelling, parameters)
    for placing, levelling in ALL_PAIRS
    for variant, parameters in variants(levelling).items()
}
NAMES = [pytest.param(name, marks=one_worker(*names)) for name, (*names, _) in CASES.items() if tuple(names) in PAIRS]


def plan_of(placing, levelling, parameters):
    """The smallest device with the pages wanted, its uuid and time of creation fixed."""
    size, pages = 0, 0
    while pages < PAGES_WANTED:
        size += 16 * PAGE
        try:
            drawn = geometry.plan(
                size,
                placement_name=placing,
                leveling_name=levelling,
                parameters=parameters,
                frame_bytes=FRAME_BYTES,
                line_bytes=LINE_BYTES,
            )
        except UsageError:
            continue
        pages = drawn.info.page_count
    return geometry.derive(dataclasses.replace(drawn.info, uuid=UUID, created=CREATED))


def data_of(number, count):
    """`count` bytes that are the same on every machine."""
    return hashlib.shake_128(b"golden %d" % number).digest(count)


def work(device):
    """The workload: whole pages, parts, a hot page, a trim, zeros, a flush."""
    for number in range(20):
        device.write(data_of(number, PAGE), number * PAGE)
    for number in range(40):
        device.write(data_of(number, 100), 3 * PAGE + 37 * number)
    device.write(data_of(60, 5000), 21 * PAGE + 4000)
    device.flush()
    device.trim(4 * PAGE, 8 * PAGE)
    device.zero(3 * PAGE, 14 * PAGE + 512)
    device.zero(PAGE, 2 * PAGE, may_trim=False)
    for number in range(70, 110):
        device.write(data_of(number, 600), number * 7919 % (28 * PAGE))
    device.write(data_of(110, 512), 0, fua=True)


def hex_rows(data):
    """Rows of 16 bytes that are not all zero: offset, then hex."""
    rows = [(at, data[at : at + 16]) for at in range(0, len(data), 16)]
    return [f"{at:04x}  {row.hex(' ', 4)}" for at, row in rows if any(row)]


def table_of(path, plan):
    """The golden text of a closed image."""
    media = bytearray((path / "media").read_bytes())
    counters = np.fromfile(path / "wear", "<u4").reshape(-1, PAGE // LINE_BYTES)
    with Device(path, read_only=True) as device:
        tally = device.mapping.core["tally"][0]
        state = device.mapping.core["leveling"][0]
        table = device.mapping.table[: len(plan.table)].copy()
        for frame in plan.leveling.spare_frames(state, table).tolist():
            at = layout.FRAMES_AT + frame * FRAME_BYTES
            media[at : at + FRAME_BYTES] = bytes(FRAME_BYTES)
        causes = dict(zip(layout.CAUSES, tally["worn"].tolist(), strict=True))
        lines = [
            "# SPDX-License-Identifier: MIT",
            "# Made by tests/test_golden.py, which says how.",
            "",
            f"placement {plan.info.placement}, leveling {plan.info.leveling}",
            f"pages {plan.info.page_count}, page 0 at {plan.info.data_at}, medium {plan.info.size} bytes",
            f"page writes {tally['page_writes']}, moves {tally['moves']}, hottest line {tally['hottest']}",
            "line writes by cause: " + ", ".join(f"{cause} {count}" for cause, count in causes.items()),
            f"leveling: {' '.join(f'{field}={state[field].tolist()}' for field in state.dtype.names)}",
            f"table: {' '.join(f'{word:x}' for word in table.tolist()) or 'empty'}",
            f"sha256 of the medium, spare frames as zeros: {hashlib.sha256(media).hexdigest()}",
            "",
            "info block: offset, bytes; rows of zeros are left out",
            *hex_rows(media[: layout.INFO_BYTES]),
            "",
            "descriptors of pages 0 to 11, as they lie on the medium",
            *hex_rows(descriptors(device, media, plan, 12)),
            "",
            f"wear: medium page, writes of each of its {PAGE // LINE_BYTES} lines; pages never written are left out",
            *(
                f"{page:4d}  {' '.join(f'{n:3d}' for n in row)}"
                for page, row in enumerate(counters.tolist())
                if any(row)
            ),
        ]
    return "".join(line.rstrip() + "\n" for line in lines)


def descriptors(device, media, plan, count):
    """The bytes of the first descriptors, one after the other; none where none are on the medium."""
    if not plan.has_descriptors:
        return b""
    size, stored = plan.info.descriptor_bytes, b""
    first, stride, _, _ = plan.placement.descriptor_spans(plan.placement_state, plan.info.page_count)
    for page in range(count):
        # Both placements put the descriptors of the first pages side by side, at the beginning of the first span.
        at = medium_address(device, first + page * size)
        stored += media[at : at + size]
    assert stride >= count * size
    return stored


def medium_address(device, placed):
    """Where a placed byte lies on the medium."""
    return int(upkeep.medium_address(device.handle, placed))


@pytest.mark.parametrize("name", NAMES)
def test_workload_leaves_the_golden_table(tmp_path, name):
    plan = plan_of(*CASES[name])
    path = tmp_path / "golden.pmem"
    image.create(path, plan)
    with Device(path) as device:
        work(device)
    found = table_of(path, plan)
    golden = FOLDER / f"{name}.txt"
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        golden.write_text(found)
    assert golden.exists(), f"no golden table: PMEM_NBD_UPDATE_GOLDEN=1 pytest {Path(__file__).name}"
    assert found.splitlines() == golden.read_text().splitlines()


def test_every_golden_table_is_of_a_pair_that_exists():
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_info_block_is_read_back(tmp_path, name):
    plan = plan_of(*CASES[name])
    assert infoblock.unpack(infoblock.pack(plan.info)) == plan.info
