"""grouped_matmul: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import pytest
import torch

from bench.kernels.grouped_matmul import OP
from bench.kernels.grouped_matmul_tiles import Groups
from bench.kernels.op import widened
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, run

SIDES = ("x", "weight")


def brute_grouped(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    expert = [sum(end <= s for end in offs.tolist()) for s in range(x.shape[0])]
    return torch.stack([weight[e] @ row for e, row in zip(expert, x, strict=True)])


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_grouped, shape)


def ends(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


REFUSED = {
    "widths": (f32(4, 8), f32(2, 8, 16), ends(2, 4)),
    "experts": (f32(4, 8), f32(2, 8, 8), ends(4)),
    "offs int64": (f32(4, 8), f32(2, 8, 8), ends(2, 4).long()),
    "mixed": (f32(4, 8).half(), f32(2, 8, 8), ends(2, 4)),
    "empty": (f32(0, 8), f32(2, 8, 8), ends(0, 0)),
    "stride of x": (f32(8, 4).t(), f32(2, 8, 8), ends(2, 4)),
    "stride of weight": (f32(4, 8), f32(2, 8, 8).transpose(1, 2), ends(2, 4)),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^grouped_matmul: ") as caught:
        OP.triton(*arguments)
    assert "\n" not in str(caught.value)


def given(generator: torch.Generator, offs: torch.Tensor, n: int = 40, k: int = 48) -> dict[str, Any]:
    x = torch.randn((int(offs[-1]), k), device=DEVICE, generator=generator)
    weight = torch.randn((len(offs), n, k), device=DEVICE, generator=generator)
    return {"x": x.half(), "weight": weight.half(), "offs": offs}


FALLEN = {
    "one expert has all": ends(0, 0, 70, 70),
    "first and last empty": ends(0, 20, 33, 33),
    "all in the first": ends(33, 33, 33, 33),
    "whole tiles": ends(16, 32, 48, 64),
    "a row each": ends(1, 2, 3, 4),
}


@pytest.mark.parametrize("offs", FALLEN.values(), ids=FALLEN)
def test_however_the_rows_fall(offs: torch.Tensor, generator: torch.Generator) -> None:
    kwargs = given(generator, offs)
    results = run(OP.triton, kwargs, SIDES)
    check(results, run(OP.reference, widened(kwargs), SIDES), OP.tolerance[torch.float16])
    for e in range(len(offs)):
        if offs[e] == (offs[e - 1] if e else 0):
            assert not results["dweight"][e].any()


@pytest.mark.parametrize("width", [48, 37], ids=["described", "pointers"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_of_one_expert_stays_with_it(width: int, generator: torch.Generator) -> None:
    """A tile may read its neighbour's rows, and columns past the last lie in the neighbour's weight."""
    kwargs = given(generator, ends(20, 27, 40), n=width, k=width)
    clean = run(OP.triton, kwargs, SIDES)
    kwargs["x"][20:27] = math.nan
    kwargs["weight"][1] = math.nan
    dirty = run(OP.triton, kwargs, SIDES)
    for name, theirs in {"output 0": slice(20, 27), "dx": slice(20, 27), "dweight": slice(1, 2)}.items():
        assert dirty[name][theirs].isnan().all()
        clean[name][theirs] = dirty[name][theirs] = 0
        assert torch.equal(clean[name], dirty[name])


def test_the_table_lists_every_tile_once_and_is_never_too_short(generator: torch.Generator) -> None:
    counts = torch.randint(0, 50, (300,), device=DEVICE, generator=generator)
    counts[torch.rand(300, device=DEVICE, generator=generator) < 0.3] = 0
    offs = counts.cumsum(0).int()
    table, slots = Groups(offs, int(offs[-1])).table(16)
    used = int(table[-1])
    assert used == int(((counts + 15) // 16).sum()) <= slots
    expert, start, end, first, tiles = (column[:used].tolist() for column in table[:-1].view(5, slots))
    seen = 0
    for e, count in enumerate(counts.tolist()):
        mine = -(-count // 16)
        for slot in range(seen, seen + mine):
            assert (expert[slot], end[slot] - start[slot], end[slot]) == (e, count, int(offs[e]))
            assert (first[slot], tiles[slot]) == (seen, mine)
        seen += mine


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_replays_in_a_cuda_graph(generator: torch.Generator) -> None:
    """The rows fall otherwise at each replay, and the launch is the same."""
    kwargs = given(generator, ends(10, 20, 64))
    OP.triton(**kwargs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = OP.triton(**kwargs)
    kwargs["offs"].copy_(ends(0, 64, 64))
    graph.replay()
    check({"y": y}, {"y": OP.reference(**widened(kwargs))}, OP.tolerance[torch.float16])


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, contiguous, one element past a multiple of 16 bytes."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@pytest.mark.parametrize("name", ["x", "weight", "dy"])
def test_views_that_descriptors_cannot_take(name: str, generator: torch.Generator) -> None:
    kwargs = given(generator, ends(10, 20))
    truth = run(OP.reference, widened(kwargs), SIDES)
    if name != "dy":
        kwargs[name] = unaligned(kwargs[name])
        check(run(OP.triton, kwargs, SIDES), truth, OP.tolerance[torch.float16])
        return
    leaves = [kwargs[side].requires_grad_() for side in SIDES]
    y = OP.triton(**kwargs)
    dy = torch.randn(y.shape, device=DEVICE, generator=generator).to(y.dtype)
    given_aligned, given_so = (torch.autograd.grad(y, leaves, g, retain_graph=True) for g in (dy, unaligned(dy)))
    for x, z in zip(given_aligned, given_so, strict=True):
        torch.testing.assert_close(x, z)


def test_one_row_with_a_stride_of_its_own(generator: torch.Generator) -> None:
    """Contiguous all the same: a dimension of size 1 may have any stride."""
    kwargs = given(generator, ends(0, 1))
    kwargs["x"] = torch.randn((1, 49), device=DEVICE, generator=generator).half()[:, :48]
    check(run(OP.triton, kwargs, SIDES), run(OP.reference, widened(kwargs), SIDES), OP.tolerance[torch.float16])
