"""Attention of one new token over a key-value cache, split along the cache (flash-decoding).

    o = softmax(q · kᵀ / sqrt(d), positions < length) · v

A single query per head is a matrix-vector product: the time is that of reading the cache. Two things keep
the memory busy. The query heads of one key head are packed into one tile of at least 16 rows, so the cache
is read once for all of them and tensor cores do the products. And each sequence's cache is cut into splits,
so that a small batch still fills the GPU; every split leaves a normalised o and its log-sum-exp (base 2),
and a second kernel combines them,   o = Σ_i 2^(lse_i - max) · o_i / Σ_i 2^(lse_i - max).

The grid depends on shapes alone and lengths are read on the device, so the launch fits a CUDA graph.
Split-KV: https://pytorch.org/blog/flash-decoding/. Head packing: https://arxiv.org/abs/2511.11581.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from bench.kernels.op import Compile, Op, Shape

LOG2_E = 1.4426950408889634
HEAD_DIMS = (16, 32, 64, 128)
# float64 is for the reference: the kernels take exponentials and sums in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCK_S = 64  # positions a step: 16 KiB of keys at d = 128, three steps in flight
SPLIT_MIN = 256  # a split shorter than this costs more to combine than it saves
SPLIT_MAX = 64  # the combine kernel holds all splits of a head at once


def reference(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """q (B, nq, d), caches (B, S, nkv, d), lengths (B,) -> o (B, nq, d). Unused cache must be finite."""
    used = torch.arange(k_cache.shape[1], device=q.device) < lengths[:, None]
    k, v = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    mask = used[:, None, None]
    out = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, enable_gqa=True)
    return out[:, :, 0]


@triton.jit
def _split(
    q_ptr, k_ptr, v_ptr, lengths_ptr, o_ptr, lse_ptr, scale, NKV, SPLITS,
    q_stride_b, q_stride_h, k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head, split = tl.program_id(0) % NKV, tl.program_id(1)
    b = (tl.program_id(0) // NKV).to(tl.int64)
    length = tl.load(lengths_ptr + b)
    # the length in use is shared out, not the capacity: splits of one sequence are equal to one block
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_S) * BLOCK_S
    start, stop = split * share, tl.minimum(split * share + share, length)
    group, dim, place = tl.arange(0, BLOCK_G), tl.arange(0, D), tl.arange(0, BLOCK_S)
    # rows past GROUP load zeros and are not stored: the padding costs products, no memory
    head = kv_head * GROUP + group
    q_tile = q_ptr + b * q_stride_b + head[:, None] * q_stride_h + dim[None, :]
    q = tl.load(q_tile, group[:, None] < GROUP, other=0)
    k_ptr += b * k_stride_b + kv_head * k_stride_h
    v_ptr += b * v_stride_b + kv_head * v_stride_h
    acc = tl.zeros((BLOCK_G, D), tl.float32)
    peak = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    for s in range(start, stop, BLOCK_S):
        used = s + place < stop
        # 64 bits: a cache of 1M positions x 8 heads x 128 is 2^30 elements a sequence
        row = (s + place).to(tl.int64)[:, None]
        # unused cache may hold anything, NaN too: it is never loaded
        k = tl.load(k_ptr + row * k_stride_s + dim[None, :], used[:, None], other=0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        score = tl.where(used[None, :], score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        p = tl.exp2(score - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + row * v_stride_s + dim[None, :], used[:, None], other=0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    # an empty split stores o = 0 and lse = -inf: it weighs nothing in the sum
    total = tl.where(total > 0, total, 1.0)
    out = (b * NKV * GROUP + head) * SPLITS + split
    tl.store(lse_ptr + out, peak + tl.log2(total), group < GROUP)
    o_tile = o_ptr + out[:, None] * D + dim[None, :]
    tl.store(o_tile, (acc / total[:, None]).to(o_ptr.dtype.element_ty), group[:, None] < GROUP)


@triton.jit
def _combine(part_ptr, lse_ptr, o_ptr, SPLITS, D: tl.constexpr, BLOCK_SPLITS: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, BLOCK_SPLITS), tl.arange(0, D)
    lse = tl.load(lse_ptr + head * SPLITS + split, split < SPLITS, other=float("-inf"))
    # a length of at least 1 makes the first split's lse finite, so the maximum is finite
    weight = tl.exp2(lse - tl.max(lse, 0))
    tile = part_ptr + (head * SPLITS + split)[:, None] * D + dim[None, :]
    part = tl.load(tile, (split < SPLITS)[:, None], other=0)
    out = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(o_ptr + head * D + dim, out.to(o_ptr.dtype.element_ty))


@functools.cache
def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; those of an H100 where there is no GPU, so that tests split as it does."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def _splits(batch: int, kv_heads: int, capacity: int, device: torch.device) -> int:
    """Enough programs for two on each multiprocessor, none shorter than SPLIT_MIN positions."""
    # two a multiprocessor: one loads while the other computes; more would only add partial results
    wanted = 2 * _processors(device) // (batch * kv_heads)
    return max(1, min(wanted, triton.cdiv(capacity, SPLIT_MIN), SPLIT_MAX))


def _config(head_dim: int, group: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "GROUP": group,
        "D": head_dim,
        "BLOCK_G": max(16, triton.next_power_of_2(group)),  # the least rows of a tensor-core product
        "BLOCK_S": BLOCK_S,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": 4,
        "num_stages": 3,
    }


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor) -> None:
    if q.dim() != 3 or k.dim() != 4 or k.shape != v.shape or q.shape[0] != k.shape[0]:
        raise ValueError(
            f"decode_attention: want q (B, nq, d), caches (B, S, nkv, d), got {q.shape}, {k.shape}, {v.shape}"
        )
    if q.numel() == 0 or k.numel() == 0 or q.shape[1] % k.shape[2]:
        raise ValueError(f"decode_attention: {q.shape[1]} query heads over {k.shape[2]} key heads")
    if q.shape[2] not in HEAD_DIMS or k.shape[3] != q.shape[2]:
        raise ValueError(f"decode_attention: d must be one of {HEAD_DIMS}, got {q.shape[2]}, {k.shape[3]}")
    if q.dtype not in DTYPES or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"decode_attention: want one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if lengths.shape != q.shape[:1] or lengths.dtype != torch.int32 or not lengths.is_contiguous():
        raise ValueError(f"decode_attention: lengths must be dense int32 ({q.shape[0]},), got {lengths.dtype}")
    if not (q.device == k.device == v.device == lengths.device):
        raise ValueError("decode_attention: all tensors must be on one device")
    if not (q.stride(2) == k.stride(3) == v.stride(3) == 1):
        raise ValueError("decode_attention: the last dimension must be contiguous")


@torch.no_grad()
def decode_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """As `reference`, for lengths of at least 1. Forward only; no host read, so safe in a CUDA graph."""
    _check(q, k_cache, v_cache, lengths)
    batch, heads, head_dim = q.shape
    capacity, kv_heads = k_cache.shape[1:3]
    splits = _splits(batch, kv_heads, capacity, q.device)
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, heads, splits), dtype=torch.float32, device=q.device)
    # one split is the answer itself; several are combined from fp32
    size = (batch, heads, splits, head_dim)
    part = o if splits == 1 else torch.empty(size, dtype=torch.float32, device=q.device)
    _split[(batch * kv_heads, splits)](
        q, k_cache, v_cache, lengths, part, lse, head_dim**-0.5 * LOG2_E, kv_heads, splits,
        *q.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3],
        **_config(head_dim, heads // kv_heads, q.dtype),
    )  # fmt: skip
    if splits > 1:
        _combine[(batch * heads,)](part, lse, o, splits, D=head_dim, BLOCK_SPLITS=SPLIT_MAX)
    return o


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """A full cache, or where `ragged` lengths from 1 to S (both ends present)."""
    batch, capacity, nq, nkv, d = (shape[key] for key in ("B", "S", "nq", "nkv", "d"))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator).to(dtype)

    # a full cache makes `bytes` exact; ragged lengths are for tests
    lengths = torch.full((batch,), capacity, device=device)
    if shape.get("ragged"):
        lengths = torch.randint(1, capacity + 1, (batch,), device=device, generator=generator)
        lengths[0], lengths[-1] = 1, capacity
    cache = {"k_cache": draw(batch, capacity, nkv, d), "v_cache": draw(batch, capacity, nkv, d)}
    return {"q": draw(batch, nq, d), **cache, "lengths": lengths.int()}


def flops(shape: Shape) -> int:
    """Two products per head and position of a full cache."""
    return 4 * shape["B"] * shape["nq"] * shape["S"] * shape["d"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read both caches once, read q, write o."""
    heads = 2 * shape["S"] * shape["nkv"] + 2 * shape["nq"]
    return shape["B"] * heads * shape["d"] * element


def compiles() -> list[Compile]:
    """(head dimension, queries per key head) of the listed models, alone (bf16 out) and in splits (fp32)."""
    special = {"lengths_ptr": "*i32", "lse_ptr": "*fp32", "scale": "fp32"}
    entries = []
    for head_dim, group, out in ((128, 4, "*fp32"), (128, 4, "*bf16"), (128, 2, "*fp32"), (64, 4, "*fp32")):
        config = _config(head_dim, group, torch.bfloat16)
        warps, stages = config.pop("num_warps"), config.pop("num_stages")
        names = [name for name in _split.arg_names if name not in config]
        types = {name: special.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
        strides = tuple(name for name in names if "_stride_" in name)
        entries.append(Compile(_split, types | {"o_ptr": out}, config, warps, stages, strides, uses_dot=True))
    types = {"part_ptr": "*fp32", "lse_ptr": "*fp32", "o_ptr": "*bf16", "SPLITS": "i32"}
    for head_dim in (128, 64):
        entries.append(Compile(_combine, types, {"D": head_dim, "BLOCK_SPLITS": SPLIT_MAX}))
    return entries


OP = Op(
    reference=reference,
    triton=decode_attention,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_b1": {"B": 1, "S": 8192, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_1_8b_b32": {"B": 32, "S": 4096, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_2_1b_b16": {"B": 16, "S": 4096, "nq": 32, "nkv": 8, "d": 64},
        "qwen3_0_6b_b8": {"B": 8, "S": 4096, "nq": 16, "nkv": 8, "d": 128},
    },
    test_shapes={
        "splits": {"B": 1, "S": 1024, "nq": 4, "nkv": 2, "d": 64},
        "ragged": {"B": 3, "S": 700, "nq": 4, "nkv": 1, "d": 128, "ragged": 1},
        "one_split": {"B": 4, "S": 130, "nq": 8, "nkv": 2, "d": 32, "ragged": 1},
        "odd": {"B": 2, "S": 515, "nq": 21, "nkv": 1, "d": 16, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    compiles=compiles,
)
