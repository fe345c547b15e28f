"""Causal grouped-query attention, forward and backward (FlashAttention-2, https://arxiv.org/abs/2307.08691).

    s = q · kᵀ · scale,   p = softmax(s, visible keys),   o = p · v

    dv = pᵀ · do,   ds = p ∘ (do · vᵀ - delta),   delta = Σ_d do · o,   dq = ds · k · scale,   dk = dsᵀ · q · scale

Query i sees key j if j <= i; with `window` only if also i - window < j (Mistral, https://arxiv.org/abs/2310.06825);
with `cu_seqlens` only if both are of one document, many of which are packed into the batch. `sinks` are one more
logit a head in the softmax's denominator, without a value (gpt-oss, https://arxiv.org/abs/2508.10925):

    p = exp(s) / (exp(sink) + Σ exp(s)),   dsink = -Σ p_sink · delta

Queries and keys may be wider than values by a tail, as multi-head latent attention has them, whose tail carries the
positions (DeepSeek-V2, https://arxiv.org/abs/2405.04434): s = q[:d] · k[:d]ᵀ + q[d:] · k[d:]ᵀ.

Scores live only in registers. The softmax is base 2 with log2(e) folded into the scale, because the
hardware's exponential is base 2; `lse` is the base-2 log-sum-exp of a row, from which backward recomputes p.
Kernels: attention_forward.py, attention_backward.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from bench.kernels.attention_backward import backward
from bench.kernels.attention_forward import Call, forward
from bench.kernels.op import Op, Shape

HEAD_DIMS = (16, 32, 64, 128)
TAILS = (0, 16, 32, 64)  # by how much queries and keys may be wider than values
# float64 is for the reference: the kernels take exponentials and sums in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """q (B, T, nq, d + tail), k (B, T, nkv, d + tail), v (B, T, nkv, d), sinks (nq,) -> o (B, T, nq, d).

    cu_seqlens (n + 1,) int32: where the documents begin in the B · T tokens laid end to end, first 0, last B · T;
    every sequence of the batch begins one.
    """
    shape = (*q.shape[:3], v.shape[3])
    if cu_seqlens is not None:
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if window is None and sinks is None and cu_seqlens is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).contiguous()
    token = torch.arange(q.shape[2], device=q.device)
    visible = token[:, None] >= token
    if window is not None:
        visible = visible & (token[:, None] - token < window)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens, token, right=True)
        visible = visible & (document[:, None] == document)
    if sinks is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
    else:
        wide = torch.promote_types(q.dtype, torch.float32)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        score = (q @ k.transpose(2, 3)).to(wide) * (scale or q.shape[3] ** -0.5)
        score = score.masked_fill(~visible, float("-inf"))
        column = sinks.to(wide)[:, None, None].expand(*score.shape[:3], 1)
        # the sink takes its part of the sum and is dropped: it has no value
        p = torch.cat((score, column), 3).softmax(3)[..., :-1]
        out = p.to(q.dtype) @ v
    return out.transpose(1, 2).reshape(shape)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None,
        starts: torch.Tensor | None, ends: torch.Tensor | None, window: int, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        o, lse = forward(Call(q, k, v, sinks, starts, ends, window, scale))
        ctx.save_for_backward(q, k, v, sinks, starts, ends, o, lse)
        ctx.numbers = window, scale
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, o, lse = ctx.saved_tensors
        # autograd may hand over an expanded gradient, or a slice where no descriptor may begin
        do = do.contiguous()
        do = do.clone() if do.data_ptr() % 16 else do
        gradients = backward(Call(*tensors, *ctx.numbers), o, lse, do)
        return *gradients, None, None, None, None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As `reference`. q, k, v may be slices of a packed projection: only d must be contiguous."""
    _refuse_tensors(q, k, v)
    batch, length, heads, width = q.shape
    if window is not None and window < 1:
        raise ValueError(f"attention: want a window of at least 1, got {window}")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: want a scale above 0, got {scale}")
    if sinks is not None and (sinks.shape != (heads,) or sinks.device != q.device or not sinks.is_contiguous()):
        raise ValueError(f"attention: want sinks ({heads},) on {q.device}, got {tuple(sinks.shape)} on {sinks.device}")
    if sinks is not None and sinks.dtype not in (torch.float32, q.dtype):
        raise ValueError(f"attention: want sinks in float32 or {q.dtype}, got {sinks.dtype}")
    starts = ends = None
    if cu_seqlens is not None:
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype != torch.int32:
            raise ValueError(f"attention: want cu_seqlens (n + 1,) int32, got {cu_seqlens.shape}, {cu_seqlens.dtype}")
        if cu_seqlens.device != q.device:
            raise ValueError(f"attention: tensors on {q.device} and {cu_seqlens.device}")
        # the documents lie end to end: one sequence of all tokens
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
        token = torch.arange(batch * length, device=q.device, dtype=torch.int32)
        document = torch.searchsorted(cu_seqlens, token, right=True)
        starts, ends = cu_seqlens[document - 1], cu_seqlens[document]
    # a window that holds everything is none
    narrowed = 0 if window is None or window >= q.shape[1] else window
    out = _Attention.apply(q, k, v, sinks, starts, ends, narrowed, width**-0.5 if scale is None else float(scale))
    return out.view(batch, length, heads, v.shape[3])


def _refuse_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape[:3] != v.shape[:3] or q.shape[:2] != k.shape[:2]:
        raise ValueError(f"attention: want (B, T, heads, d), got {q.shape}, {k.shape}, {v.shape}")
    if q.numel() == 0 or k.numel() == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads do not divide over {k.shape[2]} key heads")
    d, tail = v.shape[3], q.shape[3] - v.shape[3]
    if d not in HEAD_DIMS or tail not in TAILS or k.shape[3] != q.shape[3]:
        sizes = f"{q.shape[3]}, {k.shape[3]} and {d}"
        raise ValueError(f"attention: d must be one of {HEAD_DIMS}, q and k wider by one of {TAILS}, got {sizes}")
    if q.dtype not in DTYPES or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"attention: want one of float32/16, bfloat16 for all, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not (q.device == k.device == v.device):
        raise ValueError(f"attention: tensors on {q.device}, {k.device} and {v.device}")
    if not (q.stride(3) == k.stride(3) == v.stride(3) == 1):
        raise ValueError("attention: the last dimension must be contiguous")


def lengths(shape: Shape) -> list[int]:
    """Documents of a batch: `documents` equal ones a sequence, or `ragged` ones, or each sequence one."""
    length = shape["T"]
    if not shape.get("ragged"):
        documents = shape.get("documents", 1)
        return [length // documents] * (documents * shape["B"])
    # one token, a few, nearly a tile, more than a tile, and again
    pattern = (1, 1, 37, 130, 3, 64, 1, 90)
    row: list[int] = []
    while sum(row) < length:
        row.append(min(pattern[len(row) % len(pattern)], length - sum(row)))
    return row * shape["B"]


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Slices of one packed projection, as in the model; with a tail v is a slice of its own."""
    batch, length, nq, nkv, d, tail = (shape.get(key, 0) for key in ("B", "T", "nq", "nkv", "d", "tail"))
    packed = torch.randn((batch, length, nq + 2 * nkv, d + tail), device=device, generator=generator)
    q, k, v = packed.to(dtype).split((nq, nkv, nkv), 2)
    v = v[..., :d]
    made: dict[str, Any] = {"q": q, "k": k, "v": v, "window": shape.get("window"), "sinks": None, "cu_seqlens": None}
    if shape.get("sinks"):
        made["sinks"] = torch.randn((nq,), device=device, generator=generator).to(dtype)
    if shape.get("ragged") or shape.get("documents"):
        offsets = torch.tensor([0, *lengths(shape)]).cumsum(0)
        made["cu_seqlens"] = offsets.to(device, torch.int32)
    return made


def pairs(shape: Shape) -> float:
    """Visible (query, key) pairs of one head; T² / 2 a document, FlashAttention's own convention, where no window."""
    window = shape.get("window", shape["T"])
    # of T queries the first `window` see a triangle, the others `window` keys each
    return sum(min(window, n) ** 2 / 2 + max(n - window, 0) * window for n in lengths(shape))


def flops(shape: Shape) -> int:
    """Two matmuls over the visible pairs."""
    return int((4 * shape["d"] + 2 * shape.get("tail", 0)) * shape["nq"] * pairs(shape))


def least_bytes(shape: Shape, element: int) -> int:
    """Read q, k and v once, write o; fp32 lse."""
    tokens = shape["B"] * shape["T"]
    heads = shape["nq"] + shape["nkv"]
    return tokens * (heads * (2 * shape["d"] + shape.get("tail", 0)) * element + 4 * shape["nq"])


def backward_flops(shape: Shape) -> int:
    """Five matmuls for the forward's two (FlashAttention's convention): s and dp again, dv, dk, dq."""
    return int((10 * shape["d"] + 6 * shape.get("tail", 0)) * shape["nq"] * pairs(shape))


def backward_bytes(shape: Shape, element: int) -> int:
    """Read q, k, v, o, do and lse, write dq, dk, dv."""
    tokens = shape["B"] * shape["T"]
    heads = 2 * shape["nq"] + 2 * shape["nkv"]
    return tokens * (heads * (2 * shape["d"] + shape.get("tail", 0)) * element + 4 * shape["nq"])


LLAMA_3_2_1B = {"nq": 32, "nkv": 8, "d": 64}
GPT_OSS_20B = {"B": 1, "T": 8192, "nq": 64, "nkv": 8, "d": 64, "sinks": 1}

OP = Op(
    reference=reference,
    triton=attention,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"B": 2, "T": 4096, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_1_8b_prefill": {"B": 1, "T": 8192, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_2_1b_train": {"B": 4, "T": 2048, **LLAMA_3_2_1B},
        "llama_3_2_1b_packed": {"B": 1, "T": 8192, **LLAMA_3_2_1B, "documents": 16},
        "qwen3_0_6b_train": {"B": 4, "T": 2048, "nq": 16, "nkv": 8, "d": 128},
        "gpt_oss_20b_window": {**GPT_OSS_20B, "window": 128},
        "gpt_oss_20b_full": GPT_OSS_20B,
        "deepseek_v3_train": {"B": 1, "T": 4096, "nq": 128, "nkv": 128, "d": 128, "tail": 64},
    },
    test_shapes={
        "group_of_2": {"B": 2, "T": 80, "nq": 4, "nkv": 2, "d": 64},
        "wide": {"B": 1, "T": 192, "nq": 2, "nkv": 2, "d": 128},
        "tiny": {"B": 2, "T": 5, "nq": 2, "nkv": 1, "d": 16},
        "odd": {"B": 1, "T": 163, "nq": 3, "nkv": 1, "d": 32},
        "narrow_window": {"B": 2, "T": 147, "nq": 2, "nkv": 1, "d": 32, "window": 48},
        "window": {"B": 1, "T": 470, "nq": 1, "nkv": 1, "d": 16, "window": 300},
        # dsinks is a sum of both signs: of a few heads all may come out near zero, and no relative error is small then
        "sinks": {"B": 2, "T": 40, "nq": 8, "nkv": 2, "d": 16, "sinks": 1},
        # documents of a row: 1, 1, 37, 130, 3, 63 tokens
        "packed": {"B": 2, "T": 235, "nq": 1, "nkv": 1, "d": 32, "ragged": 1},
        "equal_documents": {"B": 2, "T": 128, "nq": 1, "nkv": 1, "d": 16, "documents": 4},
        "everything": {"B": 2, "T": 75, "nq": 8, "nkv": 1, "d": 16, "window": 29, "sinks": 1, "ragged": 1},
        "tail": {"B": 2, "T": 70, "nq": 4, "nkv": 2, "d": 32, "tail": 16},
        "tail_everything": {"B": 2, "T": 75, "nq": 2, "nkv": 1, "d": 16, "tail": 64, "window": 29, "ragged": 1},
        "wide_window_packed": {"B": 1, "T": 310, "nq": 2, "nkv": 1, "d": 128, "window": 270, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("q", "k", "v", "sinks"),
    backward_flops=backward_flops,
    backward_bytes=backward_bytes,
    candidates={
        "attention.forward": (
            {"M": 128, "N": 128, "num_warps": 8, "num_stages": 3},
            {"M": 128, "N": 128, "num_warps": 8, "num_stages": 2},
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 3},
            {"M": 128, "N": 64, "num_warps": 4, "num_stages": 3},
            {"M": 64, "N": 64, "num_warps": 4, "num_stages": 3},
            {"M": 64, "N": 128, "num_warps": 4, "num_stages": 2},
            {"TMA": False},
        ),
        "attention.backward_kv": (
            {"M": 64, "N": 128, "num_warps": 8, "num_stages": 3},
            {"M": 64, "N": 64, "num_warps": 4, "num_stages": 2},
            {"M": 64, "N": 64, "num_warps": 8, "num_stages": 2},
            {"M": 32, "N": 128, "num_warps": 8, "num_stages": 3},
            {"TMA": False},
        ),
        "attention.backward_q": (
            {"M": 128, "N": 64, "num_warps": 8, "num_stages": 3},
            {"M": 128, "N": 128, "num_warps": 8, "num_stages": 2},
            {"M": 64, "N": 64, "num_warps": 4, "num_stages": 3},
            {"M": 128, "N": 32, "num_warps": 8, "num_stages": 3},
            {"TMA": False},
        ),
    },
)
