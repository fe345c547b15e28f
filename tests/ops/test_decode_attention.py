"""decode_attention: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import pytest
import torch

from bench.kernels.decode_attention import FP8, OP
from bench.kernels.op import assume, relative_error, widened
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, long, run

FIXED = {  # name -> lengths that cut sequences at, before and behind the edges of blocks and pages
    "paged": (1, 16, 17),
    "window": (300, 301, 64),
    "sinks": (1, 127, 128, 129),
    "latent": (33, 200),
}


def softmax_average(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, sink: Any) -> torch.Tensor:
    weight = ((k @ q) * scale).exp()
    return (weight / (weight.sum() + (0 if sink is None else sink.exp()))) @ v


def brute_decode_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor | None, lengths: torch.Tensor, *,
    block_table: torch.Tensor | None = None, window: int | None = None, sinks: torch.Tensor | None = None,
    k_scale: float = 1.0, v_scale: float = 1.0, scale: float | None = None, v_dim: int | None = None,
) -> torch.Tensor:  # fmt: skip
    batch, heads, d = q.shape
    out = torch.zeros((batch, heads, v_dim or d), dtype=q.dtype, device=q.device)
    for b, h in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)).tolist():
        length, head = int(lengths[b]), h // (heads // k_cache.shape[2])
        seen = range(max(0, length - (window or length)), length)
        if block_table is None:
            at = [(b, position) for position in seen]
        else:
            size = k_cache.shape[1]
            at = [(int(block_table[b, position // size]), position % size) for position in seen]
        k = torch.stack([k_cache[block, row, head] for block, row in at]) * k_scale
        v = k[:, :v_dim] if v_cache is None else torch.stack([v_cache[block, row, head] for block, row in at]) * v_scale
        sink = None if sinks is None else sinks[h]
        out[b, h] = softmax_average(q[b, h], k, v, 1 / math.sqrt(d) if scale is None else scale, sink)
    return out


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_decode_attention, shape)


def call(**changes: Any) -> dict[str, Any]:
    """A call that is right but for `changes`."""
    given = {"q": f32(1, 2, 16), "k_cache": f32(1, 16, 2, 16), "v_cache": f32(1, 16, 2, 16), "lengths": long(1).int()}
    return given | changes


LATENT = {"q": f32(1, 2, 48), "k_cache": f32(1, 16, 1, 48), "v_cache": None, "v_dim": 32}
REFUSED = {
    "lengths int64": call(lengths=long(1)),
    "batch": call(q=f32(2, 2, 16), lengths=long(2).int()),
    "more sequences than a grid's y": call(
        q=f32(65536, 2, 16),
        k_cache=f32(1, 16, 2, 16),
        v_cache=f32(1, 16, 2, 16),
        lengths=long(65536).int(),
        block_table=long(65536, 1).int(),
    ),
    "groups": call(q=f32(1, 3, 16)),
    "head dim": call(q=f32(1, 2, 24), k_cache=f32(1, 16, 2, 24), v_cache=f32(1, 16, 2, 24)),
    "mixed": call(v_cache=f32(1, 16, 2, 16).half()),
    "cache stride": call(v_cache=f32(1, 2, 16, 16).transpose(1, 2)),
    "page of 24": call(k_cache=f32(1, 24, 2, 16), v_cache=f32(1, 24, 2, 16), block_table=long(1, 1).int()),
    "table int64": call(block_table=long(1, 1)),
    "table of another batch": call(block_table=long(2, 1).int()),
    "window of none": call(window=0),
    "sinks of another size": call(sinks=f32(3)),
    "scales of no fp8": call(k_scale=f32(), v_scale=f32()),
    "fp8 without scales": call(k_cache=f32(1, 16, 2, 16).to(FP8), v_cache=f32(1, 16, 2, 16).to(FP8)),
    "v_dim with values": call(v_dim=16),
    "latent without v_dim": call(**LATENT | {"v_dim": None}),
    "latent with sinks": call(**LATENT, sinks=f32(2)),
    "latent of two heads": call(**LATENT | {"k_cache": f32(1, 16, 2, 48)}),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^decode_attention: ") as caught:
        OP.triton(**arguments)
    assert "\n" not in str(caught.value)


def test_the_call_the_refusals_change_is_right() -> None:
    for arguments in (call(), call(**LATENT), call(block_table=long(1, 1).int() * 0)):
        assert torch.equal(OP.triton(**arguments), torch.ones_like(arguments["q"])[..., : arguments.get("v_dim")])


@pytest.mark.parametrize("length", [1, 64, 65, 1023])
def test_decode_never_reads_the_unused_cache(length: int, generator: torch.Generator) -> None:
    """A length of 1 leaves all slices but one empty."""
    kwargs = OP.inputs(OP.test_shapes["splits"], torch.float32, DEVICE, generator)
    kwargs["lengths"].fill_(length)
    truth = run(OP.reference, widened(kwargs), (), seed=7)
    for cache in ("k_cache", "v_cache"):
        kwargs[cache][:, length:] = math.nan
    check(run(OP.triton, kwargs, (), seed=7), truth, OP.tolerance[torch.float32])


@pytest.mark.parametrize(("shape", "lengths"), FIXED.items(), ids=FIXED)
def test_only_visible_positions_of_pages_are_read(
    shape: str, lengths: tuple[int, ...], generator: torch.Generator
) -> None:
    """NaN wherever nothing is visible: in pages, behind lengths, before windows; garbage in the table past the end."""
    kwargs = OP.inputs(OP.test_shapes[shape], torch.float32, DEVICE, generator)
    kwargs["lengths"] = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    truth = run(OP.reference, widened(kwargs))
    table, window = kwargs.get("block_table"), kwargs.get("window")
    size = kwargs["k_cache"].shape[1]
    for cache in ("k_cache", "v_cache"):
        if kwargs[cache] is not None:
            clean, kwargs[cache] = kwargs[cache], torch.full_like(kwargs[cache], math.nan)
            for b, length in enumerate(lengths):
                for position in range(max(0, length - (window or length)), length):
                    block = b if table is None else int(table[b, position // size])
                    kwargs[cache][block, position % size] = clean[block, position % size]
    if table is not None:
        for b, length in enumerate(lengths):
            table[b, -(-length // size) :] = 2**31 - 1
    check(run(OP.triton, kwargs), truth, OP.tolerance[torch.float32])


def test_a_sequence_without_positions_is_zero(generator: torch.Generator) -> None:
    """Padding of a captured batch: no NaN that could spread."""
    kwargs = OP.inputs(OP.test_shapes["ragged"], torch.float32, DEVICE, generator)
    kwargs["lengths"][1] = 0
    out = OP.triton(**kwargs)
    assert not out[1].any() and out[0].any() and torch.isfinite(out).all()


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_any_share_of_ragged_lengths_adds_up(batch: int, generator: torch.Generator) -> None:
    """More slices than sequences and fewer, one long sequence among short ones, slices that fall empty."""
    shape = {"B": batch, "S": 520, "nq": 2, "nkv": 1, "d": 128}
    kwargs = OP.inputs(shape, torch.float32, DEVICE, generator)
    kwargs["lengths"] = torch.randint(1, 40, (batch,), device=DEVICE, generator=generator).int()
    kwargs["lengths"][batch // 2] = 519
    check(run(OP.triton, kwargs), run(OP.reference, widened(kwargs)), OP.tolerance[torch.float32])


def test_fp8_takes_queries_of_any_size(generator: torch.Generator) -> None:
    """Products are in fp16: rows of q are brought into its range, the largest and the smallest."""
    kwargs = OP.inputs(OP.test_shapes["fp8"], torch.float16, DEVICE, generator)
    kwargs["q"] *= torch.tensor([1e-4, 1.0, 30.0, 1.0], device=DEVICE)[:, None].half()
    kwargs["q"][1] *= 1e-3
    kwargs["k_scale"] *= 0.01
    error = relative_error(OP.triton(**kwargs), OP.reference(**widened(kwargs)))
    assert error <= OP.tolerance[torch.float16]


@pytest.mark.skipif(CUDA, reason="a GPU is of one architecture")
def test_fp8_caches_want_sm_90(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["fp8"], torch.float16, DEVICE, generator)
    with assume(80), pytest.raises(ValueError, match=r"^decode_attention: .*sm_90[^\n]*$"):
        OP.triton(**kwargs)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: CUDA graphs")
@pytest.mark.parametrize("shape", ["ragged", "paged", "sinks", "latent"])
def test_decode_replays_in_a_cuda_graph(shape: str, generator: torch.Generator) -> None:
    """Longer sequences in a captured graph: lengths are read on the device, at replay."""
    kwargs = OP.inputs(OP.test_shapes[shape], torch.bfloat16, DEVICE, generator)
    OP.triton(**kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = OP.triton(**kwargs)
    kwargs["lengths"].fill_(133)
    graph.replay()
    assert torch.equal(out, OP.triton(**kwargs))
