"""Causal attention of new tokens of several sequences over a paged cache that holds their keys already.

    o_j = softmax(q_j · kᵀ · scale, sink, visible keys) · v,   visible: p_j - window < key <= p_j

    p_j = lengths[b] - (cu_seqlens[b + 1] - cu_seqlens[b]) + j

is the position of query j of sequence b, whose last tokens are new: a piece of a prompt (chunked prefill,
https://arxiv.org/abs/2308.16369) or what is left of a prompt whose beginning another request left in the cache. The
new tokens of all sequences lie end to end, as a serving engine's step has them; `kv_append` wrote their keys and values
before. A sink is one learned logit a query head: it takes its share of the softmax and has no value (gpt-oss,
https://arxiv.org/abs/2508.10925).

The cache is pages, (blocks, block_size, nkv, d), found through `block_table` (https://arxiv.org/abs/2309.06180). It
may be fp8: the scale of the keys joins the softmax scale, that of the values the output.

Softmax in one pass over the keys, scores in registers alone: FlashAttention-2, https://arxiv.org/abs/2307.08691.
Kernel: chunk_attention_forward.py. A program walks all keys of its tile by itself: a few tokens behind a long prefix
leave multiprocessors idle, where decode_attention, one token a sequence, would cut the prefix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton

from bench.kernels.chunk_attention_forward import forward
from bench.kernels.op import ARCHITECTURES, Op, Shape, architecture

HEAD_DIMS = (16, 32, 64, 128)
# float64 is for the reference: the kernel takes exponentials and sums in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn


def reference(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor, cu_seqlens: torch.Tensor,
    block_table: torch.Tensor, *, max_query: int, window: int | None = None, sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """q (N, nq, d), caches (blocks, block_size, nkv, d), block_table (B, pages), sinks (nq,) -> o (N, nq, d).

    cu_seqlens (B + 1,) int32: where each sequence's queries begin, first 0, last N, every run 1 to max_query long.
    lengths (B,) int32: keys of each sequence, its new tokens among them. Unused cache must be finite.
    """
    # one row of max_query queries a sequence, so that no shape depends on data; places past a run repeat tokens
    place = torch.arange(max_query, device=q.device)
    rows = (cu_seqlens[:-1, None] + place).clamp(max=len(q) - 1)
    position = (lengths - cu_seqlens.diff())[:, None] + place
    # entries past a sequence's end may name no page
    pages = block_table.clamp(0, k_cache.shape[0] - 1).long()
    k, v = k_cache[pages].flatten(1, 2), v_cache[pages].flatten(1, 2)
    if k_scale is not None:
        q = (q * k_scale).to(q.dtype)
    key = torch.arange(k.shape[1], device=q.device)
    mask = key <= position[:, :, None]
    if window is not None:
        mask &= key > position[:, :, None] - window
    mask, k, v = mask[:, None], k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    if sinks is not None:
        # a sink is one more position, whose score is its logit and whose value is zero
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        sink = sinks.to(q.dtype)[:, None, None].expand(len(rows), -1, max_query, -1)
        mask = torch.cat((bias.expand(-1, q.shape[1], -1, -1), sink), -1)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    o = F.scaled_dot_product_attention(q[rows].transpose(1, 2), k, v, attn_mask=mask, enable_gqa=True, scale=scale)
    token = torch.arange(len(q), device=q.device)
    sequence = torch.searchsorted(cu_seqlens, token, right=True) - 1
    o = o[sequence, :, token - cu_seqlens[sequence]]
    return o if v_scale is None else (o * v_scale).to(q.dtype)


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, cu_seqlens: torch.Tensor,
    block_table: torch.Tensor, max_query: int, window: int | None, sinks: torch.Tensor | None,
    k_scale: torch.Tensor | None, v_scale: torch.Tensor | None, scale: float,
) -> None:  # fmt: skip
    def refuse(condition: bool, message: str) -> None:
        if condition:
            raise ValueError(f"chunk_attention: {message}")

    refuse(q.dim() != 3 or k.dim() != 4 or k.shape != v.shape, "want q (N, nq, d), caches (blocks, size, nkv, d)")
    refuse(q.numel() == 0 or k.numel() == 0, "nothing may be empty")
    (tokens, heads, d), size = q.shape, k.shape[1]
    refuse(bool(heads % k.shape[2]), f"{heads} query heads over {k.shape[2]} key heads")
    refuse(d not in HEAD_DIMS or k.shape[3] != d, f"d must be one of {HEAD_DIMS}, got {d} and {k.shape[3]}")
    refuse(size < 16 or bool(size & (size - 1)), f"a page must hold a power of two from 16 on, got {size}")
    scaled = k.dtype == FP8
    refuse(q.dtype not in DTYPES or k.dtype != v.dtype, f"got {q.dtype}, {k.dtype}, {v.dtype}")
    refuse(k.dtype != q.dtype and not scaled, f"a cache of {k.dtype} for q of {q.dtype}")
    refuse(scaled and architecture(q.device) < 90, "float8_e4m3fn caches need sm_90 or newer")
    scales = (k_scale, v_scale)
    refuse(any((s is not None) != scaled for s in scales), "scales go with float8_e4m3fn caches, and only with them")
    refuse(any(s is not None and (s.dim() or s.dtype != torch.float32) for s in scales), "scales must be float32 ()")
    refuse(lengths.dim() != 1 or lengths.dtype != torch.int32, "lengths must be int32 (B,)")
    batch = len(lengths)
    refuse(cu_seqlens.shape != (batch + 1,) or cu_seqlens.dtype != torch.int32, "cu_seqlens must be int32 (B + 1,)")
    refuse(not (lengths.is_contiguous() and cu_seqlens.is_contiguous()), "lengths, cu_seqlens must be contiguous")
    refuse(block_table.dim() != 2 or len(block_table) != batch, "block_table must be (B, pages)")
    refuse(block_table.dtype != torch.int32 or block_table.stride(1) != 1, "block_table must be int32 rows")
    possible = 1 <= max_query <= tokens <= max_query * batch
    refuse(not possible, f"{tokens} tokens of {batch} sequences, at most {max_query} of each")
    refuse(window is not None and window < 1, f"a window of {window} positions")
    refuse(not scale > 0, f"want a scale above 0, got {scale}")
    if sinks is not None:
        refuse(sinks.shape != (heads,) or not sinks.is_contiguous(), "sinks must be contiguous (nq,)")
        refuse(sinks.dtype not in DTYPES, f"sinks of {sinks.dtype}")
    refuse(q.stride(2) != 1 or k.stride(3) != 1, "the last dimension must be contiguous")
    refuse(k.stride() != v.stride(), "both caches must have the same strides")
    others = (k, v, lengths, cu_seqlens, block_table, sinks, k_scale, v_scale)
    refuse(any(x is not None and x.device != q.device for x in others), "all tensors must be on one device")


@torch.no_grad()
def chunk_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor, cu_seqlens: torch.Tensor,
    block_table: torch.Tensor, *, max_query: int, window: int | None = None, sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `reference`; unused cache may hold anything. k_scale above 0. Forward only.

    No host read: a max_query below the longest run goes unseen and leaves the run's end unwritten.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(q, k_cache, v_cache, lengths, cu_seqlens, block_table, max_query, window, sinks, k_scale, v_scale, scale)
    return forward(
        q, k_cache, v_cache, lengths, cu_seqlens, block_table, max_query, window, sinks, k_scale, v_scale, scale
    )  # fmt: skip


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """T new tokens at the end of S keys a sequence, or where `ragged` 1 to T of T to S; pages in shuffled order."""
    batch, new, capacity, nq, nkv, d, page = (shape[key] for key in ("B", "T", "S", "nq", "nkv", "d", "page"))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    runs = [new] * batch
    lengths = torch.full((batch,), capacity, device=device)
    if shape.get("ragged"):
        # both ends present: a sequence of one new token, one of all, one that is new as a whole
        runs = torch.randint(1, new + 1, (batch,), device=device, generator=generator).tolist()
        lengths = torch.randint(new, capacity + 1, (batch,), device=device, generator=generator)
        runs[0], runs[-1], lengths[-1], lengths[1] = 1, new, capacity, runs[1]
    pages = triton.cdiv(capacity, page)
    order = torch.randperm(batch * pages, device=device, generator=generator)
    kind = FP8 if shape.get("fp8") else dtype
    given: dict[str, Any] = {
        "q": draw(sum(runs), nq, d).to(dtype),
        "k_cache": draw(batch * pages, page, nkv, d).to(kind),
        "v_cache": draw(batch * pages, page, nkv, d).to(kind),
        "lengths": lengths.int(),
        "cu_seqlens": torch.tensor([sum(runs[:b]) for b in range(batch + 1)], dtype=torch.int32, device=device),
        "block_table": order.view(batch, pages).int(),
        "max_query": max(runs),
    }
    if shape.get("fp8"):
        given |= {name: torch.rand((), device=device, generator=generator) + 0.5 for name in ("k_scale", "v_scale")}
    if shape.get("window"):
        given["window"] = shape["window"]
    if shape.get("sinks"):
        given["sinks"] = draw(nq).to(dtype)
    return given


def flops(shape: Shape) -> int:
    """Two products over the visible (query, key) pairs, counted one by one."""
    window = shape.get("window", shape["S"])
    pairs = sum(min(position + 1, window) for position in range(shape["S"] - shape["T"], shape["S"]))
    return 4 * shape["B"] * shape["nq"] * shape["d"] * pairs


def least_bytes(shape: Shape, element: int) -> int:
    """Read once what any query sees of the cache, read q, write o."""
    seen = min(shape["S"], shape.get("window", shape["S"]) + shape["T"] - 1)
    cache = 2 * seen * shape["nkv"] * shape["d"] * (1 if shape.get("fp8") else element)
    return shape["B"] * (cache + 2 * shape["T"] * shape["nq"] * shape["d"] * element)


def _architectures(shape: Shape) -> tuple[int, ...]:
    return (90, 100) if shape.get("fp8") else ARCHITECTURES


LLAMA_3_1_8B = {"nq": 32, "nkv": 8, "d": 128, "page": 16}
GPT_OSS_20B = {"nq": 64, "nkv": 8, "d": 64, "page": 16, "sinks": 1}

OP = Op(
    reference=reference,
    triton=chunk_attention,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_first": {"B": 1, "T": 2048, "S": 2048, **LLAMA_3_1_8B},
        "llama_3_1_8b_16k": {"B": 1, "T": 2048, "S": 18432, **LLAMA_3_1_8B},
        "llama_3_1_8b_b4_4k": {"B": 4, "T": 512, "S": 4608, **LLAMA_3_1_8B},
        "llama_3_1_8b_b4_4k_page64": {"B": 4, "T": 512, "S": 4608, **LLAMA_3_1_8B, "page": 64},
        "llama_3_1_8b_b4_4k_fp8": {"B": 4, "T": 512, "S": 4608, **LLAMA_3_1_8B, "fp8": 1},
        # what is left of prompts whose beginning is cached
        "llama_3_1_8b_hit_b16_4k": {"B": 16, "T": 16, "S": 4096, **LLAMA_3_1_8B},
        "llama_3_2_1b_b4_4k": {"B": 4, "T": 512, "S": 4608, **LLAMA_3_1_8B, "d": 64},
        "gpt_oss_20b_window": {"B": 4, "T": 512, "S": 4608, **GPT_OSS_20B, "window": 128},
        "gpt_oss_20b_full": {"B": 4, "T": 512, "S": 4608, **GPT_OSS_20B},
        "gpt_oss_20b_window_hit_b16_4k": {"B": 16, "T": 8, "S": 4096, **GPT_OSS_20B, "window": 128},
        "gpt_oss_20b_full_hit_b16_4k": {"B": 16, "T": 8, "S": 4096, **GPT_OSS_20B},
    },
    test_shapes={
        "first": {"B": 2, "T": 70, "S": 70, "nq": 2, "nkv": 1, "d": 64, "page": 16},
        "behind": {"B": 2, "T": 18, "S": 150, "nq": 4, "nkv": 1, "d": 128, "page": 32},
        "ragged": {"B": 4, "T": 40, "S": 120, "nq": 4, "nkv": 2, "d": 32, "page": 16, "ragged": 1},
        "page64": {"B": 3, "T": 45, "S": 150, "nq": 2, "nkv": 1, "d": 64, "page": 64, "ragged": 1},
        "fp8": {"B": 3, "T": 30, "S": 100, "nq": 4, "nkv": 1, "d": 64, "page": 16, "ragged": 1, "fp8": 1},
        "narrow_window": {"B": 3, "T": 50, "S": 150, "nq": 2, "nkv": 1, "d": 32, "page": 16, "window": 48, "ragged": 1},
        "window": {"B": 3, "T": 40, "S": 400, "nq": 2, "nkv": 1, "d": 16, "page": 16, "window": 300, "ragged": 1},
        "sinks": {"B": 3, "T": 30, "S": 120, "nq": 8, "nkv": 2, "d": 16, "page": 32, "ragged": 1, "sinks": 1},
        "gpt_oss": {**GPT_OSS_20B, "B": 3, "T": 17, "S": 200, "nq": 8, "nkv": 1, "window": 128, "ragged": 1},
        "odd": {"B": 3, "T": 23, "S": 87, "nq": 21, "nkv": 3, "d": 16, "page": 16, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    candidates={
        "chunk_attention.forward": (
            {"M": 128, "N": 128, "num_warps": 8, "num_stages": 5},
            {"M": 128, "N": 128, "num_warps": 8, "num_stages": 4},
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 7},
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 5},
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 4},
            # at d = 64, 5 and 4 stages held to two programs a multiprocessor
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 5, "maxnreg": 128},
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 4, "maxnreg": 128},
            {"M": 64, "N": 64, "num_warps": 4, "num_stages": 5},
            {"M": 64, "N": 128, "num_warps": 4, "num_stages": 5},
            {"M": 64, "N": 32, "num_warps": 4, "num_stages": 5},
        ),
    },
    architectures=_architectures,
)
