"""attention: its formula written out a second time, what its launcher refuses, what is particular to it."""

import itertools
import math
from typing import Any

import pytest
import torch

from bench.kernels.attention import OP, attention, lengths, pairs
from bench.kernels.op import widened
from bench.kernels.tuning import trying
from tests.ops.harness import DEVICE, check, check_formula, f32, far_heads, run

TOLERANCE = OP.tolerance[torch.float16]


def brute_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    sinks: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> torch.Tensor:
    out, group, length = q.new_zeros(*q.shape[:3], v.shape[3]), q.shape[2] // k.shape[2], q.shape[1]
    bounds = [] if cu_seqlens is None else cu_seqlens.tolist()
    for b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        first = max([0, *(start - b * length for start in bounds if start <= b * length + t)])
        seen = slice(first if window is None else max(first, t - window + 1), t + 1)
        weight = ((k[b, seen, h // group] @ q[b, t, h]) / math.sqrt(q.shape[3])).exp()
        total = weight.sum() if sinks is None else weight.sum() + sinks[h].exp()
        out[b, t, h] = weight @ v[b, seen, h // group] / total
    return out


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_attention, shape)


def made(generator: torch.Generator, dtype: torch.dtype = torch.float16, **shape: int) -> dict[str, Any]:
    return OP.inputs(
        {"B": 1, "T": 150, "nq": 8 if "sinks" in shape else 2, "nkv": 1, "d": 16, **shape}, dtype, DEVICE, generator
    )


def agrees(kwargs: dict[str, Any]) -> None:
    """Launcher and oracle on the same inputs, gradients too."""
    check(run(attention, kwargs, OP.differentiable), run(OP.reference, widened(kwargs), OP.differentiable), TOLERANCE)


def test_a_packed_document_is_as_if_alone(generator: torch.Generator) -> None:
    kwargs = made(generator, T=301, ragged=1, sinks=1, window=50)
    offsets = kwargs["cu_seqlens"].tolist()
    assert 1 in (end - start for start, end in itertools.pairwise(offsets))
    packed = attention(**kwargs)
    for start, end in itertools.pairwise(offsets):
        alone = kwargs | {name: kwargs[name][:, start:end] for name in "qkv"} | {"cu_seqlens": None}
        check({"o": packed[:, start:end]}, {"o": attention(**alone).double()}, TOLERANCE)


@pytest.mark.parametrize("kind", [{}, {"window": 200}, {"window": 7}, {"ragged": 1}])
def test_other_documents_and_the_future_are_not_seen(kind: dict[str, int], generator: torch.Generator) -> None:
    """Changing keys a query does not see leaves its output bit for bit; NaN would not do: 0 · NaN is NaN."""
    kwargs = made(generator, T=301, **kind)
    before, row = attention(**kwargs), 250
    low = max(0, row - kind["window"] + 1) if "window" in kind else 0
    if "ragged" in kind:
        low = max(start for start in kwargs["cu_seqlens"].tolist() if start <= row)
    changed = kwargs | {name: kwargs[name].clone() for name in "kv"}
    for name in "kv":
        changed[name][:, :low] += 1
        changed[name][:, row + 1 :] += 1
    after = attention(**changed)
    assert torch.equal(before[:, row], after[:, row])
    assert not torch.equal(before[:, row + 1 :], after[:, row + 1 :])


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129])
def test_lengths_around_tiles(length: int, generator: torch.Generator) -> None:
    agrees(made(generator, T=length, sinks=1))


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 149, 150, 1000])
def test_windows_around_tiles(window: int, generator: torch.Generator) -> None:
    agrees(made(generator, window=window, sinks=1))  # without a sink a window of 1 has no dq


@pytest.mark.parametrize("window", [257, 300, 320])
def test_wide_windows_have_unmasked_tiles(window: int, generator: torch.Generator) -> None:
    """With and without documents, one of them longer than the window."""
    kwargs = made(generator, T=520, window=window, nq=1)
    agrees(kwargs)
    agrees(kwargs | {"cu_seqlens": torch.tensor([0, 90, 520], dtype=torch.int32, device=DEVICE)})


def test_scale(generator: torch.Generator) -> None:
    agrees(made(generator, sinks=1) | {"scale": 0.07})


def test_sinks_in_float32_and_of_any_size() -> None:
    kwargs = made(torch.Generator(DEVICE).manual_seed(0), nq=8)
    kwargs["sinks"] = torch.tensor([-30.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0, 300.0], device=DEVICE)
    results = run(attention, kwargs, OP.differentiable)
    check(results, run(OP.reference, widened(kwargs), OP.differentiable), TOLERANCE)
    assert results["dsinks"].dtype == torch.float32
    without = kwargs | {"sinks": torch.full((8,), -math.inf, device=DEVICE)}
    check(run(attention, without), run(attention, kwargs | {"sinks": None}), TOLERANCE)


def test_large_scores(generator: torch.Generator) -> None:
    kwargs = made(generator)
    agrees(kwargs | {"q": kwargs["q"] * 100})


def test_empty_documents_change_nothing(generator: torch.Generator) -> None:
    kwargs = made(generator, T=100)
    once = torch.tensor([0, 40, 100], dtype=torch.int32, device=DEVICE)
    twice = torch.tensor([0, 0, 40, 40, 40, 100, 100], dtype=torch.int32, device=DEVICE)
    first, second = (attention(**kwargs | {"cu_seqlens": offsets}) for offsets in (once, twice))
    assert torch.equal(first, second)


def test_memory_no_descriptor_can_describe(generator: torch.Generator) -> None:
    """Strides that are not multiples of 16 bytes, an expanded head, rows of a sequence that do not follow: pointers."""
    kwargs = made(generator, B=2, T=70, nkv=2, ragged=1)
    wide = torch.randn((2, 70, 2, 19), device=DEVICE, generator=generator).half()
    agrees(kwargs | {"q": wide[..., 3:]})
    agrees(kwargs | {"k": kwargs["k"][:, :, :1].expand(-1, -1, 2, -1)})
    agrees(kwargs | {"v": torch.randn((70, 2, 2, 16), device=DEVICE, generator=generator).half().transpose(0, 1)})


def test_offsets_of_heads_pass_32_bits(generator: torch.Generator) -> None:
    kwargs = made(generator, T=40, nq=3, nkv=3)
    with trying("attention.forward", {"TMA": False}):
        assert torch.equal(attention(**kwargs | {"k": far_heads(kwargs["k"])}), attention(**kwargs))


@pytest.mark.parametrize("stride", [70 * 2 * 16, 3])
def test_gradients_in_memory_of_any_alignment(stride: int, generator: torch.Generator) -> None:
    """A slice at an odd offset, and a batch of one whose stride is any number, also of the inputs."""
    kwargs = made(generator, T=70)
    for name in "qkv":
        x = kwargs[name].contiguous()
        kwargs[name] = x.as_strided(x.shape, (stride, *x.stride()[1:])).requires_grad_()
    leaves = [kwargs[name] for name in "qkv"]
    out = attention(**kwargs)
    do = torch.randn(out.shape, device=DEVICE, generator=generator).half()
    odd = torch.cat((do.new_zeros(1), do.flatten()))[1:].view(do.shape)
    assert odd.is_contiguous() and odd.data_ptr() % 16
    wanted = torch.autograd.grad(out, leaves, do, retain_graph=True)
    for given in (odd, do.as_strided(do.shape, (5, *do.stride()[1:]))):
        assert all(map(torch.equal, torch.autograd.grad(out, leaves, given, retain_graph=True), wanted))


@pytest.mark.parametrize("kernel", OP.candidates)
def test_a_tuned_descriptor_gives_way_where_none_is_possible(kernel: str, generator: torch.Generator) -> None:
    kwargs = made(generator, T=70)
    wide = torch.randn((1, 70, 2, 19), device=DEVICE, generator=generator).half()
    with trying(kernel, {"TMA": True}):
        agrees(kwargs | {"q": wide[..., 3:]})


def test_a_second_derivative_is_refused(generator: torch.Generator) -> None:
    kwargs = made(generator, T=5)
    q = kwargs["q"] = kwargs["q"].clone().requires_grad_()
    (dq,) = torch.autograd.grad(attention(**kwargs).float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.parametrize("kernel", OP.candidates)
def test_candidates_compute_the_same(kernel: str, generator: torch.Generator) -> None:
    kwargs = made(generator, T=140, nq=1, ragged=1)
    for change in OP.candidates[kernel]:
        with trying(kernel, change):
            agrees(kwargs)


def test_runs_repeat_bit_for_bit(generator: torch.Generator) -> None:
    kwargs = made(generator, sinks=1)
    first, second = (run(attention, kwargs, OP.differentiable) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_pairs_are_those_of_the_mask(shape: str) -> None:
    """T² / 2 counts half the diagonal: half a pair a query too few, or with a window half of those it cuts."""
    sizes = OP.test_shapes[shape]
    window = sizes.get("window", sizes["T"])
    seen = sum(min(i + 1, window) for n in lengths(sizes) for i in range(n))
    assert sum(lengths(sizes)) == sizes["B"] * sizes["T"]
    assert seen - pairs(sizes) == sum(min(n, window) for n in lengths(sizes)) / 2


REFUSED = {
    "head dim": ((f32(1, 2, 2, 24),) * 3, {}),
    "groups": ((f32(1, 2, 3, 16), f32(1, 2, 2, 16), f32(1, 2, 2, 16)), {}),
    "lengths": ((f32(1, 2, 2, 16), f32(1, 3, 2, 16), f32(1, 3, 2, 16)), {}),
    "mixed": ((f32(1, 2, 2, 16).half(), *(f32(1, 2, 2, 16),) * 2), {}),
    "stride": ((f32(1, 2, 16, 16).transpose(2, 3),) * 3, {}),
    "window": ((f32(1, 2, 2, 16),) * 3, {"window": 0}),
    "scale": ((f32(1, 2, 2, 16),) * 3, {"scale": -1.0}),
    "scale that is no number": ((f32(1, 2, 2, 16),) * 3, {"scale": math.nan}),
    "sinks of other heads": ((f32(1, 2, 2, 16),) * 3, {"sinks": f32(3)}),
    "sinks of another dtype": ((f32(1, 2, 2, 16),) * 3, {"sinks": f32(2).half()}),
    "offsets in 64 bits": ((f32(1, 2, 2, 16),) * 3, {"cu_seqlens": torch.tensor([0, 2], device=DEVICE)}),
    "more sequences than a grid's z": ((f32(65536, 1, 1, 16),) * 3, {}),
    "one offset": ((f32(1, 2, 2, 16),) * 3, {"cu_seqlens": torch.zeros(1, dtype=torch.int32, device=DEVICE)}),
}


@pytest.mark.parametrize(("arguments", "options"), REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^attention: ") as caught:
        OP.triton(*arguments, **options)
    assert "\n" not in str(caught.value)
