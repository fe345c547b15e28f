"""cross_entropy: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import pytest
import torch

from bench.kernels.cross_entropy import OP
from bench.kernels.op import widened
from tests.ops.harness import DEVICE, check, check_formula, f32, long, run


def brute_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = [
        -torch.log(row[target].exp() / row.exp().sum())
        for row, target in zip(logits, targets.tolist(), strict=True)
        if target != -100
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_cross_entropy, shape)


REFUSED = {
    "cross_entropy targets int32": (f32(2, 4), long(2).int()),
    "cross_entropy rows": (f32(2, 4), long(3)),
    "cross_entropy stride": (f32(4, 4).t(), long(4)),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^cross_entropy: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


def test_cross_entropy_refuses_a_second_backward() -> None:
    logits = f32(2, 8).requires_grad_()
    loss = OP.triton(logits, long(2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cross_entropy_keeps_its_logits_and_takes_minus_infinity(
    generator: torch.Generator,
) -> None:
    """A vocabulary masked with -inf over a whole chunk, in a slice with a row stride of its own."""
    wide = torch.randn((3, 9016), device=DEVICE, generator=generator)
    wide[:, :8192] = -math.inf
    kwargs = {"logits": wide[:, :9001], "targets": long(3) * 9000}
    truth = run(OP.reference, widened(kwargs), ("logits",), seed=7)
    before = wide.clone()
    check(run(OP.triton, kwargs, ("logits",), seed=7), truth, OP.tolerance[torch.float32])
    assert torch.equal(wide, before)


@pytest.mark.parametrize("target", [-1, 8, 10**9])
def test_cross_entropy_of_a_foreign_target_is_nan(target: int) -> None:
    assert OP.triton(f32(2, 8), long(2) * target).isnan()


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")
def test_cross_entropy_of_ignored_rows_alone_is_nan_as_in_torch() -> None:
    logits = f32(2, 8).requires_grad_()
    loss = OP.triton(logits, long(2) * -100)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isnan() and not gradient.any()


def test_cross_entropy_prepares_no_gradient_under_no_grad(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leaf that has a gradient at other times: no buffer the size of the logits."""
    logits = torch.randn((3, 700), device=DEVICE, generator=generator).requires_grad_()
    monkeypatch.setattr(torch, "empty_like", None)
    with torch.no_grad():
        loss = OP.triton(logits, long(3))
    torch.testing.assert_close(loss, OP.reference(logits.detach(), long(3)))


def test_cross_entropy_of_maxima_in_any_lane(generator: torch.Generator) -> None:
    """Each thread keeps a maximum of its own: a peak at any place, and runs that saw only -inf."""
    logits = torch.full((40, 40_000), -math.inf, device=DEVICE)
    places = torch.randint(40_000, (40, 3), device=DEVICE, generator=generator)
    logits.scatter_(1, places, 80 * torch.rand((40, 3), device=DEVICE, generator=generator))
    kwargs = {"logits": logits, "targets": places[:, 0].contiguous()}
    truth = run(OP.reference, widened(kwargs), ("logits",))
    check(run(OP.triton, kwargs, ("logits",)), truth, OP.tolerance[torch.float32])


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Rather than silently zero."""
    x = f32(2, 8).requires_grad_()
    y = OP.triton(x, long(2))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
