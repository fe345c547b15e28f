"""Compile a Triton kernel for a GPU this machine does not have, and read what the compiler made of it.

Triton lowers to PTX in the process and calls the `ptxas` that its wheel bundles, so a CPU is enough.
The interpreter shows that a kernel's arithmetic is right; this shows that it fits the chip: registers,
spilled bytes, shared memory, tensor-core instructions and the width of its loads. It knows no op.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# the most dynamic shared memory one program may ask for: 227 KiB (CUDA C++ guide, compute capability 9.0)
SHARED_LIMIT = {90: 232448}
# architecture-specific features (wgmma, setmaxnreg) exist only under the suffixed name
PTXAS_NAME = {90: "sm_90a"}


@dataclass(frozen=True)
class Compiled:
    """What one kernel became. Bytes are per thread for spills and per program for shared memory."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    instructions: Mapping[str, int]  # SASS opcode with its modifiers -> occurrences

    def count(self, opcode: str) -> int:
        """Instructions whose name starts with `opcode`, such as "HGMMA" or "LDG.E.128"."""
        return sum(number for name, number in self.instructions.items() if name.startswith(opcode))


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    divisible: tuple[str, ...] = (),
    arch: int = 90,
    **options: int,
) -> Compiled:
    """Compile for `arch`. Pointers count as 16-byte aligned, as those of a torch allocation are."""
    while type(kernel).__name__ in ("Autotuner", "Heuristics"):
        kernel = kernel.fn
    names = list(kernel.arg_names)
    unknown = (set(signature) | set(constexprs)) ^ set(names)
    if unknown:
        raise ValueError(f"{kernel.__name__}: arguments missing or unknown: {sorted(unknown)}")
    types = {name: "constexpr" if name in constexprs else signature[name] for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if types[name].startswith("*") or name in divisible
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constexprs), attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        return _read(built, Path(folder), arch)


@dataclass(frozen=True)
class Launch:
    """One `kernel[grid](...)` as a launcher made it."""

    kernel: JITFunction
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int


class _Target:
    """Stands for Triton's driver: names an architecture and owns no device."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@contextmanager
def recorded_launches(arch: int = 90, build: bool = False) -> Iterator[list[Launch]]:
    """Launches inside the block are recorded, not run; with `build`, compiled just as a GPU would have them.

    Tensors may lie on the CPU or nowhere (`meta`): only their dtypes and addresses are looked at.
    """
    launches: list[Launch] = []
    run = JITFunction.run

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if build:
            run(kernel, *args, grid=grid, warmup=True, **kwargs)
        warps, stages = kwargs.pop("num_warps", 4), kwargs.pop("num_stages", 3)
        launches.append(Launch(kernel, kernel.signature.bind(*args, **kwargs).arguments, warps, stages))

    JITFunction.run = record
    driver.set_active(_Target(arch))  # and it stays: without a GPU there is no driver to go back to
    try:
        yield launches
    finally:
        JITFunction.run = run


def _read(built: Any, folder: Path, arch: int) -> Compiled:
    """Registers and spills from ptxas' own report, instructions from the disassembly."""
    ptx, cubin = folder / "kernel.ptx", folder / "kernel.cubin"
    ptx.write_text(built.asm["ptx"])
    cubin.write_bytes(built.asm["cubin"])
    ptxas = get_ptxas(arch).path
    log = _run(ptxas, "-v", f"--gpu-name={PTXAS_NAME[arch]}", ptx, "-o", folder / "again.cubin")
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
