"""Compile Triton kernels for a GPU this machine does not have, and read what the compiler made of them.

Triton lowers to PTX in the process and calls the `ptxas` that its wheel bundles, so a CPU is enough.
The interpreter shows that a kernel's arithmetic is right; this shows that it fits the chip: registers,
spilled bytes, shared memory, tensor-core instructions and the width of its loads. It knows no op.

What is compiled is what a launcher really launches: its call is recorded on tensors without memory, for a stated
architecture, and specialised exactly as a GPU would have it.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.kernels.op import assume

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# the most dynamic shared memory one program may ask for: 163 and 227 KiB (CUDA C++ guide, compute capability 8.0, 9.0)
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}


@dataclass(frozen=True)
class Compiled:
    """What one kernel became. Bytes are per thread for spills and per program for shared memory."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    instructions: Mapping[str, int]  # SASS opcode with its modifiers -> occurrences

    def count(self, pattern: str) -> int:
        """Instructions whose name begins as `pattern` says, such as "HGMMA" or `LDG.E` at 128 bits."""
        return sum(number for name, number in self.instructions.items() if re.match(pattern, name))


@dataclass(frozen=True)
class Launch:
    """One `kernel[grid](...)` as a launcher made it, for one architecture."""

    kernel: JITFunction
    arch: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    special: tuple[tuple[str, Any], ...]  # Triton's specialisation: (type, attribute) of each argument
    options: str

    @property
    def config(self) -> str:
        """Constants and element types, for people and for the table."""
        bound = self.kernel.signature.bind(*self.args, **self._arguments)
        bound.apply_defaults()
        words = []
        for (name, value), (kind, attribute) in zip(bound.arguments.items(), self.special, strict=True):
            if kind == "constexpr" and (not hasattr(value, "data_ptr")):
                words.append(f"{name}={_short(value)}")
            elif "*" in kind or "tensordesc" in kind:
                words.append(f"{name.removesuffix('_ptr')}:{_element(kind)}")
            elif kind == "i32" and attribute != "D":
                words.append(f"{name}!16")
        return " ".join([*words, self.options]).strip()

    @property
    def warps(self) -> int:
        """Warps the launcher asked for."""
        return int(self.kwargs.get("num_warps", 4))

    @property
    def texts(self) -> list[str]:
        """The kernel's text and those of the functions it calls."""
        return list(_sources(self.kernel, set()))

    @property
    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in self.kwargs.items() if name in self.kernel.signature.parameters}

    @property
    def source(self) -> str:
        """12 hex digits of everything that decides the machine code but the compiler: the row's key."""
        text = "\n".join(self.texts)
        described = [(kind, _short(value) if kind == "constexpr" else value) for kind, value in self.special]
        return hashlib.sha256(f"{text}\n{described}\n{self.options}".encode()).hexdigest()[:12]

    def compile(self) -> Compiled:
        """What the compiler makes of it; remembered: ops share kernels, and Triton compiles each once a process."""
        if (self.arch, self.source) in _compiled:
            return _compiled[self.arch, self.source]
        log = io.StringIO()
        with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(log):
            knobs.nvidia.dump_ptxas_log = True
            knobs.compilation.always_compile = True  # a kernel from the cache has no log
            built = _run_jit(self.kernel, *self.args, grid=(1,), warmup=True, **self.kwargs)
            built = built.result() if hasattr(built, "result") else built
        with tempfile.TemporaryDirectory() as folder:
            _compiled[self.arch, self.source] = _read(built, log.getvalue(), Path(folder))
        return _compiled[self.arch, self.source]


def _short(value: Any) -> str:
    return getattr(value, "__name__", None) or str(getattr(value, "value", value))


def _element(kind: str) -> str:
    """bf16 of "*bf16", "*kbf16" or "tensordesc<bf16[128,64]>"."""
    found = re.search(r"\*?k?((?:bf|fp|i|u)\w+)", kind.removeprefix("tensordesc"))
    return found.group(1) if found else kind


def _sources(kernel: JITFunction, seen: set[str]) -> Iterator[str]:
    """The kernel's text, that of every jit function it names, and the constants it names; nothing twice."""
    seen.add(kernel.__name__)
    yield f"{kernel.src}\nnoinline = {kernel.noinline}" if kernel.noinline else kernel.src
    for name in sorted(set(re.findall(r"\b[A-Za-z_]\w*\b", kernel.src)) - seen):
        value = kernel.__globals__.get(name)
        if isinstance(value, JITFunction):
            yield from _sources(value, seen)
        elif isinstance(value, tl.constexpr):
            yield f"{name} = {value.value}"


class _Target:
    """Stands for Triton's driver: names an architecture and owns no device. Its device number is the architecture."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return device


_run_jit = JITFunction.run
_compiled: dict[tuple[int, str], Compiled] = {}


@contextmanager
def recorded_launches(arch: int) -> Iterator[list[Launch]]:
    """Launches inside the block are recorded for `arch`, not run.

    Tensors may lie on the CPU or nowhere (`meta`): only their dtypes and addresses are looked at.
    """
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        *_, binder = kernel.device_caches[arch]
        _, special, options = binder(*args, **kwargs, debug=False)
        options = {name: value for name, value in options.items() if name != "debug"}
        described = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
        launches.append(Launch(kernel, arch, args, kwargs, tuple(special), described))

    JITFunction.run = record
    driver.set_active(_Target(arch))  # and it stays: without a GPU there is no driver to go back to
    try:
        with assume(arch):
            yield launches
    finally:
        JITFunction.run = _run_jit


def _read(built: Any, log: str, folder: Path) -> Compiled:
    """Registers and spills from ptxas' own report, instructions from the disassembly."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    sass = _run(TOOLS / "nvdisasm", "-c", "-ndf", cubin)
    # an opcode follows the /*address*/ and, on some lines, a @predicate
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", sass)
    if not opcodes:
        raise RuntimeError("nvdisasm printed no instruction: the pattern no longer fits its output")
    return Compiled(
        registers=_number(r"Used (\d+) registers", log),
        spill_bytes=_number(r"(\d+) bytes spill stores", log),
        shared_bytes=built.metadata.shared,
        warps=built.metadata.num_warps,
        instructions=Counter(opcodes),
    )


def _run(*command: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"ptxas did not report {pattern!r}")
    return int(found.group(1))
