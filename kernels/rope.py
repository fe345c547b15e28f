"""Rotary position embedding of q and k in one launch (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Half-rotation, the order of Hugging Face's Llama (`rotate_half`): channel i is paired with i + d/2,

    out[i]       = x[i] · cos - x[i + d/2] · sin
    out[i + d/2] = x[i + d/2] · cos + x[i] · sin

A rotation's transpose is its inverse, so backward is the same kernel with the sine's sign turned.
One program rotates every head of one token, so cos and sin are read once a token.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.op import Op, Shape
from bench.kernels.tuning import tuned

# float64 is for the reference: the kernel computes in fp32 whatever it reads
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    # fp32 angles widen a half-precision x; only the result is rounded
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def reference(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (B, T, nq, d), k (B, T, nkv, d), cos and sin (B or 1, T, d/2) -> rotated q and k."""
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


@triton.jit
def _rotate_heads(
    in_ptr, out_ptr, head_stride, cos, sin,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    # tiles are powers of two; the mask cuts head counts and dimensions that are not
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    dim = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (head < HEADS) & (dim < HALF)
    # 64 bits in the column of heads alone: heads may lie anywhere, channels follow one another
    source = in_ptr + head.to(tl.int64) * head_stride + dim
    # the halves are read as two tiles, each of whole 128-bit words: pairs never have to change threads
    first = tl.load(source, mask, other=0).to(tl.float32)
    second = tl.load(source + HALF, mask, other=0).to(tl.float32)
    # what is written is dense, so that attention and the cache read it at full width
    target = out_ptr + head * (2 * HALF) + dim
    element = out_ptr.dtype.element_ty
    tl.store(target, (first * cos - second * sin).to(element), mask)
    tl.store(target + HALF, (second * cos + first * sin).to(element), mask)


@triton.jit
def _rope(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, T,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, cos_stride_b,
    INVERSE: tl.constexpr, NQ: tl.constexpr, NKV: tl.constexpr, HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    # 64 bits: batch x sequence x packed width passes 2³¹
    token = tl.program_id(0).to(tl.int64)
    b, t = token // T, token % T
    dim = tl.arange(0, BLOCK_HALF)[None, :]
    angle = b * cos_stride_b + t * HALF + dim
    cos = tl.load(cos_ptr + angle, dim < HALF, other=0)
    sin = tl.load(sin_ptr + angle, dim < HALF, other=0)
    # the transpose of a rotation turns by the opposite angle
    if INVERSE:
        sin = -sin
    q_ptr += b * q_stride_b + t * q_stride_t
    k_ptr += b * k_stride_b + t * k_stride_t
    q_out_ptr += token * (NQ * 2 * HALF)
    k_out_ptr += token * (NKV * 2 * HALF)
    _rotate_heads(q_ptr, q_out_ptr, q_stride_h, cos, sin, NQ, HALF, BLOCK_Q, BLOCK_HALF)
    _rotate_heads(k_ptr, k_out_ptr, k_stride_h, cos, sin, NKV, HALF, BLOCK_KV, BLOCK_HALF)


def _config(tokens: int, q_heads: int, kv_heads: int, head_dim: int, x: torch.Tensor) -> dict[str, Any]:
    half = head_dim // 2
    blocks = {
        "BLOCK_Q": triton.next_power_of_2(q_heads),
        "BLOCK_KV": triton.next_power_of_2(kv_heads),
        "BLOCK_HALF": triton.next_power_of_2(half),
    }
    # about 32 elements of q a thread: more warps would leave k's smaller tile too little for wide loads
    warps = min(8, max(1, 2 * blocks["BLOCK_Q"] * blocks["BLOCK_HALF"] // 1024))
    key = (tokens.bit_length(), q_heads, kv_heads, head_dim, x.element_size())
    chosen = tuned("rope.rope", key, {"num_warps": warps}, x.device)
    return blocks | {"NQ": q_heads, "NKV": kv_heads, "HALF": half} | chosen


def _launch(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, q_heads, head_dim = q.shape
    # not in place: autograd and the caller may still hold the unrotated q and k
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k_out = torch.empty_like(k, memory_format=torch.contiguous_format)
    _rope[(batch * length,)](
        q, k, cos, sin, q_out, k_out, length, *q.stride()[:3], *k.stride()[:3],
        # one table serves every sequence: a batch stride of 0 reads it again
        cos.stride(0) if cos.shape[0] > 1 else 0,
        INVERSE=inverse, **_config(batch * length, q_heads, k.shape[2], head_dim, q),
    )  # fmt: skip
    return q_out, k_out


class _RoPE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        return _launch(q, k, cos, sin, inverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        # autograd may hand over an expanded gradient, whose last stride is 0
        dq, dk = _launch(dq.contiguous(), dk.contiguous(), cos, sin, inverse=True)
        return dq, dk, None, None


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference`, not in place. q and k may be slices of a packed projection (any outer strides)."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"rope: want q (B, T, nq, d) and k (B, T, nkv, d), got {q.shape}, {k.shape}")
    if q.numel() == 0 or k.numel() == 0 or q.shape[3] % 2:
        raise ValueError(f"rope: the head dimension must be even and nothing empty, got {q.shape}")
    if q.dtype not in DTYPES or k.dtype != q.dtype:
        raise ValueError(f"rope: want one of float32/16, bfloat16 for both, got {q.dtype}, {k.dtype}")
    if q.stride(3) != 1 or k.stride(3) != 1:
        raise ValueError("rope: the last dimension of q and k must be contiguous")
    if cos.shape != sin.shape or cos.shape[1:] != (q.shape[1], q.shape[3] // 2):
        raise ValueError(f"rope: want cos and sin (B or 1, T, d/2), got {cos.shape} and {sin.shape}")
    if cos.shape[0] not in (1, q.shape[0]):
        raise ValueError(f"rope: cos has batch {cos.shape[0]}, q {q.shape[0]}")
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError(f"rope: cos and sin must be float32, got {cos.dtype} and {sin.dtype}")
    if not (cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError("rope: cos and sin must be contiguous")
    if not (q.device == k.device == cos.device == sin.device):
        raise ValueError("rope: all tensors must be on one device")
    return _RoPE.apply(q, k, cos, sin)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """q and k are slices of one packed projection, as in the model; angles as Llama 3 takes them."""
    batch, length, nq, nkv, d = (shape[key] for key in ("B", "T", "nq", "nkv", "d"))
    packed = torch.randn((batch, length, nq + 2 * nkv, d), device=device, generator=generator)
    q, k, _ = packed.to(dtype).split((nq, nkv, nkv), 2)
    position = torch.arange(length, device=device, dtype=torch.float64)
    # 5e5 is the base of Llama 3 (rope_theta); float64, because float32 loses the angle at long positions
    frequency = 5e5 ** -(torch.arange(d // 2, device=device, dtype=torch.float64) * 2 / d)
    # a different first position for each sequence, or one table for all
    offset = torch.arange(batch if shape.get("ragged") else 1, device=device) * 7
    angle = (position + offset[:, None])[..., None] * frequency
    return {"q": q, "k": k, "cos": angle.cos().float(), "sin": angle.sin().float()}


def flops(shape: Shape) -> int:
    """Four multiplications and two additions a pair."""
    return 3 * shape["B"] * shape["T"] * (shape["nq"] + shape["nkv"]) * shape["d"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read and write q and k; the fp32 tables of one sequence once."""
    tokens = shape["B"] * shape["T"]
    heads = 2 * tokens * (shape["nq"] + shape["nkv"]) * shape["d"] * element
    return heads + 4 * shape["T"] * shape["d"]


OP = Op(
    reference=reference,
    triton=rope,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"B": 2, "T": 4096, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_1_8b_decode": {"B": 64, "T": 1, "nq": 32, "nkv": 8, "d": 128},
        "llama_3_2_1b_train": {"B": 4, "T": 4096, "nq": 32, "nkv": 8, "d": 64},
        "qwen3_0_6b_train": {"B": 4, "T": 4096, "nq": 16, "nkv": 8, "d": 128},
        "gpt_oss_train": {"B": 2, "T": 4096, "nq": 64, "nkv": 8, "d": 64},
        "llama_3_1_405b_train": {"B": 1, "T": 4096, "nq": 128, "nkv": 8, "d": 128},
    },
    test_shapes={
        "one_table": {"B": 2, "T": 9, "nq": 4, "nkv": 2, "d": 64},
        "table_each": {"B": 3, "T": 5, "nq": 4, "nkv": 4, "d": 128, "ragged": 1},
        "one_key_head": {"B": 1, "T": 3, "nq": 16, "nkv": 1, "d": 64},
        "odd": {"B": 2, "T": 7, "nq": 7, "nkv": 1, "d": 36, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("q", "k"),
    # the same rotation of dq and dk, turned back
    backward_flops=flops,
    backward_bytes=least_bytes,
    candidates={"rope.rope": tuple({"num_warps": warps} for warps in (1, 2, 4, 8))},
)
