"""rope: its formula written out a second time, what its launcher refuses, what is particular to it."""

from typing import Any

import pytest
import torch

from bench.kernels.rope import OP
from tests.ops.harness import DEVICE, check_formula, f32, far_heads


def brute_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    """A rotation of the plane is a product of complex numbers."""

    def turn(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
        turned = torch.einsum("bthd,btd->bthd", turned, torch.complex(cos, sin).expand(len(x), -1, -1))
        return torch.cat((turned.real, turned.imag), -1)

    return turn(q), turn(k)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_rope, shape)


REFUSED = {
    "rope odd head": (f32(1, 2, 2, 5), f32(1, 2, 1, 5), f32(1, 2, 2), f32(1, 2, 2)),
    "rope short table": (f32(1, 2, 2, 4), f32(1, 2, 1, 4), f32(1, 1, 2), f32(1, 1, 2)),
    "rope table batch": (f32(3, 2, 2, 4), f32(3, 2, 1, 4), f32(2, 2, 2), f32(2, 2, 2)),
    "rope half table": (f32(1, 2, 2, 4), f32(1, 2, 1, 4), f32(1, 2, 2).half(), f32(1, 2, 2).half()),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^rope: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


def test_offsets_of_heads_pass_32_bits(generator: torch.Generator) -> None:
    shape = {"B": 1, "T": 4, "nq": 3, "nkv": 3, "d": 16}
    kwargs = OP.inputs(shape, torch.float16, DEVICE, generator)
    far = OP.triton(**kwargs | {"q": far_heads(kwargs["q"])})
    assert all(map(torch.equal, far, OP.triton(**kwargs)))


def test_a_second_derivative_is_refused(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["odd"], torch.float32, DEVICE, generator)
    q = kwargs["q"] = kwargs["q"].clone().requires_grad_()
    (dq,) = torch.autograd.grad(OP.triton(**kwargs)[0].square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_rope_leaves_its_inputs_alone(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["odd"], torch.float32, DEVICE, generator)
    before = {key: value.clone() for key, value in kwargs.items()}
    OP.triton(**kwargs)
    assert all(torch.equal(kwargs[key], before[key]) for key in kwargs)
