"""sampling: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import pytest
import torch

from bench.kernels.op import widened
from bench.kernels.sampling import OP
from bench.kernels.tuning import trying
from tests.ops.harness import CUDA, DEVICE, check_formula, f32, long

TOLERANCE = OP.tolerance[torch.float32]


def brute_row(x: list[float], uniform: float, t: float, k: int, p: float) -> int:
    if t == 0:
        return x.index(max(x))
    ranked = sorted(range(len(x)), key=lambda i: -x[i])
    if 0 < k <= len(x):
        ranked = [i for i in ranked if x[i] >= x[ranked[k - 1]]]
    mass = {i: math.exp((x[i] - x[ranked[0]]) / t) for i in ranked}
    kept: list[int] = []
    total = sum(mass.values())
    for i in ranked:
        # the nucleus is full, and this one is not tied with its last
        if p < 1 and kept and sum(mass[j] for j in kept) >= p * total and x[i] < x[kept[-1]]:
            break
        kept.append(i)
    left = uniform * sum(mass[i] for i in kept)
    for i in sorted(kept):
        left -= mass[i]
        if left < 0:
            return i
    return max(kept)


def brute_sampling(logits: torch.Tensor, uniform: torch.Tensor, **filters: Any) -> torch.Tensor:
    neutral: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    rows = zip(
        *([neutral[n]] * len(logits) if filters[n] is None else filters[n].tolist() for n in neutral), strict=True
    )
    tokens = [brute_row(x.tolist(), float(u), *row) for x, u, row in zip(logits, uniform, rows, strict=True)]
    return torch.tensor(tokens, device=DEVICE)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_sampling, shape)


REFUSED: dict[str, Any] = {
    "one row without its dimension": {"logits": f32(8), "uniform": f32(1)},
    "columns apart": {"logits": f32(8, 2).t(), "uniform": f32(2)},
    "uniform of another batch": {"logits": f32(2, 8), "uniform": f32(3)},
    "uniform float64": {"logits": f32(2, 8), "uniform": f32(2).double()},
    "top_k int64": {"logits": f32(2, 8), "uniform": f32(2), "top_k": long(2)},
    "top_p a column": {"logits": f32(2, 8), "uniform": f32(2), "top_p": f32(2, 1)},
    "temperature half": {"logits": f32(2, 8), "uniform": f32(2), "temperature": f32(2).half()},
    "vocabulary too large": {"logits": f32(1, 1).expand(1, 2**21), "uniform": f32(1)},
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^sampling: ") as caught:
        OP.triton(**arguments)
    assert "\n" not in str(caught.value)


def ladder(top_p: float = 0.7, uniform: float = 0.45) -> dict[str, Any]:
    """Tokens 0 to 4 with mass .4 .3 .2 .1 and none: the nucleus of .7 is on its own boundary."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.0]], device=DEVICE).log()
    return {"logits": logits, "uniform": f32(1) * uniform, "top_p": f32(1) * top_p, "top_k": None}


def error_of(token: int, kwargs: dict[str, Any]) -> float:
    return OP.error((torch.tensor([token], device=DEVICE),), widened(kwargs))  # type: ignore[misc]


def test_a_wrong_token_is_a_large_error() -> None:
    # of .7 the first has 57 %, of .9 it would have 44 %: uniform .5 picks the first in the nucleus alone
    kwargs = ladder(0.65, 0.5)
    assert error_of(0, kwargs) == 0
    assert error_of(1, kwargs) == pytest.approx(0.05)  # were top_p .7 and a bit, uniform .44 would begin token 1
    assert error_of(2, kwargs) > 0.04
    assert error_of(4, kwargs) == error_of(-1, kwargs) == error_of(5, kwargs) == math.inf
    kwargs["top_k"] = long(1).int() * 2
    assert error_of(2, kwargs) == math.inf, "outside the top k"


def test_at_a_boundary_either_neighbour_is_right_and_no_other() -> None:
    # the mass of the first two is .7 but for rounding: the nucleus may or may not take the third
    kwargs = ladder(0.7, 0.5)
    assert error_of(0, kwargs) < 1e-6 and error_of(1, kwargs) < 1e-6
    assert error_of(2, kwargs) > 0.2
    # and uniform at the end of a token's interval may fall into the next
    kwargs = ladder(0.95, 0.4)
    assert error_of(0, kwargs) < 1e-6 and error_of(1, kwargs) < 1e-6
    assert error_of(2, kwargs) > 0.2


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_damaged_tokens_are_caught(shape: str, generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes[shape], torch.float32, DEVICE, generator)
    tokens = OP.reference(**kwargs)
    assert OP.error((tokens,), widened(kwargs)) <= TOLERANCE  # type: ignore[misc]
    worst = kwargs["logits"].argmin(-1)
    for damaged in (worst, tokens + kwargs["logits"].shape[1], torch.full_like(tokens, -1)):
        assert OP.error((damaged,), widened(kwargs)) > 100 * TOLERANCE  # type: ignore[misc]
    with pytest.raises(ValueError, match="sampling: tokens are"):
        OP.error((tokens.int(),), widened(kwargs))  # type: ignore[misc]


def test_sampling_follows_the_distribution() -> None:
    """Many draws from one row, evenly spread numbers: every kept token as often as its mass says."""
    kwargs = {"logits": ladder()["logits"].expand(10, 5), "uniform": (torch.arange(10, device=DEVICE) + 0.5) / 10}
    drawn = OP.triton(**kwargs, top_p=f32(10) * 0.85)
    # the nucleus of .85 is .4 .3 .2, renormalised: the intervals end at .44, .78 and 1
    assert drawn.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_temperature_zero_is_the_first_of_the_largest(generator: torch.Generator) -> None:
    logits = torch.randn((4, 9001), device=DEVICE, generator=generator).clamp_max(2.0)
    kwargs = {"logits": logits, "uniform": f32(4) * 0.9, "temperature": f32(4) * 0}
    for filters in ({}, {"top_k": long(4).int() * 7}, {"top_p": f32(4) * 0.3}):
        assert torch.equal(OP.triton(**kwargs, **filters), (logits == 2.0).int().argmax(-1))


@pytest.mark.parametrize(
    ("top_p", "top_k"),
    [(0.0, None), (0.0, 0), (0.0, 3), (0.0, 50), (-0.5, 3), (-1e9, None), (1e-40, None), (1e-40, 50)],
)
def test_top_p_of_nothing_keeps_the_largest(top_p: float, top_k: int | None, generator: torch.Generator) -> None:
    """Row 0 has one largest logit, row 1 two to draw from, row 2 the same two at temperature 0."""
    logits = torch.randn((3, 9001), device=DEVICE, generator=generator).clamp_max(2.0)
    logits[0, 8500] = logits[1:, 300] = logits[1:, 8400] = 3.0
    kwargs = {"logits": logits, "top_p": torch.full((3,), top_p, device=DEVICE)}
    kwargs["temperature"] = torch.tensor([1.0, 1.0, 0.0], device=DEVICE)
    if top_k is not None:
        kwargs["top_k"] = torch.full((3,), top_k, dtype=torch.int32, device=DEVICE)
    for uniform, second in ((0.25, 300), (0.75, 8400)):
        kwargs["uniform"] = torch.full((3,), uniform, device=DEVICE)
        for op in (OP.triton, OP.reference):
            tokens = op(**kwargs)
            assert tokens.tolist() == [8500, second, 300]
            assert OP.error((tokens,), widened(kwargs)) == 0  # type: ignore[misc]


def test_masked_tokens_are_never_drawn(generator: torch.Generator) -> None:
    """A grammar leaves few tokens: fewer than the top k, none in most chunks."""
    kwargs = OP.inputs({**OP.test_shapes["chunks"], "mixed": 0}, torch.float32, DEVICE, generator)
    allowed = [5, 9000, 9001, 16999]
    masked = torch.full_like(kwargs["logits"], -math.inf)
    masked[:, allowed] = kwargs["logits"][:, allowed]
    kwargs |= {"logits": masked, "top_k": long(3).int() * 50}
    for uniform in (0.0, 0.5, 1 - 2**-24):
        kwargs["uniform"].fill_(uniform)
        tokens = OP.triton(**kwargs)
        assert all(token in allowed for token in tokens.tolist())
        assert OP.error((tokens,), widened(kwargs)) <= TOLERANCE  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_row_of_nothing_stays_in_the_vocabulary(value: float) -> None:
    kwargs = {"logits": f32(2, 4099) * value, "uniform": f32(2) * 0.5}
    for filters in ({}, {"top_k": long(2).int() * 3, "top_p": f32(2) * 0.5}):
        assert all(0 <= token < 4099 for token in OP.triton(**kwargs, **filters).tolist())


def test_rows_may_lie_apart(generator: torch.Generator) -> None:
    """The last position of every sequence, as a prefill hands it over."""
    kwargs = OP.inputs(OP.test_shapes["top_p"], torch.float32, DEVICE, generator)
    wide = torch.full((4, 2, 3000), math.nan, device=DEVICE)
    wide[:, 1] = kwargs["logits"]
    assert torch.equal(OP.triton(**kwargs | {"logits": wide[:, 1]}), OP.triton(**kwargs))


@pytest.mark.parametrize("change", OP.candidates["sampling.draw"], ids=str)
def test_every_candidate_draws_the_same(change: dict[str, int], generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["chunks"], torch.float32, DEVICE, generator)
    with trying("sampling.draw", change):
        assert OP.error((OP.triton(**kwargs),), widened(kwargs)) <= TOLERANCE  # type: ignore[misc]


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: CUDA graphs")
def test_sampling_replays_in_a_cuda_graph(generator: torch.Generator) -> None:
    """Other numbers and other filters in a captured graph: all is read on the device, at replay."""
    kwargs = OP.inputs(OP.test_shapes["chunks"], torch.bfloat16, DEVICE, generator)
    OP.triton(**kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = OP.triton(**kwargs)
    kwargs["uniform"].fill_(0.77)
    kwargs["top_k"].fill_(3)
    graph.replay()
    assert torch.equal(out, OP.triton(**kwargs))
