# SPDX-License-Identifier: MIT
"""Compiled code is cached across processes, and never serves a state it was not compiled for."""

import functools
import os
import re
import subprocess
import sys
import time

import numba
import numpy as np
import pytest

from pmem_core import codecache, geometry, jit, layout, media, warmup

PLACEMENTS = ("interleaved", "none")

# Compiles (or loads) the code for the placements named, in that order, and uses each.
PROGRAM = """
import pathlib, sys, tempfile
from pmem_core import geometry, image
from pmem_core.device import Device
for name in sys.argv[1].split(","):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "a.pmem"
        image.create(path, geometry.plan(8 << 20, placement_name=name, leveling_name="none"))
        with Device(path) as device:
            device.write(b"x" * 5000, 100)
            device.write(b"y" * 5000, 340 * 4096 + 7)
            medium_at = device.plan.info.data_at
            assert device.read(5000, 100) == b"x" * 5000, name
            assert device.read(5000, 340 * 4096 + 7) == b"y" * 5000, name
            if name == "none":
                assert bytes(device.mapping.media[medium_at + 100 : medium_at + 200]) == b"x" * 100, name
"""


@pytest.mark.slow
def test_code_that_different_processes_cached_does_not_mix(tmp_path):
    # Each placement is compiled by a process of its own, so that numba counts the types of each from the start.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for names in (*PLACEMENTS, ",".join(PLACEMENTS), ",".join(reversed(PLACEMENTS))):
        done = subprocess.run([sys.executable, "-c", PROGRAM, names], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{names}: {done.stderr}"


def test_code_that_is_cached_is_loaded_without_the_compiler():
    warmup.warm_up(geometry.plan(8 << 20))
    program = "import sys; from pmem_core import geometry, warmup; warmup.warm_up(geometry.plan(8 << 20)); "
    program += "sys.exit('numba.np.arrayobj' in sys.modules or 'numba.np.linalg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


COMPILES_IN = """
import sys
import numpy
from pmem_core import jit

@jit.hot
def inner(array, by):
    return jit.i64_at(array.ctypes.data, array.size)[1] * by

@jit.hot
def outer(array):
    return inner(array, 3) + 1

array = numpy.array([5, 7], numpy.int64)
for function, arguments in ((inner, (array, 2)), (outer, (array,)))[: int(sys.argv[1])]:
    print(function(*arguments), sum(function.stats.cache_hits.values()), sum(function.stats.cache_misses.values()))
"""


def test_what_was_loaded_is_compiled_into_what_was_not(tmp_path):
    """The bitcode of loaded code is read only then."""
    (tmp_path / "linked.py").write_text(COMPILES_IN)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def printed(functions):
        command = [sys.executable, tmp_path / "linked.py", str(functions)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split("\n")

    assert printed(1) == ["14 0 1", ""]
    assert printed(2) == ["14 1 0", "22 0 1", ""]
    assert printed(2) == ["14 1 0", "22 1 0", ""]


def test_what_is_compiled_in_advance_is_what_is_needed():
    """A part for other types than those that call it would be compiled for nothing, and what is needed later."""
    warmup.warm_up(geometry.plan(8 << 20))
    program = """if True:
        import numpy
        from pmem_core import geometry, jit, layout, statefile, warmup
        plan = geometry.plan(8 << 20)
        for part in warmup._inner(plan, numpy.zeros(1, layout.RUN), statefile.fresh_core(plan)):
            part()
        print([each.py_func.__name__ for each in jit._compiled if each.stats.cache_misses])
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_each_part_of_the_first_compiling_is_done_once_though_a_helper_fails(tmp_path):
    """Helpers are processes: what they do is seen in files."""
    parent = os.getpid()

    def part(number):
        if number == 5 and os.getpid() != parent:
            raise OSError
        with (tmp_path / str(number)).open("x"):
            time.sleep(0.01)

    warmup._share_out([functools.partial(part, number) for number in range(40)])
    done = {int(path.name) for path in tmp_path.iterdir()}
    assert done in ({*range(40)}, {*range(40)} - {5})


def test_where_the_first_compiling_is_interrupted_helpers_begin_nothing_more(tmp_path):
    parent = os.getpid()

    def part(number):
        if os.getpid() == parent:
            raise KeyboardInterrupt
        (tmp_path / str(number)).touch()
        time.sleep(0.1)

    with pytest.raises(KeyboardInterrupt):
        warmup._share_out([functools.partial(part, number) for number in range(100)])
    assert len(list(tmp_path.iterdir())) < 50


SAVES_SLOWLY = """
import sys, time
import numpy
from numba.core import caching
from pmem_core import jit

def load_index(self):
    found = real(self)
    time.sleep(1)
    return found

real = caching.IndexDataCacheFile._load_index
@jit.hot
def size(array):
    return array.itemsize
kind = numpy.dtype(sys.argv[1])
if sys.argv[2] == "compile":
    jit.compile_for(size, numpy.zeros(1, numpy.uint8))  # what numba imports for compiling takes longer than a second
    caching.IndexDataCacheFile._load_index = load_index
jit.compile_for(size, numpy.zeros(1, kind))
print(sum(size.stats.cache_misses.values()), size(numpy.zeros(1, kind)))
"""


def test_processes_that_compile_one_function_for_different_types_at_once_keep_the_code_of_each(tmp_path):
    (tmp_path / "slow.py").write_text(SAVES_SLOWLY)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def started(kind, what):
        return subprocess.Popen(
            [sys.executable, tmp_path / "slow.py", kind, what], env=environment, stdout=subprocess.PIPE, text=True
        )

    for process in [started(kind, "compile") for kind in ("int16", "int64")]:
        assert process.wait() == 0
        process.stdout.close()
    for kind, size in (("int16", 2), ("int64", 8)):
        with started(kind, "load") as process:
            assert process.stdout.read() == f"0 {size}\n", kind


@jit.hot
def raises(run, core, number):
    if number:
        raise IndexError
    return 7


@numba.njit
def calls(address, run, core, number):
    return jit.call_at(address, (run[0], core[0], number))


def test_what_is_called_by_its_address_raises_to_its_caller():
    run, core = np.zeros(1, layout.RUN), np.zeros(1, layout.CORE)
    address = jit.address_of(raises, run, core)
    assert calls(address, run, core, 0) == 7
    with pytest.raises(IndexError):
        calls(address, run, core, 1)


@jit.hot
def answers_zero(run, core, number):
    return 0


@numba.njit
def has_it_compiled_in(run, core, number):
    return answers_zero(run[0], core[0], number)


def test_what_is_compiled_in_elsewhere_has_an_address_all_the_same():
    """numba compiles a function that answers a constant for the type of that constant, and caches that."""
    run, core = np.zeros(1, layout.RUN), np.zeros(1, layout.CORE)
    assert has_it_compiled_in(run, core, 3) == 0
    assert calls(jit.address_of(answers_zero, run, core), run, core, 3) == 0


def test_the_cache_folder_names_the_sources():
    assert codecache.FOLDER.name == codecache.choose_folder([], os.environ.get("NUMBA_BOUNDSCHECK", "")).name
    assert len(codecache.FOLDER.name) == 16


@jit.hot
def copy_often(target, target_at, source, source_at, count, times):
    for _ in range(times):
        jit.copy_bytes(target, target_at, source, source_at, count)


@pytest.mark.parametrize("count", [0, 1, 2047, 2048, 2049, 4096, 6000])
def test_copy_is_of_these_bytes_and_no_others(count):
    source, target = np.random.default_rng(count).integers(0, 256, (2, 8192), np.uint8)
    expected = target.copy()
    expected[17 : 17 + count] = source[5 : 5 + count]
    copy_often(target, 17, source, 5, count, 1)
    assert np.array_equal(target, expected)


@jit.hot
def stream(target, target_at, source, source_at, count):
    jit.stream_bytes(target, target_at, source, source_at, count)
    jit.order_streams()


@pytest.mark.parametrize("count", [0, 64, 192, 4096, 65536])
@pytest.mark.parametrize("source_at", [0, 1, 24])
def test_stream_is_of_these_bytes_and_no_others(count, source_at):
    source, target = np.random.default_rng(count).integers(0, 256, (2, 1 << 17), np.uint8)
    at = -target.ctypes.data % 64 + 128
    expected = target.copy()
    expected[at : at + count] = source[source_at : source_at + count]
    stream(target, at, source, source_at, count)
    assert np.array_equal(target, expected)


@pytest.mark.skipif(jit.PLAIN or jit.STREAM_FENCE == "", reason="the names of an x86-64's instructions")
def test_stream_goes_past_the_caches_and_is_put_in_order():
    @numba.njit  # what is loaded from the cache has no listing
    def streamed(target, source):
        jit.stream_bytes(target, 0, source, 0, source.size)
        jit.order_streams()

    streamed.compile((numba.uint8[::1], numba.uint8[::1]))
    [listing] = streamed.inspect_asm().values()
    assert re.search(r"v?movnt", listing) and "sfence" in listing


@jit.hot
def store_streamed(run, at, data):
    media.stream(run[0], at, data, 0, data.size)
    jit.order_streams()


@pytest.mark.parametrize("beyond", [0, 8, 63])
@pytest.mark.parametrize("count", [100, 4096, 4100])
def test_data_is_stored_wherever_the_medium_lies(beyond, count):
    """Past the caches go whole lines, and elsewhere that would be a fault."""
    memory = np.zeros(5 * 4096, np.uint8)
    first = -memory.ctypes.data % 64 + beyond
    run, data = np.zeros(1, layout.RUN), np.random.default_rng(1).integers(0, 256, count, np.uint8)
    run["media"], run["medium_bytes"] = memory.ctypes.data + first, 4 * 4096
    store_streamed(run, 4096, data)
    expected = np.zeros(5 * 4096, np.uint8)
    expected[first + 4096 : first + 4096 + count] = data
    assert np.array_equal(memory, expected)


@pytest.mark.skipif(jit.PLAIN, reason="in plain Python numpy copies")
def test_no_place_of_a_page_makes_its_copy_slow():
    """The copying of the processor itself, which glibc 2.36 leaves a page to, takes 30 times as long for some."""
    memory = np.zeros(1 << 16, np.uint8)
    page = -memory.ctypes.data % 4096
    times: dict[int, list[float]] = {0: [], 16: [], 4080: []}
    for _ in range(7):
        for at, taken in times.items():
            started = time.perf_counter()
            copy_often(memory, page + 8192 + at, memory, page, 4096, 2000)
            taken.append(time.perf_counter() - started)
    assert max(min(taken) for taken in times.values()) < 6 * min(times[0])
