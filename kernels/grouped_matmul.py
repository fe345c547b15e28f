"""Grouped matrix product: rows sorted by expert, each expert with a matrix of its own (as torch._grouped_mm).

    y[s] = x[s] · weight[e]ᵀ   for offs[e-1] ≤ s < offs[e]

    dx[s] = dy[s] · weight[e],   dweight[e] = Σ_s dy[s]ᵀ · x[s]   (zero where an expert has no row)

`offs` holds where each expert's rows end and stays on the device: the launch fits every way the rows may fall
(Gale et al. 2022, MegaBlocks, https://arxiv.org/abs/2211.15841). The kernels are in grouped_matmul_tiles.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bench.kernels.grouped_matmul_tiles import MAX_EXPERTS, Groups, product, weight_gradient
from bench.kernels.op import Op, Shape

# float64 is for the reference: the kernels sum in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """x (M, K) with expert e's rows from offs[e - 1] to offs[e], weight (E, N, K), offs[-1] = M -> (M, N)."""
    ends = [0, *offs.tolist()]
    return torch.cat([x[ends[e] : ends[e + 1]] @ weight[e].T for e in range(weight.shape[0])])


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        # offs too, so that writing over it before backward is an error
        ctx.save_for_backward(x, weight, offs)
        ctx.groups = Groups(offs, x.shape[0])
        return product(x, weight, ctx.groups, "grouped_matmul.forward")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight, _ = ctx.saved_tensors
        dy = dy.contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = product(dy, weight, ctx.groups, "grouped_matmul.dx", transposed=True)
        if ctx.needs_input_grad[1]:
            dw = weight_gradient(dy, x, weight, ctx.groups, "grouped_matmul.dweight")
        return dx, dw, None


def grouped_matmul(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """As `reference`. Reads nothing back: rows of y past offs[-1], where there are any, are not written."""
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[2] or 0 in (*x.shape, *weight.shape):
        raise ValueError(f"grouped_matmul: want x (M, K) and weight (E, N, K), got {x.shape} and {weight.shape}")
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        raise ValueError(f"grouped_matmul: want one of float32/16, bfloat16 for both, got {x.dtype}, {weight.dtype}")
    if offs.shape != weight.shape[:1] or offs.dtype != torch.int32 or offs.shape[0] > MAX_EXPERTS:
        raise ValueError(f"grouped_matmul: offs must be int32 (E,), E to {MAX_EXPERTS}: {offs.dtype} {offs.shape}")
    if not (x.device == weight.device == offs.device):
        raise ValueError("grouped_matmul: all tensors must be on one device")
    if not (x.is_contiguous() and weight.is_contiguous() and offs.is_contiguous()):
        raise ValueError("grouped_matmul: x, weight and offs must be contiguous")
    return _GroupedMatmul.apply(x, weight, offs)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Rows drawn over the experts, whose popularity falls with rank to the power -zipf / 100 (0: uniform)."""
    rows, experts, n, k = (shape[key] for key in ("M", "E", "N", "K"))
    # whole numbers are drawn where the generator lives: tensors without memory draw nothing
    place = generator.device
    popularity = torch.arange(1, experts + 1, device=place).float() ** (-shape.get("zipf", 0) / 100)
    popularity = popularity[torch.randperm(experts, generator=generator, device=place)]
    drawn = torch.multinomial(popularity, rows, replacement=True, generator=generator)
    offs = torch.bincount(drawn, minlength=experts).cumsum(0)
    x = torch.randn((rows, k), device=device, generator=generator).to(dtype)
    # products of the order of 1, as a trained layer's are
    weight = (torch.randn((experts, n, k), device=device, generator=generator) * k**-0.5).to(dtype)
    return {"x": x, "weight": weight, "offs": offs.int().to(device)}


def flops(shape: Shape) -> int:
    """However the rows fall."""
    return 2 * shape["M"] * shape["N"] * shape["K"]


def active(experts: int, rows: int) -> int:
    """Experts that can have a row: the rest of the weights need not be read."""
    return min(experts, rows)


def least_bytes(shape: Shape, element: int) -> int:
    """Read x and the weights of experts that have rows (all, or as many as there are rows), write y."""
    rows, experts, n, k = (shape[key] for key in ("M", "E", "N", "K"))
    return element * (rows * (n + k) + active(experts, rows) * n * k)


def backward_bytes(shape: Shape, element: int) -> int:
    """Read dy, x and the weights, write dx and dweight (of experts without rows too)."""
    rows, experts, n, k = (shape[key] for key in ("M", "E", "N", "K"))
    return element * (rows * (n + 2 * k) + (active(experts, rows) + experts) * n * k)


PRODUCT = (
    {"GROUP": 4},
    {"GROUP": 16},
    {"BLOCK_C": 128, "num_stages": 4},
    {"BLOCK_M": 64, "BLOCK_C": 256, "num_warps": 4},
    {"BLOCK_M": 64, "BLOCK_C": 128, "num_warps": 4, "num_stages": 4},
    {"BLOCK_R": 128, "BLOCK_C": 128, "num_stages": 2},
)
GRADIENT = (
    {"GROUP": 4},
    {"GROUP": 16},
    {"BLOCK_M": 32, "num_stages": 4},
    {"BLOCK_N": 256, "BLOCK_K": 128},
    {"BLOCK_N": 128, "BLOCK_K": 128, "num_stages": 4},
)

OP = Op(
    reference=reference,
    triton=grouped_matmul,
    inputs=inputs,
    shapes={
        "qwen3_30b_a3b_gate_up": {"M": 65536, "E": 128, "N": 1536, "K": 2048},
        "qwen3_30b_a3b_down_zipf": {"M": 65536, "E": 128, "N": 2048, "K": 768, "zipf": 100},
        "qwen3_30b_a3b_decode": {"M": 512, "E": 128, "N": 1536, "K": 2048},
        "qwen3_30b_a3b_prefill": {"M": 8192, "E": 128, "N": 1536, "K": 2048},
        "gpt_oss_20b_down": {"M": 32768, "E": 32, "N": 2880, "K": 2880},
        "mixtral_8x7b_gate_up": {"M": 8192, "E": 8, "N": 28672, "K": 4096},
    },
    test_shapes={
        "even": {"M": 64, "E": 4, "N": 64, "K": 64},
        "zipf": {"M": 70, "E": 8, "N": 48, "K": 96, "zipf": 200},
        "some_rows": {"M": 90, "E": 2, "N": 64, "K": 72},
        "many_rows": {"M": 300, "E": 2, "N": 80, "K": 32},
        "odd": {"M": 37, "E": 5, "N": 51, "K": 37},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("x", "weight"),
    backward_flops=lambda shape: 2 * flops(shape),
    backward_bytes=backward_bytes,
    candidates={
        "grouped_matmul.forward": PRODUCT,
        "grouped_matmul.dx": PRODUCT,
        "grouped_matmul.dweight": GRADIENT,
    },
)
