"""The kernel of `chunk_attention`: which rows a program takes, and how it walks over their keys.

The queries of one sequence under one key head are packed into rows, positions outside and heads inside:

    row r = (query r // GROUP, query head kv_head · GROUP + r % GROUP)

M of them are a tile and a program of its own, so every key a program loads is used M times, and a chunk of few tokens
still fills the tensor cores (head packing: https://arxiv.org/abs/2511.11581). Sequences have different numbers of
tiles: the programs of one key head are counted through from tile 0 of the first sequence, each finds its own in
`cu_seqlens`, and those past the last tile end at once. The grid needs shapes and the longest run only.

Keys of a tile are walked in up to three loops, so that only the edges of what is visible pay for a mask:

    0  the lower edge of a window: keys some rows see and others do not
    1  keys every row sees: no mask
    2  the diagonal: the tile's own new tokens, and what is left of the context past a multiple of N

Without a window loop 0 is empty and left out; under a narrow window one masked loop does all.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.op import architecture
from bench.kernels.tuning import tuned

LOG2_E = 1.4426950408889634
LOG2_E_DEVICE = tl.constexpr(LOG2_E)  # a kernel may read no plain global
LOWEST = tl.constexpr(-1e30)  # below every score and finite: a row that sees nothing gets o = 0 and not NaN
UNLIMITED = 2**31 - 1  # a window that hides nothing


@triton.jit
def my_tile(cu_ptr, tile, BATCH, GROUP: tl.constexpr, M: tl.constexpr, BLOCK_B: tl.constexpr):
    """The sequence of this tile, past the last one BATCH; and the tile's first row in it."""
    sequence = tl.arange(0, BLOCK_B)
    begin = tl.load(cu_ptr + sequence, sequence < BATCH, other=0)
    end = tl.load(cu_ptr + sequence + 1, sequence < BATCH, other=0)
    tiles = tl.cdiv((end - begin) * GROUP, M)
    passed = (tl.cumsum(tiles, 0) <= tile) & (sequence < BATCH)
    return tl.sum(passed.to(tl.int32), 0), (tile - tl.sum(tl.where(passed, tiles, 0), 0)) * M


@triton.jit
def page_rows(table_ptr, key, first, used, stride_b, stride_s, PAGE_BITS: tl.constexpr, MASKED: tl.constexpr):
    """Where in the cache the keys begin, `first` the lowest; table_ptr is the sequence's row of the block table."""
    if key.shape[0] <= (1 << PAGE_BITS):
        # all of the tile in one page: what differs between rows fits 32 bits
        page = tl.load(table_ptr + (first >> PAGE_BITS)).to(tl.int64)
        row = page * stride_b + (key & ((1 << PAGE_BITS) - 1)) * stride_s
    else:
        # where no row sees a key the table may hold anything: it is not read
        page = tl.load(table_ptr + (key >> PAGE_BITS), used if MASKED else None, other=0 if MASKED else None)
        row = page.to(tl.int64) * stride_b + (key & ((1 << PAGE_BITS) - 1)) * stride_s
    return row


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, lengths_ptr, cu_ptr, table_ptr, sinks_ptr, k_scale_ptr, v_scale_ptr, o_ptr,
    scale, window, BATCH, NKV, table_stride, q_stride_n, q_stride_h, stride_b, stride_s, stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, PAGE_BITS: tl.constexpr, LOOPS: tl.constexpr, BLOCK_B: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # key heads side by side; the last tiles of a sequence, which see the most keys, start first
    kv_head = (tl.program_id(0) % NKV).to(tl.int64)
    b, first = my_tile(cu_ptr, (tl.num_programs(0) - 1 - tl.program_id(0)) // NKV, BATCH, GROUP, M, BLOCK_B)
    if b >= BATCH:
        return
    begin = tl.load(cu_ptr + b)
    queries = tl.load(cu_ptr + b + 1) - begin
    rows = queries * GROUP
    behind = tl.load(lengths_ptr + b) - queries  # the position of query 0: keys that were there before
    row = first + tl.arange(0, M)
    query, group, dim, real = row // GROUP, row % GROUP, tl.arange(0, D), row < rows
    # 64 bits in the scalars alone: what differs inside a tile is small
    lead = first // GROUP
    q_ptr += (begin + lead).to(tl.int64) * q_stride_n + kv_head * GROUP * q_stride_h
    q_row = (query - lead) * q_stride_n + group * q_stride_h
    q = tl.load(q_ptr + q_row[:, None] + dim[None, :], real[:, None], other=0)
    k_ptr += kv_head * stride_h
    v_ptr += kv_head * stride_h
    table_ptr += b.to(tl.int64) * table_stride
    v_scale = 1.0
    score_scale = scale
    if k_scale_ptr is not None:
        score_scale = tl.full((M,), scale * tl.load(k_scale_ptr), tl.float32)
        v_scale = tl.load(v_scale_ptr)
        if q_ptr.dtype.element_ty != tl.float32:
            # fp8 unpacks to fp16 in one instruction and to bf16 in three; every row of q in its range, all of it
            wide = q.to(tl.float32)
            largest = tl.maximum(tl.max(tl.abs(wide), 1), 1e-30)
            q = (wide / largest[:, None]).to(tl.float16)
            score_scale *= largest
        score_scale = score_scale[:, None]
    acc = tl.zeros((M, D), tl.float32)
    peak = tl.full((M,), LOWEST, tl.float32)
    total = tl.zeros((M,), tl.float32)
    if sinks_ptr is not None:
        # a sink is a key that is always seen and has no value: the sum starts with it instead of with nothing
        sink = tl.load(sinks_ptr + kv_head * GROUP + group).to(tl.float32) * LOG2_E_DEVICE
        peak = tl.maximum(sink, LOWEST)
        total += 1.0
    position = behind + query
    # positions of the first and the last query that the tile has a row of
    least = behind + lead
    last = behind + (tl.minimum(first + M, rows) - 1) // GROUP
    lowest = 0 if LOOPS == 2 else tl.maximum(least - window + 1, 0)
    diagonal = tl.maximum(least + 1, 0) // N * N
    start_0 = lowest // N * N
    start_1 = start_0
    if LOOPS == 3:
        start_1 = tl.minimum(tl.cdiv(tl.maximum(last - window + 1, 0), N) * N, diagonal)
    if LOOPS == 1:
        diagonal = start_0
    for part in tl.static_range(3 - LOOPS, 3):
        start = start_0 if part == 0 else (start_1 if part == 1 else diagonal)
        stop = start_1 if part == 0 else (diagonal if part == 1 else last + 1)
        for n in range(start, stop, N):
            key = n + tl.arange(0, N)
            # what no row sees may hold anything, NaN too: it is never loaded
            used = (key >= lowest) & (key <= last)
            tile = page_rows(table_ptr, key, n, used, stride_b, stride_s, PAGE_BITS, part != 1)[:, None] + dim[None, :]
            mask = used[:, None] if part != 1 else None
            k = tl.load(k_ptr + tile, mask, other=0.0 if part != 1 else None).to(q.dtype)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if k_scale_ptr is not None:
                s *= score_scale
            if part == 2:
                s = tl.where(position[:, None] >= key[None, :], s, float("-inf"))
            if part != 1 and LOOPS != 2:
                s = tl.where(position[:, None] - key[None, :] < window, s, float("-inf"))
            if k_scale_ptr is not None:
                new_peak = tl.maximum(peak, tl.max(s, 1))
                p = tl.exp2(s - new_peak[:, None])
            else:
                # the scale, log2(e) in it, and the maximum in one fused multiply-add
                new_peak = tl.maximum(peak, tl.max(s, 1) * score_scale)
                p = tl.exp2(s * score_scale - new_peak[:, None])
            # what was summed under the old maximum is carried over to the new one
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(v_ptr + tile, mask, other=0.0 if part != 1 else None).to(q.dtype)
            acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
    out = acc * (v_scale / tl.where(total > 0, total, 1.0))[:, None]
    o_ptr += ((begin + lead).to(tl.int64) * NKV + kv_head) * GROUP * D
    o_row = ((query - lead) * NKV * GROUP + group) * D
    tl.store(o_ptr + o_row[:, None] + dim[None, :], out.to(o_ptr.dtype.element_ty), real[:, None])


# (M rows, N keys, warps, stages) by architecture and head dimension (64: it or less), or "few": runs of 64 rows at
# most, "narrow" and "window": a window. ptxas spills nothing for them with Triton 3.6 and 3.7 (tests/aot). Page numbers
# are loaded ahead of the keys they lead to and take half of the stages: of 5 a tile is under way while another is
# computed, of 4 none. At d = 64 on sm_90 4 stages need 127 registers (Triton 3.7), so that two programs share a
# multiprocessor and the loads of one pass under the products of the other.
WINDOWED: dict[int | str, tuple[int, int, int, int]] = {"narrow": (128, 64, 8, 4), "window": (128, 64, 8, 5)}
TILES: dict[int, dict[int | str, tuple[int, int, int, int]]] = {
    80: {"few": (64, 32, 4, 5), 64: (128, 64, 8, 5), 128: (128, 64, 8, 5), **WINDOWED},
    90: {"few": (64, 64, 4, 5), 64: (128, 64, 8, 4), 128: (128, 64, 8, 5), **WINDOWED},
    100: {"few": (64, 64, 4, 5), 64: (128, 128, 8, 5), 128: (128, 64, 8, 5), **WINDOWED},
}
# a window no wider than this makes large tiles mostly masked; and one loop with a mask is then better than three of
# a tile or two each, which would never fill their pipelines
NARROW_WINDOW = 256


def _config(
    q: torch.Tensor, cache: torch.Tensor, group: int, max_query: int, window: int | None
) -> dict[str, Any]:  # fmt: skip
    """Constants and launch options: one shape always runs one program."""
    head_dim, page, rows = q.shape[2], cache.shape[1], max_query * group
    kind = "causal" if window is None else "narrow" if window <= NARROW_WINDOW else "window"
    if q.dtype == torch.float32:
        # exact fp32 products run outside the tensor cores: for tests, not for speed
        tiles, precision = (32, 32, 4, 1), "ieee"
    else:
        # 64 rows are what tensor cores take at least, by one group of warps
        size = "few" if rows <= 64 else max(head_dim, 64) if kind == "causal" else kind
        tiles, precision = TILES[architecture(q.device)][size], "tf32"
    default: dict[str, Any] = dict(zip(("M", "N", "num_warps", "num_stages"), tiles, strict=True))
    key = (head_dim, group, cache.itemsize, page, kind, rows.bit_length())
    config = tuned("chunk_attention.forward", key, default, q.device)
    return {"LOOPS": {"narrow": 1, "causal": 2, "window": 3}[kind], "PRECISION": precision, **config}


def forward(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor, cu_seqlens: torch.Tensor,
    block_table: torch.Tensor, max_query: int, window: int | None, sinks: torch.Tensor | None,
    k_scale: torch.Tensor | None, v_scale: torch.Tensor | None, scale: float,
) -> torch.Tensor:  # fmt: skip
    """q (N, nq, d) over caches (blocks, block_size, nkv, d), checked -> o (N, nq, d)."""
    tokens, heads, head_dim = q.shape
    batch, kv_heads = len(lengths), k_cache.shape[2]
    group = heads // kv_heads
    config = _config(q, k_cache, group, max_query, window)
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    # every run at its longest, or all tokens together and a tile begun in each run: whichever is less
    tiles = min(batch * triton.cdiv(max_query * group, config["M"]), tokens * group // config["M"] + batch)
    _forward[(tiles * kv_heads,)](
        q, k_cache, v_cache, lengths, cu_seqlens, block_table, sinks, k_scale, v_scale, o,
        scale * LOG2_E, UNLIMITED if window is None else window, batch, kv_heads, block_table.stride(0),
        *q.stride()[:2], *k_cache.stride()[:3], GROUP=group, D=head_dim,
        PAGE_BITS=k_cache.shape[1].bit_length() - 1,
        # all sequences at once; at least a warp's, so that batches share kernels
        BLOCK_B=max(32, triton.next_power_of_2(batch)), **config,
    )  # fmt: skip
    return o
