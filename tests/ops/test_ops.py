"""Every op, on every dtype and small shape, against its float64 reference: found by listing the ops."""

import math
from typing import Any

import pytest
import torch

from bench.kernels.op import ARCHITECTURES, architecture, assume, discover, load, names, why_not, widened
from tests.ops.harness import CUDA, DEVICE, DTYPES, check, compare, copied, run

OPS = discover()
SMALL = [(name, shape) for name, op in OPS.items() for shape in op.test_shapes]
REAL = [(name, shape) for name, op in OPS.items() for shape in op.shapes] if CUDA else []


def shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES, ids=shown)
@pytest.mark.parametrize(("name", "shape"), SMALL)
@pytest.mark.parametrize("side", ["triton", "reference"])
def test_small_shapes(name: str, shape: str, side: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    op = OPS[name]
    if CUDA and architecture(DEVICE) not in op.architectures(op.test_shapes[shape]):
        pytest.skip(f"not declared for sm_{architecture(DEVICE)}")
    compare(op, side, op.inputs(op.test_shapes[shape], dtype, DEVICE, generator), dtype)


@pytest.mark.skipif(CUDA, reason="a GPU runs its own architecture's path")
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != 90])
@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_paths_of_other_architectures(name: str, shape: str, arch: int, generator: torch.Generator) -> None:
    """Launchers may take another kernel on an A100 or a B200: each is interpreted too."""
    op = OPS[name]
    if arch not in op.architectures(op.test_shapes[shape]):
        pytest.skip(f"not declared for sm_{arch}")
    with assume(arch):
        compare(op, "triton", op.inputs(op.test_shapes[shape], torch.float16, DEVICE, generator), torch.float16)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: real shapes take too long interpreted")
@pytest.mark.parametrize(("name", "shape"), REAL)
def test_real_shapes(name: str, shape: str, generator: torch.Generator) -> None:
    op = OPS[name]
    if architecture(DEVICE) not in op.architectures(op.shapes[shape]):
        pytest.skip(f"not declared for sm_{architecture(DEVICE)}")
    try:
        compare(op, "triton", op.inputs(op.shapes[shape], torch.bfloat16, DEVICE, generator), torch.bfloat16)
    except torch.cuda.OutOfMemoryError:
        pytest.skip("the float64 reference does not fit this GPU's memory")


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("damage", ["scaled", "one NaN", "unwritten", "wrong shape"])
def test_a_broken_kernel_is_caught(name: str, damage: str, generator: torch.Generator) -> None:
    op = OPS[name]
    if op.error is not None:
        pytest.skip("outputs are choices: the op's own tests damage them")
    kwargs = op.inputs(next(iter(op.test_shapes.values())), torch.float32, DEVICE, generator)
    truth = run(op.reference, widened(kwargs))
    results = run(op.reference, copied(kwargs))
    check(results, truth, op.tolerance[torch.float32])
    broken = results["output 0"].clone()
    if damage == "scaled":
        broken = broken * (1 + 1e-4) if broken.is_floating_point() else broken + 1
    elif damage == "one NaN":
        broken.view(-1)[-1] = math.nan if broken.is_floating_point() else -7
    elif damage == "unwritten":
        broken = torch.empty_like(broken)
    else:
        broken = broken[None]
    with pytest.raises((AssertionError, ValueError)):
        check(results | {"output 0": broken}, truth, op.tolerance[torch.float32])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_foreign_dtypes_are_refused(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    op = OPS[name]
    kwargs = op.inputs(next(iter(op.test_shapes.values())), torch.float32, DEVICE, generator)
    wide: dict[str, Any] = {
        key: value.to(dtype)
        for key, value in kwargs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    wide |= {
        key: [item.to(dtype) for item in value]
        for key, value in kwargs.items()
        if isinstance(value, list) and value and value[0].is_floating_point()
    }
    with pytest.raises(ValueError, match=f"^{name}: "):
        op.triton(**kwargs | wide)


@pytest.mark.parametrize("name", OPS)
def test_record_is_complete(name: str) -> None:
    op = OPS[name]
    assert op.shapes and "odd" in op.test_shapes
    for shape in (*op.shapes.values(), *op.test_shapes.values()):
        assert op.flops(shape) > 0
        assert op.bytes(shape, 4) >= op.bytes(shape, 2) > 0
    if op.differentiable and op.backward_bytes:
        for shape in op.shapes.values():
            assert op.backward_bytes(shape, 2) > 0


def test_backends_load_one_callable_an_op() -> None:
    assert why_not("triton") is None, "set TRITON_INTERPRET=1 before triton is imported, or use a GPU"
    for backend, side in (("reference", "reference"), ("compile", "reference"), ("triton", "triton")):
        ops = load(backend)
        assert vars(ops) == {name: getattr(OPS[name], side) for name in names()}
    assert {name: best.op for name, best in vars(load("best")).items()} == OPS
    with pytest.raises(RuntimeError, match="unknown backend 'cuda'"):
        load("cuda")
