# SPDX-License-Identifier: MIT
"""The verbs serve, stop, list, mount, unmount, attach and detach, and what the command does with every error."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import needs
from serving import runtime_directory, tiny

from pmem_core import __version__, attach, blockdev, cli, launch, nbdclient, policyfile, runtime, server
from pmem_core.cli._common import SIZE, emit, human_bytes, parse_size
from pmem_core.errors import ServerError, UsageError

# The command as it is, but for the plugin: a tiny one in place of the real one.
DRIVER = """
import sys
from pathlib import Path
from pmem_core import cli, launch
launch.PLUGIN = Path(sys.argv.pop(1))
sys.exit(cli.main())
"""


@pytest.fixture
def folder():
    with runtime_directory() as path:
        try:
            yield path
        finally:
            for one in attach.attachments():
                with contextlib.suppress(Exception):
                    attach.detach(attach.unmount(one))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.pmem"
    path.mkdir()
    return path


@pytest.fixture
def command(tmp_path):
    return [sys.executable, "-c", DRIVER, str(tiny(tmp_path))]


@pytest.fixture
def run(command, folder):
    def ran(*arguments):
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=60)

    return ran


@contextlib.contextmanager
def serving(command, image, *arguments):
    """Run `serve` in its foreground until the end of the block; the server is ready when the block begins."""
    with subprocess.Popen([*command, "serve", image, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while "serving" not in said and process.poll() is None:
                said += process.stderr.readline()
            yield process
        finally:
            if process.poll() is None:
                process.kill()


# --- serve, stop, list ------------------------------------------------------------------------------------------------


@needs("nbdkit")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_foreground_server_stops_cleanly(command, folder, image, number):
    with serving(command, image) as process:
        (running,) = server.servers()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert "stopped serving" in process.stderr.read()
    assert not running.alive and not list(folder.iterdir())


@needs("nbdkit")
def test_interrupt_while_starting_leaves_nothing(command, folder, image, tmp_path):
    plugin = tmp_path / "tiny.py"
    plugin.write_text(plugin.read_text().replace('settings.get("sleep", 0)', '"30"'))
    process = subprocess.Popen([*command, "serve", image], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr.readline() == "pmem-nbd: tiny: getting ready ...\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read().strip() == ""
    finally:
        process.kill()
        process.stderr.close()
    assert not list(folder.iterdir())


@needs("nbdkit")
def test_foreground_server_ends_with_a_killed_command(command, folder, image):
    with serving(command, image) as process:
        (running,) = server.servers()
        process.kill()
        process.wait()
    assert blockdev.wait(lambda: not running.alive, 5)
    assert server.servers() == []


@needs("nbdkit")
def test_server_that_dies_is_told(command, folder, image):
    with serving(command, image) as process:
        os.kill(server.servers()[0].pid, signal.SIGKILL)
        assert process.wait(10) == 1
        assert process.stderr.read() == f"{image}: nbdkit was killed by SIGKILL: a bug report\n"


@needs("nbdkit")
def test_background_server_is_listed_and_stopped(run, image):
    started = run("serve", image, "--background")
    assert (started.returncode, started.stdout) == (0, f"{server.find(image).uri}\n")
    (listed,) = json.loads(run("list", "-j").stdout)
    assert listed["image"] == str(image) and listed["memory_bytes"] > 0
    assert f"process {listed['pid']}" in started.stderr
    assert run("stop", image).returncode == 0
    assert json.loads(run("list", "-j").stdout) == []


@needs("nbdkit")
def test_list_for_people_names_image_and_pid(run, image, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    run("serve", image, "--background")
    text = run("list").stdout
    assert str(image) in text and str(server.find(image).pid) in text


@needs("nbdkit")
@pytest.mark.parametrize("columns", [40, 50, 80, 120])
def test_list_keeps_image_and_use_on_a_narrow_terminal(run, image, tmp_path, monkeypatch, columns):
    run("serve", image, "-b", "--socket", tmp_path / "s")
    monkeypatch.setenv("COLUMNS", str(columns))
    head, *lines = run("list").stdout.splitlines()
    assert ("memory" in head) == (columns >= 80)
    assert max(map(len, [head, *lines])) <= columns
    at = head.index("used as")
    assert "".join(line[at:].strip() for line in lines) == str(tmp_path / "s")
    end = head.index("pid") + 3 - len(str(server.find(image).pid))
    assert "".join(line[:end].strip() for line in lines) == str(image)


@needs("nbdkit")
def test_moved_image_is_stopped_by_its_new_name(run, image, tmp_path):
    run("serve", image, "-b", "--", f"media={image / 'media'}")
    image.rename(tmp_path / "moved.pmem")
    assert run("stop", tmp_path / "moved.pmem").returncode == 0
    assert not server.servers()


@needs("nbdkit")
def test_unknown_parameter_of_the_plugin_is_one_line(folder, image):
    command = [sys.executable, "-c", DRIVER, launch.PLUGIN, "serve", image, "-b", "--", "foo=bar"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    known = "image=PATH, readonly=true|false, halt_poll=true|false, logwrites=FILE, record=FILE"
    said = f"foo=bar: no such parameter: {known}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@needs("nbdkit")
def test_words_behind_two_dashes_reach_nbdkit(run, image, tmp_path):
    run("serve", image, "-b", "--", "--filter=log", f"logfile={tmp_path / 'log'}")
    assert b"--filter=log\0" in Path(f"/proc/{server.find(image).pid}/cmdline").read_bytes()


@needs("nbdkit")
def test_image_behind_two_dashes_is_told_to_be_words_for_nbdkit(run):
    said = run("serve", "-b", "--", "-dash.pmem")
    assert said.returncode == 2 and "'IMAGE' before `--`: what follows is nbdkit's" in said.stderr
    assert "missing argument 'IMAGE'" in run("serve", "-b").stderr


@needs("nbdkit")
@pytest.mark.parametrize("words", [[], ["--no-halt-poll"]], ids=str)
def test_a_server_is_told_not_to_poll(run, image, words):
    assert run("serve", image, "-b", *words).returncode == 0
    (running,) = server.servers()
    said = Path(f"/proc/{running.pid}/cmdline").read_text().split("\0")
    assert [word for word in said if "halt" in word] == (["halt_poll=false"] if words else [])


def test_several_threads_are_warned_of_on_standard_error(run, image):
    served = run("serve", image, "-b", "--threads", "3")
    assert served.returncode == 0 and served.stdout.count("\n") == 1
    warning = launch.threads_warning(3)
    assert warning is None or warning in served.stderr.splitlines()
    assert run("stop", image).returncode == 0


def test_progress_is_not_drawn_into_a_pipe(run, image):
    started = run("serve", image, "-b")
    assert "\x1b" not in started.stderr
    assert started.stderr.splitlines()[0] == "pmem-nbd: tiny: getting ready ..."


@needs("nbdkit")
def test_progress_is_drawn_on_a_terminal(command, folder, image):
    main, other = pty.openpty()
    try:
        subprocess.run(
            [*command, "serve", str(image), "-b"], stderr=other, check=True, env=os.environ | {"TERM": "xterm"}
        )
        drawn = os.read(main, 65536) if select.select([main], [], [], 1)[0] else b""
        assert b"starting the server" in drawn and b"\x1b[" in drawn
    finally:
        os.close(main)
        os.close(other)


@needs("nbdkit")
def test_path_that_looks_like_markup_is_listed_as_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    image = tmp_path / "w[" / "x]:smile:" / "a[b].pmem"
    image.mkdir(parents=True)
    assert run("serve", image, "-b").returncode == 0
    listed = run("list")
    assert (listed.returncode, listed.stderr) == (0, "") and f"{image} " in listed.stdout


@pytest.mark.parametrize("verb", ["create", "info", "stats", "check", "convert"])
def test_path_that_looks_like_markup_is_drawn_as_it_is(command, tmp_path, verb):
    image = tmp_path / "w[" / "x]" / "a[b].pmem"
    image.parent.mkdir(parents=True)
    if verb != "create":
        assert cli.main(["create", str(image), "--size", "4M"]) == 0
    options = {"create": ["--size", "4M"], "convert": ["--descriptor-bytes", "128"]}.get(verb, [])
    main, other = pty.openpty()
    try:
        words, environment = [*command, verb, str(image), *options], os.environ | {"TERM": "xterm", "COLUMNS": "500"}
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=other, env=environment)
        os.close(other)
        drawn = b""
        with contextlib.suppress(OSError):  # nobody has the other end any more
            while more := os.read(main, 65536):
                drawn += more
        assert process.wait() == 0
    finally:
        os.close(main)
    drawn = drawn.decode(errors="replace")
    assert str(image) in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)


@needs("nbdkit", "libnbd")
def test_nbdsh_of_an_active_virtual_environment_reaches_the_server(run, image):
    uri = run("serve", image, "-b").stdout.strip()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["nbdsh", "-u", uri, "-c", "print(h.get_size())"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert (done.stdout, done.stderr) == (f"{1 << 20}\n", "")


# --- attach, mount ----------------------------------------------------------------------------------------------------

kernel = needs("root", "nbdkit", "nbdfuse", "fuse", "loop", "ext4")


@pytest.fixture
def big(tmp_path, command):
    """Make the tiny plugin big enough for a filesystem."""
    plugin = tmp_path / "tiny.py"
    plugin.write_text(plugin.read_text().replace("1 << 20", "32 << 20"))


@pytest.mark.kernel
@kernel
def test_mount_and_unmount_by_directory(run, folder, image, tmp_path, big):
    mounted = run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    assert (mounted.returncode, mounted.stdout) == (0, "")
    (tmp_path / "mnt" / "file").write_text("x")
    (listed,) = json.loads(run("list", "-j").stdout)
    assert listed["directory"] == str(tmp_path / "mnt")
    unmounted = run("unmount", tmp_path / "mnt")
    assert unmounted.returncode == 0, unmounted.stderr
    assert not list(folder.iterdir()) and not (tmp_path / "mnt").exists()


@pytest.mark.kernel
@kernel
def test_unmount_by_image(run, folder, image, tmp_path, big):
    run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    assert run("unmount", image).returncode == 0
    assert not list(folder.iterdir())


@pytest.mark.kernel
@kernel
def test_mount_of_an_image_that_is_served_leaves_the_server(run, image, tmp_path, big):
    run("serve", image, "-b")
    run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    assert run("unmount", image).returncode == 0
    assert server.find(image) is not None


@pytest.mark.kernel
@kernel
def test_failed_mount_leaves_nothing(run, folder, image, tmp_path, big):
    failed = run("mount", image, tmp_path / "mnt", "--via", "loop")  # there is no filesystem on it
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == f"{image}: holds no filesystem: --mkfs to make one"
    assert not list(folder.iterdir()) and not (tmp_path / "mnt").exists()


@pytest.mark.kernel
@kernel
def test_mkfs_spares_a_filesystem_unless_forced(run, image, tmp_path, big):
    run("serve", image, "-b")  # its bytes live as long as it
    run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    run("unmount", image)
    again = run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    assert again.returncode == 1 and "holds ext4 already" in again.stderr
    assert run("mount", image, tmp_path / "mnt", "--mkfs", "--force", "--via", "loop").returncode == 0
    run("unmount", image)


@pytest.mark.kernel
@kernel
def test_mounted_image_is_not_stopped(run, image, tmp_path, big):
    run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    stopped = run("stop", image)
    assert stopped.returncode == 1 and "pmem-nbd unmount first" in stopped.stderr
    assert (tmp_path / "mnt").is_mount()
    run("unmount", image)


@pytest.mark.kernel
@kernel
def test_impossible_directory_is_told_before_a_server_starts(run, image, tmp_path):
    failed = run("mount", image, tmp_path / "a" / "b", "--mkfs")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1)
    assert "there is no directory to make it in" in failed.stderr


@pytest.mark.kernel
@kernel
def test_mounted_image_is_not_attached_again(run, image, tmp_path, big):
    run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    said = f"{image}: is mounted already, on {tmp_path / 'mnt'}: pmem-nbd unmount first\n"
    for arguments in (["attach", image], ["mount", image, tmp_path / "mnt"], ["mount", image, tmp_path / "other"]):
        assert run(*arguments).stderr == said
    run("unmount", image)


@pytest.mark.kernel
@kernel
def test_directory_in_use_is_refused_to_another_image(run, image, tmp_path, big):
    run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop")
    (tmp_path / "other.pmem").mkdir()
    failed = run("mount", tmp_path / "other.pmem", tmp_path / "mnt", "--mkfs", "--via", "loop")
    assert failed.stderr == f"{tmp_path / 'mnt'}: something is mounted there already: a directory of its own\n"
    run("unmount", tmp_path / "mnt")
    assert not server.servers()


@pytest.mark.kernel
@kernel
@pytest.mark.parametrize("first", ["serve", "attach", "mount"])
def test_second_of_two_verbs_at_once_waits_for_the_first(command, run, folder, image, tmp_path, big, first):
    plugin = tmp_path / "tiny.py"
    plugin.write_text(plugin.read_text().replace('settings.get("sleep", 0)', '"1"'))
    mount = ["mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop"]
    words = {"serve": ["serve", image, "-b"], "attach": ["attach", image, "--via", "loop"], "mount": mount}[first]
    with subprocess.Popen([*command, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        assert blockdev.wait(server.servers)  # it is there, and not ready
        other = run(*mount)
        assert one.wait(30) == 0
    assert other.returncode == (0 if first == "serve" else 1), other.stderr
    if first != "serve":
        assert other.stderr.startswith(f"{image}: is {first}ed already, ")
    attached = attach.find(image)
    if attached.directory:
        (tmp_path / "mnt" / "file").write_text("x")
        os.sync()
    assert run("unmount" if attached.directory else "detach", image).returncode == 0
    assert (server.find(image) is not None) == (first == "serve")


@pytest.mark.kernel
@kernel
def test_server_that_somebody_else_attached_is_not_stopped(command, folder, image, big, monkeypatch):
    monkeypatch.setattr(launch, "PLUGIN", command[-1])
    real = attach.attach

    def slower(*arguments, **options):
        real(*arguments, **options | {"owns_server": True})
        return real(*arguments, **options)

    monkeypatch.setattr(attach, "attach", slower)
    assert cli.main(["attach", str(image), "--via", "loop"]) == 1
    assert server.find(image) is not None
    attach.detach(attach.find(image))


@pytest.mark.kernel
@kernel
def test_moved_image_is_unmounted_by_its_new_name(run, image, tmp_path, big):
    run("serve", image, "-b", "--", f"media={image / 'media'}")
    assert run("mount", image, tmp_path / "mnt", "--mkfs", "--via", "loop").returncode == 0
    moved = image.rename(tmp_path / "moved.pmem")
    for verb in ("stop", "attach"):
        assert f"is mounted already, on {tmp_path / 'mnt'}" in run(verb, moved).stderr
    assert run("unmount", moved).returncode == 0
    assert not (tmp_path / "mnt").exists()


@pytest.mark.kernel
@kernel
def test_new_image_is_attached_beside_the_one_whose_name_it_has(run, folder, image, tmp_path, big, monkeypatch):
    moved, devices = tmp_path / "moved.pmem", []
    for _ in range(2):
        run("serve", image, "-b", "--", f"media={image / 'media'}")
        devices.append(run("attach", image, "--via", "loop").stdout.strip())
        if not moved.exists():
            image.rename(moved)
            image.mkdir()
    listed = {one["image"]: one["device"] for one in json.loads(run("list", "-j").stdout)}
    assert listed == {str(moved): devices[0], str(image): devices[1]} and devices[0] != devices[1]
    assert run("detach", image).returncode == run("stop", image).returncode == 0
    assert [one.device for one in attach.attachments()] == devices[:1]
    assert run("detach", moved).returncode == run("stop", moved).returncode == 0
    assert not list(folder.iterdir())


@pytest.mark.kernel
@kernel
def test_attachment_whose_server_died_is_listed_and_detached(run, image, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    device = run("attach", image, "--via", "loop").stdout.strip()
    running = server.find(image)
    os.kill(running.pid, signal.SIGKILL)
    assert blockdev.wait(lambda: not running.alive)
    (listed,) = json.loads(run("list", "-j").stdout)
    assert (listed["image"], listed["pid"], listed["device"]) == (str(image), None, device)
    assert f"{device} (server gone)" in run("list").stdout
    assert f"{image}: its server is gone: " in run("detach", image).stderr
    assert run("list").stdout == ""


@pytest.fixture
def outlived(run, image):
    """The device of an attachment whose server was killed, and the server that was started since."""
    device = run("attach", image, "--via", "loop").stdout.strip()
    first = server.find(image)
    os.kill(first.pid, signal.SIGKILL)
    assert blockdev.wait(lambda: not first.alive)
    assert run("serve", image, "-b").returncode == 0
    return device, server.find(image)


@pytest.mark.kernel
@kernel
def test_dead_attachment_is_not_listed_as_that_of_a_server_started_since(run, image, outlived, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    device, since = outlived
    listed = json.loads(run("list", "-j").stdout)
    assert [(one["pid"], one["device"]) for one in listed] == [(since.pid, ""), (None, device)]
    assert run("list").stdout.count("(server gone)") == 1


@pytest.mark.kernel
@kernel
def test_dead_attachment_does_not_keep_a_server_started_since_from_being_stopped(run, image, outlived):
    assert (run("stop", image).stderr, server.find(image)) == ("", None)


@pytest.mark.kernel
@kernel
def test_dead_attachment_is_detached_before_a_server_started_since_is_attached(run, image, outlived):
    device, since = outlived
    said = f"{image}: is attached already, as {device}: pmem-nbd detach first\n"
    assert run("attach", image, "--via", "loop").stderr == said
    run("detach", image)
    assert run("attach", image, "--via", "loop").returncode == 0
    (listed,) = json.loads(run("list", "-j").stdout)
    assert listed["pid"] == since.pid and listed["device"]
    assert run("stop", image).stderr.startswith(f"{image}: is attached already, ")
    assert run("detach", image).returncode == 0 and server.find(image) == since


@pytest.mark.kernel
@kernel
def test_attachment_whose_server_nobody_noted_keeps_that_of_its_image_from_being_stopped(run, image):
    run("serve", image, "-b")
    made = attach.attach(image, server.find(image).uri, way="loop")
    (listed,) = json.loads(run("list", "-j").stdout)
    assert listed["device"] == made.device
    assert run("stop", image).stderr == f"{image}: is attached already, as {made.device}: pmem-nbd detach first\n"


@pytest.mark.kernel
@kernel
def test_server_that_wants_tls_is_not_attached(run, image, tmp_path):
    (tmp_path / "keys.psk").write_text("alice:00112233445566778899aabbccddeeff")
    run("serve", image, "-b", "--", "--tls=require", f"--tls-psk={tmp_path / 'keys.psk'}")
    assert run("attach", image).stderr.startswith(f"{image}: its server wants TLS: ")


@pytest.mark.kernel
@kernel
def test_attach_prints_the_device_and_detach_undoes_it(run, folder, image):
    attached = run("attach", image, "--via", "loop")
    device = attached.stdout.strip()
    assert Path(device).is_block_device()
    assert run("detach", device).returncode == 0
    assert not list(folder.iterdir())


@pytest.mark.kernel
@kernel
def test_server_that_attach_starts_has_one_thread_for_each_connection(run, image):
    assert run("attach", image, "--via", "loop").returncode == 0
    words = Path(f"/proc/{server.find(image).pid}/cmdline").read_text().split("\0")
    assert words[words.index("-t") + 1] == "1"
    assert run("detach", image).returncode == 0


# --- errors and conventions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["attach"], ["mount", "m"]], ids=str)
def test_kernel_without_nbd_is_told_before_a_server_starts(folder, image, monkeypatch, capsys, verb):
    monkeypatch.setattr(attach, "require_root", lambda _: None)
    monkeypatch.setattr(runtime, "program", lambda name, _: f"/sbin/{name}")
    monkeypatch.setattr(nbdclient, "is_there", lambda: False)
    monkeypatch.setattr(blockdev, "require_mountable", lambda _: None)
    name, *directory = verb
    assert cli.main([name, str(image), *directory, "--via", "nbd"]) == 1
    assert capsys.readouterr().err == "nbd: this kernel has none: --via loop\n"


@needs("nbdkit")
@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["serve", "none.pmem"], 1, "none.pmem: does not exist: an image (pmem-nbd create makes one)"),
        (["serve", "IMAGE", "--port", "70000"], 2, "port 70000: is no port: 1 to 65535"),
        (
            ["serve", "IMAGE", "--port", "x"],
            2,
            "pmem-nbd serve: invalid value for '--port': 'x' is not a valid integer",
        ),
        (["serve", "IMAGE", "--bind", "::1"], 2, "--bind: is the address of a port: --port beside it"),
        (["serve", "IMAGE", "--socket", "s", "--port", "1"], 2, "--socket, --port: both say where to listen"),
        (["serve", "IMAGE", "--log-writes", "x", "--record", "./x"], 2, "--log-writes, --record: both name one file"),
        (["serve", "IMAGE", "extra"], 2, "pmem-nbd serve: got unexpected extra argument (extra)"),
        (["serve", "IMAGE", "extra", "-b", "--", "--filter=log"], 2, "got unexpected extra argument (extra)"),
        (["serve"], 2, "pmem-nbd serve: missing argument 'IMAGE'"),
        (["stop", "IMAGE"], 1, "is not being served"),
        (["unmount", "IMAGE"], 1, "is not attached"),
        (["detach", "IMAGE"], 1, "is not attached"),
        (["mount", "IMAGE", "m", "--force"], 2, "--force: has nothing to overwrite: --mkfs beside it"),
        (["nosuch"], 2, "pmem-nbd: no such command 'nosuch'"),
        (["--nosuch"], 2, "pmem-nbd: no such option '--nosuch'"),
    ],
)
def test_error_is_one_line_on_stderr(run, image, arguments, status, text):
    done = run(*(str(image) if word == "IMAGE" else word for word in arguments))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1)
    assert text in done.stderr


def main_with(monkeypatch, error: BaseException) -> int:
    def fails(**_):
        raise error

    monkeypatch.setattr(cli.completion, "callback", fails)
    return cli.main(["completion"])


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ServerError("disk", "did not stop", "a while"), 1, "disk: did not stop: a while\n"),
        (UsageError("size", "is zero"), 2, "size: is zero\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: permission denied\n"),
        (OSError(28, "No space left on device"), 1, "pmem-nbd: no space left on device\n"),
        (ValueError("a\nb"), 1, "pmem-nbd: internal error: ValueError: a b: PMEM_NBD_DEBUG=1 shows where\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (SystemExit(3), 3, ""),
        (SystemExit("words"), 1, "words\n"),
    ],
)
def test_exception_becomes_a_line_and_a_status(monkeypatch, capsys, error, status, text):
    assert main_with(monkeypatch, error) == status
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(
    "verb", [verb for verb in cli.VERBS if verb not in ("list", "completion", "policies", "study", "pagemaps")]
)
def test_path_that_cannot_be_read_is_no_mistake_in_typing(verb, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    arguments = {"mount": [tmp_path / "file"], "create": ["-s", "7M"], "replay-log": ["--find"]}.get(verb, [])
    image = tmp_path / ("file" if verb == "create" else "other")
    status, err = cli.main([verb, str(image), *map(str, arguments)]), capsys.readouterr().err
    assert "invalid value" not in err and err.count("\n") == 1
    assert verb == "create" or status == 1


@pytest.mark.parametrize(
    "arguments", [["completion", "bash"], ["--help"], ["list", "-j"], ["info", "-j", "IMAGE"], ["stats", "IMAGE"]]
)
def test_full_disk_under_stdout_is_told(folder, tmp_path, arguments):
    assert cli.main(["create", str(tmp_path / "i"), "--size", "16M"]) == 0
    words = [str(tmp_path / "i") if word == "IMAGE" else word for word in arguments]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", "import sys; from pmem_core import cli; sys.exit(cli.main())", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "pmem-nbd: no space left on device\n")


def test_traceback_is_for_those_who_ask(monkeypatch, capsys):
    monkeypatch.setenv("PMEM_NBD_DEBUG", "1")
    main_with(monkeypatch, ValueError("x"))
    assert "Traceback" in capsys.readouterr().err


def test_status_of_a_verb_is_the_status_of_the_command(monkeypatch):
    monkeypatch.setattr(cli.completion, "callback", lambda **_: 1)
    assert cli.main(["completion"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["completion", "bash"],
        ["--help"],
        ["info", "--help"],
        ["info", "IMAGE"],
        ["info", "--plan", "--size", "1G"],
        ["stats", "IMAGE"],
        ["stats", "IMAGE", "--watch", "0.1"],
    ],
    ids=" ".join,
)
def test_reader_that_leaves_early_is_no_error(command, folder, tmp_path, arguments):
    assert "IMAGE" not in arguments or cli.main(["create", str(tmp_path / "i"), "--size", "16M"]) == 0
    words = [str(tmp_path / "i") if word == "IMAGE" else word for word in arguments]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_help_imports_neither_numba_nor_lmdb():
    code = "import sys; from pmem_core.cli import main; main(['--help']); print({'numba', 'lmdb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_version():
    assert CliRunner().invoke(cli.group, ["--version"]).output == f"pmem-nbd {__version__}\n"


@pytest.mark.parametrize("verb", ["serve", "stop", "list", "mount", "unmount", "attach", "detach", "completion"])
def test_help_of_a_verb_has_examples(verb):
    assert "Examples:" in CliRunner().invoke(cli.group, [verb, "--help"]).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_the_command(shell):
    assert "_PMEM_NBD_COMPLETE" in CliRunner().invoke(cli.group, ["completion", shell]).output


@pytest.mark.parametrize(
    ("typed", "last", "offered"),
    [
        ("policies --test", "start", {"plain,start_gap", "plain,start_over", "file,start"}),
        ("study --leveling", "start", {"plain,start_gap", "plain,start_over"}),
        ("study --workload", "ext4-s", {"plain,ext4-sqlite"}),
        ("study --workload", "zip", {"plain,zipf"}),
        ("pagemaps --maps", "interleaved,lin", {"plain,interleaved,linear_dev", "plain,interleaved,linear_mem"}),
        ("create --placement", "inter", {"plain,interleaved"}),
    ],
)
def test_names_are_completed(monkeypatch, typed, last, offered):
    monkeypatch.setenv(policyfile.VARIABLE, "/somewhere/start_over.py")
    words = ["pmem-nbd", *typed.split(), last]
    environment = {
        "_PMEM_NBD_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    told = CliRunner().invoke(cli.group, [], prog_name="pmem-nbd", env=environment)
    assert set(told.output.split()) == offered


# --- sizes and JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4k", 4096),
        ("64KiB", 65536),
        ("64Ki", 65536),
        ("1.5G", 3 << 29),
        (".5M", 1 << 19),
        ("1T", 1 << 40),
        ("1KB", 1000),
        ("2 MB", 2_000_000),
        ("512B", 512),
    ],
)
def test_size_is_understood(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "0", "0G", "8Q", "nan", "1e3", "0.3", "4KiBs", "8E", "16G8", "١"])
def test_size_that_makes_no_sense_says_what_does(text):
    with pytest.raises(UsageError, match=r"a size such as (4096, 64K|1$)|at most 9223372036854775807 bytes"):
        parse_size(text)


def test_size_type_reports_as_click_does():
    with pytest.raises(Exception, match="'8Q': is not a size"):
        SIZE.convert("8Q", None, None)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1000, "1000 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8 GiB"), (1 << 60, "1 EiB")],
)
def test_bytes_are_written_for_people(count, text):
    assert human_bytes(count) == text


def test_json_takes_numbers_of_numpy(capsys):
    numpy = pytest.importorskip("numpy")
    emit({"count": numpy.uint64(2**63), "list": numpy.arange(2), "path": Path("/x")})
    assert json.loads(capsys.readouterr().out) == {"count": 2**63, "list": [0, 1], "path": "/x"}


def test_server_record_of_another_version_is_passed_over(folder):
    runtime.write_record("x.server.json", {"image": "/x", "strange": 1})
    assert server.servers() == []
    runtime.remove("x.server.json")


# ---- what nobody comes to know of ----


@needs("nbdkit")
def test_server_whose_address_cannot_be_printed_is_stopped(command, folder, image):
    with Path("/dev/full").open("w") as full:
        words = [*command, "serve", str(image), "-b"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "no space left on device" in done.stderr
    assert not server.servers() and not list(folder.glob("*.json"))


@needs("root", "nbdkit", "nbdfuse", "fuse", "loop")
def test_detach_leaves_a_server_alone_that_was_started_since(run, folder, image):
    assert run("attach", image).returncode == 0
    first = server.find(image)
    os.kill(first.pid, signal.SIGKILL)
    while server.find(image) is not None:
        time.sleep(0.01)
    assert run("serve", image, "-b").returncode == 0
    second = server.find(image)
    done = run("detach", image)
    assert "its server is gone: what the kernel had not written yet is lost" in done.stderr
    assert server.find(image) == second and not attach.attachments()
    server.stop(second)


# ---- words that are odd ----


@pytest.mark.parametrize("word", ["image=/other", "record=/r", "logwrites=/l", "-U/s", "--uni=/s", "-p1", "-vr"])
def test_what_is_served_and_where_is_told_by_options_only(run, image, word):
    done = run("serve", image, "-b", "--", "--filter=log", word)
    assert done.returncode == 2 and done.stderr.startswith(f"{word}: is set by pmem-nbd itself: use its own option")


@pytest.mark.parametrize("text", ["9" * 5000, "0." + "1" * 5000, "9" * 5000 + "M"])
def test_size_of_thousands_of_digits_is_a_usage_error(text):
    with pytest.raises(UsageError, match="a size: has 500"):
        parse_size(text)


@needs("nbdkit")
def test_name_that_is_no_utf8_is_refused_in_one_line(run, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.pmem"))
    path.mkdir()
    done = run("serve", path, "-b")
    assert done.returncode == 2 and "is no UTF-8" in done.stderr and done.stderr.count("\n") == 1


def test_name_that_is_no_text_is_printed_escaped(tmp_path):
    name = os.fsdecode(b"\xff.pmem")
    code = "import sys; from pmem_core import cli; sys.exit(cli.main())"
    words = [sys.executable, "-c", code, "create", name, "--size", "4M"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, cwd=tmp_path, env=strict, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "\\udcff.pmem" in done.stdout


@needs("root", "nbdkit", "nbdfuse", "fuse", "loop")
def test_device_that_cannot_be_printed_is_detached_and_its_server_stopped(command, folder, image):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "attach", str(image)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1 and "no space left on device" in done.stderr
    assert not attach.attachments() and not server.servers()
