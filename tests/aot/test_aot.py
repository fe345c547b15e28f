"""Every kernel specialisation the ops declare, compiled for sm_90 (H100, H200) on any machine.

Runs in a process of its own (`TRITON_AOT_TESTS=1 pytest tests/aot -s`): a process that interprets kernels
cannot compile them. `-s` shows one line a kernel.
"""

import os

import pytest

if not os.environ.get("TRITON_AOT_TESTS"):
    pytest.skip("its own process: TRITON_AOT_TESTS=1 pytest tests/aot", allow_module_level=True)

import torch

from bench.kernels.op import Compile, Op, Shape, discover
from tests.aot.compile_check import SHARED_LIMIT, Compiled, Launch, compile_kernel, recorded_launches

ARCH = 90
# kernel -> spilled bytes a thread it is known to need, and why. Empty: none may spill.
SPILLS_ALLOWED: dict[str, int] = {}
OPS = discover()


def label(op: str, entry: Compile) -> str:
    sizes = "-".join(f"{name}{value}" for name, value in entry.constexprs.items() if name.isupper())
    return f"{op}-{entry.kernel.__name__.strip('_')}-{sizes}"


CASES = [pytest.param(op, entry, id=label(op, entry)) for op in OPS for entry in OPS[op].compiles()]


def tensor_instruction(entry: Compile) -> str:
    """wgmma (HGMMA) works on 64 rows and more; narrower tiles, as in decoding, get Ampere's mma (HMMA)."""
    tiles = [value for name, value in entry.constexprs.items() if name in ("M", "N", "BLOCK_G")]
    return "HMMA" if min(tiles) < 32 else "HGMMA"


def show(name: str, built: Compiled) -> None:
    opcodes = ("HGMMA", "HMMA", "LDG.E.128", "STG.E.128", "LDGSTS")
    counts = " ".join(f"{opcode} {built.count(opcode)}" for opcode in opcodes if built.count(opcode))
    sizes = f"registers {built.registers:3} spills {built.spill_bytes} shared {built.shared_bytes:6}"
    print(f"{sizes} warps {built.warps} {counts} | {name}")


@pytest.mark.parametrize(("op", "entry"), CASES)
def test_fits_the_gpu(op: str, entry: Compile) -> None:
    options = {"num_warps": entry.num_warps, "num_stages": entry.num_stages}
    built = compile_kernel(entry.kernel, entry.signature, entry.constexprs, entry.divisible, ARCH, **options)
    show(label(op, entry), built)
    assert built.spill_bytes <= SPILLS_ALLOWED.get(f"{op}{entry.kernel.__name__}", 0)
    assert built.shared_bytes <= SHARED_LIMIT[ARCH]
    assert built.warps == entry.num_warps
    if entry.uses_dot:
        assert built.count(tensor_instruction(entry))
    else:
        # bandwidth-bound kernels load 16 bytes at once; one narrow load is the row's own scalar (the target's
        # logit) or a weight so short that a thread holds one element of it
        assert built.count("LDG.E.128")
        assert built.count("LDG.E.U16") <= 1


def step(op: Op, shape: Shape, device: str) -> None:
    """One forward and, where there is one, backward call of the launcher in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    kwargs = op.inputs(shape, torch.bfloat16, torch.device(device), generator)
    leaves = [name for name in op.differentiable if kwargs[name] is not None]
    kwargs |= {name: kwargs[name].detach().requires_grad_() for name in leaves}
    outputs = op.triton(**kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if leaves:
        pull = [torch.ones_like(x) for x in outputs]
        torch.autograd.grad(outputs, [kwargs[name] for name in leaves], pull)


def declares(entry: Compile, launch: Launch) -> bool:
    """Same kernel, warps, stages, constants and tensor types."""
    types = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}
    same = entry.kernel is launch.kernel and entry.num_warps == launch.num_warps
    return (
        same
        and entry.num_stages == launch.num_stages
        and all(
            entry.constexprs[name] == value
            if name in entry.constexprs
            else not isinstance(value, torch.Tensor) or entry.signature[name] == types[value.dtype]
            for name, value in launch.arguments.items()
        )
    )


@pytest.mark.parametrize(("op", "shape"), [(name, shape) for name in OPS for shape in OPS[name].shapes])
def test_what_is_launched_is_what_was_declared(op: str, shape: str) -> None:
    """At the shapes of real models: tensors without memory, launches without a GPU."""
    with recorded_launches(ARCH) as launches:
        step(OPS[op], OPS[op].shapes[shape], "meta")
    assert launches
    for launch in launches:
        assert any(declares(entry, launch) for entry in OPS[op].compiles()), launch


@pytest.mark.parametrize("op", OPS)
def test_launchers_pass_what_their_kernels_take(op: str) -> None:
    """The odd shape, specialised and compiled from the launcher's own arguments, as on a GPU."""
    with recorded_launches(ARCH, build=True) as launches:
        step(OPS[op], OPS[op].test_shapes["odd"], "cpu")
    assert launches


def test_every_op_declares_its_kernels() -> None:
    assert OPS and all(op.compiles() for op in OPS.values())
