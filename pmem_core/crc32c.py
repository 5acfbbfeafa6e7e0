# SPDX-License-Identifier: MIT
"""CRC-32C (Castagnoli; RFC 3720 appendix B.4), by the processor's instruction where it has one.

The instruction takes three cycles and can start every cycle, so a whole page is summed in three lanes whose results
are then joined (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel 2011): joining
is linear, a lane's crc is moved over the bytes behind it by a multiplication of polynomials, or by four table look-ups.

Where the processor multiplies several pairs of polynomials at once (VPCLMULQDQ), bytes are folded instead to 16 with
the same remainder (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel
2009).  Four pairs at once are three times as fast as lanes, and fold all of a page.  Two pairs at once are as fast as
lanes, but by other units of the processor: they fold about half of a page while lanes sum the rest.
"""

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import PLAIN, hot

POLYNOMIAL = 0x82F63B78  # reflected
LANE_WORDS = 170
PAGE_WORDS = 512
MASK = 0xFFFFFFFF


def _byte_tables():
    """slicing-by-8 tables, int64[8, 256]."""
    tables = np.zeros((8, 256), np.int64)
    crc = np.arange(256, dtype=np.int64)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ POLYNOMIAL, crc >> 1)
    tables[0] = crc
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0][tables[k - 1] & 255]
    return tables


def _times_x(value):
    return (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)


def _product(a, b):
    """a * b modulo the polynomial, reflected: the highest bit is x ** 0."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = _times_x(b)
    return product


def _power(exponent):
    """x ** exponent modulo the polynomial, reflected."""
    value = 1 << 31
    for bit in f"{exponent:b}":
        value = _product(value, value)
        if bit == "1":
            value = _times_x(value)
    return value


def _shift_tables(zero_bytes):
    """Tables that move a crc over `zero_bytes` zero bytes, int64[4, 256]."""
    distance, tables, values = _power(8 * zero_bytes), np.zeros((4, 256), np.int64), np.arange(256)
    for byte in range(4):
        for bit in range(8):
            tables[byte] ^= np.where(values >> bit & 1, _product(1 << (8 * byte + bit), distance), 0)
    return tables


TABLES = _byte_tables()
SHIFT_1 = _shift_tables(8 * LANE_WORDS)
SHIFT_2 = _shift_tables(16 * LANE_WORDS)
_FEATURES = {} if PLAIN else llvmlite.binding.get_host_cpu_features()
HARDWARE = bool(_FEATURES.get("sse4.2"))
# How a page is summed by instructions alone, the best first: pairs multiplied at once, bytes folded so, turns of a loop
# that has an equal part of it all in each; and what the processor needs for it.
KNOWN_WAYS = (
    ((4, 4096, 15), ("avx512f", "vpclmulqdq")),
    ((2, 2176, 16), ("avx2", "vpclmulqdq")),
    ((1, 0, 17), ("pclmul",)),
)
WAYS = [way for way, features in KNOWN_WAYS if HARDWARE and all(_FEATURES.get(name) for name in features)]

# In plain Python items of arrays take ten times as long as those of lists.
_TABLES = TABLES.tolist() if PLAIN else TABLES


def _word_by_table(crc, word):
    low = (int(crc) ^ int(word)) & MASK
    high = (int(word) >> 32) & MASK
    return (
        _TABLES[7][low & 255]
        ^ _TABLES[6][(low >> 8) & 255]
        ^ _TABLES[5][(low >> 16) & 255]
        ^ _TABLES[4][(low >> 24) & 255]
        ^ _TABLES[3][high & 255]
        ^ _TABLES[2][(high >> 8) & 255]
        ^ _TABLES[1][(high >> 16) & 255]
        ^ _TABLES[0][(high >> 24) & 255]
    )


_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _step(builder, crc, word):
    """`crc` advanced over `word` by the instruction."""
    kind = ir.FunctionType(_I64, [_I64, _I64])
    step = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse42.crc32.64.64")
    return builder.call(step, [crc, word])


if PLAIN:
    word_crc = _word_by_table
elif HARDWARE:

    @intrinsic
    def word_crc(typing_context, crc, word):
        """Advance `crc` (int64, 0 to 2**32 - 1) over the eight bytes of `word`."""

        def generate(context, builder, signature, arguments):
            return _step(builder, *arguments)

        return types.int64(types.int64, types.int64), generate
else:
    word_crc = numba.njit(_word_by_table)


@hot
def words_crc(crc, words, first, count):
    """Advance `crc` over words[first : first + count], words int64[]."""
    for i in range(first, first + count):
        crc = word_crc(crc, words[i])
    return crc


@hot
def _shifted(tables, crc):
    return (
        tables[0, crc & 255] ^ tables[1, (crc >> 8) & 255] ^ tables[2, (crc >> 16) & 255] ^ tables[3, (crc >> 24) & 255]
    )


def _fold_constants(distance):
    """What to multiply the two words of a 16-byte block by, to move it `distance` bits towards the end."""
    return [_power(distance + 31), _power(distance - 33)]


def _vector(words):
    return ir.Constant(ir.VectorType(_I64, len(words)), [ir.Constant(_I64, word) for word in words])


def _load(builder, address, kind, index):
    """Value number `index` of those of `kind` that lie at `address`."""
    first = builder.inttoptr(address, kind.as_pointer())
    return builder.load(builder.gep(first, [ir.Constant(_I64, index)]), align=1)


def _multiply(builder, block, by, which):
    """Of each 16 bytes of both, word times word: `which` is 0 for the first ones, 0x11 for the second."""
    kind = ir.FunctionType(block.type, [block.type, block.type, _I8])
    width = f".{64 * block.type.count}" if block.type.count > 2 else ""
    multiply = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.pclmulqdq{width}")
    return builder.call(multiply, [block, by, ir.Constant(_I8, which)])


def _fold(builder, block, by):
    """Both words of each 16 bytes of `block` times theirs of `by`, added up."""
    return builder.xor(_multiply(builder, block, by, 0x00), _multiply(builder, block, by, 0x11))


def _folded_to_crc(builder, held, pairs):
    """The crc of all that was folded into the four blocks of `held`."""
    over_one = _vector(_fold_constants(128 * pairs) * pairs)
    for i in range(3):
        held[i + 1] = builder.xor(held[i + 1], _fold(builder, held[i], over_one))
    # The 16 bytes that the last block begins with, each moved onto those that it ends with.
    to_last = [word for left in range(pairs - 1, 0, -1) for word in _fold_constants(128 * left)]
    moved = _fold(builder, held[3], _vector([*to_last, 0, 0]))
    crc = ir.Constant(_I64, 0)
    for half in (0, 1):
        word = builder.extract_element(held[3], ir.Constant(_I32, 2 * pairs - 2 + half))
        for i in range(pairs - 1):
            word = builder.xor(word, builder.extract_element(moved, ir.Constant(_I32, 2 * i + half)))
        crc = _step(builder, crc, word)
    return crc


def _moved(builder, crc, words):
    """A word over which a crc of 0 becomes `crc`, moved over so many words of zeros; such words can be added up."""
    # The product lies one bit too low, and the step multiplies by x ** 32.
    by, zero = _vector([_power(64 * words - 33), 0]), ir.Constant(_I32, 0)
    product = _multiply(builder, builder.insert_element(_vector([0, 0]), crc, zero), by, 0x00)
    return builder.extract_element(product, zero)


def _begin(builder, address, pairs, folded):
    """Four blocks to fold into, none where nothing is folded, and the crcs of three lanes."""
    kind, zero, ones = ir.VectorType(_I64, 2 * pairs), ir.Constant(_I64, 0), ir.Constant(_I64, MASK)
    if not folded:
        return [], [ones, zero, zero]
    held = [_load(builder, address, kind, i) for i in range(4)]
    return [builder.xor(held[0], _vector([MASK] + [0] * (2 * pairs - 1))), *held[1:]], [zero, zero, zero]


def _turn(builder, block_at, word_at, held, lanes, pairs, words):
    """Fold one block more into each of `held`, and advance each of `lanes` over `words`: what each turn does."""
    over_four = _vector(_fold_constants(4 * 128 * pairs) * pairs)
    held = [
        builder.xor(_fold(builder, block, over_four), _load(builder, block_at, block.type, i))
        for i, block in enumerate(held)
    ]
    lane_words, each = words
    for i in range(each):
        lanes = [_step(builder, crc, _load(builder, word_at, _I64, k * lane_words + i)) for k, crc in enumerate(lanes)]
    return held, lanes


def _page_crc(builder, address, pairs, folded, turns):
    """The crc of the page at `address`: one of WAYS.  Folding and lanes in one loop, or they would not overlap."""
    zero, block_bytes, lane = ir.Constant(_I64, 0), 16 * pairs, (PAGE_WORDS - folded // 8) // 3
    held, lanes = _begin(builder, address, pairs, folded)
    before, loop, after = builder.block, builder.append_basic_block("turn"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    phis = []
    for value in (zero, *held, *lanes):
        phis.append(builder.phi(value.type))
        phis[-1].add_incoming(value, before)
    done, in_turn = phis[0], (phis[1 : 1 + len(held)], phis[1 + len(held) :])
    block_at = builder.add(
        address, builder.mul(builder.add(done, ir.Constant(_I64, 1)), ir.Constant(_I64, 4 * block_bytes))
    )
    word_at = builder.add(
        builder.add(address, ir.Constant(_I64, folded)), builder.mul(done, ir.Constant(_I64, 8 * (lane // turns)))
    )
    held, lanes = _turn(builder, block_at, word_at, *in_turn, pairs, (lane, lane // turns))
    ended = builder.add(done, ir.Constant(_I64, 1))
    for phi, value in zip(phis, (ended, *held, *lanes), strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_unsigned("<", ended, ir.Constant(_I64, turns)), loop, after)
    builder.position_at_end(after)
    if not lane:
        return _folded_to_crc(builder, held, pairs)
    word = builder.xor(_moved(builder, lanes[0], 2 * lane), _moved(builder, lanes[1], lane))
    if folded:
        word = builder.xor(word, _moved(builder, _folded_to_crc(builder, held, pairs), 3 * lane))
    crc = builder.xor(lanes[2], _step(builder, zero, word))
    for i in range(folded // 8 + 3 * lane, PAGE_WORDS):
        crc = _step(builder, crc, _load(builder, address, _I64, i))
    return crc


@intrinsic(prefer_literal=True)
def page_crc_by(typing_context, address, pairs, folded, turns):
    """crc32c of the 4096 bytes at `address`, in one of WAYS."""
    way = (pairs, folded, turns)

    def generate(context, builder, signature, arguments):
        crc = _page_crc(builder, arguments[0], *(number.literal_value for number in way))
        return builder.xor(crc, ir.Constant(_I64, MASK))

    return types.int64(types.int64, *way), generate


@hot
def laned_page_crc(words, first):
    """crc32c of the 4096 bytes at words[first], words int64[], by the instruction or by the table."""
    a, b, c = MASK, 0, 0
    for i in range(first, first + LANE_WORDS):
        a = word_crc(a, words[i])
        b = word_crc(b, words[i + LANE_WORDS])
        c = word_crc(c, words[i + 2 * LANE_WORDS])
    crc = _shifted(SHIFT_2, a) ^ _shifted(SHIFT_1, b) ^ c
    return words_crc(crc, words, first + 3 * LANE_WORDS, PAGE_WORDS - 3 * LANE_WORDS) ^ MASK


if WAYS:
    PAIRS, FOLDED, TURNS = WAYS[0]

    @hot
    def page_crc(words, first):
        """crc32c of the 4096 bytes at words[first], words int64[]."""
        return page_crc_by(words.ctypes.data + 8 * first, PAIRS, FOLDED, TURNS)
else:
    page_crc = laned_page_crc
