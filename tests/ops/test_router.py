"""router: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from bench.kernels.op import widened
from bench.kernels.router import OP, _backward, _forward
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, run


def brute_router(
    logits: torch.Tensor,
    top_k: int,
    scoring: str,
    normalise: bool,
    scale: float,
    bias: Any,
    groups: int,
    top_groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token, in Python's numbers."""
    weights, experts = [], []
    steer = [0.0] * logits.shape[1] if bias is None else bias.tolist()
    for row in logits.tolist():
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total if scoring == "softmax" else 1 / (1 + math.exp(-value)) for value in row]
        # the logits and not their softmax, which may round two of them to one
        choice = row if scoring == "softmax" else [a + b for a, b in zip(p, steer, strict=True)]
        size = len(row) // groups
        best = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        kept = sorted(range(groups), key=lambda g: -best[g])[:top_groups] if groups > 1 else [0]
        # Python's sort is stable: of equals the lowest expert stays first
        chosen = sorted((e for e in range(len(row)) if e // size in kept), key=lambda e: -choice[e])[:top_k]
        whole = sum(p[e] for e in chosen) if normalise else 1
        weights.append([scale * p[e] / whole for e in chosen])
        experts.append(chosen)
    return (
        torch.tensor(weights, dtype=torch.float64, device=DEVICE),
        torch.tensor(experts, dtype=torch.int32, device=DEVICE),
    )


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_router, shape)


REFUSED = {
    "too many chosen": ((f32(2, 8), 9), {}),
    "none chosen": ((f32(2, 8), 0), {}),
    "more than 16": ((f32(2, 64), 17), {}),
    "more than 512 experts": ((f32(2, 513), 2), {}),
    "more than the groups hold": ((f32(2, 16), 8), {"scoring": "sigmoid", "groups": 4, "top_groups": 1}),
    "groups of one": ((f32(2, 4), 1), {"scoring": "sigmoid", "groups": 4, "top_groups": 2}),
    "groups that are no power of two": ((f32(2, 24), 2), {"scoring": "sigmoid", "groups": 3, "top_groups": 2}),
    "no groups": ((f32(2, 8), 2), {"scoring": "sigmoid", "groups": 0}),
    "a bias for softmax": ((f32(2, 8), 2), {"bias": f32(8)}),
    "a bias of another length": ((f32(2, 8), 2), {"scoring": "sigmoid", "bias": f32(7)}),
    "scoring": ((f32(2, 8), 2), {"scoring": "tanh"}),
    "stride": ((f32(8, 8).t(), 2), {}),
    "dimensions": ((f32(2, 2, 8), 2), {}),
}


@pytest.mark.parametrize(("arguments", "options"), REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^router: ") as caught:
        OP.triton(*arguments, **options)
    assert "\n" not in str(caught.value)


TIED = {
    "all equal": {"scoring": "softmax"},
    "sigmoid": {"scoring": "sigmoid"},
    "groups": {"scoring": "sigmoid", "groups": 4, "top_groups": 2},
}


@pytest.mark.parametrize("options", TIED.values(), ids=TIED)
@pytest.mark.parametrize("side", ["triton", "reference"])
def test_of_equal_choices_the_lowest_expert_goes_first(side: str, options: dict[str, Any]) -> None:
    logits = torch.zeros((3, 16), device=DEVICE)
    logits[1, 8:] = 1.0
    logits[2, [5, 11]] = 2.0
    _, experts = getattr(OP, side)(logits, 4, **options)
    third = [5, 11, 4, 6] if "groups" in options else [5, 11, 0, 1]
    assert experts.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], third]


def test_softmax_of_all_normalised_is_the_softmax_of_the_chosen(generator: torch.Generator) -> None:
    """What lets one formula serve Qwen3-MoE, Mixtral and gpt-oss."""
    logits = torch.randn((9, 32), device=DEVICE, generator=generator)
    weights, experts = OP.triton(logits, 4)
    assert torch.allclose(weights, logits.gather(1, experts.long()).softmax(-1), atol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_logits_of_minus_infinity_are_never_chosen_and_get_no_gradient(
    normalise: bool, generator: torch.Generator
) -> None:
    logits = torch.randn((5, 16), device=DEVICE, generator=generator)
    logits[:, 4:12] = -math.inf
    kwargs = {"logits": logits, "top_k": 3, "normalise": normalise}
    results = run(OP.triton, kwargs, ("logits",))
    check(results, run(OP.reference, widened(kwargs), ("logits",)), OP.tolerance[torch.float32])
    assert not results["dlogits"][:, 4:12].any()


@pytest.mark.parametrize("side", ["triton", "reference"])
def test_no_expert_is_chosen_twice_where_few_logits_are_finite(side: str) -> None:
    logits = torch.full((2, 4), -math.inf, device=DEVICE)
    logits[0, 0] = logits[1, 2] = 0.0
    weights, experts = getattr(OP, side)(logits, 3)
    assert experts.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert weights.tolist() == [[1.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize("normalise", [True, False])
def test_gradients_where_few_logits_are_finite(normalise: bool, generator: torch.Generator) -> None:
    logits = torch.randn((5, 16), device=DEVICE, generator=generator)
    logits[:, [0, *range(3, 16)]] = -math.inf
    kwargs = {"logits": logits, "top_k": 5, "normalise": normalise}
    results = run(OP.triton, kwargs, ("logits",))
    check(results, run(OP.reference, widened(kwargs), ("logits",)), OP.tolerance[torch.float32])
    assert results["dlogits"].isfinite().all() and not results["dlogits"][:, 3:].any()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("side", ["triton", "reference"])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_bias_of_minus_infinity_chooses_no_expert_twice_nor_outside_its_groups(side: str, groups: int) -> None:
    bias = torch.full((16,), -math.inf, device=DEVICE)
    bias[8:10] = 0.0
    options = {"scoring": "sigmoid", "bias": bias, "groups": groups}
    _, experts = getattr(OP, side)(f32(2, 16) * 0.5, 4, **options)
    assert experts.tolist() == [[8, 9, 0, 1] if groups == 1 else [8, 9, 10, 11]] * 2


def test_the_bias_steers_the_choice_and_not_the_weights() -> None:
    logits = torch.zeros((1, 4), device=DEVICE)
    bias = torch.tensor([0.0, 0.0, 5.0, 0.0], device=DEVICE)
    weights, experts = OP.triton(logits, 1, scoring="sigmoid", bias=bias, normalise=False)
    assert experts.tolist() == [[2]] and weights.tolist() == [[0.5]]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_logits_stay_within_the_experts() -> None:
    """What reads the experts would otherwise read memory that is not theirs."""
    _, experts = OP.triton(torch.full((3, 9), math.nan, device=DEVICE), 4)
    assert ((experts >= 0) & (experts < 9)).all()


@pytest.mark.skipif(CUDA, reason="would take gigabytes of a device's memory")
def test_rows_lie_beyond_2_to_the_31() -> None:
    """Four experts of rows 2³⁰ apart: the third row begins where int32 ends. Untouched host memory costs nothing."""
    apart, tokens = 2**30, 3
    # a margin of the same size before the rows: an offset that wraps around reads wrong, and does not crash
    space = np.empty(2**32 + 4, dtype=np.float16)
    space[:4] = -7.0
    rows = torch.from_numpy(space[2**31 :]).as_strided((tokens, 4), (apart, 1))
    rows.copy_(torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0], [1.0, 3.0, 0.0, 2.0]]))
    # the interpreter copies a tensor's storage: this one ends after a row, its address is all that counts
    first = torch.from_numpy(space[2**31 : 2**31 + 4])
    dense = rows.float().clone().requires_grad_()
    weights, experts = f32(tokens, 2), torch.zeros((tokens, 2), dtype=torch.int32, device=DEVICE)
    shared = {"SIGMOID": False, "NORMALISE": True, "K": 2, "E": apart, "BLOCK_E": 4, "ROWS": 4}
    _forward[(1,)](
        first, None, weights, experts, 1.0, tokens, HAS_BIAS=False, GROUPS=1, TOP_GROUPS=1, BLOCK_K=2, **shared
    )
    expected, chosen = OP.reference(dense, 2)
    assert torch.equal(experts, chosen) and torch.allclose(weights, expected)
    pull = torch.tensor([[1.0, 0.0]] * tokens, device=DEVICE)
    expected.backward(pull)
    # in place: one program, which has read all its rows before it writes
    _backward[(1,)](pull, first, experts, first, 1.0, tokens, **shared)
    assert dense.grad is not None and torch.allclose(rows.float(), dense.grad, atol=1e-3)
