"""Matrix multiplication as a linear layer has it, with bias and activation in its epilogue.

    y = act(x · weightᵀ + bias),   act: none, silu(z) = z · sigmoid(z), or gelu(z), z · Φ(z) by its tanh form

    dx = dy · weight,   dweight = dyᵀ · x,   dbias = Σ_rows dy

All three products are one kernel, told from strides which dimension of each operand is contiguous: nothing is
transposed in memory. Products accumulate in fp32. From sm_90 on the kernel is the persistent one on tensor memory
access (matmul_persistent.py); the kernel here addresses memory by pointers, for sm_80, for fp32 (exact, for tests)
and for what TMA cannot take (rows that are no multiple of 16 bytes, such as GPT-2's vocabulary of 50257).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.matmul_persistent import ACTIVATIONS, GROUP, cheapest, describable, finish, key, multiply, place
from bench.kernels.op import Op, Shape, architecture
from bench.kernels.tuning import tuned

# float64 is for the reference: the kernels accumulate in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (BM, BN, BK, warps, stages) of the pointer kernel; those of few rows are for decoding on sm_80
TILES = (
    (128, 256, 32, 8, 4),
    (128, 128, 64, 8, 3),
    (64, 128, 64, 4, 4),
    (64, 64, 64, 4, 4),
    (16, 128, 64, 4, 4),
    (16, 64, 128, 4, 4),
    (16, 32, 256, 4, 4),
)
# exact fp32 products run outside the tensor cores: for tests, not for speed
EXACT_TILES = ((128, 128, 32, 8, 1),)


def _activated(z: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation is None:
        return z
    return F.silu(z) if activation == "silu" else F.gelu(z, approximate="tanh")


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, activation: str | None = None
) -> torch.Tensor:
    """x (..., K), weight (N, K), bias (N,) -> y (..., N)."""
    return _activated(F.linear(x, weight, bias), activation)


@triton.jit
def _pointer(
    a_ptr, b_ptr, c_ptr, bias_ptr, M, N, K, a_stride_m, a_stride_k, b_stride_n, b_stride_k,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = place(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    row, column = row * BM, column * BN
    i, j, depth = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :], tl.arange(0, BK)
    # 64 bits only in the scalars, the tiles' own offsets stay cheap
    a_ptr += tl.cast(row, tl.int64) * a_stride_m
    b_ptr += tl.cast(column, tl.int64) * b_stride_n
    a_tile = i * a_stride_m + depth[None, :] * a_stride_k
    b_tile = j * b_stride_n + depth[:, None] * b_stride_k
    a_mask, b_mask = row + i < M, column + j < N
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        first = tl.cast(k, tl.int64)
        if EVEN:
            a = tl.load(a_ptr + first * a_stride_k + a_tile, a_mask, other=0)
            b = tl.load(b_ptr + first * b_stride_k + b_tile, b_mask, other=0)
        else:
            a = tl.load(a_ptr + first * a_stride_k + a_tile, a_mask & (k + depth[None, :] < K), other=0)
            b = tl.load(b_ptr + first * b_stride_k + b_tile, b_mask & (k + depth[:, None] < K), other=0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    y = finish(acc, bias_ptr, column, N, ACTIVATION).to(c_ptr.dtype.element_ty)
    tl.store(c_ptr + tl.cast(row, tl.int64) * N + column + i * N + j, y, a_mask & b_mask)


def _product(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """a (M, K) · b (N, K)ᵀ, either dimension of either contiguous -> (M, N)."""
    (m, k), n = a.shape, b.shape[0]
    c = torch.empty((m, n), dtype=a.dtype, device=a.device)
    exact = a.dtype == torch.float32
    if not exact and architecture(a.device) >= 90 and all(describable(x) for x in (a, b, c)):
        multiply("matmul", a, b, c, bias=bias, activation=activation)
        return c
    # stores of single elements need the registers that the widest tile has none left of
    tiles = EXACT_TILES if exact else TILES if n % 16 == 0 else TILES[1:]
    bm, bn, bk, warps, stages = cheapest(m, n, tiles, a.device)
    default = {"BM": bm, "BN": bn, "BK": bk, "GROUP": GROUP, "num_warps": warps, "num_stages": stages}
    config = tuned("matmul.pointer", key(a, b), default, a.device)
    _pointer[(triton.cdiv(m, config["BM"]) * triton.cdiv(n, config["BN"]),)](
        a, b, c, bias, m, n, k, *a.stride(), *b.stride(),
        EVEN=k % config["BK"] == 0, PRECISION="ieee" if exact else "tf32", ACTIVATION=activation, **config,
    )  # fmt: skip
    return c


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()  # autograd may hand over an expanded gradient
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(dy, weight.t()) if for_x else None,
            _product(dy.t(), x.t()) if for_weight else None,
            dy.sum(0) if for_bias else None,
        )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x (..., K) as (rows, K), without a copy."""
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        raise ValueError(f"matmul: leading dimensions do not merge, strides {x.stride()}") from None


def matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, activation: str | None = None
) -> torch.Tensor:
    """As `reference`. Rows of x may be apart (a slice of a packed tensor); no host read, so safe in a CUDA graph."""
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"matmul: want x (..., K) and weight (N, K), got {tuple(x.shape)}, {tuple(weight.shape)}")
    if x.numel() == 0 or weight.numel() == 0:
        raise ValueError("matmul: no dimension may be empty")
    if x.dtype not in DTYPES or x.dtype != weight.dtype:
        raise ValueError(f"matmul: want one of float32/16, bfloat16 for both, got {x.dtype} and {weight.dtype}")
    if any(t is not None and t.device != x.device for t in (weight, bias)):
        raise ValueError("matmul: x, weight and bias must be on one device")
    if 1 not in weight.stride() or x.stride(-1) != 1:
        raise ValueError(f"matmul: rows of x and weight must be contiguous, strides {x.stride()}, {weight.stride()}")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_contiguous() or bias.dtype != x.dtype):
        raise ValueError(f"matmul: bias must be a dense ({weight.shape[0]},) vector of {x.dtype}")
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"matmul: activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    rows, size = _rows(x), (*x.shape[:-1], weight.shape[0])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        # backward needs the pre-activation in memory, so the epilogue has nothing to save: torch applies it
        return _activated(_Matmul.apply(rows, weight, bias), activation).view(size)
    return _product(rows, weight, bias, activation).view(size)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Outputs near unit size. `sliced`: x is the left part of a wider tensor; `activation`: 1 silu, 2 gelu."""
    m, n, k = shape["M"], shape["N"], shape["K"]

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    x = draw(m, k + 8 * shape.get("sliced", 0)).to(dtype)[:, :k]
    return {
        "x": x,
        "weight": (draw(n, k) * k**-0.5).to(dtype),
        "bias": draw(n).to(dtype) if shape.get("bias") else None,
        "activation": (None, *ACTIVATIONS)[shape.get("activation", 0)],
    }


def flops(shape: Shape) -> int:
    """A multiplication and an addition for each of M · N · K."""
    return 2 * shape["M"] * shape["N"] * shape["K"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read x and weight once, write y."""
    m, n, k = shape["M"], shape["N"], shape["K"]
    return element * (m * k + n * k + m * n)


def backward_bytes(shape: Shape, element: int) -> int:
    """Read dy, x and weight once, write dx and dweight."""
    m, n, k = shape["M"], shape["N"], shape["K"]
    return element * (m * n + 2 * m * k + 2 * n * k)


OP = Op(
    reference=reference,
    triton=matmul,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_qkv": {"M": 8192, "N": 6144, "K": 4096},
        "llama_3_1_8b_o": {"M": 8192, "N": 4096, "K": 4096},
        "llama_3_1_8b_gate_up": {"M": 8192, "N": 28672, "K": 4096},
        "llama_3_1_8b_down": {"M": 8192, "N": 4096, "K": 14336},
        "llama_3_1_8b_head": {"M": 8192, "N": 128256, "K": 4096},
        "llama_3_1_8b_decode_1": {"M": 1, "N": 28672, "K": 4096},
        "llama_3_1_8b_decode_16": {"M": 16, "N": 28672, "K": 4096},
        "llama_3_1_8b_decode_64": {"M": 64, "N": 28672, "K": 4096},
        "llama_3_1_8b_qkv_decode_64": {"M": 64, "N": 6144, "K": 4096},
        "llama_3_1_8b_o_decode_256": {"M": 256, "N": 4096, "K": 4096},
        "qwen2_5_0_5b_qkv": {"M": 16384, "N": 1152, "K": 896, "bias": 1},
        "gpt_2_head": {"M": 8192, "N": 50257, "K": 768},
        "square_8192": {"M": 8192, "N": 8192, "K": 8192},
    },
    test_shapes={
        "several_tiles": {"M": 140, "N": 272, "K": 160},
        "bias": {"M": 96, "N": 264, "K": 136, "bias": 1},
        "sliced": {"M": 130, "N": 72, "K": 64, "sliced": 1, "bias": 1, "activation": 1},
        "one_row": {"M": 1, "N": 640, "K": 320, "activation": 2},
        "odd": {"M": 37, "N": 91, "K": 77, "bias": 1},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("x", "weight", "bias"),
    backward_flops=lambda shape: 2 * flops(shape),
    backward_bytes=backward_bytes,
    candidates={
        # the whole tile stored at once takes the place of a stage of loads
        "matmul.persistent": (
            {"BM": 128, "BN": 256, "BK": 64, "HALVES": 2, "num_warps": 8, "num_stages": 4},
            {"BM": 128, "BN": 256, "BK": 64, "HALVES": 1, "num_warps": 8, "num_stages": 3},
            {"BM": 256, "BN": 128, "BK": 64, "HALVES": 1, "num_warps": 8, "num_stages": 3},
            {"BM": 128, "BN": 128, "BK": 64, "HALVES": 1, "num_warps": 8, "num_stages": 5},
            {"BM": 64, "BN": 256, "BK": 64, "HALVES": 2, "num_warps": 4, "num_stages": 4},
            {"BM": 64, "BN": 128, "BK": 128, "HALVES": 1, "num_warps": 4, "num_stages": 4},
            {"BM": 64, "BN": 64, "BK": 128, "HALVES": 1, "num_warps": 4, "num_stages": 6},
            {"BM": 64, "BN": 32, "BK": 256, "HALVES": 1, "num_warps": 4, "num_stages": 4},
            {"GROUP": 1},
            {"GROUP": 16},
        ),
        "matmul.pointer": (
            {"BM": 128, "BN": 256, "BK": 32, "num_warps": 8, "num_stages": 3},
            {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
            {"BM": 16, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 6},
            {"BM": 16, "BN": 32, "BK": 512, "num_warps": 4, "num_stages": 3},
        ),
    },
)
