"""adamw: its formula written out a second time, torch's own, what its launcher refuses, rounding, odd memory."""

from typing import Any

import pytest
import torch

from bench.kernels import adamw as module
from bench.kernels.adamw import OP
from tests.ops.harness import CUDA, DEVICE, check_formula, copied, f32

BETAS = (0.9, 0.95)


def brute_adamw(
    params: Any,
    grads: Any,
    exp_avgs: Any,
    exp_avg_sqs: Any,
    step: torch.Tensor,
    *,
    lr: Any,
    copies: Any,
    stochastic: bool,
) -> tuple[Any, ...]:
    """Element by element's formula in torch's order: decay, averages, corrected step."""
    t = float(step)
    for i, g in enumerate(grads):
        params[i] -= lr * 0.1 * params[i]
        exp_avgs[i].lerp_(g, 0.1)
        exp_avg_sqs[i].mul_(0.95).addcmul_(g, g, value=0.05)
        size = lr / (1 - 0.9**t)
        params[i] -= size * exp_avgs[i] / (exp_avg_sqs[i].sqrt() / (1 - 0.95**t) ** 0.5 + 1e-8)
        if copies is not None:
            copies[i].copy_(params[i])
    return (params, exp_avgs, exp_avg_sqs) if copies is None else (params, exp_avgs, exp_avg_sqs, copies)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_adamw, shape)


def state(*params: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
    zeros = [torch.zeros_like(x, dtype=dtype) for x in params]
    grads = [torch.ones_like(x) for x in params]
    step = torch.ones((), device=DEVICE)
    return dict(params=[*params], grads=grads, exp_avgs=zeros, exp_avg_sqs=[x.clone() for x in zeros], step=step)


def test_four_updates_are_torchs(generator: torch.Generator) -> None:
    """From zero averages, where the bias corrections matter most; β2 so near 1 that its correction cancels."""
    start = [torch.randn(s, device=DEVICE, generator=generator) for s in ((37, 9), (1,), (1500,))]
    theirs = [torch.nn.Parameter(x.clone()) for x in start]
    optimizer = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    ours = state(*start)
    for t in range(1, 5):
        for x, grad in zip(theirs, ours["grads"], strict=True):
            x.grad = grad.normal_(generator=generator)
        optimizer.step()
        ours["step"].fill_(t)
        OP.triton(**ours, lr=1e-2, betas=(0.9, 0.999))
    for x, y in zip(ours["params"], theirs, strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-5, atol=1e-6)


def test_tensors_of_several_dtypes_and_any_address(generator: torch.Generator) -> None:
    """Two launches, one of them over tensors that start anywhere; memory beside them is left alone."""
    memory = torch.randn(5, 700, device=DEVICE, generator=generator)
    before = memory.clone()
    lists = [[memory[kind, 1:301], memory[kind, 303:604].half(), memory[kind, 605:606]] for kind in range(4)]
    lists[3] = [x.abs() if x.dtype == torch.half else x.abs_() for x in lists[3]]
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs")
    kwargs = dict(zip(names, lists, strict=True), step=torch.full((), 2.0, device=DEVICE), lr=0.1)
    truth = OP.reference(**copied(kwargs))
    for ours, theirs in zip(OP.triton(**kwargs), truth, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x, y)
    untouched = torch.ones(700, dtype=torch.bool, device=DEVICE)
    untouched[1:301] = untouched[605:606] = False
    assert torch.equal(memory[:, untouched], before[:, untouched])
    assert torch.equal(memory[1], before[1])


def test_outputs_are_the_inputs_and_autograd_hears_of_it() -> None:
    kwargs = state(f32(4))
    kwargs["copies"] = [f32(4).half()]
    names = ("params", "exp_avgs", "exp_avg_sqs", "copies")
    versions = [kwargs[name][0]._version for name in names]
    outputs = OP.triton(**kwargs, lr=0.1)
    for output, name, version in zip(outputs, names, versions, strict=True):
        assert output is kwargs[name] and output[0]._version > version


def test_stochastic_rounding_keeps_the_mean() -> None:
    """A step of a hundredth of the distance between bfloat16 numbers: lost to the nearest, kept on average."""
    size, spacing = 40_000, 2.0**-7
    rates = {"lr": spacing / 100, "weight_decay": 0.0}
    if CUDA:  # the interpreter rounds to bfloat16 by truncation
        nearest = OP.triton(**state(1.5 * f32(size).bfloat16(), dtype=torch.float32), **rates)[0][0]
        assert (nearest == 1.5).all()
    moved = {}
    for seed, t in ((0, 1), (0, 2), (1, 1)):
        kwargs = state(1.5 * f32(size).bfloat16(), dtype=torch.float32)
        kwargs["step"].fill_(t)
        x = OP.triton(**kwargs, **rates, betas=(1e-9, 1e-9), stochastic=True, seed=seed)[0][0].float()
        assert set(x.unique().tolist()) == {1.5, 1.5 - spacing}
        moved[seed, t] = x != 1.5
        # the step is exact, so the share that moves is binomial: five standard deviations
        assert abs(moved[seed, t].float().mean() - 0.01) < 5 * (0.01 * 0.99 / size) ** 0.5
    # other elements in every step and for every seed; neighbours independent
    first, *others = moved.values()
    assert all((first & other).float().mean() < 5e-4 for other in others)
    assert (first[1:] & first[:-1]).float().mean() < 5e-4
    assert (others[0] & others[1]).float().mean() < 5e-4  # seed and step do not merely add up


def test_stochastic_rounding_of_two_groups_is_independent() -> None:
    """Gradients of two dtypes make two launches, whose elements draw other bits."""
    size, spacing = 4000, 2.0**-7
    kwargs = state(*(1.5 * f32(size).bfloat16() for _ in range(2)), dtype=torch.float32)
    kwargs["grads"][1] = kwargs["grads"][1].float()
    rates = {"lr": spacing / 2, "weight_decay": 0.0}
    x, y = OP.triton(**kwargs, **rates, stochastic=True)[0]
    # each moves half its elements: alike in half of them, eight standard deviations
    assert abs((x == y).float().mean() - 0.5) < 4 / size**0.5


def test_stochastic_rounding_keeps_what_needs_none_and_nan() -> None:
    kwargs = state(torch.tensor([1.0, -3.0, 0.0, float("inf"), float("nan")], device=DEVICE).bfloat16())
    before = kwargs["params"][0].clone()
    OP.triton(**kwargs, lr=0.0, stochastic=True)
    torch.testing.assert_close(kwargs["params"][0], before, rtol=0, atol=0, equal_nan=True)


def test_the_table_is_built_once_for_the_same_tensors() -> None:
    kwargs = state(f32(8), f32(3))
    misses = module._table.cache_info().misses
    for _ in range(3):
        OP.triton(**kwargs, lr=0.1)
    assert module._table.cache_info().misses == misses + 1


def refused(**change: Any) -> dict[str, Any]:
    return {**state(f32(4, 4), f32(2)), "lr": 0.1, **change}


REFUSED = {
    "adamw nothing": refused(params=[], grads=[], exp_avgs=[], exp_avg_sqs=[]),
    "adamw lengths": refused(grads=[f32(4, 4)]),
    "adamw shape": refused(grads=[f32(4, 4), f32(3)]),
    "adamw stride": refused(exp_avgs=[f32(4, 4).t(), f32(2)]),
    "adamw empty": refused(**state(f32(0))),
    "adamw copies": refused(copies=[f32(4, 4)]),
    "adamw step": refused(step=torch.ones((), device=DEVICE, dtype=torch.int64)),
    "adamw lr": refused(lr=f32(2)),
    "adamw betas": refused(betas=(0.9, 1.0)),
    "adamw stochastic fp32": refused(stochastic=True),
}


@pytest.mark.parametrize("kwargs", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^adamw: ") as caught:
        OP.triton(**kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not CUDA, reason="CUDA graphs need a CUDA device")
def test_a_captured_update_counts_on(generator: torch.Generator) -> None:
    """Three replays, with another gradient, step and rate each, are three eager updates."""
    ours, lr = state(torch.randn(5000, device=DEVICE, generator=generator)), torch.full((), 0.1, device=DEVICE)
    eager = copied(ours)
    for _ in range(2):
        OP.triton(**copied(ours) | {"step": ours["step"]}, lr=lr)
    kept = copied(ours)
    OP.triton(**ours, lr=lr)  # builds the table
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        OP.triton(**ours, lr=lr)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        ours[name][0].copy_(kept[name][0])
    for t in range(1, 4):
        ours["grads"][0].normal_(generator=generator)
        ours["step"].fill_(t)
        lr.mul_(0.5)
        graph.replay()
        eager |= {"grads": [ours["grads"][0].clone()], "step": ours["step"].clone()}
        OP.triton(**eager, lr=lr)
    assert torch.equal(ours["params"][0], eager["params"][0])
