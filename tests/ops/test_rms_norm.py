"""rms_norm: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.kernels.op import widened
from bench.kernels.rms_norm import OP
from tests.ops.harness import DEVICE, check, check_formula, f32, run


def brute_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: Any) -> Any:
    h = x.clone() if residual is None else torch.stack((x, residual)).sum(0)
    y = torch.zeros_like(h)
    for index in range(h[..., 0].numel()):
        row = h.view(-1, h.shape[-1])[index]
        y.view(-1, h.shape[-1])[index] = row * weight / math.sqrt(float(row @ row) / len(row) + eps)
    return y, h


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_rms_norm, shape)


REFUSED = {
    "rms_norm weight width": (f32(3, 8), f32(4), 1e-6),
    "rms_norm residual shape": (f32(3, 8), f32(8), 1e-6, f32(1, 8)),
    "rms_norm residual dtype": (f32(3, 8), f32(8), 1e-6, f32(3, 8).half()),
    "rms_norm residual stride": (f32(8, 8), f32(8), 1e-6, f32(8, 8).t()),
    "rms_norm column stride": (f32(8, 8).t(), f32(8), 1e-6),
    "rms_norm row strides": (f32(5, 4, 3, 8)[:, :3], f32(8), 1e-6),
    "rms_norm too wide": (f32(1, 32769), f32(32769), 1e-6),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^rms_norm: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("used", ["y", "h", "both"])
@pytest.mark.parametrize("fused", [True, False])
def test_rms_norm_outputs_used_alone(used: str, fused: bool, generator: torch.Generator) -> None:
    shape = {"tokens": 5, "hidden": 64, "residual": int(fused)}
    kwargs = OP.inputs(shape, torch.float32, DEVICE, generator)

    def only(function: Callable[..., Any]) -> Callable[..., Any]:
        picked = {"y": slice(0, 1), "h": slice(1, 2), "both": slice(0, 2)}[used]
        return lambda **arguments: function(**arguments)[picked]

    leaves = ("x", "residual") if used == "h" else OP.differentiable
    truth = run(only(OP.reference), widened(kwargs), leaves, seed=7)
    check(run(only(OP.triton), kwargs, leaves, seed=7), truth, OP.tolerance[torch.float32])


def test_rms_norm_takes_heads_of_a_packed_projection(generator: torch.Generator) -> None:
    packed = torch.randn((2, 7, 6, 64), device=DEVICE, generator=generator)
    weight = torch.randn(64, device=DEVICE, generator=generator)
    kwargs = {"x": packed[:, :, 1:4], "weight": weight, "eps": 1e-6}
    truth = run(OP.reference, widened(kwargs), ("x", "weight"), seed=7)
    check(run(OP.triton, kwargs, ("x", "weight"), seed=7), truth, OP.tolerance[torch.float32])


@pytest.mark.parametrize("hidden", [64, 2880, 16500])
def test_dweight_sums_every_row_once(hidden: int, generator: torch.Generator) -> None:
    """Rows that do not divide among the programs: ones of one sign, so that a row lost or read twice shows."""
    x = torch.ones((101 if hidden < 16384 else 11, hidden), device=DEVICE)
    weight = torch.ones(hidden, device=DEVICE, requires_grad=True)
    y, _ = OP.triton(x, weight, 1e-6)
    (dweight,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    assert torch.allclose(dweight, torch.full_like(dweight, float(len(x))), rtol=1e-5)


def test_rms_norm_backward_is_the_same_every_time(generator: torch.Generator) -> None:
    """Partial sums in one fixed order: gradients are equal to the bit."""
    kwargs = OP.inputs(OP.test_shapes["residual"], torch.float32, DEVICE, generator)
    first, second = (run(OP.triton, kwargs, OP.differentiable, seed=7) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Rather than silently zero."""
    x = f32(2, 8).requires_grad_()
    y = OP.triton(x, f32(8), 1e-6)[0]
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
