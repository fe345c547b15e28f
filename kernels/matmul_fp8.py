"""Matrix multiplication of 8-bit floating-point operands (e4m3, https://arxiv.org/abs/2209.05433) with their scales.

    y = (x · weightᵀ) · x_scale · weight_scaleᵀ,   a scale for a whole tensor or for each of its rows

Forward only. Both operands have contiguous depth, the one order in which the tensor cores take 8-bit elements.
The kernel is the persistent one of `matmul`; the scales are applied to the fp32 sum, before it is rounded.
Hopper's tensor cores keep about 14 bits of an 8-bit product's sum: up to 2% of error at a depth of 4096, as measured
for DeepSeek-V3 (arXiv 2412.19437, section 3.3.2), about what rounding the operands costs. Summing in fp32 every few
steps costs time; this kernel and torch's (`use_fast_accum`) both leave it, so that they do the same work. Where y is
fp32 (for tests) the operands go through fp16, which holds every e4m3 number, and the sum is fp32's.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.kernels.matmul_persistent import describable, multiply
from bench.kernels.op import Op, Shape, architecture

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
STEP = 16  # of which torch._scaled_mm wants depth and width to be multiples
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x (..., K), weight (N, K); scales both () or x's (..., 1) and weight's (N, 1) -> y (..., N) in dtype."""
    if x.is_cuda and x.dtype == FP8 and dtype == torch.bfloat16 and not any(size % STEP for size in weight.shape):
        # torch's own kernel, the eager baseline on a GPU: x by rows, weight by columns, scales (M, 1) and (1, N)
        rows = x.reshape(-1, x.shape[-1])
        scales = (x_scale.reshape(-1, 1), weight_scale.t()) if x_scale.dim() else (x_scale, weight_scale)
        y = torch._scaled_mm(rows, weight.t(), *scales, out_dtype=dtype, use_fast_accum=True)
        return y.view(*x.shape[:-1], -1)
    # float64 inputs are the oracle's: their product must stay so
    wide = torch.promote_types(x_scale.dtype, torch.float32)
    y = (x.to(wide) @ weight.to(wide).t()) * x_scale * weight_scale.t()
    return y.to(torch.promote_types(dtype, wide) if wide == torch.float64 else dtype)


def _check(x: Any, weight: Any, x_scale: Any, weight_scale: Any, dtype: torch.dtype) -> None:
    if x.dtype != FP8 or weight.dtype != FP8 or dtype not in DTYPES:
        raise ValueError(f"matmul_fp8: want float8_e4m3fn for both and floating y, got {x.dtype}, {weight.dtype}")
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"matmul_fp8: want x (..., K) and weight (N, K), got {tuple(x.shape)}, {tuple(weight.shape)}")
    if x.numel() == 0 or weight.numel() == 0:
        raise ValueError("matmul_fp8: no dimension may be empty")
    if x_scale.dtype != torch.float32 or weight_scale.dtype != torch.float32:
        raise ValueError(f"matmul_fp8: scales must be float32, got {x_scale.dtype} and {weight_scale.dtype}")
    rowwise = (*x.shape[:-1], 1), (weight.shape[0], 1)
    if (x_scale.shape, weight_scale.shape) not in (((), ()), rowwise):
        raise ValueError(
            f"matmul_fp8: scales must both be () or {rowwise[0]} and {rowwise[1]}, "
            f"got {tuple(x_scale.shape)} and {tuple(weight_scale.shape)}"
        )
    if not (x_scale.is_contiguous() and weight_scale.is_contiguous()):
        raise ValueError("matmul_fp8: scales must be contiguous")
    if not (x.device == weight.device == x_scale.device == weight_scale.device):
        raise ValueError("matmul_fp8: all tensors must be on one device")
    if architecture(x.device) < 90:
        raise ValueError("matmul_fp8: needs tensor memory access and fp8 tensor cores (sm_90 or newer)")


@torch.no_grad()
def matmul_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """As `reference`. K a multiple of 16, N of 8, rows contiguous; no host read, so safe in a CUDA graph."""
    _check(x, weight, x_scale, weight_scale, dtype)
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:
        raise ValueError(f"matmul_fp8: leading dimensions do not merge, strides {x.stride()}") from None
    y = torch.empty((rows.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    if not (rows.stride(1) == weight.stride(1) == 1 and all(describable(t) for t in (rows, weight, y))):
        raise ValueError(f"matmul_fp8: rows must be contiguous, start and follow one another at 16 bytes: {rows.shape}")
    multiply("matmul_fp8", rows, weight, y, scales=(x_scale, weight_scale))
    return y.view(*x.shape[:-1], -1)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Random numbers quantised by their largest; y near unit size, in dtype."""

    def draw(rows: int, deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
        value = torch.randn((rows, shape["K"]), device=device, generator=generator) * deviation
        peak = value.abs().amax(1, keepdim=True) if shape.get("rowwise") else value.abs().amax()
        return (value / peak * LARGEST).to(FP8), peak / LARGEST

    (x, x_scale), (weight, weight_scale) = draw(shape["M"], 1.0), draw(shape["N"], shape["K"] ** -0.5)
    return {"x": x, "weight": weight, "x_scale": x_scale, "weight_scale": weight_scale, "dtype": dtype}


def flops(shape: Shape) -> int:
    """A multiplication and an addition for each of M · N · K."""
    return 2 * shape["M"] * shape["N"] * shape["K"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read x and weight once, a byte an element, write y."""
    m, n, k = shape["M"], shape["N"], shape["K"]
    return m * k + n * k + element * m * n


OP = Op(
    reference=reference,
    triton=matmul_fp8,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_gate_up": {"M": 8192, "N": 28672, "K": 4096, "rowwise": 1},
        "llama_3_1_8b_gate_up_tensorwise": {"M": 8192, "N": 28672, "K": 4096},
        "llama_3_1_8b_down": {"M": 8192, "N": 4096, "K": 14336, "rowwise": 1},
        "llama_3_1_8b_decode_1": {"M": 1, "N": 28672, "K": 4096, "rowwise": 1},
        "llama_3_1_8b_o_decode_64": {"M": 64, "N": 4096, "K": 4096, "rowwise": 1},
        "square_8192": {"M": 8192, "N": 8192, "K": 8192, "rowwise": 1},
    },
    test_shapes={
        "rowwise": {"M": 200, "N": 384, "K": 256, "rowwise": 1},
        "tensorwise": {"M": 96, "N": 264, "K": 144},
        "one_row": {"M": 1, "N": 128, "K": 512, "rowwise": 1},
        "odd": {"M": 37, "N": 88, "K": 80, "rowwise": 1},
    },
    flops=flops,
    bytes=least_bytes,
    architectures=lambda shape: (90, 100),
    candidates={
        "matmul_fp8.persistent": (
            {"BM": 128, "BN": 256, "BK": 128, "HALVES": 2, "num_warps": 8, "num_stages": 4},
            {"BM": 128, "BN": 256, "BK": 128, "HALVES": 1, "num_warps": 8, "num_stages": 3},
            {"BM": 128, "BN": 128, "BK": 128, "HALVES": 1, "num_warps": 8, "num_stages": 5},
            {"BM": 64, "BN": 256, "BK": 128, "HALVES": 2, "num_warps": 4, "num_stages": 4},
            {"BM": 64, "BN": 128, "BK": 256, "HALVES": 1, "num_warps": 4, "num_stages": 4},
            {"BM": 64, "BN": 64, "BK": 256, "HALVES": 1, "num_warps": 4, "num_stages": 6},
            {"GROUP": 1},
            {"GROUP": 16},
        )
    },
)
