# SPDX-License-Identifier: MIT
"""A server that records: what its clients sent, fio among them, is what the recording holds; also after a kill."""

import os
import random
import signal
import subprocess
import uuid
from pathlib import Path

import log_reader
import numpy as np
import pytest
import recording_reader
from conftest import needs
from recording_reader import FLUSH, TRIM, WRITE, ZERO, ZERO_KEEP
from serving import runtime_directory
from test_plugin import PAGE, make, serving

from pmem_core import cli, geometry, image, server
from pmem_core.device import Device
from pmem_core.replay import lives
from pmem_core.replay.endurance import Endurance
from pmem_core.traces import open_trace

SEED = int(os.environ.get("PMEM_NBD_SEED", "20150507"))
SIZE = 48 << 20

pytestmark = needs("nbdkit")


@pytest.fixture(autouse=True)
def seed():
    print(f"PMEM_NBD_SEED={SEED}")


def send(client, random_: random.Random, device_bytes: int) -> list[tuple[int, int, int]]:
    """Send a request of any kind; what it should be recorded as."""
    import nbd

    kind = random_.choice([WRITE, WRITE, WRITE, TRIM, ZERO, ZERO_KEEP, FLUSH])
    count = random_.choice([1, 512, 4096, 10000, 65536])
    offset = random_.randrange(device_bytes - count)
    offset = random_.choice([offset, offset // PAGE * PAGE])
    flags = fua = nbd.CMD_FLAG_FUA if random_.random() < 0.1 else 0
    if kind == FLUSH:
        client.flush()
        return [(FLUSH, 0, 0)]
    if kind == WRITE:
        client.pwrite(random_.randbytes(count), offset, flags)
    elif kind == TRIM:
        client.trim(count, offset, flags)
    else:
        client.zero(count, offset, flags | (nbd.CMD_FLAG_NO_HOLE if kind == ZERO_KEEP else 0))
    return [(kind, offset, count), *([(FLUSH, 0, 0)] if fua else [])]


def requests(path: Path) -> list[tuple[int, int, int]]:
    with open_trace(path) as trace:
        return [tuple(one) for chunk in trace for one in chunk.tolist()]


@needs("libnbd")
def test_recording_holds_what_a_client_sent(tmp_path):
    disk, random_, sent = make(tmp_path / "disk.pmem"), random.Random(SEED), []
    with serving(disk, f"record={tmp_path / 'rec'}") as served:
        client = served.connect()
        size = client.get_size()
        for _ in range(300):
            sent += send(client, random_, size)
        client.flush()
        sent.append((FLUSH, 0, 0))
        assert requests(tmp_path / "rec") == sent, "all of it is in the file when a flush has answered"
        client.pwrite(b"x", 0)
        assert served.stop() == 0 and served.said == ""
    assert requests(tmp_path / "rec") == [*sent, (WRITE, 0, 1)]
    found = recording_reader.read(tmp_path / "rec")
    assert found.whole and found.device_bytes == size and found.about["image"]["leveling"] == "start_gap"
    with Device(disk) as device:
        # Those of requests with FUA are not counted as flushes, here as there.
        assert device._tally["flushes"] == sum(one[0] == FLUSH for one in found.requests) - found.fua


@pytest.mark.slow
@needs("libnbd")
@pytest.mark.parametrize(
    ("leveling", "parameters"), [("start_gap", {"interval": 3}), ("sampled_swap", {"interval": 1, "sample": 1})]
)
def test_replay_of_a_served_recording_wears_the_same_lines(tmp_path, leveling, parameters):
    """What nbdkit served and what is replayed without a medium: every counter, to the last one."""
    disk, random_ = tmp_path / "disk.pmem", random.Random(SEED)
    # The keys of sampled_swap come from the uuid, and how much it moves hangs on them.
    made = str(uuid.UUID(int=random_.getrandbits(128)))
    plan = geometry.plan(
        8 << 20, uuid=made, leveling_name=leveling, parameters=parameters, descriptor_writes="coalesced"
    )
    image.create(disk, plan)
    with serving(disk, f"record={tmp_path / 'rec'}") as served:
        client = served.connect()
        for _ in range(400):
            send(client, random_, client.get_size())
        assert served.stop() == 0 and served.said == ""
    with open_trace(tmp_path / "rec") as trace:
        source = lives.Recorded("rec", lambda: iter(trace), plan, passes=1)
        life = lives.live(plan, source, Endurance(1 << 31))
    assert life.ended == "source" and life.memory.tally["moves"] > 10
    assert np.array_equal(life.memory.counters(), np.fromfile(disk / "wear", "<u4"))


@needs("libnbd")
def test_killed_server_leaves_what_was_flushed(tmp_path):
    disk, random_, sent = make(tmp_path / "disk.pmem"), random.Random(SEED), []
    with serving(disk, f"record={tmp_path / 'rec'}") as served:
        client = served.connect()
        size = client.get_size()
        for _ in range(100):
            sent += send(client, random_, size)
        client.flush()
        flushed = len(sent) + 1
        sent.append((FLUSH, 0, 0))
        for _ in range(20):
            client.pwrite(b"x" * 512, 512 * random_.randrange(1000))
        served.stop(signal.SIGKILL)
    found = recording_reader.read(tmp_path / "rec")
    assert found.requests[:flushed] == sent and not found.whole and found.torn == 0
    with Device(disk) as device:
        assert device.recovery == "killed", "the image knows nothing of recordings"


@needs("libnbd")
def test_one_server_may_log_and_record(tmp_path):
    disk, random_, sent = make(tmp_path / "disk.pmem"), random.Random(SEED), []
    with serving(disk, f"record={tmp_path / 'rec'}", f"logwrites={tmp_path / 'log'}") as served:
        client = served.connect()
        for _ in range(100):
            sent += send(client, random_, client.get_size())
        assert served.stop() == 0
    assert requests(tmp_path / "rec") == sent
    assert log_reader.read(tmp_path / "log")[-1].text == b"pmem-nbd-end"


# ---- fio ----


def fio(served, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    """fio, one request at a time."""
    uri = f"nbd+unix:///?socket={served.socket}"
    command = ["fio", "--name=t", "--ioengine=nbd", f"--uri={uri}", "--iodepth=1", f"--randseed={SEED}", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@needs("libnbd", "fio")
def test_iolog_of_fio_is_what_the_server_recorded(tmp_path):
    """Version 3 as fio writes it, and a version 2 that fio, which writes it no more, replays."""
    disk = make(tmp_path / "disk.pmem")
    with serving(disk, f"record={tmp_path / 'rec'}") as served:
        served.connect()
        words = ["--rw=randrw", "--bsrange=4k-64k", "--size=32M", "--io_size=4M", "--fsync=8", "--write_iolog=log"]
        assert fio(served, *words, cwd=tmp_path).returncode == 0
    did = requests(tmp_path / "log")
    assert len(did) > 30 and requests(tmp_path / "rec") == did
    assert (tmp_path / "log").read_text().startswith("fio version 3 iolog\n")

    lines = (tmp_path / "log").read_text().splitlines()[1:]
    version_2 = ["fio version 2 iolog", *(line.partition(" ")[2] for line in lines)]
    (tmp_path / "log2").write_text("\n".join([*version_2, ""]))
    assert requests(tmp_path / "log2") == did
    with serving(disk, f"record={tmp_path / 'rec2'}") as served:
        served.connect()
        assert fio(served, "--rw=randrw", "--read_iolog=log2", cwd=tmp_path).returncode == 0
    assert requests(tmp_path / "rec2") == did


@needs("libnbd", "fio")
def test_recording_of_a_server_killed_under_fio_goes_up_to_the_last_flush(tmp_path):
    disk = make(tmp_path / "disk.pmem")
    with serving(disk, f"record={tmp_path / 'rec'}") as served:
        served.connect()
        words = ["--rw=randwrite", "--bs=4k", "--size=32M", "--time_based", "--runtime=60", "--fsync=16"]
        uri = f"--uri=nbd+unix:///?socket={served.socket}"
        process = subprocess.Popen(
            ["fio", "--name=t", "--ioengine=nbd", uri, "--iodepth=1", *words, "--write_iolog=log"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while len(requests(tmp_path / "rec")) < 2000:
                assert process.poll() is None
            served.stop(signal.SIGKILL)
            process.wait(30)
        finally:
            process.kill()
            process.wait()
    did, found = requests(tmp_path / "log"), requests(tmp_path / "rec")
    assert found == did[: len(found)]
    # fio notes a request before it is done: of its last flush nobody knows whether it was.
    flushes = [at for at, one in enumerate(did) if one[0] == FLUSH]
    assert len(found) > flushes[-2]


# ---- what cannot be recorded ----


@needs("libnbd", "root")
def test_full_disk_under_the_recording_harms_no_request(tmp_path):
    disk, small = make(tmp_path / "disk.pmem"), tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        with serving(disk, f"record={small / 'rec'}") as served:
            client = served.connect()
            (small / "ballast").write_bytes(bytes(56 << 10))
            random_ = random.Random(SEED)
            sent = [(WRITE, random_.randrange(SIZE // 2), 1) for _ in range(3000)]
            for _, offset, _ in sent:
                client.pwrite(b"x", offset)
            client.flush()
            assert "rec: no room left on the host" in served.said and "waits in memory" in served.said
            (small / "ballast").unlink()
            assert served.stop() == 0
        assert requests(small / "rec") == [*sent, (FLUSH, 0, 0)]
        assert recording_reader.read(small / "rec").whole
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.fixture
def run(capfd):
    def ran(*words):
        status = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return status, out, err

    with runtime_directory():
        yield ran


def test_recording_that_cannot_be_made_is_told_before_it_serves(run, tmp_path):
    disk = make(tmp_path / "disk.pmem")
    (tmp_path / "rec").write_text("precious")
    for words, status, text in (
        (["--record", tmp_path / "rec"], 1, "rec: exists already: a new file: a recording holds one run of a server"),
        (["--record", tmp_path / "none" / "rec"], 1, "cannot be made: there is no such directory"),
        (["--record", disk], 1, "disk.pmem: exists already"),
        (["--record", disk / "rec"], 1, f"rec: lies within the image {disk}: a path outside of it"),
        (["--record", tmp_path / "new", "--read-only"], 2, "--record: has nothing to record: a server without"),
    ):
        told, out, err = run("serve", disk, "-b", *words)
        assert (told, out, err.count("\n")) == (status, "", 1) and text in err
    assert (tmp_path / "rec").read_text() == "precious" and not (tmp_path / "new").exists()
    assert not (disk / "rec").exists()


def test_recording_is_shown_while_it_grows(run, tmp_path):
    disk = make(tmp_path / "disk.pmem")
    assert run("serve", disk, "-b", "--record", tmp_path / "rec")[0] == 0
    status, out, _ = run("trace", tmp_path / "rec")
    assert status == 0 and "without a clean end" in out
    server.stop(server.servers()[0])
    status, out, _ = run("trace", tmp_path / "rec")
    assert status == 0 and "without a clean end" not in out and "interleaved, start_gap" in out


@needs("libnbd", "root")
@pytest.mark.parametrize("room", [True, False])
def test_stop_fails_where_the_recording_does_and_not_where_there_was_room_again(tmp_path, run, room):
    import nbd

    disk, small = make(tmp_path / "disk.pmem"), tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        status, uri, _ = run("serve", disk, "-b", "--record", small / "rec")
        assert status == 0
        client = nbd.NBD()
        client.connect_uri(uri.strip())
        (small / "ballast").write_bytes(bytes(56 << 10))
        for offset in range(0, 3000 * 512, 512):
            client.pwrite(b"x", offset)
        client.flush()
        if room:
            (small / "ballast").unlink()
        status, _, err = run("stop", disk)
        assert status == (0 if room else 1)
        assert err == (
            "" if room else f"{small / 'rec'}: no room left on the host: free space, or another filesystem\n"
        )
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
