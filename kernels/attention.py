"""Causal grouped-query attention, forward and backward (FlashAttention-2, https://arxiv.org/abs/2307.08691).

    s = q · kᵀ / sqrt(d),   p = softmax(s, keys ≤ query),   o = p · v

    dv = pᵀ · do,   ds = p ∘ (do · vᵀ - delta),   delta = Σ_d do · o,   dq = ds · k / sqrt(d),   dk = dsᵀ · q / sqrt(d)

Scores live only in registers. The softmax is base 2 with log2(e) folded into the scale, because the
hardware's exponential is base 2; `lse` is the base-2 log-sum-exp of a row, from which backward recomputes p.
Keys are walked in two loops: blocks wholly below the diagonal need no mask, those on it do.
Query heads that share a key head are summed inside one program of the dk/dv kernel: no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from bench.kernels.op import Compile, Op, Shape

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)  # a kernel may read no plain global
HEAD_DIMS = (16, 32, 64, 128)
# float64 is for the reference: the kernels take exponentials and sums in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q (B, T, nq, d), k and v (B, T, nkv, d) -> o (B, T, nq, d)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


@triton.jit
def _load(ptr, first, stride, length, MASKED: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr):
    """BLOCK rows of D from row `first`; 64 bits only in the scalar, the tile's offsets stay cheap."""
    row = tl.arange(0, BLOCK)[:, None]
    tile = ptr + tl.cast(first, tl.int64) * stride + row * stride + tl.arange(0, D)[None, :]
    if MASKED:
        # only the last block of a sequence reaches past its end; zeros there add nothing to a product
        return tl.load(tile, first + row < length, other=0)
    return tl.load(tile)


@triton.jit
def _store(ptr, first, stride, length, value, BLOCK: tl.constexpr, D: tl.constexpr):
    row = tl.arange(0, BLOCK)[:, None]
    tile = ptr + tl.cast(first, tl.int64) * stride + row * stride + tl.arange(0, D)[None, :]
    tl.store(tile, value.to(ptr.dtype.element_ty), first + row < length)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, scale, T, NQ,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # the last rows see the most keys: start them first, so that the tail of the grid is short
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k_ptr += b * k_stride_b + head // GROUP * k_stride_h
    v_ptr += b * v_stride_b + head // GROUP * v_stride_h
    q = _load(q_ptr + b * q_stride_b + head * q_stride_h, first, q_stride_t, T, True, M, D)
    row = first + tl.arange(0, M)
    acc = tl.zeros((M, D), tl.float32)
    # finite after the first block: its first key lies at or below every row, so -inf minus -inf never occurs
    peak = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    # below the diagonal (0), then on it (1): the compiler makes two loops, one without a mask
    for diagonal in tl.static_range(2):
        for n in range(first * diagonal, tl.minimum(first + M * diagonal, T), N):
            k = _load(k_ptr, n, k_stride_t, T, diagonal, N, D)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            if diagonal:
                s = tl.where(row[:, None] >= n + tl.arange(0, N)[None, :], s, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(s, 1))
            p = tl.exp2(s - new_peak[:, None])
            # what was summed under the old maximum is carried over to the new one
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(p, 1)
            v = _load(v_ptr, n, v_stride_t, T, diagonal, N, D)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
    tl.store(lse_ptr + (b * NQ + head) * T + row, peak + tl.log2(total), row < T)
    _store(o_ptr + (b * T * NQ + head) * D, first, NQ * D, T, acc / total[:, None], M, D)


@triton.jit
def _delta(o_ptr, do_ptr, delta_ptr, T, NQ, M: tl.constexpr, D: tl.constexpr):
    first = tl.program_id(0) * M
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = (b * T * NQ + head) * D
    # the row sum of p ∘ dp, known from o and do before any score is computed again
    o = _load(o_ptr + place, first, NQ * D, T, True, M, D).to(tl.float32)
    do = _load(do_ptr + place, first, NQ * D, T, True, M, D).to(tl.float32)
    row = first + tl.arange(0, M)
    tl.store(delta_ptr + (b * NQ + head) * T + row, tl.sum(o * do, 1), row < T)


@triton.jit
def _backward_kv(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, scale, T, NQ,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * N
    kv_head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = _load(k_ptr + b * k_stride_b + kv_head * k_stride_h, first, k_stride_t, T, True, N, D)
    v = _load(v_ptr + b * v_stride_b + kv_head * v_stride_h, first, v_stride_t, T, True, N, D)
    dk = tl.zeros((N, D), tl.float32)
    dv = tl.zeros((N, D), tl.float32)
    past = tl.minimum(first + N, T)
    for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
        q_head = q_ptr + b * q_stride_b + head * q_stride_h
        do_head = do_ptr + (b * T * NQ + head) * D
        lse_head = lse_ptr + (b * NQ + head) * T
        delta_head = delta_ptr + (b * NQ + head) * T
        for below in tl.static_range(2):
            for m in range(past if below else first, T if below else past, M):
                # queries past the end load zeros: do = 0 and ds = 0, so they add nothing
                row = m + tl.arange(0, M)
                q = _load(q_head, m, q_stride_t, T, True, M, D)
                lse = tl.load(lse_head + row, row < T, other=0)
                # keys down, queries across: p and ds are then ready as left factors
                s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
                p = tl.exp2(s - lse[None, :])
                if not below:
                    p = tl.where(row[None, :] >= first + tl.arange(0, N)[:, None], p, 0.0)
                do = _load(do_head, m, NQ * D, T, True, M, D)
                dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
                delta = tl.load(delta_head + row, row < T, other=0)
                ds = p * (dp - delta[None, :])
                dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    place = (b * T * (NQ // GROUP) + kv_head) * D
    # `scale` carries log2(e) for exp2; the derivative of s does not
    _store(dk_ptr + place, first, NQ // GROUP * D, T, dk * (scale * LN_2), N, D)
    _store(dv_ptr + place, first, NQ // GROUP * D, T, dv, N, D)


@triton.jit
def _backward_q(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, scale, T, NQ,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k_ptr += b * k_stride_b + head // GROUP * k_stride_h
    v_ptr += b * v_stride_b + head // GROUP * v_stride_h
    place = (b * T * NQ + head) * D
    q = _load(q_ptr + b * q_stride_b + head * q_stride_h, first, q_stride_t, T, True, M, D)
    do = _load(do_ptr + place, first, NQ * D, T, True, M, D)
    row = first + tl.arange(0, M)
    lse = tl.load(lse_ptr + (b * NQ + head) * T + row, row < T, other=0)
    delta = tl.load(delta_ptr + (b * NQ + head) * T + row, row < T, other=0)
    dq = tl.zeros((M, D), tl.float32)
    for diagonal in tl.static_range(2):
        for n in range(first * diagonal, tl.minimum(first + M * diagonal, T), N):
            k = _load(k_ptr, n, k_stride_t, T, diagonal, N, D)
            v = _load(v_ptr, n, v_stride_t, T, diagonal, N, D)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            p = tl.exp2(s - lse[:, None])
            if diagonal:
                p = tl.where(row[:, None] >= n + tl.arange(0, N)[None, :], p, 0.0)
            ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    _store(dq_ptr + place, first, NQ * D, T, dq * (scale * LN_2), M, D)


# (M queries, N keys, warps, stages) by pass and head dimension: the largest tiles for which ptxas spills
# nothing on sm_90 with Triton 3.6 and 3.7 (tests/aot). Two loops over keys want N | M, over queries M | N.
TILES = {
    "forward": {64: (128, 64, 8, 3), 128: (128, 128, 8, 3)},
    "backward_kv": {64: (64, 128, 8, 2), 128: (32, 128, 8, 2)},
    "backward_q": {64: (128, 64, 8, 3), 128: (128, 64, 8, 3)},
}
DELTA_ROWS = 64


def _config(kernel: str, head_dim: int, group: int, dtype: torch.dtype) -> dict[str, Any]:
    """Fixed tiles, chosen here rather than tuned at run time: one shape always runs one program."""
    # exact fp32 products run outside the tensor cores: for tests, not for speed
    m, n, warps, stages = (32, 32, 4, 1) if dtype == torch.float32 else TILES[kernel][max(head_dim, 64)]
    sizes = {"GROUP": group, "D": head_dim, "M": m, "N": n, "num_warps": warps, "num_stages": stages}
    return sizes | {"PRECISION": "ieee" if dtype == torch.float32 else "tf32"}


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        batch, length, heads, head_dim = q.shape
        config = _config("forward", head_dim, heads // k.shape[2], q.dtype)
        o = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty((batch, heads, length), dtype=torch.float32, device=q.device)
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        _forward[(triton.cdiv(length, config["M"]), heads, batch)](
            q, k, v, o, lse, head_dim**-0.5 * LOG2_E, length, heads, *strides, **config
        )
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v, o, lse = ctx.saved_tensors
        batch, length, heads, head_dim = q.shape
        do = do.contiguous()  # autograd may hand over an expanded gradient
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        delta = torch.empty_like(lse)
        _delta[(triton.cdiv(length, DELTA_ROWS), heads, batch)](o, do, delta, length, heads, M=DELTA_ROWS, D=head_dim)
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        sizes = (head_dim**-0.5 * LOG2_E, length, heads, *strides)
        config = _config("backward_kv", head_dim, heads // k.shape[2], q.dtype)
        _backward_kv[(triton.cdiv(length, config["N"]), k.shape[2], batch)](
            q, k, v, do, lse, delta, dk, dv, *sizes, **config
        )
        config = _config("backward_q", head_dim, heads // k.shape[2], q.dtype)
        _backward_q[(triton.cdiv(length, config["M"]), heads, batch)](q, k, v, do, lse, delta, dq, *sizes, **config)
        return dq, dk, dv


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As `reference`. q, k, v may be slices of a packed projection: only d must be contiguous."""
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2]:
        raise ValueError(f"attention: want (B, T, heads, d), got {q.shape}, {k.shape}, {v.shape}")
    if q.numel() == 0 or k.numel() == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads do not divide over {k.shape[2]} key heads")
    if q.shape[3] not in HEAD_DIMS or k.shape[3] != q.shape[3]:
        raise ValueError(f"attention: d must be one of {HEAD_DIMS}, got {q.shape[3]} and {k.shape[3]}")
    if q.dtype not in DTYPES or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"attention: want one of float32/16, bfloat16 for all, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not (q.device == k.device == v.device):
        raise ValueError(f"attention: tensors on {q.device}, {k.device} and {v.device}")
    if not (q.stride(3) == k.stride(3) == v.stride(3) == 1):
        raise ValueError("attention: the last dimension must be contiguous")
    return _Attention.apply(q, k, v)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Slices of one packed projection, as in the model."""
    batch, length, nq, nkv, d = (shape[key] for key in ("B", "T", "nq", "nkv", "d"))
    packed = torch.randn((batch, length, nq + 2 * nkv, d), device=device, generator=generator)
    q, k, v = packed.to(dtype).split((nq, nkv, nkv), 2)
    return {"q": q, "k": k, "v": v}


def flops(shape: Shape) -> int:
    """Two matmuls, halved for causality: 4 · B · nq · T² · d / 2 (FlashAttention's own convention)."""
    return 2 * shape["B"] * shape["nq"] * shape["T"] ** 2 * shape["d"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read q, k and v once, write o; fp32 lse."""
    tokens = shape["B"] * shape["T"]
    heads = 2 * shape["nq"] + 2 * shape["nkv"]
    return tokens * (heads * shape["d"] * element + 4 * shape["nq"])


def compiles() -> list[Compile]:
    """All four kernels for (head dimension, queries per key head) of the listed models."""
    special = {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "scale": "fp32"}
    entries = []
    for head_dim, group in ((128, 4), (128, 2), (64, 4)):
        for kernel in (_forward, _backward_kv, _backward_q, _delta):
            config = {"M": DELTA_ROWS, "D": head_dim}
            if kernel is not _delta:
                config = _config(kernel.__name__.strip("_"), head_dim, group, torch.bfloat16)
            warps, stages = config.pop("num_warps", 4), config.pop("num_stages", 3)
            names = [name for name in kernel.arg_names if name not in config]
            types = {name: special.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
            divisible = tuple(name for name in names if types[name] == "i32")
            entries.append(Compile(kernel, types, config, warps, stages, divisible, kernel is not _delta))
    return entries


OP = Op(
    reference=reference,
    triton=attention,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"B": 2, "T": 4096, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_1_8b_prefill": {"B": 1, "T": 8192, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_2_1b_train": {"B": 4, "T": 2048, "nq": 32, "nkv": 8, "d": 64},
        "qwen3_0_6b_train": {"B": 4, "T": 2048, "nq": 16, "nkv": 8, "d": 128},
    },
    test_shapes={
        "group_of_2": {"B": 2, "T": 160, "nq": 4, "nkv": 2, "d": 64},
        "wide": {"B": 1, "T": 192, "nq": 2, "nkv": 2, "d": 128},
        "tiny": {"B": 2, "T": 5, "nq": 2, "nkv": 1, "d": 16},
        "odd": {"B": 1, "T": 301, "nq": 3, "nkv": 1, "d": 32},
    },
    flops=flops,
    bytes=least_bytes,
    compiles=compiles,
    differentiable=("q", "k", "v"),
)
