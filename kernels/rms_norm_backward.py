"""The backward kernels of `rms_norm`: see there for the formulas and for which of them run."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _backward(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr, rows, inner, outer_stride, inner_stride,
    HAS_DH: tl.constexpr, HAS_DW: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
    DH_FIRST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK_H)[None, :]
    if BLOCK_H <= 2048:
        weight = tl.load(weight_ptr + col, col < H, other=0).to(tl.float32)
    # stays in registers over all rows of the program: one write of H numbers instead of an atomic a row
    dw = tl.zeros((ROWS, BLOCK_H), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < H)
        place = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
        flat = row.to(tl.int64)[:, None] * H + col
        h = tl.load(h_ptr + place[:, None] + col, mask, other=0).to(tl.float32)
        dy = tl.load(dy_ptr + flat, mask, other=0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, row < rows, other=0)[:, None]
        # again for every row, from the cache: kept, a long weight would take the registers dw needs
        if BLOCK_H > 2048:
            weight = tl.load(weight_ptr + col, col < H, other=0).to(tl.float32)
        # h goes on along the residual stream, so its own gradient joins here: the fused add's backward
        if HAS_DH and DH_FIRST:
            through = tl.load(dh_ptr + flat, mask, other=0).to(tl.float32)
        unit = h * rstd
        grad = dy * weight
        mean = (tl.sum(grad * unit, 1) / H)[:, None]
        if HAS_DW:
            dw += dy * unit
        else:
            # a row that fills the registers is read again, from the cache, and not kept over the sum
            h = tl.load(h_ptr + place[:, None] + col, mask, other=0, eviction_policy="evict_first").to(tl.float32)
            dy = tl.load(dy_ptr + flat, mask, other=0, eviction_policy="evict_first").to(tl.float32)
            weight = tl.load(weight_ptr + col, col < H, other=0, eviction_policy="evict_last").to(tl.float32)
            grad, unit = dy * weight, h * rstd
        if HAS_DH and not DH_FIRST:
            through = tl.load(dh_ptr + flat, mask, other=0).to(tl.float32)
        dx = rstd * (grad - unit * mean)
        if HAS_DH:
            dx += through
        tl.store(dx_ptr + flat, dx.to(dx_ptr.dtype.element_ty), mask)
    if HAS_DW:
        tl.store(partial_ptr + tl.program_id(0) * H + col, tl.sum(dw, 0)[None, :], col < H)


@triton.jit
def _weight_partials(
    dy_ptr, h_ptr, rstd_ptr, partial_ptr, rows, inner, outer_stride, inner_stride,
    H: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dweight alone, of every so many rows and some columns: for rows whose own program has no room for it."""
    col = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    dw = tl.zeros((ROWS, BLOCK_H), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < H)
        place = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
        h = tl.load(h_ptr + place[:, None] + col, mask, other=0).to(tl.float32)
        dy = tl.load(dy_ptr + row.to(tl.int64)[:, None] * H + col, mask, other=0).to(tl.float32)
        dw += dy * h * tl.load(rstd_ptr + row, row < rows, other=0)[:, None]
    tl.store(partial_ptr + tl.program_id(0) * H + col, tl.sum(dw, 0)[None, :], col < H)


@triton.jit
def _sum_partials(
    partial_ptr, dw_ptr, partials, H: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # 32 columns a program: 128 bytes of each partial, and enough programs to read them at full speed
    col = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    total = tl.zeros((ROWS, BLOCK_H), tl.float32)
    for first in range(0, partials, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        total += tl.load(partial_ptr + row * H + col, (row < partials) & (col < H), other=0)
    tl.store(dw_ptr + col, tl.sum(total, 0)[None, :].to(dw_ptr.dtype.element_ty), col < H)
