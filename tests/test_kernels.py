"""Every op, on every dtype and small shape, against its float64 reference; and the references themselves.

Without a GPU the kernels run in Triton's interpreter, in float32 and float16 (its bfloat16 arithmetic is
wrong). With one they run for real, in bfloat16 too and at the shapes of real models. What must hold is
always the tolerance that the op's own file states.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.kernels.op import Op, discover, load, names, relative_error, why_not

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if CUDA else ())
OPS = discover()
SMALL = [(name, shape) for name, op in OPS.items() for shape in op.test_shapes]
REAL = [(name, shape) for name, op in OPS.items() for shape in op.shapes] if CUDA else []


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New buffers hold NaN instead of leftovers, so an element no kernel wrote cannot look right."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            return make(*args, **kwargs).fill_(math.nan)

        return made

    for maker in ("empty", "empty_like"):
        monkeypatch.setattr(torch, maker, poison(getattr(torch, maker)))


@pytest.fixture
def generator() -> torch.Generator:
    """Other numbers in every run; a failing test prints its seed."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator(DEVICE).manual_seed(seed)


def widen(value: Any) -> Any:
    wide = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().double() if wide else value


def run(
    function: Callable[..., Any], kwargs: dict[str, Any], differentiable: tuple[str, ...], seed: int
) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name, for output gradients that are the same for every dtype."""
    leaves = [name for name in differentiable if kwargs[name] is not None]
    kwargs = kwargs | {name: kwargs[name].detach().requires_grad_() for name in leaves}
    outputs = function(**kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"output {index}": value for index, value in enumerate(outputs)}
    if leaves:
        random = torch.Generator(DEVICE).manual_seed(seed)
        # rounded to bfloat16, so that every dtype sees exactly these numbers
        pull = [torch.randn(x.shape, device=DEVICE, generator=random).bfloat16() for x in outputs]
        pull = [gradient.to(x.dtype) for gradient, x in zip(pull, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, [kwargs[name] for name in leaves], pull)
        results |= {f"d{name}": value for name, value in zip(leaves, gradients, strict=True)}
    return results


def check(results: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], tolerance: float) -> None:
    assert results.keys() == truth.keys()
    errors = {name: relative_error(value, truth[name]) for name, value in results.items()}
    # NaN compares false, so an unwritten element fails here
    assert all(error <= tolerance for error in errors.values()), errors


def compare(op: Op, side: str, shape: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    kwargs = op.inputs(shape, dtype, DEVICE, generator)
    results = run(getattr(op, side), kwargs, op.differentiable, seed=7)
    wide = {name: widen(value) for name, value in kwargs.items()}
    truth = run(op.reference, wide, op.differentiable, seed=7)
    check(results, truth, op.tolerance[dtype])
    for name in op.differentiable:
        if kwargs[name] is not None:
            assert results[f"d{name}"].dtype == kwargs[name].dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("name", "shape"), SMALL)
@pytest.mark.parametrize("side", ["triton", "reference"])
def test_small_shapes(name: str, shape: str, side: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    compare(OPS[name], side, OPS[name].test_shapes[shape], dtype, generator)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: real shapes take too long interpreted")
@pytest.mark.parametrize(("name", "shape"), REAL)
def test_real_shapes(name: str, shape: str, generator: torch.Generator) -> None:
    try:
        compare(OPS[name], "triton", OPS[name].shapes[shape], torch.bfloat16, generator)
    except torch.cuda.OutOfMemoryError:
        pytest.skip("the float64 reference does not fit this GPU's memory")


# --- the references, against formulas written out a second time -----------------------------------------


def brute_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: Any) -> Any:
    h = x.clone() if residual is None else torch.stack((x, residual)).sum(0)
    y = torch.zeros_like(h)
    for index in range(h[..., 0].numel()):
        row = h.view(-1, h.shape[-1])[index]
        y.view(-1, h.shape[-1])[index] = row * weight / math.sqrt(float(row @ row) / len(row) + eps)
    return y, h


def brute_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    """A rotation of the plane is a product of complex numbers."""

    def turn(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
        turned = torch.einsum("bthd,btd->bthd", turned, torch.complex(cos, sin).expand(len(x), -1, -1))
        return torch.cat((turned.real, turned.imag), -1)

    return turn(q), turn(k)


def brute_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    half = gate_up.shape[-1] // 2
    return torch.stack([row[:half] / (1 + (-row[:half]).exp()) * row[half:] for row in gate_up])


def softmax_average(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weight = ((k @ q) / math.sqrt(len(q))).exp()
    return (weight / weight.sum()) @ v


def brute_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out, group = torch.zeros_like(q), q.shape[2] // k.shape[2]
    for b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = slice(0, t + 1)
        out[b, t, h] = softmax_average(q[b, t, h], k[b, seen, h // group], v[b, seen, h // group])
    return out


def brute_decode_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    out, group = torch.zeros_like(q), q.shape[1] // k_cache.shape[2]
    for b, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:2])).tolist():
        k, v = (cache[b, : int(lengths[b]), h // group] for cache in (k_cache, v_cache))
        out[b, h] = softmax_average(q[b, h], k, v)
    return out


def brute_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = [
        -torch.log(row[target].exp() / row.exp().sum())
        for row, target in zip(logits, targets.tolist(), strict=True)
        if target != -100
    ]
    return sum(losses) / len(losses)


BRUTE = {
    "rms_norm": brute_rms_norm,
    "rope": brute_rope,
    "swiglu": brute_swiglu,
    "attention": brute_attention,
    "decode_attention": brute_decode_attention,
    "cross_entropy": brute_cross_entropy,
}


@pytest.mark.parametrize(("name", "shape"), [case for case in SMALL if case[0] in BRUTE])
def test_reference_is_the_formula(name: str, shape: str, generator: torch.Generator) -> None:
    op = OPS[name]
    kwargs = op.inputs(op.test_shapes[shape], torch.float64, DEVICE, generator)
    kwargs = {key: widen(value) for key, value in kwargs.items()}
    written_out = run(BRUTE[name], kwargs, (), seed=7)
    check(run(op.reference, kwargs, (), seed=7), written_out, tolerance=1e-12)


# --- the check can fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("damage", ["scaled", "one NaN", "unwritten", "wrong shape"])
def test_a_broken_kernel_is_caught(name: str, damage: str, generator: torch.Generator) -> None:
    op = OPS[name]
    kwargs = op.inputs(next(iter(op.test_shapes.values())), torch.float32, DEVICE, generator)
    truth = run(op.reference, {key: widen(value) for key, value in kwargs.items()}, (), seed=7)
    results = run(op.reference, kwargs, (), seed=7)
    check(results, truth, op.tolerance[torch.float32])
    broken = results["output 0"].clone()
    if damage == "scaled":
        broken *= 1 + 1e-4
    elif damage == "one NaN":
        broken.view(-1)[-1] = math.nan
    elif damage == "unwritten":
        broken = torch.empty_like(broken)
    else:
        broken = broken[None]
    with pytest.raises((AssertionError, ValueError)):
        check(results | {"output 0": broken}, truth, op.tolerance[torch.float32])


# --- launchers refuse what their kernels cannot do ------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_foreign_dtypes_are_refused(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    op = OPS[name]
    kwargs = op.inputs(next(iter(op.test_shapes.values())), torch.float32, DEVICE, generator)
    tensors = {key: value for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    wide = {key: value.to(dtype) for key, value in tensors.items() if value.is_floating_point()}
    with pytest.raises(ValueError, match=f"^{name}: "):
        op.triton(**kwargs | wide)


def f32(*size: int) -> torch.Tensor:
    return torch.ones(size, device=DEVICE)


def long(*size: int) -> torch.Tensor:
    return torch.ones(size, device=DEVICE, dtype=torch.int64)


REFUSED = {
    "rms_norm weight width": ("rms_norm", (f32(3, 8), f32(4), 1e-6)),
    "rms_norm residual shape": ("rms_norm", (f32(3, 8), f32(8), 1e-6, f32(1, 8))),
    "rms_norm residual dtype": ("rms_norm", (f32(3, 8), f32(8), 1e-6, f32(3, 8).half())),
    "rms_norm residual stride": ("rms_norm", (f32(8, 8), f32(8), 1e-6, f32(8, 8).t())),
    "rms_norm column stride": ("rms_norm", (f32(8, 8).t(), f32(8), 1e-6)),
    "rms_norm row strides": ("rms_norm", (f32(5, 4, 3, 8)[:, :3], f32(8), 1e-6)),
    "rms_norm too wide": ("rms_norm", (f32(1, 32769), f32(32769), 1e-6)),
    "rope odd head": ("rope", (f32(1, 2, 2, 5), f32(1, 2, 1, 5), f32(1, 2, 2), f32(1, 2, 2))),
    "rope short table": ("rope", (f32(1, 2, 2, 4), f32(1, 2, 1, 4), f32(1, 1, 2), f32(1, 1, 2))),
    "rope table batch": ("rope", (f32(3, 2, 2, 4), f32(3, 2, 1, 4), f32(2, 2, 2), f32(2, 2, 2))),
    "rope half table": (
        "rope",
        (f32(1, 2, 2, 4), f32(1, 2, 1, 4), f32(1, 2, 2).half(), f32(1, 2, 2).half()),
    ),
    "swiglu odd width": ("swiglu", (f32(2, 7),)),
    "swiglu stride": ("swiglu", (f32(8, 8).t(),)),
    "attention head dim": ("attention", (f32(1, 2, 2, 24),) * 3),
    "attention groups": ("attention", (f32(1, 2, 3, 16), f32(1, 2, 2, 16), f32(1, 2, 2, 16))),
    "attention lengths": ("attention", (f32(1, 2, 2, 16), f32(1, 3, 2, 16), f32(1, 3, 2, 16))),
    "attention mixed": ("attention", (f32(1, 2, 2, 16).half(), *(f32(1, 2, 2, 16),) * 2)),
    "attention stride": ("attention", (f32(1, 2, 16, 16).transpose(2, 3),) * 3),
    "decode lengths int64": (
        "decode_attention",
        (f32(1, 2, 16), f32(1, 4, 2, 16), f32(1, 4, 2, 16), long(1)),
    ),
    "decode batch": (
        "decode_attention",
        (f32(2, 2, 16), f32(1, 4, 2, 16), f32(1, 4, 2, 16), long(2).int()),
    ),
    "cross_entropy targets int32": ("cross_entropy", (f32(2, 4), long(2).int())),
    "cross_entropy rows": ("cross_entropy", (f32(2, 4), long(3))),
    "cross_entropy stride": ("cross_entropy", (f32(4, 4).t(), long(4))),
}


@pytest.mark.parametrize(("name", "arguments"), REFUSED.values(), ids=REFUSED)
def test_launchers_refuse(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        OPS[name].triton(*arguments)
    assert "\n" not in str(caught.value)


# --- what is particular to one op -----------------------------------------------------------------------


@pytest.mark.parametrize("used", ["y", "h", "both"])
@pytest.mark.parametrize("fused", [True, False])
def test_rms_norm_outputs_used_alone(used: str, fused: bool, generator: torch.Generator) -> None:
    op = OPS["rms_norm"]
    shape = {"tokens": 5, "hidden": 64, "residual": int(fused)}
    kwargs = op.inputs(shape, torch.float32, DEVICE, generator)

    def only(function: Callable[..., Any]) -> Callable[..., Any]:
        picked = {"y": slice(0, 1), "h": slice(1, 2), "both": slice(0, 2)}[used]
        return lambda **arguments: function(**arguments)[picked]

    leaves = ("x", "residual") if used == "h" else op.differentiable
    truth = run(only(op.reference), {k: widen(v) for k, v in kwargs.items()}, leaves, seed=7)
    check(run(only(op.triton), kwargs, leaves, seed=7), truth, op.tolerance[torch.float32])


def test_rms_norm_takes_heads_of_a_packed_projection(generator: torch.Generator) -> None:
    op = OPS["rms_norm"]
    packed = torch.randn((2, 7, 6, 64), device=DEVICE, generator=generator)
    weight = torch.randn(64, device=DEVICE, generator=generator)
    kwargs = {"x": packed[:, :, 1:4], "weight": weight, "eps": 1e-6}
    truth = run(op.reference, {k: widen(v) for k, v in kwargs.items()}, ("x", "weight"), seed=7)
    check(run(op.triton, kwargs, ("x", "weight"), seed=7), truth, op.tolerance[torch.float32])


def test_rope_leaves_its_inputs_alone(generator: torch.Generator) -> None:
    op = OPS["rope"]
    kwargs = op.inputs(op.test_shapes["odd"], torch.float32, DEVICE, generator)
    before = {key: value.clone() for key, value in kwargs.items()}
    op.triton(**kwargs)
    assert all(torch.equal(kwargs[key], before[key]) for key in kwargs)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy, in the interpreter
def test_swiglu_of_extreme_gates() -> None:
    gate_up = torch.tensor([[-200.0, -88.0, 0.0, 88.0, 200.0, *[2.0] * 5]], device=DEVICE)
    out = OPS["swiglu"].triton(gate_up)
    assert torch.allclose(out, torch.tensor([[0.0, 0, 0, 176, 400]], device=DEVICE), atol=1e-30)


@pytest.mark.parametrize("length", [1, 64, 65, 1023])
def test_decode_never_reads_the_unused_cache(length: int, generator: torch.Generator) -> None:
    """A length of 1 leaves all splits but the first empty."""
    op = OPS["decode_attention"]
    kwargs = op.inputs(op.test_shapes["splits"], torch.float32, DEVICE, generator)
    kwargs["lengths"].fill_(length)
    truth = run(op.reference, {key: widen(value) for key, value in kwargs.items()}, (), seed=7)
    for cache in ("k_cache", "v_cache"):
        kwargs[cache][:, length:] = math.nan
    check(run(op.triton, kwargs, (), seed=7), truth, op.tolerance[torch.float32])


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: CUDA graphs")
def test_decode_replays_in_a_cuda_graph(generator: torch.Generator) -> None:
    """Longer sequences in a captured graph: lengths are read on the device, at replay."""
    op = OPS["decode_attention"]
    kwargs = op.inputs(op.test_shapes["ragged"], torch.bfloat16, DEVICE, generator)
    op.triton(**kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op.triton(**kwargs)
    kwargs["lengths"].fill_(333)
    graph.replay()
    assert torch.equal(out, op.triton(**kwargs))


def test_cross_entropy_refuses_a_second_backward() -> None:
    logits = f32(2, 8).requires_grad_()
    loss = OPS["cross_entropy"].triton(logits, long(2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cross_entropy_keeps_its_logits_and_takes_minus_infinity(
    generator: torch.Generator,
) -> None:
    """A vocabulary masked with -inf over a whole chunk, in a slice with a row stride of its own."""
    op = OPS["cross_entropy"]
    wide = torch.randn((3, 9016), device=DEVICE, generator=generator)
    wide[:, :8192] = -math.inf
    kwargs = {"logits": wide[:, :9001], "targets": long(3) * 9000}
    truth = run(op.reference, {k: widen(v) for k, v in kwargs.items()}, ("logits",), seed=7)
    before = wide.clone()
    check(run(op.triton, kwargs, ("logits",), seed=7), truth, op.tolerance[torch.float32])
    assert torch.equal(wide, before)


@pytest.mark.parametrize("target", [-1, 8, 10**9])
def test_cross_entropy_of_a_foreign_target_is_nan(target: int) -> None:
    assert OPS["cross_entropy"].triton(f32(2, 8), long(2) * target).isnan()


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")
def test_cross_entropy_of_ignored_rows_alone_is_nan_as_in_torch() -> None:
    logits = f32(2, 8).requires_grad_()
    loss = OPS["cross_entropy"].triton(logits, long(2) * -100)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isnan() and not gradient.any()


# --- records --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_record_is_complete(name: str) -> None:
    op = OPS[name]
    assert op.shapes and "odd" in op.test_shapes
    for shape in (*op.shapes.values(), *op.test_shapes.values()):
        assert op.flops(shape) > 0
        assert op.bytes(shape, 4) > op.bytes(shape, 2) > 0


def test_backends_load_one_callable_an_op() -> None:
    assert why_not("triton") is None, "set TRITON_INTERPRET=1 before triton is imported, or use a GPU"
    for backend, side in (("reference", "reference"), ("compile", "reference"), ("triton", "triton")):
        ops = load(backend)
        assert vars(ops) == {name: getattr(OPS[name], side) for name in names()}
    with pytest.raises(RuntimeError, match="unknown backend 'cuda'"):
        load("cuda")
