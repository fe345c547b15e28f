"""Linear layer with quantised weights: y = x · Wᵀ, W in 4 or 8 bits, x and y as they are (W4A16, W8A16).

    int4   W[n, k] = scale[n, k // 128] · (q[n, k] - zero[n, k // 128]),  q and zero from 0 to 15, zero 8 if not given
    int8   W[n, k] = scale[n] · q[n, k],  q from -127 to 127
    fp8    W[n, k] = scale[n] · q[n, k],  q in e4m3

Decoding reads every weight for a handful of tokens, so the time is that of reading them, and fewer bits are less
time (GPTQ, https://arxiv.org/abs/2210.17323; AWQ, https://arxiv.org/abs/2306.00978). A group's scale is applied to
its partial sum, not to each weight: exact, and 128 times rarer.

Layout. int8 and fp8 are plain (N, K). int4 is (N, K / 8) int32, a group of 128 in 16 words: word c of a group
holds at bits 4i + 16h its number k = 32i + 2c + h (i = 0..3, h = 0, 1). A mask and a shift of a whole word so give
two neighbouring columns, and 64 bytes of a row four runs of 32. int4's scale is (N, K / 128); `quantize` leaves it
with N contiguous, as the rows of a tile are read together. Tensors are told apart by the dtype of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from bench.kernels.op import Op, Shape, architecture, processors
from bench.kernels.quant_matmul_kernels import _combine, _narrow, _wide
from bench.kernels.tuning import tuned

GROUP = 128  # as in GPTQ and AWQ checkpoints; 8 bits use it as the step along K only
KINDS = {torch.int32: "int4", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}
# float64 is for the reference: the kernels sum in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pack(q: torch.Tensor) -> torch.Tensor:
    """Whole numbers from 0 to 15, (N, K) -> (N, K / 8) int32 in the layout above."""
    rows, width = q.shape
    # k = 32 (2 byte + nibble) + 2c + h; words are little-endian: halves h, and in each the lower byte first
    byte = q.to(torch.uint8).view(rows, width // GROUP, 2, 2, 16, 2)
    byte = (byte[:, :, :, 0] | byte[:, :, :, 1] << 4).permute(0, 1, 3, 4, 2)
    return byte.reshape(rows, width // 2).view(torch.int32)


def unpack(weight: torch.Tensor) -> torch.Tensor:
    """(N, K / 8) int32 -> (N, K) uint8, from 0 to 15: undoes `pack`."""
    rows, words = weight.shape
    byte = weight.contiguous().view(torch.uint8).view(rows, words // 16, 16, 2, 2)
    return torch.stack((byte & 15, byte >> 4), -1).permute(0, 1, 4, 5, 2, 3).reshape(rows, words * 8)


def quantize(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) -> weight and scale for `quant_matmul`, symmetric, each rounded to the nearest."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if kind == "int4":
        groups = wide.view(len(wide), -1, GROUP)
        # the scale is rounded first: what a weight is divided by is what it will be multiplied with. It has the
        # weights' own dtype, as at 1 in 128 it is 3 % of the traffic
        scale = (groups.abs().amax(-1) / 7).to(weight.dtype)
        q = _divided(groups, scale[..., None]).round().clamp(-8, 7) + 8
        return pack(q.view(wide.shape)), scale.t().contiguous().t()
    top = {"int8": 127, "fp8": 448}
    if kind not in top:
        raise ValueError(f"quantize: kind must be int4, int8 or fp8, got {kind!r}")
    # one a row: float32 costs nothing and small weights do not make it subnormal
    scale = (wide.abs().amax(-1) / top[kind]).to(torch.promote_types(torch.float32, weight.dtype))
    q = _divided(wide, scale[:, None]).clamp(-top[kind], top[kind])
    return q.round().to(torch.int8) if kind == "int8" else q.to(torch.float8_e4m3fn), scale


def _divided(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # where all weights are 0, so is the scale
    return torch.where(scale == 0, 0, value / scale.to(value.dtype))


def dequantize(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
    """The weights (N, K) that the quantised ones stand for, in at least fp32."""
    scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
    if weight.dtype != torch.int32:
        return weight.to(scale.dtype) * scale.view(-1, 1)
    q = unpack(weight).to(scale.dtype).view(len(weight), -1, GROUP)
    q = q - (8 if zero is None else zero.to(scale.dtype)[..., None])
    return (q * scale[..., None]).view(len(weight), -1)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """x (..., K) -> (..., N) in x's dtype, summed in at least fp32."""
    wide = dequantize(weight, scale, zero)
    dtype = torch.promote_types(x.dtype, wide.dtype)
    return (x.to(dtype) @ wide.to(dtype).t()).to(x.dtype)


def _check(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> str:
    """int4, int8 or fp8, or an error that says what is wrong."""
    if x.dtype not in DTYPES or weight.dtype not in KINDS or scale.dtype not in DTYPES:
        raise ValueError(f"quant_matmul: want floats with int32, int8 or e4m3 weights, got {x.dtype}, {weight.dtype}")
    kind, width = KINDS[weight.dtype], x.shape[-1] if x.dim() else 0
    if x.numel() == 0 or width % GROUP or weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"quant_matmul: want x (..., K), K a multiple of {GROUP}, and a matrix, got {tuple(x.shape)}")
    rows = weight.shape[0]
    if weight.shape[1] != (width // 8 if kind == "int4" else width):
        raise ValueError(f"quant_matmul: {kind} weight {tuple(weight.shape)} does not fit K = {width}")
    groups = (rows, width // GROUP)
    if scale.shape not in ([groups] if kind == "int4" else [(rows,), (rows, 1)]):
        raise ValueError(f"quant_matmul: {kind} scale {tuple(scale.shape)} does not fit weight {tuple(weight.shape)}")
    if zero is not None and (kind != "int4" or zero.shape != groups or zero.dtype != torch.uint8):
        raise ValueError(f"quant_matmul: zero must be uint8 {groups} beside an int4 weight")
    given = [tensor for tensor in (x, weight, scale, zero) if tensor is not None]
    if not all(tensor.is_contiguous() for tensor in (x, weight, *given[3:])):
        raise ValueError("quant_matmul: x, weight and zero must be contiguous")
    # the kernels read words of four weights
    if weight.storage_offset() * weight.element_size() % 4 or weight.data_ptr() % 4:
        raise ValueError("quant_matmul: weight must start at a multiple of 4 bytes")
    if any(tensor.device != x.device for tensor in given):
        raise ValueError("quant_matmul: all tensors must be on one device")
    return kind


def _config(
    kind: str, zeros: bool, rows: int, outputs: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Tile and launch options; BLOCK_M rows of x, BLOCK_N of the weights."""
    steps, units = width // GROUP, processors(device)
    if rows <= 16:
        # a long K gives each of 8 warps enough steps of its own; a step of 8 bits is twice the bytes of one of 4
        slices = 8 if steps >= 32 and kind == "int4" else 4
        # 16 rows where tiles of 32 would leave units idle; the compiler passes zero points of more rows than 16
        # through shared memory, once for every column they apply to
        block = 32 if 2 * triton.cdiv(outputs, 32) >= 3 * units and not zeros else 16
        config = {"SLICES": slices, "BLOCK_N": block, "BLOCK_M": 8 if rows <= 8 else 16, "num_warps": slices}
        config["num_stages"] = 4 if rows <= 8 else 3
    else:
        # zero points cost registers: 128 rows would spill on sm_80
        config = {"BLOCK_N": 64, "num_warps": 4} if zeros else {"BLOCK_N": 128, "num_warps": 8}
        # products of float32 hold whole operands in registers
        block = 32 if rows <= 32 or dtype == torch.float32 else 64
        config |= {"BLOCK_M": block, "num_stages": 4 if kind == "int4" else 3}
    # two programs must fit a unit's shared memory: an A100 has 164 KiB of it, and float32 x takes twice the bytes
    if dtype == torch.float32 or architecture(device) == 80:
        config["num_stages"] -= 1
    tiles = triton.cdiv(outputs, config["BLOCK_N"]) * triton.cdiv(rows, config["BLOCK_M"])
    # split K only where tiles leave units idle, and to four steps a warp or more: partial sums cost a second kernel
    splits = 2 * units // tiles if tiles < units else 1
    return config | {"SPLITS": max(1, min(splits, steps // (4 * config.get("SLICES", 1))))}


@torch.no_grad()
def quant_matmul(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """As `reference`, for decoding: more than 64 rows of x read the weights once for every 64. Forward only.

    Weights are taken to be finite: e4m3's NaN is not looked for.
    """
    kind = _check(x, weight, scale, zero)
    width, outputs = x.shape[-1], weight.shape[0]
    rows = x.numel() // width
    kernel, name = (_narrow, "narrow") if rows <= 16 else (_wide, "wide")
    config = _config(kind, zero is not None, rows, outputs, width, x.dtype, x.device)
    key = (kind if zero is None else f"{kind}_zero", config["BLOCK_M"], outputs, width)
    config = tuned(f"quant_matmul.{name}", key, config, x.device)
    splits = config["SPLITS"]
    y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
    part = y if splits == 1 else torch.empty((splits, rows, outputs), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, config["BLOCK_N"]), triton.cdiv(rows, config["BLOCK_M"]), splits)
    strides = scale.stride() if kind == "int4" else (scale.stride(0), 0)
    kernel[grid](x, weight.view(torch.int32), scale, zero, part, rows, outputs, width, *strides, KIND=kind, **config)
    if splits > 1:
        _combine[(triton.cdiv(y.numel(), 1024),)](part, y, y.numel(), SPLITS=splits, BLOCK=1024)
    return y


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Random x and weights of the `bits` the shape states (8 with `fp8`: e4m3), quantised; or random zero points."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    rows, outputs, width = shape["M"], shape["N"], shape["K"]
    kind = "int4" if shape["bits"] == 4 else "fp8" if shape.get("fp8") else "int8"
    weight, scale = quantize((draw(outputs, width) * width**-0.5).to(dtype), kind)
    zero = None
    if shape.get("zero"):
        size = (outputs, width // GROUP)
        zero = torch.randint(0, 16, size, dtype=torch.uint8, device=device, generator=generator)
    return {"x": draw(rows, width).to(dtype), "weight": weight, "scale": scale, "zero": zero}


def flops(shape: Shape) -> int:
    return 2 * shape["M"] * shape["N"] * shape["K"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read weights, scales (and zero points) and x once, write y."""
    weights = shape["N"] * shape["K"]
    extra = weights // GROUP * (element + shape.get("zero", 0)) if shape["bits"] == 4 else 4 * shape["N"]
    return weights * shape["bits"] // 8 + extra + shape["M"] * (shape["N"] + shape["K"]) * element


GATE_UP, DOWN, SQUARE = {"N": 28672, "K": 4096}, {"N": 4096, "K": 14336}, {"N": 8192, "K": 8192}

OP = Op(
    reference=reference,
    triton=quant_matmul,
    inputs=inputs,
    shapes={
        f"{name}_m{rows}_{kind}": {"M": rows, **matrix, **bits}
        for name, matrix, kind, bits, counts in (
            ("llama_3_1_8b_gate_up", GATE_UP, "int4", {"bits": 4}, (1, 16, 32, 64)),
            ("llama_3_1_8b_down", DOWN, "int4", {"bits": 4}, (1, 16, 64)),
            ("square_8192", SQUARE, "int4", {"bits": 4}, (1, 16, 64)),
            ("llama_3_1_8b_gate_up", GATE_UP, "int8", {"bits": 8}, (1, 16, 64)),
            ("llama_3_1_8b_gate_up", GATE_UP, "fp8", {"bits": 8, "fp8": 1}, (1, 16, 64)),
            ("llama_3_1_8b_gate_up", GATE_UP, "int4_zero", {"bits": 4, "zero": 1}, (1, 64)),
        )
        for rows in counts
    },
    test_shapes={
        "int4": {"M": 1, "N": 96, "K": 768, "bits": 4},
        "int8": {"M": 3, "N": 64, "K": 256, "bits": 8},
        "fp8": {"M": 1, "N": 64, "K": 384, "bits": 8, "fp8": 1},
        "zero": {"M": 8, "N": 48, "K": 640, "bits": 4, "zero": 1},
        "splits": {"M": 2, "N": 24, "K": 8192, "bits": 4},
        "wide_int4": {"M": 17, "N": 96, "K": 1024, "bits": 4},
        "wide_int8": {"M": 33, "N": 130, "K": 256, "bits": 8},
        "wide_fp8": {"M": 20, "N": 64, "K": 256, "bits": 8, "fp8": 1},
        "wide_zero": {"M": 70, "N": 96, "K": 256, "bits": 4, "zero": 1},
        "odd": {"M": 13, "N": 203, "K": 384, "bits": 4},
    },
    flops=flops,
    bytes=least_bytes,
    candidates={
        "quant_matmul.narrow": (
            {"BLOCK_N": 16},
            {"BLOCK_N": 32},
            {"BLOCK_N": 64},
            {"SLICES": 4, "num_warps": 4},
            {"SLICES": 4, "num_warps": 4, "BLOCK_N": 64},
            {"num_stages": 3},
            {"num_stages": 5},
            {"SPLITS": 1},
            {"SPLITS": 2},
        ),
        "quant_matmul.wide": (
            {"num_warps": 4},
            {"BLOCK_N": 64, "num_warps": 4},
            {"BLOCK_N": 256},
            {"num_stages": 3},
            {"SPLITS": 1},
            {"SPLITS": 2},
            {"SPLITS": 4},
        ),
    },
)
