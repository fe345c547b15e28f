"""RMSNorm with the residual add fused in (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).

    h = x + residual                    (h = x where there is no residual)
    y = h / sqrt(mean(h²) + eps) · weight

Backward, with r = 1 / sqrt(mean(h²) + eps) and g = dy · weight:

    dh = r · g - r³ · h · mean(g · h) + (gradient that reaches h by itself)
    dx = dresidual = dh,   dweight = Σ_rows dy · h · r

One row fits one program's registers, so a row is read once. The backward pass is a persistent grid: each program
walks over many rows and writes one partial dweight, and a second kernel sums the partials, always in the same order.
Rows too wide to keep a partial beside them leave dweight to a kernel of its own, which walks down columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.op import Op, Shape, architecture, processors
from bench.kernels.rms_norm_backward import _backward, _sum_partials, _weight_partials
from bench.kernels.tuning import tuned

MAX_WIDTH = 32768  # beyond it a row no longer fits the registers of one program
WIDE = 32768  # bytes of a row beyond which registers hold the row, but no sum of rows beside it
# float64 is for the reference: the kernels compute in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., H) -> y and h, both in x's dtype; statistics in at least fp32."""
    h = x if residual is None else x + residual
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype), h


@triton.jit
def _forward(
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr, rstd_ptr, eps, rows, inner, outer_stride, inner_stride,
    HAS_RESIDUAL: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK_H)[None, :]
    mask = (row < rows)[:, None] & (col < H)
    # 64 bits: rows x H passes 2³¹ at 500k tokens of width 4096
    place = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    flat = row.to(tl.int64)[:, None] * H + col
    h = tl.load(x_ptr + place[:, None] + col, mask, other=0).to(tl.float32)
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + flat, mask, other=0).to(tl.float32)
        # the norm sees h as stored, so that backward, which reads it back, uses the same value
        stored = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + flat, stored, mask)
        h = stored.to(tl.float32)
    # masked columns hold 0 and add nothing to the sum; the mean divides by H, not by the block
    weight = tl.load(weight_ptr + col, col < H, other=0).to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(h * h, 1) / H + eps)
    y = h * rstd[:, None] * weight
    tl.store(y_ptr + flat, y.to(y_ptr.dtype.element_ty), mask)
    # 4 bytes a row spare backward a second reduction
    tl.store(rstd_ptr + row, rstd, row < rows)


def _tile(width: int) -> dict[str, Any]:
    """Tile of one program: several rows where rows are short."""
    block = triton.next_power_of_2(width)
    # QK-norm: 16 heads of 128 in one program; a program a head would leave most of its threads idle
    rows = max(1, 2048 // block)
    # 32 elements a thread of a long row: of its power of two, a row of 2880 or 5120 then leaves few lanes idle
    warps = min(32, max(4, rows * block // 1024))
    return {"H": width, "BLOCK_H": block, "ROWS": rows, "num_warps": warps}


def _key(rows: int, width: int, x: torch.Tensor) -> tuple[int, ...]:
    return (rows.bit_length(), width, x.element_size())


def _gradients(
    dy: torch.Tensor, dh: torch.Tensor | None, h: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, which is dresidual as well, and dweight."""
    rows, inner, outer_stride, inner_stride = _rows(h)
    width, device = h.shape[-1], h.device
    strides = (rows, inner, outer_stride, inner_stride)
    # registers are short: for long rows the compiler needs fewest with dh loaded before the sum, but not so for sm_80
    config = _tile(width) | {"STAGES": 1, "DH_FIRST": width > 2048 and architecture(device) > 80}
    config = tuned("rms_norm.backward", _key(rows, width, h), config, device)
    # warps a multiprocessor's registers hold: 72 to 96 a thread at 16 elements; at 32, 128, or some more on sm_100
    warps = 20 if width <= 2048 else 16 if architecture(device) < 100 else 12
    resident = max(1, warps // config["num_warps"]) * processors(device)
    programs = min(triton.cdiv(rows, config["ROWS"]), resident)
    fused = width * h.element_size() <= WIDE
    dx = torch.empty_like(h, memory_format=torch.contiguous_format)
    partials = programs if fused else min(triton.cdiv(rows, 16), 16)
    partial = torch.empty(partials, width, dtype=torch.float32, device=device)
    _backward[(programs,)](
        dy, dh, h, weight, rstd, dx, partial, *strides, HAS_DH=dh is not None, HAS_DW=fused, **config
    )  # fmt: skip
    if not fused:
        _weight_partials[(partials, triton.cdiv(width, 256))](
            dy, h, rstd, partial, *strides, H=width, BLOCK_H=256, ROWS=16
        )  # fmt: skip
    dw = torch.empty_like(weight)
    _sum_partials[(triton.cdiv(width, 32),)](partial, dw, partials, H=width, BLOCK_H=32, ROWS=64)
    return dx, dw


def _rows(x: torch.Tensor) -> tuple[int, int, int, int]:
    """(rows, inner, outer stride, inner stride). Heads of a packed qkv are rows with two strides."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    if x.is_contiguous():
        return rows, 1, width, 0
    if x.dim() < 2 or x.stride(-1) != 1:
        raise ValueError(f"rms_norm: the last dimension must be contiguous, strides are {x.stride()}")
    try:
        outer = x.view(-1, *x.shape[-2:])
    except RuntimeError:
        raise ValueError(f"rms_norm: leading dimensions do not merge, strides {x.stride()}") from None
    return rows, x.shape[-2], outer.stride(0), outer.stride(1)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: Any) -> Any:
        rows, inner, outer_stride, inner_stride = _rows(x)
        config = _tile(x.shape[-1])
        config = tuned("rms_norm.forward", _key(rows, x.shape[-1], x), config, x.device)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        # without a residual h is x: nothing is copied
        h = x if residual is None else torch.empty_like(y)
        rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
        _forward[(triton.cdiv(rows, config["ROWS"]),)](
            x, residual, weight, y, h, rstd, eps, rows, inner, outer_stride, inner_stride,
            HAS_RESIDUAL=residual is not None, **config,
        )  # fmt: skip
        ctx.save_for_backward(h, weight, rstd)
        # an unused output then brings None instead of a tensor of zeros to read
        ctx.set_materialize_grads(False)
        return y if residual is None else (y, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor | None, dh: torch.Tensor | None = None) -> Any:
        h, weight, rstd = ctx.saved_tensors
        fused = ctx.needs_input_grad[3]
        # only h was used: the add passes its gradient on
        if dy is None:
            return dh, None, None, dh if fused else None
        dx, dw = _gradients(dy.contiguous(), None if dh is None else dh.contiguous(), h, weight, rstd)
        # x and residual enter the sum alike: one tensor is the gradient of both
        return dx, dw, None, dx if fused else None


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., H) -> y and h as in `reference`. x may be heads of a packed projection (two row strides)."""
    if x.dtype not in DTYPES or weight.dtype not in DTYPES:
        raise ValueError(f"rms_norm: want float32/16 or bfloat16, got {x.dtype} and {weight.dtype}")
    if x.numel() == 0 or x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"rms_norm: x must have 1 to {MAX_WIDTH} columns and no empty dimension")
    if weight.shape != x.shape[-1:] or not weight.is_contiguous() or weight.device != x.device:
        raise ValueError(f"rms_norm: weight must be a dense ({x.shape[-1]},) vector beside x")
    # outside the Function, so that autograd itself adds what reaches h
    if residual is None:
        return _RMSNorm.apply(x, weight, eps, None), x
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError("rms_norm: residual must have x's shape, dtype and device")
    if not residual.is_contiguous():
        raise ValueError("rms_norm: residual must be contiguous")
    return _RMSNorm.apply(x, weight, eps, residual)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Random x, weight near 1, a residual where the shape says so; `heads` gives QK-norm's packed form."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    tokens, width, heads = shape["tokens"], shape["hidden"], shape.get("heads")
    x = draw(tokens, heads + 2, width).to(dtype)[:, :heads] if heads else draw(tokens, width).to(dtype)
    residual = draw(*x.shape).to(dtype) if shape["residual"] else None
    return {"x": x, "weight": (1 + 0.1 * draw(width)).to(dtype), "eps": 1e-6, "residual": residual}


def flops(shape: Shape) -> int:
    """Square, add, scale, weight: 4 an element, and the residual's add."""
    return shape["tokens"] * shape.get("heads", 1) * shape["hidden"] * (4 + shape["residual"])


def least_bytes(shape: Shape, element: int) -> int:
    """Read x (and residual), write y (and h), read the weight once."""
    size = shape["tokens"] * shape.get("heads", 1) * shape["hidden"]
    return element * (size * (2 + 2 * shape["residual"]) + shape["hidden"])


def backward_flops(shape: Shape) -> int:
    """Two products for dy · weight and h · r, two for the mean, two for dweight, three for dx, dh's add."""
    return shape["tokens"] * shape.get("heads", 1) * shape["hidden"] * (9 + shape["residual"])


def backward_bytes(shape: Shape, element: int) -> int:
    """Read dy, h, r (and dh), write dx; read the weight and write its gradient once."""
    rows = shape["tokens"] * shape.get("heads", 1)
    return element * (rows * shape["hidden"] * (3 + shape["residual"]) + 2 * shape["hidden"]) + 4 * rows


OP = Op(
    reference=reference,
    triton=rms_norm,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"tokens": 8192, "hidden": 4096, "residual": 1},
        "llama_3_1_8b_decode": {"tokens": 64, "hidden": 4096, "residual": 1},
        "llama_3_2_1b_train": {"tokens": 16384, "hidden": 2048, "residual": 1},
        "llama_3_1_70b_train": {"tokens": 4096, "hidden": 8192, "residual": 1},
        "llama_3_1_405b_train": {"tokens": 2048, "hidden": 16384, "residual": 1},
        "gpt_oss_train": {"tokens": 16384, "hidden": 2880, "residual": 1},
        "qwen3_32b_train": {"tokens": 8192, "hidden": 5120, "residual": 1},
        "deepseek_v3_train": {"tokens": 8192, "hidden": 7168, "residual": 1},
        "qwen3_0_6b_train": {"tokens": 16384, "hidden": 1024, "residual": 1},
        "qwen3_0_6b_qk_norm": {"tokens": 16384, "heads": 16, "hidden": 128, "residual": 0},
        "hidden_32768": {"tokens": 2048, "hidden": 32768, "residual": 1},
    },
    test_shapes={
        "residual": {"tokens": 37, "hidden": 256, "residual": 1},
        "plain": {"tokens": 9, "hidden": 2048, "residual": 0},
        "long_row": {"tokens": 23, "hidden": 2880, "residual": 1},
        "qk_norm": {"tokens": 11, "heads": 3, "hidden": 64, "residual": 0},
        "wide": {"tokens": 4, "hidden": 16500, "residual": 1},
        "odd": {"tokens": 5, "hidden": 773, "residual": 1},
    },
    flops=flops,
    bytes=least_bytes,
    differentiable=("x", "weight", "residual"),
    backward_flops=backward_flops,
    backward_bytes=backward_bytes,
    candidates={
        "rms_norm.forward": ({"num_warps": 4}, {"num_warps": 8}, {"num_warps": 16}),
        "rms_norm.backward": (*({"num_warps": warps} for warps in (4, 8, 16, 32)), {"STAGES": 2}),
    },
)
