# SPDX-License-Identifier: MIT
"""crc32c: the known answers of RFC 3720, and every way to compute it against the one that goes bit by bit."""

import random

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir

from pmem_core import crc32c, descriptor, layout

pytestmark = pytest.mark.contract

PAGE = 4096
# RFC 3720, appendix B.4; the last is the check value of the CRC catalogues.
KNOWN = {
    "zeros": (bytes(32), 0x8A9136AA),
    "ones": (b"\xff" * 32, 0x62A8AB43),
    "rising": (bytes(range(32)), 0x46DD794E),
    "falling": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "iSCSI read command": (
        bytes.fromhex("01c00000" + "00000000" * 3 + "14000000" + "00000400" + "00000014" + "00000018" + "28000000")
        + bytes.fromhex("00000000" + "02000000" + "00000000"),
        0xD9963A56,
    ),
    "digits": (b"123456789", 0xE3069283),
}


def words_of(data):
    """`data` as int64[]."""
    return np.frombuffer(data, np.int64).copy()


@numba.njit
def by_word(crc, words):
    """words_crc, one word at a time, by whatever the processor has."""
    for i in range(words.size):
        crc = crc32c.word_crc(crc, words[i])
    return crc


table_word_crc = numba.njit(crc32c._word_by_table)


@numba.njit
def by_table(crc, words):
    """words_crc by the table, also where the processor has the instruction."""
    for i in range(words.size):
        crc = table_word_crc(crc, words[i])
    return crc


def by_way(pairs, folded, turns):
    """page_crc in one of the ways that the processor has, which need not be the one it takes."""

    @numba.njit
    def page_crc(words, first):
        return crc32c.page_crc_by(words.ctypes.data + 8 * first, pairs, folded, turns)

    return page_crc


# Every way to sum a page.
PAGE_CRCS = [crc32c.page_crc, crc32c.laned_page_crc, *(by_way(*way) for way in crc32c.WAYS)]


@pytest.mark.parametrize("name", KNOWN)
def test_answers_of_rfc_3720(name):
    data, expected = KNOWN[name]
    assert naive.crc32c(data) == expected
    if len(data) % 8 == 0:
        words = words_of(data)
        for function in (by_word, by_table):
            assert int(function(crc32c.MASK, words)) ^ crc32c.MASK == expected
        assert int(crc32c.words_crc(crc32c.MASK, words, 0, len(words))) ^ crc32c.MASK == expected


def pages():
    """Pages of 4096 bytes: random ones, and ones with a single bit or byte set, wherever a lane may begin or end."""
    begins = [(at, (PAGE - at) // 24 * 8) for at in {0, *(folded for _, folded, _ in crc32c.WAYS)}]
    borders = {at + i * lane for at, lane in begins for i in range(4)} - {0, PAGE}
    edges = st.sampled_from(sorted({0, PAGE - 1} | borders | {border - 1 for border in borders}))
    single = st.tuples(edges | st.integers(0, PAGE - 1), st.integers(1, 255)).map(
        lambda drawn: bytes(drawn[0]) + bytes([drawn[1]]) + bytes(PAGE - 1 - drawn[0])
    )
    return st.integers(0, 2**32).map(lambda seed: random.Random(seed).randbytes(PAGE)) | single


@given(page=pages(), first=st.integers(0, 3))
@settings(max_examples=40)
def test_page_at_once_is_the_page_byte_by_byte(page, first):
    words = words_of(bytes(8 * first) + page + b"\x55" * 8)
    expected = naive.crc32c(page)
    assert {int(function(words, first)) for function in PAGE_CRCS} == {expected}
    page_words = words_of(page)
    assert int(by_word(crc32c.MASK, page_words)) ^ crc32c.MASK == expected
    assert int(by_table(crc32c.MASK, page_words)) ^ crc32c.MASK == expected


@pytest.mark.parametrize("fill", [0x00, 0xFF], ids=["zeros", "ones"])
def test_uniform_page(fill):
    page = bytes([fill]) * PAGE
    assert {int(function(words_of(page), 0)) for function in PAGE_CRCS} == {naive.crc32c(page)}


def multiply_by_pairs(builder, block, by, which, multiply=crc32c._multiply):
    """crc32c._multiply by the instruction for one pair, which every processor with some of them has."""
    pieces = []
    for first in range(0, block.type.count, 2):
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 2), [first, first + 1])
        one, other = (builder.shuffle_vector(value, value, mask) for value in (block, by))
        pieces.append(multiply(builder, one, other, which))
    result = ir.Constant(block.type, ir.Undefined)
    for i, piece in enumerate(pieces):
        for half in (0, 1):
            word = builder.extract_element(piece, ir.Constant(ir.IntType(32), half))
            result = builder.insert_element(result, word, ir.Constant(ir.IntType(32), 2 * i + half))
    return result


def test_ways_of_other_processors(monkeypatch):
    """Those that this one lacks the instruction for, with its product made of smaller ones; plain code has none."""
    monkeypatch.setattr(crc32c, "_multiply", multiply_by_pairs)
    chance = random.Random(5)
    for way, _ in crc32c.KNOWN_WAYS if crc32c.WAYS else ():
        function = by_way(*way)
        for page in (chance.randbytes(PAGE), bytes(PAGE), b"\xff" * PAGE):
            assert int(function(words_of(page), 0)) == naive.crc32c(page), way


@given(crc=st.integers(0, 2**32 - 1), data=st.binary(min_size=8, max_size=256), cut=st.integers(0, 32))
@settings(max_examples=100)
def test_words_go_on_where_others_stopped(crc, data, cut):
    data = data[: len(data) // 8 * 8]
    words, cut = words_of(data), min(cut, len(data) // 8)
    expected = naive.crc32c_raw(crc, data)
    begun = int(crc32c.words_crc(crc, words, 0, cut))
    assert int(crc32c.words_crc(begun, words, cut, len(words) - cut)) == expected
    assert int(by_table(crc, words)) == expected


@given(crc=st.integers(0, 2**32 - 1), word=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=100)
def test_table_is_the_instruction(crc, word):
    words = np.array([word], np.int64)
    result = int(by_word(crc, words))
    assert result == int(by_table(crc, words)) == naive.crc32c_raw(crc, word.to_bytes(8, "little", signed=True))
    assert 0 <= result < 2**32


def test_shift_tables_move_a_crc_over_zeros():
    for tables, count in ((crc32c.SHIFT_1, 8 * crc32c.LANE_WORDS), (crc32c.SHIFT_2, 16 * crc32c.LANE_WORDS)):
        for crc in (1, 1 << 31, 0x12345678, crc32c.MASK):
            assert int(crc32c._shifted(tables, crc)) == naive.crc32c_raw(crc, bytes(count))


# ---- the checksum of a descriptor ----


class Scratch:
    """A descriptor in memory, where compiled code works on it."""

    def __init__(self, size):
        self.bytes = np.zeros(4 * PAGE, np.uint8)
        self.run = np.zeros(1, layout.RUN)
        self.run["scratch"] = self.bytes.ctypes.data
        self.run["descriptor_bytes"] = size
        self.run["descriptor_format"] = 2 if size >= 128 else 1
        self.run["session"], self.run["line_shift"] = 77, 8
        self.size = size

    def put(self, data):
        """Put a descriptor there."""
        self.bytes[: self.size] = np.frombuffer(data, np.uint8)

    def get(self):
        """Its bytes."""
        return self.bytes[: self.size].tobytes()

    def status(self, page):
        """EMPTY, VALID or DAMAGED."""
        return int(descriptor.status(self.run[0], page))


SIZES = [1 << n for n in range(4, 13)]
PAGES = st.sampled_from([0, 1, 63, 2**32 - 1, 2**32, 2**32 + 5]) | st.integers(0, 2**34)


@pytest.mark.parametrize("size", SIZES)
@given(page=PAGES, crc=st.integers(0, 2**32 - 1), generation=st.integers(1, 2**62), writes=st.integers(1, 5))
@settings(max_examples=10)
def test_descriptor_is_what_the_document_says(size, page, crc, generation, writes):
    scratch = Scratch(size)
    for _ in range(writes):
        descriptor.note_write(scratch.run[0], page, crc, generation, 3)
    lines = max(1, size // 256)
    twin = Descriptors(size)
    twin.fields[page] = (crc, True, writes, generation)
    twin.more[page] = {"data": 3 * writes, "descriptor": lines * writes, "session": 77, "first": generation}
    assert scratch.get() == twin.descriptor(page)
    assert scratch.status(page) == descriptor.VALID
    descriptor.note_trim(scratch.run[0], page, generation + 1)
    twin.fields[page] = (0, False, writes, generation + 1)
    twin.more[page]["descriptor"] += lines
    assert scratch.get() == twin.descriptor(page)


class Descriptors:
    """The naive device, as far as its descriptors need it."""

    descriptor = naive.Naive.descriptor

    def __init__(self, size):
        self.descriptor_bytes, self.descriptor_format = size, 2 if size >= 128 else 1
        self.fields, self.more = {}, {}


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_of_a_descriptor_is_covered(size):
    scratch = Scratch(size)
    descriptor.note_write(scratch.run[0], 7, 0xDEADBEEF, 9, 0)
    good = scratch.get()
    # All bits of the format's fields, and some of each word behind them.
    for bit in sorted({*range(8 * min(size, 96)), *range(0, 8 * size, 61)}):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        scratch.put(bytes(bad))
        assert scratch.status(7) == descriptor.DAMAGED, bit


@pytest.mark.parametrize("size", SIZES)
@given(page=PAGES, other=PAGES)
@settings(max_examples=20)
def test_descriptor_in_the_place_of_another_is_damaged(size, page, other):
    scratch = Scratch(size)
    descriptor.note_write(scratch.run[0], page, 1, 1, 0)
    # No device has pages whose numbers agree in the 32 bits that the checksum begins with.
    same = page % 2**32 == other % 2**32
    assert scratch.status(other) == (descriptor.VALID if same else descriptor.DAMAGED)


@pytest.mark.parametrize("size", SIZES)
@given(page=PAGES)
@settings(max_examples=10)
def test_zeros_are_a_page_never_written(size, page):
    assert Scratch(size).status(page) == descriptor.EMPTY


def test_writes_stay_at_the_largest_count():
    scratch = Scratch(64)
    scratch.bytes[12:16] = 255
    descriptor.note_write(scratch.run[0], 3, 0, 1, 0)
    assert scratch.get()[12:16] == b"\xff" * 4
    assert scratch.status(3) == descriptor.VALID
