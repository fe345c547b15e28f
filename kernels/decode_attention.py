"""Attention of one new token over a key-value cache, shared out along the cache (flash-decoding).

    o = softmax(q · kᵀ · scale, sink, visible positions) · v

Visible are the positions below `lengths`, of them the last `window` where there is one. A sink is one learned
logit a query head: it takes its share of the softmax and has no value (gpt-oss, https://arxiv.org/abs/2508.10925).

A single query per head is a matrix-vector product: the time is that of reading the cache. The query heads of one
key head are packed into one tile of at least 16 rows, so the cache is read once for all of them and tensor cores
do the products; and the positions of the whole batch are cut into equal parts, see decode_attention_schedule.
The cache is one block a sequence, (B, S, nkv, d), or pages, (blocks, block_size, nkv, d), found through
`block_table` (https://arxiv.org/abs/2309.06180). It may be fp8: the scale of the keys joins the softmax scale, that
of the values the output. Without `v_cache` the values are the first `v_dim` channels of the only key head
(multi-head latent attention with its projections absorbed, https://arxiv.org/abs/2405.04434).

The grid depends on shapes alone and lengths are read on the device, so the launch fits a CUDA graph.
Split-KV: https://pytorch.org/blog/flash-decoding/. Head packing: https://arxiv.org/abs/2511.11581.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton

from bench.kernels.decode_attention_grouped import decode_grouped
from bench.kernels.decode_attention_latent import decode_latent
from bench.kernels.op import ARCHITECTURES, Op, Shape, architecture

HEAD_DIMS = (16, 32, 64, 128)
# float64 is for the reference: the kernels take exponentials and sums in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn


def reference(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor | None, lengths: torch.Tensor, *,
    block_table: torch.Tensor | None = None, window: int | None = None, sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None,
    scale: float | None = None, v_dim: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """q (B, nq, d), caches (B, S, nkv, d) or with block_table (B, pages) (blocks, block_size, nkv, d), sinks (nq,).

    lengths (B,) of at least 1 -> o (B, nq, d or v_dim). Unused cache must be finite.
    """
    k = k_cache
    v = k_cache[..., :v_dim] if v_cache is None else v_cache
    if block_table is not None:
        # entries past a sequence's end may name no page
        pages = block_table.clamp(0, k.shape[0] - 1).long()
        k, v = k[pages].flatten(1, 2), v[pages].flatten(1, 2)
    if k_scale is not None:
        q = (q * k_scale).to(q.dtype)
    position = torch.arange(k.shape[1], device=q.device)
    visible = position < lengths[:, None]
    if window is not None:
        visible &= position >= lengths[:, None] - window
    k, v = k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    mask = visible[:, None, None]
    if sinks is not None:
        # a sink is one more position, whose score is its logit and whose value is zero
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        sink = sinks.to(q.dtype)[:, None, None].expand(q.shape[0], -1, -1, -1)
        mask = torch.cat((bias.expand(-1, q.shape[1], -1, -1), sink), -1)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    o = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, enable_gqa=True, scale=scale)[:, :, 0]
    return o if v_scale is None else (o * v_scale).to(q.dtype)


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, lengths: torch.Tensor, block_table: torch.Tensor | None,
    window: int | None, sinks: torch.Tensor | None, k_scale: torch.Tensor | None, v_scale: torch.Tensor | None,
    v_dim: int | None,
) -> None:  # fmt: skip
    def refuse(condition: bool, message: str) -> None:
        if condition:
            raise ValueError(f"decode_attention: {message}")

    v_like = k if v is None else v
    refuse(q.dim() != 3 or k.dim() != 4 or k.shape != v_like.shape, "want q (B, nq, d), caches (B, S, nkv, d)")
    refuse(q.numel() == 0 or k.numel() == 0, "nothing may be empty")
    refuse(q.shape[0] > 65535, f"at most 65535 sequences, the grid's y, got {q.shape[0]}")
    refuse(bool(q.shape[1] % k.shape[2]), f"{q.shape[1]} query heads over {k.shape[2]} key heads")
    refuse(q.shape[2] != k.shape[3], f"q has d = {q.shape[2]}, the cache {k.shape[3]}")
    if v is None:
        parts = (v_dim or 0, q.shape[2] - (v_dim or 0))
        plain = window is None and sinks is None and k_scale is None and v_scale is None
        refuse(k.shape[2] != 1, f"a latent cache has one head, got {k.shape[2]}")
        refuse(not plain, "a latent cache knows no window, sinks or scales")
        refuse(parts[0] < 32 or any(n < 16 or n & (n - 1) for n in parts), f"v_dim and d - v_dim are {parts}")
    else:
        refuse(v_dim is not None, "v_dim is of a cache without values")
        refuse(q.shape[2] not in HEAD_DIMS, f"d must be one of {HEAD_DIMS}, got {q.shape[2]}")
    scaled = k.dtype == FP8
    refuse(q.dtype not in DTYPES or k.dtype != v_like.dtype, f"got {q.dtype}, {k.dtype}, {v_like.dtype}")
    refuse(k.dtype != q.dtype and not (scaled and v is not None), f"a cache of {k.dtype} for q of {q.dtype}")
    refuse(scaled and architecture(q.device) < 90, "float8_e4m3fn caches need sm_90 or newer")
    scales = (k_scale, v_scale)
    refuse(any((s is not None) != scaled for s in scales), "scales go with float8_e4m3fn caches, and only with them")
    refuse(any(s is not None and (s.dim() or s.dtype != torch.float32) for s in scales), "scales must be float32 ()")
    refuse(lengths.shape != q.shape[:1] or lengths.dtype != torch.int32, "lengths must be int32 (B,)")
    refuse(not lengths.is_contiguous(), "lengths must be contiguous")
    if block_table is None:
        refuse(q.shape[0] != k.shape[0], f"{q.shape[0]} queries over {k.shape[0]} sequences")
    else:
        size = k.shape[1]
        refuse(size < 16 or bool(size & (size - 1)), f"a page must hold a power of two from 16 on, got {size}")
        refuse(block_table.dim() != 2 or block_table.shape[0] != q.shape[0], "block_table must be (B, pages)")
        refuse(block_table.dtype != torch.int32 or block_table.stride(1) != 1, "block_table must be int32 rows")
    refuse(window is not None and window < 1, f"a window of {window} positions")
    if sinks is not None:
        refuse(sinks.shape != q.shape[1:2] or not sinks.is_contiguous(), "sinks must be contiguous (nq,)")
        refuse(sinks.dtype not in DTYPES, f"sinks of {sinks.dtype}")
    refuse(q.stride(2) != 1 or k.stride(3) != 1, "the last dimension must be contiguous")
    refuse(k.stride() != v_like.stride(), "both caches must have the same strides")
    others = (k, v, lengths, block_table, sinks, k_scale, v_scale)
    refuse(any(x is not None and x.device != q.device for x in others), "all tensors must be on one device")


@torch.no_grad()
def decode_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor | None, lengths: torch.Tensor, *,
    block_table: torch.Tensor | None = None, window: int | None = None, sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None,
    scale: float | None = None, v_dim: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `reference`; unused cache may hold anything. Forward only; no host read, so safe in a CUDA graph."""
    _check(q, k_cache, v_cache, lengths, block_table, window, sinks, k_scale, v_scale, v_dim)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if v_cache is None:
        assert v_dim is not None  # _check
        return decode_latent(q, k_cache, lengths, block_table, scale, v_dim)
    return decode_grouped(q, k_cache, v_cache, lengths, block_table, window, sinks, k_scale, v_scale, scale)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """A full cache, or where `ragged` lengths from 1 to S (both ends present); `page`d ones in shuffled order."""
    batch, capacity, nq, nkv, d = (shape[key] for key in ("B", "S", "nq", "nkv", "d"))
    page = shape.get("page", 0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    # a full cache makes `bytes` exact; ragged lengths are for tests
    lengths = torch.full((batch,), capacity, device=device)
    if shape.get("ragged"):
        lengths = torch.randint(1, capacity + 1, (batch,), device=device, generator=generator)
        lengths[0], lengths[-1] = 1, capacity
    given: dict[str, Any] = {"q": draw(batch, nq, d).to(dtype)}
    size, pages = (batch, capacity), triton.cdiv(capacity, page) if page else 0
    if page:
        size = (batch * pages, page)
        order = torch.randperm(size[0], device=device, generator=generator)
        given["block_table"] = order.view(batch, pages).int()
    latent = shape.get("v_dim")
    kind = FP8 if shape.get("fp8") else dtype
    given |= {"k_cache": draw(*size, nkv, d).to(kind), "v_cache": None if latent else draw(*size, nkv, d).to(kind)}
    if shape.get("fp8"):
        given |= {name: torch.rand((), device=device, generator=generator) + 0.5 for name in ("k_scale", "v_scale")}
    if shape.get("window"):
        given["window"] = shape["window"]
    if shape.get("sinks"):
        given["sinks"] = draw(nq).to(dtype)
    if latent:
        # of DeepSeek-V3: 1 / sqrt(128 + 64), the width of a head before its key projection was absorbed
        given |= {"v_dim": latent, "scale": 192**-0.5}
    return given | {"lengths": lengths.int()}


def _visible(shape: Shape) -> int:
    return min(shape["S"], shape.get("window", shape["S"]))


def flops(shape: Shape) -> int:
    """Two products per head and position of a full cache."""
    width = shape["d"] + shape.get("v_dim", shape["d"])
    return 2 * shape["B"] * shape["nq"] * _visible(shape) * width


def least_bytes(shape: Shape, element: int) -> int:
    """Read what is visible of the cache once (its values are of the keys where it is latent), read q, write o."""
    caches = 1 if shape.get("v_dim") else 2
    cache = _visible(shape) * shape["nkv"] * shape["d"] * caches * (1 if shape.get("fp8") else element)
    heads = shape["nq"] * (shape["d"] + shape.get("v_dim", shape["d"]))
    return shape["B"] * (cache + heads * element)


def _architectures(shape: Shape) -> tuple[int, ...]:
    return (90, 100) if shape.get("fp8") else ARCHITECTURES


OP = Op(
    reference=reference,
    triton=decode_attention,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_b1": {"B": 1, "S": 8192, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_1_8b_b32": {"B": 32, "S": 4096, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_2_1b_b16": {"B": 16, "S": 4096, "nq": 32, "nkv": 8, "d": 64},
        "qwen3_0_6b_b8": {"B": 8, "S": 4096, "nq": 16, "nkv": 8, "d": 128},
        "llama_3_1_8b_b32_page16": {"B": 32, "S": 4096, "nq": 32, "nkv": 8, "d": 128, "page": 16},
        "llama_3_1_8b_b32_page64": {"B": 32, "S": 4096, "nq": 32, "nkv": 8, "d": 128, "page": 64},
        "llama_3_1_8b_b32_fp8": {"B": 32, "S": 4096, "nq": 32, "nkv": 8, "d": 128, "page": 16, "fp8": 1},
        "gpt_oss_20b_b32": {"B": 32, "S": 4096, "nq": 64, "nkv": 8, "d": 64, "page": 16, "window": 128, "sinks": 1},
        "deepseek_v3_mla_b1": {"B": 1, "S": 8192, "nq": 128, "nkv": 1, "d": 576, "v_dim": 512, "page": 64},
        "deepseek_v3_mla_b32": {"B": 32, "S": 4096, "nq": 128, "nkv": 1, "d": 576, "v_dim": 512, "page": 64},
    },
    test_shapes={
        "splits": {"B": 1, "S": 1024, "nq": 4, "nkv": 2, "d": 64},
        "ragged": {"B": 3, "S": 700, "nq": 4, "nkv": 1, "d": 128, "ragged": 1},
        "uncut": {"B": 4, "S": 130, "nq": 8, "nkv": 2, "d": 32, "ragged": 1},
        "paged": {"B": 3, "S": 300, "nq": 4, "nkv": 1, "d": 128, "ragged": 1, "page": 16},
        "fp8": {"B": 3, "S": 400, "nq": 4, "nkv": 1, "d": 64, "ragged": 1, "page": 32, "fp8": 1},
        "window": {"B": 3, "S": 500, "nq": 4, "nkv": 1, "d": 128, "ragged": 1, "window": 300},
        "sinks": {"B": 4, "S": 300, "nq": 8, "nkv": 1, "d": 64, "ragged": 1, "page": 16, "window": 128, "sinks": 1},
        "sinks_cut": {"B": 3, "S": 400, "nq": 4, "nkv": 1, "d": 128, "ragged": 1, "sinks": 1},
        "latent": {"B": 2, "S": 200, "nq": 20, "nkv": 1, "d": 80, "v_dim": 64, "ragged": 1, "page": 16},
        "odd": {"B": 2, "S": 515, "nq": 21, "nkv": 1, "d": 16, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    candidates={
        "decode_attention.split": (
            {"per_processor": 1},
            {"per_processor": 3},
            {"BLOCK_S": 32},
            {"BLOCK_S": 128},
            {"num_warps": 2},
            {"num_stages": 4},
            {"num_stages": 7},
        ),
        "decode_attention.latent": (
            {"BLOCK_S": 64},
            {"BLOCK_S": 16, "num_stages": 4},
            {"num_stages": 3},
            {"BLOCK_G": 32, "per_processor": 2},
            {"BLOCK_G": 16, "num_warps": 4, "per_processor": 2},
        ),
    },
    architectures=_architectures,
)
