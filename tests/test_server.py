# SPDX-License-Identifier: MIT
"""Servers: started, found, refused and stopped, with a tiny plugin in place of the real one."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import needs
from serving import holds, runtime_directory, tiny

from pmem_core import launch, listen, runtime, server
from pmem_core.errors import HostError, ImageBusy, MissingProgram, NotAnImage, PmemError, ServerError, UsageError

pytestmark = needs("nbdkit")


@pytest.fixture
def folder():
    with runtime_directory() as path:
        yield path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.pmem"
    path.mkdir()
    return path


@pytest.fixture
def start(folder, image, tmp_path):
    plugin = tiny(tmp_path)

    def started(**options):
        return server.start(options.pop("image", image), **{"plugin": plugin, **options})

    return started


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def client_reads(uri: str) -> int:
    """Connect as a client does, and return the size of the export."""
    done = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs("nbdinfo")
def test_started_server_serves_at_once(start):
    assert client_reads(start().uri) == 1 << 20


@needs("nbdinfo")
def test_waits_for_a_plugin_that_takes_its_time(start):
    running = start(parameters={"sleep": "0.7"})
    assert client_reads(running.uri) == 1 << 20


def test_waiting_does_not_open_the_device(start):
    running = start()
    assert "opened" not in Path(running.log).read_text()


def test_leaves_no_error_in_the_log(start):
    running = start(parameters={"sleep": "0.5"})
    assert "error" not in Path(running.log).read_text()


def test_relays_progress_of_the_plugin(start):
    lines = []
    start(parameters={"sleep": "0.3", "recovered": "1"}, tell=lines.append)
    assert lines == ["pmem-nbd: tiny: getting ready ...", "tiny: was ill, is well"]


def test_socket_is_private_to_its_user(start, folder):
    running = start()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(running.socket).stat().st_mode) & 0o077 == 0


@needs("nbdinfo")
def test_port_listens_on_loopback_only(start, free_port):
    running = start(port=free_port)
    assert running.uri == f"nbd://127.0.0.1:{free_port}"
    assert client_reads(running.uri) == 1 << 20
    listeners = subprocess.run(["ss", "-Hltn", f"sport = :{free_port}"], capture_output=True, text=True).stdout
    assert f"127.0.0.1:{free_port}" in listeners and "0.0.0.0:" + str(free_port) not in listeners


@needs("nbdinfo")
def test_bind_any_address_is_reached_on_loopback(start, free_port):
    running = start(port=free_port, bind="0.0.0.0")
    assert client_reads(running.uri) == 1 << 20


@needs("nbdinfo")
def test_read_only_server_refuses_writes(start):
    running = start(read_only=True)
    assert running.read_only
    assert subprocess.run(["nbdinfo", "--is", "readonly", running.uri]).returncode == 0


@needs("nbdinfo")
def test_socket_path_may_hold_a_space(start, tmp_path):
    running = start(socket=tmp_path / "a b.sock")
    assert client_reads(running.uri) == 1 << 20


def test_two_places_to_listen_are_refused(start, free_port, tmp_path):
    with pytest.raises(UsageError, match="a socket and a port"):
        start(socket=tmp_path / "s", port=free_port)


# --- refusals, each in one line ---------------------------------------------------------------------------------------


def test_second_server_of_an_image_is_told_who_holds_it(start):
    running = start()
    with pytest.raises(ImageBusy, match=f"by process {running.pid} on nbd"):
        start()


def test_image_is_the_same_however_its_path_is_spelled(start, image, tmp_path):
    start()
    (tmp_path / "link.pmem").symlink_to(image)
    with pytest.raises(ImageBusy):
        start(image=tmp_path / "link.pmem")


def test_two_starts_at_once_make_one_server(start):
    outcomes = []

    def attempt():
        try:
            outcomes.append(start(parameters={"sleep": "0.3"}))
        except ImageBusy as error:
            outcomes.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ImageBusy", "ImageBusy", "Server"]


def test_moved_image_is_found_by_its_medium(start, image, tmp_path):
    running = start(parameters={"media": str(image / "media")})
    moved = image.rename(tmp_path / "moved.pmem")
    image.mkdir()
    assert server.find(moved) == dataclasses.replace(running, image=str(moved))
    (tmp_path / "other.pmem").mkdir()
    (tmp_path / "other.pmem" / "lock").write_text(f'{{"pid": {running.pid}}}')  # of an earlier process of that number
    assert server.find(tmp_path / "other.pmem") is None


@pytest.mark.parametrize("gone", ["moved", "removed"])
def test_new_image_is_not_taken_for_the_one_whose_name_it_has(start, image, tmp_path, gone):
    parameters = {"media": str(image / "media")}
    old, moved = start(parameters=parameters), tmp_path / "moved.pmem"
    image.rename(moved) if gone == "moved" else shutil.rmtree(image)
    assert server.find(image) is None if gone == "moved" else server.find(image).pid == old.pid
    image.mkdir()
    assert server.find(image) is None
    new = start(parameters=parameters)
    known_as = str(moved) if gone == "moved" else f"{image} (deleted)"
    assert {one.image: one.pid for one in server.servers()} == {known_as: old.pid, str(image): new.pid}
    server.stop(server.find(image))
    assert old.alive and not new.alive
    server.stop(server.find(known_as))
    assert not old.alive


def test_image_that_is_about_to_be_served_is_found(start, image, folder):
    (image / "media").touch()
    running = start()  # the tiny server has no file open, as ours has none before it answers
    assert server.find(image) == running


@pytest.mark.parametrize("words", [["--tls=require"], ["--tls", "require"]])
def test_uri_of_a_server_that_wants_tls_says_so(start, words, tmp_path, free_port):
    (tmp_path / "keys.psk").write_text("alice:00112233445566778899aabbccddeeff")
    running = start(nbdkit_args=[*words, f"--tls-psk={tmp_path / 'keys.psk'}"])
    assert running.uri.startswith("nbds+unix:///?socket=") and server.find(running.image) == running
    server.stop(running)
    running = start(nbdkit_args=["--tls=on", f"--tls-psk={tmp_path / 'keys.psk'}"], port=free_port)
    assert running.uri.startswith("nbd://")


def test_missing_image_is_refused(start, tmp_path):
    with pytest.raises(NotAnImage, match="does not exist"):
        start(image=tmp_path / "none.pmem")


def test_port_in_use_names_its_holder(start):
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(HostError) as error:
        start(port=listener.getsockname()[1])
    assert "is in use" in str(error.value) and f"process {os.getpid()}" in str(error.value)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_absurd_port_is_a_usage_error(start, port):
    with pytest.raises(UsageError, match="1 to 65535"):
        start(port=port)


def test_address_of_another_machine_is_refused(start, free_port):
    with pytest.raises(HostError, match=r"port \d+ of 192\.0\.2\.1: cannot assign"):
        start(port=free_port, bind="192.0.2.1")


def test_long_socket_path_is_a_usage_error(start, tmp_path):
    with pytest.raises(UsageError, match="at most 107 bytes"):
        start(socket=tmp_path / ("s" * 120))


def test_live_socket_is_not_taken_over(start, tmp_path):
    path = str(tmp_path / "live.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(HostError, match="another server listens"):
            start(socket=path)
        assert Path(path).exists()


def test_stale_socket_is_replaced(start, tmp_path):
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    assert holds(start(socket=path))


def test_file_in_place_of_the_socket_stays(start, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(HostError, match="is no socket"):
        start(socket=path)
    assert path.read_text() == "data"


def test_missing_directory_of_the_socket_is_named(start, tmp_path):
    with pytest.raises(HostError, match="its directory does not exist"):
        start(socket=tmp_path / "none" / "s")


def test_no_nbdkit_is_one_clear_line(start, monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda *_, **__: None)
    with pytest.raises(MissingProgram, match="nbdkit: is not installed: the package nbdkit"):
        start()


def stand_in_nbdkit(folder: Path, monkeypatch, script: str) -> None:
    path = folder / "bin" / "nbdkit"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)


def test_no_python_plugin_is_one_clear_line(start, tmp_path, monkeypatch):
    stand_in_nbdkit(tmp_path, monkeypatch, "echo 'nbdkit: error: cannot open plugin' >&2; exit 1")
    with pytest.raises(MissingProgram, match="has no Python plugin: the package nbdkit-plugin-python"):
        start()


def test_wrong_python_is_one_clear_line(start, tmp_path, monkeypatch):
    stand_in_nbdkit(tmp_path, monkeypatch, "echo python_version=3.99.1")
    ours = "{}.{}".format(*sys.version_info)
    with pytest.raises(MissingProgram, match=rf"embeds Python 3\.99, and this is Python {ours}: .*python3\.99"):
        start()


# --- a plugin that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "kind", "text"),
    [
        ("busy", ImageBusy, "tiny: is held by process 1: stop it"),
        ("denied", HostError, "/x: y/media: permission denied"),
        ("words", ServerError, "tiny: is no image: an image"),
        ("late", ServerError, "IMAGE: the plugin failed: OSError: too late"),
        ("silent", ServerError, "IMAGE: nbdkit ended: its last words: pmem-nbd: tiny: getting ready ..."),
    ],
)
def test_plugin_that_fails_is_heard(start, image, fail, kind, text):
    with pytest.raises(PmemError) as error:
        start(parameters={"fail": fail})
    assert type(error.value) is kind
    assert str(error.value) == text.replace("IMAGE", str(image))


def test_last_words_are_not_told_as_progress_too(start):
    lines = []
    with pytest.raises(ServerError, match="is no image"):
        start(parameters={"fail": "words"}, tell=lines.append)
    assert lines == ["pmem-nbd: tiny: getting ready ..."]


@pytest.mark.parametrize(
    ("fail", "text"), [("silent", "nbdkit ended with status 3"), ("crash", "nbdkit was killed by SIGABRT")]
)
def test_end_of_a_child_is_told_by_its_status(start, fail, text):
    with pytest.raises(ServerError, match=text):
        start(parameters={"fail": fail}, exit_with_parent=True)


@pytest.mark.parametrize("early", [True, False])
def test_stop_while_a_server_starts_is_told_as_that(start, image, monkeypatch, early):
    """`early`: in get_ready(); else when its socket is there and nobody has been greeted."""

    def end(*_):
        os.kill(server.find(image).pid, signal.SIGTERM)

    if not early:
        monkeypatch.setattr(listen.Greeting, "received", lambda self, seconds: end() or time.sleep(seconds))
    with pytest.raises(ServerError, match="its server was stopped while it started"):
        start(parameters={"sleep": "0.5"} if early else {}, tell=end if early else print, exit_with_parent=True)


def test_failure_is_told_though_it_was_cleared_away_meanwhile(start, monkeypatch):
    """By `pmem-nbd list`, say: it forgets servers that are gone, and their logs."""

    def received(self, seconds):
        while server.servers():
            time.sleep(0.01)
        return False

    monkeypatch.setattr(listen.Greeting, "received", received)
    with pytest.raises(ServerError, match="is no image"):
        start(parameters={"fail": "words"})


def test_unknown_argument_of_nbdkit_is_relayed(start):
    with pytest.raises(ServerError, match="no-such-option"):
        start(nbdkit_args=["--no-such-option"])


def test_server_that_never_answers_is_ended(start, folder):
    with pytest.raises(ServerError, match="did not answer within 1 s"):
        start(parameters={"sleep": "30"}, timeout_s=1)
    assert not server.servers() and not list(folder.iterdir())


# --- the command line -------------------------------------------------------------------------------------------------


def test_parameters_of_filters_go_behind_the_plugin():
    command = launch.nbdkit_command("i", port=1, nbdkit_args=["--tls", "require", "--filter=log", "logfile=/l"])
    assert command[command.index("--tls") : command.index("python")] == ["--tls", "require", "--filter=log"]
    assert command[-1] == "logfile=/l"


@pytest.mark.parametrize(
    "word",
    [
        *("image=/other", "script=/s", "readonly=1", "record=/r", "logwrites=/l"),
        *("-U", "-U/s", "-fU", "-p1", "-vP/pid", "-r", "-fr", "-i"),
        *("--unix", "--uni=/s", "--un", "--port=1", "--po", "--pidfile", "--pid-file=/p", "--pid"),
        *("--read-only", "--readonly", "--re", "--ipaddr=::1", "--ip-a"),
    ],
)
def test_word_that_says_what_the_command_says_is_found(word):
    assert launch.own_word(["--filter", "log", "null", word, "/x"]) == word


@pytest.mark.parametrize(
    "words",
    [
        *(["--user=pi"], ["-uUp"], ["-u", "-r"], ["--run=image=/x"], ["--run", "image=/x"], ["--log=null"]),
        *(["-D", "record=1"], ["-fD", "python.readonly=1"], ["--filter", "record=x"], ["--exit-with-parent"]),
        *(["--tls=require", "--tls-psk=/pki"], ["--tls-verify-peer"], ["-4"], ["-v"], ["-t", "8"], ["-"], ["--"]),
        *(["--swap"], ["--no-sr"], ["--filter=log", "logfile=image=/x"], ["imagesize=1"], ["--timeout", "30"]),
    ],
)
def test_other_words_are_left_to_nbdkit(words):
    assert launch.own_word(words) is None


@needs("nbdinfo")
def test_arguments_of_nbdkit_reach_it(start, tmp_path):
    running = start(nbdkit_args=["--filter=log", f"logfile={tmp_path / 'log'}"])
    client_reads(running.uri)
    assert "Connect" in (tmp_path / "log").read_text()


def test_threads_are_passed_on(start):
    running = start(threads=3)
    assert b"-t\0003\0" in Path(f"/proc/{running.pid}/cmdline").read_bytes()


def entered(client: socket.socket) -> None:
    """Be a client of the default export."""
    client.recv(18, socket.MSG_WAITALL)
    client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))  # NBD_OPT_EXPORT_NAME, no zeros
    client.recv(10, socket.MSG_WAITALL)


def leaves_early(running: server.Server, times: int) -> bool:
    """Ask for fifty reads at once and hang up, again and again; whether the server is still there."""
    read = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096)
    for _ in range(times):
        if not running.alive:
            return False
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(running.socket)
            entered(client)
            client.sendall(read * 50)
    time.sleep(0.1)
    return running.alive


def test_client_that_hangs_up_before_its_answers_ends_no_server(start):
    assert leaves_early(start(parameters={"parallel": "1"}), 300)


def test_with_several_threads_such_a_client_ends_an_older_nbdkit_and_why_is_told(start):
    running = start(parameters={"parallel": "1"}, threads=3, exit_with_parent=True)
    mended = launch.threads_warning(3) is None
    assert leaves_early(running, 300 if mended else 3000) == mended
    if mended:
        return
    with pytest.raises(ServerError, match="a client hung up before it had its answers: one thread a connection, or"):
        server.follow(running, lambda line: None)


@pytest.mark.parametrize(
    ("threads", "words", "version", "warned"),
    [
        (1, [], "1.32.5", False),
        (3, [], "1.32.5", True),
        (3, [], "1.33.12", True),
        (3, [], "1.34.0", False),
        (3, [], "2.0.1", False),
        (3, ["-t", "1"], "1.32.5", False),
        (1, ["-t", "2"], "1.32.5", True),
        (1, ["--threads=16", "-f"], "1.32.5", True),
        (1, ["-t0"], "1.32.5", True),
        (1, ["-t4", "-t", "1"], "1.32.5", False),
    ],
)
def test_several_threads_are_warned_of_where_nbdkit_is_older(monkeypatch, tmp_path, threads, words, version, warned):
    nbdkit = tmp_path / "nbdkit"
    nbdkit.write_text(f"#!/bin/sh\necho nbdkit {version}\n")
    nbdkit.chmod(0o755)
    monkeypatch.setattr(runtime, "program", lambda name, package: str(nbdkit))
    told = launch.threads_warning(threads, words)
    assert (told is not None) == warned
    assert not warned or told.startswith(f"nbdkit {version}: ")


def test_words_of_an_assertion_are_told():
    said = "nbdkit: server.c:1: f: Assertion `x' failed.\nnbdkit: debug: bye\n"
    expected = "i: nbdkit was killed by SIGABRT: server.c:1: f: Assertion `x' failed.: a bug report"
    assert {str(launch.failure("i", said, status)) for status in (None, -signal.SIGABRT)} == {expected}


def test_embedded_python_gets_our_packages_and_no_pythonhome(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    environment = launch.nbdkit_environment()
    folders = environment["PYTHONPATH"].split(":")
    assert "PYTHONHOME" not in environment
    assert folders[0] == str(launch.PROJECT) and folders[-1] == "/theirs"
    assert any((Path(folder) / "numba").is_dir() for folder in folders)


# --- whom a server outlives -------------------------------------------------------------------------------------------


START = """
import sys
from pmem_core import server
print(server.start(sys.argv[1], plugin=sys.argv[2], exit_with_parent=sys.argv[3] == "together").pid)
"""


@pytest.mark.parametrize(("mode", "lives"), [("apart", True), ("together", False)])
def test_server_outlives_its_starter_only_if_it_may(folder, image, tmp_path, mode, lives):
    command = [sys.executable, "-c", START, str(image), str(tiny(tmp_path)), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=launch.nbdkit_environment())
    time.sleep(0.5)
    assert bool(runtime.birth(int(done.stdout))) == lives


# --- the registry, and the end ----------------------------------------------------------------------------------------


def test_running_server_is_listed(start, image):
    running = start()
    assert server.servers() == [running]
    assert server.find(image) == running


def test_stop_lets_the_plugin_finish(start, folder, tmp_path):
    mark = tmp_path / "mark"
    running = start(parameters={"stopped": str(mark), "stop_sleep": "0.5"})
    server.stop(running)
    assert mark.read_text() == "clean"
    assert not runtime.birth(running.pid)
    assert not list(folder.iterdir())


@needs("nbdinfo")
@pytest.mark.parametrize("place", ["socket", "port"])
def test_stop_hangs_up_on_idle_clients(start, free_port, tmp_path, place):
    running = start(**{place: free_port if place == "port" else tmp_path / "s"})
    if place == "port":
        client = socket.create_connection(("127.0.0.1", free_port))
    else:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
    with client:
        assert client.recv(18).startswith(b"NBDMAGIC")
        server.stop(running, timeout_s=10)


@pytest.mark.parametrize("place", ["socket", "port"])
def test_stop_waits_for_no_client_that_leaves_its_answers_unread(start, free_port, tmp_path, monkeypatch, place):
    monkeypatch.setattr(server, "UNREAD_S_MAX", 0.5)
    stopped = tmp_path / "stopped"
    where = ("127.0.0.1", free_port) if place == "port" else str(tmp_path / "s")
    running = start(**{place: where[1] if place == "port" else where}, parameters={"stopped": str(stopped)})
    with socket.socket(socket.AF_INET if place == "port" else socket.AF_UNIX) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(where)
        entered(client)
        client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 1 << 20) * 32)  # NBD_CMD_READ
        client.recv(1)  # it answers
        server.stop(running, timeout_s=10)
    assert stopped.read_text() == "clean"


def test_stop_ends_a_server_that_is_stopped_itself(start):
    """By SIGSTOP: it would take no other signal."""
    running = start()
    os.kill(running.pid, signal.SIGSTOP)
    server.stop(running, timeout_s=10)
    assert not running.alive


def test_stop_tells_what_the_plugin_could_not_close(start, folder):
    running = start(parameters={"fail": "close"})
    with pytest.raises(ServerError, match="tiny: an earlier sync failed: stop the server"):
        server.stop(running)
    assert not list(folder.iterdir())


def test_stop_tells_that_nbdkit_aborted(start, folder):
    running = start(parameters={"fail": "assertion"})
    with pytest.raises(ServerError, match="killed by SIGABRT: file:1: f: Assertion `x' failed"):
        server.stop(running)
    assert not list(folder.iterdir())


def test_what_housekeeping_says_while_a_server_stops_is_no_failure(start, folder):
    server.stop(start(parameters={"fail": "passing"}))
    assert not list(folder.iterdir())


def test_stop_takes_no_notice_for_a_failure(start, folder):
    running = start(parameters={"fail": "notice"})
    server.stop(running)
    assert not list(folder.iterdir())


def test_signals_between_the_start_of_a_server_and_its_record_wait(start, folder, monkeypatch):
    """Who has no record is found by nobody, and would hold the image for ever."""
    real = launch.spawn

    def spawn_and_be_ended(*words, **options):
        pid = real(*words, **options)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # for whichever thread takes it
        return pid

    monkeypatch.setattr(launch, "spawn", spawn_and_be_ended)
    ended = threading.Event()
    beside = threading.Thread(target=ended.wait)
    beside.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        ended.set()
        beside.join()
    assert server.servers() == []
    assert not list(folder.iterdir())


def test_server_takes_the_signals_that_its_starter_blocked(start):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        running = start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    server.stop(running, timeout_s=10)


def test_what_a_dead_server_left_is_not_taken_from_its_successor(start, folder):
    """Two look at the records at once, one clears away and starts a server, the other was slower."""
    running = start()
    server.stop(running)
    log = Path(running.log)
    log.write_text("of the next")
    server._forget(running)
    assert log.read_text() == "of the next"
    log.unlink()


def test_socket_that_is_no_utf_8_is_served_and_listed(start, tmp_path):
    running = start(socket=os.fsdecode(bytes(tmp_path) + b"/\xff.s"))
    assert running.uri.endswith("%FF.s")
    assert [one.pid for one in server.servers()] == [running.pid]


def test_stop_that_takes_too_long_is_told_and_kills_nothing(start, tmp_path):
    running = start(parameters={"stopped": str(tmp_path / "mark"), "stop_sleep": "2"})
    with pytest.raises(ServerError, match=f"process {running.pid}, has not ended after 1 s"):
        server.stop(running, timeout_s=1)
    assert holds(running)


def test_server_that_died_is_cleared_away(start, folder):
    running = start()
    os.kill(running.pid, 9)
    deadline = time.monotonic() + 5
    while holds(running) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.servers() == []
    assert not list(folder.iterdir())


def test_dead_servers_socket_does_not_hinder_the_next(start, tmp_path):
    running = start(socket=tmp_path / "s")
    os.kill(running.pid, 9)
    while holds(running):
        time.sleep(0.01)
    assert holds(start(socket=tmp_path / "s"))


def test_process_that_got_the_number_of_a_dead_server_is_left_alone(folder, image):
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            born = runtime.birth(bystander.pid)
            stranger = server.Server(str(image), bystander.pid, born + "0", str(folder / "s"), None, None, False, 0, "")
            server.stop(stranger, timeout_s=1)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_usage_is_measured(start):
    running = start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(running.socket)
        (figures,) = server.usage([running])
    assert figures["memory_bytes"] > 1 << 20
    assert figures["threads"] >= 1
    assert figures["connections"] == 1
    assert {"cpu_s", "cpu_percent", "disk_read_bytes", "disk_written_bytes"} <= set(figures)


def test_usage_of_a_server_that_ended_is_empty(start):
    running = start()
    server.stop(running)
    assert server.usage([running]) == [{}]


def test_runtime_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("PMEM_NBD_RUNTIME_DIR", str(tmp_path / "link"))
    with pytest.raises(HostError, match="not a directory of this user"):
        runtime.directory()


def test_what_answers_must_speak_nbd(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener, listen.Greeting(listener.getsockname()[:2]) as greeting:
        greeting.received(0.01)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 mail.example ")
            with pytest.raises(ServerError, match="does not speak NBD"):
                greeting.received(1)
