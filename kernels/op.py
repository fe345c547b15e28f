"""What an op is, and how a backend's ops are found and loaded.

An op is the mathematics (RMSNorm); a kernel is one `@triton.jit` function that computes it. Each file in
this folder holds one op: formula, `reference` in plain PyTorch (the specification, the CPU path and, in
float64, the oracle), the Triton kernels, a launcher that checks what it is given, and the record `OP`.
The folder listing is the registry: a file with an `OP` is an op, its stem is its name.

`load(backend)` answers a namespace of callables, so the transformer says `ops.rms_norm(...)` and has no `if`.
Nothing falls back: an unknown backend, or Triton where it cannot run, is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

BACKENDS = ("reference", "compile", "triton")
Shape = Mapping[str, int]


@dataclass(frozen=True)
class Compile:
    """One kernel specialisation to compile ahead of time, with no GPU.

    `signature` maps each run-time argument to its Triton type ("*bf16", "i32", "fp32"); `constexprs` the rest.
    `divisible` names the integer arguments specialised as divisible by 16 (pointers always are).
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    uses_dot: bool = False  # tensor-core instructions must be present in the machine code


@dataclass(frozen=True)
class Op:
    """One op: what it means, how it runs, what it costs, how exact it must be."""

    reference: Callable[..., Any]
    triton: Callable[..., Any]
    inputs: Callable[[Shape, torch.dtype, torch.device, torch.Generator], dict[str, Any]]
    shapes: Mapping[str, Shape]  # shapes of real models, for timing
    test_shapes: Mapping[str, Shape]  # small ones for the interpreter, at least one deliberately odd
    flops: Callable[[Shape], int]  # of one forward call; FMA = 2
    bytes: Callable[[Shape, int], int]  # (shape, bytes per element) -> least device-memory traffic of one forward
    compiles: Callable[[], list[Compile]]
    differentiable: tuple[str, ...] = ()  # inputs with a gradient; empty: forward only
    # relative RMS error allowed against float64, the same wherever the test runs
    tolerance: Mapping[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    )


def names() -> list[str]:
    """Stems of the files in this folder that hold an op, sorted."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if "\nOP = Op(" in path.read_text())


def discover() -> dict[str, Op]:
    """Every op by name. Imports the op files (and so triton)."""
    return {name: importlib.import_module(f"bench.kernels.{name}").OP for name in names()}


def why_not(backend: str) -> str | None:
    """Why `backend` cannot run on this machine, or None where it can. The interpreter counts as running."""
    if backend not in BACKENDS:
        return f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if backend == "reference" or (backend == "triton" and interpreting()):
        return None
    cuda = torch.cuda.is_available()
    if backend == "triton" and not cuda:
        return "triton needs a CUDA device (none found); on a CPU it runs only in Triton's interpreter, in tests"
    # torch.compile builds C++ on a CPU; on CUDA both it and Triton build a small launcher in C
    compilers = ("cc", "gcc", "clang") if cuda else ("g++", "c++", "clang++")
    chosen = os.environ.get("CC" if cuda else "CXX")
    if not any(shutil.which(name) for name in ([chosen] if chosen else compilers)):
        return f"{backend} needs a {'C' if cuda else 'C++'} compiler: none of {', '.join(compilers)} found"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return f"{backend} needs the Python headers (Debian, Ubuntu: apt install python3-dev)"
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter is switched on: for tests, never for timing."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def load(backend: str) -> SimpleNamespace:
    """The ops of `backend` as a namespace. `compile` shares the reference ops: see `compiled`."""
    reason = why_not(backend)
    if reason:
        raise RuntimeError(reason)
    side = "triton" if backend == "triton" else "reference"
    return SimpleNamespace(**{name: getattr(op, side) for name, op in discover().items()})


def compiled(backend: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` through `torch.compile` where the backend is `compile`, else as it is.

    One full graph: what would break it, or pass the limit of recompilations, is an error and not eager code.
    """
    return torch.compile(step, dynamic=False, fullgraph=True) if backend == "compile" else step


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """RMS error over RMS of the reference, in float64. NaN or a wrong shape gives NaN or raises, never a pass."""
    if value.shape != reference.shape:
        raise ValueError(f"shape {tuple(value.shape)} is not the reference's {tuple(reference.shape)}")
    wide, truth = value.detach().double().cpu(), reference.detach().double().cpu()
    return float((wide - truth).norm() / truth.norm().clamp_min(1e-30))
