"""moe: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import pytest
import torch

from bench.kernels import moe_reference
from bench.kernels.moe import OP
from bench.kernels.moe_sort import CHUNK, sorted_by_expert
from bench.kernels.op import widened
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, run


def brute_moe(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor,
    gate_up_bias: Any, down_bias: Any, limit: float | None,
) -> torch.Tensor:  # fmt: skip
    """Token by token and expert by expert."""
    y = torch.zeros_like(x)
    for t, (token, chosen) in enumerate(zip(x, experts.tolist(), strict=True)):
        for j, e in enumerate(chosen):
            h = gate_up[e] @ token + (0 if gate_up_bias is None else gate_up_bias[e])
            gate, up = h[: len(h) // 2], h[len(h) // 2 :]
            if limit is None:
                a = gate / (1 + (-gate).exp()) * up
            else:
                gate = torch.where(gate > limit, torch.full_like(gate, limit), gate)
                up = torch.where(up.abs() > limit, up.sign() * limit, up)
                a = gate / (1 + (-1.702 * gate).exp()) * (1 + up)
            y[t] += weights[t, j] * (down[e] @ a + (0 if down_bias is None else down_bias[e]))
    return y


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_moe, shape)


def chosen(*size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int32, device=DEVICE)


GIVEN = (f32(4, 8), f32(2, 32, 8), f32(2, 8, 16), chosen(4, 2), f32(4, 2))
REFUSED = {
    "width of gate_up": ((f32(4, 9), *GIVEN[1:]), {}),
    "odd gate_up": ((GIVEN[0], f32(2, 31, 8), *GIVEN[2:]), {}),
    "down the other way": ((*GIVEN[:2], f32(2, 16, 8), *GIVEN[3:]), {}),
    "experts int64": ((*GIVEN[:3], chosen(4, 2).long(), GIVEN[4]), {}),
    "experts of other tokens": ((*GIVEN[:3], chosen(5, 2), GIVEN[4]), {}),
    "weights of other choices": ((*GIVEN[:4], f32(4, 3)), {}),
    "mixed": ((GIVEN[0].half(), *GIVEN[1:]), {}),
    "bias": (GIVEN, {"gate_up_bias": f32(2, 16)}),
    "stride": ((f32(8, 4).t(), *GIVEN[1:]), {}),
    "limit of zero": (GIVEN, {"limit": 0.0}),
    "limit below zero": (GIVEN, {"limit": -7.0}),
    "no choice": ((*GIVEN[:3], chosen(4, 0), f32(4, 0)), {}),
}


@pytest.mark.parametrize(("arguments", "options"), REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^moe: ") as caught:
        OP.triton(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tokens", "k", "count"), [(5, 1, 3), (300, 8, 40), (2 * CHUNK, 1, 2), (200, 16, 512)])
def test_the_sort_is_stable_and_complete(tokens: int, k: int, count: int, generator: torch.Generator) -> None:
    experts = torch.randint(0, count, (tokens, k), device=DEVICE, generator=generator).int()
    # experts nobody chose, the first and the last among them
    experts = experts.clamp(count // 4, count - 1 - count // 4)
    source, slot, offs = sorted_by_expert(experts, count)
    order = experts.flatten().sort(stable=True).indices
    assert torch.equal(source.long(), order)
    assert torch.equal(slot[order].long(), torch.arange(tokens * k, device=DEVICE))
    assert torch.equal(offs.long(), torch.bincount(experts.flatten(), minlength=count).cumsum(0))


def test_values_past_the_limit_are_clamped_and_get_no_gradient(generator: torch.Generator) -> None:
    """In fp32: rounding to 16 bits would move some values over a limit as low as this."""
    kwargs = OP.inputs(OP.test_shapes["gpt_oss"], torch.float32, DEVICE, generator) | {"limit": 0.5}
    results = run(OP.triton, kwargs, OP.differentiable)
    check(results, run(OP.reference, widened(kwargs), OP.differentiable), OP.tolerance[torch.float32])
    free = run(OP.triton, kwargs | {"limit": 1e6}, OP.differentiable)
    assert not torch.allclose(free["dgate_up"], results["dgate_up"], rtol=0.1)


def test_a_token_may_choose_one_expert_twice(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["gpt_oss"], torch.float32, DEVICE, generator)
    kwargs["experts"][:] = 3
    results = run(OP.triton, kwargs, OP.differentiable)
    check(results, run(OP.reference, widened(kwargs), OP.differentiable), OP.tolerance[torch.float32])
    assert not results["dgate_up"][:3].any() and not results["ddown"][4:].any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_weights_of_experts_nobody_chose_are_not_read(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["even"], torch.float16, DEVICE, generator)
    kwargs["experts"].clamp_(1, 2)
    results = run(OP.triton, kwargs, OP.differentiable)
    kwargs["gate_up"][0] = kwargs["gate_up"][3] = kwargs["down"][0] = kwargs["down"][3] = math.nan
    again = run(OP.triton, kwargs, OP.differentiable)
    assert all(torch.equal(value, again[name]) for name, value in results.items())


def test_a_second_backward_sees_what_the_first_saw(generator: torch.Generator) -> None:
    """Backward writes over a buffer: it must be its own."""
    kwargs = OP.inputs(OP.test_shapes["even"], torch.float32, DEVICE, generator)
    x = kwargs["x"].requires_grad_()
    y = OP.triton(**kwargs)
    first, second = (torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["weights", "gate_up_bias"])
def test_a_gradient_asked_for_alone_is_the_same(name: str, generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["gpt_oss"], torch.float16, DEVICE, generator)
    alone, among = run(OP.triton, kwargs, (name,)), run(OP.triton, kwargs, (name, "x", "down"))
    assert torch.equal(alone[f"d{name}"], among[f"d{name}"])


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_replays_in_a_cuda_graph(generator: torch.Generator) -> None:
    """Other experts at each replay, and the launches are the same."""
    kwargs = OP.inputs(OP.test_shapes["zipf"], torch.float16, DEVICE, generator)
    OP.triton(**kwargs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = OP.triton(**kwargs)
    for _ in range(3):
        experts = torch.rand((33, 8), device=DEVICE, generator=generator).topk(2, -1).indices
        kwargs["experts"].copy_(experts)
        graph.replay()
        check({"y": y}, {"y": OP.reference(**widened(kwargs))}, OP.tolerance[torch.float16])


@pytest.mark.parametrize("shape", ["gpt_oss", "odd"])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_experts_outside_add_nothing(shape: str, share: float, generator: torch.Generator) -> None:
    """-1 as in expert parallelism, one past the last, and far off; all memory that nobody wrote is NaN or garbage."""
    kwargs = OP.inputs(OP.test_shapes[shape], torch.float32, DEVICE, generator)
    experts = kwargs["experts"]
    outside = torch.rand(experts.shape, device=DEVICE, generator=generator) < share
    foreign = torch.tensor([-1, OP.test_shapes[shape]["E"], 10**9], dtype=torch.int32, device=DEVICE)
    experts[outside] = foreign[torch.randint(3, experts.shape, device=DEVICE, generator=generator)[outside]]
    results = run(OP.triton, kwargs, OP.differentiable)
    assert not results["dweights"][outside].any()
    if share < 1:
        check(results, run(OP.reference, widened(kwargs), OP.differentiable), OP.tolerance[torch.float32])
    else:
        assert not any(value.any() for value in results.values())


def test_the_sort_gives_experts_outside_no_row() -> None:
    experts = torch.tensor([[2, -1], [0, 3], [7, 2]], dtype=torch.int32, device=DEVICE)
    source, slot, offs = sorted_by_expert(experts, 3)
    assert source[:3].tolist() == [2, 0, 5] and slot.tolist() == [1, -1, 0, -1, -1, 2] and offs.tolist() == [1, 1, 3]


def test_weights_at_any_address(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["even"], torch.float16, DEVICE, generator)
    truth = run(OP.reference, widened(kwargs), OP.differentiable)
    for name in ("x", "gate_up", "down"):
        kwargs[name] = torch.cat([kwargs[name].new_zeros(1), kwargs[name].flatten()])[1:].view(kwargs[name].shape)
    check(run(OP.triton, kwargs, OP.differentiable), truth, OP.tolerance[torch.float16])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("limit", [None, 0.7])
def test_the_grouped_products_are_the_loop_over_experts(bias, limit):
    """With experts nobody chose and ones outside the range, forward and every gradient; then as one compiled graph."""
    generator = torch.Generator().manual_seed(3)
    tokens, hidden, width, count, k = 24, 16, 8, 6, 2

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x, gate_up, down = random(tokens, hidden), random(count, 2 * width, hidden), random(count, hidden, width)
    biases = (random(count, 2 * width), random(count, hidden)) if bias else (None, None)
    experts = torch.randint(0, 4, (tokens, k), generator=generator, dtype=torch.int32)  # 4 and 5 get nothing
    experts[3, 1], experts[7] = -1, torch.tensor([count, -1], dtype=torch.int32)
    weights, pull = torch.rand(tokens, k, generator=generator), random(tokens, hidden)

    def run(function, dtype=torch.float32):
        given = [part.to(dtype, copy=True).requires_grad_() for part in (x, gate_up, down, weights)]
        extra = [None if part is None else part.to(dtype, copy=True).requires_grad_() for part in biases]
        y = function(*given, *extra)
        y.backward(pull.to(dtype))
        return [y, *(part.grad for part in given + extra if part is not None)]

    def by_loop(x, gate_up, down, weights, gate_up_bias, down_bias):
        return moe_reference.reference(
            x, gate_up, down, experts, weights, gate_up_bias=gate_up_bias, down_bias=down_bias, limit=limit
        )

    def by_groups(x, gate_up, down, weights, gate_up_bias, down_bias):
        return moe_reference.grouped(x, gate_up, down, experts, weights, gate_up_bias, down_bias, limit)

    for ours, exact in zip(run(by_groups), run(by_loop), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    whole = torch.compile(by_groups, fullgraph=True, dynamic=False, backend="aot_eager")  # takes bf16 alone
    for ours, eager in zip(run(whole, torch.bfloat16), run(by_groups, torch.bfloat16), strict=True):
        torch.testing.assert_close(ours, eager)
