# SPDX-License-Identifier: MIT
"""Bad input at the server: one clear line, a status that is not zero, no traceback, and the image as it was."""

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import needs
from independent_reader import fletcher64
from test_plugin import digest, make, serving

from pmem_core import launch

pytestmark = needs("nbdkit", "libnbd")

SIZE = 8 << 20


def start(*words, plugin: Path = launch.PLUGIN, options=("-f",), env=None) -> tuple[int, str, list[str]]:
    """Start a server that is bound to fail: its status, what it said, and what it left beside its log."""
    folder = Path(tempfile.mkdtemp(prefix="pn-"))
    try:
        done = subprocess.run(
            ["nbdkit", *options, "-U", folder / "socket", "-P", folder / "pid", "python", plugin, *words],
            env=launch.nbdkit_environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # On a fresh machine what is wrong may be found after the compiling.
        said = "".join(line for line in done.stderr.splitlines(True) if "compiling for the first start" not in line)
        return done.returncode, said, sorted(file.name for file in folder.iterdir())
    finally:
        shutil.rmtree(folder)


def refusal(*words, **options) -> str:
    """The one line that a server says that does not start."""
    status, said, left = start(*words, **options)
    assert status == 1, (status, said)
    assert "Traceback" not in said
    (line,) = said.splitlines()
    assert line.startswith("pmem-nbd: ")
    assert not left, "neither socket nor pid file"
    return line.removeprefix("pmem-nbd: ")


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "disk.pmem", SIZE)


def edit(path: Path, at: int, form: str, value: int, copies=(0, 4096)) -> None:
    """Change a field of the info block, with a checksum that is right again."""
    with (path / "media").open("r+b") as file:
        for copy in copies:
            file.seek(copy)
            block = bytearray(file.read(4096))
            struct.pack_into("<" + form, block, at, value)
            struct.pack_into("<Q", block, 4088, fletcher64(bytes(block[:4088]) + bytes(8)))
            file.seek(copy)
            file.write(block)


PARAMETERS = "image=PATH, readonly=true|false, halt_poll=true|false, logwrites=FILE, record=FILE"


def test_parameters_are_those_of_the_page_about_them():
    page = (Path(__file__).parents[1] / "docs" / "operating.md").read_text()
    table = page.partition("| parameter | meaning |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (\w+)=", table, re.MULTILINE) == re.findall(r"(\w+)=", PARAMETERS)


@pytest.mark.parametrize("options", [(), ("-f",), ("-s",)], ids=["background", "foreground", "stdin"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "image: missing: image=NAME.pmem"),
        (["image=/nonexistent/x.pmem"], "/nonexistent/x.pmem: does not exist: an image made by 'pmem-nbd create'"),
        (["image=x", "size=1G"], f"size=1G: no such parameter: {PARAMETERS}"),
        (["image=x", "readonly=1", "logwrites=y"], "logwrites: has nothing to log: readonly=false"),
        (["image=x", "readonly=1", "record=y"], "record: has nothing to record: readonly=false"),
        (["image=x", "readonly=banana"], "readonly=banana: neither yes nor no: true or false"),
        (["image=x", "halt_poll=maybe"], "halt_poll=maybe: neither yes nor no: true or false"),
    ],
    ids=["config_complete", "get_ready", "config", "readonly", "record", "value", "halt_poll"],
)
def test_one_line_from_every_callback(words, said, options):
    if options == ("-s",):
        done = subprocess.run(
            ["nbdkit", "-s", "python", launch.PLUGIN, *words],
            env=launch.nbdkit_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"pmem-nbd: {said}\n")
    else:
        assert refusal(*words, options=options) == said


def test_file_is_no_image(tmp_path):
    (tmp_path / "disk.pmem").write_bytes(b"not a folder")
    assert "is a file: the folder that 'pmem-nbd create' made" in refusal(f"image={tmp_path / 'disk.pmem'}")


def test_folder_without_a_medium_is_no_image(tmp_path):
    assert "holds no file 'media'" in refusal(f"image={tmp_path}")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x7fELF" + bytes(100), bytes(1 << 20), b"x" * 9000])
def test_medium_of_another_program_is_no_image(tmp_path, data):
    path = tmp_path / "other.pmem"
    path.mkdir()
    (path / "media").write_bytes(data)
    assert "no info block: a medium made by 'pmem-nbd create'" in refusal(f"image={path}")
    assert (path / "media").read_bytes() == data


def test_namespace_of_linux_alone_is_no_image(path):
    """ndctl's own info block has our signature nowhere."""
    with (path / "media").open("r+b") as file:
        for copy in (0, 4096):
            file.seek(copy + 1024)
            file.write(bytes(3000))
    assert "no info block" in refusal(f"image={path}")


def test_both_info_blocks_torn(path):
    with (path / "media").open("r+b") as file:
        for copy in (0, 4096):
            file.seek(copy + 60)
            file.write(b"torn")
    assert "both info blocks fail their checksums" in refusal(f"image={path}")


def test_one_info_block_torn_is_served(path):
    with (path / "media").open("r+b") as file:
        file.write(b"torn")
    with serving(path) as server:
        server.connect()


def unchanged(path: Path, *words: str) -> str:
    """The refusal of an image, which is not touched by it."""
    before = digest(path)
    line = refusal(f"image={path}", *words)
    assert digest(path) == before
    return line


def test_truncated_medium(path):
    with (path / "media").open("r+b") as file:
        file.truncate(SIZE - 4096)
    assert f"media: truncated to {SIZE - 4096} bytes: {SIZE} bytes" in unchanged(path)


@pytest.mark.parametrize(
    ("at", "form", "value", "said"),
    [
        (52, "H", 2, "format 2.4, extension 1: 1.4, extension 1; use a newer pmem-nbd"),
        (54, "H", 5, "format 1.5, extension 1"),
        (1040, "I", 2, "format 1.4, extension 2"),
        (1092, "H", 9, "descriptor format 9: format 1"),
        (1052, "I", 0x80, "unknown incompatible features 0x80: use a newer pmem-nbd"),
        (1048, "I", 0x4, "unknown features 0x4: open it read-only, or use a newer pmem-nbd"),
    ],
    ids=["major", "minor", "extension", "descriptor", "incompatible", "read-only"],
)
def test_newer_image(path, at, form, value, said):
    edit(path, at, form, value)
    assert said in unchanged(path)


def test_unknown_read_only_feature_is_served_read_only(path):
    edit(path, 1048, "I", 0x4)
    with serving(path, "readonly=true") as server:
        assert server.connect().pread(1, 0) == b"\0"


def test_unknown_compatible_feature_is_served(path):
    edit(path, 1044, "I", 0x4)
    with serving(path) as server:
        server.connect().pwrite(b"x", 0)


def test_unknown_policy(path):
    with (path / "media").open("r+b") as file:
        for copy in (0, 4096):
            file.seek(copy + 1136)
            file.write(b"quicksand".ljust(32, b"\0"))
    edit(path, 48, "I", 0)
    assert "leveling=quicksand: no such policy: one of" in unchanged(path)


def test_second_server_is_told_who_holds_the_image(path):
    with serving(path) as server:
        server.connect().pwrite(b"mine", 0)
        said = refusal(f"image={path}")
        assert f"in use by pid {server.pid} (nbdkit): stop it first" in said
        assert server.connect().pread(4, 0) == b"mine"


def test_reader_is_told_who_holds_the_image(path):
    with serving(path) as server:
        server.connect()
        assert f"in use by pid {server.pid}" in refusal(f"image={path}", "readonly=true")


@pytest.mark.parametrize("part", ["wear", "state", "journal"])
def test_part_is_missing(path, part):
    gone = path / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    status, said, _ = start(f"image={path}")
    assert status == 1
    assert said == f"pmem-nbd: {path}: its part '{part}' is missing: 'pmem-nbd check --repair' may rebuild it\n"


def test_truncated_wear_file(path):
    with (path / "wear").open("r+b") as file:
        file.truncate(100)
    status, said, _ = start(f"image={path}")
    assert status == 1
    assert said == f"pmem-nbd: {path}/wear: truncated to 100 bytes: {4 * SIZE // 256} bytes\n"


def test_damaged_journal(path):
    (path / "journal" / "data.mdb").write_bytes(b"no database" * 1000)
    status, said, _ = start(f"image={path}")
    assert status == 1
    assert said.count("\n") == 1 and "journal: the journal cannot be opened" in said


def test_journal_of_another_image(path, tmp_path):
    other = make(tmp_path / "other.pmem", SIZE)
    shutil.copy(other / "journal" / "data.mdb", path / "journal" / "data.mdb")
    status, said, _ = start(f"image={path}")
    assert status == 1
    assert said.count("\n") == 1 and "belongs to another image" in said


# ---- a Python that cannot run it ----


def test_checkout_needs_no_pythonpath(path):
    """The plug-in finds the .venv beside it, so that the bare command works."""
    if not (launch.PLUGIN.parent.parent / ".venv").is_dir():
        pytest.skip("installed without a .venv beside the plug-in")
    done = subprocess.run(
        ["nbdkit", "-U", "-", "python", launch.PLUGIN, f"image={path}", "--run", "nbdinfo --size $uri"],
        env={name: value for name, value in launch.nbdkit_environment().items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 0


@pytest.mark.parametrize("is_checkout", [True, False])
@pytest.mark.parametrize("package", ["pmem_core", "numba", "lmdb"])
def test_missing_package_is_one_sentence(tmp_path, path, package, is_checkout):
    """The plug-in alone in a folder, its packages beside it but for one that says it is for another Python."""
    if is_checkout:
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "setup").touch()
    plugin = tmp_path / "nbd_plugin" / "pmem.py"
    plugin.parent.mkdir()
    shutil.copy(launch.PLUGIN, plugin)
    broken = tmp_path / "broken" / package
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(f'raise ImportError("\\n\\nbuilt for another Python\\n", name="{package}")\n')
    env = launch.nbdkit_environment()
    env["PYTHONPATH"] = f"{broken.parent}:{env['PYTHONPATH']}"
    line = refusal(f"image={path}", plugin=plugin, env=env)
    assert f"cannot import {package}: expected" in line and ("scripts/setup" in line) == is_checkout


def test_error_without_a_name_tells_its_first_words(tmp_path, path):
    broken = tmp_path / "numpy"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise ImportError("\\n\\nbuilt for another Python\\nand more\\n")\n')
    env = launch.nbdkit_environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    assert "cannot import built for another Python: expected" in refusal(f"image={path}", env=env)
