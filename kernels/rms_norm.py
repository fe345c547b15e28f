"""RMSNorm with the residual add fused in (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).

    h = x + residual                    (h = x where there is no residual)
    y = h / sqrt(mean(h²) + eps) · weight

Backward, with r = 1 / sqrt(mean(h²) + eps) and g = dy · weight:

    dh = r · g - r³ · h · mean(g · h) + (gradient that reaches h by itself)
    dx = dresidual = dh,   dweight = Σ_rows dy · h · r

One row fits one program's registers, so a row is read once. The backward pass is a persistent grid:
each program walks over many rows and writes one partial dweight, and torch sums the partials.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.op import Compile, Op, Shape

MAX_WIDTH = 32768  # beyond it a row no longer fits the registers of one program
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


@triton.jit
def _backward(
    dy_ptr, dh_ptr, h_ptr, weight_ptr, rstd_ptr, dx_ptr, dw_ptr, rows, inner, outer_stride, inner_stride,
    HAS_DH: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK_H)[None, :]
    weight = tl.load(weight_ptr + col, col < H, other=0).to(tl.float32)
    # stays in registers over all rows of the program: one write of H numbers instead of an atomic a row
    dw = tl.zeros((ROWS, BLOCK_H), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < H)
        place = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
        flat = row.to(tl.int64)[:, None] * H + col
        h = tl.load(h_ptr + place[:, None] + col, mask, other=0).to(tl.float32)
        dy = tl.load(dy_ptr + flat, mask, other=0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, row < rows, other=0)[:, None]
        unit = h * rstd
        dw += dy * unit
        grad = dy * weight
        dx = rstd * (grad - unit * (tl.sum(grad * unit, 1) / H)[:, None])
        # h goes on along the residual stream, so its own gradient joins here: the fused add's backward
        if HAS_DH:
            dx += tl.load(dh_ptr + flat, mask, other=0).to(tl.float32)
        tl.store(dx_ptr + flat, dx.to(dx_ptr.dtype.element_ty), mask)
    tl.store(dw_ptr + tl.program_id(0) * H + col, tl.sum(dw, 0)[None, :], col < H)


def _config(width: int) -> dict[str, Any]:
    """Tile of one program: about 16 elements a thread, several rows where rows are short."""
    block = triton.next_power_of_2(width)
    # QK-norm: 16 heads of 128 in one program; a program a head would leave most of its threads idle
    rows = max(1, 2048 // block)
    warps = min(32, max(4, rows * block // 512))
    return {"H": width, "BLOCK_H": block, "ROWS": rows, "num_warps": warps}


@functools.cache
def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; a few in the interpreter, so that programs there walk several rows too."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


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
        config = _config(x.shape[-1])
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
    def backward(ctx: Any, dy: torch.Tensor | None, dh: torch.Tensor | None = None) -> Any:
        h, weight, rstd = ctx.saved_tensors
        fused = ctx.needs_input_grad[3]
        # only h was used: the add passes its gradient on
        if dy is None:
            return dh, None, None, dh if fused else None
        rows, inner, outer_stride, inner_stride = _rows(h)
        config = _config(h.shape[-1])
        # short of the registers, 16 warps a multiprocessor are enough to hide the latency of memory
        resident = max(1, 16 // config["num_warps"]) * _processors(h.device)
        programs = min(triton.cdiv(rows, config["ROWS"]), resident)
        dx = torch.empty_like(h, memory_format=torch.contiguous_format)
        partial = torch.empty(programs, h.shape[-1], dtype=torch.float32, device=h.device)
        _backward[(programs,)](
            dy.contiguous(), None if dh is None else dh.contiguous(), h, weight, rstd, dx, partial,
            rows, inner, outer_stride, inner_stride, HAS_DH=dh is not None, **config,
        )  # fmt: skip
        # x and residual enter the sum alike: one tensor is the gradient of both
        return dx, partial.sum(0).to(weight.dtype), None, dx if fused else None


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


def compiles() -> list[Compile]:
    """The widths of the listed models: dense rows with a residual, and the heads of QK-norm without."""
    special = {"rstd_ptr": "*fp32", "dw_ptr": "*fp32", "eps": "fp32"}
    entries = []
    for width, dense in ((4096, True), (2048, True), (1024, True), (128, False)):
        for kernel, flag in ((_forward, "HAS_RESIDUAL"), (_backward, "HAS_DH")):
            config = _config(width) | {flag: dense}
            warps = config.pop("num_warps")
            if dense:  # Triton makes a constant of an integer that is 1
                config["inner"] = 1
            names = [name for name in kernel.arg_names if name not in config]
            types = {name: special.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
            divisible = tuple(name for name in names if types[name] == "i32")
            entries.append(Compile(kernel, types, config, warps, divisible=divisible))
    return entries


OP = Op(
    reference=reference,
    triton=rms_norm,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"tokens": 8192, "hidden": 4096, "residual": 1},
        "llama_3_1_8b_decode": {"tokens": 64, "hidden": 4096, "residual": 1},
        "llama_3_2_1b_train": {"tokens": 16384, "hidden": 2048, "residual": 1},
        "qwen3_0_6b_train": {"tokens": 16384, "hidden": 1024, "residual": 1},
        "qwen3_0_6b_qk_norm": {"tokens": 16384, "heads": 16, "hidden": 128, "residual": 0},
    },
    test_shapes={
        "residual": {"tokens": 37, "hidden": 256, "residual": 1},
        "plain": {"tokens": 9, "hidden": 2048, "residual": 0},
        "qk_norm": {"tokens": 11, "heads": 3, "hidden": 64, "residual": 0},
        "odd": {"tokens": 5, "hidden": 773, "residual": 1},
    },
    flops=flops,
    bytes=least_bytes,
    compiles=compiles,
    differentiable=("x", "weight", "residual"),
)
