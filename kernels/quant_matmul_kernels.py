"""The kernels of quant_matmul: packed weights become tensor-core operands in registers.

Both compute yᵀ = W xᵀ, so that weights are the operand with the long side (16 rows of an mma, 64 of a wgmma) and a
batch of 1 to 8 fills the short side of 8. A tile of packed 32-bit words goes through shared memory as it is
(asynchronous 16-byte copies) and is unpacked in the very registers the product reads: two 16-bit numbers of one
word become two neighbouring columns, so nothing is moved between threads.

Whole numbers become floats without a conversion instruction. The bits of a small whole number q, read as a
16-bit float, are the subnormal q · 2⁻¹³³ (bf16) or q · 2⁻²⁴ (fp16), up to 255 in both; one exact fused
multiply-add brings it into range and takes the zero point off:

    q · 2⁻¹³³ · 2¹²⁷ - z · 2⁻⁶ = (q - z) / 64        (bf16; in fp16 2⁻²⁴ · 2¹⁵, so (q - z) / 512)

and the power of two that is left over is multiplied into the sum at the end. fp8 works likewise: its bits moved to
the places of a 16-bit float's are value · 2⁻¹²⁰ (bf16) or value · 2⁻⁸ (fp16), its own subnormals included.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(128)  # inputs that share a scale in int4; also the inputs a step takes in every kind


@triton.jit
def _float16s(bits, dtype: tl.constexpr):
    return bits.to(tl.uint16).to(dtype, bitcast=True)


@triton.jit
def _scaled(bits, FACTOR: tl.constexpr, offset):
    return tl.fma(bits, tl.full(bits.shape, FACTOR, bits.dtype), tl.broadcast_to(offset, bits.shape))


@triton.jit
def _operand(word, zero, KIND: tl.constexpr, PART: tl.constexpr, dtype: tl.constexpr, SHAPE: tl.constexpr):
    """Columns 32 PART to 32 PART + 31 of an int4 group, or all 128 of an 8-bit step, of shape SHAPE.

    In units of `_unit`. zero: as `_offset` gives it.
    """
    # float32 is multiplied as float32, but every weight is exact in fp16
    half: tl.constexpr = tl.bfloat16 if dtype == tl.bfloat16 else tl.float16
    TOP: tl.constexpr = 2.0**127 if half == tl.bfloat16 else 2.0**15
    if KIND == "int4":
        # the last nibble is taken 3 bits further left: right-aligned, LLVM sees that the upper half needs no
        # mask and unpacks the two halves one by one
        LEFT: tl.constexpr = 3 if PART == 3 else 0
        two = (word >> (4 * PART - LEFT)) & (0x000F000F << LEFT)
        bits = tl.reshape(tl.join(_float16s(two, half), _float16s(two >> 16, half)), SHAPE)
        value = _scaled(bits, TOP / (1 << LEFT), zero)
    else:
        if KIND == "int8":
            # the sign bit flipped: q + 128, from 0 to 255
            word ^= 0x80808080
            even, odd = word & 0x00FF00FF, (word >> 8) & 0x00FF00FF
        else:
            # e4m3's exponent and mantissa end where the wider exponent of the 16-bit float begins
            MOVE: tl.constexpr = 4 if half == tl.bfloat16 else 7
            even = ((word << 8) & 0x80008000) | ((word << MOVE) & (0x007F007F << MOVE))
            odd = (word & 0x80008000) | ((word >> (8 - MOVE)) & (0x007F007F << MOVE))
        lower = tl.join(_float16s(even, half), _float16s(even >> 16, half))
        upper = tl.join(_float16s(odd, half), _float16s(odd >> 16, half))
        bits = tl.reshape(tl.join(lower, upper), SHAPE)
        FACTOR: tl.constexpr = TOP if KIND == "int8" else 2.0**120 if half == tl.bfloat16 else 2.0**8
        value = _scaled(bits, FACTOR, zero)
    return value.to(dtype)


@triton.jit
def _unit(KIND: tl.constexpr, dtype: tl.constexpr):
    """What a sum of `_operand`s is multiplied by to be one of weights."""
    return 1.0 if KIND == "fp8" else 64.0 if dtype == tl.bfloat16 else 512.0


@triton.jit
def _offset(zero_ptr, step, row, live, steps, KIND: tl.constexpr, dtype: tl.constexpr):
    """The addend that takes zero points off: those of int4 groups where given, or 8; int8's flipped sign bit."""
    half: tl.constexpr = tl.bfloat16 if dtype == tl.bfloat16 else tl.float16
    UNIT: tl.constexpr = 64 if half == tl.bfloat16 else 512
    if zero_ptr is None:
        ZERO: tl.constexpr = 8 if KIND == "int4" else 128 if KIND == "int8" else 0
        offset = tl.full(row.shape, -ZERO / UNIT, half)
    else:
        zero = tl.load(zero_ptr + row * steps + step, live, 0)
        TOP: tl.constexpr = 2.0**127 if half == tl.bfloat16 else 2.0**15
        offset = _scaled(_float16s(zero, half), -TOP, tl.full(zero.shape, 0.0, half))
    return offset


@triton.jit
def _narrow(
    x_ptr, word_ptr, scale_ptr, zero_ptr, y_ptr, M, N, K, scale_stride_n, scale_stride_g,
    KIND: tl.constexpr, SPLITS: tl.constexpr, SLICES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program's warps each take the same rows at other steps of K (a batched product of SLICES), then add up.

    So a matrix of 4096 rows fills a GPU without partial sums in memory.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PARTS: tl.constexpr = 4 if KIND == "int4" else 1
    WORDS: tl.constexpr = GROUP // 8 if KIND == "int4" else GROUP // 4
    COLUMNS: tl.constexpr = GROUP // PARTS
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(column, N - 1)  # past the end the last row again: no masks in the loop
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    steps = K // GROUP
    share = tl.cdiv(tl.cdiv(steps, SPLITS), SLICES) * SLICES
    start = tl.program_id(2) * share
    stop = tl.minimum(start + share, steps)
    # steps side by side: the warps of a program read one long run of each row
    turn = tl.arange(0, SLICES)
    word_tile = word_ptr + (row.to(tl.int64) * (steps * WORDS))[None, :, None] + tl.arange(0, WORDS)[None, None, :]
    x_tile = x_ptr + (m.to(tl.int64) * K)[None, None, :] + tl.arange(0, COLUMNS)[None, :, None]
    scale_tile = scale_ptr + row[None, :] * scale_stride_n
    step = start + turn
    if KIND == "int4":
        scale = tl.load(scale_tile + step[:, None] * scale_stride_g, (step < stop)[:, None], 0)
    acc = tl.zeros((SLICES, BLOCK_N, BLOCK_M), tl.float32)
    for first in range(start, stop, SLICES):
        step = first + turn
        live = (step < stop)[:, None, None]
        word = tl.load(word_tile + (step * WORDS)[:, None, None], live, 0)
        word = word.to(tl.uint32, bitcast=True)
        zero = _offset(zero_ptr, step[:, None, None], row[None, :, None], live, steps, KIND, dtype)
        part = tl.zeros((SLICES, BLOCK_N, BLOCK_M), tl.float32) if KIND == "int4" else acc
        for i in tl.static_range(PARTS):
            x = tl.load(x_tile + (step * GROUP)[:, None, None] + COLUMNS * i, live & (m < M)[None, None, :], 0)
            weight = _operand(word, zero, KIND, i, dtype, (SLICES, BLOCK_N, COLUMNS))
            part = tl.dot(weight, x, part, input_precision="ieee")
        if KIND == "int4":
            acc += part * scale.to(tl.float32)[:, :, None]
            # a step ahead of its use, as only operands of products are copied ahead by the compiler
            step += SLICES
            scale = tl.load(scale_tile + step[:, None] * scale_stride_g, (step < stop)[:, None], 0)
        else:
            acc = part
    y = tl.sum(acc, 0) * _unit(KIND, dtype)
    if KIND != "int4":
        y *= tl.load(scale_ptr + row * scale_stride_n).to(tl.float32)[:, None]
    out = (tl.program_id(2) * M + m).to(tl.int64)[None, :] * N + column[:, None]
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), (column < N)[:, None] & (m < M)[None, :])


@triton.jit
def _wide(
    x_ptr, word_ptr, scale_ptr, zero_ptr, y_ptr, M, N, K, scale_stride_n, scale_stride_g,
    KIND: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program's warps take other rows at the same steps: x, now as large as a tile, is read by fewer programs."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PARTS: tl.constexpr = 4 if KIND == "int4" else 1
    WORDS: tl.constexpr = GROUP // 8 if KIND == "int4" else GROUP // 4
    COLUMNS: tl.constexpr = GROUP // PARTS
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(column, N - 1)  # past the end the last row again: no masks in the loop
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    steps = K // GROUP
    share = tl.cdiv(steps, SPLITS)
    start = tl.program_id(2) * share
    stop = tl.minimum(start + share, steps)
    word_tile = word_ptr + (row.to(tl.int64) * (steps * WORDS))[:, None] + tl.arange(0, WORDS)[None, :]
    x_tile = x_ptr + (m.to(tl.int64) * K)[None, :] + tl.arange(0, COLUMNS)[:, None]
    scale_row = scale_ptr + row * scale_stride_n
    if KIND == "int4":
        scale = tl.load(scale_row + start * scale_stride_g, start < stop, 0)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(start, stop):
        word = tl.load(word_tile + step * WORDS).to(tl.uint32, bitcast=True)
        zero = _offset(zero_ptr, step, row[:, None], True, steps, KIND, dtype)
        part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32) if KIND == "int4" else acc
        for i in tl.static_range(PARTS):
            x = tl.load(x_tile + step * GROUP + COLUMNS * i, (m < M)[None, :], 0)
            weight = _operand(word, zero, KIND, i, dtype, (BLOCK_N, COLUMNS))
            part = tl.dot(weight, x, part, input_precision="ieee")
        if KIND == "int4":
            acc += part * scale.to(tl.float32)[:, None]
            scale = tl.load(scale_row + (step + 1) * scale_stride_g, step + 1 < stop, 0)
        else:
            acc = part
    y = acc * _unit(KIND, dtype)
    if KIND != "int4":
        y *= tl.load(scale_row).to(tl.float32)[:, None]
    out = (tl.program_id(2) * M + m).to(tl.int64)[None, :] * N + column[:, None]
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), (column < N)[:, None] & (m < M)[None, :])


@triton.jit
def _combine(part_ptr, y_ptr, SIZE, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the splits, always in the same order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(part_ptr + split * SIZE + place, place < SIZE, 0)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), place < SIZE)
