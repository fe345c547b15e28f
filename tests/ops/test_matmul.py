"""matmul, its fp8 form and its quantisation: the formulas written out a second time, refusals, what is particular."""

import math
from typing import Any

import pytest
import torch

from bench.kernels.matmul import OP
from bench.kernels.matmul import TILES as POINTER_TILES
from bench.kernels.matmul_fp8 import FP8
from bench.kernels.matmul_fp8 import OP as FP8_OP
from bench.kernels.matmul_persistent import TILES, cheapest
from bench.kernels.op import Op, assume, relative_error, widened
from bench.kernels.quantize_fp8 import OP as QUANTIZE_OP
from bench.kernels.tuning import asked, trying
from tests.ops.harness import CUDA, DEVICE, check_formula, f32

META = torch.device("meta")  # launchers take it for an H100 with its 132 multiprocessors


def brute_matmul(x: Any, weight: Any, bias: Any = None, *, activation: str | None = None) -> torch.Tensor:
    z = (x[..., None, :] * weight).sum(-1) + (0 if bias is None else bias)
    if activation == "silu":
        return z / (1 + (-z).exp())
    if activation == "gelu":
        return z / 2 * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).tanh())
    return z


def brute_fp8(x: Any, weight: Any, x_scale: Any, weight_scale: Any, dtype: Any) -> torch.Tensor:
    return ((x * x_scale)[:, None] * (weight * weight_scale)).sum(-1)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_matmul, shape)


@pytest.mark.parametrize("shape", FP8_OP.test_shapes)
def test_fp8_reference_is_the_formula(shape: str) -> None:
    check_formula(FP8_OP, brute_fp8, shape)


def half(*size: int) -> torch.Tensor:
    return f32(*size).half()


def fp8(*size: int) -> torch.Tensor:
    return f32(*size).to(FP8)


one = f32(1).view(())
REFUSED = {
    "depths differ": (OP, (f32(4, 8), f32(4, 9)), {}),
    "weight not a matrix": (OP, (f32(4, 8), f32(2, 4, 8)), {}),
    "empty": (OP, (f32(0, 8), f32(4, 8)), {}),
    "mixed": (OP, (half(4, 8), f32(4, 8)), {}),
    "x by columns": (OP, (f32(8, 4).t(), f32(4, 8)), {}),
    "rows that do not merge": (OP, (f32(3, 4, 8).transpose(0, 1), f32(4, 8)), {}),
    "strided weight": (OP, (f32(4, 8), f32(4, 16)[:, ::2]), {}),
    "bias of x's width": (OP, (f32(4, 8), f32(5, 8), f32(8)), {}),
    "fp32 bias": (OP, (half(4, 8), half(5, 8), f32(5)), {}),
    "bias elsewhere": (OP, (f32(4, 8), f32(5, 8), f32(5).to(META)), {}),
    "activation": (OP, (f32(4, 8), f32(5, 8)), {"activation": "relu"}),
    "fp8 bytes": (FP8_OP, (fp8(4, 24), fp8(8, 24), one, one), {}),
    "fp8 width": (FP8_OP, (fp8(4, 32), fp8(7, 32), one, one), {}),
    "fp8 by columns": (FP8_OP, (fp8(4, 16), fp8(16, 16).t(), one, one), {}),
    "fp8 one scale of each kind": (FP8_OP, (fp8(4, 16), fp8(8, 16), one, f32(8, 1)), {}),
    "fp8 transposed scale": (FP8_OP, (fp8(4, 16), fp8(8, 16), f32(4, 1), f32(1, 8)), {}),
    "fp8 half scale": (FP8_OP, (fp8(4, 16), fp8(8, 16), one.half(), one), {}),
    "fp8 mixed": (FP8_OP, (half(4, 16), fp8(8, 16), one, one), {}),
    "quantize width": (QUANTIZE_OP, (f32(1, 32769), True), {}),
    "quantize stride": (QUANTIZE_OP, (f32(8, 4).t(), True), {}),
}


@pytest.mark.parametrize(("op", "arguments", "keywords"), REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(op: Op, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(matmul|quantize)\w*: ") as caught:
        op.triton(*arguments, **keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(CUDA, reason="a GPU is its own architecture")
def test_fp8_is_refused_before_sm_90() -> None:
    with assume(80):
        for op in (FP8_OP, QUANTIZE_OP):
            kwargs = op.inputs(op.test_shapes["odd"], torch.float32, DEVICE, torch.Generator(DEVICE))
            with pytest.raises(ValueError, match=r"sm_\d\d or newer"):
                op.triton(**kwargs)


def wrong(x: torch.Tensor, weight: torch.Tensor, bias: Any = None, activation: str | None = None) -> float:
    """Error of the kernel against the formula in float64."""
    y = OP.triton(x, weight, bias, activation=activation)
    wide = widened({"x": x, "weight": weight, "bias": bias})
    return relative_error(y, OP.reference(**wide, activation=activation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_epilogue_without_a_gradient(activation: str | None, dtype: torch.dtype, generator: torch.Generator) -> None:
    """The harness always asks for gradients, and then activations are torch's: here they are the kernel's."""
    kwargs = OP.inputs({"M": 40, "N": 264, "K": 64, "bias": 1}, dtype, DEVICE, generator)
    with torch.no_grad():
        assert wrong(kwargs["x"], kwargs["weight"], kwargs["bias"], activation) <= OP.tolerance[dtype]


@pytest.mark.skipif(CUDA, reason="a GPU is its own architecture")
@pytest.mark.parametrize(
    ("arch", "n", "dtype", "kernel"),
    [
        (90, 136, torch.float16, "matmul.persistent"),
        (90, 135, torch.float16, "matmul.pointer"),  # rows of y are no multiple of 16 bytes
        (90, 136, torch.float32, "matmul.pointer"),
        (80, 136, torch.float16, "matmul.pointer"),
    ],
)
def test_kernel_taken(arch: int, n: int, dtype: torch.dtype, kernel: str) -> None:
    with assume(arch), asked() as kernels:
        OP.triton(f32(3, 16).to(dtype), f32(n, 16).to(dtype))
    assert list(kernels) == [kernel]


VIEWS = {
    "weight by columns": lambda x, w: (x, w.t().contiguous().t()),
    "leading dimensions": lambda x, w: (x.view(2, 3, -1), w),
    "middle of a packed tensor": lambda x, w: (torch.cat((x, x, x), 1)[:, x.shape[1] : 2 * x.shape[1]], w),
    "one row for all": lambda x, w: (x[:1].expand(6, -1), w),
    "a vector": lambda x, w: (x[0], w),
    "unaligned start": lambda x, w: (torch.cat((x[:, :1], x), 1)[:, 1:], w),
    "one output": lambda x, w: (x, w[:1]),
    "depth of one": lambda x, w: (x[:, :1].contiguous(), w[:, :1].contiguous()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(view: Any, generator: torch.Generator) -> None:
    kwargs = OP.inputs({"M": 6, "N": 24, "K": 40}, torch.float16, DEVICE, generator)
    assert wrong(*view(kwargs["x"], kwargs["weight"])) <= OP.tolerance[torch.float16]


@pytest.mark.parametrize("depth", [40, 41])
def test_memory_around_the_operands_is_not_used(depth: int, generator: torch.Generator) -> None:
    """NaN beside the rows, below them and after them: a tile that reads past an end must not add it."""
    kwargs = OP.inputs({"M": 5, "N": 24, "K": depth}, torch.float16, DEVICE, generator)
    x, weight = (torch.full((64, 128), math.nan, dtype=torch.float16, device=DEVICE) for _ in range(2))
    x[:5, :depth], weight[:24, :depth] = kwargs["x"], kwargs["weight"]
    assert wrong(x[:5, :depth], weight[:24, :depth]) <= OP.tolerance[torch.float16]


def test_only_the_gradients_asked_for_are_computed() -> None:
    x, weight, bias = f32(2, 16), f32(8, 16).requires_grad_(), f32(8)
    with asked() as kernels:
        y = OP.triton(x, weight, bias)
        kernels.clear()
        y.sum().backward()  # an expanded gradient
    assert [key[0] for key in kernels.values()] == ["tn"]
    assert torch.equal(weight.grad, x.sum(0).expand(8, -1))


@pytest.mark.parametrize("kernel", OP.candidates)
def test_candidates_are_right(kernel: str, generator: torch.Generator) -> None:
    """What `bench tune` may try computes the same product."""
    kwargs = OP.inputs({"M": 70, "N": 264, "K": 144}, torch.float16, DEVICE, generator)
    with assume(90 if "persistent" in kernel else 80):
        for change in OP.candidates[kernel]:
            with trying(kernel, change), asked() as kernels:
                assert wrong(kwargs["x"], kwargs["weight"]) <= OP.tolerance[torch.float16], change
            assert CUDA or kernel in kernels


@pytest.mark.skipif(CUDA, reason="counts an H100's multiprocessors")
def test_tiles_of_real_shapes() -> None:
    """Large products take the largest tile; decoding takes narrow ones, so that every multiprocessor has one."""
    assert cheapest(8192, 4096, TILES, META)[:2] == (128, 256)
    assert cheapest(8192, 128256, POINTER_TILES, META)[:2] == (128, 256)
    for width in (4096, 6144, 28672):
        bm, bn = cheapest(64, width, TILES, META)[:2]
        assert bm == 64 and width / bn >= 90
    assert cheapest(1, 4096, POINTER_TILES, META)[:2] == (16, 32)


def test_rows_of_zeros_quantise_to_zeros() -> None:
    for rowwise in (True, False):
        q, scale = QUANTIZE_OP.triton(f32(3, 64) * 0, rowwise)
        assert not q.float().any() and (scale > 0).all() and scale.isfinite().all()


def test_quantised_numbers_are_torch_s(generator: torch.Generator) -> None:
    """Every binary order from e4m3's largest to below its least, ties among them, to the same number as torch's."""
    x = torch.randn((4, 512), device=DEVICE, generator=generator) * 2.0 ** -torch.arange(512, device=DEVICE).div(24)
    steps = torch.arange(512, device=DEVICE) / 2.0
    x = torch.cat((x, steps[None]))
    x[:, 0] = 448  # the scale is then exactly 1
    q, scale = QUANTIZE_OP.triton(x, True)
    assert (scale == 1).all() and torch.equal(q.float(), x.to(FP8).float())
    assert torch.equal(q.float().abs().amax(1), torch.full((5,), 448.0, device=DEVICE))


def test_error_of_quantisation_can_fail(generator: torch.Generator) -> None:
    kwargs = QUANTIZE_OP.inputs(QUANTIZE_OP.test_shapes["rowwise"], torch.float32, DEVICE, generator)
    q, scale = QUANTIZE_OP.reference(**kwargs)
    wide, allowed = widened(kwargs), QUANTIZE_OP.tolerance[torch.float32]
    assert QUANTIZE_OP.error((q, scale), wide) <= allowed
    step, poisoned = q.clone(), q.clone()
    step.view(torch.uint8)[0, 0] += 1
    poisoned[-1, -1] = math.nan
    for damaged in ((step, scale), (poisoned, scale), (q, scale * 1.00001), (q, scale.mean())):
        assert not QUANTIZE_OP.error(damaged, wide) <= allowed


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: graphs are CUDA's")
def test_replay_in_a_cuda_graph(generator: torch.Generator) -> None:
    kwargs = OP.inputs({"M": 4, "N": 512, "K": 256}, torch.bfloat16, DEVICE, generator)
    x, weight = kwargs["x"], kwargs["weight"]
    OP.triton(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = OP.triton(x, weight)
    x.copy_(torch.randn(x.shape, device=DEVICE, generator=generator))
    graph.replay()
    assert relative_error(y, OP.reference(x.double(), weight.double())) <= OP.tolerance[torch.bfloat16]


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Rather than silently zero."""
    x = f32(2, 8).requires_grad_()
    y = OP.triton(x, f32(4, 8))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
