# SPDX-License-Identifier: MIT
"""The documented format is the format: a reader written from docs/media-format.md finds what the device holds."""

import ast
import itertools
import random
import re
from pathlib import Path

import independent_reader
import pytest
from independent_reader import Reader, crc32c, fletcher64

from pmem_core import geometry, image, layout
from pmem_core.convert import saved
from pmem_core.device import Device

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "media-format.md").read_text()
SIZE = 5 << 20
LEVELINGS = {
    "none": ("none", {}),
    "start_gap": ("start_gap", {"interval": 3, "region_frames": 16, "gap_frames": 2}),
    "randomized": ("start_gap", {"interval": 1, "region_frames": 32, "gap_frames": 1, "randomize": 1}),
}


def make(folder: Path, **options) -> Path:
    """An image of options, in a folder of its own."""
    path = folder / "disk.pmem"
    image.create(path, geometry.plan(options.pop("size", SIZE), **options))
    return path


def work(device: Device, chance: random.Random, operations: int) -> None:
    """Write, trim and zero at random; near the start, the end, and anywhere."""
    size = device.plan.device_bytes
    for _ in range(operations):
        count = chance.choice((1, 100, 4096, chance.randint(1, 20000), 65536))
        offset = chance.choice((chance.randrange(size), chance.randrange(1 << 18), size - chance.randint(1, 1 << 17)))
        offset = max(0, min(offset, size - count))
        what = chance.random()
        if what < 0.7:
            device.write(memoryview(chance.randbytes(count)), offset)
        elif what < 0.8:
            device.trim(min(16 * count, size - offset), offset)
        elif what < 0.9:
            device.zero(count, offset, may_trim=chance.random() < 0.5)
        else:
            device.flush()


def content(device: Device) -> bytes:
    """All of the device, read through it."""
    buffer = bytearray(device.plan.device_bytes)
    device.read_into(memoryview(buffer), 0)
    return bytes(buffer)


@pytest.mark.parametrize("frame_bytes", [256, 4096, 65536])
@pytest.mark.parametrize("leveling", LEVELINGS)
@pytest.mark.parametrize(
    ("placement", "descriptor_bytes"),
    [
        *itertools.product(["interleaved"], [16, 64, 512, 4096]),
        *itertools.product(["linear"], [16, 32, 1024]),  # with 4096 the array would be as large as the medium
        ("none", 64),
        ("ram", 64),
    ],
)
def test_reader_finds_what_the_device_holds(tmp_path, placement, leveling, descriptor_bytes, frame_bytes):
    seed = f"{placement} {leveling} {descriptor_bytes} {frame_bytes}"
    chance = random.Random(seed)
    name, parameters = LEVELINGS[leveling]
    path = make(
        tmp_path,
        placement_name=placement,
        leveling_name=name,
        parameters=parameters,
        descriptor_bytes=descriptor_bytes,
        descriptor_writes=chance.choice(("each", "coalesced")),
        frame_bytes=frame_bytes,
        line_bytes=chance.choice((64, 256)),
    )
    for _ in range(2):
        with Device(path) as device:
            work(device, chance, 12)
            wanted = content(device)
            moves = int(device.mapping.core["tally"]["moves"][0])
    assert moves > 0 or leveling == "none"
    assert Reader(path).content() == wanted


@pytest.mark.parametrize("placement", ["interleaved", "linear"])
@pytest.mark.parametrize("initialise", ["eager", "section", "subsection", "buddy"])
def test_reader_finds_free_descriptors_and_heads(tmp_path, placement, initialise):
    chance = random.Random(f"{placement} {initialise}")
    path = make(tmp_path, placement_name=placement, leveling_name="none", initialise=initialise)
    with Device(path) as device:
        work(device, chance, 12)
        device.trim(80 << 12, 64 << 12)
        wanted = content(device)
    reader = Reader(path)
    assert reader.content() == wanted
    assert (reader.info["initialise"], reader.info["initialised"]) == (
        layout.INITIALISE[initialise],
        initialise == "eager",
    )
    if initialise == "buddy":
        sizes = {end - first for first, end in reader.groups()}
        assert 1 in sizes and max(sizes) >= 64
    elif initialise in ("eager", "section"):
        assert all(reader.descriptor(page) for page in range(reader.pages))


def test_descriptors_say_what_was_done(tmp_path):
    path = make(tmp_path, leveling_name="none")
    with Device(path) as device:
        device.write(memoryview(b"a" * 4096), 0)
        device.write(memoryview(b"b"), 4096 * 70)
        device.write(memoryview(b"c"), 4096 * 70 + 9)
        device.write(memoryview(b"d" * 4096), 4096 * 3)
        device.trim(4096, 4096 * 3)
    reader = Reader(path)
    first, twice, trimmed = (reader.descriptor(page) for page in (0, 70, 3))
    assert first == {
        "checksum": first["checksum"],
        "data_checksum": crc32c(b"a" * 4096),
        "flags": layout.PG_UPTODATE,
        "writes": 1,
        "generation": 1,
        "refcount": 1,
        "mapcount": 0,
        "index": 0,
        "order": 0,
    }
    assert (twice["writes"], twice["generation"], twice["index"]) == (2, 3, 70)
    assert (trimmed["flags"], trimmed["refcount"], trimmed["data_checksum"], trimmed["writes"]) == (0, 0, 0, 1)
    assert reader.descriptor(1) is None


def test_descriptor_of_another_page_is_found_out(tmp_path):
    path = make(tmp_path, leveling_name="none")
    with Device(path) as device:
        device.write(memoryview(b"a" * 4096), 0)
    media = bytearray((path / "media").read_bytes())
    media[8192 + 64 : 8192 + 128] = media[8192 : 8192 + 64]
    (path / "media").write_bytes(media)
    with pytest.raises(AssertionError, match="descriptor of page 1"):
        Reader(path).descriptor(1)


def test_newer_info_block_wins(tmp_path):
    media = make(tmp_path) / "media"
    block = bytearray(media.read_bytes()[:4096])
    block[1056:1064] = (2).to_bytes(8, "little")
    block[4088:] = fletcher64(bytes(block[:4088]) + bytes(8)).to_bytes(8, "little")
    with media.open("r+b") as file:
        file.seek(4096)
        file.write(block)
    assert independent_reader.read_info(media)["generation"] == 2


def test_torn_info_block_is_passed_over(tmp_path):
    media = make(tmp_path) / "media"
    with media.open("r+b") as file:
        file.seek(100)
        file.write(b"torn")
    assert independent_reader.read_info(media)["generation"] == 1


def test_wear_file_counts_every_line(tmp_path):
    path = make(tmp_path, leveling_name="none", line_bytes=256)
    with Device(path) as device:
        device.write(memoryview(b"x" * 300), 200)
    wear = (path / "wear").read_bytes()
    assert len(wear) == 4 * (SIZE // 256)
    counts = {at // 4: wear[at] for at in range(0, len(wear), 4) if any(wear[at : at + 4])}
    first = (8192 + 4096) // 256  # page 0 lies behind its descriptor page, and its first write stores it whole
    wanted = dict.fromkeys(range(32), 1) | dict.fromkeys(range(first, first + 16), 1) | {8192 // 256: 1}
    assert counts == wanted


def test_reader_shares_no_code():
    tree = ast.parse(Path(independent_reader.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "struct", "pathlib"}


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_crc32c_is_that_of_rfc_3720(data, crc):
    assert crc32c(data) == crc


def test_fletcher64_is_that_of_the_document():
    example = re.search(r"le32 words (1, 2, 3) .*? `0x([0-9a-f]+)`", DOCUMENT)
    words = [int(word) for word in example[1].split(", ")]
    block = b"".join(word.to_bytes(4, "little") for word in words)
    assert fletcher64(block) == layout.fletcher64(block) == int(example[2], 16)


# ---- the document against pmem_core/layout.py ----


def table_under(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of the document, its own head left out."""
    _, _, rest = DOCUMENT.partition(f"# {heading}\n")
    assert rest, f"no heading {heading!r}"
    lines = itertools.takewhile(
        lambda line: line.startswith("|"), itertools.dropwhile(lambda line: not line.startswith("|"), rest.splitlines())
    )
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in list(lines)[2:]]


def kind_of(dtype) -> str:
    """A field's type in the document's words."""
    base, shape = dtype.subdtype or (dtype, ())
    if base.kind in "VS" and base.fields is None:
        return f"byte[{base.itemsize}]"
    word = {"u": "le", "i": "sle"}[base.kind] + str(8 * base.itemsize)
    return (word if base.itemsize > 1 else "u8") + (f"[{shape[0]}]" if shape else "")


def fields_of(dtype) -> list[tuple[int, str, str]]:
    """(offset, type, name) of every field of a dtype."""
    return [(dtype.fields[name][1], kind_of(dtype.fields[name][0]), name) for name in dtype.names]


@pytest.mark.parametrize(
    ("heading", "dtype"),
    [
        ("The info block", layout.INFO),
        ("The descriptor, format 1", layout.DESCRIPTOR),
        ("The descriptor, format 2", layout.DESCRIPTOR_2),
        ("The file of a conversion", saved.HEAD),
        ("Head", layout.HEAD),
        ("Tally", layout.TALLY),
        ("interleaved", geometry.placement.family.modules["interleaved"].STATE),
        ("linear", geometry.placement.family.modules["linear"].STATE),
        ("none", geometry.placement.family.modules["none"].STATE),
        ("ram", geometry.placement.family.modules["ram"].STATE),
        ("No leveling", geometry.leveling.family.modules["none"].STATE),
        ("start_gap", geometry.leveling.family.modules["start_gap"].STATE),
        ("optane", geometry.leveling.family.modules["optane"].STATE),
        ("security_refresh", geometry.leveling.family.modules["security_refresh"].STATE),
        ("table_swap", geometry.leveling.family.modules["table_swap"].STATE),
        ("sampled_swap", geometry.leveling.family.modules["sampled_swap"].STATE),
    ],
)
def test_document_has_every_field(heading, dtype):
    rows = [(int(row[0]), row[1], row[2]) for row in table_under(heading)]
    assert rows == fields_of(dtype)


def test_document_has_the_core_record():
    families = geometry.placement.family, geometry.leveling.family
    core = layout.core_dtype(families[0].modules["interleaved"].STATE, families[1].modules["start_gap"].STATE)
    rows = [row[:3] for row in table_under("Core")]
    assert [(int(row[0]), row[2]) for row in rows[:4]] == [
        (core.fields[name][1], name) for name in ("tally", "intent", "unit", "placement")
    ]
    assert [row[2] for row in rows] == list(core.names)
    assert rows[4][0].startswith(f"{core.fields['leveling'][1]} or {core.fields['leveling'][1] - 8}")


def test_document_has_the_constants():
    rows = table_under("Numbers")
    assert len(rows) > 20
    for name, value, *_ in rows:
        found = getattr(layout, name)
        if isinstance(found, bytes):
            assert ast.literal_eval(value) == found.ljust(16, b"\0"), name
        elif isinstance(found, tuple):
            assert ast.literal_eval(f"({value})") == found, name
        else:
            assert int(value, 0) == found, name


def test_document_has_the_zones_of_the_state_file(tmp_path):
    path = make(tmp_path)
    zones = image.load_geometry(path).zones()
    assert [row[1] for row in table_under("The state file")] == [name for name in zones if name != "end"]


def test_document_has_the_parameters():
    module = geometry.leveling.family.modules["start_gap"]
    text = DOCUMENT.partition("# start_gap\n")[2]
    assert all(f"`{name}`" in text for name in module.PARAMETERS)


def test_document_has_every_database(tmp_path):
    from pmem_core import journal

    assert {row[0] for row in table_under("The journal")} == {name.decode() for name in journal._NAMES}
