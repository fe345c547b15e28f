"""quant_matmul: its formula written out a second time, what its launcher refuses, what is particular to it."""

from typing import Any

import pytest
import torch

from bench.kernels.op import widened
from bench.kernels.quant_matmul import OP, dequantize, pack, quantize, unpack
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, long, run

TEST = OP.test_shapes
KINDS = {"int4": torch.int32, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


def nibble(weight: torch.Tensor, n: int, k: int) -> int:
    """q[n, k] of packed int4, from the layout the op's file states."""
    group, rest = divmod(k, 128)
    i, rest = divmod(rest, 32)
    c, h = divmod(rest, 2)
    return (int(weight[n, 16 * group + c]) >> (4 * i + 16 * h)) & 15


def brute_quant_matmul(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """A column of y at a time; the number of a weight one by one."""
    y = x.new_zeros(x.shape[0], weight.shape[0])
    for n in range(weight.shape[0]):
        if weight.dtype == torch.int32:
            q = torch.tensor([nibble(weight, n, k) for k in range(x.shape[1])], device=x.device).to(x.dtype)
            for g in range(x.shape[1] // 128):
                at = slice(128 * g, 128 * g + 128)
                offset = 8 if zero is None else int(zero[n, g])
                y[:, n] += scale[n, g] * (x[:, at] @ (q[at] - offset))
        else:
            y[:, n] = scale[n] * (x @ weight[n].to(x.dtype))
    return y


@pytest.mark.parametrize("shape", ["int4", "int8", "fp8", "zero"])
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_quant_matmul, shape)


def test_pack_and_unpack_are_inverse(generator: torch.Generator) -> None:
    q = torch.randint(0, 16, (5, 384), dtype=torch.uint8, device=DEVICE, generator=generator)
    packed = pack(q)
    assert packed.dtype == torch.int32 and packed.shape == (5, 48)
    assert torch.equal(unpack(packed), q)
    assert all(nibble(packed, n, k) == q[n, k] for n in range(5) for k in range(0, 384, 7))


@pytest.mark.parametrize(("kind", "steps"), [("int4", 7), ("int8", 127), ("fp8", None)])
def test_quantize_rounds_to_the_nearest(kind: str, steps: int | None, generator: torch.Generator) -> None:
    weight = torch.randn(6, 256, device=DEVICE, generator=generator)
    weight[2] = 0  # a row of zeros: scale 0, and no 0 / 0
    quantized, scale = quantize(weight, kind)
    assert quantized.dtype == KINDS[kind]
    error = (dequantize(quantized, scale) - weight).abs()
    largest = weight.view(6, -1, 128 if kind == "int4" else 256).abs().amax(-1, keepdim=True)
    # half a step; e4m3 has 3 bits after the first, and steps of its own below 2⁻⁶
    bound = largest / steps / 2 if steps else torch.maximum(weight.abs().view(6, 1, 256) / 16, largest / 448 / 1024)
    assert (error.view(6, -1, error.shape[1] // largest.shape[1]) <= bound * 1.0001).all()
    with pytest.raises(ValueError, match="int4, int8 or fp8"):
        quantize(weight, "int3")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16] if CUDA else [torch.float16])
@pytest.mark.parametrize("rows", [8, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_is_dequantized_exactly(kind: str, rows: int, dtype: torch.dtype) -> None:
    """Row k of x picks column k alone: y is the weights themselves, subnormal and negative zero codes too."""
    codes = torch.arange(256, device=DEVICE)
    if kind == "int4":
        weight, scale = pack(codes.view(2, 128) % 16), torch.ones(2, 1, device=DEVICE)
    else:
        finite = codes.where(codes % 128 != 127, 0) if kind == "fp8" else codes
        weight, scale = finite.to(torch.uint8).view(2, 128).view(KINDS[kind]), torch.ones(2, device=DEVICE)
    truth = dequantize(weight, scale)
    picks = torch.eye(128, device=DEVICE, dtype=dtype)
    for first in range(0, 128, rows):
        y = OP.triton(picks[first : first + rows], weight, scale)
        assert torch.equal(y, truth[:, first : first + rows].t().to(dtype))


@pytest.mark.parametrize("shape", ["int4", "wide_int4"])
def test_leading_dimensions_and_scale_strides(shape: str, generator: torch.Generator) -> None:
    """A batch is rows; scales with K contiguous, as checkpoints have them, mean the same."""
    kwargs = OP.inputs(TEST[shape], torch.float32, DEVICE, generator)
    y = OP.triton(**kwargs)
    assert kwargs["scale"].stride(0) == 1
    again = OP.triton(**kwargs | {"x": kwargs["x"][None], "scale": kwargs["scale"].contiguous()})
    assert torch.equal(again, y[None])


def test_partial_sums_are_added_in_one_order(generator: torch.Generator) -> None:
    kwargs = OP.inputs(TEST["splits"], torch.float16, DEVICE, generator)
    assert torch.equal(OP.triton(**kwargs), OP.triton(**kwargs))


INT4, GROUPS = long(4, 32).int(), f32(4, 2)
REFUSED = {
    "weight of int64": (f32(1, 256), long(4, 256), f32(4)),
    "K not a multiple of 128": (f32(1, 192), long(4, 192).to(torch.int8), f32(4)),
    "another K": (f32(1, 128), INT4, GROUPS),
    "no rows": (f32(0, 256), INT4, GROUPS),
    "a scale a row for int4": (f32(1, 256), INT4, f32(4)),
    "a scale a group for int8": (f32(1, 256), long(4, 256).to(torch.int8), GROUPS),
    "zero points of floats": (f32(1, 256), INT4, GROUPS, f32(4, 2)),
    "zero points for int8": (f32(1, 256), long(4, 256).to(torch.int8), f32(4), long(4, 2).to(torch.uint8)),
    "int8 at an odd byte": (f32(1, 128), long(513).to(torch.int8)[1:].view(4, 128), f32(4)),
    "fp8 at an odd byte": (f32(1, 128), f32(513).to(torch.float8_e4m3fn)[1:].view(4, 128), f32(4)),
    "x strided": (f32(256, 2).t(), INT4, GROUPS),
    "scale elsewhere": (f32(1, 256), INT4, GROUPS.to("meta")),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^quant_matmul: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: CUDA graphs")
@pytest.mark.parametrize("shape", ["int4", "fp8", "splits", "wide_int8"])
def test_replays_in_a_cuda_graph(shape: str, generator: torch.Generator) -> None:
    """Another token in a captured graph."""
    kwargs = OP.inputs(TEST[shape], torch.bfloat16, DEVICE, generator)
    OP.triton(**kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = OP.triton(**kwargs)
    kwargs["x"].copy_(torch.randn(kwargs["x"].shape, device=DEVICE, generator=generator))
    graph.replay()
    truth = run(OP.reference, widened(kwargs))
    check({"output 0": out}, truth, OP.tolerance[torch.bfloat16])
