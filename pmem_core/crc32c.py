# SPDX-License-Identifier: MIT
"""CRC-32C (Castagnoli; RFC 3720 appendix B.4), by the processor's instruction where it has one.

The instruction takes three cycles and can start every cycle, so a whole page is summed in three lanes of 1360 bytes
whose results are then joined (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction",
Intel 2011): joining is linear, a lane's crc is moved over the bytes behind it by four table look-ups.

Where the processor multiplies four pairs of polynomials at once (VPCLMULQDQ), a page is folded instead, 256 bytes at a
time, to 16 bytes with the same remainder (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
Instruction", Intel 2009): three times as fast.
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


def _shift_tables(zero_bytes):
    """Tables that move a crc over `zero_bytes` zero bytes, int64[4, 256]."""
    basis = np.int64(1) << np.arange(32, dtype=np.int64)
    for _ in range(zero_bytes):
        basis = (basis >> 8) ^ TABLES[0][basis & 255]
    tables = np.zeros((4, 256), np.int64)
    values = np.arange(256)
    for byte in range(4):
        for bit in range(8):
            tables[byte] ^= np.where(values >> bit & 1, basis[8 * byte + bit], 0)
    return tables


TABLES = _byte_tables()
SHIFT_1 = _shift_tables(8 * LANE_WORDS)
SHIFT_2 = _shift_tables(16 * LANE_WORDS)
_FEATURES = {} if PLAIN else llvmlite.binding.get_host_cpu_features()
HARDWARE = bool(_FEATURES.get("sse4.2"))
FOLDS = HARDWARE and all(_FEATURES.get(name) for name in ("avx512f", "vpclmulqdq"))


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


if PLAIN:
    word_crc = _word_by_table
elif HARDWARE:

    @intrinsic
    def word_crc(typing_context, crc, word):
        """Advance `crc` (int64, 0 to 2**32 - 1) over the eight bytes of `word`."""

        def generate(context, builder, signature, arguments):
            i64 = ir.IntType(64)
            kind = ir.FunctionType(i64, [i64, i64])
            step = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse42.crc32.64.64")
            return builder.call(step, arguments)

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


def _power(exponent):
    """x ** exponent modulo the polynomial, reflected."""
    value = 1 << 31
    for _ in range(exponent):
        value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
    return value


def _fold_constants(distance):
    """What to multiply the two words of a 16-byte block by, to move it `distance` bits towards the end."""
    return [_power(distance + 31), _power(distance - 33)]


if FOLDS:
    _I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    _BLOCK = ir.VectorType(_I64, 8)

    def _block(words):
        return ir.Constant(_BLOCK, [ir.Constant(_I64, word) for word in words])

    def _fold(builder, block, constants):
        """Both words of each 16 bytes of `block` times theirs of `constants`, added up."""
        kind = ir.FunctionType(_BLOCK, [_BLOCK, _BLOCK, _I8])
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.pclmulqdq.512")
        low, high = (builder.call(multiply, [block, constants, ir.Constant(_I8, which)]) for which in (0x00, 0x11))
        return builder.xor(low, high)

    @intrinsic
    def _folded_page_crc(typing_context, address):
        """crc32c of the 4096 bytes at `address`."""

        def generate(context, builder, signature, arguments):
            page = builder.inttoptr(arguments[0], _BLOCK.as_pointer())
            blocks = [builder.load(builder.gep(page, [ir.Constant(_I64, i)]), align=1) for i in range(64)]
            held = [builder.xor(blocks[0], _block([MASK] + [0] * 7)), *blocks[1:4]]
            over_four = _block(_fold_constants(4 * 512) * 4)
            for i in range(4, 64):
                held[i & 3] = builder.xor(_fold(builder, held[i & 3], over_four), blocks[i])
            over_one = _block(_fold_constants(512) * 4)
            for i in range(3):
                held[i + 1] = builder.xor(held[i + 1], _fold(builder, held[i], over_one))
            # The last block's first three 16 bytes, each moved onto its fourth.
            to_last = [*_fold_constants(384), *_fold_constants(256), *_fold_constants(128), 0, 0]
            moved = _fold(builder, held[3], _block(to_last))
            crc = ir.Constant(_I64, 0)
            step = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_I64, [_I64, _I64]), "llvm.x86.sse42.crc32.64.64"
            )
            for half in (0, 1):
                word = builder.extract_element(held[3], ir.Constant(_I32, 6 + half))
                for i in range(3):
                    word = builder.xor(word, builder.extract_element(moved, ir.Constant(_I32, 2 * i + half)))
                crc = builder.call(step, [crc, word])
            return builder.xor(crc, ir.Constant(_I64, MASK))

        return types.int64(types.int64), generate


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


if FOLDS:

    @hot
    def page_crc(words, first):
        """crc32c of the 4096 bytes at words[first], words int64[]."""
        return _folded_page_crc(words.ctypes.data + 8 * first)
else:
    page_crc = laned_page_crc


def crc32c(data: bytes) -> int:
    """crc32c of any bytes, by the table: for records of the cold side."""
    crc = MASK
    table = TABLES[0]
    for byte in data:
        crc = (crc >> 8) ^ int(table[(crc ^ byte) & 255])
    return crc ^ MASK
