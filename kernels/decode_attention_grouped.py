"""Decode attention over keys and values of their own: the kernel of multi-head and grouped-query attention.

The query heads of one key head are the rows of one tile, so its keys and values are read once for all of them.
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
from bench.kernels.tuning import tuned


@triton.jit
def _split(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, sinks_ptr, k_scale_ptr, v_scale_ptr, o_ptr, part_ptr, lse_ptr,
    scale, window, BATCH, NQ, SLICES, table_stride, q_stride_b, q_stride_h, stride_b, stride_s, stride_h,
    CUT: tl.constexpr, PAGE_BITS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    group, dim, place = tl.arange(0, BLOCK_G), tl.arange(0, D), tl.arange(0, BLOCK_S)
    # rows past GROUP load zeros and are not stored: the padding costs products, no memory
    head, real = kv_head * GROUP + group, group < GROUP
    k_ptr += kv_head.to(tl.int64) * stride_h
    v_ptr += kv_head.to(tl.int64) * stride_h
    v_scale = 1.0
    if k_scale_ptr is not None:
        scale *= tl.load(k_scale_ptr)
        v_scale = tl.load(v_scale_ptr)
    begin, end, first, left = my_blocks(lengths_ptr, BATCH, window, SLICES, CUT, BLOCK_S, BLOCK_B)
    for i in range(0, end - begin):
        b = begin + i
        length = tl.load(lengths_ptr + b)
        blocks = block_count(length, window, BLOCK_S)
        count = tl.minimum(blocks - first, left)
        # what a window hides is no part of any block
        start = tl.maximum(length - window, 0) + first * BLOCK_S
        stop = tl.minimum(start + count * BLOCK_S, length)
        q_tile = q_ptr + b.to(tl.int64) * q_stride_b + head[:, None] * q_stride_h + dim[None, :]
        q = tl.load(q_tile, real[:, None], other=0)
        score_scale = tl.full((BLOCK_G,), scale, tl.float32)
        if k_scale_ptr is not None and q_ptr.dtype.element_ty != tl.float32:
            # fp8 unpacks to fp16 in one instruction and to bf16 in three; every row of q in its range, all of it
            wide = q.to(tl.float32)
            largest = tl.maximum(tl.max(tl.abs(wide), 1), 1e-30)
            q = (wide / largest[:, None]).to(tl.float16)
            score_scale *= largest
        acc = tl.zeros((BLOCK_G, D), tl.float32)
        peak = tl.full((BLOCK_G,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        if sinks_ptr is not None:
            # once a sequence, by the piece that begins it; in the others what weighs 2^LOWEST vanishes
            sink = tl.load(sinks_ptr + head, real, other=0).to(tl.float32) * LOG2_E
            peak = tl.where(first == 0, sink, peak)
            total += 1.0
        for s in range(start, stop, BLOCK_S):
            used = s + place < stop
            table = table_ptr + b.to(tl.int64) * table_stride
            row = cache_rows(table, b, s, place, used, stride_b, stride_s, PAGE_BITS, False)
            tile = row[:, None] + dim[None, :]
            # unused cache may hold anything, NaN too: it is never loaded
            k = tl.load(k_ptr + tile, used[:, None], other=0.0).to(q.dtype)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * score_scale[:, None]
            score = tl.where(used[None, :], score, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(score, 1))
            p = tl.exp2(score - new_peak[:, None])
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(v_ptr + tile, used[:, None], other=0.0).to(q.dtype)
            acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
        store_piece(acc, peak, total, o_ptr, part_ptr, lse_ptr, b, head, real, count == blocks, first, v_scale, NQ, D)
        first *= 0  # the sequences after it are entered at their beginning
        left -= count


def _config(head_dim: int, group: int, cache: torch.dtype, page: int, device: torch.device) -> dict[str, Any]:
    default = {
        # 16 KiB of keys a step, so that with the values and three steps 64 KiB are on their way; of fp8 half, because
        # it is unpacked in registers
        "BLOCK_S": 64 if cache.itemsize == 1 else min(128, 16384 // (head_dim * cache.itemsize)),
        "per_processor": 2,  # one loads while the other computes
        "num_warps": 4,
        # page numbers are loaded ahead of the keys they lead to: the same depth takes twice the steps
        "num_stages": 5 if page else 3,
    }
    return tuned("decode_attention.split", (head_dim, group, cache.itemsize, page), default, device)


def decode_grouped(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
    block_table: torch.Tensor | None, window: int | None, sinks: torch.Tensor | None,
    k_scale: torch.Tensor | None, v_scale: torch.Tensor | None, scale: float,
) -> torch.Tensor:  # fmt: skip
    """q (B, nq, d) over caches (..., nkv, d), checked -> o (B, nq, d)."""
    batch, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    page = 0 if block_table is None else k_cache.shape[1]
    table, stride = (lengths, 0) if block_table is None else (block_table, block_table.stride(0))
    capacity = k_cache.shape[1] if block_table is None else page * block_table.shape[1]
    window = UNLIMITED.value if window is None else window
    config = _config(head_dim, group, k_cache.dtype, page, q.device)
    block_s = config["BLOCK_S"]
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    cut = share(kv_heads, o, triton.cdiv(min(capacity, window), block_s), config.pop("per_processor"))
    _split[(kv_heads, cut.slices)](
        q, k_cache, v_cache, table, lengths, sinks, k_scale, v_scale, o, cut.part, cut.lse,
        scale * LOG2_E.value, window, batch, heads, cut.slices, stride, *q.stride()[:2],
        *k_cache.stride()[:3], CUT=cut.cut, PAGE_BITS=max(page, 1).bit_length() - 1, D=head_dim, GROUP=group,
        BLOCK_G=max(16, triton.next_power_of_2(group)),  # the least rows of a tensor-core product
        BLOCK_B=batch_block(batch), PRECISION="ieee" if q.dtype == torch.float32 else "tf32", **config,
    )  # fmt: skip
    if cut.cut:
        combine(cut, o, lengths, window, block_s)
    return o
