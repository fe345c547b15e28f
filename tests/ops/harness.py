"""What every op's tests share: devices, dtypes, poisoned memory, and the comparison with the float64 oracle.

Without a GPU the kernels run in Triton's interpreter, in float32 and float16 (its bfloat16 arithmetic is
wrong). With one they run for real, in bfloat16 too and at the shapes of real models. What must hold is
always the tolerance that the op's own file states.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.kernels.op import Op, mapped, output_errors, owned, relative_error, tensors, widened

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if CUDA else ())
SEED = 7


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New buffers hold NaN (or, of whole numbers, garbage), so an element no kernel wrote cannot look right."""
    kept = {name: getattr(torch, name) for name in ("empty", "empty_like")}

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = make(*args, **kwargs)
            return x.fill_(math.nan if x.is_floating_point() else 85)

        return made

    for name, make in kept.items():
        setattr(torch, name, poison(make))
    try:
        yield
    finally:
        for name, make in kept.items():
            setattr(torch, name, make)


def fresh_generator() -> torch.Generator:
    """Other numbers in every run; a failing test prints its seed."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator(DEVICE).manual_seed(seed)


def run(
    function: Callable[..., Any], kwargs: dict[str, Any], differentiable: tuple[str, ...] = (), seed: int = SEED
) -> dict[str, Any]:
    """Outputs and gradients by name, for output gradients that are the same for every dtype."""
    leaves = [name for name in differentiable if kwargs.get(name) is not None]
    kwargs = kwargs | {name: kwargs[name].detach().requires_grad_() for name in leaves}
    outputs = tensors(function(**kwargs))
    results: dict[str, Any] = {f"output {index}": value for index, value in enumerate(outputs)}
    if leaves:
        random = torch.Generator(DEVICE).manual_seed(seed)
        outputs = [x for x in outputs if x.requires_grad]
        # rounded to bfloat16, so that every dtype sees exactly these numbers
        pull = [torch.randn(x.shape, device=DEVICE, generator=random).bfloat16() for x in outputs]
        pull = [gradient.to(x.dtype) for gradient, x in zip(pull, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, [kwargs[name] for name in leaves], pull)
        results |= {f"d{name}": value for name, value in zip(leaves, gradients, strict=True)}
    return results


def check(results: dict[str, Any], truth: dict[str, Any], tolerance: float) -> None:
    """Every result within tolerance of its truth; whole numbers exactly. NaN fails, so an unwritten element does."""
    assert results.keys() == truth.keys()
    errors = {name: relative_error(value, truth[name]) for name, value in results.items()}
    assert all(error <= tolerance for error in errors.values()), errors


def copied(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with memory of their own, for ops that write in place. Strides are kept."""
    return {name: mapped(lambda x: x.detach().clone(), value) for name, value in kwargs.items()}


def compare(op: Op, side: str, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    """One side of the op against its reference in float64, outputs and gradients."""
    wide = widened(kwargs)
    results = run(getattr(op, side), owned(op, kwargs), op.differentiable)
    if op.error is not None:
        outputs = tuple(value for name, value in results.items() if name.startswith("output"))
        (error,) = output_errors(op, kwargs, outputs, None)
        assert error <= op.tolerance[dtype], error
    else:
        check(results, run(op.reference, wide, op.differentiable), op.tolerance[dtype])
    for name in op.differentiable:
        if kwargs.get(name) is not None:
            assert results[f"d{name}"].dtype == kwargs[name].dtype


def check_formula(op: Op, written_out: Callable[..., Any], shape: str) -> None:
    """The op's reference against the formula written out a second time, in float64."""
    kwargs = widened(op.inputs(op.test_shapes[shape], torch.float64, DEVICE, fresh_generator()))
    check(run(op.reference, copied(kwargs)), run(written_out, copied(kwargs)), tolerance=1e-12)


def f32(*size: int) -> torch.Tensor:
    return torch.ones(size, device=DEVICE)


def long(*size: int) -> torch.Tensor:
    return torch.ones(size, device=DEVICE, dtype=torch.int64)


def far_heads(x: torch.Tensor) -> torch.Tensor:
    """x with its heads, the dimension before the last, 2³⁰ elements apart: the third is past 32 bits.

    Untouched memory costs nothing on a CPU; the 2³¹ elements before x are where a wrapped offset would lead.
    """
    memory = torch.empty_strided((2**32 + 2**16,), (1,), dtype=x.dtype, device=x.device)
    outer, step = [], x.shape[-1]
    for size in reversed(x.shape[:-2]):
        outer.insert(0, step)
        step *= size
    assert step <= 2**12 and x.shape[-2] == 3
    return memory[2**31 :].as_strided(x.shape, (*outer, 2**30 + 1024, 1)).copy_(x)
