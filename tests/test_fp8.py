"""Projections in fp8: the formula, the rounding it may cost against float64, what reaches torch._scaled_mm."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.kernels import matmul_fp8, quantize_fp8
from bench.kernels.op import load as load_ops
from bench.kernels.op import relative_error
from bench.model.fp8 import STEP, use_fp8
from bench.model.mlp import Mixture
from bench.model.parts import Linear
from bench.model.transformer import Transformer
from tests.architectures import MODELS, shrunk
from tests.test_workloads import make

CPU, FP8 = torch.device("cpu"), torch.float8_e4m3fn
BOTH = pytest.mark.parametrize("scaling", ["rowwise", "tensorwise"])
# Root mean square, relative: e4m3 keeps 4 significant bits, so numbers are off by 2.6% on average and sums of products
# of two of them by 3.7%, whatever the depth; 3.2 to 4.1% measured.
ROUNDING = 0.05
K, N = 64, 96


def numbers(*size: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(scaling: str, backend: str = "reference", bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> Linear:
    layer = Linear(load_ops(backend), K, (N,), {"dtype": dtype}, bias)
    with torch.no_grad():
        layer.weight.copy_(numbers(N, K, dtype=dtype, seed=1) / K**0.5)
        if layer.bias is not None:
            layer.bias.copy_(numbers(N, seed=2))
    use_fp8(layer, scaling)
    return layer


def products(layer: Linear, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """y and the gradients that are asked for."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad} | (
        {} if layer.bias is None else {"db": layer.bias.grad}
    )


def exact(layer: Linear, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same in float64, nothing rounded to fp8."""
    x, w, dy = (t.detach().double() for t in (x, layer.weight, dy))
    rows, pull = x.flatten(0, -2), dy.flatten(0, -2)
    y = x @ w.t() if layer.bias is None else x @ w.t() + layer.bias.detach().double()
    found = {"y": y, "dx": dy @ w, "dw": pull.t() @ rows}
    return found if layer.bias is None else found | {"db": pull.sum(0)}


def rounded(a: torch.Tensor, scaling: str) -> torch.Tensor:
    """a as an operand holds it, in float64: what quantising and scaling back leaves of it."""
    q, scale = quantize_fp8.reference(a, scaling == "rowwise")
    return q.double() * scale.double()


# ---------------------------------------------------------------- the formula and its error


@BOTH
@pytest.mark.parametrize("tokens", [1, 7, 16, 37])
def test_the_three_products_are_the_formula(scaling, tokens):
    """Every operand quantised along the depth of its product, transposes anew: what is kept and turned is the same."""
    layer, x, dy = linear(scaling), numbers(tokens, K), numbers(tokens, N, seed=3)
    q = functools.partial(rounded, scaling=scaling)
    w = layer.weight.detach()
    truth = {"y": q(x) @ q(w).t(), "dx": q(dy) @ q(w.t()).t(), "dw": q(dy.t()) @ q(x.t()).t()}
    for name, value in products(layer, x, dy).items():
        assert value.dtype == torch.bfloat16
        # sums in fp32, one rounding to bf16
        torch.testing.assert_close(value.double(), truth[name], rtol=2**-8, atol=1e-6, msg=name)


@BOTH
@pytest.mark.parametrize("shape", [(1,), (2, 9), (3, 16), (64,), (1, 131)])
def test_errors_against_float64_are_what_rounding_costs(scaling, shape):
    layer, x, dy = linear(scaling, bias=True), numbers(*shape, K), numbers(*shape, N, seed=3)
    found, truth = products(layer, x, dy), exact(layer, x, dy)
    assert found["y"].shape == (*shape, N) and found["dx"].shape == (*shape, K)
    errors = {name: relative_error(value, truth[name]) for name, value in found.items()}
    assert errors.pop("db") < 2**-8  # the bias stays in bf16
    assert max(errors.values()) < ROUNDING, errors
    if shape != (1,):  # a single token's dw is scaled to exactness
        assert min(errors.values()) > 0.025, errors  # fp8 did run


def wrong_scale(x, rowwise):
    q, scale = quantize_fp8.reference(x, rowwise)
    return q, scale * 1.1


def saturating(x, rowwise):
    _, scale = quantize_fp8.reference(x, rowwise)
    return (x.float() / (scale / 2)).clamp(-448, 448).to(FP8), scale / 2


def coarser(x, rowwise):
    q, scale = quantize_fp8.reference(x, rowwise)
    return q.to(torch.float8_e5m2).to(FP8), scale  # two bits


@BOTH
@pytest.mark.parametrize("broken", [wrong_scale, saturating, coarser])
def test_the_bound_catches(scaling, broken):
    layer, x, dy = linear(scaling), numbers(64, K), numbers(64, N, seed=3)
    layer.ops.quantize_fp8 = broken
    found, truth = products(layer, x, dy), exact(layer, x, dy)
    assert min(relative_error(value, truth[name]) for name, value in found.items()) > ROUNDING


# ---------------------------------------------------------------- awkward numbers


def bound(a: torch.Tensor, b: torch.Tensor, scaling: str) -> torch.Tensor:
    """How far a · bᵀ may be off, element by element: half a step of either operand, and bf16's of the result."""
    a, b = a.double(), b.double()

    def half_step(t: torch.Tensor) -> torch.Tensor:
        peak = t.abs().amax(1, keepdim=True) if scaling == "rowwise" else t.abs().amax()
        # 2⁻⁴ of a number's power of two, and of 2⁻⁶ for those below the least normal one
        return torch.maximum(t.abs() * 2**-4, peak / 448 * 2**-10)

    spread = half_step(a) @ b.abs().t() + a.abs() @ half_step(b).t() + half_step(a) @ half_step(b).t()
    return spread * 1.01 + (a @ b.t()).abs() * 2**-8


@BOTH
def test_large_outliers_cost_others_their_bits_and_no_more(scaling):
    layer, x, dy = linear(scaling), numbers(40, K), numbers(40, N, seed=3)
    x[5, 3], x[17, 60], dy[2, 2] = 3e4, -1e5, 1e6
    found, truth = products(layer, x, dy), exact(layer, x, dy)
    w = layer.weight.detach()
    for name, a, b in (("y", x, w), ("dx", dy, w.t()), ("dw", dy.t(), x.t())):
        assert bool(((found[name].double() - truth[name]).abs() <= bound(a, b, scaling)).all()), name
    # a row's own scale keeps the outlier to its row
    others = [n for n in range(40) if n not in (5, 17)]
    inside = relative_error(found["y"][others], truth["y"][others]) < ROUNDING
    assert inside == (scaling == "rowwise")


@BOTH
def test_rows_of_zeros_give_zeros(scaling):
    layer, x, dy = linear(scaling), numbers(20, K), numbers(20, N, seed=3)
    x[4], dy[9] = 0, 0
    found = products(layer, x, dy)
    assert not found["y"][4].any() and not found["dx"][9].any()
    assert all(relative_error(value, exact(layer, x, dy)[name]) < ROUNDING for name, value in found.items())
    nothing = products(linear(scaling), torch.zeros_like(x), torch.zeros_like(dy))
    assert not any(value.any() for value in nothing.values())


def test_a_token_does_not_depend_on_its_neighbours_when_scaled_by_rows():
    layer, x = linear("rowwise"), numbers(37, K)
    assert torch.equal(layer(x)[11:13], layer(x[11:13]))


# ---------------------------------------------------------------- only what is asked for


def counted(layer: Linear) -> list[str]:
    calls: list[str] = []

    def noting(name: str):
        real = getattr(layer.ops, name)
        return lambda *rest: calls.append(name) or real(*rest)

    layer.ops = SimpleNamespace(**{name: noting(name) for name in ("quantize_fp8", "matmul_fp8")})
    return calls


@BOTH
@pytest.mark.parametrize("asked", ["x", "weight", "both", "neither"])
def test_only_gradients_that_are_asked_for_are_computed_and_kept(scaling, asked):
    layer, x = linear(scaling), numbers(32, K).requires_grad_(asked in ("x", "both"))
    layer.weight.requires_grad_(asked in ("weight", "both"))
    calls, kept = counted(layer), []
    use_fp8(layer, scaling)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert (y.grad_fn is None) == (asked == "neither")
    if asked != "neither":
        y.backward(torch.ones_like(y))
    assert (x.grad is not None, layer.weight.grad is not None) == (asked in ("x", "both"), asked in ("weight", "both"))
    assert calls.count("matmul_fp8") == {"x": 2, "weight": 2, "both": 3, "neither": 1}[asked]
    # forward two; backward by rows two a product, tensorwise dy once and the weight once more
    rows, whole = {"x": (4, 4), "weight": (4, 3), "both": (6, 4), "neither": (2, 2)}[asked]
    assert calls.count("quantize_fp8") == (rows if scaling == "rowwise" else whole)
    # of x a byte an element where one scale serves its transpose too; of the weight itself, no copy
    own = [t for t in kept if t.shape == x.shape]
    wanted = [FP8 if scaling == "tensorwise" else torch.bfloat16] if asked in ("weight", "both") else []
    assert [t.dtype for t in own] == wanted
    assert [t.data_ptr() for t in kept if t.shape == (N, K)] == [layer.weight.data_ptr()] * (asked in ("x", "both"))


@pytest.mark.parametrize("key", ["llama_3_1_8b", "deepseek_v3", "gpt_oss_20b"])
def test_projections_of_whole_sixteens_multiply_in_fp8_and_nothing_else(key):
    model = shrunk(MODELS[key], hidden=48, experts=16 if MODELS[key].experts else 0, q_lora_rank=40)
    net = Transformer(
        model, load_ops("reference"), precision="bf16", device=CPU, max_tokens=32, layers=model.distinct_layers
    )
    use_fp8(net, "rowwise")
    routers = {part.router for part in net.modules() if isinstance(part, Mixture)}
    linears = [part for part in net.modules() if isinstance(part, Linear)]
    assert any(part.multiply for part in linears) and not any(part.multiply for part in routers)
    for part in set(linears) - routers:
        assert (part.multiply is not None) == (part.weight.shape[0] % STEP == part.weight.shape[1] % STEP == 0)
    # DeepSeek's query latent is 40 wide here
    assert any(part.multiply is None for part in set(linears) - routers) == (model.attention == "mla")


@BOTH
def test_a_training_cell_checks_its_fp8_gradients(scaling, monkeypatch):
    sizes = {"batch_size": 1, "input_tokens": 40, "precision": "fp8", "fp8_scaling": scaling}
    error, tolerance, _ = make("train_step", **sizes).check()
    bf16, narrow, _ = make("train_step", **sizes | {"precision": "bf16"}).check()
    assert bf16 < narrow < error < tolerance  # fp8 did run
    real = matmul_fp8.reference
    monkeypatch.setattr(
        "bench.model.oracle.load",
        lambda backend: SimpleNamespace(
            **vars(load_ops(backend)) | {"matmul_fp8": lambda a, b, s, *rest: real(a, b, s * 1.5, *rest)}
        ),
    )
    error, tolerance, _ = make("train_step", **sizes).check()
    assert error > tolerance


# ---------------------------------------------------------------- backends


@BOTH
def test_our_kernels_give_the_reference_s_products(scaling):
    """Backend triton, interpreted, in fp32: ratios of bf16 numbers tie, and division and reciprocal part ties."""
    wide = torch.float32
    x, dy = numbers(21, K, dtype=wide), numbers(21, N, dtype=wide, seed=3)
    found = [products(linear(scaling, backend, dtype=wide), x, dy) for backend in ("triton", "reference")]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-5, msg=name)


@BOTH
@pytest.mark.parametrize("tokens", [48, 21])
def test_one_graph_traces_forward_and_backward(scaling, tokens):
    """What backend compile hands the compiler, run as it is traced: no break, the same numbers."""
    x, dy = numbers(1, tokens, K), numbers(1, tokens, N, seed=3)
    eager, layer = products(linear(scaling, bias=True), x, dy), linear(scaling, bias=True)
    layer.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    for name, value in products(layer, x, dy).items():
        assert torch.equal(value, eager[name]), name


@BOTH
@pytest.mark.parametrize("tokens", [64, 21, 1])
def test_on_a_gpu_every_product_is_a_legal_scaled_mm(scaling, tokens, monkeypatch):
    """Tensors without memory that say they lie on a GPU: PyTorch's own checks for CUDA see what backward hands over."""
    layer, given, calls = linear(scaling), [], []
    real = layer.ops.matmul_fp8
    layer.ops.matmul_fp8 = lambda *operands: given.append(operands) or real(*operands)
    products(layer, numbers(tokens, K), numbers(tokens, N, seed=3))
    assert len(given) == 3
    scaled_mm = torch._scaled_mm

    def noting(a, b, scale_a, scale_b, **options):
        calls.append((a, b, scale_a, scale_b, options))
        return scaled_mm(a, b, scale_a, scale_b, **options)

    monkeypatch.setattr(torch, "_scaled_mm", noting)
    with FakeTensorMode():
        for *tensors, dtype in given:
            places = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in tensors]
            y = matmul_fp8.reference(*places, dtype)
            assert y.dtype == torch.bfloat16 and y.shape == (tensors[0].shape[0], tensors[1].shape[0])
    assert len(calls) == 3
    for a, b, scale_a, scale_b, options in calls:
        assert a.dtype == b.dtype == FP8 and a.stride(1) == b.stride(0) == 1
        assert a.shape[1] % STEP == b.shape[0] % STEP == b.shape[1] % STEP == 0
        sizes = ((a.shape[0], 1), (1, b.shape[1])) if scaling == "rowwise" else ((), ())
        assert (scale_a.shape, scale_b.shape) == sizes and scale_a.dtype == scale_b.dtype == torch.float32
        assert options == {"out_dtype": torch.bfloat16, "use_fast_accum": True}


def test_widths_that_scaled_mm_refuses_are_multiplied_in_fp32():
    """264 is what one of the op's test shapes has: a multiple of 8, as our kernel wants it, not of 16."""
    with FakeTensorMode():
        x, weight = (torch.empty(rows, 144, dtype=FP8, device="cuda") for rows in (96, 264))
        scale = torch.empty((), device="cuda")
        with pytest.raises(RuntimeError, match="divisible by 16"):
            torch._scaled_mm(x, weight.t(), scale, scale, out_dtype=torch.bfloat16)
        y = matmul_fp8.reference(x, weight, scale, scale)
        assert y.shape == (96, 264) and y.dtype == torch.bfloat16
