"""Quantisation to 8-bit floating point (e4m3, https://arxiv.org/abs/2209.05433) by the largest magnitude.

    scale = max |x| / 448,   q = round(x / scale),   over each row or over the whole tensor

448 is the largest e4m3 number, so nothing overflows; the scale is computed from this very tensor (dynamic scaling).
Row by row x is read once, for a row fits one program's registers. For a whole tensor it is read twice: programs
leave partial maxima, and the second kernel reduces those, few enough to be read by every program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.op import Op, Shape, architecture, processors

FP8 = torch.float8_e4m3fn
LARGEST = tl.constexpr(448.0)
LEAST = tl.constexpr(1e-12)  # a row of zeros has this for its maximum, and so a finite scale
MAX_WIDTH = 32768  # beyond it a row no longer fits the registers of one program
# float64 is for the reference: the kernels compute in fp32 whatever they read
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(x: torch.Tensor, rowwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x (..., K) -> q as x in float8_e4m3fn, and the scale: (..., 1) where rowwise, else ()."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = wide.abs().amax(-1, keepdim=True) if rowwise else wide.abs().amax()
    scale = peak.clamp_min(LEAST.value) / LARGEST.value
    return (wide / scale).to(FP8), scale


@triton.jit
def _load(x_ptr, row, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of x in fp32. 64 bits: 75k tokens of width 28672 pass 2^31 elements."""
    column = tl.arange(0, BLOCK)[None, :]
    tile = x_ptr + row.to(tl.int64)[:, None] * stride + column
    return tl.load(tile, (row < rows)[:, None] & (column < WIDTH), other=0).to(tl.float32)


@triton.jit
def _store(q_ptr, x, scale, row, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x / scale, rounded here so that the conversion has nothing to round: Triton's interpreter loses its carry."""
    column = tl.arange(0, BLOCK)[None, :]
    q = x * (1 / scale)
    # q's power of two, not below that of the least normal number, 2^-6; a step of the grid is an eighth of it
    power = (q.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    # beside 1.5 · 2^20 powers fp32 has no finer step than that, so the sum rounds to it (ties to even)
    shift = tl.maximum(power, 0.015625) * 1572864.0
    q = (q + shift) - shift
    tile = q_ptr + row.to(tl.int64)[:, None] * WIDTH + column
    tl.store(tile, q.to(q_ptr.dtype.element_ty), (row < rows)[:, None] & (column < WIDTH))


@triton.jit
def _rowwise(
    x_ptr, q_ptr, scale_ptr, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = _load(x_ptr, row, rows, stride, WIDTH, BLOCK)
    scale = tl.maximum(tl.max(tl.abs(x), 1), LEAST) / LARGEST
    tl.store(scale_ptr + row, scale, row < rows)
    _store(q_ptr, x, scale[:, None], row, rows, WIDTH, BLOCK)


@triton.jit
def _peak(x_ptr, peak_ptr, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    peak = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        peak = tl.maximum(peak, tl.abs(_load(x_ptr, row, rows, stride, WIDTH, BLOCK)))
    tl.store(peak_ptr + tl.program_id(0), tl.max(tl.max(peak, 1), 0))


@triton.jit
def _tensorwise(
    x_ptr, peak_ptr, q_ptr, scale_ptr, rows, stride, PARTIALS: tl.constexpr, BLOCK_P: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    part = tl.arange(0, BLOCK_P)
    peak = tl.max(tl.load(peak_ptr + part, part < PARTIALS, other=0), 0)
    scale = tl.maximum(peak, LEAST) / LARGEST
    if tl.program_id(0) == 0:
        tl.store(scale_ptr, scale)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _store(q_ptr, _load(x_ptr, row, rows, stride, WIDTH, BLOCK), scale, row, rows, WIDTH, BLOCK)


@torch.no_grad()
def quantize_fp8(x: torch.Tensor, rowwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference`, for finite x. Rows of x may be apart; no host read, so safe in a CUDA graph."""
    if x.dtype not in DTYPES:
        raise ValueError(f"quantize_fp8: want float32/16 or bfloat16, got {x.dtype}")
    if x.dim() == 0 or x.numel() == 0 or x.shape[-1] > MAX_WIDTH or x.stride(-1) != 1:
        raise ValueError(f"quantize_fp8: want rows of 1 to {MAX_WIDTH} contiguous elements, got {tuple(x.shape)}")
    if architecture(x.device) < 90:
        raise ValueError("quantize_fp8: e4m3 needs sm_89 or newer")
    try:
        flat = x.view(-1, x.shape[-1])
    except RuntimeError:
        raise ValueError(f"quantize_fp8: leading dimensions do not merge, strides {x.stride()}") from None
    rows, width = flat.shape
    block = triton.next_power_of_2(width)
    # about 16 elements a thread, several rows where rows are short
    height = max(1, 2048 // block)
    config = {"WIDTH": width, "BLOCK": block, "ROWS": height, "num_warps": min(32, max(4, height * block // 512))}
    q = torch.empty(x.shape, dtype=FP8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1) if rowwise else (), dtype=torch.float32, device=x.device)
    programs = triton.cdiv(rows, height)
    if rowwise:
        _rowwise[(programs,)](flat, q, scale, rows, flat.stride(0), **config)
        return q, scale
    # 32 warps a multiprocessor keep its loads in flight; more would only leave more partial maxima to read
    partials = min(programs, 32 // config["num_warps"] * processors(x.device))
    peak = torch.empty(partials, dtype=torch.float32, device=x.device)
    _peak[(partials,)](flat, peak, rows, flat.stride(0), **config)
    sizes = {"PARTIALS": partials, "BLOCK_P": triton.next_power_of_2(partials)}
    _tensorwise[(programs,)](flat, peak, q, scale, rows, flat.stride(0), **sizes, **config)
    return q, scale


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Rows of very different size, as activations are. `sliced`: the left part of a wider tensor."""
    rows, width = shape["M"], shape["K"]
    x = torch.randn((rows, width + 8 * shape.get("sliced", 0)), device=device, generator=generator)
    size = torch.randn((rows, 1), device=device, generator=generator).exp()
    return {"x": (x * size).to(dtype)[:, :width], "rowwise": bool(shape["rowwise"])}


def flops(shape: Shape) -> int:
    """Magnitude, maximum, division, two comparisons: 5 an element."""
    return 5 * shape["M"] * shape["K"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read x once (twice for one scale of a whole tensor), write a byte an element."""
    return shape["M"] * shape["K"] * (element * (1 if shape["rowwise"] else 2) + 1)


def error(outputs: tuple[Any, ...], inputs: dict[str, Any]) -> float:
    """The worst distance of q · scale from x, in half steps of e4m3; infinite where a scale is wrong."""
    x, (q, scale) = inputs["x"], (value.double() for value in outputs)
    right = reference(x, inputs["rowwise"])[1]
    if scale.shape != right.shape or not torch.allclose(scale, right, rtol=1e-6, atol=0):
        return float("inf")
    # a step is 2^-3 of a number's power of two, and 2^-9 for numbers below the least normal one
    power = torch.exp2((x / scale).abs().clamp_min(2.0**-6).log2().floor())
    return float(((q * scale - x).abs() / (power * scale * 2.0**-4)).max())


OP = Op(
    reference=reference,
    triton=quantize_fp8,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_hidden": {"M": 8192, "K": 4096, "rowwise": 1},
        "llama_3_1_8b_ffn": {"M": 8192, "K": 14336, "rowwise": 1},
        "llama_3_1_8b_decode": {"M": 64, "K": 4096, "rowwise": 1},
        "llama_3_1_8b_hidden_tensorwise": {"M": 8192, "K": 4096, "rowwise": 0},
    },
    test_shapes={
        "rowwise": {"M": 9, "K": 512, "rowwise": 1, "sliced": 1},
        "tensorwise": {"M": 70, "K": 128, "rowwise": 0},
        "one_row": {"M": 1, "K": 2048, "rowwise": 1},
        "odd": {"M": 7, "K": 773, "rowwise": 0},
    },
    flops=flops,
    bytes=least_bytes,
    architectures=lambda shape: (90, 100),
    error=error,
    # half a step is what rounding costs; the thousandth is for fp32's own rounding of x / scale
    tolerance=dict.fromkeys(DTYPES, 1.001),
)
