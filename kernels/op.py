"""What an op is, and how a backend's ops are found and loaded.

An op is the mathematics (RMSNorm); a kernel is one `@triton.jit` function that computes it. Each file in
this folder holds one op: formula, `reference` in plain PyTorch (the specification, the CPU path and, in
float64, the oracle), the Triton kernels, a launcher that checks what it is given, and the record `OP`.
The folder listing is the registry: a file with an `OP` is an op, its stem is its name.

`load(backend)` answers a namespace of callables, so the transformer says `ops.rms_norm(...)` and has no `if`.
Nothing falls back: an unknown backend, or Triton where it cannot run, is an error.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

BACKENDS = ("reference", "compile", "triton", "best")
Shape = Mapping[str, int]
ARCHITECTURES = (80, 90, 100)  # A100; H100 and H200; B200
_assumed = [90]  # where there is no GPU: the interpreter and the ahead-of-time compiler follow an H100's path


@dataclass(frozen=True)
class Op:
    """One op: what it means, how it runs, what it costs, how exact it must be.

    A launcher decides its tiles from shapes, dtypes and `architecture(device)` alone, so that the same call on
    tensors without memory (`meta`) shows what a GPU would be sent: that is how kernels are compiled ahead of time.
    """

    reference: Callable[..., Any]
    triton: Callable[..., Any]
    inputs: Callable[[Shape, torch.dtype, torch.device, torch.Generator], dict[str, Any]]
    shapes: Mapping[str, Shape]  # shapes of real models, for timing and for compiling ahead of time
    test_shapes: Mapping[str, Shape]  # small ones for the interpreter, at least one deliberately odd
    flops: Callable[[Shape], int]  # of one forward call; FMA = 2
    bytes: Callable[[Shape, int], int]  # (shape, bytes per element) -> least device-memory traffic of one forward
    differentiable: tuple[str, ...] = ()  # inputs with a gradient; empty: forward only
    backward_flops: Callable[[Shape], int] | None = None  # of the backward alone; None: never timed by itself
    backward_bytes: Callable[[Shape, int], int] | None = None
    mutates: tuple[str, ...] = ()  # inputs written in place (and also returned): a caller who compares clones them
    # what the architectures lack is said by shape: no fp8 before sm_89
    architectures: Callable[[Shape], tuple[int, ...]] = lambda shape: ARCHITECTURES
    # launch parameters `bench tune` may try, by kernel; each a change to what the launcher would choose
    candidates: Mapping[str, tuple[Mapping[str, int], ...]] = field(default_factory=dict)
    # for outputs that are choices (token numbers), (outputs, inputs in float64) -> how wrong; None: `relative_error`
    error: Callable[[tuple[Any, ...], dict[str, Any]], float] | None = None
    # error allowed against float64, the same wherever the test runs
    tolerance: Mapping[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    )

    def leaves(self, inputs: Mapping[str, Any]) -> list[str]:
        """Names of the differentiable inputs that are given here."""
        return [name for name in self.differentiable if inputs.get(name) is not None]

    def trained(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with those a gradient flows to as leaves that ask for one."""
        return inputs | {name: inputs[name].detach().requires_grad_() for name in self.leaves(inputs)}


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
    ours = backend in ("triton", "best")
    if backend == "reference" or (ours and interpreting()):
        return None
    cuda = torch.cuda.is_available()
    if ours and not cuda:
        return f"{backend} needs a CUDA device (none found); on a CPU it runs only in Triton's interpreter, in tests"
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


@functools.cache
def _properties(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def architecture(device: torch.device) -> int:
    """80, 90 or 100: the newest of ARCHITECTURES the device is at least; where there is no GPU, `assume`d."""
    capability = _properties(device)[0] if device.type == "cuda" else _assumed[-1]
    return max((known for known in ARCHITECTURES if known <= capability), default=ARCHITECTURES[0])


def processors(device: torch.device) -> int:
    """Streaming multiprocessors; where tensors have no memory those of an A100, H100 SXM or B200; interpreted, three.

    Three, so that the programs of a persistent kernel walk over several tiles there too.
    """
    if device.type == "cuda":
        return _properties(device)[1]
    return {80: 108, 90: 132, 100: 148}[architecture(device)] if device.type == "meta" else 3


@contextmanager
def assume(arch: int) -> Iterator[None]:
    """Inside the block launchers on a machine without a GPU take the path of `arch`."""
    _assumed.append(arch)
    try:
        yield
    finally:
        _assumed.pop()


def load(backend: str) -> SimpleNamespace:
    """The ops of `backend` as a namespace. `compile` shares the reference ops: see `compiled`."""
    reason = why_not(backend)
    if reason:
        raise RuntimeError(reason)
    if backend == "best":
        from bench.kernels.best import Best

        return SimpleNamespace(**{name: Best(name, op) for name, op in discover().items()})
    side = "triton" if backend == "triton" else "reference"
    return SimpleNamespace(**{name: getattr(op, side) for name, op in discover().items()})


def compiled(backend: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` through `torch.compile` where the backend is `compile`, else as it is.

    One full graph: what would break it, or pass the limit of recompilations, is an error and not eager code.
    """
    return torch.compile(step, dynamic=False, fullgraph=True) if backend == "compile" else step


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """RMS error over RMS of the reference, in float64; of whole numbers 0 where all are equal, else 1.

    NaN or a wrong shape gives NaN or raises ValueError, never a pass.
    """
    if value.shape != reference.shape:
        raise ValueError(f"shape {tuple(value.shape)} is not the reference's {tuple(reference.shape)}")
    truth = reference.detach().to(value.device)  # on the value's device: gradients can be gigabytes
    if not (value.is_floating_point() and truth.is_floating_point()):
        return float(value.dtype != truth.dtype or not torch.equal(value, truth))
    truth = truth.double()
    return float((value.detach().double() - truth).norm() / truth.norm().clamp_min(1e-30))


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor in an output or an input, in order: a tensor, or lists and tuples of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, tuple | list) else []


def mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with `function` applied to every tensor in it."""
    if isinstance(value, torch.Tensor):
        return function(value)
    return type(value)(mapped(function, item) for item in value) if isinstance(value, tuple | list) else value


def widened(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies of an op's inputs with every floating tensor in float64: what the oracle is run on."""

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x.detach().double() if x.is_floating_point() else x.detach().clone()

    return {name: mapped(wide, value) for name, value in inputs.items()}


def owned(op: Op, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, with copies of those the op writes in place: two runs on them can be compared."""
    return inputs | {name: mapped(lambda x: x.detach().clone(), inputs[name]) for name in op.mutates}


def output_errors(op: Op, inputs: dict[str, Any], outputs: Any, truth: Any) -> list[float]:
    """`relative_error` of each output against the oracle's; or one number by the op's own measure."""
    if op.error is not None:
        return [op.error(tuple(tensors(outputs)), widened(inputs))]
    return [relative_error(ours, wide) for ours, wide in zip(tensors(outputs), tensors(truth), strict=True)]
