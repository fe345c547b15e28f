"""What the machine can do at best, measured in the same run: a large copy, a large read, cuBLAS.

cuBLAS runs at the large square that stands for every op, and at the sizes of every op that is one matmul, in the
precision of its activations. Random data, never zeros: zeros draw less power and run faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from bench.kernel_results import LARGE_MATMUL
from bench.kernels.op import Shape
from tests.perf.cases import CUDA, DEVICE, DTYPE, OPS, Case, dtype_of, shapes
from tests.perf.machine import PRECISION
from tests.perf.running import Plan
from tests.perf.timing import sets

COPY_BYTES = (2 << 30) if CUDA else (16 << 20)
LARGE = LARGE_MATMUL if CUDA else "256x256x256"
DTYPES = {PRECISION[dtype]: dtype for dtype in (DTYPE, torch.float8_e4m3fn)}


def size_of(shape: Shape) -> str | None:
    """M x N x K of an op that is one matmul, else None: a grouped one has experts, E."""
    single = {"M", "N", "K"} <= shape.keys() and "E" not in shape
    return "x".join(str(shape[name]) for name in "MNK") if single else None


@cache
def sizes() -> Mapping[tuple[str, str], str]:
    """(op, shape) -> M x N x K, of the ops that are one matmul."""
    found = {(name, key): size_of(shape) for name, op in OPS.items() for key, shape in shapes(op).items()}
    return {key: size for key, size in found.items() if size}


def cases(chosen: list[str]) -> list[tuple[Case, str]]:
    """Every ceiling and its precision."""
    usual = PRECISION[DTYPE]
    fast = CUDA and torch.cuda.get_device_capability() >= (8, 9)
    usable = {usual, "fp8"} if fast else {usual}
    matmuls = {(dtype, LARGE) for dtype in usable}
    for (name, key), size in sizes().items():
        if name in chosen:
            meta = OPS[name].inputs(shapes(OPS[name])[key], DTYPE, torch.device("meta"), torch.Generator())
            matmuls |= {(dtype_of(meta), size)} & {(dtype, size) for dtype in usable}
    found = [(Case(op, "ceiling", str(COPY_BYTES), "torch"), usual) for op in ("copy", "read")]
    for dtype, size in sorted(matmuls):
        found.append((Case("cublas", "ceiling", size, "torch" if dtype == usual else f"torch {dtype}"), dtype))
    return found


def plan(case: Case, dtype: str) -> Plan:
    """The steps of a ceiling."""
    if case.op != "cublas":
        return _stream_plan(case, dtype)
    m, n, k = (int(size) for size in case.shape.split("x"))
    kind = DTYPES[dtype]
    traffic = kind.itemsize * (m * k + k * n) + DTYPE.itemsize * m * n
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=DEVICE, generator=generator).to(kind)

    pairs = [(draw(m, k), draw(n, k).t()) for _ in range(sets(traffic))]
    one = torch.ones((), device=DEVICE)

    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if kind == DTYPE:
            return torch.mm(a, b)
        return torch._scaled_mm(a, b, one, one, out_dtype=DTYPE, use_fast_accum=True)

    steps = [lambda pair=pair: multiply(*pair) for pair in pairs]
    return Plan(steps, {"dtype": dtype, "flops": 2.0 * m * n * k, "bytes": float(traffic)})


def _stream_plan(case: Case, dtype: str) -> Plan:
    """A copy reads and writes its bytes; a reduction reads them and writes next to nothing."""
    size = int(case.shape)
    source = torch.randn(size // DTYPE.itemsize, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source) if case.op == "copy" else None
    steps = [lambda: target.copy_(source) if target is not None else source.amax()]
    return Plan(steps, {"dtype": dtype, "flops": None, "bytes": float(size * (2 if case.op == "copy" else 1))})
