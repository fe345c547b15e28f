"""linear_cross_entropy: its formula written out a second time, what its launcher refuses, chunks and memory."""

import math
from typing import Any

import pytest
import torch

from bench.kernels import linear_cross_entropy as module
from bench.kernels.linear_cross_entropy import OP
from bench.kernels.linear_cross_entropy_gemm import _describable
from bench.kernels.op import widened
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, long, run

NAMES = ("hidden", "weight")


def brute(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_rows: int = 0) -> torch.Tensor:
    losses = []
    for h, target in zip(hidden, targets.tolist(), strict=True):
        if target != -100:
            exp = torch.stack([torch.dot(h, w) for w in weight]).exp()
            losses.append(-torch.log(exp[target] / exp.sum()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute, shape)


def drawn(generator: torch.Generator, rows: int, vocabulary: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    return OP.inputs({"N": rows, "V": vocabulary, "H": width}, dtype, DEVICE, generator)


REFUSED = {
    "linear_cross_entropy width": (f32(2, 4), f32(8, 5), long(2)),
    "linear_cross_entropy rows": (f32(2, 4), f32(8, 4), long(3)),
    "linear_cross_entropy dtypes": (f32(2, 4), f32(8, 4).half(), long(2)),
    "linear_cross_entropy targets": (f32(2, 4), f32(8, 4), long(2).int()),
    "linear_cross_entropy stride": (f32(4, 2).t(), f32(8, 4), long(2)),
    "linear_cross_entropy empty": (f32(0, 4), f32(8, 4), long(0)),
    "linear_cross_entropy chunk": (f32(2, 4), f32(8, 4), long(2), 0),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^linear_cross_entropy: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", [("hidden",), ("weight",), ()])
def test_only_what_is_asked_for_is_computed(
    wanted: tuple[str, ...], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gradient without the other's product; none without a chunk in memory."""
    made = []

    def product(kernel: str, *args: Any, **kwargs: Any) -> None:
        made.append(kernel)
        multiply(kernel, *args, **kwargs)

    multiply = module.product
    monkeypatch.setattr(module, "product", product)
    if not wanted:
        monkeypatch.setattr(module, "_chunk_rows", None)
    kwargs = drawn(generator, 9, 150, 24, torch.float32)
    truth = run(OP.reference, widened(kwargs), wanted)
    check(run(OP.triton, kwargs, wanted), truth, OP.tolerance[torch.float32])
    assert made == [f"d{name}" for name in wanted]


def test_no_gradient_is_prepared_under_no_grad(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight is a parameter in evaluation too."""
    monkeypatch.setattr(module, "product", None)
    kwargs = drawn(generator, 9, 150, 24, torch.float32)
    truth = run(OP.reference, widened(kwargs))
    kwargs["weight"].requires_grad_()
    with torch.no_grad():
        check(run(OP.triton, kwargs), truth, OP.tolerance[torch.float32])


def test_memory_beside_the_matrices_is_not_read(generator: torch.Generator) -> None:
    """Hidden states and weight in rows of a wider matrix, which holds NaN around them."""
    kwargs = drawn(generator, 21, 150, 24, torch.float16)
    truth = run(OP.reference, widened(kwargs), NAMES)
    for name in NAMES:
        around = torch.full((kwargs[name].shape[0] + 2, 40), math.nan, dtype=torch.float16, device=DEVICE)
        around[1:-1, 8:32] = kwargs[name]
        kwargs[name] = around[1:-1, 8:32]
    check(run(OP.triton, kwargs | {"chunk_rows": 13}, NAMES), truth, OP.tolerance[torch.float16])


def test_a_sure_models_small_gradient_is_exact(generator: torch.Generator) -> None:
    """Targets far above the rest: p - 1 is small, and p in 16 bits would lose it.

    Rows of one length are equally sure: p - 1 is above what fp16 itself holds only as a subnormal number.
    """
    kwargs = drawn(generator, 4, 300, 32, torch.float16)
    weight = torch.nn.functional.normalize(kwargs["weight"].float(), dim=-1)
    kwargs["weight"], kwargs["hidden"] = weight.half(), (weight[kwargs["targets"]] * 12).half()
    truth = run(OP.reference, widened(kwargs), NAMES)
    assert 1e-3 < truth["output 0"] < 0.1
    check(run(OP.triton, kwargs, NAMES), truth, OP.tolerance[torch.float16])


def test_refuses_a_second_backward(generator: torch.Generator) -> None:
    kwargs = drawn(generator, 3, 8, 16, torch.float32)
    kwargs["hidden"].requires_grad_()
    loss = OP.triton(**kwargs)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("target", [-1, 8, 10**9])
def test_a_foreign_target_is_nan(target: int) -> None:
    assert OP.triton(f32(2, 16), f32(8, 16), long(2) * target).isnan()


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")
def test_ignored_rows_alone_are_nan_as_in_torch() -> None:
    results = run(OP.triton, {"hidden": f32(2, 16), "weight": f32(8, 16), "targets": long(2) * -100}, NAMES)
    assert results["output 0"].isnan()
    assert not results["dhidden"].nan_to_num(nan=0.0).any()


def test_chunks_fill_whole_waves_of_an_h100() -> None:
    """128 rows and 256 columns a tile, 132 multiprocessors: never more than 4% of them idle in dhidden."""
    for tokens, width in ((8192, 4096), (16384, 2048), (8192, 1024), (4096, 8192)):
        rows = module._chunk_rows(tokens, width, torch.device("meta"))
        tiles = rows // 128 * (width // 256)
        assert tiles / (-(-tiles // 132) * 132) > 0.96, (tokens, width, rows)
        assert 1024 <= rows <= 4224


@pytest.mark.skipif(not CUDA, reason="memory is counted by the CUDA allocator")
def test_peak_memory_is_a_fifth_of_torchs(generator: torch.Generator) -> None:
    """The least of what the op is for: 4096 tokens, 128k words, forward and backward, beside the inputs."""
    kwargs = drawn(generator, 4096, 128256, 512, torch.bfloat16)
    peak = {}
    for side in ("reference", "triton"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(getattr(OP, side), kwargs, NAMES)
        peak[side] = torch.cuda.max_memory_allocated() - before
    assert peak["triton"] <= 0.2 * peak["reference"], peak


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Rather than silently zero."""
    x = f32(2, 8).requires_grad_()
    y = OP.triton(x, f32(4, 8), long(2))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_one_row_expanded_to_many(generator: torch.Generator) -> None:
    """Descriptors take no stride of 0."""
    kwargs = drawn(generator, 5, 40, 32, torch.float16)
    kwargs["hidden"] = kwargs["hidden"][:1].expand(5, -1)
    assert not _describable(kwargs["hidden"]) and _describable(kwargs["weight"])
    truth = run(OP.reference, widened(kwargs), NAMES)
    check(run(OP.triton, kwargs, NAMES), truth, OP.tolerance[torch.float16])
