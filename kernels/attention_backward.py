"""Backward kernels of `attention`: delta and dsinks, then dk and dv by key tile, then dq by query tile.

p is computed again from the scores and `lse`, once for dk and dv and once for dq: two products more than if one
kernel added its dq up with atomics, but every sum has one order, so a run repeats bit for bit.
Query heads that share a key head are summed inside one program of the dk/dv kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.attention_forward import (
    LOG2_E,
    LOG2_E_DEVICE,
    LOWEST,
    Call,
    key_ranges,
    launch_grid,
    load_tile,
    lowest_key,
    source,
    store_tile,
)

LN_2 = tl.constexpr(0.6931471805599453)
DELTA_ROWS = 64


@triton.jit
def _delta(
    o_ptr, do_ptr, lse_ptr, sinks_ptr, delta_ptr, dsinks_ptr, T, NQ,
    SINKS: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * M
    head, b = tl.program_id(1), tl.program_id(2)
    # the row sum of p ∘ dp, known from o and do before any score is computed again
    o = load_tile(o_ptr, b, head, first, tl.cast(T, tl.int64) * NQ * D, NQ * D, D, T, True, M, D, False).to(tl.float32)
    do = load_tile(do_ptr, b, head, first, tl.cast(T, tl.int64) * NQ * D, NQ * D, D, T, True, M, D, False).to(
        tl.float32
    )
    delta = tl.sum(o * do, 1)
    row = first + tl.arange(0, M)
    place = (b.to(tl.int64) * NQ + head) * T + row
    tl.store(delta_ptr + place, delta, row < T)
    if SINKS:
        # a sink is a score whose value is zero: its dp is 0, so its ds is -p · delta
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E_DEVICE
        lse = tl.load(lse_ptr + place, row < T, other=0)
        p = tl.where(row < T, tl.exp2(tl.maximum(sink, LOWEST) - lse), 0.0)
        part = (b * NQ + head) * tl.num_programs(0) + tl.program_id(0)
        tl.store(dsinks_ptr + part, -tl.sum(p * delta, 0))


@triton.jit
def past_query(key, ends_ptr, T, WINDOW: tl.constexpr, PACKED: tl.constexpr):
    """The first query that no longer sees each of these keys; it never falls from one key to the next."""
    past = key * 0 + T
    if WINDOW:
        past = tl.minimum(past, key + WINDOW)
    if PACKED:
        past = tl.minimum(past, tl.load(ends_ptr + tl.minimum(key, T - 1)))
    return past


@triton.jit
def _backward_kv(
    q_in, k_in, v_in, q_tail_in, k_tail_in, do_in, lse_ptr, delta_ptr, ends_ptr, dk_ptr, dv_ptr, scale, T, NQ,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, TAIL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    # the first keys are seen by the most queries: they start first
    kv_head, b = tl.program_id(0), tl.program_id(2)
    first = tl.program_id(1) * N
    key = first + tl.arange(0, N)
    k = load_tile(k_in, b, kv_head, first, k_stride_b, k_stride_t, k_stride_h, T, True, N, D, TMA)
    v = load_tile(v_in, b, kv_head, first, v_stride_b, v_stride_t, v_stride_h, T, True, N, D, TMA)
    dk = tl.zeros((N, D), tl.float32)
    if TAIL:
        k_tail = load_tile(k_tail_in, b, kv_head, first, k_stride_b, k_stride_t, k_stride_h, T, True, N, TAIL, TMA)
        dk_tail = tl.zeros((N, TAIL), tl.float32)
    dv = tl.zeros((N, D), tl.float32)
    past = past_query(key, ends_ptr, T, WINDOW, PACKED)
    # queries that see a key of the tile, for every head of the group, in one loop: its copies never run dry. It
    # masks every tile: loops with and without a mask need more registers than a thread has
    begin = first // M * M
    count = tl.cdiv(past_query(tl.minimum(first + N, T) - 1, ends_ptr, T, WINDOW, PACKED) - begin, M)
    for step in range(GROUP * count):
        head = kv_head * GROUP + step // count
        m = begin + step % count * M
        # queries past the end load zeros: do = 0 and ds = 0, so they add nothing
        row = m + tl.arange(0, M)
        rows = (b.to(tl.int64) * NQ + head) * T
        q = load_tile(q_in, b, head, m, q_stride_b, q_stride_t, q_stride_h, T, True, M, D, TMA)
        lse = tl.load(lse_ptr + rows + row, row < T, other=0)
        # keys down, queries across: p and ds are then ready as left factors
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if TAIL:
            q_tail = load_tile(q_tail_in, b, head, m, q_stride_b, q_stride_t, q_stride_h, T, True, M, TAIL, TMA)
            s = tl.dot(k_tail, tl.trans(q_tail), s, input_precision=PRECISION)
        p = tl.exp2(s * scale - lse[None, :])
        p = tl.where(row[None, :] >= key[:, None], p, 0.0)
        if WINDOW or PACKED:
            p = tl.where(row[None, :] < past[:, None], p, 0.0)
        do = load_tile(do_in, b, head, m, tl.cast(T, tl.int64) * NQ * D, NQ * D, D, T, True, M, D, TMA)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        delta = tl.load(delta_ptr + rows + row, row < T, other=0)
        ds = p * (dp - delta[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        if TAIL:
            dk_tail = tl.dot(ds.to(q.dtype), q_tail, dk_tail, input_precision=PRECISION)
    # `scale` carries log2(e) for exp2; the derivative of s does not
    store_tile(dk_ptr, b, kv_head, first, T, NQ // GROUP, dk * (scale * LN_2), N, D, D + TAIL)
    if TAIL:
        store_tile(dk_ptr, b, kv_head, first, T, NQ // GROUP, dk_tail * (scale * LN_2), N, TAIL, D + TAIL, D)
    store_tile(dv_ptr, b, kv_head, first, T, NQ // GROUP, dv, N, D, D)


@triton.jit
def _backward_q(
    q_in, k_in, v_in, q_tail_in, k_tail_in, do_in, lse_ptr, delta_ptr, starts_ptr, dq_ptr, scale, T, NQ,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, TAIL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, LOOPS: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    # walks keys as the forward does
    head, b = tl.program_id(0), tl.program_id(2)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * M
    row = first + tl.arange(0, M)
    q = load_tile(q_in, b, head, first, q_stride_b, q_stride_t, q_stride_h, T, True, M, D, TMA)
    do = load_tile(do_in, b, head, first, tl.cast(T, tl.int64) * NQ * D, NQ * D, D, T, True, M, D, TMA)
    rows = (b.to(tl.int64) * NQ + head) * T
    lse = tl.load(lse_ptr + rows + row, row < T, other=0)
    delta = tl.load(delta_ptr + rows + row, row < T, other=0)
    dq = tl.zeros((M, D), tl.float32)
    if TAIL:
        q_tail = load_tile(q_tail_in, b, head, first, q_stride_b, q_stride_t, q_stride_h, T, True, M, TAIL, TMA)
        dq_tail = tl.zeros((M, TAIL), tl.float32)
    low = lowest_key(row, starts_ptr, T, WINDOW, PACKED)
    begin, full, diagonal = key_ranges(first, starts_ptr, T, M, N, WINDOW, PACKED, LOOPS)
    for part in tl.static_range(3 - LOOPS, 3):
        start = begin if part == 0 else (full if part == 1 else diagonal)
        stop = full if part == 0 else (diagonal if part == 1 else tl.minimum(first + M, T))
        for n in range(start, stop, N):
            k = load_tile(k_in, b, head // GROUP, n, k_stride_b, k_stride_t, k_stride_h, T, part == 2, N, D, TMA)
            v = load_tile(v_in, b, head // GROUP, n, v_stride_b, v_stride_t, v_stride_h, T, part == 2, N, D, TMA)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if TAIL:
                k_tail = load_tile(
                    k_tail_in, b, head // GROUP, n, k_stride_b, k_stride_t, k_stride_h, T, part == 2, N, TAIL, TMA
                )
                s = tl.dot(q_tail, tl.trans(k_tail), s, input_precision=PRECISION)
            p = tl.exp2(s * scale - lse[:, None])
            key = n + tl.arange(0, N)[None, :]
            if part == 2:
                p = tl.where(row[:, None] >= key, p, 0.0)
            if part != 1 and (WINDOW or PACKED):
                p = tl.where(key >= low[:, None], p, 0.0)
            ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
            if TAIL:
                dq_tail = tl.dot(ds.to(k.dtype), k_tail, dq_tail, input_precision=PRECISION)
    store_tile(dq_ptr, b, head, first, T, NQ, dq * (scale * LN_2), M, D, D + TAIL)
    if TAIL:
        store_tile(dq_ptr, b, head, first, T, NQ, dq_tail * (scale * LN_2), M, TAIL, D + TAIL, D)


def backward(call: Call, o: torch.Tensor, lse: torch.Tensor, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """dq, dk, dv and, where there are sinks, dsinks."""
    batch, length, heads, _ = call.q.shape
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (call.q, call.k, call.v))
    delta, tiles, dsinks = torch.empty_like(lse), triton.cdiv(length, DELTA_ROWS), None
    if call.sinks is not None:
        # one part a program, summed in a fixed order
        dsinks = torch.empty((batch, heads, tiles), dtype=torch.float32, device=lse.device)
    _delta[launch_grid(tiles, heads, batch)](
        o, do, lse, call.sinks, delta, dsinks, length, heads, SINKS=dsinks is not None, M=DELTA_ROWS, D=call.v.shape[3]
    )
    sizes = (call.scale * LOG2_E, length, heads, *call.strides())

    def sources(config: dict[str, Any]) -> list[Any]:
        (q, k), (q_tail, k_tail) = call.heads(), call.tails()
        tiles = ((q, "M"), (k, "N"), (call.v, "N"), (q_tail, "M"), (k_tail, "N"), (do, "M"))
        return [source(x, config[rows], config) for x, rows in tiles]

    config = call.config("backward_kv")
    _backward_kv[launch_grid(call.k.shape[2], triton.cdiv(length, config["N"]), batch)](
        *sources(config), lse, delta, call.ends, dk, dv, *sizes, **config
    )
    config = call.config("backward_q")
    _backward_q[launch_grid(heads, triton.cdiv(length, config["M"]), batch)](
        *sources(config), lse, delta, call.starts, dq, *sizes, **config
    )
    if dsinks is None or call.sinks is None:
        return dq, dk, dv, None
    return dq, dk, dv, dsinks.sum((0, 2)).to(call.sinks.dtype)
