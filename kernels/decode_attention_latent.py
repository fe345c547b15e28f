"""Decode attention over one latent cache (multi-head latent attention, DeepSeek-V2, with projections absorbed).

    o = softmax(q · cᵀ · scale, visible positions) · c[..., :v_dim]

All query heads share one key head, of which the first v_dim channels are the values too (512 of 576; the other 64
carry the rotary position). So a tile of the cache is loaded once and multiplied twice. With 128 heads there are
2 · 128 · (576 + 512) operations a position of 1152 bytes: as many as the tensor cores do in the time of reading it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.decode_attention_schedule import (
    LOG2_E,
    LOWEST,
    UNLIMITED,
    batch_block,
    block_count,
    cache_rows,
    combine,
    my_blocks,
    share,
    store_piece,
)
from bench.kernels.op import architecture
from bench.kernels.tuning import tuned


@triton.jit
def _latent(
    q_ptr, cache_ptr, table_ptr, lengths_ptr, o_ptr, part_ptr, lse_ptr,
    scale, BATCH, NQ, SLICES, table_stride, q_stride_b, q_stride_h, stride_b, stride_s,
    CUT: tl.constexpr, PAGE_BITS: tl.constexpr, HALF: tl.constexpr, ROPE: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    real = head < NQ
    dim, turned, place = tl.arange(0, HALF), 2 * HALF + tl.arange(0, ROPE), tl.arange(0, BLOCK_S)
    begin, end, first, left = my_blocks(lengths_ptr, BATCH, UNLIMITED, SLICES, CUT, BLOCK_S, BLOCK_B)
    # nothing is hoisted out of this loop: what would be held across the inner one, it has no registers for
    for i in tl.range(0, end - begin, disable_licm=True):
        b = begin + i
        length = tl.load(lengths_ptr + b)
        blocks = block_count(length, UNLIMITED, BLOCK_S)
        count = tl.minimum(blocks - first, left)
        start, stop = first * BLOCK_S, tl.minimum((first + count) * BLOCK_S, length)
        q_row = q_ptr + b.to(tl.int64) * q_stride_b + head[:, None] * q_stride_h
        # the latent channels in two halves: each half's sums are stored before the other's are laid out anew
        q_low = tl.load(q_row + dim[None, :], real[:, None], other=0)
        q_high = tl.load(q_row + HALF + dim[None, :], real[:, None], other=0)
        q_turned = tl.load(q_row + turned[None, :], real[:, None], other=0)
        acc_low = tl.zeros((BLOCK_G, HALF), tl.float32)
        acc_high = tl.zeros((BLOCK_G, HALF), tl.float32)
        peak = tl.full((BLOCK_G,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        for s in range(start, stop, BLOCK_S):
            used = s + place < stop
            table = table_ptr + b.to(tl.int64) * table_stride
            row = cache_rows(table, b, s, place, used, stride_b, stride_s, PAGE_BITS, True)
            row = cache_ptr + row[:, None]
            # unused cache may hold anything, NaN too: it is never loaded
            low = tl.load(row + dim[None, :], used[:, None], other=0)
            high = tl.load(row + HALF + dim[None, :], used[:, None], other=0)
            rope = tl.load(row + turned[None, :], used[:, None], other=0)
            score = tl.dot(q_low, tl.trans(low), input_precision=PRECISION)
            score = tl.dot(q_high, tl.trans(high), score, input_precision=PRECISION)
            score = tl.dot(q_turned, tl.trans(rope), score, input_precision=PRECISION) * scale
            score = tl.where(used[None, :], score, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(score, 1))
            p = tl.exp2(score - new_peak[:, None])
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(p, 1)
            p = p.to(low.dtype)
            acc_low = tl.dot(p, low, acc_low * shrink[:, None], input_precision=PRECISION)
            acc_high = tl.dot(p, high, acc_high * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
        whole = count == blocks
        store_piece(acc_low, peak, total, o_ptr, part_ptr, lse_ptr, b, head, real, whole, first, 1.0, NQ, 2 * HALF)
        o_high, part_high = o_ptr + HALF, part_ptr + HALF
        store_piece(acc_high, peak, total, o_high, part_high, lse_ptr, b, head, real, whole, first, 1.0, NQ, 2 * HALF)
        first *= 0  # the sequences after it are entered at their beginning
        left -= count


def _config(heads: int, q: torch.Tensor, page: int) -> dict[str, Any]:
    hopper = architecture(q.device) == 90
    # wgmma begins at 64 rows; the sums of 64 heads are 128 registers a thread of 8 warps
    tile = min(64 if hopper else 32, max(16, triton.next_power_of_2(heads)))
    default = {
        "BLOCK_G": tile,
        "BLOCK_S": 64 // q.element_size(),
        "num_warps": 4 if tile == 16 else 8,
        "num_stages": 2,
        "per_processor": 1 if hopper else 2,
    }
    return tuned("decode_attention.latent", (heads, q.element_size(), page), default, q.device)


def decode_latent(
    q: torch.Tensor, cache: torch.Tensor, lengths: torch.Tensor, block_table: torch.Tensor | None,
    scale: float, v_dim: int,
) -> torch.Tensor:  # fmt: skip
    """q (B, nq, d) over cache (..., 1, d), checked -> o (B, nq, v_dim)."""
    batch, heads, width = q.shape
    page = 0 if block_table is None else cache.shape[1]
    table, stride = (lengths, 0) if block_table is None else (block_table, block_table.stride(0))
    capacity = cache.shape[1] if block_table is None else page * block_table.shape[1]
    config = _config(heads, q, page)
    tiles, block_s = triton.cdiv(heads, config["BLOCK_G"]), config["BLOCK_S"]
    o = torch.empty((batch, heads, v_dim), dtype=q.dtype, device=q.device)
    cut = share(tiles, o, triton.cdiv(capacity, block_s), config.pop("per_processor"))
    _latent[(tiles, cut.slices)](
        q, cache, table, lengths, o, cut.part, cut.lse, scale * LOG2_E.value, batch, heads, cut.slices,
        stride, *q.stride()[:2], *cache.stride()[:2],
        CUT=cut.cut, PAGE_BITS=max(page, 1).bit_length() - 1, HALF=v_dim // 2, ROPE=width - v_dim,
        BLOCK_B=batch_block(batch), PRECISION="ieee" if q.dtype == torch.float32 else "tf32", **config,
    )  # fmt: skip
    if cut.cut:
        combine(cut, o, lengths, UNLIMITED.value, block_s)
    return o
