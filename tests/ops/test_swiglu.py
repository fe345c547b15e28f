"""swiglu: its formula written out a second time, what its launcher refuses, what is particular to it."""

from typing import Any

import pytest
import torch

from bench.kernels.swiglu import OP
from bench.kernels.tuning import trying
from tests.ops.harness import DEVICE, check_formula, compare, f32


def brute_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    half = gate_up.shape[-1] // 2
    return torch.stack([row[:half] / (1 + (-row[:half]).exp()) * row[half:] for row in gate_up])


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_swiglu, shape)


REFUSED = {
    "swiglu odd width": (f32(2, 7),),
    "swiglu stride": (f32(8, 8).t(),),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^swiglu: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy, in the interpreter
def test_swiglu_of_extreme_gates() -> None:
    gate_up = torch.tensor([[-200.0, -88.0, 0.0, 88.0, 200.0, *[2.0] * 5]], device=DEVICE)
    out = OP.triton(gate_up)
    assert torch.allclose(out, torch.tensor([[0.0, 0, 0, 176, 400]], device=DEVICE), atol=1e-30)


@pytest.mark.parametrize("change", OP.candidates["swiglu.forward"], ids=str)
def test_every_candidate_covers_every_element(change: dict[str, int], generator: torch.Generator) -> None:
    kwargs = OP.inputs({"tokens": 9, "F": 1160}, torch.float32, DEVICE, generator)
    with trying("swiglu.forward", change), trying("swiglu.backward", change):
        compare(OP, "triton", kwargs, torch.float32)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Rather than silently zero."""
    x = f32(2, 8).requires_grad_()
    y = OP.triton(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
