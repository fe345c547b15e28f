"""One benchmark an op, backend and shape: `make perf`, or `pytest tests/perf --benchmark-only`.

On a GPU: bfloat16, the shapes of real models, every backend, forward and forward + backward. On a CPU: the
reference at the small shapes, so that the file is exercised where there is no GPU. Each round ends in a
synchronise, so a round is the time from the call to the last result, launch included; what `bench` reports
is measured apart, with CUDA events. The rate against the least traffic and the FLOPs stands in `extra_info`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.kernels.op import Op, compiled, discover, why_not

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
BACKENDS = ("reference", "compile", "triton") if CUDA else ("reference",)
OPS = discover()


def shapes(op: Op) -> Any:
    return op.shapes if CUDA else op.test_shapes


def forward(op: Op, backend: str, kwargs: dict[str, Any]) -> Callable[[], None]:
    call = compiled(backend, op.triton if backend == "triton" else op.reference)

    @torch.no_grad()
    def step() -> None:
        call(**kwargs)

    return step


def forward_backward(op: Op, backend: str, kwargs: dict[str, Any]) -> Callable[[], None]:
    leaves = [name for name in op.differentiable if kwargs[name] is not None]
    kwargs = kwargs | {name: kwargs[name].detach().requires_grad_() for name in leaves}
    call = compiled(backend, op.triton if backend == "triton" else op.reference)

    def as_tuple() -> tuple[torch.Tensor, ...]:
        outputs = call(**kwargs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    # a loss brings 1; every other output a gradient made once, outside the timed step
    pull = [torch.ones_like(x) if x.dim() == 0 else torch.randn_like(x) for x in as_tuple()]

    def step() -> None:
        torch.autograd.grad(as_tuple(), [kwargs[name] for name in leaves], pull)

    return step


PASSES = {"forward": forward, "forward_backward": forward_backward}
CASES = [
    pytest.param(name, part, backend, shape, id=f"{name}-{part}-{backend}-{shape}")
    for name, op in OPS.items()
    for part in PASSES
    if part == "forward" or op.differentiable
    for backend in BACKENDS
    for shape in shapes(op)
]


@pytest.mark.parametrize(("name", "part", "backend", "shape"), CASES)
def test_perf(benchmark: Any, name: str, part: str, backend: str, shape: str) -> None:
    reason = why_not(backend)
    assert reason is None, reason
    # torch.compile keeps at most 8 variants of a function and would then run it uncompiled
    torch.compiler.reset()
    op = OPS[name]
    sizes = shapes(op)[shape]
    generator = torch.Generator(DEVICE).manual_seed(0)
    step = PASSES[part](op, backend, op.inputs(sizes, DTYPE, DEVICE, generator))

    def synchronised() -> None:
        step()
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"{name} {part} {shape}"
    benchmark.pedantic(synchronised, rounds=50 if CUDA else 5, warmup_rounds=5 if CUDA else 1)
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if CUDA else "cpu"
    if part == "forward" and not benchmark.disabled:
        best = benchmark.stats.stats.min
        benchmark.extra_info["gigabytes_per_s"] = op.bytes(sizes, DTYPE.itemsize) / best / 1e9
        benchmark.extra_info["teraflops_per_s"] = op.flops(sizes) / best / 1e12
